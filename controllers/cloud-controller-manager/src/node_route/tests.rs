use std::sync::Arc;

use cloud_provider::{CloudError, Route};
use component_base::clock::FakeClock;
use component_base::events::{RecordedEvent, Recorder};
use controller_runtime::testing::{FakeApi, Feed, settle};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeAddress};
use serde_json::{from_value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::controller::NodeRoutes;
use super::sync::{matters, plan};
use crate::testing::{FakeCloud, told};

fn node(name: &str, ranges: &[&str], address: &str) -> Node {
    from_value(json!({ "metadata": { "name": name, "uid": format!("uid-{name}") }, "spec": { "podCIDRs": ranges },
        "status": { "addresses": [{ "type": "InternalIP", "address": address }] } }))
    .unwrap()
}

fn route(node: &str, range: &str) -> Route {
    Route {
        name: format!("{node}-{range}"),
        target_node: node.to_owned(),
        destination_cidr: range.to_owned(),
        ..Route::default()
    }
}

fn to_address(node: &str, range: &str, address: &str) -> Route {
    Route {
        enable_node_addresses: true,
        target_node_addresses: vec![NodeAddress {
            type_: "InternalIP".into(),
            address: address.to_owned(),
        }],
        ..route(node, range)
    }
}

/// `-NODE RANGE` for routes to delete, `+NODE RANGE` for those to make.
fn check(nodes: &[Node], routes: &[Route], expect: &[&str]) {
    let nodes: Vec<_> = nodes.iter().cloned().map(Arc::new).collect();
    let cluster = [
        "10.120.0.0/16".parse().unwrap(),
        "fd00:120::/32".parse().unwrap(),
    ];
    let plan = plan(&nodes, routes, &cluster);
    let line = |sign: &str, route: &Route| {
        format!("{sign}{} {}", route.target_node, route.destination_cidr)
    };
    let mut found: Vec<_> = plan.delete.iter().map(|route| line("-", route)).collect();
    found.extend(plan.create.iter().map(|missing| line("+", &missing.route)));
    assert_eq!(found, expect);
}

#[test]
fn plans() {
    let (a, b) = ("10.120.0.0/24", "10.120.1.0/24");
    let nodes = [node("a", &[a], "10.0.0.1"), node("b", &[b], "10.0.0.2")];
    check(&nodes, &[route("a", a), route("b", b)], &[]);
    check(&nodes, &[route("a", a)], &["+b 10.120.1.0/24"]);
    check(&nodes, &[], &["+a 10.120.0.0/24", "+b 10.120.1.0/24"]);
    check(
        &nodes[..1],
        &[route("a", a), route("b", b)],
        &["-b 10.120.1.0/24"],
    );
    // A range that moved.
    check(
        &nodes[..1],
        &[route("a", b)],
        &["-a 10.120.1.0/24", "+a 10.120.0.0/24"],
    );
    check(
        &nodes[..1],
        &[route("b", a)],
        &["-b 10.120.0.0/24", "+a 10.120.0.0/24"],
    );
    // Others' routes are theirs.
    check(
        &nodes[..1],
        &[
            route("a", a),
            route("x", "10.1.0.0/24"),
            route("x", "nonsense"),
        ],
        &[],
    );
    // Nobody knows where it leads.
    check(
        &nodes[..1],
        &[route("a", a), route("", b)],
        &["- 10.120.1.0/24"],
    );
    let nowhere = Route {
        blackhole: true,
        ..route("a", a)
    };
    check(
        &nodes[..1],
        &[nowhere],
        &["-a 10.120.0.0/24", "+a 10.120.0.0/24"],
    );
    // Two families.
    let dual = [node("a", &[a, "fd00:120::/64"], "10.0.0.1")];
    check(&dual, &[route("a", a)], &["+a fd00:120::/64"]);
    check(
        &dual,
        &[
            route("a", a),
            route("a", "fd00:120::/64"),
            route("a", "fd00:120:1::/64"),
        ],
        &["-a fd00:120:1::/64"],
    );
    // Addresses count where the cloud says so.
    check(&nodes[..1], &[to_address("a", a, "10.0.0.1")], &[]);
    check(
        &nodes[..1],
        &[to_address("a", a, "10.0.0.9")],
        &["-a 10.120.0.0/24", "+a 10.120.0.0/24"],
    );
    let careless = Route {
        enable_node_addresses: false,
        ..to_address("a", a, "10.0.0.9")
    };
    check(&nodes[..1], &[careless], &[]);
    // A Node without a range has no route.
    check(&[node("a", &[], "10.0.0.1")], &[], &[]);
    check(
        &[node("a", &[], "10.0.0.1")],
        &[route("a", a)],
        &["-a 10.120.0.0/24"],
    );
}

#[test]
fn changes_that_matter() {
    let old = node("a", &["10.120.0.0/24"], "10.0.0.1");
    let mut labelled = old.clone();
    labelled.metadata.labels = Some([("a".into(), "b".into())].into());
    assert!(!matters(&old, &labelled));
    assert!(matters(&old, &node("a", &["10.120.0.0/24"], "10.0.0.2")));
    assert!(matters(&old, &node("a", &[], "10.0.0.1")));
}

struct Cluster {
    api: FakeApi,
    feed: Feed<Node>,
    cloud: Arc<FakeCloud>,
    controller: NodeRoutes,
    events: UnboundedReceiver<RecordedEvent>,
}

impl Cluster {
    fn new() -> Self {
        let api = FakeApi::new();
        let (recorder, events) = Recorder::fake();
        let (feed, nodes) = Feed::new();
        let cloud = Arc::new(FakeCloud::default());
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let controller = NodeRoutes {
            nodes,
            cloud: cloud.clone(),
            cluster: "kubernetes".into(),
            ranges: vec!["10.120.0.0/16".parse().unwrap()],
            executor: api.executor_with(recorder),
            clock: FakeClock::new(now).clock(),
            metrics: super::controller::Metrics::unread(),
        };
        Self {
            api,
            feed,
            cloud,
            controller,
            events,
        }
    }

    async fn node(&self, node: &Node) {
        self.api.insert(node);
        self.feed.apply(node.clone());
        settle().await;
    }

    /// Status and reason of the Node's `NetworkUnavailable`.
    fn condition(&self, name: &str) -> String {
        let node: Node = self.api.get("", name).unwrap();
        let conditions = node.status.unwrap().conditions.unwrap_or_default();
        let found = conditions.iter().find(|c| c.type_ == "NetworkUnavailable");
        found.map_or("-".into(), |c| {
            format!("{} {}", c.status, c.reason.as_deref().unwrap())
        })
    }
}

#[tokio::test]
async fn routes_and_conditions() {
    let mut cluster = Cluster::new();
    cluster
        .node(&node("a", &["10.120.0.0/24"], "10.0.0.1"))
        .await;
    cluster.node(&node("none", &[], "10.0.0.3")).await;
    cluster
        .cloud
        .fail("create", CloudError::Failed("full".into()));
    cluster.controller.round("periodic").await;
    assert_eq!(cluster.condition("a"), "True NoRouteCreated");
    assert_eq!(cluster.condition("none"), "-");
    let expect = "a Warning FailedToCreateRoute: Could not create route uid-a 10.120.0.0/24 for node a: full";
    assert_eq!(told(&mut cluster.events), [expect]);
    cluster.cloud.heal();
    cluster.cloud.calls();
    cluster.controller.round("periodic").await;
    assert_eq!(
        cluster.cloud.calls(),
        ["list ", "create uid-a a 10.120.0.0/24"]
    );
    assert_eq!(cluster.condition("a"), "False RouteCreated");
    // It stays so, without a write, once the cache knows.
    cluster.feed.apply(cluster.api.get("", "a").unwrap());
    settle().await;
    let writes = cluster.api.writes().len();
    cluster.controller.round("periodic").await;
    assert_eq!(
        (cluster.cloud.calls(), cluster.api.writes().len()),
        (vec!["list ".to_owned()], writes)
    );
    // Nothing is touched while the cloud does not tell what is there.
    cluster.cloud.routes.lock().unwrap().clear();
    cluster.cloud.fail("list", CloudError::Failed("no".into()));
    cluster.controller.round("periodic").await;
    assert_eq!(cluster.cloud.calls(), ["list "]);
    assert_eq!(cluster.condition("a"), "False RouteCreated");
}

#[tokio::test]
async fn a_node_that_lost_its_range() {
    let cluster = Cluster::new();
    cluster.node(&node("a", &[], "10.0.0.1")).await;
    let old = route("a", "10.120.0.0/24");
    cluster.cloud.routes.lock().unwrap().push(old);
    cluster.controller.round("node_change").await;
    assert_eq!(cluster.condition("a"), "True NoRouteCreated");
    assert!(cluster.cloud.routes.lock().unwrap().is_empty());
}
