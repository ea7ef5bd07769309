//! Containers with CPUs and memory of their own, on a node of four CPUs in two NUMA nodes.

use std::path::Path;

use ::devices::PluginOptions;
use ::devices::testing::FakePlugin;
use ::runtime::api::{ContainerState, Resources, Runtime};
use serde_json::{Value, json};

use super::world::World;
use crate::configuration::{KubeletConfiguration, MemoryReservation};
use crate::pod;

const DEVICE: &str = "example.com/device";

fn static_cpus(config: &mut KubeletConfiguration) {
    config.cpu_manager_policy = "static".to_owned();
    config.reserved_system_cpus = "0".to_owned();
}

fn guaranteed(cpu: &str) -> Value {
    let list = json!({"cpu": cpu, "memory": "64Mi"});
    json!({"spec": {"containers": [{"name": "c", "image": "image", "resources": {"limits": list, "requests": list}}]}})
}

/// Of the pod's container that runs.
async fn resources(world: &World, name: &str) -> Option<Resources> {
    let uid = world.pod(name)?.metadata.uid?;
    let all = world.runtime.list_containers().await.unwrap();
    let running = all.into_iter().find(|container| {
        container.state == ContainerState::Running
            && container.labels.get(pod::label::POD_UID) == Some(&uid)
    });
    running.map(|container| container.resources)
}

async fn until_cpus(world: &World, name: &str, expect: &str) {
    let mut last = None;
    for _ in 0..1000 {
        let now = resources(world, name).await.map(|r| r.cpuset_cpus);
        if now.as_deref() == Some(expect) {
            return;
        }
        last = now;
        world
            .clock
            .sleep(std::time::Duration::from_millis(20))
            .await;
    }
    panic!(
        "{name} has {last:?}, not {expect:?}: {:#?}",
        world.events(name)
    );
}

#[tokio::test(start_paused = true)]
async fn a_guaranteed_pod_has_its_cpus_for_itself_and_the_others_the_rest() {
    let world = World::start(static_cpus).await;
    world.create_pod("shares", json!({}));
    until_cpus(&world, "shares", "0-3").await;
    world.create_pod("own", guaranteed("1"));
    until_cpus(&world, "own", "1").await;
    until_cpus(&world, "shares", "0,2-3").await;
    // Nothing holds it back on them.
    let own = resources(&world, "own").await.unwrap();
    assert_eq!(own.cpu_quota_us, None);
    assert_eq!(own.cpu_shares, Some(1024));
    world.create_pod("more", guaranteed("2"));
    until_cpus(&world, "more", "2-3").await;
    until_cpus(&world, "shares", "0").await;
    // A fraction shares, and keeps its limit.
    world.create_pod("fraction", guaranteed("10m"));
    world
        .until_pod("fraction", |p| pod::phase(p) == "Failed")
        .await;
    for (name, rest) in [("own", "0-1"), ("more", "0-3")] {
        world
            .api
            .delete::<k8s_openapi::api::core::v1::Pod>("default", name);
        world.until_gone(name).await;
        until_cpus(&world, "shares", rest).await;
    }
    world.create_pod("half", guaranteed("500m"));
    until_cpus(&world, "half", "0-3").await;
    let half = resources(&world, "half").await.unwrap();
    assert_eq!(half.cpu_quota_us, Some(50_000));
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_fits_no_numa_node_is_rejected() {
    let world = World::start(|config| {
        static_cpus(config);
        config.topology_manager_policy = "single-numa-node".to_owned();
    })
    .await;
    world.create_pod("wide", guaranteed("3"));
    let failed = world.until_phase("wide", "Failed").await;
    let status = failed.status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("TopologyAffinityError"));
    assert_eq!(
        status.message.as_deref(),
        Some("Pod was rejected: Resources cannot be allocated with Topology locality")
    );
    world.create_pod("narrow", guaranteed("2"));
    until_cpus(&world, "narrow", "2-3").await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn only_whole_cores_or_none() {
    let world = World::start(|config| {
        static_cpus(config);
        let option = ("full-pcpus-only".to_owned(), "true".to_owned());
        config.cpu_manager_policy_options = [option].into();
        config.reserved_system_cpus = "0-1".to_owned();
    })
    .await;
    // Each core has one thread here: every number is whole.
    world.create_pod("own", guaranteed("1"));
    until_cpus(&world, "own", "2").await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn memory_is_of_the_node_that_the_cpus_are_of() {
    let world = World::start(|config| {
        static_cpus(config);
        config.topology_manager_policy = "restricted".to_owned();
        config.topology_manager_scope = "pod".to_owned();
        config.memory_manager_policy = "Static".to_owned();
        // With what eviction keeps free it is a GiB.
        let reserved = ("memory".to_owned(), "924Mi".to_owned());
        config.system_reserved = [reserved].into();
        config.reserved_memory = vec![MemoryReservation {
            numa_node: 0,
            limits: [("memory".to_owned(), "1Gi".to_owned())].into(),
        }];
    })
    .await;
    world.create_pod("own", guaranteed("2"));
    until_cpus(&world, "own", "2-3").await;
    let own = resources(&world, "own").await.unwrap();
    assert_eq!(own.cpuset_mems, "1");
    world.create_pod("shares", json!({}));
    until_cpus(&world, "shares", "0-1").await;
    let shares = resources(&world, "shares").await.unwrap();
    assert_eq!(shares.cpuset_mems, "");
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn devices_are_of_the_node_that_the_cpus_are_of() {
    let world = World::start(|config| {
        static_cpus(config);
        config.topology_manager_policy = "single-numa-node".to_owned();
    })
    .await;
    let plugin = FakePlugin::new("a@0 b@1", PluginOptions::default());
    let (devices, fake) = (&world.kubelet.devices, Path::new("fake.sock"));
    devices.plugin_came(DEVICE, fake, plugin).await.unwrap();
    world
        .until_node(|node| {
            let status = node.status.as_ref();
            let allocatable = status.and_then(|s| s.allocatable.as_ref());
            allocatable
                .and_then(|list| list.get(DEVICE))
                .is_some_and(|q| q.0 == "2")
        })
        .await;
    let with_device = |cpu: &str| {
        let mut pod = guaranteed(cpu);
        for list in ["limits", "requests"] {
            pod["spec"]["containers"][0]["resources"][list][DEVICE] = json!("1");
        }
        pod
    };
    world.create_pod("both", with_device("2"));
    until_cpus(&world, "both", "2-3").await;
    let uid = world.pod("both").unwrap().metadata.uid.unwrap();
    let held: Vec<String> = devices
        .held(&uid, "c")
        .into_iter()
        .map(|held| held.id)
        .collect();
    assert_eq!(held, ["b"]);
    // What is left of the CPUs is the other device's neighbour.
    world.create_pod("other", with_device("1"));
    until_cpus(&world, "other", "1").await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn without_policies_containers_run_where_they_like() {
    let world = World::start(|_| {}).await;
    world.create_pod("own", guaranteed("1"));
    until_cpus(&world, "own", "").await;
    let own = resources(&world, "own").await.unwrap();
    assert_eq!(own.cpu_quota_us, Some(100_000));
    world.end().await;
}
