//! A whole scheduler on an API server in memory, in one thread, by virtual time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use component_base::leader_election::Leadership;
use component_base::metrics::Registry;
use component_base::testing::{Refusal, Verb, World};
use framework::testing::{make_node, make_pod};
use framework::{CycleState, NodeInfo, Plugin, PodInfo, Registry as Plugins, ScorePlugin, Status};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use serde_json::json;
use tokio::task::JoinHandle;

use super::testing::TestCluster;
use super::{Decisions, Seams, assemble};
use crate::options::{Options, flag_set};

/// A scheduler, running.
struct Scheduler {
    world: World,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Scheduler {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(more: &[&str]) -> Self {
        let world = World::begin();
        let flags = ["--placement-seed=1"].iter().chain(more);
        let flags = flag_set()
            .parse(flags.map(|flag| (*flag).to_owned()))
            .expect("flags");
        let options = Options::from_flags(&flags).expect("options");
        let component = assemble(Seams {
            options: &options,
            plugins: &Plugins::new(),
            client: world.api.client(),
            events: world.api.client(),
            leadership: Leadership::always(),
            clock: world.clock.clone(),
            shutdown: world.shutdown.clone(),
            metrics: Registry::new(),
            decisions: Decisions::InATask,
        });
        let component = component.expect("assembled");
        let running = tokio::spawn(component.run(world.shutdown.clone()));
        Self { world, running }
    }

    fn add_node(&self, name: &str, pods: &str) {
        let resources = json!({"cpu": "4", "memory": "8Gi", "pods": pods});
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": name},
            "status": {"capacity": resources, "allocatable": resources},
        }))
        .expect("a node");
        self.world.api.create(&node);
    }

    fn add_pod(&self, name: &str) {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"containers": [{"name": "c", "image": "image"}]},
        }))
        .expect("a pod");
        self.world.api.create(&pod);
    }

    fn node_of(&self, pod: &str) -> Option<String> {
        self.world.api.get::<Pod>("default", pod)?.spec?.node_name
    }

    async fn settle(&self, seconds: u64) {
        self.world.settle(Duration::from_secs(seconds)).await;
    }

    async fn end(self) {
        self.world.end(self.running).await;
    }
}

#[tokio::test(start_paused = true)]
async fn pods_are_bound_and_told_of_by_the_clock_of_the_world() {
    let scheduler = Scheduler::start();
    scheduler.add_pod("early");
    scheduler.settle(1).await;
    let waiting: Pod = scheduler.world.api.get("default", "early").expect("there");
    let condition = waiting.status.and_then(|s| s.conditions).expect("told")[0].clone();
    assert_eq!(condition.reason.as_deref(), Some("Unschedulable"));
    let at = condition.last_transition_time.expect("stamped").0;
    assert_eq!(at.as_second(), 1_800_000_000, "not the machine's time");

    scheduler.add_node("a", "2");
    scheduler.add_pod("late");
    scheduler.settle(3).await;
    for pod in ["early", "late"] {
        assert_eq!(scheduler.node_of(pod).as_deref(), Some("a"), "{pod}");
    }
    scheduler.add_pod("third");
    scheduler.settle(60).await;
    assert_eq!(scheduler.node_of("third"), None, "the node is full");
    scheduler.add_node("b", "1");
    scheduler.settle(15).await;
    assert_eq!(scheduler.node_of("third").as_deref(), Some("b"));
    scheduler.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_binding_that_fails_is_tried_again() {
    let scheduler = Scheduler::start();
    scheduler.add_node("a", "10");
    let refusal = Refusal::new(500, "InternalError", "etcd is away");
    scheduler.world.api.fail(
        |call| call.verb == Verb::Create && call.subresource == "binding",
        refusal,
    );
    scheduler.add_pod("p");
    scheduler.settle(30).await;
    assert_eq!(scheduler.node_of("p"), None);
    scheduler.world.api.heal();
    scheduler.settle(30).await;
    assert_eq!(scheduler.node_of("p").as_deref(), Some("a"));
    scheduler.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_gang_goes_to_one_domain_of_its_topology() {
    let gates = "--feature-gates=GenericWorkload=true,TopologyAwareWorkloadScheduling=true";
    let scheduler = Scheduler::start_with(&[gates]);
    for (name, rack, pods) in [("a", "r1", "1"), ("b", "r2", "1"), ("c", "r2", "1")] {
        let resources = json!({"cpu": "4", "memory": "8Gi", "pods": pods});
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"example.com/rack": rack}},
            "status": {"capacity": resources, "allocatable": resources},
        }))
        .expect("a node");
        scheduler.world.api.create(&node);
    }
    let group: PodGroup = serde_json::from_value(json!({
        "metadata": {"name": "g", "namespace": "default"},
        "spec": {
            "schedulingPolicy": {"gang": {"minCount": 2}},
            "schedulingConstraints": {"topology": [{"key": "example.com/rack"}]},
        },
    }))
    .expect("a group");
    scheduler.world.api.create(&group);
    for name in ["p0", "p1"] {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"containers": [{"name": "c", "image": "image"}], "schedulingGroup": {"podGroupName": "g"}},
        }))
        .expect("a pod");
        scheduler.world.api.create(&pod);
    }
    scheduler.settle(10).await;
    let nodes = ["p0", "p1"].map(|pod| scheduler.node_of(pod));
    let mut nodes = nodes.map(|node| node.expect("bound"));
    nodes.sort();
    assert_eq!(nodes, ["b", "c"]);
    let group: PodGroup = scheduler.world.api.get("default", "g").expect("there");
    let condition = group.status.and_then(|s| s.conditions).expect("told")[0].clone();
    let fate = (&*condition.type_, &*condition.status);
    assert_eq!(fate, ("PodGroupInitiallyScheduled", "True"));
    scheduler.end().await;
}

/// Prefers nodes by their label `rank`, for the tests of plugins that an author brings.
struct Ranked {
    weight: i64,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct RankedArgs {
    of_rank: BTreeMap<String, i64>,
}

impl Plugin for Ranked {
    fn name(&self) -> &'static str {
        "Ranked"
    }
    fn as_score(&self) -> Option<&dyn ScorePlugin> {
        Some(self)
    }
}

impl ScorePlugin for Ranked {
    fn score(&self, _: &CycleState, _: &Arc<PodInfo>, node: &NodeInfo) -> Result<i64, Status> {
        let first = node
            .labels()
            .get("rank")
            .is_some_and(|rank| rank == "first");
        Ok(if first { self.weight } else { 0 })
    }
}

fn ranked() -> Plugins {
    Plugins::new().with_plugin("Ranked", |args, _| {
        let args: RankedArgs = framework::args::decode("Ranked", args)?;
        let weight = args.of_rank.get("first").copied().unwrap_or(0);
        Ok(Arc::new(Ranked { weight }))
    })
}

fn ranked_with(args: serde_json::Value) -> serde_json::Value {
    json!({"profiles": [{
        "plugins": {"score": {"enabled": [{"name": "Ranked", "weight": 100}]}},
        "pluginConfig": [{"name": "Ranked", "args": args}],
    }]})
}

#[tokio::test(start_paused = true)]
async fn a_plugin_that_is_brought_decides_with_those_in_tree() {
    for (weight, node) in [(100, "z"), (0, "a")] {
        // An author's arguments may call themselves what they like.
        let args =
            json!({"apiVersion": "example.com/v3", "kind": "Ranks", "ofRank": {"first": weight}});
        let cluster = TestCluster::start(&ranked(), &ranked_with(args)).expect("starts");
        let of = |name: &str| make_node(name).capacity(&[("cpu", "4"), ("pods", "9")]);
        // Without a say of the plugin the emptier node is better.
        let mut full = make_pod("busy").req(&[("cpu", "2")]).node("z").build();
        Arc::make_mut(&mut full).metadata.uid = None;
        cluster.create(&*of("a").build());
        cluster.create(&*of("z").label("rank", "first").build());
        cluster.create(&*full);
        cluster.settle(Duration::from_secs(1)).await;
        cluster.create(&*make_pod("p").req(&[("cpu", "1")]).build());
        cluster.settle(Duration::from_secs(1)).await;
        assert_eq!(
            cluster.node_of("default", "p").as_deref(),
            Some(node),
            "{weight}"
        );
        cluster.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_brought_is_refused_by_name() {
    let refused = |plugins: &Plugins, config: &serde_json::Value| {
        let error = TestCluster::start(plugins, config).err();
        format!("{:#}", error.expect("refused"))
    };
    let factory = ranked().lines()[0].factory;
    for (taken, name) in [
        (
            Plugins::new().with_plugin("NodeAffinity", factory),
            "NodeAffinity",
        ),
        (
            Plugins::new().with_plugin("Coscheduling", factory),
            "Coscheduling",
        ),
        (ranked().with_plugin("Ranked", factory), "Ranked"),
    ] {
        assert_eq!(
            refused(&taken, &json!({})),
            format!("a plugin named {name:?} already exists")
        );
    }
    let wrong = ranked_with(json!({"ofRank": {"first": "high"}}));
    let error = refused(&ranked(), &wrong);
    for words in [
        "plugin \"Ranked\"",
        "ofRank.first: invalid type: string \"high\"",
    ] {
        assert!(error.contains(words), "{error}");
    }
    let error = refused(&ranked(), &ranked_with(json!({"ofRanks": {}})));
    for words in ["plugin \"Ranked\"", "unknown field `ofRanks`"] {
        assert!(error.contains(words), "{error}");
    }
    let error = refused(&Plugins::new(), &ranked_with(json!({})));
    assert!(
        error.contains("plugin \"Ranked\" does not exist"),
        "{error}"
    );
}
