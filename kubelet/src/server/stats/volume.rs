//! What a pod's volumes hold. Directories are walked, at most once a minute each.
//!
//! Upstream: `pkg/kubelet/server/stats/volume_stat_calculator.go`.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;

use crate::cm::machine::{FsStats, fs_stats};
use crate::paths::Paths;
use crate::pod;

/// How long a size stands. Upstream: `volumeStatsAggPeriod`.
const AGE_MAX: Duration = Duration::from_secs(60);
/// A volume with more files than this is counted no further.
const MAX_FILES: u64 = 200_000;

/// One volume.
#[derive(Clone, Debug)]
pub(in super::super) struct Volume {
    pub(in super::super) name: String,
    /// (name, namespace) of its claim.
    pub(in super::super) claim: Option<(String, String)>,
    pub(in super::super) used_bytes: u64,
    pub(in super::super) inodes_used: u64,
    pub(in super::super) fs: FsStats,
}

/// Sizes as they were when last looked at.
#[derive(Default)]
pub(super) struct Sizes {
    known: HashMap<PathBuf, (Instant, u64, u64)>,
}

impl Sizes {
    fn of(&mut self, directory: &Path) -> (u64, u64) {
        let now = Instant::now();
        if let Some((at, bytes, inodes)) = self.known.get(directory)
            && now.duration_since(*at) < AGE_MAX
        {
            return (*bytes, *inodes);
        }
        self.known
            .retain(|_, (at, ..)| now.duration_since(*at) < AGE_MAX);
        let (bytes, inodes) = walk(directory);
        self.known
            .insert(directory.to_owned(), (now, bytes, inodes));
        (bytes, inodes)
    }
}

/// The volumes of a pod that are set up below its directory.
pub(super) fn volumes(paths: &Paths, pod: &Pod, sizes: &mut Sizes) -> Vec<Volume> {
    let root = paths.pod(pod::uid(pod)).join("volumes");
    let plugins: Vec<PathBuf> = match std::fs::read_dir(&root) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => return Vec::new(),
    };
    let spec = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    spec.filter_map(|volume| {
        let directory = plugins
            .iter()
            .map(|plugin| plugin.join(&volume.name))
            .find(|path| path.is_dir())?;
        let (used_bytes, inodes_used) = sizes.of(&directory);
        let claim = volume.persistent_volume_claim.as_ref();
        Some(Volume {
            name: volume.name.clone(),
            claim: claim.map(|c| (c.claim_name.clone(), pod::namespace(pod).to_owned())),
            used_bytes,
            inodes_used,
            fs: fs_stats(&directory).unwrap_or_default(),
        })
    })
    .collect()
}

/// Bytes and files of one file system, symlinks not followed, hard links counted once a name.
fn walk(directory: &Path) -> (u64, u64) {
    let Ok(top) = std::fs::symlink_metadata(directory) else {
        return (0, 0);
    };
    let (mut bytes, mut inodes) = (top.blocks() * 512, 1);
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        // What vanishes while we look weighs nothing.
        let Ok(entries) = std::fs::read_dir(&next) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != top.dev() {
                continue;
            }
            bytes += meta.blocks() * 512;
            inodes += 1;
            if inodes >= MAX_FILES {
                return (bytes, inodes);
            }
            if meta.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    (bytes, inodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_and_measures() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(directory.path().to_owned(), directory.path().join("logs"));
        let data = paths
            .pod("u1")
            .join("volumes/kubernetes.io~empty-dir/data/sub");
        std::fs::create_dir_all(&data).unwrap();
        std::fs::write(data.join("file"), vec![1; 10_000]).unwrap();
        std::os::unix::fs::symlink("/usr", data.join("link")).unwrap();
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u1"},
            "spec": {"containers": [], "volumes": [
                {"name": "data", "emptyDir": {}}, {"name": "gone", "emptyDir": {}}]},
        }))
        .unwrap();
        let mut sizes = Sizes::default();
        let found = volumes(&paths, &pod, &mut sizes);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].inodes_used, 4);
        assert!(
            (10_000..100_000).contains(&found[0].used_bytes),
            "{}",
            found[0].used_bytes
        );
        // Not looked at again for a while.
        std::fs::remove_file(data.join("file")).unwrap();
        assert_eq!(volumes(&paths, &pod, &mut sizes)[0].inodes_used, 4);
    }
}
