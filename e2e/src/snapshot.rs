//! `cargo e2e snapshot` and `restore`: a cluster's etcd, kept in a file and brought back by etcd's own tools.
//!
//! **Invariant:** a restore touches etcd and who asks the API server, nothing else: containers, images, volumes and the nodes' files
//! stay as they are, as on machines whose etcd is restored. What then differs is for kubelets and controllers to settle.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cluster::control_plane::{self, ETCD_CLIENTS, ETCD_NAME, ETCD_PEERS};
use crate::cluster::{Cluster, Component};
use crate::programs;
use crate::step::Steps;

/// etcd's tools: the one takes a snapshot of a running member, the other makes a member's folder of it.
const TOOLS: &[&str] = &["etcdctl", "etcdutl"];
const ETCD: &str = "etcd";
const API_SERVER: &str = "kube-apiserver";
/// How long a program has to end by itself.
const GRACE: Duration = Duration::from_secs(15);

#[derive(Args, Clone)]
pub struct SnapshotOptions {
    /// The file to write; one that is there is replaced.
    file: PathBuf,
}

#[derive(Args, Clone)]
pub struct RestoreOptions {
    /// A file that `snapshot` wrote.
    file: PathBuf,
    /// Stop etcd and the API server alone: kubelets and control loops meet a server that knows less than they do.
    #[arg(long)]
    clients_go_on: bool,
}

/// Writes what a running cluster's etcd holds.
///
/// # Errors
/// The cluster is not up, or a tool cannot be built or fails.
pub fn save(name: &str, options: &SnapshotOptions) -> Result<()> {
    let cluster = Cluster::open(name)?;
    let steps = Steps::new(cluster.outputs.logs())?;
    take(&cluster, &steps, &options.file)
}

/// Brings a cluster back to what `file` holds, on an etcd with a new folder.
///
/// # Errors
/// The cluster was never up, the file is no snapshot (then nothing was stopped), or a program does not end or start.
pub fn restore(name: &str, options: &RestoreOptions) -> Result<()> {
    let mut cluster = Cluster::open(name)?;
    let steps = Steps::new(cluster.outputs.logs())?;
    bring_back(&mut cluster, &steps, &options.file, options.clients_go_on)
}

/// As [`save`], of a cluster that is open.
///
/// # Errors
/// As there.
pub fn take(cluster: &Cluster, steps: &Steps, file: &Path) -> Result<()> {
    if !cluster.process(ETCD)?.is_running() {
        bail!(
            "cluster {:?}: its etcd does not run",
            cluster.state.options.name
        );
    }
    programs::build_upstream(steps, &cluster.outputs, TOOLS)?;
    let step = steps.start("snapshot", None)?;
    // etcdctl writes the whole file beside and renames it.
    step.run(
        cluster
            .control_plane()
            .command(cluster.outputs.upstream("etcdctl"))
            .arg(format!("--endpoints={ETCD_CLIENTS}"))
            .args(["snapshot", "save"])
            .arg(file),
    )?;
    step.done();
    Ok(())
}

/// As [`restore`], of a cluster that is open.
///
/// # Errors
/// As there.
pub fn bring_back(
    cluster: &mut Cluster,
    steps: &Steps,
    file: &Path,
    clients_go_on: bool,
) -> Result<()> {
    let members = cluster.state.options.control_planes;
    if members > 1 {
        bail!("--control-planes {members}: a snapshot is restored to one etcd member alone");
    }
    programs::build_upstream(steps, &cluster.outputs, TOOLS)?;
    // Made before anything is stopped: a file that is no snapshot costs nothing.
    let step = steps.start("read the snapshot", None)?;
    let data = control_plane::etcd_data(cluster);
    let restored = data.with_extension("restored");
    if restored.exists() {
        fs::remove_dir_all(&restored)?;
    }
    step.run(
        std::process::Command::new(cluster.outputs.upstream("etcdutl"))
            .args(["snapshot", "restore"])
            .arg(file)
            .arg(format!("--data-dir={}", restored.display()))
            .arg(format!("--name={ETCD_NAME}"))
            .arg(format!("--initial-cluster={ETCD_NAME}={ETCD_PEERS}"))
            .arg(format!("--initial-advertise-peer-urls={ETCD_PEERS}")),
    )?;
    step.done();

    let step = steps.start("stop", None)?;
    let clients = if clients_go_on {
        Vec::new()
    } else {
        clients(cluster)
    };
    let servers = [API_SERVER.to_owned(), ETCD.to_owned()];
    for name in clients.iter().chain(&servers) {
        step.message(name);
        cluster.process(name)?.stop(GRACE)?;
    }
    fs::remove_dir_all(&data).with_context(|| format!("remove {}", data.display()))?;
    fs::rename(&restored, &data).with_context(|| format!("move to {}", data.display()))?;
    step.done();

    let step = steps.start("start", None)?;
    for name in [ETCD, API_SERVER] {
        cluster.restart(name)?;
    }
    control_plane::wait_ready(cluster, Duration::from_secs(120))?;
    for name in &clients {
        cluster.restart(name)?;
    }
    step.done();
    Ok(())
}

/// The cluster's programs that ask the API server, those that run now: replicas and nodes, each.
fn clients(cluster: &Cluster) -> Vec<String> {
    let running = cluster.state.processes.iter();
    running
        .filter(|(name, process)| is_client(name) && process.is_running())
        .map(|(name, _)| name.clone())
        .collect()
}

fn is_client(process: &str) -> bool {
    Component::ALL.iter().any(|component| {
        process
            .strip_prefix(component.name())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    })
}

#[cfg(test)]
mod tests {
    use super::is_client;

    #[test]
    fn who_asks_the_api_server_is_stopped_and_nothing_else() {
        for client in [
            "kubelet-node-1",
            "kube-proxy-node-12",
            "kube-scheduler",
            "kube-scheduler-1",
            "kube-controller-manager",
        ] {
            assert!(is_client(client), "{client}");
        }
        for other in [
            "etcd",
            "kube-apiserver",
            "registry",
            "forwarder",
            "containerd-node-1",
        ] {
            assert!(!is_client(other), "{other}");
        }
    }
}
