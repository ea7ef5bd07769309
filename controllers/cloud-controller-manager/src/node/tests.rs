use std::sync::Arc;

use cloud_provider::{CloudError, InstanceMetadata, Zone};
use component_base::clock::FakeClock;
use component_base::events::Recorder;
use component_base::informer::ObjectKey;
use controller_runtime::Controller as _;
use controller_runtime::testing::{FakeApi, Feed, settle};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeAddress};
use serde_json::{Value, from_value, json};

use super::controller::Nodes;
use super::sync::{addresses, initialized, is_uninitialized, new_addresses, stale_labels};
use crate::testing::{FakeCloud, told};

fn node(more: Value) -> Node {
    let mut node = json!({ "metadata": { "name": "n", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": { "taints": [{ "key": "node.cloudprovider.kubernetes.io/uninitialized", "value": "true", "effect": "NoSchedule" },
            { "key": "other", "effect": "NoExecute" }] },
        "status": { "addresses": [{ "type": "Hostname", "address": "n.host" }] } });
    merge(&mut node, &more);
    from_value(node).unwrap()
}

fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            more.iter()
                .for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, more) => *into = more.clone(),
    }
}

fn list(text: &[(&str, &str)]) -> Vec<NodeAddress> {
    let address = |(type_, address): &(&str, &str)| NodeAddress {
        type_: (*type_).to_owned(),
        address: (*address).to_owned(),
    };
    text.iter().map(address).collect()
}

fn known() -> InstanceMetadata {
    from_value(json!({ "providerID": "fake://n", "instanceType": "big", "zone": "z", "region": "r",
        "nodeAddresses": [{ "type": "InternalIP", "address": "10.0.0.1" }, { "type": "ExternalIP", "address": "192.0.2.1" }],
        "additionalLabels": { "example.com/row": "3", "mine": "cloud", "x.kubernetes.io/no": "1", "k8s.io/no": "1", "notkubernetes.io/yes": "1" } }))
    .unwrap()
}

#[test]
fn what_a_node_becomes() {
    let new = initialized(
        &node(json!({ "metadata": { "labels": { "mine": "own" } } })),
        &known(),
    )
    .unwrap();
    let expect = json!({ "mine": "own", "example.com/row": "3", "notkubernetes.io/yes": "1",
        "node.kubernetes.io/instance-type": "big", "beta.kubernetes.io/instance-type": "big",
        "topology.kubernetes.io/zone": "z", "failure-domain.beta.kubernetes.io/zone": "z",
        "topology.kubernetes.io/region": "r", "failure-domain.beta.kubernetes.io/region": "r" });
    assert_eq!(json!(new.metadata.labels), expect);
    let spec = new.spec.as_ref().unwrap();
    assert_eq!(spec.provider_id.as_deref(), Some("fake://n"));
    assert_eq!(spec.taints.as_ref().unwrap().len(), 1);
    assert!(!is_uninitialized(&new) && is_uninitialized(&node(json!({}))));
    // A provider id of the kubelet's stays, and what the cloud does not say is not set.
    let own = node(json!({ "spec": { "providerID": "own://n" } }));
    let new = initialized(&own, &InstanceMetadata::default()).unwrap();
    assert_eq!(new.spec.unwrap().provider_id.as_deref(), Some("own://n"));
    assert_eq!(new.metadata.labels.unwrap().len(), 0);
}

#[test]
fn addresses_of_a_node_ip() {
    let cloud = list(&[
        ("InternalIP", "10.0.0.1"),
        ("InternalIP", "10.0.0.2"),
        ("InternalIP", "fd00::1"),
        ("ExternalIP", "192.0.2.1"),
        ("Hostname", "h"),
    ]);
    let with = |ip: &str| {
        let annotations = json!({ "alpha.kubernetes.io/provided-node-ip": ip });
        let node = node(json!({ "metadata": { "annotations": annotations } }));
        addresses(&node, &cloud).map_err(|error| error.to_string())
    };
    assert_eq!(addresses(&node(json!({})), &cloud), Ok(cloud.clone()));
    let one = list(&[
        ("InternalIP", "10.0.0.2"),
        ("ExternalIP", "192.0.2.1"),
        ("Hostname", "h"),
    ]);
    assert_eq!(with("10.0.0.2"), Ok(one));
    let two = list(&[
        ("InternalIP", "fd00::1"),
        ("InternalIP", "10.0.0.1"),
        ("ExternalIP", "192.0.2.1"),
        ("Hostname", "h"),
    ]);
    assert_eq!(with("fd00:0::1,10.0.0.1"), Ok(two));
    for (ip, expect) in [
        (
            "10.0.0.9",
            "failed to get node address from cloud provider that matches ip: 10.0.0.9",
        ),
        ("x", "failed to parse node IP \"x\": could not parse \"x\""),
        ("", "failed to parse node IP \"\": could not parse \"\""),
        (
            "10.0.0.1,10.0.0.2",
            "failed to parse node IP \"10.0.0.1,10.0.0.2\": must contain either a single IP or a dual-stack pair of IPs",
        ),
        (
            "0.0.0.0,fd00::1",
            "failed to parse node IP \"0.0.0.0,fd00::1\": dual-stack node IP cannot include '0.0.0.0' or '::'",
        ),
    ] {
        assert_eq!(with(ip), Err(expect.into()));
    }
    // The taint stays while the address is not one of the instance's.
    let annotations = json!({ "alpha.kubernetes.io/provided-node-ip": "10.0.0.9" });
    let node = node(json!({ "metadata": { "annotations": annotations } }));
    assert!(initialized(&node, &known()).is_err());
}

#[test]
fn addresses_that_change() {
    let node = node(json!({}));
    assert_eq!(new_addresses(&node, &[]), Ok(None));
    let cloud = list(&[("InternalIP", "10.0.0.1")]);
    let with_name = list(&[("InternalIP", "10.0.0.1"), ("Hostname", "n.host")]);
    assert_eq!(new_addresses(&node, &cloud), Ok(Some(with_name.clone())));
    let mut same = node.clone();
    same.status.as_mut().unwrap().addresses = Some(with_name);
    assert_eq!(new_addresses(&same, &cloud), Ok(None));
    // The cloud's name counts for more.
    let named = list(&[("InternalIP", "10.0.0.1"), ("Hostname", "cloud")]);
    assert_eq!(new_addresses(&same, &named), Ok(Some(named.clone())));
    // Two of one type.
    let two = list(&[
        ("InternalIP", "10.0.0.2"),
        ("InternalIP", "10.0.0.1"),
        ("Hostname", "n.host"),
    ]);
    same.status.as_mut().unwrap().addresses = Some(two);
    let other = list(&[("InternalIP", "10.0.0.3"), ("InternalIP", "10.0.0.1")]);
    assert!(new_addresses(&same, &other).unwrap().is_some());
}

#[test]
fn labels_follow_their_old_names() {
    let labels = json!({ "failure-domain.beta.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "new",
        "beta.kubernetes.io/instance-type": "t", "node.kubernetes.io/instance-type": "other" });
    let stale = stale_labels(&node(json!({ "metadata": { "labels": labels } })));
    assert_eq!(
        json!(stale),
        json!({ "topology.kubernetes.io/zone": "z", "node.kubernetes.io/instance-type": "t" })
    );
    assert!(stale_labels(&node(json!({}))).is_empty());
}

struct Cluster {
    api: FakeApi,
    feed: Feed<Node>,
    cloud: Arc<FakeCloud>,
    controller: Nodes,
    events: tokio::sync::mpsc::UnboundedReceiver<component_base::events::RecordedEvent>,
}

fn cluster(cloud: FakeCloud) -> Cluster {
    let api = FakeApi::new();
    let (recorder, events) = Recorder::fake();
    let (feed, nodes) = Feed::new();
    let cloud = Arc::new(cloud);
    let now: Timestamp = "2026-01-01T00:00:30Z".parse().unwrap();
    let controller = Nodes {
        nodes,
        cloud: cloud.clone(),
        executor: api.executor_with(recorder),
        clock: FakeClock::new(now).clock(),
        metrics: super::controller::Metrics::unread(),
    };
    Cluster {
        api,
        feed,
        cloud,
        controller,
        events,
    }
}

impl Cluster {
    async fn sync(&self, node: &Node) -> Result<(), String> {
        self.api.insert(node);
        self.feed.apply(node.clone());
        settle().await;
        let key = ObjectKey::new("", "n");
        self.controller
            .reconcile(&key)
            .await
            .map(drop)
            .map_err(|error| error.to_string())
    }

    fn stored(&self) -> Node {
        self.api.get("", "n").unwrap()
    }

    fn addresses(&self) -> Vec<String> {
        let status = self.stored().status.unwrap();
        let all = status.addresses.unwrap_or_default().into_iter();
        // One entry is the word of the patch that the others replace what was there.
        all.map(|a| a.address).filter(|a| !a.is_empty()).collect()
    }
}

#[tokio::test]
async fn a_new_node_is_initialized() {
    let mut cluster = cluster(FakeCloud::default());
    // Nobody knows it: it is none of the cloud's business.
    assert_eq!(cluster.sync(&node(json!({}))).await, Ok(()));
    assert!(is_uninitialized(&cluster.stored()));
    cluster
        .cloud
        .fail("metadata", CloudError::Failed("no".into()));
    let failed = "failed to get instance metadata for node n: no";
    assert_eq!(cluster.sync(&node(json!({}))).await, Err(failed.into()));
    cluster.cloud.heal();
    let mut anonymous = known();
    anonymous.provider_id.clear();
    cluster
        .cloud
        .instances
        .lock()
        .unwrap()
        .insert("n".into(), anonymous);
    let failed = "cloud provider does not set node provider ID for node n";
    assert_eq!(cluster.sync(&node(json!({}))).await, Err(failed.into()));
    assert!(told(&mut cluster.events).is_empty() && is_uninitialized(&cluster.stored()));
    cluster
        .cloud
        .instances
        .lock()
        .unwrap()
        .insert("n".into(), known());
    assert_eq!(cluster.sync(&node(json!({}))).await, Ok(()));
    assert!(!is_uninitialized(&cluster.stored()));
    assert_eq!(cluster.addresses(), ["10.0.0.1", "192.0.2.1", "n.host"]);
    assert_eq!(
        told(&mut cluster.events),
        ["n Normal Synced: Node synced successfully"]
    );
}

#[tokio::test]
async fn zones_that_the_instances_do_not_say() {
    let zone = Zone {
        failure_domain: "zz".into(),
        region: "rr".into(),
    };
    let cluster = cluster(FakeCloud {
        zone: Some(zone),
        ..FakeCloud::default()
    });
    let mut metadata = known();
    metadata.zone.clear();
    cluster
        .cloud
        .instances
        .lock()
        .unwrap()
        .insert("n".into(), metadata);
    cluster.cloud.fail("zone", CloudError::Failed("no".into()));
    assert_eq!(
        cluster.sync(&node(json!({}))).await,
        Err("failed to get zone from cloud provider: no".into())
    );
    cluster.cloud.heal();
    cluster.sync(&node(json!({}))).await.unwrap();
    let labels = cluster.stored().metadata.labels.unwrap();
    assert_eq!(labels["topology.kubernetes.io/zone"], "zz");
    assert_eq!(labels["topology.kubernetes.io/region"], "r");
}

#[tokio::test]
async fn an_initialized_node_is_followed() {
    let cluster = cluster(FakeCloud::default());
    let labels = json!({ "failure-domain.beta.kubernetes.io/zone": "z" });
    let node = node(json!({ "metadata": { "labels": labels }, "spec": { "taints": [] } }));
    cluster
        .cloud
        .instances
        .lock()
        .unwrap()
        .insert("n".into(), known());
    cluster.sync(&node).await.unwrap();
    assert_eq!(
        cluster.stored().metadata.labels.unwrap()["topology.kubernetes.io/zone"],
        "z"
    );
    // It is not asked for at each event.
    assert!(cluster.cloud.calls().is_empty());
    cluster.controller.follow_addresses(2).await;
    assert_eq!(cluster.addresses(), ["10.0.0.1", "192.0.2.1", "n.host"]);
    // One that is not initialized is left to the other way.
    let writes = cluster.api.writes().len();
    cluster.feed.apply(super::tests::node(
        json!({ "metadata": { "resourceVersion": "9" } }),
    ));
    settle().await;
    cluster.controller.follow_addresses(2).await;
    assert_eq!(cluster.api.writes().len(), writes);
}
