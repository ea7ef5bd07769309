//! `cargo e2e test`: tidy, every crate's own tests, then the black-box tests on a fresh cluster;
//! one count at the end.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;

use crate::cluster::{Cluster, Options, TEST_CLUSTER};
use crate::csi::Storage;
use crate::programs::{Outputs, Profile};
use crate::step::Steps;
use crate::{conformance, debian, tidy};

#[derive(Args)]
pub struct TestOptions {
    /// Only the black-box tests whose name holds this; the name of a file in e2e/tests is all of that file, its long forms too.
    pub filter: Option<String>,
    /// Skip the crates' own tests.
    #[arg(long)]
    no_unit: bool,
    /// Leave the cluster up at the end.
    #[arg(long)]
    keep: bool,
}

#[derive(Default)]
struct Count {
    passed: u64,
    failed: u64,
}

/// Runs the tests and prints `N passed, N failed`.
///
/// # Errors
/// The tests could not be run at all.
pub fn run(options: &TestOptions) -> Result<ExitCode> {
    let outputs = Outputs::find();
    let started = Instant::now();
    let mut count = Count::default();
    debian::install_missing(&Steps::new(outputs.logs())?)?;

    match tidy::check(&outputs) {
        Ok(()) => count.passed += 1,
        Err(err) => {
            count.failed += 1;
            eprintln!("{err:#}");
        }
    }
    if !options.no_unit && options.filter.is_none() {
        // With the checks of the dev profile: overflow, debug assertions.
        cargo_test(
            &outputs,
            &["--workspace", "--exclude", "e2e"],
            &[],
            &mut count,
        )?;
        cargo_test(
            &outputs,
            &["--release", "--package", "e2e", "--lib", "--bins"],
            &[],
            &mut count,
        )?;
    }

    let (lanes, long) = lanes(options, &test_files(&outputs)?);
    // Compiled before either lane starts: they would wait for each other's lock.
    cargo_test(
        &outputs,
        &["--release", "--package", "e2e", "--test", "*", "--no-run"],
        &[],
        &mut Count::default(),
    )?;
    let counts: Vec<Result<Count>> = std::thread::scope(|scope| {
        // One after the other: they build the same programs.
        let started: Vec<_> = lanes.iter().map(|lane| (lane, lane.up())).collect();
        let running: Vec<_> = started
            .into_iter()
            .map(|(lane, up)| {
                let outputs = &outputs;
                scope.spawn(move || match up {
                    Ok(()) => lane.run(outputs, options.keep, long),
                    Err(err) => {
                        eprintln!("cluster {} did not come up: {err:#}", lane.cluster);
                        Ok(Count {
                            passed: 0,
                            failed: 1,
                        })
                    }
                })
            })
            .collect();
        running
            .into_iter()
            .map(|lane| lane.join().expect("a lane does not panic"))
            .collect()
    });
    for lane in counts {
        let lane = lane?;
        count.passed += lane.passed;
        count.failed += lane.failed;
    }
    eprintln!("{:.0} s", started.elapsed().as_secs_f64());
    println!("{} passed, {} failed", count.passed, count.failed);
    Ok(if count.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Tests that kill, cut and stop: on a cluster of their own, beside the others.
const DISRUPTIVE: &[&str] = &["killed", "load_balancers", "node_cut", "restore"];
const DISRUPTED_CLUSTER: &str = "gantrybreak";

/// Tests on a cluster with a CSI driver, which is made for them alone: `cargo e2e test csi`.
const WITH_CSI: &str = "csi";

/// Tests on a cluster of three control planes, which is made for them alone.
const WITH_CONTROL_PLANES: &str = "control_planes";

/// The clusters that are made and the files of tests that run on each; and whether with their long forms.
fn lanes(options: &TestOptions, all: &[String]) -> (Vec<Lane>, bool) {
    let file = options.filter.as_ref().filter(|name| all.contains(name));
    let (disruptive, calm): (Vec<String>, Vec<String>) = all
        .iter()
        .filter(|name| file.is_none_or(|file| file == *name))
        .cloned()
        .partition(|name| DISRUPTIVE.contains(&name.as_str()));
    let mut lanes = vec![
        Lane {
            cluster: TEST_CLUSTER,
            tests: calm,
            filter: options.filter.clone().filter(|_| file.is_none()),
            smoke: options.filter.is_none(),
            with_csi: file
                .filter(|file| *file == WITH_CSI)
                .map(|_| Storage::Hostpath),
            control_planes: match file {
                Some(file) if file == WITH_CONTROL_PLANES => 3,
                _ => 1,
            },
        },
        Lane {
            cluster: DISRUPTED_CLUSTER,
            tests: disruptive,
            filter: options.filter.clone().filter(|_| file.is_none()),
            smoke: false,
            with_csi: None,
            control_planes: 1,
        },
    ];
    lanes.retain(|lane| !lane.tests.is_empty());
    (lanes, file.is_some())
}

/// A cluster and the tests that run on it, one at a time.
struct Lane {
    cluster: &'static str,
    tests: Vec<String>,
    /// Only the tests whose name holds this.
    filter: Option<String>,
    /// Then the conformance smoke list.
    smoke: bool,
    with_csi: Option<Storage>,
    control_planes: u8,
}

impl Lane {
    fn up(&self) -> Result<()> {
        Cluster::down(self.cluster).context("clear what an earlier run left")?;
        let options = Options {
            name: self.cluster.to_owned(),
            replicas: self.control_planes.max(2),
            control_planes: self.control_planes,
            profile: Profile::Dev,
            with_csi: self.with_csi.into_iter().collect(),
            ..Options::default()
        };
        Cluster::up(options).map(drop)
    }

    /// `long`: with the forms of tests that take minutes.
    fn run(&self, outputs: &Outputs, keep: bool, long: bool) -> Result<Count> {
        // The cluster itself is the first test.
        let mut count = Count {
            passed: 1,
            failed: 0,
        };
        let mut args = vec!["--release", "--package", "e2e"];
        for test in &self.tests {
            args.extend(["--test", test]);
        }
        // The tests break and mend one cluster, so one at a time.
        args.extend(["--", "--test-threads=1"]);
        if long {
            args.push("--include-ignored");
        }
        args.extend(self.filter.as_deref());
        let mut env = vec![("GANTRY_E2E_CLUSTER", self.cluster)];
        if long {
            env.push(("GANTRY_E2E_LONG", "1"));
        }
        cargo_test(outputs, &args, &env, &mut count)?;
        if self.smoke {
            let (passed, failed) = conformance::smoke(self.cluster)?;
            count.passed += passed;
            count.failed += failed;
        }
        if !keep {
            match Cluster::down(self.cluster) {
                Ok(()) => count.passed += 1,
                Err(err) => {
                    count.failed += 1;
                    eprintln!("cluster {} did not go down: {err:#}", self.cluster);
                }
            }
        }
        Ok(count)
    }
}

/// The black-box test files, without their ending.
fn test_files(outputs: &Outputs) -> Result<Vec<String>> {
    let mut names: Vec<String> = std::fs::read_dir(outputs.workspace.join("e2e/tests"))?
        .flatten()
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_suffix(".rs")
                .map(str::to_owned)
        })
        .collect();
    names.sort();
    Ok(names)
}

/// Runs `cargo test` and adds its closing lines up. A run that dies without one counts as one failure.
fn cargo_test(
    outputs: &Outputs,
    args: &[&str],
    env: &[(&str, &str)],
    count: &mut Count,
) -> Result<()> {
    let mut child = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(&outputs.workspace)
        .args(["test", "--no-fail-fast"])
        .args(args)
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start cargo test")?;
    let mut failed_here = 0;
    let mut out = std::io::stdout();
    for line in BufReader::new(child.stdout.take().expect("stdout is piped")).lines() {
        let line = line?;
        if let Some((passed, failed)) = closing_line(&line) {
            count.passed += passed;
            failed_here += failed;
        }
        // cargo's own closing lines are summed up at the end, not printed as results.
        if !line.starts_with("test result:") {
            writeln!(out, "{line}")?;
        }
    }
    count.failed += failed_here;
    if !child.wait()?.success() && failed_here == 0 {
        count.failed += 1;
    }
    Ok(())
}

/// `test result: ok. 3 passed; 0 failed; …` as (3, 0).
fn closing_line(line: &str) -> Option<(u64, u64)> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut parts = counts.split("; ");
    let number = |part: Option<&str>, word: &str| part?.strip_suffix(word)?.trim().parse().ok();
    Some((
        number(parts.next(), "passed")?,
        number(parts.next(), "failed")?,
    ))
}

#[cfg(test)]
mod tests {
    use super::closing_line;

    #[test]
    fn closing_lines_are_counted() {
        let check = |line, expect| assert_eq!(closing_line(line), expect, "{line}");
        check(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
            Some((12, 0)),
        );
        check(
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured",
            Some((3, 2)),
        );
        check("test pod::runs ... ok", None);
    }
}
