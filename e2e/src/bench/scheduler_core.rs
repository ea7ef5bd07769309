//! The heart of the scheduler, beside upstream's in the same process shape: the same nodes, the
//! same pods, a bind that does nothing.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use serde::Deserialize;

use super::quantile;
use crate::debian;
use crate::programs::{self, Outputs};
use crate::step::{Steps, output};

#[derive(Args)]
pub struct SchedulerCoreOptions {
    /// Cluster sizes.
    #[arg(long, value_delimiter = ',', default_values_t = [5_000, 50_000])]
    nodes: Vec<u32>,
    /// Pods to decide on, a run.
    #[arg(long, default_value_t = 2_000)]
    pods: u32,
    /// `identical`, `zone-spread` or `host-anti-affinity`.
    #[arg(long, default_value = "identical")]
    workload: String,
    /// Pairs of runs.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
}

#[derive(Deserialize)]
struct Outcome {
    cpu_seconds: f64,
    decisions_per_cpu_second: f64,
    p50_us: f64,
    p99_us: f64,
}

/// # Errors
/// A program does not build or fails.
pub fn run(options: &SchedulerCoreOptions) -> Result<()> {
    let outputs = Outputs::find();
    let steps = Steps::new(outputs.logs())?;
    debian::install_missing(&steps)?;
    programs::build_upstream(&steps, &outputs, &["schedulerbench"])?;
    let step = steps.start("build Gantry", None)?;
    step.run(
        Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .current_dir(&outputs.workspace)
            .args([
                "build",
                "--release",
                "--package",
                "kube-scheduler",
                "--bin",
                "scheduler-core-bench",
            ]),
    )?;
    step.done();
    println!(
        "{:>8} {:>10} {:>14} {:>12} {:>10} {:>10}",
        "nodes", "whose", "decisions/CPU-s", "CPU-s", "p50 us", "p99 us"
    );
    for &nodes in &options.nodes {
        let mut ratios = Vec::new();
        for _ in 0..options.rounds {
            let ours = measure(&outputs.ours("scheduler-core-bench"), nodes, options)?;
            let theirs = measure(&outputs.upstream("schedulerbench"), nodes, options)?;
            for (whose, outcome) in [("ours", &ours), ("upstream", &theirs)] {
                println!(
                    "{nodes:>8} {whose:>10} {:>14.0} {:>12.3} {:>10.0} {:>10.0}",
                    outcome.decisions_per_cpu_second,
                    outcome.cpu_seconds,
                    outcome.p50_us,
                    outcome.p99_us
                );
            }
            ratios.push(ours.decisions_per_cpu_second / theirs.decisions_per_cpu_second);
        }
        println!(
            "{nodes:>8} ours / upstream, decisions a CPU second: median {:.1}x, lowest {:.1}x",
            quantile(&mut ratios, 0.5),
            ratios[0]
        );
    }
    Ok(())
}

fn measure(program: &Path, nodes: u32, options: &SchedulerCoreOptions) -> Result<Outcome> {
    let text = output(Command::new(program).args([
        "--nodes",
        &nodes.to_string(),
        "--pods",
        &options.pods.to_string(),
        "--workload",
        &options.workload,
    ]))?;
    let line = text
        .lines()
        .rev()
        .find(|line| line.starts_with('{'))
        .with_context(|| format!("{} printed no JSON", program.display()))?;
    serde_json::from_str(line).with_context(|| format!("{} printed {line:?}", program.display()))
}
