//! `cargo e2e bench …`: ours and upstream's, in turn in one run. Ratios and CPU seconds count; wall
//! times on a busy machine do not.

mod controllers;
mod node;
mod scheduler_core;
mod starts;

use anyhow::Result;
use clap::{Args, Subcommand};

#[derive(Args)]
pub struct BenchOptions {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Scheduling decisions a CPU second, in process, bind a no-op; ours over all nodes.
    SchedulerCore(scheduler_core::SchedulerCoreOptions),
    /// Memory of a node's programs, and the time from a pod's creation to Ready.
    Node(node::NodeOptions),
    /// CPU and memory of the controller manager, and CPU of the API server, over workloads.
    Controllers(controllers::ControllersOptions),
    /// Sustained starts of pods: a CPU second, latencies, API writes, fsync.
    Starts(starts::StartsOptions),
}

/// # Errors
/// A program or cluster fails.
pub fn run(options: &BenchOptions) -> Result<()> {
    match &options.bench {
        Bench::SchedulerCore(options) => scheduler_core::run(options),
        Bench::Node(options) => node::run(options),
        Bench::Controllers(options) => controllers::run(options),
        Bench::Starts(options) => starts::run(options),
    }
}

/// The value below which a share of the sorted samples lies.
pub fn quantile(samples: &mut [f64], share: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    match samples.len() {
        0 => f64::NAN,
        len => samples[((len - 1) as f64 * share).ceil() as usize],
    }
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_of_small_sets() {
        let mut samples = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(quantile(&mut samples, 0.5), 3.0);
        assert_eq!(quantile(&mut samples, 0.99), 5.0);
        assert_eq!(quantile(&mut samples, 0.0), 1.0);
    }
}
