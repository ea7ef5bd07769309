//! `cargo e2e conformance`: upstream's own suites against a fresh cluster, counted by SIG.
//!
//! **Invariant:** every spec that the selection lists is counted: passed, flaked, failed or not run; none is lost.

mod report;
mod results;
mod suite;
mod watch;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::cluster::{Cluster, Component, Options};
use crate::programs::{self, Kubernetes, Outputs, Profile};
use crate::step::Steps;
use report::{Report, Spec, State};

/// The cluster that the suite runs on, unless `--name` says otherwise.
const CLUSTER: &str = "gantryconf";
/// The folder of results, below `target/e2e`.
const RUNS: &str = "conformance";

#[derive(Args, Clone)]
pub struct ConformanceOptions {
    /// A suite of `e2e/suites.toml`.
    #[arg(long, value_name = "NAME", default_value = suite::DEFAULT)]
    suite: String,
    /// The version of the API server and of the suite.
    #[arg(long, value_enum, default_value = "1.37")]
    kubernetes: Kubernetes,
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
    /// How our programs are built; a run that is kept is one of release.
    #[arg(long, value_enum, default_value = "release")]
    profile: Profile,
    /// Begin no more specs after this many minutes; those left count as not run.
    #[arg(long, value_name = "MINUTES", default_value_t = 180)]
    budget: u16,
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
    programs::build_upstream(&steps, &outputs, &[options.kubernetes.suites(), "ginkgo"])?;
    if let Some(spec) = &options.explain {
        return explain(&steps, &outputs, options, spec);
    }
    let suite = suite::find(&outputs.workspace, &options.suite)?;
    let focus = focus(&outputs, options)?;
    let upstream: BTreeSet<Component> = options.with_upstream.iter().copied().collect();
    let report = judge(&steps, &outputs, options, focus.as_deref(), &upstream)?;
    println!("{}", report.table());
    for spec in report.failed() {
        println!("FAILED {}", spec.name);
    }
    for spec in report
        .specs
        .iter()
        .filter(|spec| spec.state == State::Flaked)
    {
        println!("FLAKED {}", spec.name);
    }
    for finding in &report.findings {
        println!("FOUND {finding}");
    }
    println!("kept in {}", report.dir.display());
    let own = options.kubernetes == Kubernetes::default() && options.profile == Profile::Release;
    if focus.is_none() && options.on.is_none() && own {
        results::keep(&outputs.workspace, &options.suite, &report, &upstream)?;
        println!(
            "{}",
            results::compare(&outputs.workspace, &options.suite, &suite)?
        );
    }
    let good = report.failed().count() == 0
        && report.count(State::Flaked) == 0
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
        suite: suite::DEFAULT.to_owned(),
        kubernetes: Kubernetes::default(),
        budget: 60,
        sig: None,
        focus: None,
        specs: Some(outputs.workspace.join("e2e/smoke.txt")),
        serial: false,
        parallel: 8,
        with_upstream: Vec::new(),
        profile: Profile::default(),
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

/// Runs the smoke list on any cluster, by its kubeconfig: the number of specs that passed, and the names of those that did not, or did
/// not run. What ginkgo says goes to `dir`.
///
/// # Errors
/// The suite could not be run.
pub fn smoke_at(
    steps: &Steps,
    outputs: &Outputs,
    kubeconfig: &Path,
    dir: &Path,
) -> Result<(usize, Vec<String>)> {
    let program = Kubernetes::default().suites();
    programs::build_upstream(steps, outputs, &[program, "ginkgo"])?;
    let list = fs::read_to_string(outputs.workspace.join("e2e/smoke.txt"))?;
    let listed: Vec<String> = list
        .lines()
        .filter(|line| line.starts_with('['))
        .map(str::to_owned)
        .collect();
    fs::create_dir_all(dir)?;
    let mut command = Command::new(outputs.upstream("ginkgo"));
    command
        .env("KUBECONFIG", kubeconfig)
        .current_dir(dir)
        .args(["--no-color", "--silence-skips", "--timeout=20m"])
        .args(["--procs=4", "--json-report=smoke.json"])
        .arg(format!("--output-dir={}", dir.display()))
        .arg(format!("--focus={}", of_names(&listed)));
    suite_arguments(&mut command, outputs, program, kubeconfig);
    let step = steps.start("upstream's fast specs", None)?;
    // Failed specs make ginkgo fail: what it reports is what counts.
    let ran = step.run(&mut command);
    let specs = match report::read_ginkgo(&dir.join("smoke.json")) {
        Ok(specs) => specs,
        Err(error) => {
            ran?;
            return Err(error);
        }
    };
    step.done();
    let passed = names(&specs, State::Passed);
    let others = listed.into_iter().filter(|name| !passed.contains(name));
    Ok((passed.len(), others.collect()))
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
        return Ok(Some(of_names(&names)));
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
    let suite = suite::find(&outputs.workspace, &options.suite)?;
    let cluster = match &options.on {
        Some(name) => {
            let cluster = Cluster::open(name)?;
            serves(&cluster.state.options, &suite)?;
            cluster
        }
        None => {
            Cluster::down(&options.name)?;
            Cluster::up(Options {
                name: options.name.clone(),
                with_upstream: upstream.clone(),
                kubernetes: options.kubernetes,
                images: suite.images.clone(),
                with_csi: suite.with_csi.clone(),
                profile: options.profile,
                ..Options::default()
            })?
        }
    };
    let dir = outputs
        .e2e()
        .join(options.folder)
        .join(jiff::Zoned::now().strftime("%Y%m%d-%H%M%S").to_string());
    fs::create_dir_all(&dir)?;
    let skip = suite.skipped();
    let end = Instant::now() + Duration::from_secs(u64::from(options.budget) * 60);
    let watch = watch::Watch::begin(&cluster)?;
    let mut specs: Vec<Spec> = Vec::new();
    for phase in &suite.phases {
        let mut run = Run {
            name: phase.name.clone(),
            labels: &phase.labels,
            procs: match phase.serial || options.serial {
                true => 1,
                false => options.parallel,
            },
            focus: focus.or(phase.focus.as_deref()),
            skip: skip.as_deref(),
            budget: end.saturating_duration_since(Instant::now()),
        };
        let mut ran = run.go(steps, &cluster, &dir)?;
        let failed: Vec<String> = names(&ran, State::Failed);
        // A spec that fails once and passes once is neither good nor known to be bad.
        if !failed.is_empty() && failed.len() <= RERUN_AT_MOST {
            let again = of_names(&failed);
            run.name.push_str("-again");
            run.procs = 1;
            run.focus = Some(&again);
            run.budget = end.saturating_duration_since(Instant::now());
            let passed = names(&run.go(steps, &cluster, &dir)?, State::Passed);
            for spec in ran.iter_mut().filter(|spec| passed.contains(&spec.name)) {
                spec.state = State::Flaked;
            }
        }
        specs.extend(ran);
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

/// Without the images and the storage that they ask for, specs fail for no reason in us.
fn serves(cluster: &Options, suite: &suite::Suite) -> Result<()> {
    let has = cluster.image_sets();
    let lacks: Vec<&str> = (suite.images.iter().map(String::as_str))
        .filter(|set| !has.contains(set))
        .collect();
    ensure!(
        lacks.is_empty(),
        "--on {}: the suite wants the images {}; the cluster is to be brought up with --with-images {}",
        cluster.name,
        lacks.join(", "),
        lacks.join(",")
    );
    ensure!(
        suite.with_csi.is_subset(&cluster.with_csi),
        "--on {}: the suite wants storage; the cluster is to be brought up with --with-csi {}",
        cluster.name,
        suite
            .with_csi
            .iter()
            .map(|one| one.set())
            .collect::<Vec<_>>()
            .join(",")
    );
    Ok(())
}

/// More failed specs than this are no flakes.
const RERUN_AT_MOST: usize = 40;

fn names(specs: &[Spec], state: State) -> Vec<String> {
    let chosen = specs.iter().filter(|spec| spec.state == state);
    chosen.map(|spec| spec.name.clone()).collect()
}

/// The regular expression of these specs and no others: ginkgo matches the suite's name, a blank and the spec's name.
fn of_names(names: &[String]) -> String {
    let escaped: Vec<String> = names.iter().map(|name| escape(name)).collect();
    format!(" ({})$", escaped.join("|"))
}

/// One run of ginkgo.
struct Run<'a> {
    name: String,
    labels: &'a str,
    procs: u16,
    focus: Option<&'a str>,
    skip: Option<&'a str>,
    /// Where it ends, no spec begins any more.
    budget: Duration,
}

impl Run<'_> {
    /// Runs it, and reads its report.
    fn go(&self, steps: &Steps, cluster: &Cluster, dir: &Path) -> Result<Vec<Spec>> {
        let step = steps.start(
            &format!("conformance ({}, {} at a time)", self.name, self.procs),
            None,
        )?;
        // Failed specs make ginkgo fail: what it reports is what counts.
        let ran = step.run(&mut self.ginkgo(cluster, dir));
        let specs = match report::read_ginkgo(&dir.join(format!("{}.json", self.name))) {
            Ok(specs) => specs,
            Err(err) => {
                ran?;
                return Err(err.context(format!("read the report of phase {}", self.name)));
            }
        };
        step.done();
        Ok(specs)
    }

    fn ginkgo(&self, cluster: &Cluster, dir: &Path) -> Command {
        let mut command = ginkgo(cluster, dir);
        command
            .arg(format!("--timeout={}s", self.budget.as_secs().max(1)))
            .arg(format!("--procs={}", self.procs))
            .arg(format!("--label-filter={}", self.labels))
            .arg(format!("--json-report={}.json", self.name))
            .arg(format!("--junit-report={}.xml", self.name));
        for (flag, value) in [("focus", self.focus), ("skip", self.skip)] {
            if let Some(value) = value {
                command.arg(format!("--{flag}={value}"));
            }
        }
        let program = cluster.state.options.kubernetes.suites();
        let kubeconfig = cluster.layout.kubeconfig("admin-inside");
        suite_arguments(&mut command, &cluster.outputs, program, &kubeconfig);
        command
    }
}

fn ginkgo(cluster: &Cluster, dir: &Path) -> Command {
    let bin = &cluster.outputs;
    let kubeconfig = cluster
        .layout
        .kubeconfig("admin-inside")
        .display()
        .to_string();
    let mut command = cluster.control_plane().command(bin.upstream("ginkgo"));
    command.env("KUBECONFIG", &kubeconfig).current_dir(dir);
    command
        .args(["--no-color", "--silence-skips"])
        .arg(format!("--output-dir={}", dir.display()));
    command
}

/// The suite's program and what it is told of the cluster.
fn suite_arguments(command: &mut Command, bin: &Outputs, program: &str, kubeconfig: &Path) {
    command
        .arg(bin.upstream(program))
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
        .arg(format!("--kubeconfig={}", kubeconfig.display()))
        .arg(format!(
            "--kubectl-path={}",
            bin.upstream("kubectl").display()
        ));
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
    use super::*;
    use crate::cluster::Storage;

    #[test]
    fn a_cluster_without_a_suites_images_is_refused() {
        let outputs = Outputs::find();
        let wide = suite::find(&outputs.workspace, "wide").unwrap();
        let bare = Options::default();
        let said = serves(&bare, &wide).unwrap_err().to_string();
        assert!(said.contains("--with-images hostpath,suites"), "{said}");
        let images = wide.images.clone();
        assert!(
            serves(
                &Options {
                    images,
                    ..bare.clone()
                },
                &wide
            )
            .is_ok()
        );
        let storage = suite::find(&outputs.workspace, "storage").unwrap();
        let said = serves(&bare, &storage).unwrap_err().to_string();
        assert!(said.contains("--with-csi hostpath"), "{said}");
        let with_csi = [Storage::Hostpath].into();
        assert!(serves(&Options { with_csi, ..bare }, &storage).is_ok());
    }

    #[test]
    fn names_become_expressions_that_match_them() {
        assert_eq!(
            escape("[sig-node] a (b) c.d"),
            "\\[sig-node\\] a \\(b\\) c\\.d"
        );
    }
}
