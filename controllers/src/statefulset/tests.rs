use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use serde_json::{Value, json};

use super::sync::{Observed, Step, calculate_status, max_unavailable, ordinal, sync, unavailable};

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

fn set(replicas: i32, more: Value) -> StatefulSet {
    let mut spec = json!({"replicas": replicas, "serviceName": "s", "selector": {"matchLabels": {"a": "a"}},
        "template": {"metadata": {"labels": {"a": "a"}}, "spec": {"containers": []}}});
    spec.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    serde_json::from_value(
        json!({"metadata": {"name": "w", "namespace": "n", "uid": "w"}, "spec": spec}),
    )
    .unwrap()
}

fn revision(name: &str) -> Arc<ControllerRevision> {
    let data = json!({"spec": {"template": {"$patch": "replace", "metadata": {"labels": {"a": "a", "of": name}}, "spec": {"containers": []}}}});
    Arc::new(
        serde_json::from_value(json!({"metadata": {"name": name}, "data": data, "revision": 1}))
            .unwrap(),
    )
}

/// `w-0:new` is available, `w-0:new!` is not, `w-0:new-` is going.
fn pod(text: &str) -> Arc<Pod> {
    let (name, hash) = text.split_once(':').unwrap();
    let phase = if hash.ends_with('~') {
        "Pending"
    } else {
        "Running"
    };
    let ready = if hash.ends_with('!') { "False" } else { "True" };
    let going = hash.ends_with('-').then_some("2026-01-01T00:00:00Z");
    Arc::new(serde_json::from_value(json!({
        "metadata": {"name": name, "uid": name, "deletionTimestamp": going,
            "labels": {"statefulset.kubernetes.io/pod-name": name, "controller-revision-hash": hash.trim_end_matches(['!', '-', '~'])}},
        "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})).unwrap())
}

fn observe(pods: &[&str]) -> Observed {
    Observed {
        pods: pods.iter().map(|p| pod(p)).collect(),
        current: revision("old"),
        update: revision("new"),
        claims: BTreeMap::new(),
    }
}

fn check(set: &StatefulSet, pods: &[&str], expect: &[&str]) {
    assert_eq!(steps(set, &observe(pods)), expect, "{pods:?}");
}

fn steps(set: &StatefulSet, observed: &Observed) -> Vec<String> {
    steps_with(set, observed, true)
}

fn steps_with(set: &StatefulSet, observed: &Observed, many: bool) -> Vec<String> {
    sync(set, observed, many, now())
        .into_iter()
        .map(|step| match step {
            Step::Create(pod) => format!(
                "+{}:{}",
                pod.metadata.name.unwrap(),
                pod.metadata.labels.unwrap()["of"]
            ),
            Step::Delete(pod) => format!("-{}", pod.metadata.name.clone().unwrap()),
            Step::Update(pod) => format!("={}", pod.metadata.name.unwrap()),
            Step::TellConflict(claim) => format!("!{claim}"),
            Step::CreateClaim(claim) => format!("+{}", claim.metadata.name.unwrap()),
            Step::UpdateClaim(claim) => format!("={}", claim.metadata.name.unwrap()),
        })
        .collect()
}

#[test]
fn in_order_or_not() {
    let ordered = set(3, json!({}));
    check(&ordered, &[], &["+w-0:new"]);
    check(&ordered, &["w-0:new!"], &[]);
    check(&ordered, &["w-0:new", "w-1:new-"], &[]);
    check(&ordered, &["w-0:new", "w-1:new"], &["+w-2:new"]);
    check(
        &set(1, json!({})),
        &["w-0:new", "w-1:new", "w-2:new"],
        &["-w-2"],
    );
    check(&set(1, json!({})), &["w-0:new!", "w-1:new"], &[]);
    let none = set(0, json!({}));
    check(&none, &["w-0:new!", "w-1:new!", "w-2:new!"], &[]);
    check(&none, &["w-0:new", "w-1:new", "w-2:new!"], &["-w-2"]);
    check(&none, &["w-0:new!", "w-1:new!", "w-2:new"], &["-w-2"]);
    check(&none, &["w-0:new!"], &["-w-0"]);
    let parallel = |n| set(n, json!({"podManagementPolicy": "Parallel"}));
    check(&parallel(3), &["w-0:new!"], &["+w-1:new", "+w-2:new"]);
    check(
        &parallel(1),
        &["w-0:new!", "w-1:new", "w-2:new"],
        &["-w-2", "-w-1"],
    );
    check(
        &set(2, json!({"ordinals": {"start": 5}})),
        &["w-0:new", "w-5:new", "w-6:new"],
        &["-w-0"],
    );
}

/// Somebody who may make StatefulSets must not fill the controller manager's memory with a number.
#[test]
fn a_set_without_an_end_is_made_in_parts() {
    for policy in ["OrderedReady", "Parallel"] {
        let huge = set(
            i32::MAX,
            json!({"podManagementPolicy": policy, "ordinals": {"start": 7}}),
        );
        let observed = observe(&["w-7:new", "w-9:new!", "w-100000:new"]);
        let made = steps(&huge, &observed);
        let names: Vec<_> = super::sync::wanted_names(&huge, &observed.pods).collect();
        assert_eq!(names.len(), 502);
        match policy {
            "Parallel" => {
                assert_eq!(made.len(), 500);
                assert_eq!(made[..2], ["+w-8:new", "+w-10:new"]);
            }
            _ => assert_eq!(made, ["+w-8:new"]),
        }
    }
}

#[test]
fn updates_of_many() {
    let rolling = |policy: &str, max: Value, partition: i32| {
        set(
            5,
            json!({"podManagementPolicy": policy, "updateStrategy": {"type": "RollingUpdate",
                "rollingUpdate": {"partition": partition, "maxUnavailable": max}}}),
        )
    };
    let old = ["w-0:old", "w-1:old", "w-2:old", "w-3:old", "w-4:old"];
    for policy in ["OrderedReady", "Parallel"] {
        let rolling = |max, partition| rolling(policy, max, partition);
        check(&rolling(json!(2), 0), &old, &["-w-4", "-w-3"]);
        check(&rolling(json!(2), 4), &old, &["-w-4"]);
        check(&rolling(json!(9), 3), &old, &["-w-4", "-w-3"]);
        // Two fifths of five; a share rounds down, and is one at least.
        check(&rolling(json!("59%"), 0), &old, &["-w-4", "-w-3"]);
        check(&rolling(json!("1%"), 0), &old, &["-w-4"]);
        check(&rolling(Value::Null, 0), &old, &["-w-4"]);
        // One at a time without the gate.
        let got = steps_with(&rolling(json!(3), 0), &observe(&old), false);
        assert_eq!(got, ["-w-4"]);
    }
    // What is going or not available yet counts; in order it halts the update before that.
    let halfway = ["w-0:old", "w-1:old", "w-2:old", "w-3:new!", "w-4:new-"];
    check(&rolling("Parallel", json!(2), 0), &halfway, &[]);
    check(&rolling("Parallel", json!(3), 0), &halfway, &["-w-2"]);
    check(&rolling("OrderedReady", json!(3), 0), &halfway, &[]);
    // Broken pods of the old revision go first and cost nothing; good ones only within what is left.
    let broken = ["w-0:old!", "w-1:old!", "w-2:old", "w-3:old", "w-4:old"];
    check(
        &rolling("Parallel", json!(2), 0),
        &broken,
        &["-w-1", "-w-0"],
    );
    check(
        &rolling("Parallel", json!(3), 0),
        &broken,
        &["-w-1", "-w-0", "-w-4"],
    );
    check(
        &rolling("Parallel", json!(3), 1),
        &broken,
        &["-w-1", "-w-4"],
    );
    let set = rolling("Parallel", json!(3), 0);
    assert_eq!(max_unavailable(&set), 3);
    assert_eq!(unavailable(&set, &observe(&broken).pods, now()), 2);
}

#[test]
fn updates() {
    let rolling = |partition: i32| {
        set(
            3,
            json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": partition}}}),
        )
    };
    let old = ["w-0:old", "w-1:old", "w-2:old"];
    check(&rolling(0), &old, &["-w-2"]);
    check(&rolling(0), &["w-0:old", "w-1:old", "w-2:new!"], &[]);
    check(&rolling(2), &["w-0:old", "w-1:old", "w-2:new"], &[]);
    check(&rolling(2), &["w-0:old", "w-2:new"], &["+w-1:old"]);
    // The partition counts from the first ordinal.
    let shifted = set(
        2,
        json!({"ordinals": {"start": 5}, "updateStrategy": {"rollingUpdate": {"partition": 1}}}),
    );
    check(&shifted, &["w-6:new"], &["+w-5:old"]);
    check(&shifted, &["w-5:old", "w-6:old"], &["-w-6"]);
    check(&shifted, &["w-5:old", "w-6:new"], &[]);
    check(
        &set(3, json!({"updateStrategy": {"type": "OnDelete"}})),
        &old,
        &[],
    );
    let status = calculate_status(
        &rolling(0),
        &observe(&["w-0:new", "w-1:new", "w-2:new"]),
        now(),
    );
    assert_eq!(
        (status.current_revision.as_deref(), status.current_replicas),
        (Some("new"), Some(3))
    );
    let status = calculate_status(
        &rolling(2),
        &observe(&["w-0:old", "w-1:old", "w-2:new"]),
        now(),
    );
    assert_eq!(
        (
            status.current_revision.as_deref(),
            status.current_replicas,
            status.updated_replicas
        ),
        (Some("old"), Some(2), Some(1))
    );
}

#[test]
fn identity_and_claims() {
    let with_claims = set(
        1,
        json!({"volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]}),
    );
    let mut steps = sync(&with_claims, &observe(&[]), true, now());
    let Some(Step::Create(pod)) = steps.pop() else {
        panic!()
    };
    let value = serde_json::to_value(&pod).unwrap();
    assert_eq!(
        (&value["spec"]["hostname"], &value["spec"]["subdomain"]),
        (&json!("w-0"), &json!("s"))
    );
    assert_eq!(
        value["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"],
        "data-w-0"
    );
    for (name, expect) in [
        ("w-0", Some(0)),
        ("w-01", None),
        ("w-x", None),
        ("ww-1", None),
        ("w", None),
    ] {
        assert_eq!(ordinal("w", name), expect, "{name}");
    }
}

fn claim(name: &str, owners: Value) -> Arc<PersistentVolumeClaim> {
    Arc::new(
        serde_json::from_value(
            json!({"metadata": {"name": name, "namespace": "n", "ownerReferences": owners}}),
        )
        .unwrap(),
    )
}

#[test]
fn claims_come_first_and_follow_the_retention_policy() {
    let templates = json!([{"metadata": {"name": "d"}, "spec": {}}]);
    let retain = set(2, json!({"volumeClaimTemplates": templates}));
    check(&retain, &[], &["+d-w-0", "+w-0:new"]);
    check(&retain, &["w-0:new~"], &["+d-w-0"]);
    let with = |set: &StatefulSet,
                pods: &[&str],
                claims: &[Arc<PersistentVolumeClaim>],
                expect: &[&str]| {
        let mut observed = observe(pods);
        for claim in claims {
            observed
                .claims
                .insert(claim.metadata.name.clone().unwrap(), claim.clone());
        }
        assert_eq!(steps(set, &observed), expect, "{pods:?}");
    };
    let going = json!([{"apiVersion": "v1", "kind": "Pod", "name": "w-0", "uid": "former", "controller": true}]);
    with(&retain, &[], &[claim("d-w-0", json!([]))], &["+w-0:new"]);
    with(&retain, &[], &[claim("d-w-0", going)], &[]);
    let delete = set(
        1,
        json!({"volumeClaimTemplates": templates, "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete"}}),
    );
    let claims = [claim("d-w-0", json!([])), claim("d-w-1", json!([]))];
    with(
        &delete,
        &["w-0:new", "w-1:new"],
        &claims,
        &["=d-w-0", "=d-w-1", "-w-1"],
    );
}

#[test]
fn a_claim_of_another_controller_is_told_of() {
    let owner = |kind: &str, name: &str, uid: &str, controller: bool| json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": controller}]);
    let with = |policy: &str, owners: Value, expect: &[&str]| {
        let set = set(
            1,
            json!({
                "volumeClaimTemplates": [{"metadata": {"name": "d"}, "spec": {}}],
                "persistentVolumeClaimRetentionPolicy": {"whenDeleted": policy, "whenScaled": "Retain"},
            }),
        );
        let mut observed = observe(&["w-0:new"]);
        let claim = claim("d-w-0", owners.clone());
        observed.claims.insert("d-w-0".to_owned(), claim);
        assert_eq!(steps(&set, &observed), expect, "{policy} {owners}");
    };
    with(
        "Delete",
        owner("Deployment", "other", "x", true),
        &["!d-w-0"],
    );
    with("Retain", owner("Deployment", "other", "x", true), &[]);
    // An owner that controls nothing conflicts with nothing.
    with(
        "Delete",
        owner("Deployment", "other", "x", false),
        &["=d-w-0"],
    );
    // A former set of the same name.
    with(
        "Delete",
        owner("StatefulSet", "w", "former", true),
        &["!d-w-0"],
    );
}

#[test]
fn a_claim_that_is_told_of_holds_no_update_up() {
    let set = set(
        2,
        json!({
            "volumeClaimTemplates": [{"metadata": {"name": "d"}, "spec": {}}],
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"},
        }),
    );
    let mut observed = observe(&["w-0:old", "w-1:old"]);
    let owners = json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "other", "uid": "x", "controller": true}]);
    observed
        .claims
        .insert("d-w-0".to_owned(), claim("d-w-0", owners));
    for many in [false, true] {
        assert_eq!(steps_with(&set, &observed, many), ["!d-w-0", "-w-1"]);
    }
}

#[test]
fn a_lost_identity_is_put_back() {
    let mut observed = observe(&["w-0:new"]);
    let mut pod = (*observed.pods[0]).clone();
    pod.metadata.labels = None;
    observed.pods = vec![Arc::new(pod)];
    assert_eq!(steps(&set(1, json!({})), &observed)[0], "=w-0");
}
