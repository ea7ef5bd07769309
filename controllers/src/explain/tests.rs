//! What would be done, by the controllers themselves over an API in memory.

use component_base::client::ClientConfig;
use component_base::clock::FakeClock;
use controller_runtime::testing::FakeApi;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use serde_json::{Value, json};

use super::*;

/// The report of `kind/name`; nothing may have been written.
async fn report(api: &FakeApi, kind: Kind, name: &str) -> Value {
    let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    let client = ClientConfig::new("test").build_from(config).unwrap();
    let factory = Factory::new(client, Shutdown::new());
    let clock = FakeClock::new("2026-01-01T00:00:00Z".parse().unwrap());
    let key = ObjectKey::new("ns", name);
    let transport = Arc::new(api.clone());
    let report = explain(kind, &key, transport, factory, clock.clock()).await;
    assert!(api.writes().is_empty(), "nothing is written");
    serde_json::to_value(report.unwrap()).unwrap()
}

fn put<K>(api: &FakeApi, value: Value)
where
    K: kube::Resource<DynamicType = ()> + serde::Serialize + serde::de::DeserializeOwned,
{
    api.insert(&serde_json::from_value::<K>(value).unwrap());
}

fn meta(name: &str, owner: Option<(&str, &str)>) -> Value {
    let owners: Vec<_> = owner
        .iter()
        .map(|(kind, name)| json!({ "apiVersion": "apps/v1", "kind": kind, "name": name, "uid": name, "controller": true }))
        .collect();
    json!({ "name": name, "namespace": "ns", "uid": name, "labels": { "app": "a" }, "ownerReferences": owners, "generation": 1 })
}

fn spec(replicas: i32) -> Value {
    let template = json!({ "metadata": { "labels": { "app": "a" } }, "spec": { "containers": [{ "name": "c" }] } });
    json!({ "replicas": replicas, "selector": { "matchLabels": { "app": "a" } }, "template": template, "serviceName": "" })
}

/// `verb resource` of the writes, with their numbers.
fn writes(report: &Value) -> Vec<String> {
    let writes = report["next"]["writes"].as_array().unwrap();
    let text = |write: &Value| {
        let [verb, resource] = ["verb", "resource"].map(|key| write[key].as_str().unwrap());
        format!("{verb} {resource} {}x", write["count"])
    };
    writes.iter().map(text).collect()
}

#[tokio::test]
async fn a_deployment_makes_its_replica_set() {
    let api = FakeApi::new();
    put::<Deployment>(
        &api,
        json!({ "metadata": meta("web", None), "spec": spec(3) }),
    );
    let event = json!({
        "metadata": { "name": "e", "namespace": "ns" }, "involvedObject": { "uid": "web" },
        "reason": "ScalingReplicaSet", "message": "Scaled up", "count": 2,
    });
    put::<Event>(&api, event);
    let other =
        json!({ "metadata": { "name": "o", "namespace": "ns" }, "involvedObject": { "uid": "o" } });
    put::<Event>(&api, other);
    let report = report(&api, Kind::Deployment, "web").await;
    assert_eq!(
        writes(&report),
        ["create replicasets 1x", "update deployments/status 1x"]
    );
    assert_eq!(report["controllers"][0]["name"], "deployment-controller");
    assert_eq!(report["last"]["events"].as_array().unwrap().len(), 1);
    assert_eq!(report["last"]["events"][0]["reason"], "ScalingReplicaSet");
    assert_eq!(report["next"]["events"][0]["reason"], "ScalingReplicaSet");
}

#[tokio::test]
async fn a_replica_set_tells_what_its_pods_wait_for() {
    let api = FakeApi::new();
    let owner = Some(("Deployment", "web"));
    put::<ReplicaSet>(
        &api,
        json!({ "metadata": meta("rs", owner), "spec": spec(4) }),
    );
    let unscheduled = json!({ "type": "PodScheduled", "status": "False", "message": "no node" });
    put::<Pod>(
        &api,
        json!({
            "metadata": meta("rs-1", Some(("ReplicaSet", "rs"))), "spec": { "containers": [] },
            "status": { "phase": "Pending", "conditions": [unscheduled] },
        }),
    );
    let found = report(&api, Kind::ReplicaSet, "rs").await;
    assert_eq!(
        writes(&found),
        ["create pods 3x", "update replicasets/status 1x"]
    );
    let changes = found["next"]["writes"][1]["changes"].as_array().unwrap();
    assert!(
        changes.contains(&json!("status.replicas: nothing -> 1")),
        "{changes:?}"
    );
    assert_eq!(
        found["now"]["pods"],
        json!([{ "state": "not scheduled: no node", "count": 1, "example": "rs-1" }])
    );
    // A Deployment names it.
    put::<Deployment>(
        &api,
        json!({ "metadata": meta("web", None), "spec": spec(4) }),
    );
    let found = report(&api, Kind::Deployment, "web").await;
    assert_eq!(found["now"]["replicaSets"][0]["name"], "rs");
    assert_eq!(found["now"]["pods"][0]["count"], 1);
}

#[tokio::test]
async fn a_replication_controller_is_explained_too() {
    let api = FakeApi::new();
    let spec =
        json!({ "replicas": 2, "selector": { "app": "a" }, "template": spec(0)["template"] });
    put::<ReplicationController>(&api, json!({ "metadata": meta("rc", None), "spec": spec }));
    let report = report(&api, Kind::ReplicationController, "rc").await;
    assert_eq!(writes(&report)[0], "create pods 2x");
}

#[tokio::test]
async fn a_stateful_set_makes_one_pod_at_a_time() {
    let api = FakeApi::new();
    put::<StatefulSet>(
        &api,
        json!({ "metadata": meta("db", None), "spec": spec(3) }),
    );
    let report = report(&api, Kind::StatefulSet, "db").await;
    let expect = [
        "create controllerrevisions 1x",
        "create pods 1x",
        "update statefulsets/status 1x",
    ];
    assert_eq!(writes(&report), expect);
    assert_eq!(report["next"]["writes"][1]["name"], "db-0");
}

#[tokio::test]
async fn a_daemon_set_looks_at_nodes() {
    let api = FakeApi::new();
    put::<DaemonSet>(
        &api,
        json!({ "metadata": meta("net", None), "spec": spec(0) }),
    );
    for name in ["a", "b"] {
        put::<Node>(&api, json!({ "metadata": { "name": name } }));
    }
    let tainted = json!({ "key": "k", "effect": "NoExecute" });
    put::<Node>(
        &api,
        json!({ "metadata": { "name": "c" }, "spec": { "taints": [tainted] } }),
    );
    let report = report(&api, Kind::DaemonSet, "net").await;
    let writes = writes(&report);
    assert_eq!(writes[0], "create controllerrevisions 1x");
    let pods = writes
        .iter()
        .filter(|write| write.starts_with("create pods"));
    assert_eq!(pods.count(), 2, "{writes:?}");
    assert!(api.list::<ControllerRevision>().is_empty());
}

#[tokio::test]
async fn a_job_counts_and_finishes() {
    let api = FakeApi::new();
    let spec = json!({
        "parallelism": 1, "completions": 1, "backoffLimit": 6, "selector": { "matchLabels": { "app": "a" } }, "template": {},
    });
    put::<Job>(&api, json!({ "metadata": meta("j", None), "spec": spec }));
    let found = report(&api, Kind::Job, "j").await;
    assert_eq!(writes(&found), ["create pods 1x", "update jobs/status 1x"]);
    let mut of_job = meta("j-1", Some(("Job", "j")));
    of_job["ownerReferences"][0]["apiVersion"] = json!("batch/v1");
    of_job["finalizers"] = json!(["batch.kubernetes.io/job-tracking"]);
    put::<Pod>(
        &api,
        json!({ "metadata": of_job, "status": { "phase": "Succeeded" } }),
    );
    let found = report(&api, Kind::Job, "j").await;
    let expect = [
        "update jobs/status 1x",
        "patch pods 1x",
        "update jobs/status 1x",
    ];
    assert_eq!(writes(&found), expect);
    assert_eq!(found["next"]["events"][0]["reason"], "Completed");
}

#[tokio::test]
async fn what_is_not_there_and_what_is_done() {
    let api = FakeApi::new();
    let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    let client = ClientConfig::new("test").build_from(config).unwrap();
    let factory = Factory::new(client, Shutdown::new());
    let key = ObjectKey::new("ns", "web");
    let missing = explain(
        Kind::Job,
        &key,
        Arc::new(api.clone()),
        factory,
        Clock::real(),
    )
    .await;
    let error = missing.unwrap_err().to_string();
    assert_eq!(
        error,
        "reading jobs: there is no \"web\" in the namespace \"ns\""
    );

    let status = json!({ "replicas": 0, "observedGeneration": 1, "terminatingReplicas": 0 });
    put::<ReplicaSet>(
        &api,
        json!({ "metadata": meta("rs", None), "spec": spec(0), "status": status }),
    );
    let found = report(&api, Kind::ReplicaSet, "rs").await;
    assert_eq!(found["next"], json!({ "writes": [], "events": [] }));
}

#[tokio::test]
async fn the_text_has_every_part() {
    let api = FakeApi::new();
    let mut deployment = json!({ "metadata": meta("web", None), "spec": spec(3) });
    deployment["status"] = json!({ "observedGeneration": 0 });
    put::<Deployment>(&api, deployment);
    let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    let client = ClientConfig::new("test").build_from(config).unwrap();
    let factory = Factory::new(client, Shutdown::new());
    let key = ObjectKey::new("ns", "web");
    let report = explain(
        Kind::Deployment,
        &key,
        Arc::new(api),
        factory,
        Clock::real(),
    )
    .await;
    let text = report.unwrap().to_string();
    for part in [
        "Deployment ns/web, whose generation 1 was not seen yet\n",
        "\nControllers:\n  deployment-controller: makes and scales its ReplicaSets\n",
        "\nLast:\n  nothing is told of it\n",
        "\nNow:\n  it has no pods\n",
        "\nNext:\n  create replicasets web-",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}
