//! `cargo e2e fuzz`: every target of `fuzz/` for a while; a finding fails.
//!
//! The folder is cargo-fuzz's, and `cargo fuzz run` works in it. Here only Gantry's own crates are built with coverage, by
//! the stable compiler: everything else is what the dev profile has built already. This program stands before the compiler
//! (`RUSTC_WRAPPER`) and adds the flags. No sanitizer: our code has next to no unsafe; overflow and debug assertions are
//! checked. What a target found stays in `fuzz/artifacts`, what it learnt in `fuzz/corpus`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::programs::Outputs;
use crate::step::{Steps, tail};

/// Set for this program where it stands before the compiler.
const WRAPPING: &str = "GANTRY_FUZZ_RUSTC";
/// What libFuzzer learns from. Upstream: cargo-fuzz's flags, less those of a sanitizer.
const FLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Ccodegen-units=1",
];
/// One input may take so long, in seconds.
const INPUT_TIMEOUT: u64 = 25;

#[derive(Args)]
pub struct FuzzOptions {
    /// How long each target runs.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// How many run at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// The targets; all of them where none is named.
    targets: Vec<String>,
}

/// # Errors
/// A target does not build, or found something.
pub fn run(options: &FuzzOptions) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "unpacking owners and devices needs root"
    );
    let outputs = Outputs::find();
    let place = outputs.workspace.join("fuzz");
    let all = targets(&place)?;
    for name in &options.targets {
        ensure!(
            all.contains(name),
            "no target {name:?}; there are: {}",
            all.join(", ")
        );
    }
    let chosen = if options.targets.is_empty() {
        &all
    } else {
        &options.targets
    };
    let steps = Steps::new(outputs.logs())?;
    let step = steps.start("build the fuzz targets", None)?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(&outputs.workspace)
        .args(["build", "--manifest-path", "fuzz/Cargo.toml"])
        .env("CARGO_TARGET_DIR", &outputs.target)
        .env("RUSTC_WRAPPER", std::env::current_exe()?)
        .env(
            WRAPPING,
            std::env::var_os("RUSTC_WRAPPER").unwrap_or_default(),
        );
    for name in chosen {
        command.args(["--bin", name]);
    }
    step.run(&mut command)?;
    step.done();

    let step = steps.start("fuzz", Some(chosen.len() as u64))?;
    let next = AtomicUsize::new(0);
    let reports = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(|| {
                while let Some(name) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    step.message(name);
                    let report = one(&outputs, &place, name, options.seconds);
                    step.advance();
                    reports
                        .lock()
                        .expect("nobody panics with it")
                        .push((name, report));
                }
            });
        }
    });
    step.done();
    let mut failed = 0;
    let mut reports = reports.into_inner().expect("nobody panics with it");
    reports.sort_by_key(|(name, _)| name.as_str());
    for (name, report) in reports {
        match report {
            Ok(report) => println!("{name:20} {report}"),
            Err(error) => {
                failed += 1;
                println!("{name:20} FAILED: {error:#}");
            }
        }
    }
    ensure!(failed == 0, "{failed} targets found something");
    Ok(())
}

/// Becomes the compiler, if that is what this program was started for; answers why it could not.
pub fn as_compiler() -> Option<std::io::Error> {
    let wrapper = std::env::var_os(WRAPPING)?;
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if is_ours(&args) {
        args.extend(FLAGS.iter().map(OsString::from));
    } else if !wrapper.is_empty() {
        // A cache of the user's own.
        args.insert(0, wrapper);
    }
    let program = args.first()?.clone();
    Some(Command::new(program).args(&args[1..]).exec())
}

/// Whether the compiler is to build one of Gantry's own crates, or a target.
fn is_ours(args: &[OsString]) -> bool {
    let words: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
    let source = words.iter().find(|word| word.ends_with(".rs"));
    let foreign =
        |source: &str| source.contains("/registry/src/") || source.contains("/git/checkouts/");
    let tool = words.iter().any(|word| {
        matches!(&**word, "proc-macro" | "build_script_build") || word.starts_with("--print")
    });
    source.is_some_and(|source| !foreign(source)) && !tool
}

fn targets(place: &Path) -> Result<Vec<String>> {
    let folder = place.join("fuzz_targets");
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .with_context(|| format!("read {}", folder.display()))?
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            name.to_str()?.strip_suffix(".rs").map(str::to_owned)
        })
        .collect();
    names.sort();
    Ok(names)
}

/// Runs one target; answers what it did.
fn one(outputs: &Outputs, place: &Path, name: &str, seconds: u64) -> Result<String> {
    let corpus = place.join("corpus").join(name);
    let artifacts = place.join("artifacts").join(name);
    for folder in [&corpus, &artifacts] {
        std::fs::create_dir_all(folder)?;
    }
    let program = outputs.target.join("debug").join(name);
    let log: PathBuf = outputs.logs().join(format!("fuzz-{name}.log"));
    let file = std::fs::File::create(&log)?;
    let status = Command::new(&program)
        .arg(&corpus)
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_TIMEOUT}"))
        .args([
            "-rss_limit_mb=1024",
            "-max_len=16384",
            "-print_final_stats=1",
        ])
        .env("GANTRY_FUZZ_SEEDS", &corpus)
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("start {}", program.display()))?;
    ensure!(
        status.success(),
        "{status}\n{}\nthe whole log: {}, the input: {}",
        tail(&log, 30),
        log.display(),
        artifacts.display()
    );
    report(&std::fs::read_to_string(&log)?)
        .with_context(|| format!("{} has no figures", log.display()))
}

/// The figures of a run's log.
fn report(log: &str) -> Option<String> {
    let executions = log
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))?
        .trim();
    let covered = log
        .lines()
        .rev()
        .find_map(|line| line.split_once(" cov: ")?.1.split(' ').next())?;
    let memory = log
        .lines()
        .find_map(|line| line.strip_prefix("stat::peak_rss_mb:"))?
        .trim();
    Some(format!(
        "{executions:>12} executions, {covered:>6} places covered, {memory:>4} MiB"
    ))
}

#[cfg(test)]
mod tests {
    #[test]
    fn own_crates_are_told_from_others() {
        let check = |line: &str, expect| {
            let args: Vec<_> = line.split(' ').map(Into::into).collect();
            assert_eq!(super::is_ours(&args), expect, "{line}");
        };
        check(
            "rustc --crate-name images ../kubelet/images/src/lib.rs --crate-type lib",
            true,
        );
        check(
            "rustc --crate-name netlink fuzz/fuzz_targets/netlink.rs --crate-type bin",
            true,
        );
        check(
            "rustc --crate-name tar /home/me/.cargo/registry/src/x/tar-0.4/src/lib.rs",
            false,
        );
        check("rustc --crate-name build_script_build build.rs", false);
        check("rustc - --crate-name ___ --print=file-names", false);
        check("rustc -vV", false);
    }

    #[test]
    fn figures_are_read() {
        let log = "#2\tINITED cov: 7 ft: 8 corp: 1/1b\n#9\tDONE   cov: 12 ft: 8 corp: 1/1b\nstat::number_of_executed_units: 900\n\
                   stat::peak_rss_mb:              45\n";
        assert_eq!(
            super::report(log).as_deref(),
            Some("         900 executions,     12 places covered,   45 MiB")
        );
        assert_eq!(super::report("panicked"), None);
    }
}
