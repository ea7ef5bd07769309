//! `cargo e2e conformance`: upstream's own suite against a fresh cluster, counted by SIG.
//!
//! **Invariant:** every spec that the selection lists is counted: passed, failed or not run; none is lost.

mod report;
mod watch;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cluster::{Cluster, Component, Options};
use crate::programs::{self, Outputs};
use crate::step::Steps;
use report::{Report, Spec, State};

/// The cluster that the suite runs on, unless `--name` says otherwise.
const CLUSTER: &str = "gantryconf";
/// The folder of results, below `target/e2e`.
const RUNS: &str = "conformance";

#[derive(Args, Clone)]
pub struct ConformanceOptions {
    /// Only this SIG, e.g. `node` or `api-machinery`.
    #[arg(long)]
    sig: Option<String>,
    /// Only specs whose full name matches this regular expression.
    #[arg(long)]
    focus: Option<String>,
    /// Only the specs named in this file, a full name a line; `#` starts a comment.
    #[arg(long)]
    specs: Option<PathBuf>,
    /// All specs one by one.
    #[arg(long, conflicts_with = "parallel")]
    serial: bool,
    /// Processes for the specs that allow it.
    #[arg(long, default_value_t = 12)]
    parallel: u16,
    /// Upstream's program in the place of ours.
    #[arg(long, value_enum, value_delimiter = ',')]
    with_upstream: Vec<Component>,
    /// Only the specs that failed or did not run in the last run.
    #[arg(long)]
    rerun_failed: bool,
    /// Run one spec four times, each time with one of our components replaced by upstream's.
    #[arg(long, value_name = "SPEC", conflicts_with_all = ["sig", "focus", "specs", "rerun_failed", "with_upstream"])]
    explain: Option<String>,
    /// Run on the cluster of this name, which is up, and leave it up.
    #[arg(long, value_name = "NAME")]
    on: Option<String>,
    /// The cluster that is made for the run.
    #[arg(skip = CLUSTER)]
    name: String,
    /// The folder of results: only a user's own runs are what `--rerun-failed` looks back at.
    #[arg(skip = RUNS)]
    folder: &'static str,
}

/// # Errors
/// The suite could not be run; failed specs are no error but the exit code.
pub fn run(name: Option<&str>, options: &ConformanceOptions) -> Result<ExitCode> {
    let mut options = options.clone();
    if let Some(name) = name {
        options.name = name.to_owned();
    }
    let options = &options;
    let outputs = Outputs::find();
    let steps = Steps::new(outputs.logs())?;
    programs::build_upstream(&steps, &outputs, &["e2e.test", "ginkgo"])?;
    if let Some(spec) = &options.explain {
        return explain(&steps, &outputs, options, spec);
    }
    let focus = focus(&outputs, options)?;
    let upstream: BTreeSet<Component> = options.with_upstream.iter().copied().collect();
    let report = judge(&steps, &outputs, options, focus.as_deref(), &upstream)?;
    println!("{}", report.table());
    for spec in report.failed() {
        println!("FAILED {}", spec.name);
    }
    for finding in &report.findings {
        println!("FOUND {finding}");
    }
    println!("kept in {}", report.dir.display());
    let whole = focus.is_none() && options.on.is_none();
    if whole && upstream.is_empty() {
        fs::write(
            outputs.workspace.join("e2e/CONFORMANCE.md"),
            report.markdown(),
        )?;
    }
    let good = report.failed().count() == 0
        && report.count(State::NotRun) == 0
        && report.findings.is_empty();
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs the smoke list on a cluster that is up: (passed, failed or lost).
///
/// # Errors
/// The suite could not be run.
pub fn smoke(cluster: &str) -> Result<(u64, u64)> {
    let outputs = Outputs::find();
    let steps = Steps::new(outputs.logs())?;
    programs::build_upstream(&steps, &outputs, &["e2e.test", "ginkgo"])?;
    let options = ConformanceOptions {
        sig: None,
        focus: None,
        specs: Some(outputs.workspace.join("e2e/smoke.txt")),
        serial: false,
        parallel: 8,
        with_upstream: Vec::new(),
        rerun_failed: false,
        explain: None,
        on: Some(cluster.to_owned()),
        name: CLUSTER.to_owned(),
        folder: "smoke",
    };
    let focus = focus(&outputs, &options)?;
    let listed = fs::read_to_string(outputs.workspace.join("e2e/smoke.txt"))?
        .lines()
        .filter(|line| line.starts_with('['))
        .count();
    let report = judge(
        &steps,
        &outputs,
        &options,
        focus.as_deref(),
        &BTreeSet::new(),
    )?;
    for spec in report.failed() {
        println!("FAILED {}\n{}", spec.name, spec.message);
    }
    for finding in &report.findings {
        println!("FOUND {finding}");
    }
    let passed = report.count(State::Passed);
    Ok((
        passed as u64,
        (listed - passed.min(listed) + report.findings.len()) as u64,
    ))
}

/// The regular expression of the selection; `None` for the whole suite.
fn focus(outputs: &Outputs, options: &ConformanceOptions) -> Result<Option<String>> {
    let names = if options.rerun_failed {
        let last = Report::load_last(&runs(outputs))?;
        let names: Vec<String> = last
            .specs
            .iter()
            .filter(|spec| spec.state != State::Passed)
            .map(|spec| spec.name.clone())
            .collect();
        if names.is_empty() {
            bail!("the last run ({}) has no failed spec", last.dir.display());
        }
        Some(names)
    } else if let Some(file) = &options.specs {
        let text =
            fs::read_to_string(file).with_context(|| format!("--specs {}", file.display()))?;
        let names = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(str::to_owned);
        Some(names.collect())
    } else {
        None
    };
    if let Some(names) = names {
        let escaped: Vec<String> = names.iter().map(|name| escape(name)).collect();
        // ginkgo matches the suite's name, a blank and the spec's name.
        return Ok(Some(format!(" ({})$", escaped.join("|"))));
    }
    Ok(match (&options.sig, &options.focus) {
        (Some(sig), None) => Some(format!("\\[sig-{}\\]", escape(sig))),
        (Some(sig), Some(focus)) => Some(format!("\\[sig-{}\\].*({focus})", escape(sig))),
        (None, focus) => focus.clone(),
    })
}

/// Makes a regular expression that matches `text` itself.
fn escape(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            if "\\.+*?()|[]{}^$".contains(c) {
                vec!['\\', c]
            } else {
                vec![c]
            }
        })
        .collect()
}

fn runs(outputs: &Outputs) -> PathBuf {
    outputs.e2e().join(RUNS)
}

/// Brings a cluster up, runs the selection, watches, and counts.
fn judge(
    steps: &Steps,
    outputs: &Outputs,
    options: &ConformanceOptions,
    focus: Option<&str>,
    upstream: &BTreeSet<Component>,
) -> Result<Report> {
    let cluster = match &options.on {
        Some(name) => Cluster::open(name)?,
        None => {
            Cluster::down(&options.name)?;
            Cluster::up(Options {
                name: options.name.clone(),
                with_upstream: upstream.clone(),
                ..Options::default()
            })?
        }
    };
    let dir = outputs
        .e2e()
        .join(options.folder)
        .join(jiff::Zoned::now().strftime("%Y%m%d-%H%M%S").to_string());
    fs::create_dir_all(&dir)?;
    let watch = watch::Watch::begin(&cluster)?;
    let mut specs: Vec<Spec> = Vec::new();
    let phases: &[(&str, &str, u16)] = if options.serial {
        &[("all", "Conformance", 1)]
    } else {
        &[
            ("parallel", "Conformance && !Serial", options.parallel),
            ("serial", "Conformance && Serial", 1),
        ]
    };
    for (phase, labels, procs) in phases {
        let step = steps.start(&format!("conformance ({phase}, {procs} at a time)"), None)?;
        // Failed specs make ginkgo fail: what it reports is what counts.
        let ran = step.run(&mut ginkgo(&cluster, &dir, phase, labels, *procs, focus));
        let reported = report::read_ginkgo(&dir.join(format!("{phase}.json")));
        match reported {
            Ok(reported) => specs.extend(reported),
            Err(err) => {
                ran?;
                return Err(err.context(format!("read the report of phase {phase}")));
            }
        }
        step.done();
    }
    let mut report = Report {
        dir,
        specs,
        findings: Vec::new(),
        upstream: upstream.iter().map(|c| c.name().to_owned()).collect(),
    };
    report.findings = watch.end(&cluster)?;
    report.keep(&cluster)?;
    if options.on.is_none() {
        Cluster::down(&options.name)?;
    }
    Ok(report)
}

fn ginkgo(
    cluster: &Cluster,
    dir: &Path,
    phase: &str,
    labels: &str,
    procs: u16,
    focus: Option<&str>,
) -> Command {
    let bin = &cluster.outputs;
    let kubeconfig = cluster
        .layout
        .kubeconfig("admin-inside")
        .display()
        .to_string();
    let mut command = cluster.control_plane().command(bin.upstream("ginkgo"));
    command.env("KUBECONFIG", &kubeconfig).current_dir(dir);
    command
        .args(["--no-color", "--timeout=3h", "--silence-skips"])
        .arg(format!("--procs={procs}"))
        .arg(format!("--label-filter={labels}"))
        .arg(format!("--json-report={phase}.json"))
        .arg(format!("--junit-report={phase}.xml"))
        .arg(format!("--output-dir={}", dir.display()));
    if let Some(focus) = focus {
        command.arg(format!("--focus={focus}"));
    }
    command
        .arg(bin.upstream("e2e.test"))
        .args([
            "--",
            "--provider=skeleton",
            "--disable-log-dump",
            "--dump-logs-on-failure=false",
            "--num-nodes=2",
        ])
        .args([
            "--allowed-not-ready-nodes=0",
            "--system-pods-startup-timeout=2m",
            "--node-os-distro=custom",
            "--master-os-distro=custom",
        ])
        .arg(format!("--kubeconfig={kubeconfig}"))
        .arg(format!(
            "--kubectl-path={}",
            bin.upstream("kubectl").display()
        ));
    command
}

/// Which of our components is to blame for a failing spec.
fn explain(
    steps: &Steps,
    outputs: &Outputs,
    options: &ConformanceOptions,
    spec: &str,
) -> Result<ExitCode> {
    let options = &ConformanceOptions {
        folder: "explain",
        ..options.clone()
    };
    let focus = escape(spec);
    let mut lines = Vec::new();
    for component in Component::ALL {
        let report = judge(
            steps,
            outputs,
            options,
            Some(&focus),
            &BTreeSet::from([component]),
        )?;
        let ran = report
            .specs
            .iter()
            .filter(|spec| spec.state != State::NotRun)
            .count();
        if ran == 0 {
            bail!("no conformance spec is called {spec:?}");
        }
        let outcome = if report.failed().count() == 0 {
            "passes"
        } else {
            "fails"
        };
        lines.push(format!(
            "{outcome} with upstream's {} ({})",
            component.name(),
            report.dir.display()
        ));
    }
    println!("{}", lines.join("\n"));
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn names_become_expressions_that_match_them() {
        assert_eq!(
            escape("[sig-node] a (b) c.d"),
            "\\[sig-node\\] a \\(b\\) c\\.d"
        );
    }
}
