//! Reading a log to its end, or on and on as it grows, over rotations, until its container has exited.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use inotify::{Inotify, WatchMask};
use runtime::api::{ContainerState, Runtime, RuntimeEvent};
use tokio::fs::File;
use tokio::io::AsyncReadExt as _;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use super::line::LineWriter;
use crate::container_log;
use crate::off_thread::off_thread;
use crate::paths::Paths;

const READ_BYTES: usize = 64 * 1024;
const EVENT_BYTES: usize = 4096;

/// One request for a log.
pub(super) struct Reader {
    pub(super) paths: Paths,
    pub(super) path: PathBuf,
    /// Placed where reading begins.
    pub(super) file: File,
    pub(super) writer: LineWriter,
    pub(super) follow: bool,
    pub(super) runtime: Arc<dyn Runtime>,
    /// Taken before the container's state was looked at.
    pub(super) events: broadcast::Receiver<RuntimeEvent>,
    pub(super) container: String,
    pub(super) shutdown: CancellationToken,
    pub(super) sink: mpsc::Sender<io::Result<Bytes>>,
}

/// Whether there is more to come.
#[derive(PartialEq, Eq)]
enum Next {
    More,
    Done,
}

impl Reader {
    /// Sends all there is; errors go to the client by breaking its response off.
    pub(super) async fn run(mut self) {
        let result = if self.follow {
            self.follow().await
        } else {
            self.drain().await.map(drop)
        };
        if let Err(error) = result {
            tracing::warn!(path = %self.path.display(), %error, "reading a container's log failed");
            let _ = self.sink.send(Err(error)).await;
        }
    }

    /// Reads to the end of what there is now.
    async fn drain(&mut self) -> io::Result<Next> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let count = self.file.read(&mut buffer).await?;
            if count == 0 {
                return Ok(Next::More);
            }
            let mut out = BytesMut::new();
            let more = self.writer.push(&buffer[..count], &mut out);
            if !out.is_empty() && self.sink.send(Ok(out.freeze())).await.is_err() {
                return Ok(Next::Done);
            }
            if !more {
                return Ok(Next::Done);
            }
        }
    }

    async fn follow(&mut self) -> io::Result<()> {
        // The directory, since rotation gives the path a new file.
        let directory = self.path.parent().unwrap_or(&self.path).to_owned();
        let inotify = Inotify::init()?;
        let mask = WatchMask::MODIFY
            | WatchMask::CREATE
            | WatchMask::MOVED_TO
            | WatchMask::DELETE_SELF
            | WatchMask::ONLYDIR;
        inotify.watches().add(&directory, mask)?;
        let mut changes = inotify.into_event_stream(vec![0; EVENT_BYTES])?;
        let mut ended = !self.is_running().await;
        loop {
            if self.drain().await? == Next::Done {
                return Ok(());
            }
            if self.reopen().await? {
                continue;
            }
            // Its last words were written before its end was told.
            if ended {
                return Ok(());
            }
            tokio::select! {
                change = changes.next() => {
                    if change.transpose()?.is_none() {
                        return Ok(());
                    }
                }
                event = self.events.recv() => ended = self.has_ended(event).await,
                () = self.sink.closed() => return Ok(()),
                () = self.shutdown.cancelled() => return Ok(()),
            }
        }
    }

    /// Goes on with the file the path names now. `false`: it is the one we read.
    async fn reopen(&mut self) -> io::Result<bool> {
        let (paths, path) = (self.paths.clone(), self.path.clone());
        let opened = off_thread(move || container_log::open(&paths, &path)).await;
        let next = match opened.map_err(io::Error::other)? {
            Ok(file) => File::from_std(file),
            // Between a rotation's two steps.
            Err(error) if error.is_not_found() => return Ok(false),
            Err(error) => return Err(io::Error::other(error)),
        };
        let (now, ours) = (next.metadata().await?, self.file.metadata().await?);
        if (now.dev(), now.ino()) == (ours.dev(), ours.ino()) {
            return Ok(false);
        }
        // What was written to the old one between our last read and its renaming.
        if self.drain().await? == Next::Done {
            return Ok(false);
        }
        self.writer.end_of_file();
        self.file = next;
        Ok(true)
    }

    async fn is_running(&self) -> bool {
        match self.runtime.container_status(&self.container).await {
            Ok(status) => {
                matches!(
                    status.state,
                    ContainerState::Running | ContainerState::Created
                )
            }
            Err(_) => false,
        }
    }

    async fn has_ended(&self, event: Result<RuntimeEvent, broadcast::error::RecvError>) -> bool {
        match event {
            Ok(RuntimeEvent::ContainerExited { container_id, .. }) => {
                container_id == self.container
            }
            Ok(RuntimeEvent::SandboxNotReady { .. })
            | Err(broadcast::error::RecvError::Lagged(_)) => !self.is_running().await,
            Ok(_) => false,
            Err(broadcast::error::RecvError::Closed) => true,
        }
    }
}
