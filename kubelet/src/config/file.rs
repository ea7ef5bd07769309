//! Static pods: manifests in a directory (or one file), followed by inotify.
//!
//! Owns: reading and defaulting them. A manifest that cannot be read leaves the pod of its last good version running.
//! Upstream: `pkg/kubelet/config/{file,file_linux,common}.go`, v1.36.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use component_helpers::names::fnv64a;
use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, Toleration};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{PodUpdate, Source};
use crate::pod::{
    self, CONFIG_FIRST_SEEN_ANNOTATION, CONFIG_HASH_ANNOTATION, CONFIG_SOURCE_ANNOTATION,
};

/// inotify is not available, or lost events: look again after that.
const FALLBACK_PERIOD: Duration = Duration::from_secs(20);
/// An editor writes in several steps.
const SETTLE: Duration = Duration::from_millis(50);

/// Why a manifest gives no pod.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("{path}: {source}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path}: couldn't parse as pod: {reason}, please check config file")]
    Parse { path: PathBuf, reason: String },
    #[error("{path}: static pods may not reference {resource}")]
    Reference {
        path: PathBuf,
        resource: &'static str,
    },
}

/// Reads one manifest as the API server would have stored it.
///
/// # Errors
/// What is wrong with the file.
pub fn extract_from_file(path: &Path, node_name: &str) -> Result<Pod, ManifestError> {
    let text = std::fs::read_to_string(path).map_err(|source| ManifestError::Read {
        path: path.to_path_buf(),
        source,
    })?;
    decode_single_pod(&text, path, node_name)
}

fn decode_single_pod(text: &str, path: &Path, node_name: &str) -> Result<Pod, ManifestError> {
    let parse = |reason: String| ManifestError::Parse {
        path: path.to_path_buf(),
        reason,
    };
    let value = super::manifest::decode(text).map_err(parse)?;
    let word = |key: &str| value.get(key).and_then(|k| k.as_str());
    if word("kind") != Some("Pod") || word("apiVersion") != Some("v1") {
        return Err(parse(format!(
            "apiVersion and kind are {:?} and {:?}, not \"v1\" and \"Pod\"",
            word("apiVersion").unwrap_or_default(),
            word("kind").unwrap_or_default()
        )));
    }
    let mut pod: Pod = serde_json::from_value(value).map_err(|e| parse(e.to_string()))?;
    if pod.metadata.name.as_deref().unwrap_or_default().is_empty() {
        return Err(parse("metadata.name: Required value".to_owned()));
    }
    if pod.spec.as_ref().is_none_or(|s| s.containers.is_empty()) {
        return Err(parse("spec.containers: Required value".to_owned()));
    }
    if let Some(resource) = super::api_references::find(&pod) {
        return Err(ManifestError::Reference {
            path: path.to_path_buf(),
            resource,
        });
    }
    apply_defaults(&mut pod, text, path, node_name);
    Ok(pod)
}

fn apply_defaults(pod: &mut Pod, text: &str, path: &Path, node_name: &str) {
    if pod.metadata.uid.as_deref().unwrap_or_default().is_empty() {
        // Stable for this node, this file and this content.
        let seed = format!("host:{node_name}file:{}{text}", path.display());
        let uid = format!(
            "{:016x}{:016x}",
            fnv64a(seed.as_bytes()),
            fnv64a(format!("{seed}#").as_bytes())
        );
        pod.metadata.uid = Some(uid);
    }
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    pod.metadata.name = pod
        .metadata
        .name
        .take()
        .map(|n| format!("{n}-{}", node_name.to_lowercase()));
    pod.metadata.namespace = pod
        .metadata
        .namespace
        .take()
        .filter(|n| !n.is_empty())
        .or(Some("default".to_owned()));
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(CONFIG_SOURCE_ANNOTATION.to_owned(), "file".to_owned());
    annotations.insert(CONFIG_HASH_ANNOTATION.to_owned(), uid);
    annotations.insert(
        CONFIG_FIRST_SEEN_ANNOTATION.to_owned(),
        jiff::Timestamp::now().to_string(),
    );
    pod.status = Some(PodStatus {
        phase: Some("Pending".to_owned()),
        ..PodStatus::default()
    });
    let Some(spec) = pod.spec.as_mut() else {
        return;
    };
    spec.node_name = Some(node_name.to_owned());
    let everything = Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    };
    let tolerations = spec.tolerations.get_or_insert_default();
    if !tolerations.contains(&everything) {
        tolerations.push(everything);
    }
    spec.restart_policy
        .get_or_insert_with(|| "Always".to_owned());
    spec.dns_policy
        .get_or_insert_with(|| "ClusterFirst".to_owned());
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.security_context.get_or_insert_default();
    spec.scheduler_name
        .get_or_insert_with(|| "default-scheduler".to_owned());
    spec.enable_service_links.get_or_insert(true);
    spec.priority
        .get_or_insert(match spec.priority_class_name.as_deref() {
            Some("system-node-critical") => 2_000_001_000,
            Some("system-cluster-critical") => 2_000_000_000,
            _ => 0,
        });
    for container in spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten())
    {
        default_container(container);
    }
}

fn default_container(container: &mut Container) {
    let image = container.image.as_deref().unwrap_or_default();
    let latest = !image.contains('@')
        && image
            .rsplit('/')
            .next()
            .is_some_and(|n| !n.contains(':') || n.ends_with(":latest"));
    container
        .image_pull_policy
        .get_or_insert_with(|| if latest { "Always" } else { "IfNotPresent" }.to_owned());
    container
        .termination_message_path
        .get_or_insert_with(|| "/dev/termination-log".to_owned());
    container
        .termination_message_policy
        .get_or_insert_with(|| "File".to_owned());
    if let Some(resources) = container.resources.as_mut()
        && let Some(limits) = resources.limits.clone()
    {
        // A limit without a request asks for as much.
        let requests = resources.requests.get_or_insert_default();
        for (name, limit) in limits {
            requests.entry(name).or_insert(limit);
        }
    }
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
        let mut out = vec![];
        let kept = |uid: &str| now.values().any(|p| pod::uid(p) == uid);
        for old in self.by_file.values().filter(|p| !kept(pod::uid(p))) {
            out.push(PodUpdate::Removed(old.clone()));
        }
        for new in now.values() {
            if !self.by_file.values().any(|p| pod::uid(p) == pod::uid(new)) {
                out.push(PodUpdate::Set(new.clone()));
            }
        }
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
    fn manifests_are_defaulted() {
        let pod = decode_single_pod(MANIFEST, Path::new("/m/web.yaml"), "node1").unwrap();
        assert_eq!(pod::full_name(&pod), "web-node1_default");
        assert_eq!(pod::uid(&pod).len(), 32);
        assert!(pod::is_static(&pod));
        assert_eq!(pod::config_hash(&pod), Some(pod::uid(&pod)));
        assert_eq!(
            pod.spec.unwrap().containers[0].image_pull_policy.as_deref(),
            Some("IfNotPresent")
        );
    }

    /// A file of two documents, with YAML 1.1's numbers and a key that comes twice.
    #[test]
    fn manifests_are_read_as_upstream_reads_them() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  terminationGracePeriodSeconds: 3e1\n  \
                    hostNetwork: yes\n  containers:\n  - name: c\n    image: old\n    image: nginx:1\n    \
                    ports: [{containerPort: 8e1}]\n    resources: {limits: {cpu: 1e0}}\n  \
                    volumes: [{name: v, downwardAPI: {defaultMode: 0440}}]\n---\nkind: ConfigMap\n";
        let pod = decode_single_pod(text, Path::new("/m/web.yaml"), "Node1").unwrap();
        assert_eq!(pod.metadata.name.as_deref(), Some("web-node1"));
        let spec = pod.spec.unwrap();
        assert_eq!(spec.termination_grace_period_seconds, Some(30));
        assert_eq!(spec.host_network, Some(true));
        let container = &spec.containers[0];
        assert_eq!(container.image.as_deref(), Some("nginx:1"));
        assert_eq!(container.ports.as_ref().unwrap()[0].container_port, 80);
        let limits = container.resources.as_ref().unwrap().limits.as_ref();
        assert_eq!(limits.unwrap()["cpu"].0, "1");
        let volume = &spec.volumes.unwrap()[0];
        let mode = volume.downward_api.as_ref().unwrap().default_mode;
        assert_eq!(mode, Some(0o440));
        for text in ["kind: ConfigMap\n---\nkind: Pod\n", "kind: Pod\n"] {
            decode_single_pod(text, Path::new("/m/web.yaml"), "n").unwrap_err();
        }
    }

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
