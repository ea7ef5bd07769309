//! The whole kubelet on a machine that goes down, in virtual time.

use std::time::Duration;

use ::runtime::fake::Behaviour;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use systemd::testing::FakeLogind;

use super::*;
use crate::app::world::{NODE, World, node_condition};
use crate::configuration::{KubeletConfiguration, ShutdownGracePeriodByPodPriority};

const HIGH: i32 = 1000;
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";

/// Ten seconds for most, 20 for those that matter.
fn two_groups(config: &mut KubeletConfiguration) {
    let period = |(priority, seconds)| ShutdownGracePeriodByPodPriority {
        priority,
        shutdown_grace_period_seconds: seconds,
    };
    config.shutdown_grace_period_by_pod_priority =
        [(HIGH, 20), (0, 10)].into_iter().map(period).collect();
}

fn of_priority(priority: i32) -> Value {
    json!({"spec": {"priority": priority, "terminationGracePeriodSeconds": 60}})
}

async fn running(world: &World, name: &str, priority: i32) -> Pod {
    world.create_pod(name, of_priority(priority));
    world.until_phase(name, "Running").await
}

fn is_ready(node: &Node) -> bool {
    node_condition(node, "Ready") == Some("True")
}

fn phase(world: &World, name: &str) -> String {
    world
        .pod(name)
        .map(|p| pod::phase(&p).to_owned())
        .unwrap_or_default()
}

fn reason_and_message(pod: &Pod) -> (Option<&str>, Option<&str>) {
    let status = pod.status.as_ref();
    (
        status.and_then(|s| s.reason.as_deref()),
        status.and_then(|s| s.message.as_deref()),
    )
}

async fn until_locks(world: &World, count: usize) {
    let held = world.until(|| world.logind.locks() == count).await;
    assert!(held, "{} locks", world.logind.locks());
}

/// A node with a lock, and its two pods.
async fn world() -> World {
    let world = World::start(two_groups).await;
    until_locks(&world, 1).await;
    world.until_node(is_ready).await;
    running(&world, "low", 0).await;
    running(&world, "high", HIGH).await;
    world
}

#[tokio::test(start_paused = true)]
async fn pods_end_by_their_priority_and_the_machine_waits_for_them() {
    let world = world().await;
    assert_eq!(world.logind.delay(), Duration::from_secs(30));
    // It heeds no signal: it has its group's ten seconds, not the sixty of its spec.
    world
        .runtime
        .set_behaviour(|_, c| match c.metadata.name.as_str() {
            "stubborn" => Behaviour::IgnoreStop,
            _ => Behaviour::Run,
        });
    let mut stubborn = of_priority(5);
    stubborn["spec"]["containers"] = json!([{"name": "stubborn", "image": "image"}]);
    world.create_pod("stubborn", stubborn);
    world.until_phase("stubborn", "Running").await;

    world.logind.prepare_for_shutdown(true);
    let begin = world.clock.monotonic();
    let node = world.until_node(|n| !is_ready(n)).await;
    let conditions = node.status.unwrap().conditions.unwrap();
    let ready = conditions.iter().find(|c| c.type_ == "Ready").unwrap();
    assert_eq!(ready.message.as_deref(), Some("node is shutting down"));
    world.until_phase("low", "Failed").await;
    assert_eq!(phase(&world, "stubborn"), "Running");
    assert_eq!(phase(&world, "high"), "Running");
    assert_eq!(world.logind.locks(), 1);

    let ended = world.until_phase("high", "Failed").await;
    let took = world.clock.monotonic() - begin;
    assert!(took >= Duration::from_secs(10), "{took:?}");
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert_eq!(
        reason_and_message(&ended),
        (Some("Terminated"), Some(MESSAGE))
    );
    let mut conditions = ended
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten());
    let disruption = conditions.find(|c| c.type_ == "DisruptionTarget").unwrap();
    assert_eq!(disruption.status, "True");
    assert_eq!(disruption.reason.as_deref(), Some("TerminationByKubelet"));
    assert_eq!(disruption.message.as_deref(), Some(MESSAGE));
    until_locks(&world, 0).await;
    let told = world.until_event(NODE, "Shutdown").await;
    assert_eq!(told, "Shutdown manager detected shutdown event");
    let state = State::load(&world.kubelet.paths.root().join(FILE)).unwrap();
    let took = state.end.unwrap().duration_since(state.start.unwrap());
    assert!((10..15).contains(&took.as_secs()), "{took:?}");
    // Whoever comes now comes too late.
    world.create_pod("late", json!({}));
    let late = world.until_phase("late", "Failed").await;
    let message = "Pod was rejected: Pod was rejected as the node is shutting down.";
    assert_eq!(
        reason_and_message(&late),
        (Some("NodeShutdown"), Some(message))
    );
    world.end().await;
}

/// The driver that unmounts them may be of the next group.
#[tokio::test(start_paused = true)]
async fn the_next_group_waits_for_the_volumes_of_the_last() {
    let world = world().await;
    let uid = pod::uid(&world.pod("low").unwrap()).to_owned();
    let volumes = world.kubelet.paths.pod(&uid).join("volumes");
    let in_the_way = volumes.join("no-plugin");
    std::fs::write(&in_the_way, "").unwrap();
    world.logind.prepare_for_shutdown(true);
    let begin = world.clock.monotonic();
    world.until_phase("low", "Failed").await;
    world.clock.sleep(Duration::from_secs(3)).await;
    assert_eq!(phase(&world, "high"), "Running");
    std::fs::remove_file(&in_the_way).unwrap();
    world.until_phase("high", "Failed").await;
    let took = world.clock.monotonic() - begin;
    assert!(took < Duration::from_secs(9), "{took:?}");
    until_locks(&world, 0).await;
    world.end().await;
}

/// Nor for ever.
#[tokio::test(start_paused = true)]
async fn a_group_whose_time_is_over_holds_up_nobody() {
    let world = world().await;
    let uid = pod::uid(&world.pod("low").unwrap()).to_owned();
    let volumes = world.kubelet.paths.pod(&uid).join("volumes");
    std::fs::write(volumes.join("no-plugin"), "").unwrap();
    world.logind.prepare_for_shutdown(true);
    let begin = world.clock.monotonic();
    world.until_phase("high", "Failed").await;
    let took = world.clock.monotonic() - begin;
    assert!(
        (Duration::from_secs(10)..Duration::from_secs(12)).contains(&took),
        "{took:?}"
    );
    until_locks(&world, 0).await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_that_is_cancelled_spares_the_rest() {
    let world = world().await;
    let uid = pod::uid(&world.pod("low").unwrap()).to_owned();
    let volumes = world.kubelet.paths.pod(&uid).join("volumes");
    std::fs::write(volumes.join("no-plugin"), "").unwrap();
    world.logind.prepare_for_shutdown(true);
    world.until_phase("low", "Failed").await;
    world.logind.prepare_for_shutdown(false);
    world.until_node(is_ready).await;
    until_locks(&world, 1).await;
    // Longer than the groups' time.
    world.clock.sleep(Duration::from_secs(60)).await;
    assert_eq!(phase(&world, "high"), "Running");
    running(&world, "new", 0).await;
    let told = world.events(NODE);
    let cancelled = "Shutdown manager detected shutdown cancellation";
    let reason = "Shutdown".to_owned();
    assert!(told.contains(&(reason, cancelled.to_owned())), "{told:?}");
    // The next one is as the first.
    world.logind.prepare_for_shutdown(true);
    world.until_phase("high", "Failed").await;
    until_locks(&world, 0).await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_logind_that_comes_back_is_followed() {
    let world = world().await;
    world.logind.stop();
    world.clock.sleep(Duration::from_secs(100)).await;
    world.logind.start();
    until_locks(&world, 1).await;
    assert_eq!(world.logind.delay(), Duration::from_secs(30));
    assert_eq!(world.logind.connections(), 1);
    // The bus goes, and the kubelet hears nothing of what is said meanwhile.
    world.logind.cut();
    world.logind.prepare_in_silence(true);
    world.until_phase("high", "Failed").await;
    until_locks(&world, 0).await;
    // Nor of this.
    world.logind.cut();
    world.logind.prepare_in_silence(false);
    world.until_node(is_ready).await;
    until_locks(&world, 1).await;
    world.end().await;
}

/// The machine waits although nobody is there to say so.
#[tokio::test(start_paused = true)]
async fn pods_end_in_order_when_the_bus_is_cut_meanwhile() {
    let world = world().await;
    let uid = pod::uid(&world.pod("low").unwrap()).to_owned();
    let volumes = world.kubelet.paths.pod(&uid).join("volumes");
    std::fs::write(volumes.join("no-plugin"), "").unwrap();
    world.logind.prepare_for_shutdown(true);
    world.until_phase("low", "Failed").await;
    world.logind.stop();
    world.logind.cut();
    world.clock.sleep(Duration::from_secs(5)).await;
    assert_eq!(phase(&world, "high"), "Running");
    assert_eq!(world.logind.locks(), 1);
    world.until_phase("high", "Failed").await;
    until_locks(&world, 0).await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_logind_that_waits_no_longer_gives_no_lock_until_it_does() {
    let logind = FakeLogind::default();
    logind.set_heeds_conf(false);
    let world = World::start_on(logind, two_groups).await;
    let tried = world.until(|| world.logind.connections() >= 3).await;
    assert!(tried);
    assert_eq!(world.logind.locks(), 0);
    world.logind.set_heeds_conf(true);
    until_locks(&world, 1).await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn without_a_period_logind_is_left_alone() {
    let world = World::start(|_| {}).await;
    running(&world, "low", 0).await;
    world.logind.prepare_for_shutdown(true);
    world.clock.sleep(Duration::from_secs(60)).await;
    assert_eq!(world.logind.connections(), 0);
    assert_eq!(phase(&world, "low"), "Running");
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn critical_pods_go_last_by_the_two_periods() {
    let configure = |config: &mut KubeletConfiguration| {
        config.shutdown_grace_period = serde_json::from_value(json!("12s")).unwrap();
        config.shutdown_grace_period_critical_pods = serde_json::from_value(json!("4s")).unwrap();
    };
    let world = World::start(configure).await;
    world.runtime.set_behaviour(|_, _| Behaviour::IgnoreStop);
    running(&world, "low", HIGH).await;
    running(&world, "critical", 2_000_000_000).await;
    world.logind.prepare_for_shutdown(true);
    let begin = world.clock.monotonic();
    let took = || (world.clock.monotonic() - begin).as_secs();
    world.until_phase("low", "Failed").await;
    assert_eq!(took(), 8);
    world.until_phase("critical", "Failed").await;
    assert!((12..=13).contains(&took()), "{}", took());
    until_locks(&world, 0).await;
    world.end().await;
}
