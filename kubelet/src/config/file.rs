//! Static pods: manifests in a directory (or one file), followed by inotify.
//!
//! Owns: finding and reading them; `static_pod` makes pods of them. A manifest that cannot be read leaves the pod of its last good version running.
//! Upstream: `pkg/kubelet/config/{file,file_linux,common}.go`, v1.36.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::static_pod::{ManifestError, Origin, decode_single};
use super::{PodUpdate, Source, changes};

/// inotify is not available, or lost events: look again after that.
const FALLBACK_PERIOD: Duration = Duration::from_secs(20);
/// An editor writes in several steps.
const SETTLE: Duration = Duration::from_millis(50);

/// Reads one manifest as the API server would have stored it.
///
/// # Errors
/// What is wrong with the file.
pub fn extract_from_file(path: &Path, node_name: &str) -> Result<Pod, ManifestError> {
    let text = std::fs::read_to_string(path).map_err(|source| ManifestError::Read {
        path: path.to_path_buf(),
        source,
    })?;
    decode_single(&text, Origin::File(path), node_name)
}

fn manifests(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_path_buf()];
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| {
            p.is_file()
                && !p
                    .file_name()
                    .is_some_and(|n| n.to_string_lossy().starts_with('.'))
        })
        .collect();
    files.sort();
    files
}

/// What the directory held when it was last read.
#[derive(Default)]
struct State {
    by_file: BTreeMap<PathBuf, Arc<Pod>>,
}

impl State {
    /// Reads everything again; gives what changed.
    fn read(&mut self, path: &Path, node_name: &str) -> Vec<PodUpdate> {
        let mut now: BTreeMap<PathBuf, Arc<Pod>> = BTreeMap::new();
        for file in manifests(path) {
            match extract_from_file(&file, node_name) {
                Ok(pod) => drop(now.insert(file, Arc::new(pod))),
                Err(error) => {
                    tracing::error!(%error, "could not process manifest file");
                    if let Some(before) = self.by_file.get(&file) {
                        now.insert(file, before.clone());
                    }
                }
            }
        }
        let out = changes(
            self.by_file.values().cloned(),
            &now.values().cloned().collect::<Vec<_>>(),
        );
        self.by_file = now;
        out
    }
}

/// Follows `path` until `shutdown`.
pub async fn run(
    path: PathBuf,
    node_name: String,
    out: mpsc::Sender<PodUpdate>,
    shutdown: CancellationToken,
) {
    let mut state = State::default();
    let mut ready = false;
    loop {
        let mut watch = watch(&path);
        loop {
            for update in state.read(&path, &node_name) {
                if out.send(update).await.is_err() {
                    return;
                }
            }
            if !ready {
                ready = true;
                if out.send(PodUpdate::Ready(Source::File)).await.is_err() {
                    return;
                }
            }
            let Some(events) = watch.as_mut() else { break };
            tokio::select! {
                () = shutdown.cancelled() => return,
                event = events.next() => match event {
                    Some(Ok(_)) => tokio::time::sleep(SETTLE).await,
                    // The watch is broken: make another.
                    _ => break,
                },
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(FALLBACK_PERIOD) => {}
        }
    }
}

fn watch(path: &Path) -> Option<inotify::EventStream<Vec<u8>>> {
    let dir = if path.is_file() { path.parent()? } else { path };
    let make = || {
        let inotify = Inotify::init()?;
        let mask = WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::CLOSE_WRITE
            | WatchMask::DELETE_SELF;
        inotify.watches().add(dir, mask)?;
        inotify.into_event_stream(vec![0; 4096])
    };
    match make() {
        Ok(stream) => Some(stream),
        Err(error) => {
            tracing::warn!(dir = %dir.display(), %error, "unable to watch static pod path, will look at it now and then");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers: [{name: c, image: 'nginx:1'}]\n";

    #[test]
    fn no_static_pod_names_an_object_of_the_api() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.yaml");
        let text = MANIFEST.replace("spec:", "spec:\n  serviceAccountName: admin");
        std::fs::write(&file, &text).unwrap();
        let error = extract_from_file(&file, "n").unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "{}: static pods may not reference serviceaccounts",
                file.display()
            )
        );
        assert_eq!(State::default().read(dir.path(), "n").len(), 0);
    }

    #[test]
    fn changes_are_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.yaml");
        std::fs::write(&file, MANIFEST).unwrap();
        let mut state = State::default();
        assert_eq!(state.read(dir.path(), "n").len(), 1);
        assert_eq!(state.read(dir.path(), "n").len(), 0);
        std::fs::write(&file, "broken: [").unwrap();
        assert_eq!(state.read(dir.path(), "n").len(), 0);
        std::fs::write(&file, MANIFEST.replace("nginx:1", "nginx:2")).unwrap();
        let updates = state.read(dir.path(), "n");
        assert!(
            matches!(&updates[..], [PodUpdate::Removed(_), PodUpdate::Set(_)]),
            "{updates:?}"
        );
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(
            &state.read(dir.path(), "n")[..],
            [PodUpdate::Removed(_)]
        ));
    }
}
