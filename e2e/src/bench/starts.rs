//! Sustained starts of pods: how many a node starts for a CPU second, how long each takes, and what the API server and the disk see of it.
//!
//! Two clusters of one node each, ours and upstream's kubelet with containerd; all else is upstream's in both. Each is loaded in turn. A
//! pod is in flight from its creation until it is gone: as many as asked for are kept so, each deleted as soon as it is Ready. The node's
//! CPU is that of its pods and of kubelet, containerd, shims, runc and whatever else they start, what ended included.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::quantile;
use crate::cluster::{Cluster, Component, Options, cgroup};
use crate::programs::Profile;

/// Pods that one kubectl creates or deletes: a process for each would be most of the machine's work.
const BATCH: usize = 10;
/// More would not fit the node's /24 beside those that are on their way out.
const MOST_IN_FLIGHT: usize = 220;
/// Before the window: until the first pods come back.
const WARM: Duration = Duration::from_secs(10);
/// Pods of the short run under strace.
const TRACED: usize = 20;
/// No pod takes so long that gets Ready, or goes, at all.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long strace may take to let go of some hundred threads.
const STRACE_ENDS: Duration = Duration::from_secs(30);
/// What asks the kernel to wait for a disk.
const BARRIERS: &str = "fsync,fdatasync,sync,syncfs,sync_file_range,msync";

#[derive(Args)]
pub struct StartsOptions {
    /// Pods in flight, a row of figures for each.
    #[arg(long, value_delimiter = ',', default_values_t = [200])]
    in_flight: Vec<usize>,
    /// How long each is measured, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Times ours and upstream's take turns.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Of our programs.
    #[arg(long, value_enum, default_value = "release")]
    profile: Profile,
    /// Leave the clusters up.
    #[arg(long)]
    keep: bool,
}

/// What a window of starts was.
#[derive(Clone, Debug, Default)]
struct Window {
    seconds: f64,
    node_cpu: f64,
    /// From creation to Ready, of those that got Ready within the window.
    latencies: Vec<f64>,
    /// Writes of a pod's life but its creation and the first deletion, which are the client's.
    writes: f64,
    gone: f64,
}

/// # Errors
/// A cluster does not come up, or a pod does not get Ready.
pub fn run(options: &StartsOptions) -> Result<()> {
    for pods in &options.in_flight {
        ensure!(
            (BATCH..=MOST_IN_FLIGHT).contains(pods),
            "--in-flight {pods}: from {BATCH} to {MOST_IN_FLIGHT}"
        );
    }
    let ours: BTreeSet<Component> = Component::ALL
        .into_iter()
        .filter(|component| *component != Component::Kubelet)
        .collect();
    let sides = [
        ("startsours", ours),
        ("startsupstream", BTreeSet::from(Component::ALL)),
    ];
    let mut clusters = Vec::new();
    for (name, with_upstream) in sides {
        clusters.push(up(name, with_upstream, options.profile)?);
    }
    println!(
        "{:<44} {:>10} {:>10} {:>8}",
        "", "ours", "upstream", "ratio"
    );
    for in_flight in &options.in_flight {
        let mut windows: [Vec<Window>; 2] = Default::default();
        for round in 0..options.rounds {
            for (cluster, windows) in clusters.iter().zip(&mut windows) {
                let prefix = format!("s{in_flight}-{round}");
                let mut load = Load::begin(cluster, &prefix, *in_flight)?;
                windows.push(load.window(Duration::from_secs(options.seconds))?);
                load.end()?;
            }
        }
        print(*in_flight, &mut windows);
    }
    let calls = clusters.iter().map(barriers).collect::<Result<Vec<_>>>()?;
    row("fsync-family calls a start", calls[0], calls[1]);
    if !options.keep {
        for cluster in &clusters {
            Cluster::down(&cluster.state.options.name)?;
        }
    }
    Ok(())
}

/// A cluster whose node is empty and has the image.
fn up(name: &str, with_upstream: BTreeSet<Component>, profile: Profile) -> Result<Cluster> {
    Cluster::down(name)?;
    let cluster = Cluster::up(Options {
        name: name.to_owned(),
        nodes: 1,
        max_pods: 250,
        with_upstream,
        profile,
        ..Options::default()
    })?;
    for words in [
        &["scale", "deployment/coredns", "--replicas=0"][..],
        &[
            "wait",
            "--for=delete",
            "pod",
            "-l",
            "k8s-app=kube-dns",
            "--timeout=90s",
        ],
    ] {
        cluster.kubectl(&[&["-n", "kube-system"], words].concat())?;
    }
    count_programs(&cluster)?;
    let mut warm = Load::begin(&cluster, "warm", BATCH)?;
    warm.until_ready(1)?;
    warm.end()?;
    Ok(cluster)
}

fn print(in_flight: usize, windows: &mut [Vec<Window>; 2]) {
    println!("{in_flight} pods in flight");
    let [ours, upstream] = windows;
    let mut show = |title: &str, value: &dyn Fn(&mut Window) -> f64| {
        let median = |windows: &mut Vec<Window>| {
            let mut all: Vec<f64> = windows.iter_mut().map(value).collect();
            quantile(&mut all, 0.5)
        };
        row(title, median(ours), median(upstream));
    };
    show("  starts a second", &|w| {
        w.latencies.len() as f64 / w.seconds
    });
    show("  starts a CPU second of the node", &|w| {
        w.latencies.len() as f64 / w.node_cpu
    });
    show("  CPU of the node a start, ms", &|w| {
        1000.0 * w.node_cpu / w.latencies.len() as f64
    });
    show("  create to Ready, p50 s", &|w| {
        quantile(&mut w.latencies, 0.5)
    });
    show("  create to Ready, p99 s", &|w| {
        quantile(&mut w.latencies, 0.99)
    });
    show("  API writes from create to gone", &|w| w.writes / w.gone);
}

fn row(title: &str, ours: f64, upstream: f64) {
    println!(
        "{title:<44} {ours:>10.2} {upstream:>10.2} {:>8.2}",
        ours / upstream
    );
}

/// What the watch said.
struct Seen {
    at: Instant,
    deleted: bool,
    name: String,
    ready: bool,
}

fn seen(line: &str) -> Option<Seen> {
    let mut words = line.split(' ');
    let (kind, name, ready) = (words.next()?, words.next()?, words.next());
    Some(Seen {
        at: Instant::now(),
        deleted: kind == "DELETED",
        name: name.to_owned(),
        ready: ready == Some("True"),
    })
}

/// Keeps pods in flight.
struct Load<'a> {
    cluster: &'a Cluster,
    prefix: String,
    in_flight: usize,
    watch: Child,
    seen: mpsc::Receiver<Seen>,
    /// When each of those that are there was first seen.
    there: BTreeMap<String, Instant>,
    /// Ready, and not yet deleted.
    ready: Vec<String>,
    deleting: BTreeSet<String>,
    made: usize,
    gone: usize,
    latencies: Vec<(Instant, f64)>,
}

impl<'a> Load<'a> {
    fn begin(cluster: &'a Cluster, prefix: &str, in_flight: usize) -> Result<Self> {
        let template = "jsonpath={.type} {.object.metadata.name} {.object.status.conditions[?(@.type==\"Ready\")].status}{\"\\n\"}";
        let mut watch = cluster
            .kubectl_command()
            .args(["get", "pods", "--watch-only", "--output-watch-events", "-o"])
            .arg(template)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = watch.stdout.take().context("stdout is piped")?;
        let (sender, seen_by) = mpsc::channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            for seen in lines.filter_map(|line| seen(&line)) {
                if sender.send(seen).is_err() {
                    break;
                }
            }
        });
        // The first pod must not be created before the watch stands, and kubectl says nothing when it does.
        std::thread::sleep(Duration::from_secs(2));
        let mut load = Self {
            cluster,
            prefix: prefix.to_owned(),
            in_flight,
            watch,
            seen: seen_by,
            there: BTreeMap::new(),
            ready: Vec::new(),
            deleting: BTreeSet::new(),
            made: 0,
            gone: 0,
            latencies: Vec::new(),
        };
        load.fill()?;
        Ok(load)
    }

    /// Creates what is missing, a batch at a time.
    fn fill(&mut self) -> Result<()> {
        while self.made - self.gone + BATCH <= self.in_flight {
            let manifest: Vec<String> = (self.made..self.made + BATCH)
                .map(|number| pod(&format!("{}-{number}", self.prefix)))
                .collect();
            let mut child = self
                .cluster
                .kubectl_command()
                .args(["create", "-f", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()?;
            let mut stdin = child.stdin.take().context("stdin is piped")?;
            stdin.write_all(manifest.join("---\n").as_bytes())?;
            drop(stdin);
            ensure!(child.wait()?.success(), "kubectl create failed");
            self.made += BATCH;
            self.drain();
        }
        Ok(())
    }

    fn drain(&mut self) {
        while let Ok(seen) = self.seen.try_recv() {
            self.note(seen);
        }
    }

    fn note(&mut self, seen: Seen) {
        if !seen.name.starts_with(&self.prefix) {
            return;
        }
        if seen.deleted {
            self.gone += usize::from(self.there.remove(&seen.name).is_some());
            self.deleting.remove(&seen.name);
            return;
        }
        let created = *self.there.entry(seen.name.clone()).or_insert(seen.at);
        if seen.ready && self.deleting.insert(seen.name.clone()) {
            let seconds = (seen.at - created).as_secs_f64();
            self.latencies.push((seen.at, seconds));
            self.ready.push(seen.name);
        }
    }

    fn delete_ready(&mut self, least: usize) -> Result<()> {
        if self.ready.is_empty() || self.ready.len() < least {
            return Ok(());
        }
        let names = std::mem::take(&mut self.ready);
        let mut words = vec!["delete", "pod", "--wait=false"];
        words.extend(names.iter().map(String::as_str));
        self.cluster.kubectl(&words).map(drop)
    }

    /// One step: what the watch says next, then what follows from it.
    fn step(&mut self) -> Result<()> {
        if let Ok(seen) = self.seen.recv_timeout(Duration::from_millis(200)) {
            self.note(seen);
            self.drain();
        }
        self.delete_ready(BATCH)?;
        self.fill()
    }

    /// Until so many got Ready.
    fn until_ready(&mut self, count: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.latencies.len() < count {
            ensure!(
                Instant::now() < deadline,
                "{} of {count} pods got Ready",
                self.latencies.len()
            );
            self.step()?;
        }
        Ok(())
    }

    fn window(&mut self, length: Duration) -> Result<Window> {
        self.until_ready(1)?;
        let warm = Instant::now() + WARM;
        while Instant::now() < warm {
            self.step()?;
        }
        let begun = Instant::now();
        let (cpu, written, gone) = (node_cpu(self.cluster)?, writes(self.cluster)?, self.gone);
        while begun.elapsed() < length {
            self.step()?;
        }
        let until = Instant::now();
        let within = self
            .latencies
            .iter()
            .filter(|(at, _)| (begun..until).contains(at));
        Ok(Window {
            latencies: within.map(|(_, seconds)| *seconds).collect(),
            seconds: (until - begun).as_secs_f64(),
            node_cpu: node_cpu(self.cluster)? - cpu,
            writes: writes(self.cluster)? - written,
            gone: (self.gone - gone) as f64,
        })
    }

    /// Lets all go.
    fn end(mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.gone < self.made {
            ensure!(
                Instant::now() < deadline,
                "{} of {} pods are gone",
                self.gone,
                self.made
            );
            if let Ok(seen) = self.seen.recv_timeout(Duration::from_millis(200)) {
                self.note(seen);
                self.drain();
            }
            self.delete_ready(1)?;
        }
        Ok(())
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        let _ = self.watch.kill();
        let _ = self.watch.wait();
    }
}

/// A pod that only waits.
fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  nodeName: node-1\n  terminationGracePeriodSeconds: 1\n  \
         containers:\n  - name: main\n    image: registry.k8s.io/e2e-test-images/agnhost:2.66.1\n    args: [pause]\n"
    )
}

/// The group of the node's programs, beside those of its pods.
fn programs_group(cluster: &Cluster) -> String {
    format!("{}/node-programs", cluster.layout.cgroup())
}

/// Has the node's programs counted apart from the control plane's: kubelet and containerd, and all that they start.
fn count_programs(cluster: &Cluster) -> Result<()> {
    let of_the_node = |name: &str| name.starts_with("kubelet-") || name.starts_with("containerd-");
    let programs = cluster.state.processes.iter();
    let pids: Vec<u32> = programs
        .filter(|(name, _)| of_the_node(name))
        .map(|(_, process)| process.pid)
        .collect();
    cgroup::count_cpu_of(&programs_group(cluster), &pids)
}

/// CPU seconds of the node, its programs and its pods; what ended counts, too.
fn node_cpu(cluster: &Cluster) -> Result<f64> {
    let pods = cgroup::cpu_seconds(&cluster.layout.node_cgroup("node-1"))?;
    Ok(pods + cgroup::cpu_seconds(&programs_group(cluster))?)
}

/// Writes that the API server answered, of a pod's life: statuses, events, tokens, the kubelet's deletion.
fn writes(cluster: &Cluster) -> Result<f64> {
    let text = cluster.kubectl(&["get", "--raw", "/metrics"])?;
    Ok(counted(&text))
}

fn counted(metrics: &str) -> f64 {
    let label = |line: &str, name: &str| {
        let rest = line.split_once(&format!("{name}=\""))?.1;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let of = |line: &str| -> Option<f64> {
        let (resource, verb) = (label(line, "resource")?, label(line, "verb")?);
        let subresource = label(line, "subresource")?;
        let write = ["POST", "PUT", "PATCH", "APPLY", "DELETE"].contains(&verb.as_str());
        let of_a_pod = match (resource.as_str(), subresource.as_str()) {
            // The client's.
            ("pods", "") => verb != "POST",
            ("pods", _) | ("events", _) => true,
            ("serviceaccounts", "token") => true,
            _ => false,
        };
        let value: f64 = line.rsplit_once(' ')?.1.parse().ok()?;
        // Each pod is deleted twice: by the client, then for good by the kubelet.
        let own = if resource == "pods" && subresource.is_empty() && verb == "DELETE" {
            0.5
        } else {
            1.0
        };
        (write && of_a_pod).then_some(value * own)
    };
    metrics
        .lines()
        .filter(|line| line.starts_with("apiserver_request_total{"))
        .filter_map(of)
        .sum()
}

/// Calls that wait for a disk, for each of some pods that start one after the other; the programs that start meanwhile are seen, too.
fn barriers(cluster: &Cluster) -> Result<f64> {
    let counts = tempfile::NamedTempFile::new()?;
    let mut command = Command::new("strace");
    command
        .args(["-f", "-q", "-e"])
        .arg(format!("trace={BARRIERS}"))
        .arg("-o")
        .arg(counts.path());
    for (name, process) in &cluster.state.processes {
        if name.starts_with("kubelet-") || name.starts_with("containerd-") {
            command.args(["-p", &process.pid.to_string()]);
        }
    }
    let mut strace = Strace(command.spawn().context("start strace")?);
    // strace says nothing when it is attached to all threads.
    std::thread::sleep(Duration::from_secs(3));
    let mut load = Load::begin(cluster, "traced", BATCH)?;
    let started = load.until_ready(TRACED);
    let ready = load.latencies.len();
    strace.end()?;
    started?;
    load.end()?;
    let text = std::fs::read_to_string(counts.path())?;
    Ok(traced_calls(&text) as f64 / ready as f64)
}

/// A strace that lets go of what it looks at, whatever becomes of the run.
struct Strace(Child);

impl Strace {
    /// Has it write what it has and end.
    fn end(&mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.0.id())?), Signal::SIGINT)?;
        let deadline = Instant::now() + STRACE_ENDS;
        while self.0.try_wait()?.is_none() {
            ensure!(
                Instant::now() < deadline,
                "strace has not ended {} s after it was told to",
                STRACE_ENDS.as_secs()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lines of calls; one that was interrupted by another thread's stands twice.
fn traced_calls(text: &str) -> usize {
    text.lines()
        .filter(|line| !line.contains("resumed>"))
        .filter(|line| {
            BARRIERS
                .split(',')
                .any(|call| line.contains(&format!(" {call}(")))
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::{counted, seen, traced_calls};

    #[test]
    fn a_pods_writes_are_told_from_others() {
        let line = |verb: &str, resource: &str, subresource: &str, count: u32| {
            format!(
                "apiserver_request_total{{code=\"200\",component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"{resource}\",scope=\"resource\",subresource=\"{subresource}\",verb=\"{verb}\",version=\"v1\"}} {count}\n"
            )
        };
        let text = [
            line("PATCH", "pods", "status", 5),
            line("POST", "events", "", 4),
            line("POST", "serviceaccounts", "token", 1),
            line("DELETE", "pods", "", 2),
            line("POST", "pods", "", 100),
            line("GET", "pods", "", 100),
            line("PUT", "leases", "", 100),
        ];
        assert_eq!(counted(&text.concat()), 11.0);
    }

    #[test]
    fn calls_are_counted_once() {
        let text = "7 fsync(3 <unfinished ...>\n8 openat(AT_FDCWD, \"fsync\") = 3\n7 <... fsync resumed>) = 0\n8 syncfs(4) = 0\n";
        assert_eq!(traced_calls(text), 2);
    }

    #[test]
    fn lines_of_the_watch() {
        let ready = seen("MODIFIED a True").expect("a line");
        assert!(ready.ready && !ready.deleted && ready.name == "a");
        let fresh = seen("ADDED a ").expect("a line");
        assert!(!fresh.ready && !fresh.deleted);
        assert!(seen("DELETED a True").expect("a line").deleted);
    }
}
