//! Pods with claims of devices, and a driver that prepares them.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::dra::testing::FakeDriver;
use ::runtime::fake::Behaviour;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceSlice};
use serde_json::{Value, json};

use super::super::world::{NODE, World};
use crate::pod;

const DRIVER: &str = "driver.example.com";
const REASON: &str = "FailedPrepareDynamicResources";

/// Two containers, the first of which uses the claim `gpu`.
fn uses_the_claim() -> Value {
    json!({"spec": {
        "containers": [
            {"name": "c", "image": "image", "resources": {"claims": [{"name": "own"}]}},
            {"name": "other", "image": "image"},
        ],
        "resourceClaims": [{"name": "own", "resourceClaimName": "gpu"}],
    }})
}

/// The claim `gpu`, allocated on the node, for these pods.
fn claim(pods: &[&Pod]) -> ResourceClaim {
    let user =
        |pod: &&Pod| json!({"resource": "pods", "name": pod::name(pod), "uid": pod::uid(pod)});
    let users: Vec<Value> = pods.iter().map(user).collect();
    let result = json!({"request": "r", "driver": DRIVER, "pool": NODE, "device": "0"});
    let object = json!({
        "metadata": {"name": "gpu", "namespace": "default"},
        "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "gpus"}}]}},
        "status": {"allocation": {"devices": {"results": [result]}}, "reservedFor": users},
    });
    serde_json::from_value(object).unwrap()
}

fn slice(name: &str, node: &str, driver: &str) -> ResourceSlice {
    let object = json!({
        "metadata": {"name": name},
        "spec": {"nodeName": node, "driver": driver, "pool": {"name": node, "generation": 1, "resourceSliceCount": 1}},
    });
    serde_json::from_value(object).unwrap()
}

/// The first device of the first container, and how it is.
fn health(pod: &Pod) -> Option<(String, String)> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let status = statuses.iter().find(|status| status.name == "c")?;
    let resource = status.allocated_resources_status.as_ref()?.first()?;
    assert_eq!(resource.name, "claim:own");
    let device = resource.resources.as_ref()?.first()?;
    Some((device.resource_id.clone(), device.health.clone()?))
}

/// Waits until the pod is told that its claim is not prepared, with these words.
async fn until_told(world: &World, name: &str, words: &str) {
    let told = |(reason, message): &(String, String)| {
        let begin = "Failed to prepare dynamic resources: prepare dynamic resources: ";
        reason == REASON && message.starts_with(begin) && message.contains(words)
    };
    let is_told = || world.events(name).iter().any(told);
    assert!(world.until(is_told).await, "{:#?}", world.events(name));
}

#[tokio::test(start_paused = true)]
async fn a_pod_gets_the_devices_of_its_claim_and_lets_go_of_it_last_of_all() {
    let world = World::start(|_| {}).await;
    let made = Arc::new(Mutex::new(Vec::new()));
    let seen = made.clone();
    world.runtime.set_behaviour(move |_, config| {
        let of_container = (config.metadata.name.clone(), config.cdi_devices.join(","));
        seen.lock().unwrap().push(of_container);
        Behaviour::Run
    });
    let first = world.create_pod("first", uses_the_claim());
    until_told(&world, "first", "fetch ResourceClaim gpu: ").await;
    let second = world.create_pod("second", uses_the_claim());
    world.api.create(&claim(&[]));
    world.api.update(&claim(&[]));
    until_told(&world, "first", "is not allowed to use ResourceClaim gpu").await;
    world.api.update(&claim(&[&first, &second]));
    until_told(
        &world,
        "first",
        "DRA driver driver.example.com is not registered",
    )
    .await;
    assert!(made.lock().unwrap().is_empty(), "nothing of it runs");

    let driver = FakeDriver::new();
    driver.prepare_by(|_| Err("no power".to_owned()));
    driver.set_health("gpu");
    let manager = &world.kubelet.claims.manager;
    manager
        .plugin_came(DRIVER, Path::new("d.sock"), driver.clone())
        .unwrap();
    until_told(
        &world,
        "first",
        "NodePrepareResources failed for ResourceClaim gpu: no power",
    )
    .await;
    driver.prepare_by(|claim| Ok(vec![dra::testing::device(&claim.name)]));
    world.until_phase("first", "Running").await;
    world.until_phase("second", "Running").await;
    let device = "vendor.com/class=gpu";
    let mut containers = made.lock().unwrap().clone();
    containers.sort();
    let (with, without) = (
        ("c".to_owned(), device.to_owned()),
        ("other".to_owned(), String::new()),
    );
    assert_eq!(containers, [with.clone(), with, without.clone(), without]);
    let calls = driver.take_calls();
    let prepared = calls.iter().rev().take_while(|call| *call == "Prepare gpu");
    assert!(prepared.count() >= 2, "{calls:?}");

    // How it is.
    let is = |status: &'static str| {
        move |pod: &Pod| health(pod) == Some((device.to_owned(), status.to_owned()))
    };
    world.until_pod("first", is("Healthy")).await;
    driver.set_health("!gpu");
    world.until_pod("first", is("Unhealthy")).await;
    world.until_pod("second", is("Unhealthy")).await;

    // The first goes, and the claim stays prepared for the second.
    world.api.delete::<Pod>("default", "first");
    world.until_gone("first").await;
    assert!(driver.take_calls().is_empty());
    // The second stays until the driver lets go.
    driver.unprepare_by(|_| Err("busy".to_owned()));
    world.api.delete::<Pod>("default", "second");
    let asked = || !driver.take_calls().is_empty();
    assert!(world.until(asked).await);
    world.clock.sleep(Duration::from_secs(60)).await;
    let waits = world.pod("second").unwrap();
    assert!(!pod::is_terminal_phase(pod::phase(&waits)), "{waits:#?}");
    driver.unprepare_by(|_| Ok(()));
    world.until_gone("second").await;
    assert!(!manager.holds(pod::uid(&second)));
    assert!(
        driver
            .take_calls()
            .iter()
            .all(|call| call == "Unprepare gpu")
    );
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn slices_of_drivers_that_are_not_here_go() {
    let world = World::start(|_| {}).await;
    let names = || -> Vec<String> {
        let slices = world.api.list::<ResourceSlice>().into_iter();
        slices.filter_map(|slice| slice.metadata.name).collect()
    };
    world.api.create(&slice("old", NODE, DRIVER));
    world.api.create(&slice("elsewhere", "other-node", DRIVER));
    assert!(
        world.until(|| names() == ["elsewhere"]).await,
        "{:?}",
        names()
    );
    let driver = FakeDriver::new();
    let manager = &world.kubelet.claims.manager;
    let socket = Path::new("d.sock");
    manager.plugin_came(DRIVER, socket, driver.clone()).unwrap();
    world.api.create(&slice("own", NODE, DRIVER));
    world
        .api
        .create(&slice("of-another", NODE, "other.example.com"));
    world.clock.sleep(Duration::from_secs(100)).await;
    assert_eq!(names().len(), 3);
    let begin = world.clock.monotonic();
    driver.set_connected(false);
    assert!(
        world.until(|| names() == ["elsewhere", "of-another"]).await,
        "{:?}",
        names()
    );
    let took = world.clock.monotonic() - begin;
    assert!(took >= Duration::from_secs(30), "{took:?}");
    world.end().await;
}
