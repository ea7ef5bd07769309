//! Volumes of CSI drivers: PersistentVolumes with a `csi` source, and pods' own (`csi` in a pod's volume).
//!
//! ```text
//! <root>/plugins/kubernetes.io/csi/<driver>/<sha256 of the handle>/{vol_data.json,globalmount}   staged, once a volume
//! <root>/pods/<uid>/volumes/kubernetes.io~csi/<name>/{vol_data.json,mount}                       published, once a pod
//! <root>/plugins/kubernetes.io/csi/volumeDevices/{staging/<name>,publish/<name>/<uid>,<name>/data/vol_data.json}    raw block
//! <root>/pods/<uid>/volumeDevices/kubernetes.io~csi/<name>                                       a link to what was published
//! ```
//!
//! Owns: when a driver is asked to stage, publish and undo it, and the two records. A record is written before the driver is
//! asked and goes after it undid its work, so what a crash left is found by the records, whoever made them: they are upstream's.
//!
//! **Invariant:** calls for one volume of a driver take turns; a call that was begun is seen to its end, also when nobody waits for
//! it any more. A volume is unstaged only when no pod's record names it, and stays in the node's `volumesInUse` until then.
//!
//! Upstream: pkg/volume/csi, pkg/volume/util/operationexecutor, v1.37.

mod attach;
mod data;
mod error;
mod expand;
mod gather;
mod mount;
mod request;
mod stats;
mod tear_down;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use csi::Drivers;
use sha2::{Digest, Sha256};
use tokio::sync::OwnedMutexGuard;

use self::attach::InUse;
pub use self::error::CsiError;
pub(crate) use self::gather::{Wanted, gather};
use crate::layout::Layout;
use crate::source::ObjectSource;

pub(crate) const NAME: &str = crate::layout::CSI;
/// What a driver is told to mount to, below the volume's own directory.
pub(crate) const MOUNT: &str = "mount";
/// Of a staged volume; upstream: `globalMountInGlobalPath`.
const GLOBAL_MOUNT: &str = "globalmount";

/// What a driver knows a volume by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct DeviceKey {
    pub driver: String,
    pub handle: String,
}

impl DeviceKey {
    /// As in `volumesInUse` and `volumesAttached`; upstream: `GetUniqueVolumeName`.
    pub fn unique_name(&self) -> String {
        format!("{NAME}/{}^{}", self.driver, self.handle)
    }
}

/// All that is known of CSI volumes besides the disk.
pub(crate) struct CsiVolumes {
    layout: Layout,
    source: Arc<dyn ObjectSource>,
    drivers: Arc<Drivers>,
    node_name: String,
    /// Whose turn it is; bounded by the volumes of the node.
    turns: Mutex<HashMap<DeviceKey, Arc<tokio::sync::Mutex<()>>>>,
    memory: Mutex<Memory>,
    in_use: InUse,
}

/// What this kubelet had drivers do. Not to be known after a restart: drivers are asked anew then.
#[derive(Debug, Default)]
struct Memory {
    staged: HashSet<DeviceKey>,
    /// Pod and directory.
    published: HashSet<(String, String)>,
    usage: stats::Answers,
    /// Volumes and sizes that their driver does not make larger while they are in use here.
    refused: HashSet<(DeviceKey, String)>,
    /// Volumes that their driver did not make larger, and said so for good.
    not_expanded: HashSet<DeviceKey>,
    /// What was begun for a pod, and may still be under way.
    begun: HashMap<String, HashSet<DeviceKey>>,
}

impl Memory {
    /// The volume is not staged any more.
    fn forget(&mut self, key: &DeviceKey) {
        self.staged.remove(key);
        self.not_expanded.remove(key);
        self.refused.retain(|(refused, _)| refused != key);
    }
}

impl CsiVolumes {
    pub fn new(
        layout: Layout,
        source: Arc<dyn ObjectSource>,
        drivers: Arc<Drivers>,
        node_name: String,
    ) -> Self {
        let in_use = InUse::new(data::users(&layout));
        Self {
            layout,
            source,
            drivers,
            node_name,
            turns: Mutex::default(),
            memory: Mutex::default(),
            in_use,
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this kubelet had the volume published to the pod.
    pub fn is_published(&self, uid: &str, name: &str) -> bool {
        let memory = self.memory();
        memory
            .published
            .contains(&(uid.to_owned(), name.to_owned()))
    }

    /// Waits until no other call works on the volume.
    async fn turn(&self, key: &DeviceKey) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|other, turn| other == key || Arc::strong_count(turn) > 1);
            turns.entry(key.clone()).or_default().clone()
        };
        turn.lock_owned().await
    }

    /// For the node's status: the volumes that must not be detached. Sorted.
    pub async fn volumes_in_use(&self) -> Vec<String> {
        let mut names = BTreeSet::new();
        for key in self.in_use.keys() {
            let driver = self.source.csi_driver(&key.driver).await;
            let driver = driver.unwrap_or_default();
            if request::attach_required(driver.as_deref()) {
                names.insert(key.unique_name());
            }
        }
        names.into_iter().collect()
    }

    /// The API server has those.
    pub fn reported_in_use(&self, names: &[String]) {
        self.in_use.reported(names);
    }

    /// Resolves when [`Self::volumes_in_use`] has changed. One waiter.
    pub async fn in_use_changed(&self) {
        self.in_use.changed().await;
    }

    fn staging_path(&self, key: &DeviceKey) -> PathBuf {
        let hash = hex(&Sha256::digest(key.handle.as_bytes()));
        let dir = self.layout.csi_plugin().join(&key.driver).join(hash);
        dir.join(GLOBAL_MOUNT)
    }

    /// Raw block volumes that a pod has or had; blocks.
    pub fn block_devices(&self, uid: &str) -> Vec<String> {
        data::links(&self.layout, uid)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// File system work, off the async threads.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CsiError> + Send + 'static,
) -> Result<T, CsiError> {
    match crate::threads::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(CsiError::Interrupted(error.to_string())),
    }
}

/// Whether something is mounted exactly there. Blocks.
fn is_mounted(path: &Path) -> std::io::Result<bool> {
    Ok(crate::mountinfo::at(&crate::mountinfo::list()?, path).is_some())
}
