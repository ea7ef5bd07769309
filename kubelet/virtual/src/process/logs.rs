//! A container's log: a file that its process writes, read as it grows.

use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use inotify::{Inotify, WatchMask};
use kubelet_provider::{ContainerState, LogOptions, LogStream, ProviderError};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::mpsc;

use super::PodProcesses;

/// What one read takes.
const PIECE_BYTES: usize = 32 * 1024;
const EVENT_BYTES: usize = 4096;

pub(super) fn path(directory: &Path, container: &str, restart: i32) -> PathBuf {
    directory.join(format!("{container}.{restart}.log"))
}

/// Before the run `restart` begins: its own log and the one before are what can be asked for, older ones go.
pub(super) async fn forget(directory: &Path, container: &str, restart: i32) {
    let old = path(directory, container, restart - 2);
    match tokio::fs::remove_file(&old).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %old.display(), %error, "An old log cannot be removed");
        }
        _ => {}
    }
}

/// The log, as far as it is asked for.
///
/// # Errors
/// There is no such run, or what is asked for cannot be told from a plain file.
pub(super) async fn open(
    pod: Arc<PodProcesses>,
    at: usize,
    options: &LogOptions,
) -> Result<LogStream, ProviderError> {
    if options.timestamps || options.since.is_some() {
        return Err(ProviderError::Unsupported("times in logs"));
    }
    let restarts = pod.runs()[at].restarts - i32::from(options.previous);
    let path = path(&pod.directory, &pod.plan.containers[at].name, restarts);
    let mut file = File::open(&path)
        .await
        .map_err(|_| ProviderError::NotFound)?;
    let failed = |error: std::io::Error| ProviderError::Failed(error.to_string());
    if let Some(lines) = options.tail_lines {
        let begin = tail(&mut file, lines).await.map_err(failed)?;
        file.seek(SeekFrom::Start(begin)).await.map_err(failed)?;
    }
    // Watched before it is read: nothing that is written falls between.
    let changes = match options.follow && !options.previous {
        true => {
            let inotify = Inotify::init().map_err(failed)?;
            inotify
                .watches()
                .add(&path, WatchMask::MODIFY)
                .map_err(failed)?;
            Some(
                inotify
                    .into_event_stream(vec![0; EVENT_BYTES])
                    .map_err(failed)?,
            )
        }
        false => None,
    };
    let (sender, mut receiver) = mpsc::channel::<std::io::Result<Bytes>>(2);
    let mut left = options.limit_bytes.unwrap_or(u64::MAX);
    component_base::tasks::spawn_helper("log of a process", async move {
        let mut changes = changes;
        loop {
            let runs = matches!(pod.runs()[at].state, ContainerState::Running { .. });
            // All there is now; what ended before was written before.
            loop {
                let mut piece = vec![0; PIECE_BYTES];
                let count = match file.read(&mut piece).await {
                    Ok(count) => count,
                    Err(error) => return drop(sender.send(Err(error)).await),
                };
                if count == 0 {
                    break;
                }
                let wanted = count.min(usize::try_from(left).unwrap_or(usize::MAX));
                piece.truncate(wanted);
                left -= wanted as u64;
                if sender.send(Ok(piece.into())).await.is_err() || left == 0 {
                    return;
                }
            }
            let Some(changes) = changes.as_mut().filter(|_| runs) else {
                return;
            };
            tokio::select! {
                _ = changes.next() => {}
                () = ended(&pod, at) => {}
                () = sender.closed() => return,
            }
        }
    });
    let pieces = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    Ok(Box::new(tokio_util::io::StreamReader::new(pieces)))
}

/// Until the container's process has ended.
async fn ended(pod: &PodProcesses, at: usize) {
    let mut changes = pod.changes.subscribe();
    // The sender lives as long as the pod.
    let _ = changes
        .wait_for(|_| !matches!(pod.runs()[at].state, ContainerState::Running { .. }))
        .await;
}

/// Where the last `lines` lines begin.
async fn tail(file: &mut File, lines: u64) -> std::io::Result<u64> {
    let end = file.seek(SeekFrom::End(0)).await?;
    let (mut at, mut needed) = (end, lines);
    if needed == 0 {
        return Ok(end);
    }
    let mut piece = vec![0; PIECE_BYTES];
    while at > 0 {
        let size = at.min(PIECE_BYTES as u64);
        at -= size;
        file.seek(SeekFrom::Start(at)).await?;
        let part = &mut piece[..usize::try_from(size).unwrap_or(PIECE_BYTES)];
        file.read_exact(part).await?;
        for (offset, byte) in part.iter().enumerate().rev() {
            let after = at + offset as u64 + 1;
            // The end of the last line begins no further one.
            if *byte == b'\n' && after != end {
                needed -= 1;
                if needed == 0 {
                    return Ok(after);
                }
            }
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_runs_have_logs() {
        let root = tempfile::tempdir().unwrap();
        for restart in 0..5 {
            forget(root.path(), "c", restart).await;
            std::fs::write(path(root.path(), "c", restart), "x").unwrap();
        }
        let left = std::fs::read_dir(root.path()).unwrap();
        let mut left: Vec<_> = left.map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["c.3.log", "c.4.log"]);
    }
}
