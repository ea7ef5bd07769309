use std::sync::Arc;

use cloud_provider::{CloudError, InstanceMetadata};
use component_base::events::{RecordedEvent, Recorder};
use controller_runtime::ApiError;
use controller_runtime::testing::{FakeApi, Feed, settle};
use controller_runtime::transport::Verb;
use k8s_openapi::api::core::v1::Node;
use serde_json::{from_value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::controller::Lifecycle;
use super::sync::SHUTDOWN;
use crate::testing::{FakeCloud, told};

fn node(name: &str, ready: &str, taints: &[&str]) -> Node {
    let taints: Vec<_> = taints
        .iter()
        .map(|key| json!({ "key": key, "effect": "NoSchedule" }))
        .collect();
    from_value(json!({ "metadata": { "name": name, "uid": format!("uid-{name}") }, "spec": { "taints": taints },
        "status": { "conditions": [{ "type": "Ready", "status": ready }] } }))
    .unwrap()
}

struct Cluster {
    api: FakeApi,
    cloud: Arc<FakeCloud>,
    controller: Lifecycle,
    events: UnboundedReceiver<RecordedEvent>,
}

/// A cluster of one Node, whose instance is there.
async fn cluster(node: Node) -> Cluster {
    let api = FakeApi::new();
    let (recorder, events) = Recorder::fake();
    let (feed, nodes) = Feed::new();
    let cloud = Arc::new(FakeCloud::default());
    cloud
        .instances
        .lock()
        .unwrap()
        .insert("n".into(), InstanceMetadata::default());
    api.insert(&node);
    feed.apply(node);
    settle().await;
    let controller = Lifecycle {
        nodes,
        cloud: cloud.clone(),
        executor: api.executor_with(recorder),
        clock: component_base::clock::Clock::real(),
        metrics: super::controller::Metrics::unread(),
    };
    Cluster {
        api,
        cloud,
        controller,
        events,
    }
}

impl Cluster {
    fn taints(&self) -> Vec<String> {
        let node: Node = self.api.get("", "n").unwrap();
        node.spec
            .unwrap()
            .taints
            .into_iter()
            .flatten()
            .map(|taint| taint.key)
            .collect()
    }
}

#[tokio::test]
async fn a_node_without_an_instance_is_deleted() {
    for ready in ["False", "Unknown"] {
        let mut cluster = cluster(node("n", ready, &[])).await;
        cluster.controller.monitor(1).await;
        assert!(cluster.api.get::<Node>("", "n").is_some());
        cluster.cloud.instances.lock().unwrap().clear();
        cluster.controller.monitor(1).await;
        assert!(cluster.api.get::<Node>("", "n").is_none());
        let expect = "n Normal DeletingNode: Deleting node n because it does not exist in the cloud provider";
        assert_eq!(told(&mut cluster.events), [expect]);
    }
}

#[tokio::test]
async fn an_error_is_no_reason_to_delete() {
    let mut cluster = cluster(node("n", "False", &[])).await;
    cluster.cloud.instances.lock().unwrap().clear();
    cluster
        .cloud
        .fail("exists", CloudError::Failed("no".into()));
    cluster.controller.monitor(1).await;
    assert!(cluster.api.get::<Node>("", "n").is_some() && told(&mut cluster.events).is_empty());
    cluster.cloud.fail("exists", CloudError::InstanceNotFound);
    cluster.api.fail(
        |r| r.verb == Verb::Delete,
        ApiError::Forbidden("forbidden".into()),
    );
    cluster.controller.monitor(1).await;
    let failed = "n Warning DeletingNodeFailed: Failed deleting node n: forbidden";
    assert_eq!(told(&mut cluster.events)[1], failed);
    // A namesake that came meanwhile stays.
    cluster.api.heal();
    let mut namesake = node("n", "True", &[]);
    namesake.metadata.uid = Some("another".into());
    cluster.api.insert(&namesake);
    cluster.controller.monitor(1).await;
    assert!(cluster.api.get::<Node>("", "n").is_some());
    assert_eq!(told(&mut cluster.events).len(), 1);
}

#[tokio::test]
async fn a_node_that_is_shut_down_is_tainted() {
    let down = cluster(node("n", "False", &["other"])).await;
    down.controller.monitor(1).await;
    assert_eq!(down.taints(), ["other"]);
    down.cloud.shut_down.lock().unwrap().insert("n".into());
    down.cloud.fail("is_shut_down", CloudError::NotImplemented);
    down.controller.monitor(1).await;
    assert_eq!(down.taints(), ["other"]);
    down.cloud.heal();
    down.controller.monitor(1).await;
    assert_eq!(down.taints(), ["other", SHUTDOWN]);
    // Tainted already: nothing to write.
    let tainted = cluster(node("n", "False", &[SHUTDOWN])).await;
    tainted.cloud.shut_down.lock().unwrap().insert("n".into());
    tainted.controller.monitor(1).await;
    assert!(tainted.api.writes().is_empty());
}

#[tokio::test]
async fn a_ready_node_is_not_asked_about() {
    let back = cluster(node("n", "True", &["other", SHUTDOWN])).await;
    back.cloud.instances.lock().unwrap().clear();
    back.controller.monitor(1).await;
    assert_eq!(back.taints(), ["other"]);
    assert!(back.cloud.calls().is_empty());
    let fine = cluster(node("n", "True", &[])).await;
    fine.controller.monitor(1).await;
    assert!(fine.api.writes().is_empty());
}
