use std::sync::Mutex;

use framework::Code;
use framework::testing::{PodBuilder, labels, make_node, make_pod, selector, snapshot};
use framework::{CycleState, Verdicts};
use k8s_openapi::api::policy::v1::{
    PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::*;
use crate::preemption::{Budget, filter_pods_with_pdb_violation};
use crate::testing::{FakeApi, FakeHandle};

fn pod(name: &str, priority: i32, cpu: &str) -> PodBuilder {
    make_pod(name)
        .uid(name)
        .req(&[("cpu", cpu)])
        .with(move |pod| pod.spec.as_mut().unwrap().priority = Some(priority))
}

fn on(pod: PodBuilder, node: &str) -> PodBuilder {
    let node = node.to_owned();
    pod.with(move |pod| pod.spec.as_mut().unwrap().node_name = Some(node))
}

fn started(pod: PodBuilder, second: i64) -> PodBuilder {
    pod.with(move |pod| {
        pod.status.as_mut().unwrap().start_time =
            Some(Time(Timestamp::from_second(second).unwrap()))
    })
}

struct Outcome {
    nominating: Option<NominatingInfo>,
    status: Status,
    writes: Vec<String>,
    events: Vec<String>,
    activated: Vec<String>,
}

fn preempt(
    preemptor: PodBuilder,
    nodes: &[(&str, &str)],
    pods: Vec<PodBuilder>,
    mut handle: FakeHandle,
) -> Outcome {
    let preemptor = preemptor.info();
    let nodes = nodes
        .iter()
        .map(|(name, cpu)| make_node(name).capacity(&[("cpu", cpu)]).build());
    let snapshot = snapshot(nodes, pods.into_iter().map(PodBuilder::info));
    handle.plugins = vec![crate::node_resources_fit::new(None, crate::testing::handle()).unwrap()];
    handle.pods.lock().unwrap().push(Arc::clone(&preemptor.pod));
    let handle = Arc::new(handle);
    let mut verdicts = Verdicts::new(snapshot.columns().live().clone(), snapshot.columns().len());
    handle.plugins[0].as_filter().unwrap().filter_all(
        &CycleState::new(),
        &preemptor,
        &snapshot,
        &mut verdicts,
    );
    assert!(verdicts.feasible().is_empty(), "the pod must not fit");
    let statuses = NodeToStatus::from_verdicts(Arc::new(verdicts));
    let plugin = new(None, Arc::clone(&handle) as _).unwrap();
    let (nominating, status) = plugin.as_post_filter().unwrap().post_filter(
        &mut CycleState::new(),
        &preemptor,
        &snapshot,
        &statuses,
    );
    assert!(
        plugin
            .as_pre_enqueue()
            .unwrap()
            .pre_enqueue(&preemptor.pod)
            .is_success(),
        "all is done, nothing may hold the pod back"
    );
    let list = |list: &std::sync::Mutex<Vec<String>>| list.lock().unwrap().clone();
    Outcome {
        nominating,
        status,
        writes: list(&handle.api.writes),
        events: list(&handle.events),
        activated: list(&handle.activated),
    }
}

fn deleted(outcome: &Outcome) -> Vec<&str> {
    outcome
        .writes
        .iter()
        .filter_map(|write| write.strip_prefix("delete "))
        .collect()
}

#[test]
fn picks_the_node_and_the_victims() {
    let two = [("a", "2"), ("b", "2")];
    for (what, pods, node, victims) in [
        (
            "lowest priority goes",
            vec![on(pod("a1", 5, "2"), "a"), on(pod("b1", 3, "2"), "b")],
            "b",
            vec!["b1"],
        ),
        (
            "fewer victims",
            vec![
                on(pod("a1", 1, "1"), "a"),
                on(pod("a2", 1, "1"), "a"),
                on(pod("b1", 1, "2"), "b"),
            ],
            "b",
            vec!["b1"],
        ),
        (
            "only what is needed",
            vec![
                on(pod("a1", 9, "1"), "a"),
                on(pod("a2", 1, "1"), "a"),
                on(pod("b1", 10, "2"), "b"),
            ],
            "",
            vec![],
        ),
        (
            "latest start",
            vec![
                started(on(pod("a1", 1, "2"), "a"), 100),
                started(on(pod("b1", 1, "2"), "b"), 200),
            ],
            "b",
            vec!["b1"],
        ),
        (
            "smaller sum",
            vec![
                on(pod("a1", 4, "1"), "a"),
                on(pod("a2", 4, "1"), "a"),
                on(pod("b1", 4, "1"), "b"),
                on(pod("b2", 1, "1"), "b"),
            ],
            "b",
            vec!["b1", "b2"],
        ),
    ] {
        let preemptor = pod("p", if node.is_empty() { 0 } else { 10 }, "2");
        let outcome = preempt(preemptor, &two, pods, FakeHandle::default());
        let mut ended = deleted(&outcome);
        ended.sort_unstable();
        assert_eq!(ended, victims, "{what}: {}", outcome.status);
        if node.is_empty() {
            assert_eq!(
                outcome.nominating,
                Some(NominatingInfo::Override(String::new())),
                "{what}"
            );
        } else {
            assert_eq!(
                outcome.nominating,
                Some(NominatingInfo::Override(node.into())),
                "{what}"
            );
        }
    }
}

#[test]
fn reprieves_the_more_important() {
    let pods = vec![
        on(pod("low", 1, "1"), "a"),
        on(pod("mid", 2, "1"), "a"),
        on(pod("high", 3, "1"), "a"),
    ];
    let outcome = preempt(
        pod("p", 10, "2"),
        &[("a", "3")],
        pods,
        FakeHandle::default(),
    );
    assert_eq!(deleted(&outcome), ["mid", "low"]);
    assert_eq!(
        outcome.writes[0],
        "patch mid DisruptionTarget=True PreemptionByScheduler Noop"
    );
    assert_eq!(
        outcome.events,
        ["Preempted Preempted by pod p on node a"; 2]
    );
}

#[test]
fn says_why_not() {
    let check = |preemptor: PodBuilder, pods: Vec<PodBuilder>, expect: &str| {
        let outcome = preempt(
            preemptor,
            &[("a", "2"), ("tiny", "1")],
            pods,
            FakeHandle::default(),
        );
        assert_eq!(
            (outcome.status.code(), outcome.status.message().as_str()),
            (Code::Unschedulable, expect)
        );
        assert!(outcome.writes.is_empty());
    };
    check(
        pod("p", 1, "2"),
        vec![on(pod("a1", 1, "2"), "a")],
        "preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling.",
    );
    let never = pod("p", 9, "2")
        .with(|pod| pod.spec.as_mut().unwrap().preemption_policy = Some("Never".into()));
    check(
        never,
        vec![on(pod("a1", 1, "2"), "a")],
        "preemption: not eligible due to preemptionPolicy=Never.",
    );
    let waiting = pod("p", 9, "2")
        .with(|pod| pod.status.as_mut().unwrap().nominated_node_name = Some("a".into()));
    let going = on(pod("a1", 1, "2"), "a").with(|pod| {
        pod.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        let condition = serde_json::json!([{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]);
        pod.status.as_mut().unwrap().conditions = Some(serde_json::from_value(condition).unwrap());
    });
    check(
        waiting,
        vec![going],
        "preemption: not eligible due to a terminating pod on the nominated node.",
    );
}

#[test]
fn budgets() {
    let budget = |allowed| {
        Arc::new(PodDisruptionBudget {
            metadata: ObjectMeta {
                namespace: Some("default".into()),
                ..Default::default()
            },
            spec: Some(PodDisruptionBudgetSpec {
                selector: Some(selector(&[("app", "db")])),
                ..Default::default()
            }),
            status: Some(PodDisruptionBudgetStatus {
                disruptions_allowed: Some(allowed),
                ..Default::default()
            }),
        })
    };
    // The pod under budget is less important, but ending it would break the budget.
    let pods = || {
        vec![
            on(pod("db", 1, "2").label("app", "db"), "a"),
            on(pod("web", 5, "2"), "b"),
        ]
    };
    for (allowed, expect) in [(0, "web"), (1, "db")] {
        let handle = FakeHandle {
            budgets: vec![budget(allowed)],
            ..Default::default()
        };
        assert_eq!(
            deleted(&preempt(
                pod("p", 9, "2"),
                &[("a", "2"), ("b", "2")],
                pods(),
                handle
            )),
            [expect]
        );
    }
    let both = vec![
        pod("x", 1, "1").label("app", "db").info(),
        pod("y", 1, "1").label("app", "db").info(),
        pod("z", 1, "1").info(),
    ];
    let (violating, clean) = filter_pods_with_pdb_violation(both, &Budget::all(&[budget(1)]));
    assert_eq!((violating[0].name(), clean.len()), ("y", 2));
    assert!(labels(&[]).is_empty());
}

#[test]
fn a_failed_deletion_brings_the_pod_back() {
    let api = Arc::new(FakeApi {
        undeletable: vec!["a1".into()],
        ..Default::default()
    });
    let outcome = preempt(
        pod("p", 9, "2"),
        &[("a", "2")],
        vec![on(pod("a1", 1, "2"), "a")],
        FakeHandle {
            api,
            ..Default::default()
        },
    );
    assert_eq!(outcome.activated, ["p"]);
    assert!(outcome.status.is_success());
}

struct OnItsWay(Arc<PodInfo>);

impl framework::WaitingPod for OnItsWay {
    fn pod(&self) -> &Arc<PodInfo> {
        &self.0
    }
    fn pending_plugins(&self) -> Vec<&'static str> {
        Vec::new()
    }
    fn allow(&self, _: &'static str) {}
    fn reject(&self, _: &'static str, _: &str) -> bool {
        false
    }
    fn preempt(&self, _: &'static str, _: &str) -> bool {
        true
    }
}

#[test]
fn a_victim_taken_back_brings_the_pod_back() {
    let victim = || on(pod("a1", 1, "2"), "a");
    let handle = FakeHandle {
        waiting: Mutex::new(vec![Arc::new(OnItsWay(victim().info()))]),
        ..Default::default()
    };
    let outcome = preempt(pod("p", 9, "2"), &[("a", "2")], vec![victim()], handle);
    assert_eq!(outcome.activated, ["p"], "no deletion comes to wake it");
    assert!(outcome.writes.is_empty());
    assert_eq!(
        outcome.events,
        ["Preempted Preempted by pod p on node a (in kube-scheduler memory)."]
    );
    let outcome = preempt(
        pod("p", 9, "2"),
        &[("a", "2")],
        vec![victim()],
        FakeHandle::default(),
    );
    assert!(outcome.activated.is_empty(), "the deletion wakes it");
    assert_eq!(
        outcome.status.message(),
        "preemption: found a potential placement for pod on node a, preempting 1 victims"
    );
}

#[test]
fn lower_nominations_are_cleared() {
    let promised = pod("promised", 2, "1")
        .with(|pod| pod.status.as_mut().unwrap().nominated_node_name = Some("a".into()))
        .info();
    let handle = FakeHandle {
        nominated: vec![promised],
        ..Default::default()
    };
    let outcome = preempt(
        pod("p", 9, "2"),
        &[("a", "2")],
        vec![on(pod("a1", 1, "2"), "a")],
        handle,
    );
    assert_eq!(outcome.writes[0], "patch promised Override(\"\")");
}

#[test]
fn rejected_arguments() {
    for args in [
        serde_json::json!({"minCandidateNodesPercentage": 101}),
        serde_json::json!({"minCandidateNodesAbsolute": -1}),
        serde_json::json!({"minCandidateNodesPercentage": 0, "minCandidateNodesAbsolute": 0}),
    ] {
        assert!(
            new(Some(&args), crate::testing::handle()).is_err(),
            "{args}"
        );
    }
}
