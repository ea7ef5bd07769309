//! The plugin in a whole scheduler, in memory.

use std::time::Duration;

use example_prefer_label::{NAME, registry};
use framework::serde_json::{Value, json};
use framework::testing::{make_node, make_pod};
use kube_scheduler::app::testing::TestCluster;

fn config(args: Value) -> Value {
    json!({"profiles": [{
        "plugins": {"multiPoint": {"enabled": [{"name": NAME, "weight": 10}]}},
        "pluginConfig": [{"name": NAME, "args": args}],
    }]})
}

#[tokio::test(start_paused = true)]
async fn pods_go_where_the_label_is() {
    let config = config(json!({"label": "example.com/fast"}));
    let cluster = TestCluster::start(&registry(), &config).expect("starts");
    let node = |name| make_node(name).capacity(&[("cpu", "4"), ("pods", "3")]);
    cluster.create(&*node("a").build());
    cluster.create(&*node("b").label("example.com/fast", "").build());
    cluster.create(&*node("c").build());
    for pod in ["p1", "p2", "p3", "p4"] {
        cluster.create(&*make_pod(pod).req(&[("cpu", "1")]).build());
        cluster.settle(Duration::from_secs(1)).await;
    }
    let node_of = |pod| cluster.node_of("default", pod).expect("has a node");
    for pod in ["p1", "p2", "p3"] {
        assert_eq!(node_of(pod), "b", "{pod}");
    }
    assert_ne!(node_of("p4"), "b", "which is full");
    cluster.end().await;
}

#[tokio::test(start_paused = true)]
async fn arguments_that_are_wrong_are_named() {
    for (args, words) in [
        (json!({}), "label: Required value"),
        (json!({"label": 7}), "label: invalid type: integer `7`"),
        (json!({"lable": "x"}), "unknown field `lable`"),
    ] {
        let error = TestCluster::start(&registry(), &config(args)).err();
        let error = format!("{:#}", error.expect("refused"));
        for words in [words, "plugin \"PreferLabel\""] {
            assert!(error.contains(words), "{error}");
        }
    }
}
