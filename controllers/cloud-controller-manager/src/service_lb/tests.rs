use std::sync::Arc;
use std::time::Duration;

use cloud_provider::CloudError;
use component_base::clock::Clock;
use component_base::events::{RecordedEvent, Recorder};
use component_base::shutdown::Shutdown;
use controller_runtime::testing::{FakeApi, Feed, settle};
use controller_runtime::{Controller as _, Queues, Watches};
use k8s_openapi::api::core::v1::{Node, Service};
use serde_json::{Value, from_value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::controller::Services;
use super::sync::{
    FINALIZER, is_target, needs_cleanup, needs_update, should_sync_node, wants_load_balancer,
};
use crate::testing::{FakeCloud, told};

fn service(version: &str, spec: Value) -> Service {
    let mut object = json!({ "metadata": { "name": "s", "namespace": "ns", "uid": "u", "resourceVersion": version },
        "spec": { "type": "LoadBalancer", "ports": [{ "port": 80 }] } });
    object["spec"]
        .as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    from_value(object).unwrap()
}

fn node(name: &str, labels: Value, taint: Option<&str>) -> Node {
    let taints: Vec<_> = taint
        .iter()
        .map(|key| json!({ "key": key, "effect": "NoSchedule" }))
        .collect();
    from_value(
        json!({ "metadata": { "name": name, "labels": labels }, "spec": { "taints": taints } }),
    )
    .unwrap()
}

struct Cluster {
    api: FakeApi,
    cloud: Arc<FakeCloud>,
    services: Feed<Service>,
    nodes: Feed<Node>,
    controller: Arc<Services>,
    events: UnboundedReceiver<RecordedEvent>,
    _watches: Watches,
}

async fn cluster() -> Cluster {
    let api = FakeApi::new();
    let (recorder, events) = Recorder::fake();
    let (services, service_informer) = Feed::new();
    let (nodes, node_informer) = Feed::new();
    let cloud = Arc::new(FakeCloud::default());
    let controller = Arc::new(Services {
        services: service_informer,
        nodes: node_informer,
        cloud: cloud.clone(),
        cluster: "kubernetes".into(),
        known: Default::default(),
        told: Default::default(),
        queue: Queues::unread(Clock::real()).queue("test"),
        executor: api.executor_with(recorder),
        clock: Clock::real(),
        metrics: super::metrics::Metrics::unread(),
    });
    let mut watches = controller.watch(&Shutdown::new());
    assert!(watches.wait_for_sync().await);
    nodes.apply(node("n", json!({}), None));
    settle().await;
    Cluster {
        api,
        cloud,
        services,
        nodes,
        controller,
        events,
        _watches: watches,
    }
}

impl Cluster {
    /// What the API server would do with the object and the watch.
    fn apply(&self, service: &Service) {
        self.api.insert(service);
        self.services.apply(service.clone());
    }

    /// Works on all that is queued; the errors.
    async fn work(&self) -> Vec<String> {
        settle().await;
        let mut errors = Vec::new();
        while !self.controller.queue.is_empty() {
            let key = self.controller.queue.get().await.unwrap();
            match self.controller.reconcile(&key).await {
                Ok(None) => {}
                Ok(Some(after)) => errors.push(format!("{key} again after {after:?}")),
                Err(error) => errors.push(format!("{key}: {error}")),
            }
            self.controller.queue.done(&key);
        }
        errors
    }

    fn stored(&self) -> Service {
        self.api.get("ns", "s").unwrap()
    }

    /// The addresses of the Service's status.
    fn addresses(&self) -> Vec<String> {
        let status = self.stored().status.and_then(|s| s.load_balancer);
        let ingress = status.and_then(|s| s.ingress).unwrap_or_default();
        ingress.into_iter().filter_map(|i| i.ip).collect()
    }

    fn reasons(&mut self) -> Vec<String> {
        let told = told(&mut self.events).into_iter();
        told.map(|told| {
            told.split(' ')
                .nth(2)
                .unwrap()
                .trim_end_matches(':')
                .to_owned()
        })
        .collect()
    }
}

#[tokio::test]
async fn the_life_of_a_load_balancer() {
    let mut cluster = cluster().await;
    cluster.apply(&service("1", json!({})));
    assert_eq!(cluster.work().await, [""; 0]);
    assert_eq!(cluster.stored().metadata.finalizers.unwrap(), [FINALIZER]);
    assert_eq!(cluster.addresses(), ["192.0.2.1"]);
    assert_eq!(cluster.cloud.balancers.lock().unwrap()["ns/s"], ["n"]);
    assert_eq!(
        cluster.reasons(),
        ["EnsuringLoadBalancer", "EnsuredLoadBalancer"]
    );
    // The answers of the writes are no news.
    cluster.services.apply(cluster.stored());
    assert_eq!(cluster.work().await, [""; 0]);
    assert_eq!(cluster.cloud.calls(), ["ensure ns/s"]);
    // It goes with the Service, and before it.
    let mut going = cluster.stored();
    going.metadata.deletion_timestamp = from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    going.metadata.resource_version = Some("100".into());
    cluster.apply(&going);
    assert_eq!(cluster.work().await, [""; 0]);
    assert_eq!(cluster.cloud.calls(), ["get ns/s", "ensure_deleted ns/s"]);
    assert!(
        cluster.stored().metadata.finalizers.unwrap().is_empty() && cluster.addresses().is_empty()
    );
    assert_eq!(
        cluster.reasons(),
        ["DeletingLoadBalancer", "DeletedLoadBalancer"]
    );
}

#[tokio::test]
async fn a_service_that_wants_none_any_more() {
    let mut cluster = cluster().await;
    cluster.apply(&service("1", json!({})));
    cluster.work().await;
    let mut changed = cluster.stored();
    changed.spec.as_mut().unwrap().type_ = Some("ClusterIP".into());
    changed.metadata.resource_version = Some("100".into());
    cluster.services.apply(cluster.stored());
    cluster.work().await;
    cluster.cloud.calls();
    cluster.reasons();
    cluster.apply(&changed);
    assert_eq!(cluster.work().await, [""; 0]);
    assert!(cluster.cloud.balancers.lock().unwrap().is_empty() && cluster.addresses().is_empty());
    assert!(cluster.stored().metadata.finalizers.unwrap().is_empty());
    assert_eq!(
        cluster.reasons(),
        ["DeletingLoadBalancer", "DeletedLoadBalancer"]
    );
}

#[tokio::test]
async fn services_of_others_are_left_alone() {
    let cluster = cluster().await;
    for spec in [
        json!({ "type": "NodePort" }),
        json!({ "loadBalancerClass": "other" }),
    ] {
        cluster.apply(&service("1", spec));
        assert_eq!(cluster.work().await, [""; 0]);
        cluster.services.delete(service("1", json!({})));
        cluster.work().await;
    }
    assert!(cluster.cloud.calls().is_empty() && cluster.api.writes().is_empty());
}

#[tokio::test]
async fn services_of_the_clouds_own_class() {
    let cluster = cluster().await;
    cluster.apply(&service(
        "1",
        json!({ "loadBalancerClass": "example.com/fake" }),
    ));
    assert_eq!(cluster.work().await, [""; 0]);
    assert_eq!(cluster.addresses(), ["192.0.2.1"]);
    let mut going = cluster.stored();
    going.metadata.deletion_timestamp = from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    going.metadata.resource_version = Some("100".into());
    cluster.cloud.calls();
    cluster.apply(&going);
    assert_eq!(cluster.work().await, [""; 0]);
    assert_eq!(cluster.cloud.calls(), ["get ns/s", "ensure_deleted ns/s"]);
}

#[tokio::test]
async fn what_was_refused_is_tried_again_when_something_is_free() {
    let cluster = cluster().await;
    cluster
        .cloud
        .fail("ensure", CloudError::Failed("none left".into()));
    cluster.apply(&service("1", json!({})));
    assert_eq!(cluster.work().await.len(), 1);
    cluster.cloud.heal();
    cluster.cloud.freed.send_modify(|times| *times += 1);
    assert_eq!(cluster.work().await, [""; 0]);
    assert_eq!(cluster.addresses(), ["192.0.2.1"]);
    // Who has an address waits for nothing.
    cluster.services.apply(cluster.stored());
    cluster.work().await;
    cluster.cloud.calls();
    cluster.cloud.freed.send_modify(|times| *times += 1);
    assert_eq!(cluster.work().await, [""; 0]);
    assert!(cluster.cloud.calls().is_empty());
}

#[tokio::test]
async fn what_the_cloud_refuses() {
    let mut cluster = cluster().await;
    cluster
        .cloud
        .fail("ensure", CloudError::Failed("quota".into()));
    cluster.apply(&service("1", json!({})));
    assert_eq!(
        cluster.work().await,
        ["ns/s: failed to ensure load balancer: quota"]
    );
    let expect = "s Warning SyncLoadBalancerFailed: Error syncing load balancer: failed to ensure load balancer: quota";
    assert_eq!(told(&mut cluster.events)[1], expect);
    // It may be there all the same: the finalizer stays.
    assert_eq!(cluster.stored().metadata.finalizers.unwrap(), [FINALIZER]);
    let later = CloudError::RetryAfter {
        message: "later".into(),
        after: Duration::from_secs(9),
    };
    cluster.cloud.fail("ensure", later);
    let mut changed = cluster.stored();
    changed.spec.as_mut().unwrap().session_affinity = Some("ClientIP".into());
    changed.metadata.resource_version = Some("100".into());
    cluster.apply(&changed);
    assert_eq!(cluster.work().await, ["ns/s again after 9s"]);
    // Another controller does it, status and all.
    cluster
        .cloud
        .fail("ensure", CloudError::ImplementedElsewhere);
    changed.spec.as_mut().unwrap().session_affinity = Some("None".into());
    changed.metadata.resource_version = Some("101".into());
    cluster.reasons();
    cluster.apply(&changed);
    assert_eq!(cluster.work().await, [""; 0]);
    assert!(cluster.addresses().is_empty());
    assert_eq!(cluster.reasons(), ["EnsuringLoadBalancer"]);
    // Deleting fails, too: the Service stays.
    cluster
        .cloud
        .balancers
        .lock()
        .unwrap()
        .insert("ns/s".into(), Vec::new());
    cluster
        .cloud
        .fail("ensure_deleted", CloudError::Failed("in use".into()));
    changed.metadata.deletion_timestamp = from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    changed.metadata.resource_version = Some("102".into());
    cluster.apply(&changed);
    assert_eq!(
        cluster.work().await,
        ["ns/s: failed to delete load balancer: in use"]
    );
    assert_eq!(cluster.stored().metadata.finalizers.unwrap(), [FINALIZER]);
}

#[tokio::test]
async fn a_service_that_goes_past_its_finalizer() {
    let mut cluster = cluster().await;
    cluster.apply(&service("1", json!({})));
    cluster.work().await;
    cluster.reasons();
    cluster.services.delete(cluster.stored());
    assert_eq!(cluster.work().await, [""; 0]);
    assert!(cluster.cloud.balancers.lock().unwrap().is_empty());
    assert_eq!(
        cluster.reasons(),
        ["DeletingLoadBalancer", "DeletedLoadBalancer"]
    );
    // And one that is another under the same name.
    cluster.apply(&service("5", json!({})));
    cluster.work().await;
    cluster.cloud.calls();
    let mut other = service("9", json!({}));
    other.metadata.uid = Some("other".into());
    cluster.apply(&other);
    assert_eq!(cluster.work().await, [""; 0]);
    assert_eq!(
        cluster.cloud.calls(),
        ["ensure_deleted ns/s", "ensure ns/s"]
    );
}

#[tokio::test]
async fn load_balancers_follow_the_nodes() {
    let mut cluster = cluster().await;
    cluster.apply(&service("1", json!({})));
    cluster.work().await;
    cluster.cloud.calls();
    cluster.reasons();
    let targets = |cluster: &Cluster| cluster.cloud.balancers.lock().unwrap()["ns/s"].clone();
    cluster.nodes.apply(node("m", json!({}), None));
    assert_eq!(cluster.work().await, [""; 0]);
    assert_eq!(targets(&cluster), ["m", "n"]);
    assert_eq!(
        told(&mut cluster.events),
        ["s Normal UpdatedLoadBalancer: Updated load balancer with new hosts"]
    );
    // A Node that is no target is no news.
    cluster.cloud.calls();
    let excluded = json!({ "node.kubernetes.io/exclude-from-external-load-balancers": "" });
    cluster.nodes.apply(node("x", excluded, None));
    cluster.work().await;
    assert!(cluster.cloud.calls().is_empty());
    // What fails is the Service's own retry.
    cluster
        .cloud
        .fail("update", CloudError::Failed("busy".into()));
    cluster.nodes.delete(node("m", json!({}), None));
    assert_eq!(cluster.work().await, [""; 0]);
    assert_eq!(
        cluster.cloud.calls(),
        ["update ns/s", "get ns/s", "ensure ns/s"]
    );
    assert_eq!(targets(&cluster), ["n"]);
    let expect = "s Warning UpdateLoadBalancerFailed: Error updating load balancer with new hosts [n] [node names limited, total number of nodes: 1], error: busy";
    assert_eq!(told(&mut cluster.events)[0], expect);
    // No Node at all.
    cluster.cloud.heal();
    cluster.nodes.delete(node("n", json!({}), None));
    cluster.work().await;
    assert!(targets(&cluster).is_empty());
    assert_eq!(cluster.reasons(), ["UnAvailableLoadBalancer"]);
}

#[test]
fn predicates_of_services() {
    let plain = service("1", json!({}));
    let check = |spec: Value, expect: bool| {
        let other = service("2", spec.clone());
        assert_eq!(needs_update(&plain, &other, None), expect, "{spec}");
    };
    check(json!({}), false);
    check(json!({ "clusterIP": "10.0.0.1" }), false);
    for spec in [
        json!({ "type": "ClusterIP" }),
        json!({ "loadBalancerClass": "x" }),
        json!({ "loadBalancerSourceRanges": ["10.0.0.0/8"] }),
        json!({ "ports": [{ "port": 81 }] }),
        json!({ "sessionAffinity": "ClientIP" }),
        json!({ "loadBalancerIP": "192.0.2.9" }),
        json!({ "externalIPs": ["192.0.2.9"] }),
        json!({ "externalTrafficPolicy": "Local" }),
        json!({ "healthCheckNodePort": 30000 }),
        json!({ "ipFamilies": ["IPv4", "IPv6"] }),
    ] {
        check(spec, true);
    }
    let mut annotated = plain.clone();
    annotated.metadata.annotations = Some([("a".into(), "b".into())].into());
    assert!(needs_update(&plain, &annotated, None));
    let (a, b) = (
        service("1", json!({ "type": "NodePort" })),
        service("2", json!({ "type": "ClusterIP" })),
    );
    assert!(!needs_update(&a, &b, None) && !wants_load_balancer(&a, None));
    let mut finalized = a;
    assert!(!needs_cleanup(&finalized));
    finalized.metadata.finalizers = Some(vec![FINALIZER.into()]);
    assert!(needs_cleanup(&finalized));
}

#[test]
fn predicates_of_nodes() {
    const LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
    let labelled = |value: &str| node("n", json!({ LABEL: value }), None);
    let plain = node("n", json!({}), None);
    assert!(is_target(&plain) && is_target(&labelled("false")));
    assert!(
        !is_target(&labelled("true"))
            && !is_target(&labelled(""))
            && !is_target(&labelled("maybe"))
    );
    let doomed = node("n", json!({}), Some("ToBeDeletedByClusterAutoscaler"));
    assert!(!is_target(&doomed));
    // Its connections are to drain.
    assert!(!should_sync_node(&plain, &doomed));
    assert!(
        should_sync_node(&plain, &labelled("true"))
            && !should_sync_node(&plain, &labelled("false"))
    );
    let mut known = plain.clone();
    known.spec.as_mut().unwrap().provider_id = Some("x://n".into());
    assert!(should_sync_node(&plain, &known));
    let mut going = plain;
    going.metadata.deletion_timestamp = from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    assert!(!is_target(&going));
}
