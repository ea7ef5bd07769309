//! Everything that makes a node dear, at once: the promises hold together, not only one by one.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::bench::quantile;
use e2e::cluster::{Cluster, layout};
use e2e::probe::{Namespace, busybox_pod, cluster};
use e2e::starts::Starts;

use crate::attacker::{elsewhere, idle_connections, raise_descriptor_limit};
use crate::kubelet_server::{Flood, Pace, exec_time};
use crate::sound::Sound;

const NODE: &str = "node-1";
/// How long it goes on.
const LOADED: Duration = Duration::from_secs(300);
/// Pods measured before it begins; enough for a 99th percentile that is not the one worst.
const QUIET_PODS: usize = 120;
/// ConfigMaps of a pod, and pods that have as many.
const OBJECTS: usize = 200;
const READERS: usize = 6;
/// Clients with junk tokens, and the requests of each in a second: five times as many as once made a node NotReady (1,500 in 65 s). As
/// many as the machine can make would leave no processor idle, and a busy one holds up the kernel's own waits (RCU) on which each start
/// of a pod waits several times; strangers are not on the node.
const CLIENTS: usize = 24;
const JUNK_A_SECOND: u32 = 5;

/// Programs that go on until they are dropped.
struct Running(Vec<Child>);

impl Running {
    fn begin(&mut self, mut command: Command) -> Result<()> {
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        self.0.push(child);
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Pods that want a ConfigMap for each of many volumes: a watch each.
fn pods_of_many_objects(ns: &Namespace<'_>) -> Result<()> {
    for reader in 0..READERS {
        let maps: String = (0..OBJECTS)
            .map(|n| {
                format!(
                    "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: map-{reader}-{n}}}\ndata: {{key: value}}\n"
                )
            })
            .collect();
        let volumes: Vec<String> = (0..OBJECTS)
            .map(|n| format!("{{name: v{n}, configMap: {{name: map-{reader}-{n}}}}}"))
            .collect();
        let mounts: Vec<String> = (0..OBJECTS)
            .map(|n| format!("{{name: v{n}, mountPath: /maps/{n}}}"))
            .collect();
        let pod = format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: reader-{reader}}}\nspec:\n  nodeName: {NODE}\n  \
             terminationGracePeriodSeconds: 1\n  volumes: [{}]\n  containers: [{{name: c, image: '{BUSYBOX}', \
             command: [sleep, '36000'], volumeMounts: [{}]}}]\n",
            volumes.join(", "),
            mounts.join(", ")
        );
        ns.apply(&maps)?;
        ns.apply(&pod)?;
    }
    Ok(())
}

const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-2";

/// Pods that look into every process they see, and one with user ids of its own.
fn pods_that_pry(ns: &Namespace<'_>) -> Result<()> {
    let pry = "while :; do for p in /proc/[0-9]*; do ls $p/root/ $p/fd $p/cwd/ >/dev/null 2>&1; done; sleep 0.2; done";
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: pries}}\nspec:\n  nodeName: {NODE}\n  terminationGracePeriodSeconds: 1\n  \
         shareProcessNamespace: true\n  containers:\n  - {{name: app, image: '{BUSYBOX}', command: [sleep, '36000']}}\n  \
         - {{name: tool, image: '{BUSYBOX}', command: [sh, -c, \"{pry}\"], securityContext: {{capabilities: {{add: [SYS_PTRACE]}}}}}}\n\
         ---\napiVersion: v1\nkind: Pod\nmetadata: {{name: mapped}}\nspec:\n  nodeName: {NODE}\n  terminationGracePeriodSeconds: 1\n  \
         hostUsers: false\n  containers: [{{name: c, image: '{BUSYBOX}', command: [sh, -c, \"{pry}\"]}}]\n"
    ))
}

/// An exec whose standard input never ends and is never read.
fn endless_input(ns: &Namespace<'_>, pod: &str) -> Result<Command> {
    let mut command = elsewhere(&ns.command());
    command
        .args(["exec", "-i", pod, "--", "sleep", "36000"])
        .stdin(std::fs::File::open("/dev/zero").context("open /dev/zero")?);
    Ok(command)
}

/// The longest five, each with what was measured before it: whether the beginning is slow, or all of it.
fn longest(seconds: &[f64]) -> String {
    let mut order: Vec<usize> = (0..seconds.len()).collect();
    order.sort_by(|a, b| seconds[*b].total_cmp(&seconds[*a]));
    let words: Vec<String> = order
        .iter()
        .take(5)
        .map(|at| format!("{:.2} s (no. {at})", seconds[*at]))
        .collect();
    words.join(", ")
}

/// Seconds from creation to Ready, pod by pod, until `enough`.
fn starts(
    cluster: &Cluster,
    ns: &Namespace<'_>,
    name: &str,
    mut enough: impl FnMut(usize) -> Result<bool>,
) -> Result<Vec<f64>> {
    let mut watch = Starts::watch(cluster, &ns.name, Some(NODE))?;
    let mut seconds = Vec::new();
    while !enough(seconds.len())? {
        let pod = format!("{name}-{}", seconds.len());
        watch.create(cluster, std::slice::from_ref(&pod))?;
        // The pods that are there already tell of changes, too; only the new one can get Ready.
        seconds.extend(watch.wait(1)?);
        ns.kubectl(&["delete", "pod", &pod, "--wait=false"])?;
    }
    Ok(seconds)
}

/// The attackers have what the node leaves of the machine that they share: their own work is not the node's.
#[test]
#[ignore = "ten minutes: `cargo e2e test hostile` runs it"]
fn everything_at_once_leaves_the_node_ready_and_quick() -> Result<()> {
    raise_descriptor_limit()?;
    let cluster = cluster()?;
    let sound = Sound::begin(&cluster, NODE)?;
    let ns = Namespace::create(&cluster, "hostile-all")?;
    let starting = Namespace::create(&cluster, "hostile-starts")?;
    ns.apply(&busybox_pod("box", NODE, "sleep 36000"))?;
    ns.wait_ready("pod/box", 60)?;
    let mut quiet = starts(&cluster, &starting, "quiet", |n| Ok(n >= QUIET_PODS))?;

    pods_of_many_objects(&ns)?;
    pods_that_pry(&ns)?;
    let flood = Flood::begin(&cluster, CLIENTS, Pace::ASecond(JUNK_A_SECOND))?;
    let held = idle_connections(&cluster, (layout::node_ip(1), 10250).into(), 4500)?;
    let mut running = Running(Vec::new());
    for _ in 0..2 {
        running.begin(endless_input(&ns, "box")?)?;
    }
    let (begun, mut looked) = (Instant::now(), 0);
    let (mut execs, mut most) = (Vec::new(), 0);
    let mut loaded = starts(&cluster, &starting, "loaded", |_| {
        sound.check()?;
        looked += 1;
        most = most.max(sound.resident()?);
        execs.push(exec_time(&ns, "box")?.as_secs_f64());
        Ok(begun.elapsed() >= LOADED)
    })?;
    for reader in 0..READERS {
        ns.wait_ready(&format!("pod/reader-{reader}"), 60)?;
    }
    ns.wait_ready("pod/pries", 60)?;
    ns.wait_ready("pod/mapped", 60)?;
    println!("longest starts under load: {}", longest(&loaded));
    println!("longest execs under load: {}", longest(&execs));
    let (before, under) = (quantile(&mut quiet, 0.99), quantile(&mut loaded, 0.99));
    let exec = quantile(&mut execs, 1.0);
    println!(
        "{looked} looks in {:.0} s; {} pods quiet, {} loaded; create to Ready p50 {:.3} and {:.3} s, p99 {before:.3} and {under:.3} s; \
         exec p50 {:.3} s, longest {exec:.3} s; kubelet at most {} MiB; {} silent connections were held",
        begun.elapsed().as_secs_f64(),
        quiet.len(),
        loaded.len(),
        quantile(&mut quiet, 0.5),
        quantile(&mut loaded, 0.5),
        quantile(&mut execs, 0.5),
        most >> 20,
        held.len(),
    );
    drop((flood, held, running));
    ensure!(exec < 1.0, "an exec took {exec:.3} s");
    ensure!(
        under <= 2.0 * before,
        "create to Ready: p99 {under:.3} s under load, {before:.3} s without"
    );
    sound.check()?;
    starting.delete()?;
    ns.delete()
}
