//! The plugin over components made here: core modules as text, wrapped as a toolchain wraps them.
//!
//! [`GUEST`] prefers nodes with much free CPU and rejects those that are full, and misbehaves in a way that the pod's priority chooses.

use std::sync::Arc;

use framework::testing::{assert_forms_agree, make_node, make_pod, snapshot};
use framework::{CycleState, NodeInfo, Plugin, PluginError, PodInfo, Snapshot, Status, Verdicts};
use serde_json::{Value, json};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

mod arguments;
mod cost;
mod examples;
mod failures;
mod world;

const WIT: &str = include_str!("../wit/plugin.wit");
const GUEST: &str = include_str!("tests/guest.wat");

/// The component of a core module for a world of this WIT.
fn component(wit: &str, wat: &str) -> Vec<u8> {
    let mut module = wat::parse_str(wat).expect("the module is well-formed");
    let mut resolve = Resolve::default();
    let package = resolve.push_str("plugin.wit", wit).expect("WIT");
    let world = resolve
        .select_world(&[package], Some("scheduler-plugin"))
        .expect("the world is there");
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).expect("embeds");
    let encoder = ComponentEncoder::default().module(&module).expect("fits");
    encoder.validate(true).encode().expect("encodes")
}

/// The plugin of a component, with arguments beside its path.
fn plugin_with(component: &[u8], args: Value) -> Result<Arc<dyn Plugin>, PluginError> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), component).expect("written");
    let mut all = json!({"kind": "WasmPluginArgs", "path": file.path()});
    for (name, value) in args.as_object().into_iter().flatten() {
        all[name] = value.clone();
    }
    crate::new("Roomy", Some(&all))
}

fn plugin() -> Arc<dyn Plugin> {
    plugin_with(&component(WIT, GUEST), json!({})).expect("it is a plugin")
}

/// Nodes with 4 CPUs of which so many are taken.
fn cluster(taken: &[&str]) -> Snapshot {
    let nodes = (0..taken.len()).map(|i| {
        make_node(&format!("n{i}"))
            .capacity(&[("cpu", "4"), ("pods", "9")])
            .build()
    });
    let pods = taken.iter().enumerate().map(|(i, cpu)| {
        make_pod(&format!("on-{i}"))
            .node(&format!("n{i}"))
            .req(&[("cpu", cpu)])
            .info()
    });
    snapshot(nodes, pods)
}

fn pod(priority: i32) -> Arc<PodInfo> {
    make_pod(&format!("p{priority}")).priority(priority).info()
}

fn scores(plugin: &dyn Plugin, pod: &Arc<PodInfo>, snapshot: &Snapshot) -> Option<Vec<i64>> {
    let all = snapshot.columns().live();
    let mut scores = vec![-1; snapshot.columns().len()];
    let score = plugin.as_score().expect("it scores");
    let state = CycleState::new();
    let done = score.score_all(&state, pod, snapshot, all, &mut scores);
    done.then_some(scores)
}

fn verdicts(plugin: &dyn Plugin, pod: &Arc<PodInfo>, snapshot: &Snapshot) -> Option<Verdicts> {
    let columns = snapshot.columns();
    let mut verdicts = Verdicts::new(columns.live().clone(), columns.len());
    let filter = plugin.as_filter().expect("it filters");
    let done = filter.filter_all(&CycleState::new(), pod, snapshot, &mut verdicts);
    done.then_some(verdicts)
}

fn score_of(plugin: &dyn Plugin, pod: &Arc<PodInfo>, node: &NodeInfo) -> Result<i64, Status> {
    let score = plugin.as_score().expect("it scores");
    score.score(&CycleState::new(), pod, node)
}

#[test]
fn nodes_are_judged_in_one_call_as_they_are_one_by_one() {
    let plugin = plugin();
    let snapshot = cluster(&["1", "4", "3", "0"]);
    assert_forms_agree(&*plugin, &pod(0), &snapshot);
    let plugin = &*plugin;
    assert_eq!(
        scores(plugin, &pod(0), &snapshot).as_deref(),
        Some(&[75, 0, 25, 100][..])
    );
    let verdicts = verdicts(plugin, &pod(0), &snapshot).expect("judged");
    assert_eq!(verdicts.feasible().iter().collect::<Vec<_>>(), [0, 2, 3]);
    let full = verdicts.status(1).expect("rejected");
    assert_eq!(full, &Status::unschedulable("node(s) had no CPU left"));
}

#[test]
fn a_node_is_told_of_when_it_changes_and_not_again() {
    // It scores the number of nodes it was told of so far.
    let guest = GUEST.replace("(call $free_percent", "(call $times_told");
    let plugin = plugin_with(&component(WIT, &guest), json!({})).expect("it is a plugin");
    let plugin = &*plugin;
    let mut snapshot = cluster(&["1", "2", "3"]);
    for _ in 0..2 {
        assert_eq!(scores(plugin, &pod(0), &snapshot), Some(vec![3, 3, 3]));
    }
    let changed = (**snapshot.get("n1").expect("is there")).clone();
    snapshot.set_node(Arc::new(changed));
    assert_eq!(scores(plugin, &pod(0), &snapshot), Some(vec![4, 4, 4]));
    // One that it holds needs not be told of; a copy of it does.
    let node = snapshot.get("n2").expect("is there");
    assert_eq!(score_of(plugin, &pod(0), node), Ok(4));
    let copy = (**node).clone();
    assert_eq!(score_of(plugin, &pod(0), &copy), Ok(5));
    assert_eq!(scores(plugin, &pod(0), &snapshot), Some(vec![5, 5, 5]));
}

#[test]
fn an_index_that_another_node_takes_over_is_that_node() {
    let plugin = plugin();
    let plugin = &*plugin;
    let mut snapshot = cluster(&["1", "2"]);
    assert_eq!(scores(plugin, &pod(0), &snapshot), Some(vec![75, 50]));
    snapshot.remove_node("n0");
    let new = make_node("new").capacity(&[("cpu", "8")]).build();
    snapshot.set_node(Arc::new(NodeInfo::new(new)));
    assert_eq!(scores(plugin, &pod(0), &snapshot), Some(vec![100, 50]));
    // And the other way round: the same indexes in another snapshot.
    let other = cluster(&["3", "0"]);
    assert_eq!(scores(plugin, &pod(0), &other), Some(vec![25, 100]));
    assert_eq!(scores(plugin, &pod(0), &snapshot), Some(vec![100, 50]));
}

#[test]
fn many_nodes_are_told_of_in_parts() {
    let plugin = plugin();
    let taken: Vec<&str> = ["1", "2"].into_iter().cycle().take(2500).collect();
    let snapshot = cluster(&taken);
    let scores = scores(&*plugin, &pod(0), &snapshot).expect("scored");
    for (index, node) in snapshot.iter() {
        let free = 4000 - node.requested().milli_cpu;
        assert_eq!(scores[index as usize], free * 100 / 4000);
    }
}

#[test]
fn pods_are_alike_by_what_the_component_reads() {
    use framework::{Fragments, Sign};
    let sign = |fields: u16, scope: u8| {
        let guest = GUEST.replace(
            "(i32.const 0x10) (; pod-fields ;)",
            &format!("(i32.const {fields})"),
        );
        let guest = guest.replace("(i32.const 0) (; scope ;)", &format!("(i32.const {scope})"));
        let plugin = plugin_with(&component(WIT, &guest), json!({})).expect("it is a plugin");
        plugin.sign(&pod(0), &Snapshot::new())
    };
    let priority = 1 << 4;
    assert_eq!(sign(priority, 0), Some(Sign::node(Fragments::PRIORITY)));
    let more = Fragments::MORE | Fragments::REQUESTS;
    assert_eq!(sign(1 << 2 | 1 << 3, 0), Some(Sign::node(more)));
    // The pod's name, its manifest; answers that depend on other nodes.
    assert_eq!(sign(priority | 1 << 9, 0), None);
    assert_eq!(sign(priority | 1 << 10, 0), None);
    assert_eq!(sign(priority, 1), None);
}
