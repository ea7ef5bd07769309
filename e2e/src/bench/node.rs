//! A node's cost: memory of its programs with no pods and with some, and the time from creation to
//! Ready. Two clusters of one node each stand side by side; every measurement is taken on both in turn.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

use super::quantile;
use crate::cluster::process::{cpu_seconds, pss_bytes};
use crate::cluster::{Cluster, Component, Options};
use crate::probe::pids_of;
use crate::starts::Starts;

#[derive(Args)]
pub struct NodeOptions {
    /// Pods for the memory figure, and for the one-by-one latency.
    #[arg(long, default_value_t = 30)]
    pods: u32,
    /// Pods created at once.
    #[arg(long, default_value_t = 50)]
    burst: u32,
    /// Leave the clusters up.
    #[arg(long)]
    keep: bool,
}

const MIB: f64 = 1024.0 * 1024.0;

#[derive(Default)]
struct Figures {
    idle_mib: f64,
    loaded_mib: f64,
    one_by_one: Vec<f64>,
    burst: Vec<f64>,
    burst_all: f64,
    cpu_seconds: f64,
}

/// # Errors
/// A cluster does not come up, or a pod does not get Ready.
pub fn run(options: &NodeOptions) -> Result<()> {
    let mut clusters = Vec::new();
    // All else is the same on both sides, so that only the node differs.
    let ours: BTreeSet<Component> = Component::ALL
        .into_iter()
        .filter(|component| *component != Component::Kubelet)
        .collect();
    for (name, whose, with_upstream) in [
        ("benchours", "ours", ours),
        ("benchupstream", "upstream", BTreeSet::from(Component::ALL)),
    ] {
        Cluster::down(name)?;
        let cluster = Cluster::up(Options {
            name: name.to_owned(),
            nodes: 1,
            with_upstream,
            ..Options::default()
        })?;
        // The node is to be empty but for what is measured.
        cluster.kubectl(&[
            "-n",
            "kube-system",
            "scale",
            "deployment/coredns",
            "--replicas=0",
        ])?;
        cluster.kubectl(&[
            "-n",
            "kube-system",
            "wait",
            "--for=delete",
            "pod",
            "-l",
            "k8s-app=kube-dns",
            "--timeout=90s",
        ])?;
        // One warm-up pod: the image is then on the node.
        let mut watch = Starts::watch(&cluster, "default", None)?;
        watch.create(&cluster, &["warm-up".to_owned()])?;
        watch.wait(1)?;
        delete_all(&cluster)?;
        clusters.push((cluster, whose, Figures::default()));
    }
    // Let both settle: what was allocated for the start is given back.
    std::thread::sleep(Duration::from_secs(20));
    for (cluster, _, figures) in &mut clusters {
        figures.idle_mib = memory(cluster) / MIB;
    }
    let mut watches = Vec::new();
    for (cluster, _, figures) in &clusters {
        let _ = figures;
        watches.push(Starts::watch(cluster, "default", None)?);
    }
    for index in 0..options.pods {
        for ((cluster, _, figures), watch) in clusters.iter_mut().zip(&mut watches) {
            watch.create(cluster, &[format!("one-{index}")])?;
            figures.one_by_one.extend(watch.wait(1)?);
        }
    }
    std::thread::sleep(Duration::from_secs(10));
    for (cluster, _, figures) in &mut clusters {
        figures.loaded_mib = memory(cluster) / MIB;
        let before = cpu(cluster);
        std::thread::sleep(Duration::from_secs(30));
        figures.cpu_seconds = cpu(cluster) - before;
    }
    drop(watches);
    for (cluster, ..) in &clusters {
        delete_all(cluster)?;
    }
    for (cluster, _, figures) in &mut clusters {
        let mut watch = Starts::watch(cluster, "default", None)?;
        let started = Instant::now();
        let names: Vec<String> = (0..options.burst)
            .map(|index| format!("burst-{index}"))
            .collect();
        watch.create(cluster, &names)?;
        figures.burst = watch.wait(names.len())?;
        figures.burst_all = started.elapsed().as_secs_f64();
        drop(watch);
        delete_all(cluster)?;
    }
    print(&mut clusters, options);
    if !options.keep {
        for (cluster, ..) in &clusters {
            Cluster::down(&cluster.state.options.name)?;
        }
    }
    Ok(())
}

fn print(clusters: &mut [(Cluster, &str, Figures)], options: &NodeOptions) {
    println!(
        "{:<44} {:>10} {:>10} {:>8}",
        "", "ours", "upstream", "ratio"
    );
    let mut row = |title: String, value: &mut dyn FnMut(&mut Figures) -> f64| {
        let values: Vec<f64> = clusters
            .iter_mut()
            .map(|(_, _, figures)| value(figures))
            .collect();
        println!(
            "{title:<44} {:>10.2} {:>10.2} {:>8.2}",
            values[0],
            values[1],
            values[0] / values[1]
        );
    };
    row("memory with 0 pods, PSS MiB".to_owned(), &mut |figures| {
        figures.idle_mib
    });
    row(
        format!("memory with {} pods, PSS MiB", options.pods),
        &mut |figures| figures.loaded_mib,
    );
    row(
        format!("CPU over 30 s with {} pods, s", options.pods),
        &mut |figures| figures.cpu_seconds,
    );
    row(
        "create to Ready one by one, p50 s".to_owned(),
        &mut |figures| quantile(&mut figures.one_by_one, 0.5),
    );
    row(
        "create to Ready one by one, p99 s".to_owned(),
        &mut |figures| quantile(&mut figures.one_by_one, 0.99),
    );
    row(
        format!("{} at once, p50 s", options.burst),
        &mut |figures| quantile(&mut figures.burst, 0.5),
    );
    row(
        format!("{} at once, p99 s", options.burst),
        &mut |figures| quantile(&mut figures.burst, 0.99),
    );
    row(
        format!("{} at once, all Ready after s", options.burst),
        &mut |figures| figures.burst_all,
    );
}

/// The node's own programs: kubelet and shims; upstream's with containerd and the pause processes.
fn programs(cluster: &Cluster) -> Vec<u32> {
    let mut pids: BTreeSet<u32> = BTreeSet::new();
    for (name, process) in &cluster.state.processes {
        if name.starts_with("kubelet-") || name.starts_with("containerd-") {
            pids.insert(process.pid);
        }
    }
    // A daemon's children are in the daemons' cgroup of this cluster, but for those in pods.
    let group = format!("{}/daemons", cluster.layout.cgroup());
    let daemons: BTreeSet<u32> = crate::cluster::cgroup::processes(&group)
        .unwrap_or_default()
        .into_iter()
        .collect();
    for words in ["gantry-shim", "containerd-shim-runc-v2"] {
        pids.extend(
            pids_of(words)
                .into_iter()
                .filter(|pid| daemons.contains(pid)),
        );
    }
    pids.extend(
        pids_of("/pause")
            .into_iter()
            .filter(|pid| in_pod_sandbox(cluster, *pid)),
    );
    pids.into_iter().collect()
}

/// containerd keeps a pause process a pod; the measured pods run the same program as their container.
fn in_pod_sandbox(cluster: &Cluster, pid: u32) -> bool {
    let upstream = cluster
        .state
        .options
        .with_upstream
        .contains(&Component::Kubelet);
    let in_this = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
        .is_ok_and(|text| text.contains(&format!("/{}/", cluster.layout.cgroup())));
    upstream
        && in_this
        && std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"/pause\0")
}

fn memory(cluster: &Cluster) -> f64 {
    programs(cluster)
        .into_iter()
        .filter_map(pss_bytes)
        .sum::<u64>() as f64
}

fn cpu(cluster: &Cluster) -> f64 {
    programs(cluster).into_iter().filter_map(cpu_seconds).sum()
}

fn delete_all(cluster: &Cluster) -> Result<()> {
    cluster
        .kubectl(&["delete", "pods", "--all", "--wait=true", "--timeout=180s"])
        .map(drop)
}
