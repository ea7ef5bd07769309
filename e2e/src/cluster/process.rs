//! Starting, finding and ending the cluster's programs.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::cgroup;
use super::layout::{Layout, netns_path};

/// The namespaces a program runs in; empty means the machine's own.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Place {
    pub netns: Option<String>,
    /// Pinned mount and uts namespaces of a node.
    pub node: Option<PathBuf>,
}

impl Place {
    /// A command that runs `program` here.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        if self.netns.is_none() && self.node.is_none() {
            return Command::new(program);
        }
        let mut command = Command::new("nsenter");
        if let Some(netns) = &self.netns {
            command.arg(format!("--net={}", netns_path(netns).display()));
        }
        if let Some(node) = &self.node {
            command.arg(format!("--mount={}", node.with_extension("mnt").display()));
            command.arg(format!("--uts={}", node.with_extension("uts").display()));
            command.arg("--wdns=/");
        }
        command.arg("--").arg(program);
        command
    }
}

/// What to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Program {
    pub name: String,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub place: Place,
}

/// A started program. The start time tells it from a later process with the same PID.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Process {
    pub program: Program,
    pub pid: u32,
    pub start_time: u64,
    /// Where its own part of the log begins, in bytes: a restarted program appends.
    pub log_start: u64,
}

impl Process {
    /// Starts `program` as a daemon in the cluster's cgroup, its output appended to its log.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(layout: &Layout, program: Program) -> Result<Self> {
        fs::create_dir_all(layout.logs())?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(layout.log(&program.name))
            .with_context(|| format!("open the log of {}", program.name))?;
        let log_start = log.metadata()?.len();
        let group = format!("{}/daemons", layout.cgroup());
        let (executable, arguments) = program.argv.split_first().context("a program has a name")?;
        let mut command = program.place.command(executable);
        command
            .args(arguments)
            .envs(program.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let procs: Vec<PathBuf> = daemon_cgroups(&group);
        // SAFETY: only async-signal-safe calls: setsid, open, write.
        unsafe {
            command.pre_exec(move || {
                nix::unistd::setsid()?;
                for file in &procs {
                    fs::write(file, "0")?;
                }
                Ok(())
            });
        }
        let child = command
            .spawn()
            .with_context(|| format!("start {}", program.name))?;
        let pid = child.id();
        let start_time =
            start_time(pid).with_context(|| format!("{} ended at once", program.name))?;
        Ok(Self {
            program,
            pid,
            start_time,
            log_start,
        })
    }

    pub fn is_running(&self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }

    /// What it has logged since it was started.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn log_since_start(&self, layout: &Layout) -> Result<String> {
        let log = fs::read(layout.log(&self.program.name))?;
        let start = usize::try_from(self.log_start)?.min(log.len());
        Ok(String::from_utf8_lossy(&log[start..]).into_owned())
    }

    /// # Errors
    /// The signal cannot be sent.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.is_running() {
            kill(Pid::from_raw(self.pid as i32), signal)
                .with_context(|| format!("signal {}", self.program.name))?;
        }
        Ok(())
    }

    /// SIGTERM, then SIGKILL after `grace`. Returns once it is gone.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn stop(&self, grace: Duration) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        if self.wait_gone(grace) {
            return Ok(());
        }
        self.signal(Signal::SIGKILL)?;
        if !self.wait_gone(Duration::from_secs(10)) {
            bail!("{} (pid {}) does not end", self.program.name, self.pid);
        }
        Ok(())
    }

    /// Waits up to `timeout` for its end; a child of ours is reaped.
    pub fn wait_gone(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            let _ = nix::sys::wait::waitpid(
                Pid::from_raw(self.pid as i32),
                Some(nix::sys::wait::WaitPidFlag::WNOHANG),
            );
            if !self.is_running() {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The daemons' cgroups: the unified hierarchy (to kill them all at once), and v1's memory one, so
/// that they are not counted in whatever started us.
fn daemon_cgroups(group: &str) -> Vec<PathBuf> {
    let memory = Path::new("/sys/fs/cgroup/memory").join(group);
    cgroup::unified()
        .map(|dir| dir.join(group))
        .into_iter()
        .chain(Some(memory))
        .map(|dir| dir.join("cgroup.procs"))
        .filter(|file| file.exists())
        .collect()
}

/// Field 22 of /proc/PID/stat; `None` if there is no such process or it is a zombie.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    if fields.first() == Some(&"Z") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// User and system CPU seconds a process has used.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()?? as f64;
    Some(ticks as f64 / per_second)
}

/// Proportional set size in bytes.
pub fn pss_bytes(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find(|line| line.starts_with("Pss:"))?;
    line.split_whitespace()
        .nth(1)?
        .parse::<u64>()
        .ok()
        .map(|kib| kib * 1024)
}
