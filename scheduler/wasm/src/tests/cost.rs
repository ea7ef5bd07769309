//! What a component costs against the same plugin in Rust, both over all nodes.
//!
//! `cargo test --release -p wasm-plugins -- --ignored --nocapture costs`; with `WASM_COMPONENT=FILE` of a component that scores the same.

use std::time::{Duration, Instant};

use framework::{NodeSet, ScorePlugin};

use super::*;

const NODES: usize = 5_000;
const ROUNDS: usize = 501;
/// A component costs so many times what Rust does, at most.
const BAR: f64 = 3.0;

/// Prefers nodes with much free CPU, by the columns of the snapshot: what the component does.
struct Native;

impl Plugin for Native {
    fn name(&self) -> &'static str {
        "Native"
    }
    fn as_score(&self) -> Option<&dyn ScorePlugin> {
        Some(self)
    }
}

impl ScorePlugin for Native {
    fn score(
        &self,
        _state: &CycleState,
        _pod: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Result<i64, Status> {
        let (has, taken) = (node.allocatable().milli_cpu, node.requested().milli_cpu);
        Ok((has - taken) * 100 / has)
    }

    fn score_all(
        &self,
        _state: &CycleState,
        _pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        nodes: &NodeSet,
        scores: &mut [i64],
    ) -> bool {
        let cpu = &snapshot.columns().cpu;
        for node in nodes.iter() {
            let (has, taken) = (cpu.allocatable[node as usize], cpu.requested[node as usize]);
            scores[node as usize] = (has - taken) * 100 / has;
        }
        true
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// One call over all nodes.
fn timed(plugin: &dyn Plugin, snapshot: &Snapshot, scores: &mut [i64]) -> Duration {
    let (score, pod) = (plugin.as_score().expect("it scores"), pod(0));
    let start = Instant::now();
    let all = snapshot.columns().live();
    let done = score.score_all(&CycleState::new(), &pod, snapshot, all, scores);
    let took = start.elapsed();
    assert!(done);
    took
}

#[test]
#[ignore = "a measurement: with --release, on a machine that is not busy"]
fn what_a_score_over_5000_nodes_costs() {
    let bytes = match std::env::var_os("WASM_COMPONENT") {
        Some(path) => std::fs::read(path).expect("the component can be read"),
        None => component(WIT, GUEST),
    };
    let wasm = plugin_with(&bytes, json!({})).expect("it is a plugin");
    let taken: Vec<&str> = ["1", "2", "0"].into_iter().cycle().take(NODES).collect();
    let mut snapshot = cluster(&taken);
    let (mut by_wasm, mut by_rust) = (vec![0; NODES], vec![0; NODES]);
    let first = timed(&*wasm, &snapshot, &mut by_wasm);
    for changed in [0, 1, 100] {
        let (mut wasm_times, mut rust_times) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            for i in 0..changed {
                let name = format!("n{}", (round * 31 + i * 7) % NODES);
                let mut node = (**snapshot.get(&name).expect("is there")).clone();
                let more = make_pod(&format!("more-{round}-{i}")).req(&[("cpu", "1m")]);
                node.add_pod(more.info());
                snapshot.set_node(Arc::new(node));
            }
            wasm_times.push(timed(&*wasm, &snapshot, &mut by_wasm));
            rust_times.push(timed(&Native, &snapshot, &mut by_rust));
        }
        assert_eq!(by_wasm, by_rust);
        let (wasm, rust) = (median(wasm_times), median(rust_times));
        let ratio = wasm.as_secs_f64() / rust.as_secs_f64();
        println!(
            "{NODES} nodes, {changed} changed: WASM {wasm:?}, Rust {rust:?}, {ratio:.2} times"
        );
        if changed == 0 && !cfg!(debug_assertions) {
            assert!(ratio <= BAR, "{ratio}");
        }
    }
    println!("the first call, which tells of all nodes: {first:?}");
}
