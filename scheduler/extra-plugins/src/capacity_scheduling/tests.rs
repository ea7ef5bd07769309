use framework::testing::{PodBuilder, make_node, make_pod, snapshot};
use framework::{Object, Verdicts};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use plugins::testing::FakeHandle;
use serde_json::json;

use super::*;

fn quota(namespace: &str, min: serde_json::Value, max: serde_json::Value) -> EventObject {
    EventObject::Custom(Arc::new(Object {
        kind: ELASTIC_QUOTA,
        metadata: ObjectMeta {
            namespace: Some(namespace.into()),
            name: Some("quota".into()),
            ..ObjectMeta::default()
        },
        data: json!({"spec": {"min": min, "max": max}}),
    }))
}

/// A pod of that namespace with so much memory, which is also its name's end.
fn pod(namespace: &str, name: &str, memory: &str) -> PodBuilder {
    let pod = make_pod(name).uid(name).namespace(namespace);
    pod.req(&[("memory", memory)])
}

struct Bed {
    plugin: Arc<dyn Plugin>,
    handle: Arc<FakeHandle>,
    snapshot: Snapshot,
}

impl Bed {
    /// Nodes with so much memory, and pods on them.
    fn new(
        quotas: &[EventObject],
        nodes: &[(&str, &str)],
        pods: Vec<PodBuilder>,
        nominated: Vec<PodBuilder>,
        preemptor: Option<&PodBuilder>,
    ) -> Self {
        let nodes = nodes.iter().map(|(name, memory)| {
            let capacity = [("cpu", "10"), ("memory", *memory), ("pods", "100")];
            make_node(name).capacity(&capacity).build()
        });
        let pods: Vec<Arc<PodInfo>> = pods.into_iter().map(PodBuilder::info).collect();
        let snapshot = snapshot(nodes, pods.iter().cloned());
        // The plugin whose extensions run is another of the same knowledge: a plugin cannot be in its own handle here.
        let tell = |plugin: &Arc<dyn Plugin>| {
            let observer = plugin.as_observer().unwrap();
            quotas
                .iter()
                .for_each(|quota| observer.observe(None, Some(quota)));
            for pod in &pods {
                observer.observe(None, Some(&EventObject::Pod(Arc::clone(&pod.pod))));
            }
        };
        let mut handle = FakeHandle {
            nominated: nominated.into_iter().map(PodBuilder::info).collect(),
            ..FakeHandle::default()
        };
        let fit = plugins::node_resources_fit::new(None, plugins::testing::handle());
        let extensions = new(None, plugins::testing::handle()).expect("valid");
        tell(&extensions);
        handle.plugins = vec![fit.expect("valid"), extensions];
        if let Some(preemptor) = preemptor {
            handle.pods.lock().unwrap().push(preemptor.clone().build());
        }
        let handle = Arc::new(handle);
        let plugin = new(None, Arc::clone(&handle) as _).expect("valid");
        tell(&plugin);
        Bed {
            plugin,
            handle,
            snapshot,
        }
    }

    fn pre_filter(&self, pod: &PodBuilder) -> (CycleState, Status) {
        let (mut state, pod) = (CycleState::new(), pod.clone().info());
        let pre_filter = self.plugin.as_pre_filter().unwrap();
        let signed = self.plugin.sign(&pod, &self.snapshot).is_some();
        let (_, status) = pre_filter.pre_filter(&mut state, &pod, &self.snapshot);
        assert_eq!(
            signed,
            status.is_success(),
            "an answer is kept where PreFilter lets the pod in"
        );
        (state, status)
    }
}

fn refused(
    quotas: &[EventObject],
    pods: Vec<PodBuilder>,
    nominated: Vec<PodBuilder>,
    pod: PodBuilder,
) -> String {
    let bed = Bed::new(quotas, &[("n", "1000")], pods, nominated, None);
    bed.pre_filter(&pod).1.message()
}

#[test]
fn no_more_than_max_and_together_no_more_than_all_mins() {
    let two = || {
        [
            quota("a", json!({"memory": "100"}), json!({"memory": "200"})),
            quota("b", json!({"memory": "100"}), json!({"memory": "200"})),
        ]
    };
    let on = |namespace, name, memory| pod(namespace, name, memory).node("n");
    let (max, min) = (
        "Pod a/p is rejected in PreFilter because ElasticQuota a is more than Max",
        "Pod a/p is rejected in PreFilter because total ElasticQuota used is more than min",
    );
    for (what, pods, asked, expect) in [
        ("nothing used", vec![], "200", ""),
        ("more than max", vec![], "201", max),
        ("used counts", vec![on("a", "x", "150")], "51", max),
        (
            "what others do not use is lent",
            vec![on("b", "x", "50")],
            "150",
            "",
        ),
        ("what they use is not", vec![on("b", "x", "50")], "151", min),
        (
            "a namespace without a quota counts for none",
            vec![on("c", "x", "500")],
            "200",
            "",
        ),
    ] {
        let got = refused(&two(), pods, vec![], pod("a", "p", asked));
        assert_eq!(got, expect, "{what}");
    }
    assert_eq!(
        refused(&two(), vec![], vec![], pod("c", "p", "900")),
        "",
        "no quota"
    );
    let unbounded = [quota("a", json!({"memory": "50"}), json!(null))];
    assert_eq!(
        refused(&unbounded, vec![], vec![], pod("a", "p", "51")),
        min
    );
    // CPU that max does not name is none; a device that it does not name is unbounded.
    let named = [quota(
        "a",
        json!({"memory": "100", "example.com/gpu": "9"}),
        json!({"memory": "100"}),
    )];
    let with = |resource, amount| make_pod("p").namespace("a").req(&[(resource, amount)]);
    assert_eq!(refused(&named, vec![], vec![], with("cpu", "1")), max);
    assert_eq!(
        refused(&named, vec![], vec![], with("example.com/gpu", "9")),
        ""
    );
}

#[test]
fn nominated_pods_will_use_their_quota() {
    let two = || {
        [
            quota("a", json!({"memory": "100"}), json!({"memory": "200"})),
            quota("b", json!({"memory": "100"}), json!({"memory": "200"})),
        ]
    };
    let nominated = |namespace, priority| {
        let other = pod(namespace, "other", "100").nominated_node_name("n");
        vec![other.priority(priority)]
    };
    let asked = || pod("a", "p", "150").priority(5);
    assert!(refused(&two(), vec![], nominated("a", 5), asked()).contains("more than Max"));
    assert_eq!(
        refused(&two(), vec![], nominated("a", 4), asked()),
        "",
        "less important"
    );
    assert!(refused(&two(), vec![], nominated("b", 0), asked()).contains("more than min"));
    let over = vec![pod("b", "x", "40").node("n"), pod("b", "y", "61").node("n")];
    let asked = pod("a", "p", "99");
    assert_eq!(
        refused(&two(), over, nominated("b", 0), asked),
        "",
        "b is over its promise already"
    );
}

#[test]
fn pods_count_once_and_until_they_are_gone() {
    let mut quotas = Quotas::default();
    let one = pod("a", "x", "60");
    let request = one.clone().info().requests.resource.clone();
    // Before there is a quota.
    quotas.set_pod("a", "x", request.clone());
    quotas.set_pod("a", "x", request.clone());
    assert!(quotas.ledger().quota("a").is_none());
    if let EventObject::Custom(object) = quota("a", json!({"memory": "100"}), json!(null)) {
        quotas.set_quota(&object);
    }
    let used = |quotas: &mut Quotas| quotas.ledger().quota("a").map(|quota| quota.used.memory);
    assert_eq!(used(&mut quotas), Some(60));
    // Resized.
    let mut less = request;
    less.memory = 20;
    quotas.set_pod("a", "x", less);
    assert_eq!(used(&mut quotas), Some(20));
    quotas.delete_pod("a", "x");
    quotas.delete_pod("a", "x");
    assert_eq!(used(&mut quotas), Some(0));
    // Tried away and back is as it was, and twice away is once.
    quotas.set_pod("a", "x", one.clone().info().requests.resource.clone());
    let (mut ledger, info) = (quotas.ledger(), one.info());
    let memory = |ledger: &Ledger| ledger.quota("a").map(|quota| quota.used.memory);
    ledger.remove(&info);
    ledger.remove(&info);
    assert_eq!(memory(&ledger), Some(0));
    ledger.add(&info);
    assert_eq!(memory(&ledger), Some(60));
    ledger.add(&info);
    assert_eq!(memory(&ledger), Some(120));
    assert_eq!(used(&mut quotas), Some(60), "a trial changes nothing");
}

/// Who is ended for the pod on a node of 300, or why nobody.
fn preempt(
    quotas: &[EventObject],
    pods: Vec<PodBuilder>,
    preemptor: PodBuilder,
) -> (Vec<String>, String) {
    let pods = pods.into_iter().map(|pod| pod.node("n")).collect();
    let bed = Bed::new(quotas, &[("n", "300")], pods, vec![], Some(&preemptor));
    let (mut state, status) = bed.pre_filter(&preemptor);
    let info = preemptor.info();
    let mut verdicts = Verdicts::new(
        bed.snapshot.columns().live().clone(),
        bed.snapshot.columns().len(),
    );
    let all = verdicts.feasible().clone();
    match status.is_success() {
        true => verdicts.reject_all(&all, Status::unschedulable("full")),
        false => verdicts.reject_all(&all, status),
    }
    let statuses = NodeToStatus::from_verdicts(Arc::new(verdicts));
    let post_filter = bed.plugin.as_post_filter().unwrap();
    let plan = post_filter.dry_run(&state, &info, &bed.snapshot, &statuses);
    let plan = plan.expect("can tell");
    let planned: Vec<String> = plan
        .victims
        .iter()
        .map(|pod| pod.name().to_owned())
        .collect();
    let (_, done) = post_filter.post_filter(&mut state, &info, &bed.snapshot, &statuses);
    assert_eq!(done, plan.status, "what is told is what is done");
    let writes = bed.handle.api.writes.lock().unwrap();
    let deleted = writes
        .iter()
        .filter_map(|write| write.strip_prefix("delete "));
    let mut deleted: Vec<String> = deleted.map(str::to_owned).collect();
    deleted.sort();
    let mut sorted = planned;
    sorted.sort();
    assert_eq!(deleted, sorted);
    (deleted, done.message())
}

#[test]
fn what_was_lent_is_taken_back() {
    let two = || {
        [
            quota("a", json!({"memory": "150"}), json!({"memory": "300"})),
            quota("b", json!({"memory": "150"}), json!({"memory": "300"})),
        ]
    };
    let lent = || {
        vec![
            pod("b", "b1", "100"),
            pod("b", "b2", "100"),
            pod("b", "b3", "100").priority(9),
        ]
    };
    // Within its promise a namespace takes from one beyond its own, whatever the priorities, the least important first, and no more than it needs.
    let (victims, _) = preempt(&two(), lent(), pod("a", "p", "100"));
    assert_eq!(victims.len(), 1);
    assert!(!victims.contains(&"b3".to_owned()), "{victims:?}");
    // Only while that one is beyond it: with two pods gone it is within.
    let (victims, why) = preempt(&two(), lent(), pod("a", "p", "201"));
    assert_eq!(
        (victims.len(), why.contains("preemption")),
        (0, true),
        "{why}"
    );
    // Beyond its own promise it ends less important pods of its own.
    let own = vec![pod("a", "a1", "150"), pod("b", "b1", "150")];
    let (victims, _) = preempt(&two(), own, pod("a", "p", "150").priority(5));
    assert_eq!(victims, ["a1"]);
    let own = vec![pod("a", "a1", "150").priority(5), pod("b", "b1", "150")];
    let (victims, _) = preempt(&two(), own, pod("a", "p", "150").priority(5));
    assert!(victims.is_empty(), "as important");
    // Pods without a quota are no business of one with a quota, and the other way round.
    let (victims, _) = preempt(
        &two(),
        vec![pod("c", "c1", "300")],
        pod("a", "p", "100").priority(9),
    );
    assert!(victims.is_empty(), "{victims:?}");
    let (victims, _) = preempt(
        &two(),
        vec![pod("c", "c1", "300")],
        pod("d", "p", "100").priority(9),
    );
    assert_eq!(victims, ["c1"]);
    let (victims, _) = preempt(
        &two(),
        vec![pod("b", "b1", "300")],
        pod("d", "p", "100").priority(9),
    );
    assert!(victims.is_empty(), "{victims:?}");
}

#[test]
fn who_declines_preempts_nobody() {
    let two = [
        quota("a", json!({"memory": "150"}), json!(null)),
        quota("b", json!({"memory": "150"}), json!(null)),
    ];
    let never = pod("a", "p", "100").with(|pod| {
        pod.spec.as_mut().unwrap().preemption_policy = Some("Never".into());
    });
    let (victims, why) = preempt(&two, vec![pod("b", "b1", "300")], never);
    assert!(
        victims.is_empty() && why.contains("preemptionPolicy=Never"),
        "{why}"
    );
}
