//! Static pods: manifests in a directory (or one file), followed by inotify and looked at now and then besides.
//!
//! Owns: finding and reading them; `static_pod` makes pods of them. A manifest that cannot be read leaves the pod of its last good version running,
//! and so does a directory; one that is not there has no pods. Upstream: `pkg/kubelet/config/{file,file_linux,common}.go`, v1.36.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use inotify::{EventMask, Inotify, WatchMask};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::static_pod::{ManifestError, Origin, decode_single};
use super::{PodUpdate, Source, changes};
use crate::pod;

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

/// Sorted. One that cannot be looked at is among them: reading it will tell.
fn manifests(path: &Path) -> io::Result<Vec<PathBuf>> {
    let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => return Ok(vec![path.to_path_buf()]),
        Err(error) if is_gone(&error) => return Ok(vec![]),
        Err(error) => return Err(error),
    }
    let mut files = vec![];
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        let is_file = match std::fs::metadata(entry.path()) {
            Ok(meta) => meta.is_file(),
            Err(error) => !is_gone(&error),
        };
        if is_file && !hidden {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// What the directory held when it was last read.
#[derive(Default)]
struct State {
    by_file: BTreeMap<PathBuf, Arc<Pod>>,
}

impl State {
    /// Reads everything again; gives what changed.
    fn read(&mut self, path: &Path, node_name: &str) -> Vec<PodUpdate> {
        let files = match manifests(path) {
            Ok(files) => files,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "unable to read config path");
                return vec![];
            }
        };
        let mut found: Vec<(PathBuf, Arc<Pod>)> = vec![];
        for file in files {
            match extract_from_file(&file, node_name) {
                Ok(pod) => found.push((file, Arc::new(pod))),
                Err(error) => {
                    tracing::error!(%error, "could not process manifest file");
                    if let Some(before) = self.by_file.get(&file) {
                        found.push((file, before.clone()));
                    }
                }
            }
        }
        let now = self.one_of_each_name(found);
        let out = changes(
            self.by_file.values().cloned(),
            &now.values().cloned().collect::<Vec<_>>(),
        );
        self.by_file = now;
        out
    }

    /// Of pods of one name the one that was there before counts, or else the first by its file.
    // DIFFERS: upstream takes the last, and so puts a copy that somebody keeps beside a manifest in the place of what runs.
    fn one_of_each_name(&self, mut found: Vec<(PathBuf, Arc<Pod>)>) -> BTreeMap<PathBuf, Arc<Pod>> {
        // Stable: files stay in their order otherwise.
        found.sort_by_key(|(file, _)| !self.by_file.contains_key(file));
        let mut names: HashMap<String, PathBuf> = HashMap::new();
        let mut now = BTreeMap::new();
        for (file, pod) in found {
            let name = pod::full_name(&pod);
            if let Some(first) = names.get(&name) {
                tracing::error!(pod = name, file = %file.display(), first = %first.display(), "duplicate pod name, ignoring the manifest");
                continue;
            }
            names.insert(name, file.clone());
            now.insert(file, pod);
        }
        now
    }
}

/// Follows `path` until `shutdown`. `period`: how often it is looked at without a cause; the kernel tells nothing of what a
/// link leads to, nor of another directory that takes the place of the one that was watched.
pub async fn run(
    path: PathBuf,
    node_name: String,
    period: Duration,
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
            let event = async {
                match &mut watch {
                    Some(events) => events.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                // With another watch, should this one look at something else by now.
                () = tokio::time::sleep(period) => break,
                event = event => match event {
                    Some(Ok(event)) => {
                        tokio::time::sleep(SETTLE).await;
                        if event.mask.intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF) {
                            break;
                        }
                    }
                    broken => {
                        tracing::warn!(path = %path.display(), ?broken, "the watch of the static pod path is broken, another is made later");
                        watch = None;
                    }
                },
            }
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
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF;
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

    /// A copy beside a manifest, with an ending of its own or without.
    #[test]
    fn of_two_of_one_name_the_one_that_runs_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, image: &str| {
            let text = MANIFEST.replace("nginx:1", image);
            std::fs::write(dir.path().join(file), text).unwrap();
        };
        let image = |pod: &Pod| pod.spec.as_ref().unwrap().containers[0].image.clone();
        let check = |state: &mut State, gone: &[&str], new: &[&str]| {
            let (mut were, mut are) = (vec![], vec![]);
            for update in state.read(dir.path(), "n") {
                match update {
                    PodUpdate::Removed(pod) => were.push(image(&pod).unwrap()),
                    PodUpdate::Set(pod) => are.push(image(&pod).unwrap()),
                    PodUpdate::Ready(_) => {}
                }
            }
            assert_eq!(
                (were.as_slice(), are.as_slice()),
                (strings(gone).as_slice(), strings(new).as_slice())
            );
        };
        fn strings(words: &[&str]) -> Vec<String> {
            words.iter().map(|word| (*word).to_owned()).collect()
        }
        write("web.yaml", "nginx:2");
        let mut state = State::default();
        check(&mut state, &[], &["nginx:2"]);
        write("web.yaml.bak", "nginx:1");
        write("a-copy.yaml", "nginx:0");
        check(&mut state, &[], &[]);
        write("web.yaml", "nginx:3");
        check(&mut state, &["nginx:2"], &["nginx:3"]);
        // Of those that are new the first counts.
        check(&mut State::default(), &[], &["nginx:0"]);
        std::fs::remove_file(dir.path().join("web.yaml")).unwrap();
        check(&mut state, &["nginx:3"], &["nginx:0"]);
    }

    #[test]
    fn a_directory_that_cannot_be_read_takes_no_pod_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifests");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("a.yaml"), MANIFEST).unwrap();
        let mut state = State::default();
        assert_eq!(state.read(&path, "n").len(), 1);
        std::fs::rename(&path, dir.path().join("away")).unwrap();
        // A link to itself: an error that is not that nothing is there.
        std::os::unix::fs::symlink(&path, &path).unwrap();
        assert_eq!(state.read(&path, "n").len(), 0);
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(
            &state.read(&path, "n")[..],
            [PodUpdate::Removed(_)]
        ));
    }

    /// To move the directory away is how people stop a control plane.
    #[tokio::test]
    async fn a_directory_that_is_moved_away_and_made_anew_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("manifests")).unwrap();
        std::fs::write(at("target.yaml"), MANIFEST).unwrap();
        let link = |directory: &str| {
            std::os::unix::fs::symlink(at("target.yaml"), at(directory).join("a.yaml")).unwrap();
        };
        link("manifests");
        let (out, mut updates) = mpsc::channel(8);
        let (shutdown, period) = (CancellationToken::new(), Duration::from_millis(50));
        let running = tokio::spawn(run(
            at("manifests"),
            "n".to_owned(),
            period,
            out,
            shutdown.clone(),
        ));
        let mut next = async || {
            let next = tokio::time::timeout(Duration::from_secs(20), updates.recv());
            match next.await.expect("something is told").unwrap() {
                PodUpdate::Set(_) => "set",
                PodUpdate::Removed(_) => "removed",
                PodUpdate::Ready(_) => "ready",
            }
        };
        assert_eq!((next().await, next().await), ("set", "ready"));
        std::fs::write(at("target.yaml"), MANIFEST.replace("nginx:1", "nginx:2")).unwrap();
        assert_eq!((next().await, next().await), ("removed", "set"));
        std::fs::rename(at("manifests"), at("away")).unwrap();
        assert_eq!(next().await, "removed");
        std::fs::create_dir(at("manifests")).unwrap();
        link("manifests");
        assert_eq!(next().await, "set");
        shutdown.cancel();
        running.await.unwrap();
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
