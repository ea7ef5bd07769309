//! One container as its shim sees it.
//!
//! ```text
//! Creating --helper reported, execve worked--> Running --reaped--> Draining --streams ended--> Exited
//!     \--helper or execve failed--> forgotten (the runtime writes down why)
//! ```

use std::os::fd::OwnedFd;
use std::path::Path;

use shim_protocol::wire::Decoder;
use shim_protocol::{ContainerExit, ContainerInfo, ContainerStart};

use crate::create::{self, Created, Creation, Stdio};
use crate::log::{LogWriter, Stream};
use crate::pid_view::{PidPlan, View};
use crate::sys;

/// How long streams may stay open after the first process's exit: somebody else holds them.
pub const DRAIN_MS: u64 = 1000;

pub struct Container {
    pub start: ContainerStart,
    pub phase: Phase,
    pub log: LogWriter,
    pub pid: i32,
    pub started_at_ns: i64,
    /// Read ends of stdout and stderr, or the terminal's master as stdout.
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    /// Write end of stdin, if it was asked for and is still open.
    pub stdin: Option<OwnedFd>,
    /// Of the PID namespace it made, for containers that want to see its processes.
    pub view: Option<View>,
}

pub enum Phase {
    Creating(Box<Pending>),
    Running,
    /// The exit is known; output may still come until the deadline.
    Draining {
        status: i32,
        finished_at_ns: i64,
        deadline_ms: u64,
    },
    Exited(ContainerExit),
}

/// What is known of a start under way.
pub struct Pending {
    pub creation: Creation,
    pub decoder: Decoder,
    pub created: Option<Result<Created, String>>,
    pub error_text: Vec<u8>,
    pub errors_ended: bool,
    /// The client that waits for the answer.
    pub client: u64,
}

impl Container {
    /// Opens the log, makes the pipes and forks the helper.
    pub fn begin(
        start: ContainerStart,
        root: &Path,
        plan: &PidPlan,
        client: u64,
    ) -> Result<Self, String> {
        let log = LogWriter::open(&start.log_path)
            .map_err(|error| format!("open log {}: {error}", start.log_path.display()))?;
        let pipe = || sys::pipe().map_err(|error| format!("pipe: {error}"));
        let (mut stdin, mut stdout, mut stderr, mut stdio) = (None, None, None, None);
        if !start.process.terminal {
            let (out_read, out_write) = pipe()?;
            let (err_read, err_write) = pipe()?;
            let in_read = if start.stdin {
                let (read, write) = pipe()?;
                stdin = Some(write);
                read
            } else {
                std::fs::File::open("/dev/null")
                    .map_err(|error| format!("/dev/null: {error}"))?
                    .into()
            };
            for fd in [&out_read, &err_read] {
                sys::set_nonblocking(fd).map_err(|error| format!("fcntl: {error}"))?;
            }
            stdio = Some(Stdio {
                stdin: in_read,
                stdout: out_write,
                stderr: err_write,
            });
            (stdout, stderr) = (Some(out_read), Some(err_read));
        }
        let creation = create::begin(&start, root, stdio, plan)?;
        let pending = Pending {
            creation,
            decoder: Decoder::default(),
            created: None,
            error_text: Vec::new(),
            errors_ended: false,
            client,
        };
        Ok(Self {
            start,
            phase: Phase::Creating(Box::new(pending)),
            log,
            pid: 0,
            started_at_ns: 0,
            stdout,
            stderr,
            stdin,
            view: None,
        })
    }

    /// The process is there to be signalled.
    pub fn is_alive(&self) -> bool {
        self.pid > 0 && matches!(self.phase, Phase::Creating(_) | Phase::Running)
    }

    pub fn info(&self) -> ContainerInfo {
        ContainerInfo {
            id: self.start.id.clone(),
            pid: self.pid,
            started_at_ns: self.started_at_ns,
            exit: match &self.phase {
                Phase::Exited(exit) => Some(exit.clone()),
                _ => None,
            },
        }
    }

    pub fn output(&self, stream: Stream) -> Option<&OwnedFd> {
        match stream {
            Stream::Stdout => self.stdout.as_ref(),
            Stream::Stderr => self.stderr.as_ref(),
        }
    }

    /// The stream is at its end.
    pub fn end_output(&mut self, stream: Stream) {
        match stream {
            Stream::Stdout => self.stdout = None,
            Stream::Stderr => self.stderr = None,
        }
        self.log.end(stream, sys::now_ns());
    }

    /// The record of the end, from what `Draining` knows.
    pub fn exit_record(&self, status: i32, finished_at_ns: i64) -> ContainerExit {
        let (exit_code, signal) = sys::decode_wait_status(status);
        ContainerExit {
            version: 1,
            id: self.start.id.clone(),
            exit_code,
            signal,
            oom_killed: crate::cgroup::oom_kills(&self.start.cgroup_path) > 0,
            started_at_ns: self.started_at_ns,
            finished_at_ns,
        }
    }
}

impl Pending {
    /// Whether both the helper and the error pipe have said all they will.
    pub fn is_decided(&self) -> bool {
        match &self.created {
            Some(Ok(_)) => self.errors_ended,
            Some(Err(_)) => true,
            None => false,
        }
    }

    pub fn read_errors(&mut self) {
        let mut buffer = [0u8; 1024];
        loop {
            match sys::read(&self.creation.error_pipe, &mut buffer) {
                Ok(0) => self.errors_ended = true,
                Ok(count) if self.error_text.len() < 16 * 1024 => {
                    self.error_text.extend_from_slice(&buffer[..count]);
                    continue;
                }
                Ok(_) => continue,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => self.errors_ended = true,
            }
            return;
        }
    }

    pub fn read_result(&mut self) {
        if self.created.is_none() {
            self.created = create::finish(&mut self.decoder, &self.creation.result);
        }
    }
}
