//! Questions about a small cluster.

use framework::testing::{PodBuilder, make_node, make_pod};
use serde_json::json;

use super::*;
use crate::testing::Bed;

/// Nodes of 2 CPUs: `a` of type m5.large with two pods and a daemon's, `b` full; a pod waits.
struct Cluster {
    bed: Bed,
    snapshot: Snapshot,
}

fn pod(name: &str, cpu: &str) -> PodBuilder {
    make_pod(name).uid(name).req(&[("cpu", cpu)])
}

impl Cluster {
    fn new() -> Self {
        let waiting = pod("waiting", "2").info();
        let bed = Bed::new(std::slice::from_ref(&waiting));
        let mut snapshot = Snapshot::new();
        let node = |name: &str| make_node(name).capacity(&[("cpu", "2"), ("pods", "10")]);
        let a = node("a")
            .label(INSTANCE_TYPE, "m5.large")
            .label(HOSTNAME, "a")
            .taint("node.kubernetes.io/unreachable", "", "NoExecute")
            .unschedulable(true);
        let on_a = [
            pod("one", "1").node("a").priority(1).info(),
            pod("two", "500m").node("a").priority(2).info(),
            pod("daemon", "100m")
                .node("a")
                .owner("DaemonSet", "d", "d")
                .info(),
        ];
        let on_b = [pod("big", "2").node("b").info()];
        snapshot.set_node(Arc::new(a.info(on_a)));
        snapshot.set_node(Arc::new(node("b").info(on_b)));
        bed.scheduler.queue.add(waiting);
        Cluster { bed, snapshot }
    }

    fn ask(&mut self, question: Question) -> Result<Vec<String>, InvalidQuestion> {
        let scheduler = &self.bed.scheduler;
        let answer = what_if(
            &scheduler.profiles(),
            &mut self.snapshot,
            scheduler.queue.nominator(),
            scheduler.queue.pending_pods(),
            &question,
        )?;
        let shown = |pod: &Outcome| {
            let to = match (&pod.node, &pod.why) {
                (Some(node), _) => node.clone(),
                (None, Some(why)) => why.message.clone(),
                (None, None) => pod.error.clone(),
            };
            format!("{} {} {to}", pod.origin, pod.name)
        };
        Ok(answer.pods.iter().map(shown).collect())
    }
}

fn add(count: usize, like: &str) -> Vec<AddNodes> {
    vec![AddNodes {
        count,
        like: like.into(),
        node: None,
    }]
}

#[tokio::test]
async fn added_nodes_are_like_one_there_is_and_take_what_waits() {
    let mut cluster = Cluster::new();
    let question = Question {
        add_nodes: add(2, "m5.large"),
        ..Question::default()
    };
    let said = cluster.ask(question).expect("a good question");
    assert_eq!(said.len(), 1);
    assert!(
        said[0].starts_with("waiting waiting what-if-0-m5.large-"),
        "{said:?}"
    );
    assert_eq!(cluster.snapshot.num_nodes(), 4);
    let new = cluster.snapshot.get("what-if-0-m5.large-1").expect("added");
    assert_eq!(new.labels()[HOSTNAME], "what-if-0-m5.large-1");
    assert!(
        new.taints().is_empty() && !new.unschedulable(),
        "trouble is not copied"
    );
    let writes = &cluster.bed.writes;
    assert!(writes.bound.lock().unwrap().is_empty());
    assert_eq!(
        cluster.bed.scheduler.queue.counts().active,
        1,
        "it waits still"
    );
}

#[tokio::test]
async fn a_drained_node_s_pods_go_in_order_of_priority_and_take_room() {
    let mut cluster = Cluster::new();
    let question = Question {
        drain: vec!["a".into()],
        add_nodes: vec![AddNodes {
            count: 1,
            like: String::new(),
            node: Some(
                (*make_node("x")
                    .capacity(&[("cpu", "1"), ("pods", "9")])
                    .build())
                .clone(),
            ),
        }],
        without_waiting: true,
        ..Question::default()
    };
    let said = cluster.ask(question).expect("a good question");
    assert_eq!(said[0], "drained two what-if-0-0");
    assert!(
        said[1].starts_with("drained one 0/2 nodes are available: 2 Insufficient cpu."),
        "{said:?}"
    );
    assert_eq!(said.len(), 2, "the daemon's pod stays with its node");
}

#[tokio::test]
async fn new_pods_are_tried_by_the_configuration_of_the_question() {
    let new = |scheduler: &str| {
        let pod = make_pod("new")
            .req(&[("cpu", "1")])
            .scheduler_name(scheduler);
        Pod::clone(&pod.build())
    };
    let mut cluster = Cluster::new();
    let question = Question {
        pods: vec![new("other")],
        without_waiting: true,
        ..Question::default()
    };
    let said = cluster.ask(question).expect("a good question");
    assert_eq!(
        said,
        ["new new no profile is named \"other\": another scheduler is meant"]
    );
    let config = json!({"apiVersion": config::API_VERSION, "kind": config::KIND, "profiles": [{"schedulerName": "other"}]});
    let config = config_of(&config).expect("valid");
    assert_eq!(config.profiles[0].scheduler_name.as_deref(), Some("other"));
    let reaching_out = json!({"apiVersion": config::API_VERSION, "kind": config::KIND,
        "extenders": [{"urlPrefix": "https://192.0.2.1", "filterVerb": "f", "tlsConfig": {"certFile": "/etc/x", "keyFile": "/etc/y"}}]});
    let error = config_of(&reaching_out).expect_err("refused").to_string();
    assert!(error.contains("extenders: Forbidden"), "{error}");
    let reading = json!({"apiVersion": config::API_VERSION, "kind": config::KIND, "profiles": [
        {"pluginConfig": [{"name": "Greenest", "args": {"kind": "WasmPluginArgs", "path": "/etc/shadow"}}]}]});
    let error = config_of(&reading).expect_err("refused").to_string();
    assert!(error.contains("kind: Forbidden: WasmPluginArgs"), "{error}");
    let wrong = json!({"apiVersion": config::API_VERSION, "kind": config::KIND, "parallelism": 0});
    let error = config_of(&wrong).expect_err("invalid").to_string();
    assert!(
        error.starts_with("config: parallelism: Invalid value: 0"),
        "{error}"
    );
    let gated = Question {
        pods: vec![Pod::clone(&make_pod("g").scheduling_gate("later").build())],
        without_waiting: true,
        ..Question::default()
    };
    let said = cluster.ask(gated).expect("a good question");
    assert_eq!(
        said,
        ["new g SchedulingGates: waiting for scheduling gates: [later]"]
    );
}

#[tokio::test]
async fn questions_that_make_no_sense_are_named() {
    let refused = |question: Question, want: &str| {
        let error = Cluster::new().ask(question).expect_err(want);
        assert_eq!(error.to_string(), want);
    };
    let question = |add_nodes, drain: &[&str]| Question {
        add_nodes,
        drain: drain.iter().map(ToString::to_string).collect(),
        ..Question::default()
    };
    refused(
        question(vec![], &["b", "c"]),
        "drain[1]: node \"c\" not found",
    );
    refused(
        question(add(1, "m9.huge"), &[]),
        "addNodes[0].like: no node has the name or the node.kubernetes.io/instance-type \"m9.huge\"; give the node itself",
    );
    refused(
        question(add(1, ""), &[]),
        "addNodes[0]: exactly one of like and node is needed",
    );
    let count = "addNodes[0].count: Invalid value: 0: must be between 1 and 100000 in all";
    refused(question(add(0, "a"), &[]), count);
}
