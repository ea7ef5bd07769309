use framework::testing::{PodBuilder, make_node, make_pod, snapshot};
use framework::{Object, WaitingPod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use plugins::testing::FakeHandle;
use serde_json::json;

use super::*;

fn group(name: &str, spec: serde_json::Value) -> EventObject {
    EventObject::Custom(Arc::new(Object {
        kind: POD_GROUP,
        metadata: ObjectMeta {
            namespace: Some("default".into()),
            name: Some(name.into()),
            creation_timestamp: Some(Time(Timestamp::from_second(100).unwrap())),
            ..ObjectMeta::default()
        },
        data: json!({"spec": spec}),
    }))
}

fn member(name: &str, group: &str) -> PodBuilder {
    make_pod(name).uid(name).label(POD_GROUP_LABEL, group)
}

/// What became of a pod that waits in Permit.
#[derive(Default)]
struct Waiting {
    said: Mutex<Vec<String>>,
}

struct WaitingHere(Arc<PodInfo>, Arc<Waiting>);

impl WaitingPod for WaitingHere {
    fn pod(&self) -> &Arc<PodInfo> {
        &self.0
    }
    fn pending_plugins(&self) -> Vec<&'static str> {
        vec![names::COSCHEDULING]
    }
    fn allow(&self, plugin: &'static str) {
        self.1
            .said
            .lock()
            .unwrap()
            .push(format!("{plugin} allows {}", self.0.name()));
    }
    fn reject(&self, _plugin: &'static str, message: &str) -> bool {
        self.1
            .said
            .lock()
            .unwrap()
            .push(format!("{} {message}", self.0.name()));
        true
    }
    fn preempt(&self, _plugin: &'static str, _message: &str) -> bool {
        true
    }
}

struct Bed {
    plugin: Arc<dyn Plugin>,
    handle: Arc<FakeHandle>,
    waiting: Arc<Waiting>,
    snapshot: Snapshot,
}

impl Bed {
    fn new(args: serde_json::Value) -> Self {
        let handle = Arc::new(FakeHandle {
            time_is_up: true,
            ..FakeHandle::default()
        });
        let node = make_node("n").capacity(&[("cpu", "4"), ("memory", "4Gi"), ("pods", "10")]);
        Bed {
            plugin: new(Some(&args), Arc::clone(&handle) as _).expect("valid"),
            handle,
            waiting: Arc::default(),
            snapshot: snapshot([node.build()], []),
        }
    }

    fn tell(&self, object: EventObject) -> &Self {
        self.plugin
            .as_observer()
            .unwrap()
            .observe(None, Some(&object));
        self
    }

    fn pods(&self, pods: Vec<PodBuilder>) -> &Self {
        for pod in pods {
            self.tell(EventObject::Pod(pod.build()));
        }
        self
    }

    fn pre_filter(&self, pod: PodBuilder) -> Status {
        let pre_filter = self.plugin.as_pre_filter().unwrap();
        let pod = pod.info();
        let signed = self.plugin.sign(&pod, &self.snapshot).is_some();
        let (_, status) = pre_filter.pre_filter(&mut CycleState::new(), &pod, &self.snapshot);
        assert_eq!(
            signed,
            status.is_success(),
            "an answer is kept where PreFilter lets the pod in"
        );
        status
    }

    fn permit(&self, pod: PodBuilder) -> (Status, u64) {
        let pod = pod.info();
        let permit = self.plugin.as_permit().unwrap();
        let (status, timeout) = permit.permit(&mut CycleState::new(), &pod, "n");
        if status.is_wait() {
            let waiting = WaitingHere(Arc::clone(&pod), Arc::clone(&self.waiting));
            self.handle.waiting.lock().unwrap().push(Arc::new(waiting));
        }
        (status, timeout.as_secs())
    }

    fn post_filter(&self, pod: PodBuilder) -> Status {
        let post_filter = self.plugin.as_post_filter().unwrap();
        let (nominating, status) = post_filter.post_filter(
            &mut CycleState::new(),
            &pod.info(),
            &self.snapshot,
            &NodeToStatus::default(),
        );
        assert_eq!(nominating, None);
        status
    }

    fn unreserve(&self, pod: PodBuilder) {
        let reserve = self.plugin.as_reserve().unwrap();
        reserve.unreserve(&mut CycleState::new(), &pod.info(), "n");
    }

    fn said(&self) -> Vec<String> {
        std::mem::take(&mut *self.waiting.said.lock().unwrap())
    }

    fn activated(&self) -> Vec<String> {
        std::mem::take(&mut *self.handle.activated.lock().unwrap())
    }
}

#[test]
fn a_group_is_tried_when_it_can_be_complete() {
    let bed = Bed::new(json!({}));
    let ok = |status: Status| status.is_success();
    assert!(ok(bed.pre_filter(make_pod("alone"))), "no group");
    assert!(
        ok(bed.pre_filter(member("a", "none"))),
        "a group that is not there"
    );
    bed.tell(group("g", json!({"minMember": 3})));
    bed.pods(vec![
        member("a", "g"),
        member("b", "g"),
        member("x", "other"),
    ]);
    let status = bed.pre_filter(member("a", "g"));
    assert_eq!(status.code(), framework::Code::UnschedulableAndUnresolvable);
    assert_eq!(
        status.message(),
        "pre-filter pod a cannot find enough sibling pods, current pods number: 2, minMember of group: 3"
    );
    bed.pods(vec![member("c", "g").scheduling_gate("gate")]);
    assert_eq!(
        bed.pre_filter(member("a", "g")).message(),
        "pre-filter pod a cannot proceed due to gated pods in the same PodGroup"
    );
    bed.pods(vec![member("d", "g")]);
    assert!(ok(bed.pre_filter(member("a", "g"))), "three without a gate");
    // Told twice counts once; gone counts no more.
    bed.pods(vec![member("d", "g")]);
    let gone = EventObject::Pod(member("d", "g").build());
    bed.plugin.as_observer().unwrap().observe(Some(&gone), None);
    assert!(!ok(bed.pre_filter(member("a", "g"))));
    // A pod whose label changes belongs to the other group.
    bed.pods(vec![member("d", "g")]);
    let (old, new) = (member("d", "g").build(), member("d", "other").build());
    let (old, new) = (EventObject::Pod(old), EventObject::Pod(new));
    bed.plugin
        .as_observer()
        .unwrap()
        .observe(Some(&old), Some(&new));
    assert!(!ok(bed.pre_filter(member("a", "g"))));
}

#[test]
fn a_group_with_min_resources_waits_for_room() {
    let bed = Bed::new(json!({}));
    bed.tell(group(
        "g",
        json!({"minMember": 2, "minResources": {"cpu": "5", "memory": "1Gi"}}),
    ));
    bed.pods(vec![member("a", "g"), member("b", "g")]);
    assert_eq!(
        bed.pre_filter(member("a", "g")).message(),
        "resource gap: {cpu: 1}"
    );
    let hint = |event: &ClusterEventWithHint, pod: PodBuilder| {
        let hint = event.queueing_hint.as_ref().expect("has a hint");
        hint(&pod.build(), None, None)
    };
    let events = bed
        .plugin
        .as_enqueue_extensions()
        .unwrap()
        .events_to_register();
    let node = events
        .iter()
        .find(|e| e.event.resource == EventResource::Node);
    let node = node.expect("hears of nodes");
    assert_eq!(hint(node, member("a", "g")), QueueingHint::Queue);
    assert_eq!(hint(node, member("a", "other")), QueueingHint::QueueSkip);
    bed.tell(group(
        "g",
        json!({"minMember": 2, "minResources": {"cpu": "4"}}),
    ));
    assert!(bed.pre_filter(member("a", "g")).is_success());
    // More pods than the node takes.
    bed.tell(group(
        "h",
        json!({"minMember": 11, "minResources": {"cpu": "1"}}),
    ));
    bed.pods((0..11).map(|i| member(&format!("h{i}"), "h")).collect());
    assert_eq!(
        bed.pre_filter(member("h0", "h")).message(),
        "resource gap: {pods: 1}"
    );
}

#[test]
fn all_wait_for_the_last_and_go_together() {
    let bed = Bed::new(json!({"permitWaitingTimeSeconds": 10}));
    assert!(bed.permit(make_pod("alone")).0.is_success());
    assert_eq!(
        bed.permit(member("a", "g")).0.message(),
        "PodGroup not found"
    );
    bed.tell(group("g", json!({"minMember": 3})));
    bed.pods(vec![member("a", "g"), member("b", "g"), member("c", "g")]);
    let (status, timeout) = bed.permit(member("a", "g"));
    assert!(status.is_wait() && timeout == 10);
    assert_eq!(bed.activated(), ["b", "c"], "the first calls the others");
    assert!(bed.permit(member("b", "g")).0.is_wait());
    assert!(bed.activated().is_empty());
    assert!(bed.permit(member("c", "g")).0.is_success());
    assert_eq!(
        bed.said(),
        ["Coscheduling allows a", "Coscheduling allows b"]
    );
    // A pod that runs already counts.
    bed.tell(group(
        "h",
        json!({"minMember": 2, "scheduleTimeoutSeconds": 7}),
    ));
    bed.pods(vec![member("d", "h").node("n"), member("e", "h")]);
    assert!(bed.permit(member("e", "h")).0.is_success());
    bed.tell(group(
        "i",
        json!({"minMember": 2, "scheduleTimeoutSeconds": 7}),
    ));
    assert_eq!(bed.permit(member("f", "i")).1, 7);
}

#[test]
fn one_that_fits_nowhere_sends_the_others_back() {
    let bed = Bed::new(json!({"podGroupBackoffSeconds": 20}));
    let message = "can not find pod group";
    assert_eq!(bed.post_filter(member("a", "g")).message(), message);
    bed.tell(group("g", json!({"minMember": 3})));
    bed.pods(vec![member("a", "g"), member("b", "g"), member("c", "g")]);
    let _ = bed.permit(member("a", "g"));
    bed.activated();
    let status = bed.post_filter(member("b", "g"));
    assert_eq!(
        status.message(),
        "PodGroup default/g gets rejected due to Pod b is unschedulable even after PostFilter"
    );
    assert_eq!(bed.said(), ["a optimistic rejection in PostFilter"]);
    // The backoff is over at once here, and its end calls all of them.
    assert_eq!(bed.activated(), ["a", "b", "c"]);
    // What its binding undoes is not undone again for the others.
    bed.unreserve(member("a", "g"));
    assert!(bed.said().is_empty());
    // A small gap is no reason: the next one may do.
    let bed = Bed::new(json!({"podGroupRejectPercentage": 50}));
    bed.tell(group("g", json!({"minMember": 2})));
    bed.pods(vec![member("a", "g"), member("b", "g")]);
    let _ = bed.permit(member("a", "g"));
    assert_eq!(bed.post_filter(member("b", "g")).message(), "");
    assert!(bed.said().is_empty());
    // Nor is any when enough have a node.
    let _ = bed.permit(member("b", "g"));
    bed.said();
    let _ = bed.post_filter(member("c", "g"));
    assert!(bed.said().is_empty());
}

#[test]
fn a_group_that_backs_off_is_not_tried() {
    let mut groups = Groups::default();
    if let EventObject::Custom(object) = group("g", json!({"minMember": 1})) {
        groups.set_group(&object);
    }
    groups.set_pod("default/g", member("a", "g").build());
    let (now, snapshot) = (Instant::now(), snapshot([], []));
    let later = now + Duration::from_secs(5);
    assert!(groups.back_off("default/g", later));
    assert!(!groups.back_off("default/g", later), "it does already");
    let check = |groups: &Groups, now| groups.check("default/g", "a", &snapshot, now);
    assert_eq!(
        check(&groups, now),
        Err("podGroup default/g failed recently".into())
    );
    assert_eq!(check(&groups, later), Ok(()));
    groups.end_back_off("default/g");
    assert_eq!(check(&groups, now), Ok(()));
}

#[test]
fn one_that_waited_too_long_sends_the_others_back() {
    let bed = Bed::new(json!({}));
    bed.tell(group("g", json!({"minMember": 3})));
    let _ = bed.permit(member("a", "g"));
    let _ = bed.permit(member("b", "g"));
    bed.unreserve(member("a", "g"));
    assert_eq!(
        bed.said(),
        ["a rejection in Unreserve", "b rejection in Unreserve"]
    );
    bed.unreserve(member("b", "g"));
    assert!(bed.said().is_empty(), "once is enough");
    // It has no node any more: the first that comes is the first again.
    bed.handle.waiting.lock().unwrap().clear();
    bed.pods(vec![member("a", "g"), member("b", "g"), member("c", "g")]);
    let _ = bed.permit(member("b", "g"));
    assert_eq!(bed.activated(), ["a", "c"]);
}

#[test]
fn the_queue_goes_by_the_groups_time() {
    let bed = Bed::new(json!({}));
    bed.tell(group("g", json!({"minMember": 2})));
    bed.tell(group("h", json!({"minMember": 2})));
    let now = Instant::now();
    let less = |a: &PodBuilder, b: &PodBuilder| {
        let (a, b) = (a.clone().info(), b.clone().info());
        let at = |pod| QueuedPod {
            pod,
            timestamp: now,
            initial_attempt_timestamp: Some(now),
        };
        let sort = bed.plugin.as_queue_sort().unwrap();
        sort.less(&at(&*a), &at(&*b))
    };
    let (a, b, alone) = (member("a", "g"), member("b", "h"), make_pod("alone"));
    let high = make_pod("high").priority(10);
    assert!(less(&high, &a) && !less(&a, &high), "priority first");
    assert!(
        less(&a, &alone) && !less(&alone, &a),
        "the group is older than the pod"
    );
    assert!(less(&a, &b) && !less(&b, &a), "as old: by name");
    let _ = bed.post_filter(member("a", "g"));
    assert!(!less(&a, &b) && less(&b, &a), "who failed goes behind");
}

#[test]
fn pods_that_waited_before_a_reload_count() {
    let bed = Bed::new(json!({}));
    bed.tell(group("g", json!({"minMember": 2})));
    let _ = bed.permit(member("a", "g"));
    // The same scheduler, by another configuration.
    let again = Bed {
        plugin: new(None, Arc::clone(&bed.handle) as _).unwrap(),
        handle: Arc::clone(&bed.handle),
        waiting: Arc::clone(&bed.waiting),
        snapshot: snapshot([], []),
    };
    again.tell(group("g", json!({"minMember": 2})));
    again.plugin.as_observer().unwrap().begin();
    assert!(again.permit(member("b", "g")).0.is_success());
    assert_eq!(again.said(), ["Coscheduling allows a"]);
}

#[test]
fn arguments_out_of_range_are_named() {
    let args = json!({"permitWaitingTimeSeconds": -1, "podGroupBackoffSeconds": -2, "podGroupRejectPercentage": 101});
    let error = new(Some(&args), plugins::testing::handle()).err();
    let error = error.expect("refused").to_string();
    for words in [
        "permitWaitingTimeSeconds: Invalid value: -1: must be greater than 0",
        "podGroupBackoffSeconds: Invalid value: -2: must be greater than 0",
        "podGroupRejectPercentage: Invalid value: 101: must be between 0 and 100",
    ] {
        assert!(error.contains(words), "{error}");
    }
}
