//! A whole kubelet on an API server and a runtime in memory, in virtual time.

use std::time::Duration;

use ::runtime::fake::Behaviour;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use serde_json::json;

use super::world::{NODE, World, node_condition};
use crate::pod;

fn config_map(name: &str, value: &str) -> ConfigMap {
    let object =
        json!({"metadata": {"name": name, "namespace": "default"}, "data": {"key": value}});
    serde_json::from_value(object).unwrap()
}

fn waiting(pod: &Pod) -> Option<&str> {
    let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    status.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|s| s.container_statuses.as_ref());
    statuses
        .and_then(|s| s.first())
        .map_or(0, |s| s.restart_count)
}

#[tokio::test(start_paused = true)]
async fn a_node_registers_and_beats() {
    let world = World::start(|_| {}).await;
    let node = world
        .until_node(|n| node_condition(n, "Ready") == Some("True"))
        .await;
    let status = node.status.unwrap();
    assert_eq!(status.capacity.unwrap()["cpu"].0, "4");
    assert_eq!(status.addresses.unwrap()[0].address, "192.0.2.1");
    let renewed = || {
        let lease = world.api.get::<Lease>("kube-node-lease", NODE)?;
        lease.spec?.renew_time.map(|at| at.0)
    };
    assert!(world.until(|| renewed().is_some()).await);
    let first = renewed();
    world.clock.sleep(Duration::from_secs(60)).await;
    assert!(renewed() > first, "{first:?}");
    // Its runtime is ill: everybody hears of it.
    let (reason, message) = ("Broken".to_owned(), "as it may be".to_owned());
    world.runtime.set_ready(Some((reason, message)), None);
    world
        .until_node(|n| node_condition(n, "Ready") == Some("False"))
        .await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_runs_is_told_of_and_goes() {
    let world = World::start(|_| {}).await;
    let made = world.create_pod("web", json!({}));
    let running = world.until_phase("web", "Running").await;
    let uid = pod::uid(&made).to_owned();
    let status = running.status.unwrap();
    assert!(status.container_statuses.unwrap()[0].ready);
    assert!(status.pod_ip.is_some());
    for reason in ["Pulling", "Pulled", "Created", "Started"] {
        world.until_event("web", reason).await;
    }
    world.api.delete::<Pod>("default", "web");
    world.until_gone("web").await;
    assert_eq!(world.runtime.find_container(&uid, "c"), None);
    let left = std::fs::read_dir(world.kubelet.paths.pods())
        .unwrap()
        .count();
    assert!(
        world
            .until(|| !world.kubelet.paths.pod(&uid).exists())
            .await,
        "{left}"
    );
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_ends_again_and_again_waits_longer_each_time() {
    let world = World::start(|_| {}).await;
    world.runtime.set_behaviour(|_, _| Behaviour::Exit(1));
    world.create_pod("loop", json!({}));
    let looping = world
        .until_pod("loop", |p| waiting(p) == Some("CrashLoopBackOff"))
        .await;
    let begin = world.clock.monotonic();
    world
        .until_pod("loop", |p| restarts(p) >= restarts(&looping) + 3)
        .await;
    let took = world.clock.monotonic() - begin;
    // 10, 20 and 40 seconds, or 20, 40 and 80.
    assert!(took > Duration::from_secs(60), "{took:?}");
    world.until_event("loop", "BackOff").await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_what_its_environment_is_made_of() {
    let world = World::start(|_| {}).await;
    let variable =
        json!({"name": "A", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "key"}}});
    let containers = json!([{"name": "c", "image": "image", "env": [variable]}]);
    let made = world.create_pod("web", json!({"spec": {"containers": containers}}));
    world
        .until_pod("web", |p| waiting(p) == Some("CreateContainerConfigError"))
        .await;
    let watches = world.api.calls().into_iter().filter(|call| {
        call.plural == "configmaps" && call.parameter("fieldSelector") == "metadata.name=settings"
    });
    assert!(watches.count() > 0, "each object is watched alone");
    let begin = world.clock.monotonic();
    world.api.create(&config_map("settings", "value"));
    world.until_phase("web", "Running").await;
    // By the watch, not by the next round.
    let took = world.clock.monotonic() - begin;
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(world.runtime.find_container(pod::uid(&made), "c").is_some());
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_same_world_has_the_same_log_twice() {
    async fn log() -> Vec<String> {
        let world = World::start(|_| {}).await;
        for name in ["a", "b"] {
            world.create_pod(name, json!({}));
            world.until_phase(name, "Running").await;
            world.api.delete::<Pod>("default", name);
            world.until_gone(name).await;
        }
        let calls = world.runtime.take_calls();
        world.end().await;
        let is_change = |call: &String| {
            ["run_pod", "create_c", "start_c", "stop_", "remove_"]
                .iter()
                .any(|verb| call.starts_with(verb))
        };
        calls.into_iter().filter(is_change).collect()
    }
    let first = log().await;
    assert!(first.len() >= 8, "{first:?}");
    assert_eq!(log().await, first);
}
