//! `cargo e2e compare`: the same pods on our kubelet and on upstream's with containerd, in one cluster, and what a user sees of them side
//! by side: statuses, events, logs, and what commands print.
//!
//! A case is a file of `e2e/compare/`: manifests, and at its head what is done after they are applied, a line each:
//!
//! ```text
//! # wait: pod/a --for=condition=Ready      kubectl wait; that it is not met in time is a result like any other
//! # run: exec a -- id                      kubectl; its output and exit code are compared
//! # hold: 5                                seconds in which nothing is done
//! ```
//!
//! With `--loops` it is the scheduler and the controllers that are compared, in two clusters that differ in nothing else: `e2e/compare/loops/`, and
//! what becomes of all objects.
//!
//! `@NODE@` stands for the node. `compare.toml` names what differs and why; an entry that fits nothing any more is an error, too.

mod objects;
mod observe;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::Deserialize;

use crate::cluster::{Cluster, Component, Options};
use crate::probe::Namespace;
use crate::programs::{Outputs, Profile};
use observe::{Seen, Side};

const CLUSTER: &str = "compare";
/// Of `--loops`: that of upstream's scheduler and controllers.
const UPSTREAMS_CLUSTER: &str = "compareup";
/// What the names of its cases begin with.
const OF_LOOPS: &str = "loop-";
/// Cases under way at once.
const WORKERS: usize = 3;
/// Of a `wait:`.
const PATIENCE: &str = "--timeout=90s";

#[derive(Args, Clone)]
pub struct CompareOptions {
    /// Only the cases whose name holds this.
    filter: Option<String>,
    /// The scheduler and the controllers, not the kubelets.
    #[arg(long)]
    loops: bool,
    /// Leave the cluster up, or use the one that is.
    #[arg(long)]
    keep: bool,
    /// How our programs are built.
    #[arg(long, value_enum, default_value = "release")]
    profile: Profile,
}

/// What is done after the manifests are applied.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Words of `kubectl wait`.
    Wait(Vec<String>),
    /// Words of `kubectl`.
    Run(Vec<String>),
    Hold(Duration),
}

#[derive(Debug)]
struct Case {
    name: String,
    manifest: String,
    steps: Vec<Step>,
}

/// What is known to differ.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exceptions {
    #[serde(default)]
    exception: Vec<Exception>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    /// Cases; a `*` at the end stands for any rest.
    case: String,
    /// Places of what was seen; as above.
    place: String,
    /// It depends on the moment, so that it may be missing.
    #[serde(default)]
    sometimes: bool,
    #[expect(dead_code, reason = "for who reads the file")]
    reason: String,
}

impl Exception {
    fn fits(&self, case: &str, place: &str) -> bool {
        fits(&self.case, case) && fits(&self.place, place)
    }
}

fn fits(pattern: &str, name: &str) -> bool {
    match (pattern.strip_suffix('*'), pattern.strip_prefix('*')) {
        (Some(start), Some(_)) => name.contains(start.trim_start_matches('*')),
        (Some(start), None) => name.starts_with(start),
        (None, _) => name == pattern,
    }
}

/// # Errors
/// The cluster does not come up, a case cannot be read, or something differs that is not named in `compare.toml`.
pub fn run(options: &CompareOptions) -> Result<()> {
    let folder = Outputs::find().workspace.join("e2e");
    let exceptions = exceptions(&folder)?;
    let mut cases = match options.loops {
        true => cases(&folder.join("compare/loops"), OF_LOOPS)?,
        false => cases(&folder.join("compare"), "")?,
    };
    if let Some(filter) = &options.filter {
        cases.retain(|case| case.name.contains(filter));
    }
    ensure!(!cases.is_empty(), "no case is called that");
    let stage = Stage::up(options)?;
    let found = run_all(&stage, &cases)?;
    if !options.keep {
        stage.down()?;
    }
    let exceptions: Vec<&Exception> = exceptions
        .iter()
        .filter(|one| one.case.starts_with(OF_LOOPS) == options.loops)
        .collect();
    report(&found, &exceptions, options.filter.is_none())
}

/// Where ours and upstream's play.
enum Stage {
    /// Two nodes of one cluster.
    Nodes(Cluster),
    /// Ours, and one with upstream's scheduler and controllers.
    Loops(Cluster, Cluster),
}

impl Stage {
    fn up(options: &CompareOptions) -> Result<Self> {
        let up = |name: &str, more: Options| match Cluster::open(name) {
            Ok(cluster) if options.keep && cluster.is_running() => Ok(cluster),
            _ => {
                Cluster::down(name)?;
                Cluster::up(Options {
                    name: name.to_owned(),
                    profile: options.profile,
                    ..more
                })
            }
        };
        if !options.loops {
            let upstream_nodes = 1;
            return Ok(Self::Nodes(up(
                CLUSTER,
                Options {
                    upstream_nodes,
                    ..Options::default()
                },
            )?));
        }
        let with_upstream = [Component::KubeScheduler, Component::KubeControllerManager];
        let upstream = up(
            UPSTREAMS_CLUSTER,
            Options {
                with_upstream: with_upstream.into(),
                ..Options::default()
            },
        )?;
        Ok(Self::Loops(up(CLUSTER, Options::default())?, upstream))
    }

    fn down(self) -> Result<()> {
        Cluster::down(CLUSTER)?;
        match self {
            Self::Nodes(_) => Ok(()),
            Self::Loops(..) => Cluster::down(UPSTREAMS_CLUSTER),
        }
    }

    fn sides(&self) -> [(&Cluster, Side); 2] {
        match self {
            Self::Nodes(cluster) => [(cluster, Side::ours()), (cluster, Side::upstream())],
            Self::Loops(ours, upstream) => {
                [(ours, Side::ours()), (upstream, Side::upstreams_loops())]
            }
        }
    }

    fn look(&self, ns: &Namespace<'_>, side: Side, seen: &mut Seen) -> Result<()> {
        match self {
            Self::Nodes(_) => observe::pods(ns, side, seen),
            Self::Loops(..) => objects::all(ns, side, seen),
        }
    }
}

/// Differences of each case: place, ours, upstream's.
type Found = BTreeMap<String, Vec<(String, String, String)>>;

fn run_all(stage: &Stage, cases: &[Case]) -> Result<Found> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Found::new());
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match differences(stage, case) {
                        Ok(differences) => {
                            eprintln!("  {:<40} {} differences", case.name, differences.len());
                            let mut found = found.lock().expect("no holder panics");
                            found.insert(case.name.clone(), differences);
                        }
                        Err(err) => {
                            let text = format!("{}: {err:#}", case.name);
                            failures.lock().expect("no holder panics").push(text);
                        }
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no holder panics");
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    Ok(found.into_inner().expect("no holder panics"))
}

fn differences(stage: &Stage, case: &Case) -> Result<Vec<(String, String, String)>> {
    let (ours, upstream) = std::thread::scope(|scope| {
        let [ours, upstream] = stage
            .sides()
            .map(|(cluster, side)| scope.spawn(move || play(stage, cluster, case, side)));
        let joined = |side: std::thread::ScopedJoinHandle<'_, Result<Seen>>| {
            side.join().expect("a side does not panic")
        };
        (joined(ours), joined(upstream))
    });
    let (ours, upstream) = (ours?, upstream?);
    let places: BTreeSet<&String> = ours.keys().chain(upstream.keys()).collect();
    let nothing = "-".to_owned();
    let of = |seen: &Seen, place: &String| seen.get(place).unwrap_or(&nothing).clone();
    Ok(places
        .into_iter()
        .map(|place| (place.clone(), of(&ours, place), of(&upstream, place)))
        .filter(|(_, ours, upstream)| ours != upstream)
        .collect())
}

/// One case on one side: all that was seen, by place.
fn play(stage: &Stage, cluster: &Cluster, case: &Case, side: Side) -> Result<Seen> {
    let ns = Namespace::create(cluster, &format!("{}-{}", side.name, case.name))?;
    let mut seen = Seen::new();
    let manifest = case.manifest.replace("@NODE@", side.node);
    if let Err(err) = ns.apply(&manifest) {
        seen.insert("apply".to_owned(), side.plain(&format!("{err:#}")));
    }
    for (number, step) in case.steps.iter().enumerate() {
        match step {
            Step::Hold(time) => std::thread::sleep(*time),
            Step::Wait(words) => {
                let met = ns
                    .command()
                    .arg("wait")
                    .args(words)
                    .arg(PATIENCE)
                    .output()?
                    .status
                    .success();
                if !met {
                    seen.insert(format!("wait {}", words.join(" ")), "not met".to_owned());
                }
            }
            Step::Run(words) => {
                let words: Vec<String> = words
                    .iter()
                    .map(|word| word.replace("@NODE@", side.node))
                    .collect();
                let output = ns.command().args(&words).output()?;
                let text = format!(
                    "{}{}exit {}",
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr),
                    output.status.code().unwrap_or(-1)
                );
                let place = format!("{number} {}", case.steps[number].title());
                observe::lines(&mut seen, &place, &side.plain(&text));
            }
        }
    }
    stage.look(&ns, side, &mut seen)?;
    ns.delete()?;
    Ok(seen)
}

impl Step {
    fn title(&self) -> String {
        match self {
            Self::Wait(words) => format!("wait {}", words.join(" ")),
            Self::Run(words) => format!("run {}", words.join(" ")),
            Self::Hold(time) => format!("hold {time:?}"),
        }
    }
}

fn report(found: &Found, exceptions: &[&Exception], all: bool) -> Result<()> {
    let mut used = vec![false; exceptions.len()];
    let mut problems = 0;
    for (case, differences) in found {
        for (place, ours, upstream) in differences {
            let known = exceptions.iter().position(|one| one.fits(case, place));
            if let Some(known) = known {
                used[known] = true;
                continue;
            }
            problems += 1;
            println!("{case}: {place}\n    ours:     {ours}\n    upstream: {upstream}");
        }
    }
    for (exception, used) in exceptions.iter().zip(used) {
        if all && !used && !exception.sometimes {
            problems += 1;
            println!(
                "{}: {}: differs no more: its entry in compare.toml goes",
                exception.case, exception.place
            );
        }
    }
    println!("{} cases, {problems} differences", found.len());
    ensure!(problems == 0, "ours is not as upstream's");
    Ok(())
}

fn exceptions(folder: &std::path::Path) -> Result<Vec<Exception>> {
    let path = folder.join("compare.toml");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let file: Exceptions = toml::from_str(&text).with_context(|| path.display().to_string())?;
    Ok(file.exception)
}

/// `prefix`: of their names.
fn cases(folder: &std::path::Path, prefix: &str) -> Result<Vec<Case>> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .with_context(|| folder.display().to_string())?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
        .collect();
    files.sort();
    files.iter().map(|path| read(path, prefix)).collect()
}

fn read(path: &std::path::Path, prefix: &str) -> Result<Case> {
    let manifest = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    Ok(Case {
        name: format!("{prefix}{name}"),
        steps: steps(&manifest).with_context(|| path.display().to_string())?,
        manifest,
    })
}

/// The lines at the head that begin with `# WORD:`; other comments are for readers.
fn steps(manifest: &str) -> Result<Vec<Step>> {
    let head = manifest.lines().map_while(|line| line.strip_prefix('#'));
    let mut steps = Vec::new();
    for line in head {
        let Some((verb, rest)) = line.trim().split_once(": ") else {
            continue;
        };
        match verb {
            "wait" => steps.push(Step::Wait(words(rest)?)),
            "run" => steps.push(Step::Run(words(rest)?)),
            "hold" => steps.push(Step::Hold(Duration::from_secs(
                rest.trim()
                    .parse()
                    .with_context(|| format!("hold: {rest}: seconds"))?,
            ))),
            _ => {}
        }
    }
    Ok(steps)
}

/// Words as a shell splits them, with single quotes alone.
fn words(text: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    for letter in text.chars() {
        match letter {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    ensure!(!quoted, "{text}: a quote has no end");
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_says_what_is_done() {
        let text = "# About quotes.\n# wait: pod/a --for=condition=Ready\n# run: exec a -- sh -c 'echo a b'\n# hold: 3\napiVersion: v1\n\
                    # run: not at the head\n";
        let strings = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        assert_eq!(
            steps(text).unwrap(),
            [
                Step::Wait(strings(&["pod/a", "--for=condition=Ready"])),
                Step::Run(strings(&["exec", "a", "--", "sh", "-c", "echo a b"])),
                Step::Hold(Duration::from_secs(3)),
            ]
        );
        assert!(steps("# run: exec 'a\n").is_err());
        assert!(steps("# hold: long\n").is_err());
    }

    #[test]
    fn patterns_leave_out_a_rest_or_both_sides() {
        for (pattern, name, fitting) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("a*", "ba", false),
            ("*", "any", true),
            ("*b*", "abc", true),
            ("*b*", "ac", false),
        ] {
            assert_eq!(fits(pattern, name), fitting, "{pattern} {name}");
        }
    }

    #[test]
    fn every_case_can_be_read_and_every_exception_has_a_case() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut cases = super::cases(&folder.join("compare"), "").unwrap();
        assert!(!cases.is_empty());
        for case in &cases {
            assert!(
                case.manifest.contains("@NODE@"),
                "{}: says no node",
                case.name
            );
        }
        cases.extend(super::cases(&folder.join("compare/loops"), OF_LOOPS).unwrap());
        for case in &cases {
            assert!(!case.steps.is_empty(), "{}: nothing is done", case.name);
        }
        for exception in exceptions(folder).unwrap() {
            assert!(
                cases.iter().any(|case| fits(&exception.case, &case.name)),
                "{} is no case",
                exception.case
            );
        }
    }
}
