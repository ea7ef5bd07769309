//! `vol_data.json`: which volume of which driver a directory is of. Upstream's keys, so that either kubelet finds the other's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{DeviceKey, GLOBAL_MOUNT, NAME};
use crate::layout::{CSI_DEVICES as DEVICES, Layout, escape_qualified_name};

const FILE: &str = "vol_data.json";
const NEW_FILE: &str = ".vol_data.json.new";
/// Much more than any; a file that is longer is none of ours.
const MAX_BYTES: u64 = 64 << 10;
const EPHEMERAL: &str = "Ephemeral";
const PERSISTENT: &str = "Persistent";

/// A record. The lifecycle, node and attachment are in those of pods alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VolumeData(BTreeMap<String, String>);

impl VolumeData {
    pub fn staged(key: &DeviceKey) -> Self {
        let pairs = [("volumeHandle", &key.handle), ("driverName", &key.driver)];
        Self(pairs.map(|(k, v)| (k.to_owned(), v.clone())).into())
    }

    pub fn published(
        key: &DeviceKey,
        spec_name: &str,
        node: &str,
        attachment: &str,
        ephemeral: bool,
    ) -> Self {
        let mut data = Self::staged(key).0;
        let mode = if ephemeral { EPHEMERAL } else { PERSISTENT };
        data.extend(
            [
                ("specVolID", spec_name),
                ("nodeName", node),
                ("attachmentID", attachment),
                ("volumeLifecycleMode", mode),
            ]
            .map(|(k, v)| (k.to_owned(), v.to_owned())),
        );
        Self(data)
    }

    fn get(&self, key: &str) -> String {
        self.0.get(key).cloned().unwrap_or_default()
    }

    pub fn key(&self) -> DeviceKey {
        DeviceKey {
            driver: self.get("driverName"),
            handle: self.get("volumeHandle"),
        }
    }

    pub fn is_ephemeral(&self) -> bool {
        self.get("volumeLifecycleMode") == EPHEMERAL
    }

    /// Whole or not at all, also after a crash.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let path = dir.join(FILE);
        if read(dir)?.as_ref() == Some(self) {
            return Ok(());
        }
        let new = dir.join(NEW_FILE);
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(&self.0)?)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()
    }
}

/// `None`: there is none, or none that can be read.
pub(super) fn read(dir: &Path) -> io::Result<Option<VolumeData>> {
    let path = dir.join(FILE);
    match fs::metadata(&path) {
        Ok(info) if info.is_file() && info.len() <= MAX_BYTES => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    let parsed: Result<BTreeMap<String, String>, _> = serde_json::from_slice(&fs::read(&path)?);
    let data = parsed.ok().map(VolumeData);
    let data =
        data.filter(|d| !d.get("driverName").is_empty() && !d.get("volumeHandle").is_empty());
    if data.is_none() {
        tracing::warn!(path = %path.display(), "not a record of a CSI volume");
    }
    Ok(data)
}

/// The record, and the directory that is empty without it.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    for file in [FILE, NEW_FILE] {
        super::error::gone(fs::remove_file(dir.join(file)))?;
    }
    super::error::gone(fs::remove_dir(dir))
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.file_name().into_string().ok())
        .collect()
}

/// A volume that a driver was asked to publish to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Published {
    /// The PersistentVolume's, or the pod's own for it.
    pub name: String,
    pub data: VolumeData,
    pub block: bool,
}

/// Those of a pod.
pub(super) fn of_pod(layout: &Layout, uid: &str) -> Vec<Published> {
    let dir = layout.volumes(uid).join(escape_qualified_name(NAME));
    let mounts = names(&dir).into_iter().filter_map(|name| {
        let data = read(&dir.join(&name)).ok()??;
        Some(Published {
            name,
            data,
            block: false,
        })
    });
    let devices = links(layout, uid).into_iter().filter_map(|name| {
        let data = read(&layout.csi_block(&name).data).ok()??;
        Some(Published {
            name,
            data,
            block: true,
        })
    });
    mounts.chain(devices).collect()
}

/// The names of a pod's block volumes.
pub(super) fn links(layout: &Layout, uid: &str) -> Vec<String> {
    names(&layout.csi_device_links(uid))
}

/// The persistent volumes that are staged or published, each with the pods whose record names it.
pub(super) fn users(layout: &Layout) -> BTreeMap<DeviceKey, BTreeSet<String>> {
    let mut users: BTreeMap<DeviceKey, BTreeSet<String>> = BTreeMap::new();
    for staged in staged(layout) {
        users.entry(staged.key).or_default();
    }
    for uid in names(&layout.pods()) {
        for volume in of_pod(layout, &uid) {
            if !volume.data.is_ephemeral() {
                let pods = users.entry(volume.data.key()).or_default();
                pods.insert(uid.clone());
            }
        }
    }
    users
}

/// A volume that was staged, or nearly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Staged {
    pub key: DeviceKey,
    /// What the driver was told.
    pub path: PathBuf,
    /// The PersistentVolume of a block device.
    pub block: Option<String>,
}

pub(super) fn staged(layout: &Layout) -> Vec<Staged> {
    let root = layout.csi_plugin();
    let mut found = Vec::new();
    for driver in names(&root).into_iter().filter(|name| name != DEVICES) {
        for hash in names(&root.join(&driver)) {
            let dir = root.join(&driver).join(hash);
            if let Ok(Some(data)) = read(&dir) {
                found.push(Staged {
                    key: data.key(),
                    path: dir.join(GLOBAL_MOUNT),
                    block: None,
                });
            }
        }
    }
    for name in names(&root.join(DEVICES)) {
        let block = layout.csi_block(&name);
        if let Ok(Some(data)) = read(&block.data) {
            found.push(Staged {
                key: data.key(),
                path: block.staging,
                block: Some(name),
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_upstreams() {
        let dir = tempfile::tempdir().unwrap();
        let key = DeviceKey {
            driver: "d".to_owned(),
            handle: "h".to_owned(),
        };
        let data = VolumeData::published(&key, "pv", "n", "csi-1", true);
        data.write(dir.path()).unwrap();
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert_eq!(
            text,
            "{\"attachmentID\":\"csi-1\",\"driverName\":\"d\",\"nodeName\":\"n\",\"specVolID\":\"pv\",\"volumeHandle\":\"h\",\"volumeLifecycleMode\":\"Ephemeral\"}\n"
        );
        let found = read(dir.path()).unwrap().unwrap();
        assert!(found == data && found.key() == key && found.is_ephemeral());
        for junk in ["", "{", "[]", "{}", "{\"driverName\":\"d\"}"] {
            fs::write(dir.path().join(FILE), junk).unwrap();
            assert_eq!(read(dir.path()).unwrap(), None, "{junk}");
        }
        remove(dir.path()).unwrap();
        assert!(!dir.path().exists());
        remove(dir.path()).unwrap();
        fs::create_dir(dir.path()).unwrap();
    }
}
