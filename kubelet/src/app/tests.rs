//! A whole kubelet on an API server and a runtime in memory, in virtual time.

mod claims;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::devices::testing::FakePlugin;
use ::devices::v1beta1::ContainerAllocateResponse;
use ::devices::{CallError, Plugin, PluginOptions, Reports};
use ::runtime::fake::Behaviour;
use async_trait::async_trait;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::json;
use tokio::sync::Semaphore;

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

#[tokio::test(start_paused = true)]
async fn nothing_is_admitted_before_it_is_known_what_runs() {
    let world = World::start(|_| {}).await;
    world.runtime.break_verb("list_containers");
    let resources = json!({"requests": {"cpu": "5"}});
    let container = json!({"name": "c", "image": "image", "resources": resources});
    world.create_pod("large", json!({"spec": {"containers": [container]}}));
    world.clock.sleep(Duration::from_secs(60)).await;
    assert_ne!(pod::phase(&world.pod("large").unwrap()), "Failed");
    world.runtime.mend("list_containers");
    world.until_phase("large", "Failed").await;
    world.end().await;
}

const DEVICE: &str = "example.com/device";

fn wants_devices(count: &str) -> serde_json::Value {
    let resources = json!({"limits": {DEVICE: count}, "requests": {DEVICE: count}});
    json!({"spec": {"containers": [{"name": "c", "image": "image", "resources": resources}]}})
}

fn on_node(node: &Node) -> (Option<&str>, Option<&str>) {
    let status = node.status.as_ref();
    let capacity = status.and_then(|s| s.capacity.as_ref());
    let allocatable = status.and_then(|s| s.allocatable.as_ref());
    (
        capacity.and_then(|c| c.get(DEVICE)).map(|q| q.0.as_str()),
        allocatable
            .and_then(|c| c.get(DEVICE))
            .map(|q| q.0.as_str()),
    )
}

fn device_health(pod: &Pod) -> Option<&str> {
    let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    let resource = status.allocated_resources_status.as_ref()?.first()?;
    let device = resource.resources.as_ref()?.first()?;
    device.health.as_deref()
}

#[tokio::test(start_paused = true)]
async fn pods_get_the_devices_of_a_plugin_and_no_more_than_there_are() {
    let world = World::start(|_| {}).await;
    let plugin = FakePlugin::new("a", PluginOptions::default());
    let made = Arc::new(Mutex::new(Vec::new()));
    let seen = made.clone();
    world.runtime.set_behaviour(move |_, config| {
        let mut envs = config.envs.iter();
        let devices = envs.find(|(name, _)| name == "DEVICES");
        let devices = devices.map(|(_, value)| value.clone());
        seen.lock().unwrap().push(devices);
        Behaviour::Run
    });
    let fake = Path::new("fake.sock");
    let manager = &world.kubelet.devices;
    manager
        .plugin_came(DEVICE, fake, plugin.clone())
        .await
        .unwrap();
    world
        .until_node(|n| on_node(n) == (Some("1"), Some("1")))
        .await;

    world.create_pod("first", wants_devices("1"));
    let first = world.until_phase("first", "Running").await;
    assert_eq!(device_health(&first), Some("Healthy"));
    assert_eq!(*made.lock().unwrap(), [Some("a".to_owned())]);
    world.create_pod("second", wants_devices("1"));
    let second = world.until_phase("second", "Failed").await.status.unwrap();
    assert_eq!(second.reason.as_deref(), Some("UnexpectedAdmissionError"));
    assert_eq!(
        second.message.as_deref(),
        Some(
            "Pod was rejected: Allocate failed due to requested number of devices unavailable for example.com/device. \
             Requested: 1, Available: 0, which is unexpected"
        )
    );

    // It falls sick: the node and the pod say so.
    plugin.set("!a");
    world
        .until_node(|n| on_node(n) == (Some("1"), Some("0")))
        .await;
    world
        .until_pod("first", |p| device_health(p) == Some("Unhealthy"))
        .await;
    plugin.set("a");
    world
        .until_node(|n| on_node(n) == (Some("1"), Some("1")))
        .await;
    // It is free once the first pod is through.
    world.api.delete::<Pod>("default", "first");
    world.until_gone("first").await;
    world.create_pod("third", wants_devices("1"));
    world.until_phase("third", "Running").await;
    assert_eq!(plugin.take_calls(), ["Allocate a", "Allocate a"]);

    // Its plugin goes for good.
    plugin.end();
    world
        .until_node(|n| on_node(n) == (Some("1"), Some("0")))
        .await;
    let mut node = world
        .until_node(|n| on_node(n) == (Some("0"), Some("0")))
        .await;
    // That is said once; then it is an administrator's.
    let capacity = node.status.as_mut().and_then(|s| s.capacity.as_mut());
    let seven = Quantity("7".to_owned());
    capacity.unwrap().insert(DEVICE.to_owned(), seven);
    world.api.update(&node);
    world
        .until_node(|n| on_node(n) == (Some("7"), Some("7")))
        .await;
    world.end().await;
}

/// A plugin that does not answer holds up the pods that want its devices, and nobody else.
#[tokio::test(start_paused = true)]
async fn a_plugin_that_hangs_holds_up_no_other_pod() {
    let world = World::start(|_| {}).await;
    let manager = &world.kubelet.devices;
    let (plugin, _) = Hanging::new("a");
    manager
        .plugin_came(DEVICE, Path::new("hangs"), plugin)
        .await
        .unwrap();
    world
        .until_node(|n| on_node(n) == (Some("1"), Some("1")))
        .await;
    world.create_pod("waits", wants_devices("1"));
    world.create_pod("other", json!({}));
    world.until_phase("other", "Running").await;
    let waits = world.pod("waits").unwrap();
    assert!(matches!(pod::phase(&waits), "" | "Pending"));
    // It goes before it began.
    world.api.delete::<Pod>("default", "waits");
    world.until_gone("waits").await;
    world.end().await;
}

/// A pod that is resized while its devices are asked for is decided on as it starts.
#[tokio::test(start_paused = true)]
async fn a_pod_that_outgrows_the_node_while_it_waits_for_devices_is_rejected() {
    let world = World::start(|_| {}).await;
    let manager = &world.kubelet.devices;
    let (plugin, answer) = Hanging::new("a b");
    manager
        .plugin_came(DEVICE, Path::new("hangs"), plugin.clone())
        .await
        .unwrap();
    world
        .until_node(|n| on_node(n) == (Some("2"), Some("2")))
        .await;
    let mut grows = world.create_pod("grows", wants_devices("1"));
    let same = world.create_pod("same", wants_devices("1"));
    let known = |pod: &Pod| {
        let known = world.kubelet.pods.get_pod_by_uid(pod::uid(pod));
        known.is_some_and(|k| k.spec == pod.spec)
    };
    assert!(world.until(|| known(&grows) && known(&same)).await);
    let container = &mut grows.spec.as_mut().unwrap().containers[0];
    let requests = container.resources.as_mut().unwrap().requests.as_mut();
    requests
        .unwrap()
        .insert("cpu".to_owned(), Quantity("5".to_owned()));
    let grows = world.api.update(&grows);
    assert!(world.until(|| known(&grows)).await);
    answer.add_permits(2);
    let rejected = world.until_phase("grows", "Failed").await;
    let reason = rejected.status.as_ref().and_then(|s| s.reason.as_deref());
    assert_eq!(reason, Some("OutOfcpu"));
    world.until_phase("same", "Running").await;
    world.end().await;
}

/// Gives out devices when it may.
struct Hanging(Arc<FakePlugin>, Arc<Semaphore>);

impl Hanging {
    fn new(ids: &str) -> (Arc<Self>, Arc<Semaphore>) {
        let may = Arc::new(Semaphore::new(0));
        let plugin = FakePlugin::new(ids, PluginOptions::default());
        (Arc::new(Self(plugin, may.clone())), may)
    }
}

#[async_trait]
impl Plugin for Hanging {
    async fn options(&self) -> Result<PluginOptions, CallError> {
        self.0.options().await
    }
    async fn list_and_watch(&self) -> Result<Reports, CallError> {
        self.0.list_and_watch().await
    }
    async fn preferred_allocation(
        &self,
        _: Vec<String>,
        _: Vec<String>,
        _: usize,
    ) -> Result<Vec<String>, CallError> {
        std::future::pending().await
    }
    async fn allocate(&self, ids: Vec<String>) -> Result<ContainerAllocateResponse, CallError> {
        let may = self.1.acquire().await;
        may.expect("it is not closed").forget();
        self.0.allocate(ids).await
    }
    async fn pre_start_container(&self, _: Vec<String>) -> Result<(), CallError> {
        std::future::pending().await
    }
}
