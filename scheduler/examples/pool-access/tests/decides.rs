//! The plugin in a whole scheduler, in memory, with objects of its own kind.

use std::time::Duration;

use example_pool_access::{NAME, POOL, POOL_LABEL, registry};
use framework::k8s_openapi::api::core::v1::Node;
use framework::serde_json::{Value, json};
use framework::testing::{make_node, make_pod};
use kube_scheduler::app::testing::TestCluster;

/// Less than a pod waits that nothing wakes (5 min), more than its backoff.
const SOON: Duration = Duration::from_secs(12);

fn cluster() -> TestCluster {
    let config = json!({"profiles": [{"plugins": {"multiPoint": {"enabled": [{"name": NAME}]}}}]});
    TestCluster::start(&registry(), &config).expect("starts")
}

fn add_node(cluster: &TestCluster, name: &str, pool: &str) {
    let node = make_node(name).capacity(&[("cpu", "4"), ("pods", "10")]);
    cluster.create(&*node.label(POOL_LABEL, pool).build());
}

fn add_pod(cluster: &TestCluster, namespace: &str, name: &str) {
    cluster.create(&*make_pod(name).namespace(namespace).build());
}

async fn apply(cluster: &TestCluster, pool: &str, spec: Value) {
    let object = json!({
        "apiVersion": "example.com/v1alpha1", "kind": "Pool", "metadata": {"name": pool}, "spec": spec,
    });
    cluster.apply(POOL, object).await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_lets_in_the_namespaces_it_names() {
    let cluster = cluster();
    apply(&cluster, "gold", json!({"namespaces": ["web"]})).await;
    add_node(&cluster, "n", "gold");
    cluster.settle(SOON).await;
    add_pod(&cluster, "web", "p");
    add_pod(&cluster, "batch", "p");
    cluster.settle(SOON).await;
    assert_eq!(cluster.node_of("web", "p").as_deref(), Some("n"));
    assert_eq!(cluster.node_of("batch", "p"), None);
    let why = cluster.why("batch", "p").expect("told");
    assert!(
        why.contains("1 node(s) were of a pool for other namespaces"),
        "{why}"
    );
    // The pod waits, and is not tried again for a change that does not help it; then it is, at once.
    apply(&cluster, "gold", json!({"namespaces": ["web", "ml"]})).await;
    cluster.settle(SOON).await;
    assert_eq!(cluster.node_of("batch", "p"), None);
    apply(&cluster, "gold", json!({"namespaces": ["batch"]})).await;
    cluster.settle(SOON).await;
    assert_eq!(cluster.node_of("batch", "p").as_deref(), Some("n"));
    // What was kept for pods of the first namespace counts no more.
    add_pod(&cluster, "web", "late");
    cluster.settle(SOON).await;
    assert_eq!(cluster.node_of("web", "late"), None);
    cluster.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_missing_or_cannot_be_read_lets_nobody_in() {
    let cluster = cluster();
    add_node(&cluster, "n", "gold");
    add_pod(&cluster, "web", "p");
    cluster.settle(SOON).await;
    let missing = "1 node(s) were of a pool that does not exist";
    let why = || cluster.why("web", "p").expect("told");
    assert!(why().contains(missing), "{}", why());
    apply(&cluster, "gold", json!({"namespaces": "web"})).await;
    cluster.settle(SOON).await;
    assert_eq!(cluster.node_of("web", "p"), None, "a text is no list");
    apply(&cluster, "gold", json!({"namespaces": ["web"]})).await;
    cluster.settle(SOON).await;
    assert_eq!(cluster.node_of("web", "p").as_deref(), Some("n"));
    cluster.delete_object(POOL, "", "gold").await;
    add_pod(&cluster, "web", "late");
    cluster.settle(SOON).await;
    assert_eq!(cluster.node_of("web", "late"), None);
    cluster.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_leaves_its_pool_wakes_who_waits() {
    let cluster = cluster();
    add_node(&cluster, "n", "gold");
    add_pod(&cluster, "web", "p");
    cluster.settle(SOON).await;
    assert_eq!(cluster.node_of("web", "p"), None);
    let node = make_node("n").capacity(&[("cpu", "4"), ("pods", "10")]);
    cluster.update::<Node>(&node.build());
    cluster.settle(SOON).await;
    assert_eq!(cluster.node_of("web", "p").as_deref(), Some("n"));
    cluster.end().await;
}

#[test]
fn the_definition_is_of_the_kind_that_is_watched() {
    let crd: Value = serde_saphyr::from_str(include_str!("../crd.yaml")).expect("YAML");
    let spec = &crd["spec"];
    assert_eq!(spec["group"], POOL.group);
    assert_eq!(spec["names"]["kind"], POOL.kind);
    assert_eq!(spec["names"]["plural"], POOL.plural);
    assert_eq!(spec["versions"][0]["name"], POOL.version);
    let rbac = include_str!("../rbac.yaml");
    assert!(rbac.contains(&format!("resources: [{}]", POOL.plural)));
}

#[tokio::test(start_paused = true)]
async fn arguments_are_refused() {
    let config = json!({"profiles": [{
        "plugins": {"multiPoint": {"enabled": [{"name": NAME}]}},
        "pluginConfig": [{"name": NAME, "args": {"strict": true}}],
    }]});
    let error = TestCluster::start(&registry(), &config).err();
    let error = format!("{:#}", error.expect("refused"));
    assert!(
        error.contains("plugin \"PoolAccess\"") && error.contains("unknown field `strict`"),
        "{error}"
    );
}
