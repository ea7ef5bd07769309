//! Prints how many decisions a CPU second takes, as JSON. See [`kube_scheduler::bench`].

use clap::Parser;
use kube_scheduler::bench::{Workload, run};

#[derive(Parser)]
struct Args {
    /// How many nodes (32 CPU, 256Gi, 110 pods; three zones).
    #[arg(long, default_value_t = 5000)]
    nodes: usize,
    /// How many pods (100m, 128Mi).
    #[arg(long, default_value_t = 10_000)]
    pods: usize,
    /// What they ask for.
    #[arg(long, value_enum, default_value_t = Workload::Identical)]
    workload: Workload,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let report = run(args.nodes, args.pods, args.workload, runtime.handle())?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
