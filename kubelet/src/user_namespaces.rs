//! Ids of the node for pods with `hostUsers: false`.
//!
//! Owns: a block of ids for each pod, no two alike, remembered on disk as long as the pod lives. Upstream:
//! `pkg/kubelet/userns`, v1.36.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;

use k8s_openapi::api::core::v1::Pod;
use runtime::api::{IdMapping, UserNamespace};
use serde::{Deserialize, Serialize};

use crate::paths::Paths;
use crate::pod;

/// Why a pod gets no ids.
#[derive(Debug, thiserror::Error)]
pub enum UserNamespaceError {
    #[error("could not find an empty slot to allocate a user namespace")]
    Full,
    #[error("the runtime handler {0:?} does not support user namespaces")]
    Unsupported(String),
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

/// The file in the pod's directory, as upstream writes it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

/// Shared by the workers.
pub struct UserNamespaceManager {
    paths: Paths,
    ids_per_pod: u32,
    max_pods: u32,
    /// Pod UID -> first id.
    used: Mutex<HashMap<String, u32>>,
}

impl UserNamespaceManager {
    /// Reads the records of the pods on disk; one that is torn is skipped with a warning, its pod keeps running with
    /// what it has.
    pub fn load(paths: Paths, ids_per_pod: u32, max_pods: u32) -> Self {
        let mut used = HashMap::new();
        for entry in std::fs::read_dir(paths.pods())
            .into_iter()
            .flatten()
            .flatten()
        {
            let Ok(text) = std::fs::read(entry.path().join("userns")) else {
                continue;
            };
            match serde_json::from_slice::<Record>(&text) {
                Ok(record) => {
                    if let Some(first) = record.uid_mappings.first() {
                        used.insert(
                            entry.file_name().to_string_lossy().into_owned(),
                            first.host_id,
                        );
                    }
                }
                Err(error) => {
                    tracing::warn!(path = %entry.path().display(), %error, "user namespace record is unreadable")
                }
            }
        }
        Self {
            paths,
            ids_per_pod,
            max_pods: max_pods.max(1),
            used: Mutex::new(used),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, u32>> {
        self.used.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The mapping of the pod, made if need be; `None` for a pod that uses the node's ids.
    ///
    /// # Errors
    /// No free block, or the record cannot be written.
    pub fn get_or_create(&self, pod: &Pod) -> Result<Option<UserNamespace>, UserNamespaceError> {
        if pod.spec.as_ref().and_then(|s| s.host_users).unwrap_or(true) {
            return Ok(None);
        }
        let uid = pod::uid(pod);
        let mut used = self.lock();
        let first = match used.get(uid) {
            Some(first) => *first,
            None => {
                let taken: std::collections::HashSet<u32> = used.values().copied().collect();
                let first = (1..=self.max_pods)
                    .filter_map(|slot| slot.checked_mul(self.ids_per_pod))
                    .find(|first| {
                        !taken.contains(first) && first.checked_add(self.ids_per_pod).is_some()
                    })
                    .ok_or(UserNamespaceError::Full)?;
                self.write(uid, first)?;
                used.insert(uid.to_owned(), first);
                first
            }
        };
        let mapping = IdMapping {
            host_id: first,
            container_id: 0,
            length: self.ids_per_pod,
        };
        Ok(Some(UserNamespace {
            uids: vec![mapping.clone()],
            gids: vec![mapping],
        }))
    }

    fn write(&self, uid: &str, first: u32) -> Result<(), UserNamespaceError> {
        let dir = self.paths.pod(uid);
        let path = dir.join("userns");
        let fail = |source| UserNamespaceError::Io {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(&dir).map_err(fail)?;
        let mapping = || {
            vec![Mapping {
                host_id: first,
                container_id: 0,
                length: self.ids_per_pod,
            }]
        };
        let record = Record {
            uid_mappings: mapping(),
            gid_mappings: mapping(),
        };
        let text = serde_json::to_vec(&record).map_err(|e| fail(e.into()))?;
        crate::atomic_file::write(&path, &text).map_err(fail)
    }

    /// The pod is gone; its ids may be used again.
    pub fn release(&self, uid: &str) {
        self.lock().remove(uid);
        // Gone with the pod's directory anyway.
        let _ = std::fs::remove_file(self.paths.pod(uid).join("userns"));
    }
}
