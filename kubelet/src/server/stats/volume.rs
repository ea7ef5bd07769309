//! What a pod's volumes hold. Directories are walked, at most once a minute each.
//!
//! Upstream: `pkg/kubelet/server/stats/volume_stat_calculator.go`.

use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Volume as ApiVolume};

use volumes::VolumeUsage;

use crate::cm::machine::{FsStats, fs_stats};
use crate::disk_usage::DiskUsages;
use crate::eviction::usage::is_local_ephemeral;
use crate::paths::Paths;
use crate::pod;

/// How long a size stands. Upstream: `volumeStatsAggPeriod`.
const AGE_MAX: Duration = Duration::from_secs(60);

/// One volume.
#[derive(Clone, Debug)]
pub(in super::super) struct Volume {
    pub(in super::super) name: String,
    /// (name, namespace) of its claim.
    pub(in super::super) claim: Option<(String, String)>,
    pub(in super::super) used_bytes: u64,
    pub(in super::super) inodes_used: u64,
    /// Its files are on the node's disk and end with the pod: no memory, no claim.
    pub(in super::super) local: bool,
    pub(in super::super) fs: FsStats,
}

/// The claim that a volume of a pod means. Upstream's name for one of a generic ephemeral volume: `POD-VOLUME`.
pub(in super::super) fn claim_of(pod: &Pod, volume: &ApiVolume) -> Option<(String, String)> {
    let named = volume.persistent_volume_claim.as_ref();
    let named = named.map(|claim| claim.claim_name.clone());
    let own = || {
        let ephemeral = volume.ephemeral.is_some();
        ephemeral.then(|| format!("{}-{}", pod::name(pod), volume.name))
    };
    Some((named.or_else(own)?, pod::namespace(pod).to_owned()))
}

/// The volumes of a pod that are set up: claims, by what their file system says, and those below the pod's directory.
/// `driver`: what the volume's driver says, if it is a driver's: those that say nothing are left out. `claim_directory`: as [`ServerContext::claim_directory`](crate::server::ServerContext::claim_directory).
pub(super) fn volumes(
    paths: &Paths,
    pod: &Pod,
    sizes: &DiskUsages,
    claim_directory: impl Fn(&str) -> Option<PathBuf>,
    driver: impl Fn(&str) -> Option<Option<VolumeUsage>>,
) -> Vec<Volume> {
    let root = paths.pod(pod::uid(pod)).join("volumes");
    let plugins: Vec<PathBuf> = match std::fs::read_dir(&root) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => Vec::new(),
    };
    let spec = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    spec.filter_map(|volume| {
        if let Some(said) = driver(&volume.name) {
            return Some(of_driver(&said?, volume, claim_of(pod, volume)));
        }
        if volume.csi.is_some() {
            return None;
        }
        if let Some(claim) = claim_of(pod, volume) {
            let directory = claim_directory(&volume.name)?;
            let fs = fs_stats(&directory).ok()?;
            return Some(Volume {
                name: volume.name.clone(),
                claim: Some(claim),
                used_bytes: fs.capacity_bytes.saturating_sub(fs.available_bytes),
                inodes_used: fs.inodes.saturating_sub(fs.inodes_free),
                local: false,
                fs,
            });
        }
        let directory = plugins
            .iter()
            .map(|plugin| plugin.join(&volume.name))
            .find(|path| path.is_dir())?;
        let used = sizes.of(&directory, AGE_MAX);
        Some(Volume {
            name: volume.name.clone(),
            claim: None,
            used_bytes: used.bytes,
            inodes_used: used.inodes,
            local: is_local_ephemeral(volume),
            fs: fs_stats(&directory).unwrap_or_default(),
        })
    })
    .collect()
}

/// What a driver says of a volume.
fn of_driver(said: &VolumeUsage, volume: &ApiVolume, claim: Option<(String, String)>) -> Volume {
    let figures = FsFigures::of_driver(said);
    Volume {
        name: volume.name.clone(),
        claim,
        used_bytes: figures.used_bytes,
        inodes_used: figures.inodes_used,
        local: false,
        fs: figures.fs,
    }
}

/// A file system, or what stands for one.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct FsFigures {
    pub(in super::super) fs: FsStats,
    pub(in super::super) used_bytes: u64,
    pub(in super::super) inodes_used: u64,
}

impl FsFigures {
    pub(in super::super) fn of_driver(said: &VolumeUsage) -> Self {
        let positive = |n: i64| u64::try_from(n).unwrap_or(0);
        let (used, available, total) = said.bytes.unwrap_or_default();
        let (inodes_used, inodes_free, inodes) = said.inodes.unwrap_or_default();
        Self {
            fs: FsStats {
                capacity_bytes: positive(total),
                available_bytes: positive(available),
                inodes: positive(inodes),
                inodes_free: positive(inodes_free),
            },
            used_bytes: positive(used),
            inodes_used: positive(inodes_used),
        }
    }

    pub(in super::super) fn of_file_system(fs: FsStats) -> Self {
        Self {
            used_bytes: fs.capacity_bytes.saturating_sub(fs.available_bytes),
            inodes_used: fs.inodes.saturating_sub(fs.inodes_free),
            fs,
        }
    }
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
        std::fs::create_dir_all(
            paths
                .pod("u1")
                .join("volumes/kubernetes.io~empty-dir/memory"),
        )
        .unwrap();
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u1"},
            "spec": {"containers": [], "volumes": [
                {"name": "data", "emptyDir": {}}, {"name": "gone", "emptyDir": {}},
                {"name": "memory", "emptyDir": {"medium": "Memory"}},
                {"name": "kept", "persistentVolumeClaim": {"claimName": "c"}},
                {"name": "waits", "persistentVolumeClaim": {"claimName": "d"}}]},
        }))
        .unwrap();
        let kept = directory.path().to_owned();
        let claimed = |volume: &str| (volume == "kept").then(|| kept.clone());
        let sizes = DiskUsages::default();
        let no_driver = |_: &str| None;
        let found = volumes(&paths, &pod, &sizes, claimed, no_driver);
        assert_eq!(found.len(), 3);
        // By its file system, not by a walk.
        assert_eq!(found[2].claim, Some(("c".to_owned(), "n".to_owned())));
        assert!(found[2].used_bytes > 0 && found[2].used_bytes < found[2].fs.capacity_bytes);
        assert_eq!(found[0].inodes_used, 4);
        // Of the disk is what is on the disk.
        assert_eq!(
            found.iter().map(|v| v.local).collect::<Vec<_>>(),
            [true, false, false]
        );
        assert!(
            (10_000..100_000).contains(&found[0].used_bytes),
            "{}",
            found[0].used_bytes
        );
        // Not looked at again for a while.
        std::fs::remove_file(data.join("file")).unwrap();
        assert_eq!(
            volumes(&paths, &pod, &sizes, claimed, no_driver)[0].inodes_used,
            4
        );
        // A driver's word, or none.
        let said = VolumeUsage {
            bytes: Some((40, 60, 100)),
            inodes: None,
        };
        let says = |volume: &str| match volume {
            "kept" => Some(Some(said)),
            "data" => Some(None),
            _ => None,
        };
        let found = volumes(&paths, &pod, &sizes, claimed, says);
        assert_eq!(found.len(), 2);
        assert_eq!((found[1].used_bytes, found[1].fs.available_bytes), (40, 60));
    }
}
