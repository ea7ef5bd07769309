//! Steps of a long command: a progress line each, a log file each, and the log's end when one fails.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// Where steps write their logs, and how they show progress.
pub struct Steps {
    log_dir: PathBuf,
}

/// One step under way. Ends with [`Step::done`]; dropped without it, it shows as failed.
pub struct Step {
    name: String,
    bar: ProgressBar,
    log: PathBuf,
    started: Instant,
    finished: bool,
}

impl Steps {
    /// # Errors
    /// The log folder cannot be made.
    pub fn new(log_dir: impl Into<PathBuf>) -> Result<Self> {
        let log_dir = log_dir.into();
        fs::create_dir_all(&log_dir).with_context(|| format!("make {}", log_dir.display()))?;
        Ok(Self { log_dir })
    }

    /// Starts a step called `name`; `total` units give a bar, `None` a spinner.
    pub fn start(&self, name: &str, total: Option<u64>) -> Result<Step> {
        let file: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let log = self.log_dir.join(format!("{file}.log"));
        File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let bar = match total {
            Some(total) => ProgressBar::new(total).with_style(
                ProgressStyle::with_template(
                    "{spinner} {prefix:<44} [{bar:24}] {pos}/{len} {wide_msg} {elapsed}",
                )
                .expect("the template is a constant"),
            ),
            None => ProgressBar::new_spinner().with_style(
                ProgressStyle::with_template("{spinner} {prefix:<44} {wide_msg} {elapsed}")
                    .expect("the template is a constant"),
            ),
        };
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Ok(Step {
            name: name.to_owned(),
            bar,
            log,
            started: Instant::now(),
            finished: false,
        })
    }
}

impl Step {
    pub fn message(&self, text: &str) {
        self.bar.set_message(text.to_owned());
    }

    pub fn advance(&self) {
        self.bar.inc(1);
    }

    pub fn log_path(&self) -> &Path {
        &self.log
    }

    pub fn note(&self, text: &str) {
        if let Ok(mut file) = OpenOptions::new().append(true).open(&self.log) {
            let _ = writeln!(file, "{text}");
        }
    }

    /// Runs `command` with its output in the step's log.
    ///
    /// # Errors
    /// It cannot be started or fails: the error holds the end of the log.
    pub fn run(&self, command: &mut Command) -> Result<()> {
        self.note(&format!("+ {command:?}"));
        let log = OpenOptions::new().append(true).open(&self.log)?;
        let status = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()
            .with_context(|| format!("start {:?}", command.get_program()))?;
        if !status.success() {
            bail!(
                "{}: {:?} ended with {status}\n{}\nthe whole log: {}",
                self.name,
                command.get_program(),
                tail(&self.log, 25),
                self.log.display()
            );
        }
        Ok(())
    }

    pub fn done(mut self) {
        self.finished = true;
        self.bar.finish_and_clear();
        eprintln!(
            "  ok  {:<44} {:>6.1} s",
            self.name,
            self.started.elapsed().as_secs_f64()
        );
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.finished {
            self.bar.finish_and_clear();
            eprintln!(
                "FAILED {:<43} {:>6.1} s  {}",
                self.name,
                self.started.elapsed().as_secs_f64(),
                self.log.display()
            );
        }
    }
}

/// The last `lines` lines of a file, or why it cannot be read.
pub fn tail(path: &Path, lines: usize) -> String {
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(err) => format!("(cannot read {}: {err})", path.display()),
    }
}

/// Runs a command and gives its standard output.
///
/// # Errors
/// It cannot be started, or fails: the error holds its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {:?}", command.get_program()))?;
    if !out.status.success() {
        bail!(
            "{:?} {:?} ended with {}: {}",
            command.get_program(),
            command.get_args().collect::<Vec<_>>(),
            out.status,
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
