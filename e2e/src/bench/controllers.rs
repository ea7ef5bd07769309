//! What the control loops cost: CPU and memory of kube-controller-manager, and CPU of the API server that serves it.
//!
//! Each workload is run with ours and with upstream's in turn, on an etcd and an API server of its own, without nodes and without a
//! scheduler: `upstream/controllersbench` stands in for users, schedulers and kubelets. What is counted are CPU seconds, from a
//! phase's begin until [`TRAIL`] after its end, so that work that is left for later counts, too.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde::Deserialize;

use super::quantile;
use crate::cluster::process::{cpu_seconds, pss_bytes};
use crate::cluster::{Cluster, control_plane};
use crate::debian;
use crate::programs::{self, Outputs};
use crate::step::Steps;

const CLUSTER: &str = "benchcontrollers";
const LOAD: &str = "controllersbench";
/// After a phase: what a controller still does for it.
const TRAIL: Duration = Duration::from_secs(10);
/// After the start, before idling is measured: what the start took is given back by then.
const SETTLE: Duration = Duration::from_secs(20);
const IDLE: Duration = Duration::from_secs(30);
const MIB: f64 = 1024.0 * 1024.0;

#[derive(Args)]
pub struct ControllersOptions {
    /// Share of the whole sizes (10,000 pods, 1,000 Jobs, 5,000 nodes, 2,000 Services, 50,000 and 20,000 objects).
    #[arg(long, default_value_t = 1.0, value_parser = share)]
    scale: f64,
    /// Which; all of them by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    workloads: Vec<Workload>,
    /// Pairs of runs; the median of the ratios counts.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Requests a second that each controller may send; upstream's default of 20 would measure the waiting.
    #[arg(long, default_value_t = 1000)]
    qps: u32,
    /// A program in the place of ours, to compare two of our own builds with the same peer.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Ours alone; the ratios are left out.
    #[arg(long)]
    ours_only: bool,
    /// Runs `perf record` on ours; its files are put into this folder.
    #[arg(long)]
    perf: Option<PathBuf>,
    /// Writes the table into this file, too.
    #[arg(long)]
    report: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Workload {
    Deployment,
    Jobs,
    Nodes,
    Services,
    Garbage,
    Namespace,
}

impl Workload {
    fn name(self) -> String {
        let value = self.to_possible_value().expect("no variant is skipped");
        value.get_name().to_owned()
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("must be above 0 and at most 1".to_owned()),
    }
}

/// What one phase took.
#[derive(Clone, Debug, Default)]
struct Figures {
    cpu: f64,
    api_cpu: f64,
    wall: f64,
    pss_mib: f64,
}

/// One phase of one workload, measured on both.
struct Row {
    title: String,
    ours: Vec<Figures>,
    upstream: Vec<Figures>,
}

/// A line of the load's.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    phase: String,
    #[serde(default)]
    objects: u64,
    #[serde(default)]
    wall_seconds: f64,
    #[serde(default)]
    phases: Vec<String>,
}

/// # Errors
/// A program does not build, or a workload does not come to its end.
pub fn run(options: &ControllersOptions) -> Result<()> {
    let outputs = Outputs::find();
    let steps = Steps::new(outputs.logs())?;
    debian::install_missing(&steps)?;
    let manager = "kube-controller-manager";
    let upstream = ["etcd", "kubectl", "kube-apiserver", manager, LOAD];
    programs::build_upstream(&steps, &outputs, &upstream)?;
    if options.program.is_none() {
        programs::build_ours(&steps, &outputs, &[manager])?;
    }
    let ours = options.program.clone();
    let ours = ours.unwrap_or_else(|| outputs.ours(manager));
    let theirs = outputs.upstream(manager);

    let all = Workload::value_variants();
    let wanted = match options.workloads.is_empty() {
        true => all,
        false => &options.workloads,
    };
    let mut rows: Vec<Row> = Vec::new();
    for workload in wanted {
        for _ in 0..options.rounds {
            let name = workload.name();
            let perf = options
                .perf
                .as_ref()
                .map(|dir| dir.join(format!("{name}.perf")));
            let measured = measure(&steps, &outputs, &ours, &name, options, perf.as_deref())?;
            add(&mut rows, &name, measured, |row| &mut row.ours);
            if !options.ours_only {
                let measured = measure(&steps, &outputs, &theirs, &name, options, None)?;
                add(&mut rows, &name, measured, |row| &mut row.upstream);
            }
        }
    }
    let table = table(&mut rows);
    print!("{table}");
    if let Some(path) = &options.report {
        let text = format!("{}{table}", preface(options));
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn add(
    rows: &mut Vec<Row>,
    workload: &str,
    measured: Vec<(String, Figures)>,
    side: impl Fn(&mut Row) -> &mut Vec<Figures>,
) {
    for (phase, figures) in measured {
        let title = format!("{workload}: {phase}");
        let row = match rows.iter().position(|row| row.title == title) {
            Some(at) => &mut rows[at],
            None => {
                rows.push(Row {
                    title,
                    ours: Vec::new(),
                    upstream: Vec::new(),
                });
                rows.last_mut().expect("just pushed")
            }
        };
        side(row).push(figures);
    }
}

/// Runs one workload with `program` on a control plane of its own.
fn measure(
    steps: &Steps,
    outputs: &Outputs,
    program: &Path,
    workload: &str,
    options: &ControllersOptions,
    perf: Option<&Path>,
) -> Result<Vec<(String, Figures)>> {
    Cluster::down(CLUSTER)?;
    let mut cluster = Cluster::up_bare(steps, outputs.clone(), CLUSTER)?;
    let measured = phases(steps, &mut cluster, program, workload, options, perf);
    let measured = measured.with_context(|| format!("{workload} with {}", program.display()))?;
    Cluster::down(CLUSTER)?;
    Ok(measured)
}

fn phases(
    steps: &Steps,
    cluster: &mut Cluster,
    program: &Path,
    workload: &str,
    options: &ControllersOptions,
    perf: Option<&Path>,
) -> Result<Vec<(String, Figures)>> {
    start(cluster, program, options.qps)?;
    let pid = cluster.process("kube-controller-manager")?.pid;
    let api = cluster.process("kube-apiserver")?.pid;
    let sample = || -> Result<(f64, f64)> {
        let of = |pid, what| cpu_seconds(pid).with_context(|| format!("{what} has ended"));
        Ok((
            of(pid, "kube-controller-manager")?,
            of(api, "kube-apiserver")?,
        ))
    };
    let pss = || pss_bytes(pid).map_or(f64::NAN, |bytes| bytes as f64 / MIB);
    let mut measured = Vec::new();

    std::thread::sleep(SETTLE);
    // The whole life of the controller manager so far, and what the API server did since it began.
    let (cpu, _) = sample()?;
    let begun = Figures {
        cpu,
        api_cpu: f64::NAN,
        wall: f64::NAN,
        pss_mib: pss(),
    };
    measured.push(("start".to_owned(), begun));
    let idle = {
        let (cpu, api_cpu) = sample()?;
        std::thread::sleep(IDLE);
        let (cpu_end, api_end) = sample()?;
        Figures {
            cpu: cpu_end - cpu,
            api_cpu: api_end - api_cpu,
            wall: f64::NAN,
            pss_mib: pss(),
        }
    };
    measured.push((format!("idle for {} s", IDLE.as_secs()), idle));

    let recorder = perf.map(|file| Recorder::start(pid, file)).transpose()?;
    let mut load = Load::start(cluster, workload, options.scale)?;
    let names = load.line()?.phases;
    // The nodes that the load began with are taken in.
    std::thread::sleep(TRAIL);
    for phase in names {
        let step = steps.start(&format!("{workload}: {phase}"), None)?;
        let (cpu, api_cpu) = sample()?;
        load.begin()?;
        let line = load.line()?;
        std::thread::sleep(TRAIL);
        let (cpu_end, api_end) = sample()?;
        step.done();
        ensure!(line.phase == phase, "the load says {:?}", line.phase);
        let figures = Figures {
            cpu: cpu_end - cpu,
            api_cpu: api_end - api_cpu,
            wall: line.wall_seconds,
            pss_mib: pss(),
        };
        eprintln!(
            "{} {workload}, {phase}: {} objects, {figures:?}",
            program.display(),
            line.objects
        );
        measured.push((format!("{phase}, {} objects", line.objects), figures));
    }
    drop(recorder);
    load.end()?;
    Ok(measured)
}

/// The controller manager with room for many nodes and requests.
fn start(cluster: &mut Cluster, program: &Path, qps: u32) -> Result<()> {
    let mut manager = control_plane::controller_manager(cluster, 0);
    manager.argv[0] = program.display().to_string();
    manager
        .argv
        .retain(|flag| !flag.starts_with("--cluster-cidr="));
    manager.argv.extend([
        "--cluster-cidr=10.128.0.0/9".to_owned(),
        format!("--kube-api-qps={qps}"),
        format!("--kube-api-burst={qps}"),
    ]);
    cluster.start(manager)
}

/// The program that stands in for users, schedulers and kubelets.
struct Load {
    child: Child,
    input: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
}

impl Load {
    fn start(cluster: &Cluster, workload: &str, scale: f64) -> Result<Self> {
        let mut child = cluster
            .control_plane()
            .command(cluster.outputs.upstream(LOAD))
            .arg("-kubeconfig")
            .arg(cluster.layout.kubeconfig("admin-inside"))
            .args(["-workload", workload, "-scale", &scale.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        Ok(Self {
            input: child.stdin.take(),
            lines: BufReader::new(child.stdout.take().context("stdout is piped")?),
            child,
        })
    }

    /// Lets the next phase begin.
    fn begin(&mut self) -> Result<()> {
        let input = self.input.as_mut().context("stdin is piped")?;
        Ok(input.write_all(b"\n")?)
    }

    fn line(&mut self) -> Result<Line> {
        let mut text = String::new();
        let read = self.lines.read_line(&mut text)?;
        ensure!(read > 0, "{LOAD} ended early; it said why above");
        serde_json::from_str(&text).with_context(|| format!("{LOAD} printed {text:?}"))
    }

    fn end(mut self) -> Result<()> {
        drop(self.input.take());
        ensure!(self.child.wait()?.success(), "{LOAD} failed");
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `perf record`, until dropped.
struct Recorder(Child);

impl Recorder {
    fn start(pid: u32, file: &Path) -> Result<Self> {
        if let Some(dir) = file.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let child = std::process::Command::new("perf")
            .args(["record", "-F", "199", "-g", "-p", &pid.to_string(), "-o"])
            .arg(file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start perf (Debian's linux-perf)")?;
        Ok(Self(child))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT);
        // It writes its file; should it not end, it is not waited for.
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let _ = self.0.kill();
    }
}

/// What stands above the table in a file.
fn preface(options: &ControllersOptions) -> String {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "# What the control loops cost\n\n\
         Made by `cargo e2e bench controllers --scale {} --rounds {} --qps {} --report e2e/PERFORMANCE.md` on a machine with \
         {processors} processors, which others used, too: CPU seconds and ratios count, wall times do not.\n\n\
         kube-controller-manager of ours and of upstream's {}, in turn, each with an etcd and a kube-apiserver of its own; \
         `controllersbench` stands in for users, schedulers and kubelets. Ratios are ours to upstream's. A phase ends {} s after its \
         work is done; the memory (PSS) is that of the controller manager then.\n\n",
        options.scale,
        options.rounds,
        options.qps,
        programs::KUBERNETES_VERSION,
        TRAIL.as_secs(),
    )
}

/// Medians, side by side, as Markdown.
fn table(rows: &mut [Row]) -> String {
    let mut text = String::from(
        "| phase | CPU s | upstream | ratio | PSS MiB | upstream | ratio | API server CPU s | upstream | ratio | wall s | upstream |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for row in rows {
        let median = |value: fn(&Figures) -> f64| {
            let of =
                |side: &[Figures]| quantile(&mut side.iter().map(value).collect::<Vec<_>>(), 0.5);
            (of(&row.ours), of(&row.upstream))
        };
        text.push_str(&format!("| {} |", row.title));
        let columns: [fn(&Figures) -> f64; 3] = [|f| f.cpu, |f| f.pss_mib, |f| f.api_cpu];
        for value in columns {
            let (ours, upstream) = median(value);
            for (number, digits) in [(ours, 1), (upstream, 1), (ours / upstream, 2)] {
                text.push_str(&cell(number, digits));
            }
        }
        let (ours, upstream) = median(|f| f.wall);
        text.push_str(&cell(ours, 1));
        text.push_str(&cell(upstream, 1));
        text.push('\n');
    }
    text
}

fn cell(number: f64, digits: usize) -> String {
    match number.is_finite() {
        true => format!(" {number:.digits$} |"),
        false => " |".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_medians_and_ratios() {
        let figures = |cpu| Figures {
            cpu,
            api_cpu: 8.0,
            wall: f64::NAN,
            pss_mib: 30.0,
        };
        let mut rows = Vec::new();
        let phase = |cpu| vec![("up".to_owned(), figures(cpu))];
        for cpu in [1.0, 9.0, 2.0] {
            add(&mut rows, "w", phase(cpu), |row| &mut row.ours);
            add(&mut rows, "w", phase(cpu * 5.0), |row| &mut row.upstream);
        }
        let text = table(&mut rows);
        let last = text.lines().last().expect("a row");
        assert_eq!(
            last,
            "| w: up | 2.0 | 10.0 | 0.20 | 30.0 | 30.0 | 1.00 | 8.0 | 8.0 | 1.00 | | |"
        );
    }

    #[test]
    fn shares_have_bounds() {
        assert_eq!(share("0.25"), Ok(0.25));
        assert!(["0", "1.5", "x", "NaN"].iter().all(|s| share(s).is_err()));
    }
}
