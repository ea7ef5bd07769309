use std::sync::Arc;

use component_helpers::owner_ref::new_controller_ref;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::replica_sets::{POD_TEMPLATE_HASH, replicas};
use super::revision::{DESIRED_REPLICAS, MAX_REPLICAS, REVISION, REVISION_HISTORY};
use super::sync::*;

const NOW: i64 = 1_800_000_000;

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

fn deployment(replicas: i32, image: &str, more: Value) -> Deployment {
    let mut d = json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "d", "generation": 1},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "a"}}, "template": template(image),
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "progressDeadlineSeconds": 600, "revisionHistoryLimit": 10,
        },
    });
    merge(&mut d, more);
    serde_json::from_value(d).unwrap()
}

fn merge(target: &mut Value, more: Value) {
    match (target, more) {
        (Value::Object(target), Value::Object(more)) => {
            for (key, value) in more {
                merge(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (target, more) => *target = more,
    }
}

/// A ReplicaSet of the Deployment: size, status.replicas and availableReplicas; `age` in seconds.
fn rs(
    name: &str,
    image: &str,
    size: i32,
    available: i32,
    age: i64,
    more: Value,
) -> Arc<ReplicaSet> {
    let mut t = template(image);
    t["metadata"]["labels"][POD_TEMPLATE_HASH] = json!(name);
    let created = Timestamp::from_second(NOW - age).unwrap();
    let mut value = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "creationTimestamp": created.to_string(), "generation": 1, "labels": {"app": "a"}},
        "spec": {"replicas": size, "template": t, "selector": {"matchLabels": {"app": "a"}}},
        "status": {"replicas": size, "readyReplicas": available, "availableReplicas": available, "observedGeneration": 1, "terminatingReplicas": 0},
    });
    merge(&mut value, more);
    let mut rs: ReplicaSet = serde_json::from_value(value).unwrap();
    let owner: Deployment = serde_json::from_value(
        json!({"metadata": {"name": "web", "uid": "d"}, "spec": {"selector": {}, "template": {}}}),
    )
    .unwrap();
    rs.metadata.owner_references = Some(vec![new_controller_ref::<Deployment>(&owner.metadata)]);
    Arc::new(rs)
}

fn scaled_for(desired: i32, max: i32, revision: &str) -> Value {
    json!({"metadata": {"annotations": {DESIRED_REPLICAS: desired.to_string(), MAX_REPLICAS: max.to_string(), REVISION: revision}}})
}

fn run(d: &Deployment, sets: &[Arc<ReplicaSet>]) -> Plan {
    sync(
        d,
        &Observed {
            replica_sets: sets.to_vec(),
            pods: Vec::new(),
        },
        now(),
    )
}

/// The sizes that the plan gives, as `name=size`; a new one is `new=size`, a deleted one `name-`.
fn sizes(plan: &Plan) -> Vec<String> {
    let mut sizes: Vec<_> = plan
        .actions
        .iter()
        .filter_map(|action| match action {
            Action::CreateReplicaSet { replica_set, .. } => {
                Some(format!("new={}", replicas(replica_set)))
            }
            Action::UpdateReplicaSet { replica_set, .. } => Some(format!(
                "{}={}",
                replica_set.metadata.name.as_deref().unwrap(),
                replicas(replica_set)
            )),
            Action::DeleteReplicaSet { replica_set } => Some(format!(
                "{}-",
                replica_set.metadata.name.as_deref().unwrap()
            )),
            _ => None,
        })
        .collect();
    sizes.sort();
    sizes
}

fn written(plan: &Plan) -> Option<&Deployment> {
    plan.actions.iter().find_map(|action| match action {
        Action::UpdateStatus { deployment } | Action::UpdateDeployment { deployment } => {
            Some(&**deployment)
        }
        _ => None,
    })
}

fn condition<'a>(d: &'a Deployment, type_: &str) -> Option<(&'a str, &'a str)> {
    let conditions = d.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|c| c.type_.as_deref() == Some(type_))
        .and_then(|c| {
            Some((
                c.status.as_deref()?,
                c.reason.as_deref().unwrap_or_default(),
            ))
        })
}

fn notices(plan: &Plan) -> Vec<String> {
    plan.actions
        .iter()
        .filter_map(|action| match action {
            Action::CreateReplicaSet { notice, .. } | Action::UpdateReplicaSet { notice, .. } => {
                notice.clone()
            }
            Action::Event(notice) => Some(notice.clone()),
            _ => None,
        })
        .map(|n| format!("{}: {}", n.reason, n.message))
        .collect()
}

#[test]
fn a_new_deployment_gets_its_first_replica_set() {
    let d = deployment(
        3,
        "v1",
        json!({"metadata": {"annotations": {"note": "x", "kubectl.kubernetes.io/last-applied-configuration": "{}"}}}),
    );
    let plan = run(&d, &[]);
    assert_eq!(sizes(&plan), ["new=3"]);
    let Action::CreateReplicaSet { replica_set, .. } = &plan.actions[0] else {
        panic!("{plan:?}")
    };
    let hash = replica_set.metadata.labels.as_ref().unwrap()[POD_TEMPLATE_HASH].clone();
    assert_eq!(
        replica_set.metadata.name.as_deref(),
        Some(format!("web-{hash}").as_str())
    );
    assert_eq!(
        replica_set.spec.selector.match_labels.as_ref().unwrap()[POD_TEMPLATE_HASH],
        hash
    );
    let annotations = replica_set.metadata.annotations.clone().unwrap();
    assert_eq!(annotations.get("note").map(String::as_str), Some("x"));
    assert!(!annotations.contains_key("kubectl.kubernetes.io/last-applied-configuration"));
    assert_eq!(
        (
            annotations[REVISION].as_str(),
            annotations[DESIRED_REPLICAS].as_str(),
            annotations[MAX_REPLICAS].as_str()
        ),
        ("1", "3", "4")
    );
    assert_eq!(
        replica_set.metadata.owner_references.as_ref().unwrap()[0].uid,
        "d"
    );
    assert_eq!(
        notices(&plan),
        [format!(
            "ScalingReplicaSet: Scaled up replica set web-{hash} from 0 to 3"
        )]
    );
    let status = written(&plan).unwrap();
    assert_eq!(status.metadata.annotations.as_ref().unwrap()[REVISION], "1");
    assert_eq!(
        condition(status, "Progressing"),
        Some(("True", "NewReplicaSetCreated"))
    );
    assert_eq!(
        condition(status, "Available"),
        Some(("False", "MinimumReplicasUnavailable"))
    );
    assert_eq!(status.status.as_ref().unwrap().observed_generation, Some(1));
}

#[test]
fn rolling_steps() {
    // (replicas, maxSurge, maxUnavailable, [(name, image, size, available)], expected)
    type Case<'a> = (
        i32,
        Value,
        Value,
        &'a [(&'a str, &'a str, i32, i32)],
        &'a [&'a str],
    );
    let cases: &[Case] = &[
        // Up by the surge and down by what may be unavailable, at the same time.
        (
            4,
            json!(1),
            json!(1),
            &[("old", "v1", 4, 4)],
            &["new=1", "old=3"],
        ),
        (4, json!(1), json!(0), &[("old", "v1", 4, 4)], &["new=1"]),
        (
            4,
            json!(1),
            json!(1),
            &[("old", "v1", 4, 4), ("new1", "v2", 1, 0)],
            &["old=3"],
        ),
        (
            4,
            json!(1),
            json!(1),
            &[("old", "v1", 3, 3), ("new1", "v2", 1, 0)],
            &["new1=2"],
        ),
        (
            4,
            json!(1),
            json!(1),
            &[("old", "v1", 3, 3), ("new1", "v2", 2, 2)],
            &["old=1"],
        ),
        (
            4,
            json!(1),
            json!(1),
            &[("old", "v1", 1, 1), ("new1", "v2", 4, 4)],
            &["old=0"],
        ),
        // No surge: the old must go first.
        (
            4,
            json!(0),
            json!(1),
            &[("old", "v1", 4, 4), ("new1", "v2", 0, 0)],
            &["old=3"],
        ),
        // Nothing may be unavailable.
        (
            4,
            json!(1),
            json!(0),
            &[("old", "v1", 4, 4), ("new1", "v2", 1, 0)],
            &[],
        ),
        (
            4,
            json!(1),
            json!(0),
            &[("old", "v1", 4, 4), ("new1", "v2", 1, 1)],
            &["old=3"],
        ),
        // Pods that are down anyway go first.
        (
            10,
            json!(0),
            json!(2),
            &[("old", "v1", 8, 5), ("new1", "v2", 2, 2)],
            &["old=6"],
        ),
        // A crashing new template does not eat the old one up.
        (
            10,
            json!(3),
            json!(2),
            &[("old", "v1", 8, 7), ("new1", "v2", 5, 0)],
            &[],
        ),
        // Both round to nothing: one may be unavailable.
        (
            1,
            json!("1%"),
            json!("1%"),
            &[("old", "v1", 1, 1)],
            &["new=1"],
        ),
        (
            4,
            json!(0),
            json!("1%"),
            &[("old", "v1", 4, 4), ("new1", "v2", 0, 0)],
            &["old=3"],
        ),
        (
            2,
            json!("0%"),
            json!("10%"),
            &[("old", "v1", 2, 2), ("new1", "v2", 0, 0)],
            &["old=1"],
        ),
        // Roll over: a third template, no room.
        (
            4,
            json!(1),
            json!(1),
            &[("old", "v1", 3, 3), ("mid", "v3", 2, 0)],
            &["mid=0", "new=0"],
        ),
    ];
    for (desired, surge, unavailable, sets, expect) in cases {
        let strategy = json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}});
        let d = deployment(*desired, "v2", strategy);
        let max = desired + super::replica_sets::max_surge(&d);
        let sets: Vec<_> = sets
            .iter()
            .enumerate()
            .map(|(i, (name, image, size, available))| {
                let revision = if *image == "v2" { "9" } else { "1" };
                rs(
                    name,
                    image,
                    *size,
                    *available,
                    100 - i as i64,
                    scaled_for(*desired, max, revision),
                )
            })
            .collect();
        let plan = run(&d, &sets);
        assert_eq!(
            sizes(&plan),
            *expect,
            "{desired} surge {surge} unavailable {unavailable}: {sets:?}"
        );
    }
}

#[test]
fn a_rollout_ends_with_all_available_and_no_more_writes() {
    let old = |n: i64| {
        rs(
            &format!("old{n}"),
            &format!("v{n}"),
            0,
            0,
            100 - n,
            scaled_for(3, 4, &n.to_string()),
        )
    };
    let new = rs("new", "v9", 3, 3, 1, scaled_for(3, 4, "9"));
    let d = deployment(3, "v9", json!({"spec": {"revisionHistoryLimit": 2}}));
    let mut sets: Vec<_> = (1..=4).map(old).collect();
    sets.push(new);
    let plan = run(&d, &sets);
    assert_eq!(
        sizes(&plan),
        [] as [&str; 0],
        "history is cut only after the status says complete"
    );
    let status = written(&plan).unwrap();
    assert_eq!(
        condition(status, "Available"),
        Some(("True", "MinimumReplicasAvailable"))
    );
    assert_eq!(
        condition(status, "Progressing"),
        Some(("True", "NewReplicaSetAvailable"))
    );
    let plan = run(status, &sets);
    assert_eq!(sizes(&plan), ["old1-", "old2-"]);
    let plan = run(status, &sets[2..]);
    assert_eq!(plan, Plan::default(), "nothing left to do");
}

#[test]
fn scaling_during_a_rollout_is_proportional() {
    // (old desired -> new desired, sizes before, sizes after) with maxSurge 3, as the documentation's example.
    let cases: &[(i32, i32, [i32; 2], &[&str])] = &[
        (10, 15, [8, 5], &["new=7", "old=11"]),
        (10, 5, [8, 5], &["new=3", "old=5"]),
        (10, 0, [8, 5], &["new=0", "old=0"]),
    ];
    for (before, after, [old, new], expect) in cases {
        let strategy =
            json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}}});
        let d = deployment(*after, "v2", strategy);
        let annotated = |revision| scaled_for(*before, before + 3, revision);
        let sets = [
            rs("old", "v1", *old, *old, 100, annotated("1")),
            rs("new", "v2", *new, 0, 50, annotated("2")),
        ];
        assert_eq!(sizes(&run(&d, &sets)), *expect, "{before} -> {after}");
    }
    // Only one has pods: it takes the whole change.
    let d = deployment(7, "v1", json!({}));
    assert_eq!(
        sizes(&run(
            &d,
            &[rs("only", "v1", 5, 5, 9, scaled_for(5, 7, "1"))]
        )),
        ["only=7"]
    );
}

#[test]
fn recreate_waits_for_old_pods() {
    let d = deployment(
        2,
        "v2",
        json!({"spec": {"strategy": {"type": "Recreate", "rollingUpdate": null}}}),
    );
    let old = |size| rs("old", "v1", size, size, 100, scaled_for(2, 2, "1"));
    assert_eq!(sizes(&run(&d, &[old(2)])), ["old=0"]);
    let pod = |phase: &str| -> Arc<Pod> {
        let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "old", "uid": "old", "controller": true}]);
        Arc::new(
            serde_json::from_value(
                json!({"metadata": {"ownerReferences": owner}, "status": {"phase": phase}}),
            )
            .unwrap(),
        )
    };
    for (phase, expect) in [
        ("Running", &[][..]),
        ("Unknown", &[]),
        ("Failed", &["new=2"]),
    ] {
        let plan = sync(
            &d,
            &Observed {
                replica_sets: vec![old(0)],
                pods: vec![pod(phase)],
            },
            now(),
        );
        assert_eq!(sizes(&plan), expect, "{phase}");
    }
}

#[test]
fn pausing_stops_rollouts_and_their_clock() {
    let d = deployment(3, "v2", json!({"spec": {"paused": true}}));
    let old = rs("old", "v1", 3, 3, 100, scaled_for(3, 4, "1"));
    let plan = run(&d, &[old.clone()]);
    assert_eq!(sizes(&plan), [] as [&str; 0]);
    let mut paused = written(&plan).unwrap().clone();
    assert_eq!(
        condition(&paused, "Progressing"),
        Some(("Unknown", "DeploymentPaused"))
    );
    assert_eq!(run(&paused, &[old.clone()]), Plan::default());
    paused.spec.replicas = Some(5);
    assert_eq!(
        sizes(&run(&paused, &[old.clone()])),
        ["old=5"],
        "scaling still works"
    );
    paused.spec.replicas = Some(3);
    paused.spec.paused = Some(false);
    let plan = run(&paused, &[old]);
    assert_eq!(
        sizes(&plan),
        ["new=1", "old=3"]
            .iter()
            .filter(|s| **s != "old=3")
            .copied()
            .collect::<Vec<_>>()
    );
}

#[test]
fn progress_and_its_deadline() {
    let stamp = |age: i64| Timestamp::from_second(NOW - age).unwrap().to_string();
    let status = |age: i64| {
        json!({"status": {
            "observedGeneration": 1, "replicas": 3, "updatedReplicas": 3, "readyReplicas": 1, "availableReplicas": 1, "unavailableReplicas": 2, "terminatingReplicas": 0,
            "conditions": [
                {"type": "Available", "status": "False", "reason": "MinimumReplicasUnavailable", "message": "Deployment does not have minimum availability.", "lastUpdateTime": stamp(900), "lastTransitionTime": stamp(900)},
                {"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated", "message": "m", "lastUpdateTime": stamp(age), "lastTransitionTime": stamp(900)},
            ],
        }, "metadata": {"annotations": {REVISION: "1"}}})
    };
    let set = |available| rs("new", "v1", 3, available, 900, scaled_for(3, 4, "1"));
    // No change: wait for the rest of the deadline and a second.
    let plan = run(&deployment(3, "v1", status(100)), &[set(1)]);
    assert_eq!(
        (plan.actions.len(), plan.requeue_after),
        (0, Some(std::time::Duration::from_secs(501)))
    );
    // One more is available: the clock starts anew.
    let plan = run(&deployment(3, "v1", status(100)), &[set(2)]);
    let d = written(&plan).unwrap();
    assert_eq!(
        condition(d, "Progressing"),
        Some(("True", "ReplicaSetUpdated"))
    );
    let progressing = d
        .status
        .as_ref()
        .unwrap()
        .conditions
        .as_ref()
        .unwrap()
        .iter()
        .find(|c| c.type_.as_deref() == Some("Progressing"))
        .unwrap();
    assert_eq!(progressing.last_update_time.as_ref().unwrap().0, now());
    assert_eq!(
        progressing
            .last_transition_time
            .as_ref()
            .unwrap()
            .0
            .as_second(),
        NOW - 900
    );
    // Too long.
    let plan = run(&deployment(3, "v1", status(601)), &[set(1)]);
    let late = written(&plan).unwrap();
    assert_eq!(
        condition(late, "Progressing"),
        Some(("False", "ProgressDeadlineExceeded"))
    );
    let plan = run(late, &[set(1)]);
    assert_eq!((plan.actions.len(), plan.requeue_after), (0, None));
}

#[test]
fn rolling_back_by_template_moves_the_revision_up() {
    // kubectl rollout undo copies the old template; the old ReplicaSet becomes the new one.
    let d = deployment(3, "v1", json!({}));
    let sets = [
        rs("first", "v1", 0, 0, 100, scaled_for(3, 4, "1")),
        rs("second", "v2", 3, 3, 50, scaled_for(3, 4, "2")),
    ];
    let plan = run(&d, &sets);
    let first = plan
        .actions
        .iter()
        .find_map(|a| match a {
            Action::UpdateReplicaSet { replica_set, .. }
                if replica_set.metadata.name.as_deref() == Some("first") =>
            {
                Some(replica_set)
            }
            _ => None,
        })
        .unwrap();
    let annotations = first.metadata.annotations.as_ref().unwrap();
    assert_eq!(
        (
            annotations[REVISION].as_str(),
            annotations[REVISION_HISTORY].as_str()
        ),
        ("3", "1")
    );
    assert_eq!(
        written(&plan)
            .unwrap()
            .metadata
            .annotations
            .as_ref()
            .unwrap()[REVISION],
        "3"
    );
}

#[test]
fn the_deprecated_rollback_copies_the_template() {
    let ask = |revision: &str| json!({"metadata": {"annotations": {"deprecated.deployment.rollback.to": revision}}});
    let sets = [
        rs("first", "v1", 0, 0, 100, scaled_for(3, 4, "1")),
        rs("second", "v2", 3, 3, 50, scaled_for(3, 4, "2")),
    ];
    for (revision, image, event) in [
        (
            "0",
            "v1",
            "DeploymentRollback: Rolled back deployment \"web\" to revision 1",
        ),
        (
            "1",
            "v1",
            "DeploymentRollback: Rolled back deployment \"web\" to revision 1",
        ),
        (
            "2",
            "v2",
            "DeploymentRollbackTemplateUnchanged: The rollback revision contains the same template as current deployment \"web\"",
        ),
        (
            "7",
            "v2",
            "DeploymentRollbackRevisionNotFound: Unable to find the revision to rollback to.",
        ),
    ] {
        let plan = run(&deployment(3, "v2", ask(revision)), &sets);
        let d = written(&plan).unwrap();
        let spec = &d.spec;
        assert_eq!(
            spec.template.spec.as_ref().unwrap().containers[0]
                .image
                .as_deref(),
            Some(image),
            "{revision}"
        );
        assert!(
            !spec
                .template
                .metadata
                .as_ref()
                .unwrap()
                .labels
                .as_ref()
                .unwrap()
                .contains_key(POD_TEMPLATE_HASH)
        );
        assert!(
            !d.metadata
                .annotations
                .as_ref()
                .unwrap()
                .contains_key("deprecated.deployment.rollback.to")
        );
        assert_eq!(notices(&plan), [event]);
    }
}

#[test]
fn name_conflicts_are_told_apart() {
    let d = deployment(3, "v1", json!({}));
    let ours = rs("x", "v1", 0, 0, 1, json!({}));
    assert_eq!(resolve_name_conflict(&d, &ours), None);
    let other = rs("x", "v2", 0, 0, 1, json!({}));
    let Some(Action::UpdateStatus { deployment: bumped }) = resolve_name_conflict(&d, &other)
    else {
        panic!()
    };
    assert_eq!(bumped.status.as_ref().unwrap().collision_count, Some(1));
    let name = |d: &Deployment| match &run(d, &[]).actions[0] {
        Action::CreateReplicaSet { replica_set, .. } => replica_set.metadata.name.clone(),
        other => panic!("{other:?}"),
    };
    assert_ne!(name(&d), name(&bumped));
}

#[test]
fn failures_show_in_conditions() {
    let failing = json!({"status": {"conditions": [{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "quota"}]}});
    let mut set = scaled_for(3, 4, "1");
    merge(&mut set, failing);
    let plan = run(
        &deployment(3, "v1", json!({})),
        &[rs("new", "v1", 3, 0, 9, set)],
    );
    assert_eq!(
        condition(written(&plan).unwrap(), "ReplicaFailure"),
        Some(("True", "FailedCreate"))
    );
    let plan = run(
        written(&plan).unwrap(),
        &[rs("new", "v1", 3, 1, 9, scaled_for(3, 4, "1"))],
    );
    assert_eq!(condition(written(&plan).unwrap(), "ReplicaFailure"), None);

    let actions = record_create_failure(&deployment(3, "v1", json!({})), "web-x", "no", now());
    let Action::UpdateStatus { deployment } = &actions[0] else {
        panic!()
    };
    assert_eq!(
        condition(deployment, "Progressing"),
        Some(("False", "ReplicaSetCreateError"))
    );

    let mut all = deployment_selecting_all();
    let plan = run(&all, &[]);
    assert_eq!(
        notices(&plan),
        ["SelectingAll: This deployment is selecting all pods. A non-empty selector is required."]
    );
    all.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
}

fn deployment_selecting_all() -> Deployment {
    let mut d = deployment(1, "v1", json!({}));
    d.spec.selector = Default::default();
    d
}

#[test]
fn a_deleted_deployment_only_reports() {
    let d = deployment(
        3,
        "v2",
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
    );
    let plan = run(&d, &[rs("old", "v1", 3, 3, 9, scaled_for(3, 4, "1"))]);
    assert_eq!(sizes(&plan), [] as [&str; 0]);
    assert_eq!(
        written(&plan)
            .unwrap()
            .status
            .as_ref()
            .unwrap()
            .available_replicas,
        Some(3)
    );
}
