//! The driver: what [`crate::plan`] decides, carried out on [`crate::disk`] and kept in [`crate::state`].
//!
//! Every call is plain synchronous code on a thread of its own; `service.rs` is the only place that knows of gRPC.
//! Upstream: kubernetes-csi/csi-driver-host-path (behaviour, names, flags; the code is our own).

mod controller;
mod group;
mod health;
mod node;
mod service;
mod snapshot;

use std::io::Read;
use std::path::Path;
use std::{fs, io};

use thiserror::Error;
use tonic::Status;

pub use service::serve;

use crate::disk::{Disk, DiskError};
use crate::loop_device::{self, LoopError};
use crate::mount::MountError;
use crate::operations::{Guard, Operations};
use crate::plan::{self, Config};
use crate::state::{Access, Moment, Phase, StateError, StateFile};
use crate::{disk, mount};

/// The driver cannot start.
#[derive(Debug, Error)]
pub enum DriverError {
    #[error("no driver name is given (--drivername)")]
    NoName,
    #[error("no node is given (--nodeid)")]
    NoNode,
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Loop(#[from] LoopError),
}

/// The driver of one node.
#[derive(Debug)]
pub struct Driver {
    config: Config,
    disk: Disk,
    state: StateFile,
    operations: Operations,
}

impl Driver {
    /// Opens the folder and takes away what an earlier process began and did not finish.
    ///
    /// # Errors
    /// The folder or its state cannot be used.
    pub fn open(config: Config, folder: &Path) -> Result<Self, DriverError> {
        if config.driver_name.is_empty() {
            return Err(DriverError::NoName);
        }
        if config.node_id.is_empty() {
            return Err(DriverError::NoNode);
        }
        let driver = Self {
            disk: Disk::open(folder)?,
            // Upstream's specs give one folder to several drivers of a node.
            state: StateFile::open(folder.join(format!("{}.json", config.driver_name)))?,
            operations: Operations::default(),
            config,
        };
        driver.finish()?;
        Ok(driver)
    }

    /// What is neither wholly made nor wholly gone goes.
    fn finish(&self) -> Result<(), DriverError> {
        let (volumes, snapshots, groups) = self.state.read(|state| {
            let half = |phase: Phase| phase != Phase::Ready;
            let volumes = state.volumes.values().filter(|one| half(one.phase));
            let groups = state.groups.values().filter(|one| half(one.phase));
            // A group goes with all its snapshots.
            let snapshots = state.snapshots.values().filter(|one| {
                let group = one.group.as_ref().map(|group| state.groups.get(group));
                half(one.phase)
                    || group.is_some_and(|group| group.is_none_or(|group| half(group.phase)))
            });
            (
                volumes
                    .map(|one| (one.id.clone(), one.access))
                    .collect::<Vec<_>>(),
                snapshots.map(|one| one.id.clone()).collect::<Vec<_>>(),
                groups.map(|one| one.id.clone()).collect::<Vec<_>>(),
            )
        });
        for (id, access) in volumes {
            tracing::info!(volume = id, "removing what was not finished");
            self.remove_volume_data(&id, access)?;
            self.forget(|state| drop(state.volumes.remove(&id)))?;
        }
        for id in snapshots {
            tracing::info!(snapshot = id, "removing what was not finished");
            disk::remove(&self.disk.snapshot(&id))?;
            self.forget(|state| drop(state.snapshots.remove(&id)))?;
        }
        for id in groups {
            self.forget(|state| drop(state.groups.remove(&id)))?;
        }
        Ok(())
    }

    fn forget(&self, change: impl FnOnce(&mut crate::state::State)) -> Result<(), StateError> {
        self.state.update(|state| {
            change(state);
            Ok(())
        })
    }

    fn remove_volume_data(&self, id: &str, access: Access) -> Result<(), DriverError> {
        let path = self.disk.volume(id);
        if access == Access::Block {
            loop_device::detach(&path)?;
        }
        Ok(disk::remove(&path)?)
    }

    fn alone(&self, key: &str) -> Result<Guard, Status> {
        self.operations.alone(key).ok_or_else(|| plan::busy(key))
    }

    fn shared(&self, key: &str) -> Result<Guard, Status> {
        self.operations.shared(key).ok_or_else(|| plan::busy(key))
    }

    fn no_volume(id: &str) -> Status {
        Status::not_found(format!("volume {id} does not exist"))
    }
}

/// An ID nobody else has. Upstream: a UUID, too.
fn new_id() -> io::Result<String> {
    let mut text = String::new();
    fs::File::open("/proc/sys/kernel/random/uuid")?.read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

fn now() -> Moment {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    Moment {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    }
}

/// What went wrong inside, as a caller is told: with every cause.
fn internal(err: impl std::error::Error) -> Status {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    Status::internal(text)
}

/// Errors become answers.
macro_rules! internal_errors {
    ($($error:ty),*) => {$(
        impl From<$error> for Failed {
            fn from(err: $error) -> Self {
                Self(internal(err))
            }
        }
    )*};
}

/// The answer to a call that failed.
#[derive(Debug)]
struct Failed(Status);

internal_errors!(StateError, DiskError, LoopError, DriverError, io::Error);

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        Self(status)
    }
}

impl From<MountError> for Failed {
    fn from(err: MountError) -> Self {
        match err {
            MountError::Flag(_) => Self(Status::invalid_argument(err.to_string())),
            err => Self(internal(err)),
        }
    }
}

/// What a call gives.
type Answer<T> = Result<T, Failed>;

/// Unmounts a target and removes what stood there.
fn clear_target(target: &Path) -> Answer<()> {
    mount::unmount(target)?;
    let removed = match fs::symlink_metadata(target) {
        // Never more than the folder itself: it is empty, or it is not ours.
        Ok(meta) if meta.is_dir() => fs::remove_dir(target),
        Ok(_) => fs::remove_file(target),
        Err(err) => Err(err),
    };
    match removed {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
