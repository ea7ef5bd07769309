//! The plugin's forms agree, and a whole scheduler decides by them, in memory.

use std::sync::Arc;
use std::time::Duration;

use example_power_cap::{MAX_WATTS_ANNOTATION, NAME, PowerCap, WATTS_LABEL, registry};
use framework::PodInfo;
use framework::k8s_openapi::api::core::v1::Node;
use framework::serde_json::json;
use framework::testing::{PodBuilder, assert_forms_agree, make_node, make_pod, snapshot};
use kube_scheduler::app::testing::TestCluster;

const SOON: Duration = Duration::from_secs(2);

/// A pod that puts up with so much.
fn capped(name: &str, most: &str) -> PodBuilder {
    make_pod(name).with(|pod| {
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.insert(MAX_WATTS_ANNOTATION.to_owned(), most.to_owned());
    })
}

fn node(name: &str, watts: &str) -> Arc<Node> {
    let node = make_node(name).capacity(&[("cpu", "8"), ("pods", "2")]);
    match watts {
        "" => node.build(),
        watts => node.label(WATTS_LABEL, watts).build(),
    }
}

fn cluster() -> TestCluster {
    let config = json!({"profiles": [{
        "plugins": {"multiPoint": {"enabled": [{"name": NAME, "weight": 100}]}},
    }]});
    TestCluster::start(&registry(), &config).expect("starts")
}

#[test]
fn all_forms_agree() {
    let values = ["", "0", "5", "7", "12", "500", "1000", "2000", "-3", "many"];
    let pods: [Arc<PodInfo>; 5] = [
        make_pod("any").info(),
        capped("low", "6").info(),
        capped("middle", "500").info(),
        capped("high", "100000").info(),
        capped("wrong", "lots").info(),
    ];
    for few in 0..=values.len() {
        let nodes = values[..few].iter().enumerate();
        let nodes = nodes.map(|(i, watts)| node(&format!("n{i}"), watts));
        let snapshot = snapshot(nodes, []);
        for pod in &pods {
            assert_forms_agree(&PowerCap, pod, &snapshot);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn equal_pods_go_where_the_least_is_drawn_until_that_is_full() {
    let cluster = cluster();
    for (name, watts) in [("a", "9"), ("b", "5"), ("c", ""), ("d", "20")] {
        cluster.create(&*node(name, watts));
    }
    let mut went = Vec::new();
    for i in 0..9 {
        let name = format!("p{i}");
        cluster.create(&*capped(&name, "9").build());
        cluster.settle(SOON).await;
        went.push(cluster.node_of("default", &name).unwrap_or_default());
    }
    assert_eq!(went[..4], ["b", "b", "a", "a"]);
    assert!(went[4..].iter().all(String::is_empty), "{went:?}");
    let why = cluster.why("default", "p4").expect("told");
    for words in [
        "2 Too many pods",
        "2 node(s) drew more power than the pod allows",
    ] {
        assert!(why.contains(words), "{why}");
    }
    cluster.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_for_a_pod_follows_the_nodes_and_is_not_anothers() {
    let cluster = cluster();
    cluster.create(&*node("a", "9"));
    cluster.create(&*node("b", "5"));
    cluster.settle(SOON).await;
    cluster.create(&*capped("one", "9").build());
    cluster.settle(SOON).await;
    assert_eq!(cluster.node_of("default", "one").as_deref(), Some("b"));
    // The same pod but for its cap.
    cluster.create(&*capped("two", "4").build());
    cluster.settle(SOON).await;
    assert_eq!(cluster.node_of("default", "two"), None);
    // The node changes; who waits for it is woken, and who comes is judged by what it is now.
    cluster.update(&*node("a", "3"));
    cluster.settle(Duration::from_secs(12)).await;
    assert_eq!(cluster.node_of("default", "two").as_deref(), Some("a"));
    cluster.create(&*capped("three", "9").build());
    cluster.settle(SOON).await;
    assert_eq!(cluster.node_of("default", "three").as_deref(), Some("a"));
    cluster.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_cap_that_is_no_number_is_told_with_its_field() {
    let cluster = cluster();
    cluster.create(&*node("a", "1"));
    cluster.create(&*capped("p", "-1").build());
    cluster.settle(SOON).await;
    assert_eq!(cluster.node_of("default", "p"), None);
    let why = cluster.why("default", "p").expect("told");
    let field = "metadata.annotations[example.com/max-watts-per-core]: Invalid value: \"-1\"";
    assert!(why.contains(field), "{why}");
    cluster.end().await;
}
