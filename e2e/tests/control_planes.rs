//! Promise: with three control planes any one may die, again and again: no write that was acknowledged is lost, no pod is disturbed, no
//! node is NotReady, and what is asked of the cluster is done meanwhile. `cargo e2e test control_planes` makes such a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::cluster::Cluster;
use e2e::cluster::control_plane::replica_name;
use e2e::probe::{Namespace, busybox_pod, cluster, pids_of, wait_until};
use nix::sys::signal::Signal;

const KILLS: u8 = 20;
const MEMBERS: u8 = 3;
/// A leader's lease of 15 s, its successor's wait and jitter, and the pods' own start.
const DONE_WITHIN: &str = "--timeout=60s";
const PROGRAMS: [&str; 4] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
];
const CALM: [(&str, &str); 4] = [
    ("calm-1", "node-1"),
    ("calm-2", "node-1"),
    ("calm-3", "node-2"),
    ("calm-4", "node-2"),
];

/// All programs of one control plane, at once.
fn kill(cluster: &Cluster, member: u8) -> Result<()> {
    for program in PROGRAMS {
        cluster
            .process(&replica_name(program, member))?
            .signal(Signal::SIGKILL)?;
    }
    for program in PROGRAMS {
        let name = replica_name(program, member);
        ensure!(
            cluster.process(&name)?.wait_gone(Duration::from_secs(10)),
            "{name} does not die"
        );
    }
    Ok(())
}

fn start_again(cluster: &mut Cluster, member: u8) -> Result<()> {
    for program in PROGRAMS {
        cluster.restart(&replica_name(program, member))?;
    }
    let server = format!(
        "--server=https://{}:{}",
        e2e::cluster::layout::member_ip(member),
        e2e::cluster::layout::API_SERVER_PORT
    );
    wait_until("the API server to be back", Duration::from_secs(60), || {
        Ok(cluster
            .kubectl(&[&server, "get", "--raw", "/readyz"])
            .is_ok())
    })
}

/// When each node became Ready.
fn ready_since(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let mut since = BTreeMap::new();
    for node in cluster.nodes() {
        let ready = cluster.kubectl(&[
            "get",
            "node",
            &node,
            "-o",
            "jsonpath={range .status.conditions[?(@.type=='Ready')]}{.status} {.lastTransitionTime}{end}",
        ])?;
        ensure!(ready.starts_with("True "), "{node} is Ready: {ready}");
        since.insert(node, ready);
    }
    Ok(since)
}

fn calm_pids() -> BTreeMap<&'static str, Vec<u32>> {
    CALM.iter()
        .map(|(name, _)| (*name, pids_of(&format!(": planes {name};"))))
        .collect()
}

/// Creates objects until it is told to end; gives the names of those that the server said were created.
fn write(ns: &Namespace<'_>, end: &AtomicBool) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for number in 0.. {
        if end.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("written-{number}");
        let created = ns.kubectl(&["create", "configmap", &name, "--request-timeout=10s"]);
        if created.is_ok() {
            acknowledged.push(name);
        }
    }
    acknowledged
}

/// Kills and revives one after the other; after each death a Deployment is scaled, which wants a scheduler and a controller manager.
fn kill_each_in_turn(cluster: &mut Cluster, ns: &Namespace<'_>) -> Result<Vec<f64>> {
    let mut seconds = Vec::new();
    for round in 0..KILLS {
        let member = round % MEMBERS;
        kill(cluster, member)?;
        let died = Instant::now();
        let replicas = format!("--replicas={}", if round % 2 == 0 { 5 } else { 3 });
        wait_until("the rest to take a write", Duration::from_secs(30), || {
            Ok(ns
                .kubectl(&["scale", "deployment/web", &replicas, "--request-timeout=5s"])
                .is_ok())
        })?;
        wait_until("the pods of the new scale", Duration::from_secs(70), || {
            Ok(ns
                .kubectl(&["rollout", "status", "deployment/web", DONE_WITHIN])
                .is_ok())
        })
        .with_context(|| format!("round {round}, control plane {member} is dead"))?;
        seconds.push(died.elapsed().as_secs_f64());
        start_again(cluster, member)?;
    }
    Ok(seconds)
}

#[test]
#[ignore = "a cluster of three control planes: `cargo e2e test control_planes` makes it"]
fn any_of_three_control_planes_may_die() -> Result<()> {
    let mut cluster = cluster()?;
    let asking = Cluster::open(&cluster.state.options.name)?;
    let members = cluster.state.options.control_planes;
    if members != MEMBERS {
        bail!("the cluster has {members} control planes, not {MEMBERS}");
    }
    let ns = Namespace::create(&asking, "planes")?;
    for (name, node) in CALM {
        ns.apply(&busybox_pod(
            name,
            node,
            &format!(": planes {name}; trap 'exit 0' TERM; sleep 36000 & wait"),
        ))?;
        ns.wait_ready(&format!("pod/{name}"), 60)?;
    }
    ns.kubectl(&[
        "create",
        "deployment",
        "web",
        "--image=registry.k8s.io/pause:3.10.2",
        "--replicas=3",
    ])?;
    ns.wait_rollout("deployment/web", 60)?;
    let (pids, since) = (calm_pids(), ready_since(&cluster)?);
    ensure!(pids.values().all(|pids| pids.len() == 1), "{pids:?}");

    let end = AtomicBool::new(false);
    let (acknowledged, seconds) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&ns, &end));
        let seconds = kill_each_in_turn(&mut cluster, &ns);
        end.store(true, Ordering::Relaxed);
        let acknowledged = writer.join().expect("the writer does not panic");
        seconds.map(|seconds| (acknowledged, seconds))
    })?;

    let there = ns.kubectl(&["get", "configmaps", "-o", "name"])?;
    let there: BTreeSet<&str> = there.lines().collect();
    let lost: Vec<&String> = acknowledged
        .iter()
        .filter(|name| !there.contains(format!("configmap/{name}").as_str()))
        .collect();
    eprintln!(
        "{} writes were acknowledged; a change was done {:.1} s after a death in the worst case: {seconds:.1?}",
        acknowledged.len(),
        seconds.iter().copied().fold(0.0, f64::max)
    );
    ensure!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    ensure!(
        acknowledged.len() > usize::from(KILLS),
        "only {} writes were acknowledged",
        acknowledged.len()
    );
    ensure!(calm_pids() == pids, "a pod has another process now");
    for (name, _) in CALM {
        let pod = ns.json(&["get", "pod", name])?;
        ensure!(
            pod["status"]["containerStatuses"][0]["restartCount"] == 0,
            "{name} was restarted"
        );
    }
    let now = ready_since(&cluster)?;
    ensure!(
        now == since,
        "a node was not Ready: {since:?}, then {now:?}"
    );
    ns.delete()
}
