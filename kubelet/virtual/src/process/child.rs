//! Processes: started in a group of their own, adopted, waited for, ended.
//!
//! An adopted process is no child: that it ended is told by its pidfd, how it ended by nobody.

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Stdio;

use futures::FutureExt as _;
use kubelet_provider::{AttachOptions, PodId, Process, ProviderError};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::Instant;

use super::plan;

/// What upstream's shells search.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process that is followed.
pub(super) struct Running {
    pub(super) pid: i32,
    /// In ticks since the boot: tells it from a later process with the same pid.
    pub(super) start_time: u64,
    handle: Handle,
}

enum Handle {
    Child(Child),
    Adopted(AsyncFd<OwnedFd>),
}

/// How a process ended.
pub(super) struct Exit {
    pub(super) code: i32,
    pub(super) reason: String,
    pub(super) message: String,
}

impl Exit {
    /// Upstream's runtimes say so of a command that is not there.
    pub(super) fn not_started(error: &std::io::Error) -> Self {
        Self {
            code: 128,
            reason: "StartError".to_owned(),
            message: error.to_string(),
        }
    }

    pub(super) fn unknown() -> Self {
        Self {
            code: 137,
            reason: "ContainerStatusUnknown".to_owned(),
            message: "the process was adopted from an earlier provider: how it ended is not known"
                .to_owned(),
        }
    }
}

/// The 22nd field of `/proc/<pid>/stat`. `None`: there is no such process, or it is a zombie.
pub(super) fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let start = fields.nth(18)?.parse().ok()?;
    (state != "Z").then_some(start)
}

fn base(container: &plan::Command, id: &PodId, argv: &[String]) -> Option<Command> {
    let (program, arguments) = argv.split_first()?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("HOSTNAME", &*id.name)
        .envs(&container.env)
        .current_dir(container.directory.as_deref().unwrap_or("/"))
        .process_group(0);
    Some(command)
}

/// Starts a container's command; its output goes to `log` without this program in between.
///
/// # Errors
/// There is no such program, or no log can be made.
pub(super) async fn start(
    container: &plan::Command,
    id: &PodId,
    log: &Path,
) -> std::io::Result<Running> {
    let mut options = tokio::fs::OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    let file = options.open(log).await?.into_std().await;
    let nothing = || std::io::Error::other("there is no command");
    let mut command = base(container, id, &container.argv).ok_or_else(nothing)?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    let child = command.spawn()?;
    let pid = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .unwrap_or(0);
    Ok(Running {
        pid,
        // One that has ended already needs none.
        start_time: start_time(pid).unwrap_or(0),
        handle: Handle::Child(child),
    })
}

/// A process that an earlier provider started. `None`: it has ended.
pub(super) fn adopt(pid: i32, start: u64) -> Option<Running> {
    let fd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // Looked at after it was opened: from now on the pid is this process.
    (start_time(pid)? == start).then_some(())?;
    // SAFETY: the descriptor is moved in, and nobody else closes it or puts another one in its place.
    #[allow(unsafe_code)]
    let fd = unsafe { AsyncFd::register(fd) };
    Some(Running {
        pid,
        start_time: start,
        handle: Handle::Adopted(fd.ok()?),
    })
}

impl Running {
    async fn wait(&mut self) -> Exit {
        match &mut self.handle {
            Handle::Child(child) => match child.wait().await {
                Ok(status) => Exit {
                    code: status
                        .code()
                        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
                    reason: String::new(),
                    message: String::new(),
                },
                Err(error) => Exit::not_started(&error),
            },
            Handle::Adopted(fd) => {
                // An error says that it cannot be waited for: it is looked at no longer.
                let _ = fd.readable().await;
                Exit::unknown()
            }
        }
    }

    /// As a runtime does: the container's own process is asked, not what it started.
    fn terminate(&self) {
        if let Some(pid) = Pid::from_raw(self.pid) {
            // It may have ended meanwhile.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// The whole group: with a container's own process the others end.
    fn kill(&self) {
        if let Some(group) = Pid::from_raw(self.pid) {
            // Nobody may be left.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Waits for the end, and brings it about once somebody wants it: politely, then not.
pub(super) async fn until_end(
    mut process: Running,
    mut stop: watch::Receiver<Option<Instant>>,
) -> Exit {
    let exit = wait_or_stop(&mut process, &mut stop).await;
    process.kill();
    match exit {
        Some(exit) => exit,
        None => process.wait().await,
    }
}

/// `None`: its time is over.
async fn wait_or_stop(
    process: &mut Running,
    stop: &mut watch::Receiver<Option<Instant>>,
) -> Option<Exit> {
    tokio::select! {
        exit = process.wait() => return Some(exit),
        _ = stop.wait_for(Option::is_some) => {}
    }
    process.terminate();
    loop {
        let deadline = stop.borrow_and_update().unwrap_or_else(Instant::now);
        tokio::select! {
            exit = process.wait() => return Some(exit),
            () = tokio::time::sleep_until(deadline) => return None,
            // Somebody is in a hurry.
            changed = stop.changed() => if changed.is_err() { return None },
        }
    }
}

/// A command beside a container: the same variables and directory, nothing more.
///
/// # Errors
/// There is no such program.
pub(super) fn exec(
    container: &plan::Command,
    id: &PodId,
    argv: &[String],
    options: &AttachOptions,
) -> Result<Process, ProviderError> {
    let failed = |error: std::io::Error| ProviderError::Failed(error.to_string());
    let nothing = || ProviderError::Failed("there is no command".to_owned());
    let mut command = base(container, id, argv).ok_or_else(nothing)?;
    let pipe = |wanted: bool| {
        if wanted {
            Stdio::piped()
        } else {
            Stdio::null()
        }
    };
    command
        .stdin(pipe(options.stdin))
        .stdout(pipe(options.stdout))
        .stderr(pipe(options.stderr))
        // Whoever hangs up ends it.
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let exit = async move {
        let status = child.wait().await.map_err(failed)?;
        Ok(status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    };
    Ok(Process {
        stdin: stdin.map(|s| Box::new(s) as _),
        stdout: stdout.map(|s| Box::new(s) as _),
        stderr: stderr.map(|s| Box::new(s) as _),
        resize: None,
        exit: exit.boxed(),
    })
}
