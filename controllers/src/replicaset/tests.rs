use std::sync::Arc;
use std::time::Duration;

use component_helpers::owner_ref::new_controller_ref;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::sync::*;

const NOW: i64 = 1_800_000_000;

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

fn replica_set(replicas: i32, more: Value) -> ReplicaSet {
    let mut value = json!({
        "metadata": {"name": "rs", "namespace": "ns", "uid": "rs", "generation": 2},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "a"}}, "template": {
            "metadata": {"labels": {"app": "a", "extra": "x"}, "annotations": {"n": "1"}}, "spec": {"containers": [{"name": "c"}]},
        }},
    });
    for (key, fields) in more.as_object().unwrap() {
        value[key]
            .as_object_mut()
            .map(|v| v.extend(fields.as_object().unwrap().clone()))
            .unwrap_or_else(|| value[key] = fields.clone());
    }
    serde_json::from_value(value).unwrap()
}

fn pod(name: &str, ready_for: Option<i64>, labels: Value) -> Arc<Pod> {
    let conditions: Vec<_> = ready_for
        .map(|s| json!({"type": "Ready", "status": "True", "lastTransitionTime": Timestamp::from_second(NOW - s).unwrap().to_string()}))
        .into_iter()
        .collect();
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": name, "uid": name, "labels": labels}, "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": "Running", "conditions": conditions},
        }))
        .unwrap(),
    )
}

fn pods(count: usize) -> Vec<Arc<Pod>> {
    (0..count)
        .map(|i| pod(&format!("p{i}"), Some(100), json!({"app": "a"})))
        .collect()
}

#[test]
fn creates_what_is_missing_and_deletes_what_is_too_much() {
    for (want, have, met, deleting, create, delete) in [
        (3, 0, true, false, 3, 0),
        (3, 3, true, false, 0, 0),
        (3, 5, true, false, 0, 2),
        (0, 2, true, false, 0, 2),
        (3, 0, false, false, 0, 0),
        (3, 0, true, true, 0, 0),
        (3, 5, true, true, 0, 0),
        (2000, 0, true, false, 500, 0),
        (0, 700, true, false, 0, 500),
    ] {
        let more = if deleting {
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})
        } else {
            json!({})
        };
        let rs = replica_set(want, more);
        let observed = Observed {
            active: pods(have),
            expectations_met: met,
            ..Observed::default()
        };
        let plan = sync(&rs, &observed, now());
        assert_eq!(
            (plan.create, plan.delete.len()),
            (create, delete),
            "want {want} have {have} met {met} deleting {deleting}"
        );
    }
}

#[test]
fn pods_are_made_from_the_template() {
    let pod = pod_from_template(
        &replica_set(1, json!({})),
        new_controller_ref::<ReplicaSet>(&replica_set(1, json!({})).metadata),
    );
    let meta = &pod.metadata;
    assert_eq!(
        (
            meta.generate_name.as_deref(),
            meta.namespace.as_deref(),
            meta.name.as_deref()
        ),
        (Some("rs-"), Some("ns"), None)
    );
    assert_eq!(
        serde_json::to_value(&meta.labels).unwrap(),
        json!({"app": "a", "extra": "x"})
    );
    assert_eq!(
        serde_json::to_value(&meta.annotations).unwrap(),
        json!({"n": "1"})
    );
    let owner = &meta.owner_references.as_ref().unwrap()[0];
    assert_eq!(
        (
            owner.kind.as_str(),
            owner.uid.as_str(),
            owner.controller,
            owner.block_owner_deletion
        ),
        ("ReplicaSet", "rs", Some(true), Some(true))
    );
}

#[test]
fn status_counts() {
    let rs = replica_set(4, json!({"spec": {"minReadySeconds": 30}}));
    let observed = Observed {
        active: vec![
            pod("new", None, json!({"app": "a", "extra": "x"})),
            pod("ready", Some(10), json!({"app": "a", "extra": "x"})),
            pod("available", Some(30), json!({"app": "a"})),
        ],
        terminating: pods(2),
        ..Observed::default()
    };
    let status = calculate_status(&rs, &observed, &Outcome::default(), now());
    assert_eq!(
        serde_json::to_value(&status).unwrap(),
        json!({"replicas": 3, "fullyLabeledReplicas": 2, "readyReplicas": 2, "availableReplicas": 1, "terminatingReplicas": 2, "observedGeneration": 2})
    );
    assert_eq!(
        next_availability_check(&rs, &observed, now()),
        Some(Duration::from_secs(20))
    );
    assert_eq!(
        next_availability_check(&replica_set(4, json!({})), &observed, now()),
        None
    );
    let empty = calculate_status(
        &replica_set(0, json!({})),
        &Observed::default(),
        &Outcome::default(),
        now(),
    );
    assert_eq!(
        serde_json::to_value(&empty).unwrap(),
        json!({"replicas": 0, "terminatingReplicas": 0, "observedGeneration": 2})
    );
}

#[test]
fn failures_are_a_condition_while_they_last() {
    let mut rs = replica_set(2, json!({}));
    let failed = Outcome {
        error: Some("quota".to_owned()),
    };
    for (have, reason) in [(1, "FailedCreate"), (3, "FailedDelete")] {
        let observed = Observed {
            active: pods(have),
            ..Observed::default()
        };
        let status = calculate_status(&rs, &observed, &failed, now());
        let condition = &status.conditions.as_ref().unwrap()[0];
        assert_eq!(
            (condition.reason.as_deref(), condition.message.as_deref()),
            (Some(reason), Some("quota"))
        );
    }
    let observed = Observed {
        active: pods(1),
        ..Observed::default()
    };
    rs.status = Some(calculate_status(&rs, &observed, &failed, now()));
    let other = Outcome {
        error: Some("other".to_owned()),
    };
    assert_eq!(
        Some(&calculate_status(&rs, &observed, &other, now())),
        rs.status.as_ref(),
        "no write per failure"
    );
    assert_eq!(
        calculate_status(&rs, &observed, &Outcome::default(), now()).conditions,
        None
    );
}

#[test]
fn a_replication_controller_is_seen_as_a_replica_set() {
    use super::kind::Replicated;
    use k8s_openapi::api::core::v1::ReplicationController;
    let rc: ReplicationController = serde_json::from_value(json!({
        "metadata": {"name": "rc", "namespace": "ns", "uid": "rc", "generation": 1},
        "spec": {"replicas": 2, "minReadySeconds": 3, "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c"}]}}},
        "status": {"replicas": 1, "conditions": [{"type": "ReplicaFailure", "status": "True"}]},
    }))
    .unwrap();
    let view = rc.view();
    let spec = &view.spec;
    assert_eq!(
        spec.selector.match_labels.as_ref().unwrap()["app"],
        "a",
        "the template's labels by default"
    );
    assert_eq!((spec.replicas, spec.min_ready_seconds), (Some(2), Some(3)));
    let back = rc.with_status(view.status.clone().unwrap());
    assert_eq!(back, rc);
}
