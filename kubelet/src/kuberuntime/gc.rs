//! Takes away what ended: dead containers, dead sandboxes, their logs.
//!
//! Owns: what may be removed when ([`plan`], pure). Never touches what runs. Upstream:
//! `pkg/kubelet/kuberuntime/kuberuntime_gc.go`, v1.36.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use runtime::api::{ContainerState, ContainerStatus, RuntimeError, SandboxState};

use super::{RuntimeManager, observe};
use crate::off_thread::{off_thread, spawn_blocking};
use crate::paths::uid_of_log_directory;
use crate::pod_status::PodStatus;

/// How many dead containers are kept.
#[derive(Clone, Copy, Debug)]
pub struct GcPolicy {
    /// Younger ones stay.
    pub min_age: Duration,
    /// Of each container of a pod; negative: all.
    pub max_per_container: i64,
}

/// Who still has a use for what is left of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The pod goes on, or its containers are looked at: the policy counts.
    Pod,
    /// It has ended and the disk is full: its object is enough. Upstream: `DeleteAllUnusedContainers`.
    Object,
    /// No source names it any longer, and it has ended.
    Nobody,
}

/// What to remove of one pod.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Garbage {
    pub containers: Vec<String>,
    pub sandboxes: Vec<String>,
}

/// What nobody has a use for.
pub fn plan(status: &PodStatus, of_use: Use, policy: &GcPolicy, now: Timestamp) -> Garbage {
    let all = of_use != Use::Pod;
    let mut garbage = Garbage::default();
    let mut seen: BTreeMap<&str, i64> = BTreeMap::new();
    let dead = |c: &ContainerStatus| !matches!(c.state, ContainerState::Running);
    // Newest first.
    for container in status.containers.iter().filter(|c| dead(c)) {
        let age = Duration::try_from(now.duration_since(container.created_at)).unwrap_or_default();
        if all {
            garbage.containers.push(container.id.clone());
            continue;
        }
        if age < policy.min_age || container.state != ContainerState::Exited {
            continue;
        }
        let count = seen.entry(&container.metadata.name).or_default();
        *count += 1;
        // One more than the policy says: the newest is the state, the next the last state.
        if policy.max_per_container >= 0 && *count > policy.max_per_container.max(1) {
            garbage.containers.push(container.id.clone());
        }
    }
    for (index, sandbox) in status.sandboxes.iter().enumerate() {
        let in_use = sandbox.state == SandboxState::Ready
            || status
                .containers
                .iter()
                .any(|c| c.sandbox_id == sandbox.id && !garbage.containers.contains(&c.id));
        // The newest of a pod that is still wanted tells how often it was made.
        if !in_use && (all || index > 0) {
            garbage.sandboxes.push(sandbox.id.clone());
        }
    }
    garbage
}

impl RuntimeManager {
    /// Removes what [`plan`] says of the pod. Goes on past errors; the next round finds what is left.
    ///
    /// Gives one text a failure.
    pub async fn collect_pod(
        &self,
        status: &PodStatus,
        of_use: Use,
        policy: &GcPolicy,
    ) -> Vec<String> {
        let mut errors = vec![];
        let garbage = plan(status, of_use, policy, self.d.clock.now());
        for id in &garbage.containers {
            let Some(container) = status.containers.iter().find(|c| c.id == *id) else {
                continue;
            };
            if let Err(error) = self.remove_container(container).await {
                tracing::warn!(container = id, %error, "failed to remove container");
                errors.push(format!("failed to remove container {id:?}: {error}"));
            }
        }
        for id in &garbage.sandboxes {
            // Stopping again costs nothing and frees what a crash may have left.
            let stopped = observe("stop_podsandbox", self.d.runtime.stop_pod_sandbox(id)).await;
            if let Err(error) = stopped {
                tracing::warn!(sandbox = id, %error, "failed to stop sandbox before removing");
                errors.push(format!(
                    "failed to stop sandbox {id:?} before removing: {error}"
                ));
                continue;
            }
            if let Err(error) =
                observe("remove_podsandbox", self.d.runtime.remove_pod_sandbox(id)).await
            {
                tracing::warn!(sandbox = id, %error, "failed to remove sandbox");
                errors.push(format!("failed to remove sandbox {id:?}: {error}"));
            }
        }
        if of_use == Use::Nobody {
            let logs = self
                .d
                .paths
                .pod_log_directory(&status.namespace, &status.name, &status.uid);
            let removed = spawn_blocking(move || remove_dir(&logs)).await;
            if let Err(error) = removed {
                tracing::warn!(%error, "failed to remove log directory");
            }
        }
        errors
    }

    /// The container; its logs stay.
    ///
    /// # Errors
    /// The runtime's; a retry may help.
    pub(super) async fn remove_container_only(
        &self,
        container: &ContainerStatus,
    ) -> Result<(), RuntimeError> {
        let call = self.d.runtime.remove_container(&container.id);
        match observe("remove_container", call).await {
            Ok(()) | Err(RuntimeError::ContainerNotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The container, its log with the rotated ones, and the link to it.
    ///
    /// # Errors
    /// The runtime's; a retry may help.
    pub(super) async fn remove_container(
        &self,
        container: &ContainerStatus,
    ) -> Result<(), RuntimeError> {
        self.remove_container_only(container).await?;
        let label = |key: &str| {
            container
                .labels
                .get(key)
                .map(String::as_str)
                .unwrap_or_default()
        };
        let link = self.d.paths.legacy_log_link(
            label(crate::pod::label::POD_NAMESPACE),
            label(crate::pod::label::POD_NAME),
            &container.metadata.name,
            &container.id,
        );
        let (paths, log) = (self.d.paths.clone(), container.log_path.clone());
        let removed = off_thread(move || {
            crate::container_log::remove(&paths, &log);
            // A link that is gone is what is wanted.
            let _ = std::fs::remove_file(link);
        });
        if let Err(error) = removed.await {
            tracing::warn!(container = container.id, %error, "failed to remove log");
        }
        Ok(())
    }

    /// Log directories and links of pods nobody knows any longer.
    pub async fn remove_orphaned_logs(&self, known: impl Fn(&str) -> bool) {
        let logs = self.d.paths.pod_logs_root().to_owned();
        let list = move || -> Vec<PathBuf> {
            let entries = std::fs::read_dir(&logs).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).collect()
        };
        let found = off_thread(list).await.unwrap_or_default();
        let orphans: Vec<PathBuf> = found
            .into_iter()
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                uid_of_log_directory(&name).is_some_and(|uid| !known(uid))
            })
            .collect();
        let logs = self.d.paths.pod_logs_root().to_owned();
        let links = self.d.paths.container_logs().to_owned();
        let removed = spawn_blocking(move || {
            orphans.iter().for_each(|path| remove_dir(path));
            remove_dangling_links(&links, &logs);
        });
        if let Err(error) = removed.await {
            tracing::warn!(%error, "failed to remove logs");
        }
    }
}

/// Links in the old place of container logs whose log is gone.
fn remove_dangling_links(links: &Path, logs: &Path) {
    for entry in std::fs::read_dir(links).into_iter().flatten().flatten() {
        let path = entry.path();
        let dangling =
            std::fs::symlink_metadata(&path).is_ok_and(|m| m.is_symlink()) && !path.exists();
        let ours = std::fs::read_link(&path).is_ok_and(|t| t.starts_with(logs));
        if dangling && ours {
            let _ = std::fs::remove_file(&path);
        }
    }
}

fn remove_dir(dir: &Path) {
    if let Err(error) = host::remove_tree(dir) {
        tracing::warn!(dir = %dir.display(), %error, "failed to remove log directory");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(id: &str, state: ContainerState) -> ContainerStatus {
        let mut status: ContainerStatus = serde_json::from_value(serde_json::json!({
            "id": id, "sandbox_id": "s", "metadata": {"name": "c", "attempt": 0}, "state": "Exited",
            "created_at": "1970-01-01T00:00:00Z", "started_at": null, "finished_at": null, "exit_code": 0, "signal": null,
            "reason": "", "message": "", "image": "", "image_id": "", "image_ref": "", "labels": {}, "annotations": {},
            "log_path": "", "pid": null, "resources": runtime::api::Resources::default(), "user": null, "stop_signal": "", "mounts": [],
        }))
        .unwrap();
        status.state = state;
        status
    }

    #[test]
    fn what_ended_is_kept_by_the_policy_and_goes_when_nobody_needs_it() {
        let policy = GcPolicy {
            min_age: Duration::ZERO,
            max_per_container: 1,
        };
        let mut status = PodStatus::default();
        for id in ["new", "old", "older"] {
            status
                .containers
                .push(container(id, ContainerState::Exited));
        }
        let check = |status: &PodStatus, of_use: Use, expect: &[&str]| {
            let garbage = plan(status, of_use, &policy, Timestamp::now());
            assert_eq!(garbage.containers, expect, "{of_use:?}");
        };
        check(&status, Use::Pod, &["old", "older"]);
        check(&status, Use::Object, &["new", "old", "older"]);
        check(&status, Use::Nobody, &["new", "old", "older"]);
        status.containers[0].state = ContainerState::Running;
        check(&status, Use::Object, &["old", "older"]);
    }
}
