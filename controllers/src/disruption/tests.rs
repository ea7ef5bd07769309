use std::sync::{Arc, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::FakeClock;
use component_base::events::Recorder;
use controller_runtime::testing::FakeApi;
use controller_runtime::{Action, ApiError, Controller as _, ObjectKey, Resource};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::controller::{DisruptionController, StalePodDisruption};
use super::scale::Scales;
use super::sync::*;
use crate::discovery::{ApiResources, Discovered, Discovery};
use crate::testing::{Feed, settle};

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

fn pdb(spec: Value, status: Value) -> PodDisruptionBudget {
    let mut spec = spec;
    spec["selector"] = json!({"matchLabels": {"app": "a"}});
    let meta = json!({"name": "b", "namespace": "n", "uid": "b", "generation": 2});
    serde_json::from_value(json!({"metadata": meta, "spec": spec, "status": status})).unwrap()
}

/// `ready`, `unready` or `deleting`.
fn pod(name: &str, how: &str, owner: Option<(&str, &str, &str)>) -> Arc<Pod> {
    let owners: Vec<_> = owner
        .into_iter()
        .map(|(version, kind, name)| {
            json!({"apiVersion": version, "kind": kind, "name": name, "uid": name, "controller": true})
        })
        .collect();
    let deletion = (how == "deleting").then_some("2026-01-01T00:59:00Z");
    let ready = if how == "unready" { "False" } else { "True" };
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "n", "uid": name, "labels": {"app": "a"}, "ownerReferences": owners,
                "deletionTimestamp": deletion, "resourceVersion": "1", "generation": 1},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap(),
    )
}

fn pods(how: &[&str]) -> Vec<Arc<Pod>> {
    let named = how.iter().enumerate();
    named
        .map(|(i, how)| pod(&format!("p{i}"), how, None))
        .collect()
}

fn status_of(action: &Action) -> PodDisruptionBudgetStatus {
    match action {
        Action::Update { target, object } => {
            assert_eq!(target.subresource, "status");
            serde_json::from_value(object["status"].clone()).unwrap()
        }
        other => panic!("no update: {other:?}"),
    }
}

#[test]
fn counts() {
    let all = ["ready", "ready", "ready", "unready", "deleting"];
    // spec, pods, scale -> expected, desired, healthy, allowed
    for (spec, how, scale, expect) in [
        (json!({"minAvailable": 2}), &all[..], 0, (5, 2, 3, 1)),
        (json!({"minAvailable": 3}), &all, 0, (5, 3, 3, 0)),
        (json!({"minAvailable": 9}), &all, 0, (5, 9, 3, 0)),
        (json!({"minAvailable": "50%"}), &all, 5, (5, 3, 3, 0)),
        (json!({"minAvailable": "0%"}), &all, 5, (5, 0, 3, 3)),
        (json!({"maxUnavailable": 3}), &all, 5, (5, 2, 3, 1)),
        (json!({"maxUnavailable": "30%"}), &all, 4, (4, 2, 3, 1)),
        (json!({"maxUnavailable": 9}), &all, 5, (5, 0, 3, 3)),
        // Nothing expected: closed, whatever is wanted.
        (json!({"minAvailable": 0}), &[], 0, (0, 0, 0, 0)),
        (json!({"maxUnavailable": 1}), &all, 0, (0, 0, 3, 0)),
        (json!({}), &all, 0, (0, 0, 3, 0)),
    ] {
        let plan = sync(&pdb(spec.clone(), json!({})), &pods(how), scale, now()).unwrap();
        let status = status_of(&plan.actions[0]);
        let found = (
            status.expected_pods.unwrap(),
            status.desired_healthy.unwrap(),
            status.current_healthy.unwrap(),
            status.disruptions_allowed.unwrap(),
        );
        assert_eq!(found, expect, "{spec}");
        let condition = &status.conditions.as_ref().unwrap()[0];
        let word = if expect.3 > 0 {
            ("DisruptionAllowed", "True", "SufficientPods", Some(2))
        } else {
            ("DisruptionAllowed", "False", "InsufficientPods", Some(2))
        };
        let found = (
            condition.type_.as_str(),
            condition.status.as_str(),
            condition.reason.as_str(),
            condition.observed_generation,
        );
        assert_eq!(found, word, "{spec}");
        assert_eq!(status.observed_generation, Some(2));
        // What was written is what is wanted.
        let written = PodDisruptionBudget {
            status: Some(status),
            ..pdb(spec, json!({}))
        };
        assert_eq!(
            sync(&written, &pods(how), scale, now()).unwrap().actions,
            []
        );
    }
    let wrong = pdb(json!({"maxUnavailable": "some"}), json!({}));
    assert!(sync(&wrong, &pods(&all), 5, now()).is_err());
}

#[test]
fn which_budgets_need_the_scale() {
    for (spec, needs) in [
        (json!({"minAvailable": 1}), false),
        (json!({"minAvailable": "1%"}), true),
        (json!({"maxUnavailable": 1}), true),
        (json!({}), false),
    ] {
        assert_eq!(
            needs_scale(&pdb(spec.clone(), json!({})).spec.unwrap()),
            needs,
            "{spec}"
        );
    }
}

#[test]
fn evicted_pods_are_awaited_for_two_minutes() {
    let noted = json!({
        "p0": "2026-01-01T00:59:30Z", "p1": "2026-01-01T00:58:00Z", "p2": "2026-01-01T00:59:50Z", "gone": "2026-01-01T00:59:50Z",
    });
    let pdb = pdb(json!({"minAvailable": 1}), json!({"disruptedPods": noted}));
    let plan = sync(
        &pdb,
        &pods(&["ready", "ready", "deleting", "ready"]),
        0,
        now(),
    )
    .unwrap();
    // p0 is awaited and not counted; p1 was not deleted and counts again; p2 goes; the last was not noted.
    let [
        Action::Event {
            regarding,
            reason,
            message,
            ..
        },
        update,
    ] = &plan.actions[..]
    else {
        panic!("{plan:?}")
    };
    assert_eq!(
        (regarding.name.as_deref(), *reason),
        (Some("p1"), "NotDeleted")
    );
    assert!(message.contains("n/b"), "{message}");
    let status = status_of(update);
    assert_eq!(
        status
            .disrupted_pods
            .unwrap()
            .into_keys()
            .collect::<Vec<_>>(),
        ["p0"]
    );
    assert_eq!(
        (status.current_healthy, status.disruptions_allowed),
        (Some(2), Some(1))
    );
    assert_eq!(plan.requeue_after, Some(Duration::from_secs(90)));
}

#[test]
fn a_budget_that_cannot_be_counted_is_closed_once() {
    let open = pdb(
        json!({"maxUnavailable": 1}),
        json!({"disruptionsAllowed": 3, "currentHealthy": 5, "observedGeneration": 1}),
    );
    let status = status_of(&fail_safe(&open, "why".into(), now()).unwrap());
    assert_eq!(
        (status.disruptions_allowed, status.current_healthy),
        (Some(0), Some(5))
    );
    let condition = &status.conditions.as_ref().unwrap()[0];
    assert_eq!(
        (
            condition.status.as_str(),
            condition.reason.as_str(),
            condition.message.as_str()
        ),
        ("False", "SyncFailed", "why")
    );
    let closed = PodDisruptionBudget {
        status: Some(status),
        ..open
    };
    let later = now() + jiff::SignedDuration::from_secs(5);
    assert_eq!(fail_safe(&closed, "why".into(), later), None);
    assert!(fail_safe(&closed, "else".into(), later).is_some());
    // Counting works again: the reason changes though nothing is allowed still.
    let plan = sync(&closed, &[], 0, later).unwrap();
    let condition = &status_of(&plan.actions[0]).conditions.unwrap()[0];
    assert_eq!(
        (condition.reason.as_str(), condition.message.as_str()),
        ("InsufficientPods", "")
    );
    assert_eq!(condition.last_transition_time.0, now());
}

fn target(status: &str, reason: &str, phase: &str, since: &str, deleting: bool) -> Pod {
    let deletion = deleting.then_some("2026-01-01T00:59:00Z");
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "p", "resourceVersion": "1", "generation": 4, "deletionTimestamp": deletion},
        "status": {"phase": phase, "conditions": [
            {"type": "DisruptionTarget", "status": status, "reason": reason, "lastTransitionTime": since}]},
    }))
    .unwrap()
}

#[test]
fn stale_disruption_targets() {
    let (old, young) = ("2026-01-01T00:58:00Z", "2026-01-01T00:59:00Z");
    for (pod, left) in [
        (
            target("True", "EvictionByEvictionAPI", "Running", old, false),
            Some(0),
        ),
        (
            target("True", "PreemptionByScheduler", "Pending", young, false),
            Some(60),
        ),
        (
            target("False", "EvictionByEvictionAPI", "Running", old, false),
            None,
        ),
        (
            target("True", "TerminationByKubelet", "Running", old, false),
            None,
        ),
        (
            target("True", "EvictionByEvictionAPI", "Failed", old, false),
            None,
        ),
        (
            target("True", "EvictionByEvictionAPI", "Running", old, true),
            None,
        ),
        ((*pods(&["ready"])[0]).clone(), None),
    ] {
        let found = stale_disruption_after(&pod, now());
        assert_eq!(found, left.map(Duration::from_secs), "{:?}", pod.status);
    }
}

/// Counts how often it is asked.
struct FakeDiscovery(RwLock<u32>);

#[async_trait]
impl Discovery for FakeDiscovery {
    async fn resources(&self) -> Result<ApiResources, ApiError> {
        *self.0.write().unwrap() += 1;
        let kind = |resource: Resource, subresources: &[&str]| Discovered {
            resource,
            namespaced: true,
            verbs: vec!["get".into()],
            preferred: true,
            subresources: subresources.iter().map(ToString::to_string).collect(),
        };
        Ok(ApiResources {
            resources: vec![
                kind(Resource::of::<DaemonSet>(), &["status"]),
                kind(Resource::of::<StatefulSet>(), &["status", "scale"]),
            ],
            failed: vec![],
        })
    }
}

struct Shell {
    api: FakeApi,
    events: UnboundedReceiver<component_base::events::RecordedEvent>,
    discovery: Arc<FakeDiscovery>,
    pdbs: Feed<PodDisruptionBudget>,
    pods: Feed<Pod>,
    controllers: Feed<ReplicationController>,
    replica_sets: Feed<ReplicaSet>,
    deployments: Feed<Deployment>,
    stateful_sets: Feed<StatefulSet>,
    clock: FakeClock,
    controller: DisruptionController,
}

impl Shell {
    fn new() -> Self {
        let api = FakeApi::new();
        let (recorder, events) = Recorder::fake();
        let executor = api.executor_with(recorder);
        let ((pdbs, of_pdbs), (pods, of_pods)) = (Feed::new(), Feed::new());
        let ((controllers, of_controllers), (replica_sets, of_replica_sets)) =
            (Feed::new(), Feed::new());
        let ((deployments, of_deployments), (stateful_sets, of_stateful_sets)) =
            (Feed::new(), Feed::new());
        let discovery = Arc::new(FakeDiscovery(RwLock::default()));
        let clock = FakeClock::new(now());
        let scales = Scales {
            controllers: of_controllers,
            replica_sets: of_replica_sets,
            deployments: of_deployments,
            stateful_sets: of_stateful_sets,
            executor: executor.clone(),
            discovery: discovery.clone(),
            known: RwLock::default(),
        };
        let controller = DisruptionController {
            pdbs: of_pdbs,
            pods: of_pods,
            scales,
            executor,
            clock: clock.clock(),
        };
        Self {
            api,
            events,
            discovery,
            pdbs,
            pods,
            controllers,
            replica_sets,
            deployments,
            stateful_sets,
            clock,
            controller,
        }
    }

    /// The budget is in the API and in the cache.
    async fn put(&self, pdb: &PodDisruptionBudget) {
        self.api.insert(pdb);
        self.pdbs.apply(pdb.clone());
        settle().await;
    }

    async fn reconcile(&self) -> Result<Option<Duration>, ApiError> {
        self.controller.reconcile(&ObjectKey::new("n", "b")).await
    }

    fn status(&self) -> PodDisruptionBudgetStatus {
        let pdb: PodDisruptionBudget = self.api.get("n", "b").unwrap();
        pdb.status.unwrap()
    }

    fn reasons(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.events.try_recv().ok())
            .map(|event| event.reason)
            .collect()
    }
}

fn workload<K: serde::de::DeserializeOwned>(name: &str, replicas: i32, owner: Option<&str>) -> K {
    let owners: Vec<_> = owner
        .into_iter()
        .map(|uid| json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": uid, "uid": uid, "controller": true}))
        .collect();
    let template = json!({"metadata": {}, "spec": {"containers": []}});
    let spec =
        json!({"replicas": replicas, "selector": {}, "serviceName": "", "template": template});
    let meta = json!({"name": name, "namespace": "n", "uid": name, "ownerReferences": owners});
    serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
}

#[tokio::test]
async fn the_scale_of_every_kind_counts_once() {
    let mut shell = Shell::new();
    shell.controllers.apply(workload("rc", 1, None));
    shell.deployments.apply(workload("d", 10, None));
    shell.replica_sets.apply(workload("d-old", 3, Some("d")));
    shell.replica_sets.apply(workload("d-new", 8, Some("d")));
    shell.replica_sets.apply(workload("rs", 100, None));
    shell.stateful_sets.apply(workload("ss", 1000, None));
    // Not in the cache: the scale subresource says it.
    shell
        .api
        .insert(&workload::<StatefulSet>("live", 10000, None));
    for (i, (version, kind, owner)) in [
        ("v1", "ReplicationController", "rc"),
        ("apps/v1", "ReplicaSet", "d-old"),
        ("apps/v1", "ReplicaSet", "d-new"),
        ("apps/v1", "ReplicaSet", "d-new"),
        ("apps/v1", "ReplicaSet", "rs"),
        ("apps/v1", "StatefulSet", "ss"),
        ("apps/v1", "StatefulSet", "live"),
    ]
    .into_iter()
    .enumerate()
    {
        let pod = pod(&format!("p{i}"), "ready", Some((version, kind, owner)));
        shell.pods.apply((*pod).clone());
    }
    shell.pods.apply((*pod("alone", "ready", None)).clone());
    shell
        .put(&pdb(json!({"maxUnavailable": "100%"}), json!({})))
        .await;
    assert_eq!(shell.reconcile().await, Ok(None));
    assert_eq!(shell.status().expected_pods, Some(11111));
    assert_eq!(shell.status().disruptions_allowed, Some(8));
    assert_eq!(shell.reasons(), ["UnmanagedPods"]);
    assert_eq!(*shell.discovery.0.read().unwrap(), 1);
}

#[tokio::test]
async fn a_controller_that_cannot_be_asked_closes_the_budget() {
    for (version, kind, owner, message) in [
        (
            "apps/v1",
            "DaemonSet",
            "ds",
            "daemonsets.apps does not implement the scale subresource",
        ),
        (
            "example.com/v1",
            "Thing",
            "t",
            "no matches for kind \"Thing\" in version \"example.com/v1\"",
        ),
        (
            "apps/v1",
            "StatefulSet",
            "gone",
            "found no controllers for pod \"p\"",
        ),
    ] {
        let mut shell = Shell::new();
        let pod = pod("p", "ready", Some((version, kind, owner)));
        shell.pods.apply((*pod).clone());
        let open = pdb(
            json!({"maxUnavailable": 1}),
            json!({"disruptionsAllowed": 1}),
        );
        shell.put(&open).await;
        assert_eq!(shell.reconcile().await, Ok(None));
        let status = shell.status();
        assert_eq!(status.disruptions_allowed, Some(0));
        let condition = &status.conditions.unwrap()[0];
        assert_eq!(
            (condition.reason.as_str(), condition.message.as_str()),
            ("SyncFailed", message)
        );
        assert_eq!(shell.reasons(), ["CalculateExpectedPodCountFailed"]);
    }
}

#[tokio::test]
async fn conflicts_are_tried_again_and_other_failures_close_first() {
    let shell = Shell::new();
    shell.pods.apply((*pod("p", "ready", None)).clone());
    shell.put(&pdb(json!({"minAvailable": 0}), json!({}))).await;
    let conflict = ApiError::Conflict("newer".into());
    shell.api.fail(|_| true, conflict.clone());
    assert_eq!(shell.reconcile().await, Err(conflict));
    assert_eq!(shell.api.writes().len(), 1);

    shell.api.heal();
    let error = ApiError::Unreachable("down".into());
    let counted =
        |r: &controller_runtime::transport::Request| r.body["status"]["disruptionsAllowed"] == 1;
    shell.api.fail(counted, error.clone());
    assert_eq!(shell.reconcile().await, Err(error));
    let condition = &shell.status().conditions.unwrap()[0];
    assert_eq!(condition.reason, "SyncFailed");

    shell.api.heal();
    shell.put(&pdb(json!({"minAvailable": 0}), json!({}))).await;
    assert_eq!(shell.reconcile().await, Ok(None));
    assert_eq!(shell.status().disruptions_allowed, Some(1));
}

#[tokio::test]
async fn no_pods_are_told() {
    let mut shell = Shell::new();
    shell.put(&pdb(json!({"minAvailable": 1}), json!({}))).await;
    assert_eq!(shell.reconcile().await, Ok(None));
    assert_eq!(shell.reasons(), ["NoPods"]);
    // Every budget that selects a pod hears of it.
    let mut other = pdb(json!({"minAvailable": 1}), json!({}));
    other.metadata.name = Some("c".into());
    shell.put(&other).await;
    let mut found = shell.controller.pdbs_of(&pod("p", "ready", None));
    found.sort();
    assert_eq!(found, [ObjectKey::new("n", "b"), ObjectKey::new("n", "c")]);
}

#[tokio::test]
async fn a_stale_disruption_target_is_taken_back() {
    let shell = Shell::new();
    let pod = target(
        "True",
        "EvictionByEvictionAPI",
        "Running",
        "2026-01-01T00:59:00Z",
        false,
    );
    shell.api.insert(&pod);
    shell.pods.apply(pod);
    settle().await;
    let stale = StalePodDisruption {
        pods: shell.controller.pods.clone(),
        executor: shell.api.executor(),
        clock: shell.clock.clock(),
    };
    let key = ObjectKey::new("n", "p");
    assert_eq!(
        stale.reconcile(&key).await,
        Ok(Some(Duration::from_secs(60)))
    );
    assert_eq!(shell.api.writes(), []);
    shell.clock.advance(Duration::from_secs(60));
    assert_eq!(stale.reconcile(&key).await, Ok(None));
    let writes = shell.api.writes();
    assert_eq!(
        (writes.len(), writes[0].subresource.as_ref()),
        (1, "status")
    );
    assert_eq!(writes[0].body["metadata"]["resourceVersion"], "1");
    let condition = &writes[0].body["status"]["conditions"][0];
    assert_eq!(
        (&condition["status"], &condition["reason"]),
        (&json!("False"), &Value::Null)
    );
    assert_eq!(condition["observedGeneration"], 4);
}
