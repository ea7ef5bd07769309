//! Promise: `cargo e2e down` leaves nothing behind whatever was killed, and a second `up` says that one runs.

use std::process::Command;

use anyhow::{Result, ensure};
use e2e::cluster::{Cluster, Options, cgroup};
use e2e::probe::{cluster, pids_of};
use nix::sys::signal::Signal;

#[test]
fn a_second_up_says_that_one_runs() -> Result<()> {
    let cluster = cluster()?;
    let options = Options {
        name: cluster.state.options.name.clone(),
        ..Options::default()
    };
    let err = Cluster::up(options).expect_err("one runs");
    ensure!(
        format!("{err:#}").contains("already running"),
        "it says {err:#}"
    );
    Ok(())
}

#[test]
fn down_leaves_nothing_of_a_cluster_whose_programs_were_killed() -> Result<()> {
    let name = "gantryhalf";
    let cluster = Cluster::up(Options {
        name: name.to_owned(),
        nodes: 1,
        profile: cluster()?.state.options.profile,
        ..Options::default()
    })?;
    for victim in ["etcd", "kubelet-node-1", "kube-proxy-node-1"] {
        cluster.process(victim)?.signal(Signal::SIGKILL)?;
    }
    Cluster::down(name)?;
    let netns = Command::new("ip").args(["netns", "list"]).output()?;
    ensure!(
        !String::from_utf8_lossy(&netns.stdout).contains(name),
        "a network namespace is left"
    );
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(name), "a mount is left");
    for hierarchy in cgroup::hierarchies()? {
        ensure!(
            !hierarchy.join("gantry-e2e").join(name).exists(),
            "a cgroup is left in {}",
            hierarchy.display()
        );
    }
    ensure!(
        pids_of(&format!("/{name}/")).is_empty(),
        "processes are left: {:?}",
        pids_of(&format!("/{name}/"))
    );
    ensure!(
        !std::path::Path::new("/var/lib/gantry-e2e")
            .join(name)
            .exists(),
        "files are left"
    );
    Ok(())
}
