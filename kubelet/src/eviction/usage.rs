//! What pods use of the node.
//!
//! Owns: [`PodUsage`] and how it is measured: memory and processes from the runtime, disks by counting, off the async
//! threads. Upstream: `pkg/kubelet/stats`, `podDiskUsage` in `pkg/kubelet/eviction/helpers.go`, v1.36.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use host::DiskUsage;
use k8s_openapi::api::core::v1::{Pod, Volume};

use super::threshold::Signal;
use crate::disk_usage::DiskUsages;
use crate::kubelet::Kubelet;
use crate::off_thread::spawn_blocking;
use crate::{hosts, pod};

/// How old a count may be. Upstream: cAdvisor's housekeeping interval.
const MAX_AGE: Duration = Duration::from_secs(10);

/// One container of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerUsage {
    pub name: String,
    pub memory_bytes: u64,
    pub rootfs: DiskUsage,
    pub logs: DiskUsage,
}

/// One pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodUsage {
    pub containers: Vec<ContainerUsage>,
    /// Volumes on the node's disk, by name.
    pub volumes: BTreeMap<String, DiskUsage>,
    /// What else the node keeps for it and its containers can grow: the hosts file.
    pub other: DiskUsage,
    pub processes: u64,
}

/// Which of a pod's files count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    pub rootfs: bool,
    pub logs: bool,
    pub volumes: bool,
}

impl Parts {
    pub const ALL: Self = Self {
        rootfs: true,
        logs: true,
        volumes: true,
    };

    /// The files on the disk behind the signal. Upstream: `buildSignalToRankFunc`.
    pub fn behind(signal: Signal, dedicated_image_fs: bool) -> Self {
        let node_fs = matches!(signal, Signal::NodeFsAvailable | Signal::NodeFsInodesFree);
        match (dedicated_image_fs, node_fs) {
            (false, _) => Self::ALL,
            (true, true) => Self {
                rootfs: false,
                ..Self::ALL
            },
            (true, false) => Self {
                rootfs: true,
                logs: false,
                volumes: false,
            },
        }
    }
}

impl PodUsage {
    pub fn disk(&self, parts: Parts) -> DiskUsage {
        let mut sum = DiskUsage::default();
        for container in &self.containers {
            if parts.rootfs {
                sum += container.rootfs;
            }
            if parts.logs {
                sum += container.logs;
            }
        }
        if parts.volumes {
            self.volumes.values().for_each(|volume| sum += *volume);
            sum += self.other;
        }
        sum
    }

    pub fn memory_bytes(&self) -> u64 {
        self.containers.iter().map(|c| c.memory_bytes).sum()
    }
}

/// Whether the volume's files are on the node's disk and end with the pod. Upstream: `IsLocalEphemeralVolume`.
pub fn is_local_ephemeral(volume: &Volume) -> bool {
    let on_disk = |medium: Option<&str>| medium.unwrap_or_default().is_empty();
    volume.config_map.is_some()
        || volume.git_repo.is_some()
        || volume
            .empty_dir
            .as_ref()
            .is_some_and(|e| on_disk(e.medium.as_deref()))
}

/// What is to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Memory, processes and writable layers.
    pub runtime: bool,
    /// Logs, volumes, the hosts file.
    pub disks: bool,
}

/// The usage of `pods`, in their order. What cannot be measured counts nothing.
pub async fn measure(
    kubelet: &Kubelet,
    pods: Vec<Arc<Pod>>,
    wanted: Wanted,
    counts: &Arc<DiskUsages>,
) -> Vec<(Arc<Pod>, PodUsage)> {
    let mut out: Vec<(Arc<Pod>, PodUsage)> = pods
        .into_iter()
        .map(|pod| (pod, PodUsage::default()))
        .collect();
    if wanted.runtime {
        add_runtime(kubelet, &mut out).await;
    }
    if !wanted.disks {
        return out;
    }
    let (paths, counts) = (kubelet.paths.clone(), counts.clone());
    let counted = spawn_blocking(move || {
        let count = |directory: PathBuf| counts.of(&directory, MAX_AGE);
        for (pod, usage) in &mut out {
            let uid = pod::uid(pod);
            let directory = paths.pod(uid);
            let spec = pod.spec.as_ref();
            let volumes = spec.and_then(|s| s.volumes.as_deref()).unwrap_or_default();
            for volume in volumes.iter().filter(|v| is_local_ephemeral(v)) {
                let plugin = match &volume.config_map {
                    Some(_) => "kubernetes.io~configmap",
                    None => "kubernetes.io~empty-dir",
                };
                let counted = count(directory.join("volumes").join(plugin).join(&volume.name));
                usage.volumes.insert(volume.name.clone(), counted);
            }
            let logs = paths.pod_log_directory(pod::namespace(pod), pod::name(pod), uid);
            let names = pod::containers(pod).iter().chain(pod::init_containers(pod));
            let ephemeral = pod::ephemeral_containers(pod).iter().map(|c| &c.name);
            for container in names.map(|c| &c.name).chain(ephemeral) {
                let counted = count(logs.join(container));
                match usage.containers.iter_mut().find(|c| c.name == *container) {
                    Some(known) => known.logs = counted,
                    None => usage.containers.push(ContainerUsage {
                        name: container.clone(),
                        logs: counted,
                        ..ContainerUsage::default()
                    }),
                }
            }
            use std::os::unix::fs::MetadataExt as _;
            if let Ok(meta) = std::fs::symlink_metadata(hosts::hosts_file_path(&directory)) {
                usage.other = DiskUsage {
                    bytes: meta.blocks() * 512,
                    inodes: 1,
                    partial: false,
                };
            }
        }
        out
    });
    counted.await.unwrap_or_default()
}

async fn add_runtime(kubelet: &Kubelet, pods: &mut [(Arc<Pod>, PodUsage)]) {
    let runtime = kubelet.runtime.runtime();
    let stats = runtime.list_pod_sandbox_stats().await.unwrap_or_default();
    let known = kubelet.runtime.pods().await.unwrap_or_default();
    for (pod, usage) in pods {
        let Some(status) = known.get(pod::uid(pod)) else {
            continue;
        };
        let own = |id: &str| status.sandboxes.iter().any(|s| s.id == id);
        for sandbox in stats.iter().filter(|s| own(&s.id)) {
            usage.processes += sandbox.process_count;
            let containers = sandbox.containers.iter().map(|c| ContainerUsage {
                name: c.name.clone(),
                memory_bytes: c.memory_working_set_bytes,
                rootfs: DiskUsage {
                    bytes: c.writable_layer_used_bytes,
                    inodes: c.writable_layer_inodes_used,
                    partial: false,
                },
                logs: DiskUsage::default(),
            });
            usage.containers.extend(containers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(bytes: u64) -> DiskUsage {
        DiskUsage {
            bytes,
            inodes: bytes / 10,
            partial: false,
        }
    }

    #[test]
    fn what_counts_depends_on_the_disk() {
        let usage = PodUsage {
            containers: vec![ContainerUsage {
                name: "c".into(),
                memory_bytes: 7,
                rootfs: disk(1000),
                logs: disk(200),
            }],
            volumes: [("v".to_owned(), disk(30))].into(),
            other: disk(10),
            processes: 1,
        };
        for (signal, dedicated, bytes, inodes) in [
            (Signal::NodeFsAvailable, false, 1240, 124),
            (Signal::NodeFsInodesFree, true, 240, 24),
            (Signal::ImageFsAvailable, true, 1000, 100),
            (Signal::ContainerFsInodesFree, false, 1240, 124),
        ] {
            let sum = usage.disk(Parts::behind(signal, dedicated));
            assert_eq!((sum.bytes, sum.inodes), (bytes, inodes), "{signal:?}");
        }
        assert_eq!(usage.memory_bytes(), 7);
    }

    #[test]
    fn memory_is_no_disk() {
        let volume = |value| serde_json::from_value::<Volume>(value).unwrap();
        for (json, expect) in [
            (serde_json::json!({"name": "v", "emptyDir": {}}), true),
            (
                serde_json::json!({"name": "v", "configMap": {"name": "c"}}),
                true,
            ),
            (
                serde_json::json!({"name": "v", "emptyDir": {"medium": "Memory"}}),
                false,
            ),
            (
                serde_json::json!({"name": "v", "emptyDir": {"medium": "HugePages"}}),
                false,
            ),
            (serde_json::json!({"name": "v", "secret": {}}), false),
            (serde_json::json!({"name": "v", "projected": {}}), false),
            (
                serde_json::json!({"name": "v", "hostPath": {"path": "/"}}),
                false,
            ),
        ] {
            assert_eq!(is_local_ephemeral(&volume(json.clone())), expect, "{json}");
        }
    }
}
