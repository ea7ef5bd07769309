//! What the runtime knows of sandboxes and containers, on disk and in memory.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use shim_protocol::{ContainerExit, DevMount, DeviceRule, ProcessSpec};
use tokio::sync::watch;

use super::layout::{self, Layout};
use crate::api::*;

/// Version of the records below. Fields are only ever added, with defaults.
pub const RECORD_VERSION: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxPhase {
    /// Being set up; found so after a restart, it is taken apart.
    Creating,
    Ready,
    /// Its namespaces and its shim are gone or to be gone.
    Stopped,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SandboxRecord {
    pub version: u32,
    pub id: String,
    pub config: PodSandboxConfig,
    pub created_at: jiff::Timestamp,
    pub ips: Vec<String>,
    pub phase: SandboxPhase,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub version: u32,
    pub id: String,
    pub sandbox_id: String,
    pub config: ContainerConfig,
    pub image_id: String,
    pub image_ref: String,
    pub created_at: jiff::Timestamp,
    pub process: ProcessSpec,
    pub device_rules: Vec<DeviceRule>,
    pub private_mounts: Vec<String>,
    #[serde(default)]
    pub dev_mount: Option<DevMount>,
    pub shared_pid: bool,
    pub cgroup_path: PathBuf,
    pub log_path: PathBuf,
    pub stop_signal: String,
    /// As changed by an update since.
    pub resources: Resources,
    /// The start was tried: without an exit record and a shim that knows it, the container is lost.
    #[serde(default)]
    pub started: bool,
    /// The start failed, or the shim was lost with the exit code.
    #[serde(default)]
    pub failure: Option<Failure>,
}

impl Layout {
    /// Writes a container's record and its copy.
    pub fn write_container(&self, id: &str, record: &ContainerRecord) -> io::Result<()> {
        layout::write_with_copy(&self.container_record(id), &self.container_copy(id), record)
    }

    /// Writes a sandbox's record and its copy.
    pub fn write_sandbox(&self, id: &str, record: &SandboxRecord) -> io::Result<()> {
        layout::write_with_copy(&self.sandbox_record(id), &self.sandbox_copy(id), record)
    }
}

/// An end of which no exit record tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub at: jiff::Timestamp,
}

/// A container's state now.
#[derive(Clone, Debug, PartialEq)]
pub enum ContainerPhase {
    Created,
    Running { pid: i32, started_at_ns: i64 },
    Exited(ContainerExit),
    Failed(Failure),
}

impl ContainerPhase {
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Exited(_) | Self::Failed(_))
    }

    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Exited(exit) => exit.exit_code,
            Self::Failed(failure) => failure.exit_code,
            _ => 0,
        }
    }

    pub fn state(&self) -> ContainerState {
        match self {
            Self::Created => ContainerState::Created,
            Self::Running { .. } => ContainerState::Running,
            Self::Exited(_) | Self::Failed(_) => ContainerState::Exited,
        }
    }
}

pub struct Sandbox {
    record: Mutex<SandboxRecord>,
    /// A stop is under way or done: the shim's end is no surprise.
    stopping: Mutex<bool>,
    /// Held while the sandbox is taken down or removed.
    pub teardown: tokio::sync::Mutex<()>,
}

impl Sandbox {
    pub fn new(record: SandboxRecord) -> Arc<Self> {
        let stopping = record.phase == SandboxPhase::Stopped;
        Arc::new(Self {
            record: Mutex::new(record),
            stopping: Mutex::new(stopping),
            teardown: tokio::sync::Mutex::new(()),
        })
    }

    pub fn record(&self) -> MutexGuard<'_, SandboxRecord> {
        self.record.lock().expect("no holder panics")
    }

    /// Marks the sandbox as being stopped; tells whether it was so before.
    pub fn begin_stop(&self) -> bool {
        std::mem::replace(&mut *self.stopping.lock().expect("no holder panics"), true)
    }

    pub fn is_stopping(&self) -> bool {
        *self.stopping.lock().expect("no holder panics")
    }

    pub fn status(&self) -> PodSandboxStatus {
        let record = self.record();
        PodSandboxStatus {
            id: record.id.clone(),
            metadata: record.config.metadata.clone(),
            state: match record.phase {
                SandboxPhase::Ready => SandboxState::Ready,
                _ => SandboxState::NotReady,
            },
            created_at: record.created_at,
            ips: record.ips.clone(),
            namespaces: record.config.namespaces.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
            runtime_handler: record.config.runtime_handler.clone(),
            origin: record.config.origin,
        }
    }
}

pub struct Container {
    record: Mutex<ContainerRecord>,
    phase: watch::Sender<ContainerPhase>,
}

impl Container {
    pub fn new(record: ContainerRecord, phase: ContainerPhase) -> Arc<Self> {
        Arc::new(Self {
            record: Mutex::new(record),
            phase: watch::Sender::new(phase),
        })
    }

    pub fn record(&self) -> MutexGuard<'_, ContainerRecord> {
        self.record.lock().expect("no holder panics")
    }

    pub fn phase(&self) -> ContainerPhase {
        self.phase.borrow().clone()
    }

    pub fn watch(&self) -> watch::Receiver<ContainerPhase> {
        self.phase.subscribe()
    }

    /// Goes on to `next`; an end is final. Tells whether anything changed.
    pub fn advance(&self, next: ContainerPhase) -> bool {
        self.phase.send_if_modified(|phase| {
            if phase.is_over() || *phase == next {
                return false;
            }
            *phase = next;
            true
        })
    }

    pub fn pid(&self) -> Option<i32> {
        match *self.phase.borrow() {
            ContainerPhase::Running { pid, .. } => Some(pid),
            _ => None,
        }
    }

    pub fn status(&self) -> ContainerStatus {
        let phase = self.phase();
        let record = self.record();
        let mut status = ContainerStatus {
            id: record.id.clone(),
            sandbox_id: record.sandbox_id.clone(),
            metadata: record.config.metadata.clone(),
            state: phase.state(),
            created_at: record.created_at,
            started_at: None,
            finished_at: None,
            exit_code: phase.exit_code(),
            signal: None,
            reason: String::new(),
            message: String::new(),
            image: record.config.user_specified_image.clone(),
            image_id: record.image_id.clone(),
            image_ref: record.image_ref.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
            log_path: record.log_path.clone(),
            pid: None,
            resources: record.resources.clone(),
            user: Some((
                record.process.uid,
                record.process.gid,
                record.process.additional_gids.clone(),
            )),
            stop_signal: record.stop_signal.clone(),
            mounts: record.config.mounts.clone(),
            origin: record.config.origin,
        };
        let time = |ns: i64| {
            (ns > 0)
                .then(|| jiff::Timestamp::from_nanosecond(i128::from(ns)).ok())
                .flatten()
        };
        match phase {
            ContainerPhase::Created => {}
            ContainerPhase::Running { pid, started_at_ns } => {
                status.pid = u32::try_from(pid).ok();
                status.started_at = time(started_at_ns);
            }
            ContainerPhase::Exited(exit) => {
                status.started_at = time(exit.started_at_ns);
                status.finished_at = time(exit.finished_at_ns);
                status.signal = exit.signal;
                status.reason = match (exit.oom_killed, exit.exit_code) {
                    (true, _) => "OOMKilled",
                    (false, 0) => "Completed",
                    (false, _) => "Error",
                }
                .to_owned();
            }
            ContainerPhase::Failed(failure) => {
                status.finished_at = Some(failure.at);
                status.reason = failure.reason;
                status.message = failure.message;
            }
        }
        status
    }
}
