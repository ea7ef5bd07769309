//! What is on the disk of a pod: enough for the next process of this program to go on.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use k8s_openapi::jiff::Timestamp;
use kubelet_provider::{ContainerState, PodId, Terminated};
use serde::{Deserialize, Serialize};

use super::child::Exit;
use super::plan::Plan;

const FILE: &str = "pod.json";
/// A record of another version is left alone, with its processes.
const VERSION: u32 = 1;

/// A container's process and its past.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// With its start time.
    pub(super) pid: Option<(i32, u64)>,
    pub(super) restarts: i32,
    /// In a row, for the back-off.
    pub(super) crashes: u32,
    pub(super) state: ContainerState,
    pub(super) last: Option<Terminated>,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            pid: None,
            restarts: 0,
            crashes: 0,
            state: ContainerState::Waiting {
                reason: "ContainerCreating".to_owned(),
                message: String::new(),
            },
            last: None,
        }
    }
}

impl Run {
    /// It ended while nobody looked.
    pub(super) fn lost(&mut self) {
        let (now, exit) = (Timestamp::now(), Exit::unknown());
        let started_at = match &self.state {
            ContainerState::Running { started_at } => *started_at,
            _ => now,
        };
        self.state = ContainerState::Terminated(Terminated {
            exit_code: exit.code,
            reason: exit.reason,
            message: exit.message,
            started_at,
            finished_at: now,
        });
    }
}

/// A pod as it is read.
pub(super) struct Record {
    pub(super) id: PodId,
    pub(super) plan: Plan,
    pub(super) runs: Vec<Run>,
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    /// Pids and start times mean something in this boot alone.
    boot: String,
    uid: String,
    namespace: String,
    name: String,
    node: String,
    plan: Plan,
    runs: Vec<FileRun>,
}

/// Times in nanoseconds since 1970.
#[derive(Serialize, Deserialize)]
struct FileRun {
    pid: Option<(i32, u64)>,
    restarts: i32,
    crashes: u32,
    started_at: Option<i64>,
    ended: Option<FileEnd>,
    last: Option<FileEnd>,
}

#[derive(Serialize, Deserialize)]
struct FileEnd {
    exit_code: i32,
    reason: String,
    message: String,
    started_at: i64,
    finished_at: i64,
}

fn nanoseconds(at: Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX)
}

fn time(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or(Timestamp::UNIX_EPOCH)
}

impl FileEnd {
    fn of(ended: &Terminated) -> Self {
        Self {
            exit_code: ended.exit_code,
            reason: ended.reason.clone(),
            message: ended.message.clone(),
            started_at: nanoseconds(ended.started_at),
            finished_at: nanoseconds(ended.finished_at),
        }
    }

    fn read(self) -> Terminated {
        Terminated {
            exit_code: self.exit_code,
            reason: self.reason,
            message: self.message,
            started_at: time(self.started_at),
            finished_at: time(self.finished_at),
        }
    }
}

impl FileRun {
    fn of(run: &Run) -> Self {
        let (started_at, ended) = match &run.state {
            ContainerState::Running { started_at } => (Some(nanoseconds(*started_at)), None),
            ContainerState::Terminated(ended) => (None, Some(FileEnd::of(ended))),
            ContainerState::Waiting { .. } => (None, None),
        };
        Self {
            pid: run.pid,
            restarts: run.restarts,
            crashes: run.crashes,
            started_at,
            ended,
            last: run.last.as_ref().map(FileEnd::of),
        }
    }

    fn read(self) -> Run {
        let state = match (self.started_at, self.ended) {
            (_, Some(ended)) => ContainerState::Terminated(ended.read()),
            (Some(at), None) => ContainerState::Running {
                started_at: time(at),
            },
            (None, None) => Run::default().state,
        };
        Run {
            pid: self.pid,
            restarts: self.restarts,
            crashes: self.crashes,
            state,
            last: self.last.map(FileEnd::read),
        }
    }
}

async fn boot() -> String {
    let id = tokio::fs::read_to_string("/proc/sys/kernel/random/boot_id").await;
    id.unwrap_or_default().trim().to_owned()
}

impl Record {
    pub(super) fn of(id: &PodId, plan: &Plan, runs: &[Run]) -> Self {
        Self {
            id: id.clone(),
            plan: plan.clone(),
            runs: runs.to_vec(),
        }
    }

    /// Writes it beside, then puts it in place.
    ///
    /// # Errors
    /// The disk refuses it.
    pub(super) async fn write(self, directory: &Path) -> std::io::Result<()> {
        let file = File {
            version: VERSION,
            boot: boot().await,
            uid: self.id.uid.to_string(),
            namespace: self.id.namespace.to_string(),
            name: self.id.name.to_string(),
            node: self.id.node.to_string(),
            plan: self.plan,
            runs: self.runs.iter().map(FileRun::of).collect(),
        };
        let text = serde_json::to_vec(&file)?;
        let directory = directory.to_owned();
        let write = move || {
            // Containers of a pod change at the same time.
            let beside = tempfile::NamedTempFile::new_in(&directory)?;
            std::fs::write(beside.path(), text)?;
            beside
                .persist(directory.join(FILE))
                .map_err(|error| error.error)?;
            Ok(())
        };
        tokio::task::spawn_blocking(write)
            .await
            .map_err(std::io::Error::other)?
    }
}

/// A directory that is ours alone.
///
/// # Errors
/// It cannot be made.
pub(super) async fn make_private(directory: &Path) -> std::io::Result<()> {
    tokio::fs::create_dir_all(directory).await?;
    tokio::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700)).await
}

/// Every pod below `root`. What has no readable record is told of and left alone.
///
/// # Errors
/// `root` cannot be read.
pub(super) async fn read_all(root: &Path) -> std::io::Result<Vec<(PathBuf, Record)>> {
    let boot = boot().await;
    let mut records = Vec::new();
    let mut entries = tokio::fs::read_dir(root).await?;
    while let Some(entry) = entries.next_entry().await? {
        let directory = entry.path();
        let text = match tokio::fs::read(directory.join(FILE)).await {
            Ok(text) => text,
            Err(error)
                if error.kind() == ErrorKind::NotFound
                    || error.kind() == ErrorKind::NotADirectory =>
            {
                continue;
            }
            Err(error) => return Err(error),
        };
        let file: File = match serde_json::from_slice::<File>(&text) {
            Ok(file) if file.version == VERSION => file,
            Ok(file) => {
                tracing::error!(path = %directory.display(), version = file.version, "A pod's record has a version that is not known, it is left alone");
                continue;
            }
            Err(error) => {
                tracing::error!(path = %directory.display(), %error, "A pod's record cannot be read, it is left alone");
                continue;
            }
        };
        let same_boot = file.boot == boot;
        let runs = file.runs.into_iter().map(|run| {
            let mut run = run.read();
            if !same_boot && run.pid.take().is_some() {
                run.lost();
            }
            run
        });
        let id = PodId {
            uid: file.uid.into(),
            namespace: file.namespace.into(),
            name: file.name.into(),
            node: file.node.into(),
        };
        let record = Record {
            id,
            plan: file.plan,
            runs: runs.collect(),
        };
        records.push((directory, record));
    }
    Ok(records)
}
