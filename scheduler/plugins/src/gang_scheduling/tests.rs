use std::sync::Mutex;

use framework::WaitingPod;
use framework::testing::{PodBuilder, make_pod};
use k8s_openapi::api::core::v1::PodSchedulingGroup;
use k8s_openapi::api::scheduling::v1beta1::{
    GangSchedulingPolicy, PodGroupSchedulingPolicy, PodGroupSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::*;
use crate::testing::FakeHandle;

fn group(name: &str, min_count: Option<i32>) -> Arc<PodGroup> {
    Arc::new(PodGroup {
        metadata: ObjectMeta {
            namespace: Some("default".into()),
            name: Some(name.into()),
            ..ObjectMeta::default()
        },
        spec: PodGroupSpec {
            scheduling_policy: PodGroupSchedulingPolicy {
                gang: min_count.map(|min_count| GangSchedulingPolicy { min_count }),
                ..PodGroupSchedulingPolicy::default()
            },
            ..PodGroupSpec::default()
        },
        ..PodGroup::default()
    })
}

fn member(name: &str, group: &str) -> PodBuilder {
    make_pod(name).uid(name).with(|pod| {
        pod.spec.get_or_insert_default().scheduling_group = Some(PodSchedulingGroup {
            pod_group_name: Some(group.into()),
        });
    })
}

fn plugin() -> (Arc<FakeHandle>, Arc<dyn Plugin>) {
    let handle = Arc::new(FakeHandle {
        pod_groups: framework::PodGroupCache::new(true),
        ..FakeHandle::default()
    });
    let plugin = new(None, Arc::clone(&handle) as _).expect("the gate is on");
    (handle, plugin)
}

#[test]
fn with_the_gate_off_there_is_no_plugin() {
    let error = new(None, Arc::new(FakeHandle::default()))
        .err()
        .expect("off");
    assert!(error.to_string().contains("GenericWorkload"), "{error}");
}

#[test]
fn pods_enter_the_queue_when_enough_are_there() {
    let (handle, plugin) = plugin();
    let pre_enqueue = |pod: PodBuilder| {
        let pre_enqueue = plugin.as_pre_enqueue().expect("at that point");
        pre_enqueue.pre_enqueue(&pod.build()).message()
    };
    assert_eq!(pre_enqueue(make_pod("alone")), "");
    let nobody = "waiting for pods's pod group \"g\" to appear in scheduling queue";
    assert_eq!(pre_enqueue(member("a", "g")), nobody);
    handle.pod_groups.set_group(&group("g", Some(2)));
    handle.pod_groups.set_pod(&member("a", "g").build());
    let few = "waiting for minCount pods from a gang to appear in scheduling queue";
    assert_eq!(pre_enqueue(member("a", "g")), few);
    handle
        .pod_groups
        .set_pod(&member("b", "g").node("n").build());
    assert_eq!(pre_enqueue(member("a", "g")), "");
    handle.pod_groups.set_group(&group("basic", None));
    assert_eq!(pre_enqueue(member("c", "basic")), "");
}

struct Waits(Arc<PodInfo>, Arc<Mutex<Vec<String>>>);

impl WaitingPod for Waits {
    fn pod(&self) -> &Arc<PodInfo> {
        &self.0
    }
    fn pending_plugins(&self) -> Vec<&'static str> {
        vec![names::GANG_SCHEDULING]
    }
    fn allow(&self, plugin: &'static str) {
        let text = format!("{plugin} allows {}", self.0.name());
        self.1.lock().unwrap().push(text);
    }
    fn reject(&self, _: &'static str, _: &str) -> bool {
        true
    }
    fn preempt(&self, _: &'static str, _: &str) -> bool {
        true
    }
}

#[test]
fn permit_is_a_barrier() {
    let (handle, plugin) = plugin();
    let said = Arc::<Mutex<Vec<String>>>::default();
    let permit = |pod: &PodBuilder| {
        let permit = plugin.as_permit().expect("at that point");
        permit.permit(&mut CycleState::new(), &pod.clone().info(), "n")
    };
    assert!(permit(&make_pod("alone")).0.is_success());
    let pods = ["a", "b", "c"].map(|name| member(name, "g"));
    assert!(permit(&pods[0]).0.is_error(), "nobody has made the group");
    handle.pod_groups.set_group(&group("g", Some(2)));
    pods.iter()
        .for_each(|pod| handle.pod_groups.set_pod(&pod.clone().build()));
    handle.pod_groups.assume(&pods[0].clone().build(), "n");
    let (status, timeout) = permit(&pods[0]);
    assert_eq!(
        (status.code(), timeout),
        (Code::Wait, Duration::from_secs(300))
    );
    assert_eq!(
        status.message(),
        "waiting for minCount pods from a gang to be scheduled"
    );
    assert_eq!(*handle.activated.lock().unwrap(), ["b", "c"]);
    let waits = Waits(pods[0].clone().info(), Arc::clone(&said));
    handle.waiting.lock().unwrap().push(Arc::new(waits));
    handle.pod_groups.assume(&pods[1].clone().build(), "n");
    assert!(permit(&pods[1]).0.is_success());
    assert_eq!(*said.lock().unwrap(), ["GangScheduling allows a"]);
}

#[test]
fn a_placement_is_feasible_from_min_count_on() {
    let (_, plugin) = plugin();
    let point = plugin.as_placement_feasible().expect("at that point");
    let ask = |min_count, scheduled, remaining| {
        let progress = GroupProgress {
            scheduled,
            remaining,
        };
        let status = point.placement_feasible(&group("g", min_count), progress);
        (status.code(), status.message())
    };
    let cannot = "minCount (3) cannot be satisfied: 1 scheduled, 1 remaining";
    assert_eq!(ask(Some(3), 1, 1), (Code::Unschedulable, cannot.to_owned()));
    let not_yet = "minCount (3) is not yet satisfied: 1 scheduled, 2 remaining";
    assert_eq!(ask(Some(3), 1, 2), (Code::Wait, not_yet.to_owned()));
    assert_eq!(ask(Some(3), 3, 0), (Code::Success, String::new()));
    assert_eq!(ask(None, 0, 1).0, Code::Wait);
    assert_eq!(ask(None, 1, 1).0, Code::Success);
}

#[test]
fn events_that_may_complete_a_gang() {
    let pod = member("a", "g").build();
    let pods = |pod: PodBuilder| EventObject::Pod(pod.build());
    let groups = |name, min| EventObject::PodGroup(group(name, min));
    let added = |new: &EventObject| after_pod_added(&pod, None, Some(new));
    use QueueingHint::{Queue, QueueSkip};
    assert_eq!(added(&pods(member("b", "g"))), Queue);
    assert_eq!(added(&pods(member("b", "other"))), QueueSkip);
    assert_eq!(
        added(&pods(member("b", "g").namespace("elsewhere"))),
        QueueSkip
    );
    assert_eq!(added(&pods(make_pod("b"))), QueueSkip);
    let added = |new: &EventObject| after_group_added(&pod, None, Some(new));
    assert_eq!(added(&groups("g", Some(1))), Queue);
    assert_eq!(added(&groups("other", Some(1))), QueueSkip);
    let updated =
        |old, new| after_group_updated(&pod, Some(&groups("g", old)), Some(&groups("g", new)));
    assert_eq!(updated(Some(3), Some(2)), Queue);
    assert_eq!(updated(Some(2), Some(3)), QueueSkip);
    assert_eq!(updated(Some(3), None), QueueSkip);
    let alone = make_pod("alone").build();
    let more = groups("g", Some(3));
    assert_eq!(
        after_group_updated(&alone, Some(&more), Some(&groups("g", Some(2)))),
        QueueSkip
    );
}
