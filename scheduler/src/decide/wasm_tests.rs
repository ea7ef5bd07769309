//! A plugin that is a WASM component, named by the configuration: it decides like any other, and where it fails one pod waits with the reason.

use backend::Cache;
use framework::testing::{make_node, make_pod};
use serde_json::json;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use super::tests::{Random, check, scheduler_of};
use super::*;
use crate::config::KubeSchedulerConfiguration;
use crate::scheduler::Scheduler;

/// Prefers nodes with much free CPU, rejects full ones, and traps for pods of priority 1.
fn component() -> Vec<u8> {
    let wat = include_str!("../../wasm/src/tests/guest.wat");
    let mut module = wat::parse_str(wat).expect("the module is well-formed");
    let mut resolve = Resolve::default();
    let wit = include_str!("../../wasm/wit/plugin.wit");
    let package = resolve.push_str("plugin.wit", wit).expect("WIT");
    let world = resolve
        .select_world(&[package], Some("scheduler-plugin"))
        .expect("the world is there");
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).expect("embeds");
    let mut encoder = ComponentEncoder::default().module(&module).expect("fits");
    encoder.encode().expect("encodes")
}

fn scheduler() -> Arc<Scheduler> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), component()).expect("written");
    let config = json!({"profiles": [{
        "plugins": {"multiPoint": {"enabled": [{"name": "Roomy", "weight": 1000}]}},
        "pluginConfig": [{"name": "Roomy", "args": {"kind": "WasmPluginArgs", "path": file.path()}}],
    }]});
    let mut config: KubeSchedulerConfiguration = serde_json::from_value(config).expect("decodes");
    crate::config::set_defaults(&mut config);
    assert_eq!(crate::config::validate(&config), []);
    scheduler_of(config, Arc::default())
}

fn four_cpus(name: &str) -> Arc<k8s_openapi::api::core::v1::Node> {
    let room = [("cpu", "4"), ("memory", "32Gi"), ("pods", "20")];
    make_node(name).capacity(&room).build()
}

#[tokio::test]
async fn what_is_kept_of_a_component_agrees_with_judging_anew() {
    let (scheduler, cache, mut random) = (scheduler(), Cache::new(), Random(1));
    let (mut snapshot, mut decider) = (Snapshot::new(), Decider::new(1));
    for i in 0..8 {
        cache.add_node(four_cpus(&format!("node-{i}")));
    }
    let mut placed: Vec<Arc<PodInfo>> = Vec::new();
    for serial in 0..120 {
        match random.below(8) {
            0 => cache.update_node(four_cpus(&format!("node-{}", random.below(9)))),
            1 => _ = cache.remove_node(&format!("node-{}", random.below(9))),
            2 if !placed.is_empty() => {
                let gone = placed.swap_remove(random.below(placed.len() as u64) as usize);
                cache.remove_pod(&gone.uid).expect("placed");
            }
            _ => {}
        }
        cache.update_snapshot(&mut snapshot);
        if snapshot.num_nodes() == 0 {
            continue;
        }
        let cpu = ["250m", "500m", "1"][random.below(3) as usize];
        let pod = make_pod(&format!("pod-{serial}")).req(&[("cpu", cpu)]);
        let pod = pod.priority(10 + random.below(2) as i32).info();
        if let Some(node) = check(&mut decider, &scheduler, &snapshot, &pod) {
            cache.assume_pod(Arc::clone(&pod), &node).expect("new");
            placed.push(pod);
        }
    }
    assert!(placed.len() > 20, "only {} pods", placed.len());
}

#[tokio::test]
async fn a_component_that_traps_rejects_the_pod_and_harms_nothing_else() {
    let (scheduler, cache) = (scheduler(), Cache::new());
    cache.add_node(four_cpus("free"));
    cache.add_node(four_cpus("busy"));
    let running = make_pod("running").node("busy").req(&[("cpu", "2")]);
    cache.add_pod(running.info());
    let mut snapshot = Snapshot::new();
    cache.update_snapshot(&mut snapshot);
    let framework = &scheduler.profiles()["default-scheduler"];
    let mut decider = Decider::new(1);
    let mut decide = |priority| {
        let pod = make_pod(&format!("p{priority}")).priority(priority).info();
        decider.decide(framework, &snapshot, &pod, scheduler.queue.nominator())
    };
    for _ in 0..2 {
        let chosen = decide(0).expect("fits");
        assert_eq!(&*chosen.node_name, "free");
        // Not "unschedulable": nobody is to be preempted for it, and it is tried again soon.
        let Err(NotChosen::Error(status)) = decide(1) else {
            panic!("a trap is an error");
        };
        assert_eq!(status.plugin(), "Roomy");
        assert_eq!(
            status.message(),
            "running \"Roomy\" filter plugin: its WASM component trapped in filter: wasm trap: wasm `unreachable` instruction executed"
        );
    }
}
