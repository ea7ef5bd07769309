//! What the node has left: memory, disks, inodes, process ids.
//!
//! Owns: reading the machine for eviction's signals. Decides nothing. Upstream: `makeSignalObservations` in
//! `pkg/kubelet/eviction/helpers.go`, v1.36.

use std::collections::BTreeMap;
use std::path::Path;

use super::threshold::{Observation, Signal};
use crate::cm::machine::{fs_stats, meminfo};
use crate::kubelet::Kubelet;
use crate::off_thread::off_thread;

/// What the signals stand at.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub signals: BTreeMap<Signal, Observation>,
    /// Images and writable layers are on another disk than volumes and logs.
    pub dedicated_image_fs: bool,
}

/// Looks at the machine, off the async threads.
pub(super) async fn observe(kubelet: &Kubelet) -> Observed {
    let image_fs = kubelet.runtime.runtime().image_fs_info().await.ok();
    let root = kubelet.paths.root().to_owned();
    let of_pods = kubelet.container_manager.clone();
    let look = move || {
        use std::os::unix::fs::MetadataExt as _;
        let mut signals = BTreeMap::new();
        if let Some((capacity, working_set)) = of_pods.memory_of_pods() {
            let seen = Observation {
                available: capacity.saturating_sub(working_set),
                capacity,
            };
            signals.insert(Signal::AllocatableMemoryAvailable, seen);
        }
        if let (Some(available), Some(capacity)) = (meminfo("MemAvailable"), meminfo("MemTotal")) {
            let seen = Observation {
                available,
                capacity,
            };
            signals.insert(Signal::MemoryAvailable, seen);
        }
        let (bytes, inodes) = (Signal::NodeFsAvailable, Signal::NodeFsInodesFree);
        disk(&root, bytes, inodes, &mut signals);
        let mut dedicated_image_fs = false;
        if let Some(info) = image_fs {
            for (bytes, inodes) in [
                (Signal::ImageFsAvailable, Signal::ImageFsInodesFree),
                (Signal::ContainerFsAvailable, Signal::ContainerFsInodesFree),
            ] {
                disk(&info.mountpoint, bytes, inodes, &mut signals);
            }
            let device = |path: &Path| std::fs::metadata(path).map(|m| m.dev()).ok();
            dedicated_image_fs = device(&info.mountpoint) != device(&root);
        }
        if let Some((available, capacity)) = pids() {
            let seen = Observation {
                available,
                capacity,
            };
            signals.insert(Signal::PidAvailable, seen);
        }
        Observed {
            signals,
            dedicated_image_fs,
        }
    };
    match off_thread(look).await {
        Ok(seen) => seen,
        Err(error) => {
            tracing::error!(%error, "eviction manager: cannot look at the node");
            Observed::default()
        }
    }
}

fn disk(path: &Path, bytes: Signal, inodes: Signal, out: &mut BTreeMap<Signal, Observation>) {
    let Ok(stats) = fs_stats(path) else { return };
    out.insert(
        bytes,
        Observation {
            available: stats.available_bytes,
            capacity: stats.capacity_bytes,
        },
    );
    if stats.inodes > 0 {
        out.insert(
            inodes,
            Observation {
                available: stats.inodes_free,
                capacity: stats.inodes,
            },
        );
    }
}

fn pids() -> Option<(u64, u64)> {
    let max: u64 = std::fs::read_to_string("/proc/sys/kernel/pid_max")
        .ok()?
        .trim()
        .parse()
        .ok()?;
    // `0.1 0.2 0.3 running/total last`
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    let total: u64 = load
        .split_whitespace()
        .nth(3)?
        .split('/')
        .nth(1)?
        .parse()
        .ok()?;
    Some((max.saturating_sub(total), max))
}
