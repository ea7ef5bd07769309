use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::sync::{Observed, calculate_status, new_pod, sync, target_node};
use crate::history::{self, Next};

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

fn ds(strategy: Value) -> DaemonSet {
    serde_json::from_value(json!({"metadata": {"name": "d", "namespace": "n", "uid": "d", "generation": 3},
        "spec": {"selector": {"matchLabels": {"a": "a"}}, "updateStrategy": strategy,
            "template": {"metadata": {"labels": {"a": "a"}}, "spec": {"nodeSelector": {"role": "x"}, "containers": [{"name": "c"}]}}}})).unwrap()
}

fn node(name: &str, role: &str, taint: Option<(&str, &str)>) -> Arc<Node> {
    let taints: Vec<_> = taint
        .into_iter()
        .map(|(key, effect)| json!({"key": key, "effect": effect}))
        .collect();
    Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "labels": {"role": role}}, "spec": {"taints": taints}})).unwrap())
}

fn pod(name: &str, node: &str, hash: &str, phase: &str, ready: bool) -> Arc<Pod> {
    let ready = if ready { "True" } else { "False" };
    Arc::new(serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "n", "uid": name, "labels": {"a": "a", "controller-revision-hash": hash}},
        "spec": {"nodeName": node, "containers": []},
        "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})).unwrap())
}

fn check(
    ds: &DaemonSet,
    nodes: &[Arc<Node>],
    pods: &[Arc<Pod>],
    create: &[&str],
    delete: &[&str],
) -> Observed {
    let observed = Observed {
        nodes: nodes.to_vec(),
        pods: pods.to_vec(),
        hash: "new".into(),
        expectations_met: true,
        ..Observed::default()
    };
    let plan = sync(ds, &observed, now());
    let targets: Vec<_> = plan
        .create
        .iter()
        .map(|p| target_node(p).unwrap())
        .collect();
    let names: Vec<_> = plan
        .delete
        .iter()
        .map(|p| p.metadata.name.clone().unwrap())
        .collect();
    assert_eq!(
        (targets, names),
        (
            create.iter().map(|s| s.to_string()).collect(),
            delete.iter().map(|s| s.to_string()).collect()
        )
    );
    observed
}

#[test]
fn one_pod_on_every_node_that_fits() {
    let nodes = [
        node("a", "x", None),
        node("b", "y", None),
        node("c", "x", Some(("k", "NoSchedule"))),
        node("d", "x", Some(("k", "NoExecute"))),
        node(
            "e",
            "x",
            Some(("node.kubernetes.io/unschedulable", "NoSchedule")),
        ),
    ];
    let set = ds(json!({"type": "RollingUpdate"}));
    check(&set, &nodes, &[], &["a", "e"], &[]);
    let pods = [
        pod("failed", "a", "new", "Failed", false),
        pod("stray", "b", "new", "Running", true),
        pod("stays", "c", "new", "Running", true),
        pod("evicted", "d", "new", "Running", true),
        pod("e1", "e", "new", "Running", true),
        pod("e2", "e", "new", "Running", true),
    ];
    let observed = check(
        &set,
        &nodes,
        &pods,
        &[],
        &["failed", "stray", "evicted", "e2"],
    );
    let status = calculate_status(&set, &observed, now());
    assert_eq!(
        (
            status.desired_number_scheduled,
            status.current_number_scheduled,
            status.number_misscheduled
        ),
        (2, 2, 3)
    );
    assert_eq!(
        (
            status.number_ready,
            status.number_available,
            status.number_unavailable
        ),
        (1, Some(1), Some(1))
    );
}

#[test]
fn updates() {
    let nodes = ["a", "b", "c"].map(|n| node(n, "x", None));
    let pods = [
        pod("a", "a", "old", "Running", true),
        pod("b", "b", "old", "Running", true),
        pod("c", "c", "new", "Running", true),
    ];
    let rolling = |r: Value| ds(json!({"type": "RollingUpdate", "rollingUpdate": r}));
    check(
        &rolling(json!({"maxUnavailable": 1})),
        &nodes,
        &pods,
        &[],
        &["a"],
    );
    check(
        &rolling(json!({"maxUnavailable": "50%"})),
        &nodes,
        &pods,
        &[],
        &["a", "b"],
    );
    check(
        &rolling(json!({"maxSurge": 1, "maxUnavailable": 0})),
        &nodes,
        &pods,
        &["a"],
        &[],
    );
    check(&ds(json!({"type": "OnDelete"})), &nodes, &pods, &[], &[]);
    let waiting = [
        pods[0].clone(),
        pods[1].clone(),
        pod("c", "c", "new", "Pending", false),
    ];
    check(
        &rolling(json!({"maxUnavailable": 1})),
        &nodes,
        &waiting,
        &[],
        &[],
    );
}

#[test]
fn a_surge_ends_old_pods_where_no_new_one_may_come() {
    let set =
        ds(json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}));
    let nodes = [
        node("a", "x", None),
        node("b", "x", None),
        node("c", "x", Some(("k", "NoSchedule"))),
    ];
    let of = |a: &str, b: (&str, bool), c: bool| {
        [
            pod("a", "a", a, "Running", true),
            pod("b", "b", b.0, "Running", b.1),
            pod("c", "c", "old", "Running", c),
        ]
    };
    // Two are wanted and three there: one may go.
    let all = of("new", ("new", true), true);
    check(&set, &nodes, &all, &[], &["c"]);
    check(&set, &nodes, &of("new", ("new", false), true), &[], &[]);
    // One that is not available is of no use.
    check(&set, &nodes, &of("new", ("new", false), false), &[], &["c"]);
    check(&set, &nodes, &of("old", ("new", false), true), &["a"], &[]);
    check(&set, &nodes, &of("new", ("old", false), true), &["b"], &[]);
    // What a node that is gone has is the pod collector's.
    check(&set, &nodes[..2], &all, &[], &[]);
}

#[test]
fn a_surging_node_is_updated_when_its_old_pod_has_gone() {
    let set = ds(
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "100%", "maxUnavailable": 0}}),
    );
    let check = |pods: &[Arc<Pod>], updated: Option<i32>, available: Option<i32>| {
        let observed = Observed {
            nodes: vec![node("a", "x", None)],
            pods: pods.to_vec(),
            hash: "new".into(),
            expectations_met: true,
            ..Observed::default()
        };
        let status = calculate_status(&set, &observed, now());
        let got = (status.updated_number_scheduled, status.number_available);
        assert_eq!(got, (updated, available));
    };
    let old = pod("a-old", "a", "old", "Running", true);
    let starting = pod("b-new", "a", "new", "Pending", false);
    let ready = pod("b-new", "a", "new", "Running", true);
    check(&[starting.clone(), old.clone()], None, Some(1));
    check(&[ready.clone(), old], None, Some(1));
    check(&[starting], Some(1), None);
    check(&[ready], Some(1), Some(1));
}

#[test]
fn revisions() {
    let set = ds(json!({}));
    let template = set.spec.template.clone();
    let owner = || component_helpers::owner_ref::new_controller_ref::<DaemonSet>(&set.metadata);
    let Next::Create(first) = history::next(
        history::HASH_LABEL,
        &set.metadata,
        owner(),
        &template,
        &[],
        None,
    ) else {
        panic!()
    };
    let mut first = *first;
    first.metadata.uid = Some("1".into());
    let first = Arc::new(first);
    assert_eq!(
        history::next(
            history::HASH_LABEL,
            &set.metadata,
            owner(),
            &template,
            &[first.clone()],
            None
        ),
        Next::Use(first.clone())
    );
    let second = Arc::new(ControllerRevision {
        revision: Some(2),
        data: Default::default(),
        ..(*first).clone()
    });
    let mut other = (*second).clone();
    other.metadata.uid = Some("2".into());
    let existing = [first.clone(), Arc::new(other)];
    assert!(
        matches!(history::next(history::HASH_LABEL, &set.metadata, owner(), &template, &existing, None), Next::Renumber(r) if r.revision == Some(3))
    );
    assert_eq!(history::surplus(&existing, |_| false, 1), [first]);
}

#[test]
fn a_failed_pod_is_left_alone_while_its_node_is_held_back() {
    let pods = [
        pod("f", "a", "new", "Failed", false),
        pod("s", "b", "new", "Succeeded", false),
    ];
    let mut observed = check(
        &ds(json!({})),
        &[node("a", "x", None), node("b", "x", None)],
        &pods,
        &[],
        &["f", "s"],
    );
    observed.held_back = ["a", "b"].map(str::to_owned).into();
    let plan = sync(&ds(json!({})), &observed, now());
    assert_eq!((plan.create, plan.delete), (vec![], vec![pods[1].clone()]));
}

#[test]
fn of_two_failed_pods_on_a_node_one_goes() {
    let pods = [
        pod("f1", "a", "new", "Failed", false),
        pod("f2", "a", "new", "Failed", false),
    ];
    let nodes = [node("a", "x", None)];
    check(&ds(json!({})), &nodes, &pods, &[], &["f1"]);
}

#[test]
fn a_daemon_pod_is_not_evicted_from_a_node_in_trouble() {
    let mut set = ds(json!({}));
    let own = json!([
        {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60},
        {"key": "mine", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60},
    ]);
    set.spec.template.spec.as_mut().unwrap().tolerations = serde_json::from_value(own).unwrap();
    let tolerations = new_pod(&set, "a", "new").spec.unwrap().tolerations.unwrap();
    let seconds = |key: &str| -> Vec<Option<i64>> {
        let found = tolerations.iter().filter(|t| t.key.as_deref() == Some(key));
        found.map(|t| t.toleration_seconds).collect()
    };
    assert_eq!(seconds("node.kubernetes.io/not-ready"), [None]);
    assert_eq!(seconds("node.kubernetes.io/unreachable"), [None]);
    assert_eq!(seconds("mine"), [Some(60)]);
}
