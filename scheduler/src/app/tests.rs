//! A whole scheduler on an API server in memory, in one thread, by virtual time.

use std::time::Duration;

use component_base::clock::Clock;
use component_base::leader_election::Leadership;
use component_base::shutdown::Shutdown;
use component_base::testing::{ApiServer, Refusal, Verb};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio::task::JoinHandle;

use super::{Decisions, Seams, assemble};
use crate::options::{Options, flag_set};

struct World {
    api: ApiServer,
    clock: Clock,
    shutdown: Shutdown,
    running: JoinHandle<anyhow::Result<()>>,
}

impl World {
    fn start() -> Self {
        let clock = Clock::of_runtime(Timestamp::from_second(1_800_000_000).expect("in range"));
        let (api, shutdown) = (ApiServer::new(clock.clone()), Shutdown::new());
        let flags = flag_set()
            .parse(["--placement-seed=1".to_owned()])
            .expect("flags");
        let options = Options::from_flags(&flags).expect("options");
        let component = assemble(Seams {
            options: &options,
            client: api.client(),
            events: api.client(),
            leadership: Leadership::always(),
            clock: clock.clone(),
            shutdown: shutdown.clone(),
            decisions: Decisions::InATask,
        });
        let component = component.expect("assembled");
        Self {
            api,
            clock,
            running: tokio::spawn(component.run(shutdown.clone())),
            shutdown,
        }
    }

    fn add_node(&self, name: &str, pods: &str) {
        let resources = json!({"cpu": "4", "memory": "8Gi", "pods": pods});
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": name},
            "status": {"capacity": resources, "allocatable": resources},
        }))
        .expect("a node");
        self.api.create(&node);
    }

    fn add_pod(&self, name: &str) {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"containers": [{"name": "c", "image": "image"}]},
        }))
        .expect("a pod");
        self.api.create(&pod);
    }

    fn node_of(&self, pod: &str) -> Option<String> {
        self.api.get::<Pod>("default", pod)?.spec?.node_name
    }

    /// A moment in which all that can happen does.
    async fn settle(&self, time: Duration) {
        self.clock.sleep(time).await;
    }

    async fn end(self) {
        self.shutdown.trigger();
        self.running.await.expect("no panic").expect("a good end");
    }
}

#[tokio::test(start_paused = true)]
async fn pods_are_bound_and_told_of_by_the_clock_of_the_world() {
    let world = World::start();
    world.add_pod("early");
    world.settle(Duration::from_secs(1)).await;
    let waiting: Pod = world.api.get("default", "early").expect("there");
    let condition = waiting.status.and_then(|s| s.conditions).expect("told")[0].clone();
    assert_eq!(condition.reason.as_deref(), Some("Unschedulable"));
    let at = condition.last_transition_time.expect("stamped").0;
    assert_eq!(at.as_second(), 1_800_000_000, "not the machine's time");

    world.add_node("a", "2");
    world.add_pod("late");
    world.settle(Duration::from_secs(3)).await;
    for pod in ["early", "late"] {
        assert_eq!(world.node_of(pod).as_deref(), Some("a"), "{pod}");
    }
    world.add_pod("third");
    world.settle(Duration::from_secs(60)).await;
    assert_eq!(world.node_of("third"), None, "the node is full");
    world.add_node("b", "1");
    world.settle(Duration::from_secs(15)).await;
    assert_eq!(world.node_of("third").as_deref(), Some("b"));
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_binding_that_fails_is_tried_again() {
    let world = World::start();
    world.add_node("a", "10");
    let refusal = Refusal::new(500, "InternalError", "etcd is away");
    world.api.fail(
        |call| call.verb == Verb::Create && call.subresource == "binding",
        refusal,
    );
    world.add_pod("p");
    world.settle(Duration::from_secs(30)).await;
    assert_eq!(world.node_of("p"), None);
    world.api.heal();
    world.settle(Duration::from_secs(30)).await;
    assert_eq!(world.node_of("p").as_deref(), Some("a"));
    world.end().await;
}
