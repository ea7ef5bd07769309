//! A node: a network namespace that acts as a machine, with its own mount and uts namespaces and
//! its own cgroup root; our kubelet and kube-proxy on it, or upstream's with containerd.

mod files;

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cluster::layout::{self, Layout};
use crate::cluster::process::Program;
use crate::cluster::{Cluster, Component, cgroup, control_plane, lan};
use crate::step::output;

/// Lays the node's own /run, /var/lib, /var/log and /etc over the machine's. What the machine has as a node of its own (a CNI
/// configuration, which podman's package brings, registries, static pods) is not seen. `$1` is the node's
/// folder, `$2` its name. The folder goes out of sight with the last mount.
const SETUP: &str = r#"
set -eu
mount --make-rprivate /
umount -R -l /run/netns 2>/dev/null || true
mount -t tmpfs -o mode=755 gantry-run /run
mkdir -p /run/netns /run/lock /run/containerd /run/xtables /run/proc
# A user namespace may mount a proc of its own where it sees one that nothing covers; /proc/1 is covered below.
mount -t proc gantry-proc /run/proc
mount -t overlay -o "lowerdir=/etc,upperdir=$1/etc,workdir=$1/etc-work" gantry-etc /etc
for own in cni/net.d containerd kubernetes; do mount --bind "$1/etc/$own" "/etc/$own"; done
mount --bind "$1/log" /var/log
mount --bind "$1/lib" /var/lib
hostname "$2"
mount --make-rshared /
"#;

/// Makes the machine and starts its programs.
///
/// # Errors
/// A namespace, mount or program fails.
pub fn create(cluster: &mut Cluster, index: u8) -> Result<()> {
    let name = layout::node_name(index);
    lan::add_node(&cluster.layout, index)?;
    cgroup::create(&cluster.layout.node_cgroup(&name))?;
    let dir = cluster.layout.node_dir(&name);
    for part in [
        "etc",
        "etc-work",
        "log/pods",
        "log/containers",
        "lib/kubelet",
        "lib/kube-proxy",
        "lib/cni",
        "lib/misc",
    ] {
        fs::create_dir_all(dir.join(part)).with_context(|| format!("make {part} of {name}"))?;
    }
    files::write(cluster, index, &dir)?;
    pin(cluster, &name)?;
    start_first_process(cluster, &name)?;
    if cluster.state.options.is_upstream_node(index) {
        start_containerd(cluster, &name)?;
    }
    start_kubelet(cluster, index)?;
    start_kube_proxy(cluster, &name)
}

/// Makes the mount and uts namespaces and pins them by files, so that they outlive any process.
fn pin(cluster: &Cluster, name: &str) -> Result<()> {
    let pins = pins(&cluster.layout);
    if !fs::read_to_string("/proc/self/mountinfo")?.contains(&format!(" {} ", pins.display())) {
        fs::create_dir_all(&pins)?;
        // A mount namespace can only be pinned on a private mount.
        output(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", "mode=700", "gantry-e2e"])
                .arg(&pins),
        )?;
        output(Command::new("mount").arg("--make-private").arg(&pins))?;
    }
    let (mnt, uts) = (
        pins.join(format!("{name}.mnt")),
        pins.join(format!("{name}.uts")),
    );
    fs::write(&mnt, "")?;
    fs::write(&uts, "")?;
    let netns = layout::netns_path(&cluster.layout.node_netns(name));
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", netns.display()))
        .args(["--", "unshare"])
        .arg(format!("--mount={}", mnt.display()))
        .arg(format!("--uts={}", uts.display()))
        .args(["--propagation", "private", "sh", "-c", SETUP, "node-setup"])
        .arg(cluster.layout.node_dir(name))
        .arg(name);
    output(&mut command)
        .map(drop)
        .with_context(|| format!("set up {name}'s mounts"))
}

/// A process of the machine that stands where its first one would: pods of upstream's suites reach the node's mounts by `/proc/1/ns/mnt`.
fn start_first_process(cluster: &mut Cluster, name: &str) -> Result<()> {
    let process = format!("machine-{name}");
    let place = cluster.node_place(name);
    cluster.start(Program {
        name: process.clone(),
        argv: vec!["sleep".to_owned(), "infinity".to_owned()],
        env: Vec::new(),
        place,
    })?;
    let pid = cluster.process(&process)?.pid;
    let mnt = pins(&cluster.layout).join(format!("{name}.mnt"));
    let mut command = Command::new("nsenter");
    command.arg(format!("--mount={}", mnt.display())).args([
        "mount",
        "--bind",
        &format!("/proc/{pid}"),
        "/proc/1",
    ]);
    output(&mut command)
        .map(drop)
        .with_context(|| format!("give {name} a first process"))
}

fn pins(layout: &Layout) -> std::path::PathBuf {
    layout.run_dir().join("ns")
}

/// Lets go of every pinned namespace of the cluster; with their last process gone they end, and
/// their mounts with them.
///
/// # Errors
/// A pin cannot be unmounted.
pub fn unpin_all(layout: &Layout) -> Result<()> {
    let pins = pins(layout);
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut points: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| std::path::Path::new(point).starts_with(&pins))
        .collect();
    points.sort_unstable_by_key(|point| std::cmp::Reverse(point.len()));
    for point in points {
        output(Command::new("umount").args(["-l", point]))?;
    }
    Ok(())
}

fn start_containerd(cluster: &mut Cluster, name: &str) -> Result<()> {
    let place = cluster.node_place(name);
    let bin = cluster.outputs.upstream_bin();
    cluster.start(Program {
        name: format!("containerd-{name}"),
        argv: vec![
            bin.join("containerd").display().to_string(),
            "--config=/etc/containerd/config.toml".to_owned(),
        ],
        env: vec![("PATH".to_owned(), files::path_with(&bin))],
        place,
    })
}

/// # Errors
/// It cannot be started.
pub fn start_kubelet(cluster: &mut Cluster, index: u8) -> Result<()> {
    let name = layout::node_name(index);
    let upstream = cluster.state.options.is_upstream_node(index);
    let mut argv = vec![
        control_plane::program_of(cluster, Component::Kubelet, upstream),
        "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf".to_owned(),
        "--kubeconfig=/etc/kubernetes/kubelet.conf".to_owned(),
        "--config=/var/lib/kubelet/config.yaml".to_owned(),
        format!("--hostname-override={name}"),
        format!("--node-ip={}", layout::node_ip(index)),
        "--v=2".to_owned(),
    ];
    if !upstream {
        // What containerd's configuration says for upstream's.
        argv.push(format!("--runtime-handlers=runc,{}", files::TEST_HANDLER));
    }
    let place = cluster.node_place(&name);
    let path = files::path_with(&cluster.outputs.upstream_bin());
    cluster.start(Program {
        name: format!("kubelet-{name}"),
        argv,
        env: vec![("PATH".to_owned(), path)],
        place,
    })
}

/// # Errors
/// It cannot be started.
pub fn start_kube_proxy(cluster: &mut Cluster, name: &str) -> Result<()> {
    let argv = vec![
        control_plane::program(cluster, Component::KubeProxy),
        "--config=/var/lib/kube-proxy/config.conf".to_owned(),
        format!("--hostname-override={name}"),
        "--v=2".to_owned(),
    ];
    let place = cluster.node_place(name);
    cluster.start(Program {
        name: format!("kube-proxy-{name}"),
        argv,
        env: Vec::new(),
        place,
    })
}

/// Once a node has its podCIDR: the control plane learns the way to its pods, and so do the nodes of upstream's kubelets, which
/// get their CNI configuration, too (ours do that themselves).
///
/// # Errors
/// A route or file cannot be set.
pub fn route_pods(cluster: &Cluster, index: u8, pod_cidr: &str) -> Result<()> {
    let node_ip = layout::node_ip(index).to_string();
    lan::route_pods(&cluster.layout.lan_netns(), pod_cidr, &node_ip)?;
    let options = &cluster.state.options;
    if options.is_upstream_node(index) {
        files::write_cni(cluster, &layout::node_name(index), pod_cidr)?;
    }
    for other in (1..=options.nodes).filter(|other| *other != index) {
        if options.is_upstream_node(other) {
            let netns = cluster.layout.node_netns(&layout::node_name(other));
            lan::route_pods(&netns, pod_cidr, &node_ip)?;
        }
    }
    Ok(())
}
