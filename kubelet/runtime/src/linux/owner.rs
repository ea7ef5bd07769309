//! Who has the runtime open: one process at a time.
//!
//! The kubelet has it while it runs, the CRI's server while the kubelet does not. The kernel's lock on one file says so, and ends with
//! its process whatever happens to it. Whoever opens the runtime finds what runs as after a restart (see `adopt`).
//!
//! ```text
//! the kubelet:     acquire --nobody has it--> its own
//!                     |--the CRI's server has it: connects to its handover socket, which makes it let go --> its own
//!                     '--anybody else has it--> an error
//! the CRI's server: try_acquire --> its own, until somebody connects to the handover socket
//!                     '--another has it: that one is asked (its `runtime.sock`)
//! ```

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;

use super::layout;
use crate::api::RuntimeError;

/// How long a process that just ended, or that nobody can ask, may keep the lock.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the CRI's server may take to finish what its clients asked for.
const HANDOVER_PATIENCE: Duration = Duration::from_secs(60);
/// The kernel tells nobody that a lock is free without making a thread wait for it without end.
const RETRY: Duration = Duration::from_millis(20);

/// The lock; dropped, the runtime is anybody's.
#[derive(Debug)]
pub struct Ownership {
    _lock: File,
}

fn lock_path(root: &Path) -> PathBuf {
    root.join("owner.lock")
}

fn handover_path(state: &Path) -> PathBuf {
    state.join("handover.sock")
}

impl Ownership {
    /// `None`: another process has the runtime.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn try_acquire(root: &Path) -> io::Result<Option<Self>> {
        layout::private_directory(root)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(lock_path(root))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self { _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// The runtime, taken over from the CRI's server if that has it.
    ///
    /// # Errors
    /// Another process has it and keeps it, or the directories cannot be used.
    pub async fn acquire(root: &Path, state: &Path) -> Result<Self, RuntimeError> {
        let started = Instant::now();
        let mut patience = PATIENCE;
        // Ends when the other side has let go, or has died: another may have been quicker then, and is asked too.
        let mut asked: Option<UnixStream> = None;
        loop {
            let found = Self::try_acquire(root).map_err(|source| RuntimeError::Io {
                context: format!("lock {}", lock_path(root).display()),
                source,
            })?;
            if let Some(ownership) = found {
                return Ok(ownership);
            }
            asked = asked.filter(|asked| !has_ended(asked));
            if asked.is_none() {
                asked = UnixStream::connect(handover_path(state)).await.ok();
                if asked.is_some() {
                    tracing::info!("the CRI's server is asked to hand the runtime over");
                    patience = HANDOVER_PATIENCE;
                }
            }
            if started.elapsed() >= patience {
                return Err(RuntimeError::Invalid {
                    field: "runtime root directory",
                    value: root.display().to_string(),
                    reason: format!("in use by another process, also after {patience:?}"),
                });
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Nothing is ever sent.
fn has_ended(asked: &UnixStream) -> bool {
    !matches!(asked.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Where an owner hears that another wants the runtime. To be dropped when the runtime is let go of.
#[derive(Debug)]
pub struct Handover {
    listener: UnixListener,
    path: PathBuf,
    /// Who asked: they hear of the end by the end of these.
    asked: Vec<UnixStream>,
}

impl Handover {
    /// For an owner alone: what lies there is of an earlier one.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn listen(state: &Path, _owner: &Ownership) -> io::Result<Self> {
        layout::private_directory(state)?;
        let path = handover_path(state);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        Ok(Self {
            listener,
            path,
            asked: Vec::new(),
        })
    }

    /// Somebody wants the runtime.
    pub async fn wanted(&mut self) {
        loop {
            match self.listener.accept().await {
                Ok((asked, _)) => return self.asked.push(asked),
                Err(error) => {
                    tracing::warn!(%error, "cannot hear whether somebody wants the runtime");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_and_the_server_lets_go() {
        let directory = tempfile::tempdir().unwrap();
        let (root, state) = (
            directory.path().join("root"),
            directory.path().join("state"),
        );
        let owner = Ownership::try_acquire(&root).unwrap().unwrap();
        assert!(Ownership::try_acquire(&root).unwrap().is_none());
        let mut handover = Handover::listen(&state, &owner).unwrap();
        let server = tokio::spawn(async move {
            handover.wanted().await;
            drop((handover, owner));
        });
        let owner = Ownership::acquire(&root, &state).await.unwrap();
        server.await.unwrap();
        assert!(!handover_path(&state).exists());
        drop(owner);
        assert!(Ownership::try_acquire(&root).unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_that_cannot_be_asked_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let _owner = Ownership::try_acquire(directory.path()).unwrap().unwrap();
        let error = Ownership::acquire(directory.path(), &directory.path().join("none"))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("in use by another process"));
    }
}
