//! Volumes that must not be detached from this node, and the wait until one is attached.
//!
//! The attach-detach controller detaches no volume that the Node's status has in `volumesInUse`. So one is put there, and the API
//! server has it, before its attachment is believed. Upstream: `VerifyControllerAttachedVolume`, `GetVolumesInUse`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use tokio::sync::{Notify, watch};

use super::request::{attachment_name, verify_attachment};
use super::{CsiError, CsiVolumes, DeviceKey};

/// Upstream: `podAttachAndMountTimeout`.
const TIMEOUT: Duration = Duration::from_secs(123);
/// What gRPC calls it when a node takes no more volumes: `RESOURCE_EXHAUSTED`.
const RESOURCE_EXHAUSTED: i32 = 8;

/// Who uses a volume. Bounded by the volumes of the node's pods.
#[derive(Debug)]
pub(super) struct InUse {
    /// With the pods that want or have it.
    volumes: Mutex<BTreeMap<DeviceKey, BTreeSet<String>>>,
    changed: Notify,
    /// Unique names that the API server has.
    reported: watch::Sender<BTreeSet<String>>,
}

impl InUse {
    pub fn new(found: BTreeMap<DeviceKey, BTreeSet<String>>) -> Self {
        Self {
            volumes: Mutex::new(found),
            changed: Notify::new(),
            reported: watch::Sender::default(),
        }
    }

    fn volumes(&self) -> MutexGuard<'_, BTreeMap<DeviceKey, BTreeSet<String>>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn keys(&self) -> Vec<DeviceKey> {
        self.volumes().keys().cloned().collect()
    }

    /// The pod wants the volume.
    pub fn want(&self, key: &DeviceKey, uid: &str) {
        let mut volumes = self.volumes();
        if !volumes.contains_key(key) {
            self.changed.notify_one();
        }
        volumes
            .entry(key.clone())
            .or_default()
            .insert(uid.to_owned());
    }

    /// The same, of a volume that one pod may have at a time. Returns whether no other has or wants it.
    pub fn want_alone(&self, key: &DeviceKey, uid: &str) -> bool {
        let mut volumes = self.volumes();
        let users = volumes.entry(key.clone()).or_default();
        if users.iter().any(|user| user != uid) {
            return false;
        }
        if users.insert(uid.to_owned()) {
            self.changed.notify_one();
        }
        true
    }

    /// The volumes that the pod wanted or had.
    pub fn of_pod(&self, uid: &str) -> Vec<DeviceKey> {
        let volumes = self.volumes();
        let of_pod = volumes.iter().filter(|(_, users)| users.contains(uid));
        of_pod.map(|(key, _)| key.clone()).collect()
    }

    /// The pod has no more to do with the volume. Returns whether any other has.
    pub fn leave(&self, key: &DeviceKey, uid: &str) -> bool {
        let mut volumes = self.volumes();
        let Some(users) = volumes.get_mut(key) else {
            return false;
        };
        users.remove(uid);
        !users.is_empty()
    }

    /// Nothing of it is on the node any more. One that a pod wants again by now stays.
    pub fn release(&self, key: &DeviceKey) {
        let mut volumes = self.volumes();
        if volumes.get(key).is_some_and(BTreeSet::is_empty) {
            volumes.remove(key);
            self.changed.notify_one();
        }
    }

    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    pub fn reported(&self, names: &[String]) {
        self.reported.send_replace(names.iter().cloned().collect());
    }

    async fn until_reported(&self, name: &str) {
        // The sender is ours.
        let mut reported = self.reported.subscribe();
        let _ = reported.wait_for(|names| names.contains(name)).await;
    }
}

/// Whether the attach-detach controller says so.
fn is_attached(node: &Node, name: &str) -> bool {
    let status = node.status.as_ref();
    let attached = status.and_then(|s| s.volumes_attached.as_deref());
    attached.unwrap_or_default().iter().any(|v| v.name == name)
}

/// Why the driver's attacher says that the node is full. Upstream: `isResourceExhaustError`.
fn exhausted(attachment: &VolumeAttachment) -> Option<String> {
    let error = attachment.status.as_ref()?.attach_error.as_ref()?;
    (error.error_code == Some(RESOURCE_EXHAUSTED))
        .then(|| error.message.clone().unwrap_or_default())
}

impl CsiVolumes {
    /// What the attacher says of the attachment, once there is one. `volume`: the PersistentVolume's name. `limited`: the driver
    /// is asked anew how many volumes the node takes, so a full node is final for a pod and the next one goes elsewhere.
    pub(super) async fn wait_for_attach(
        &self,
        key: &DeviceKey,
        uid: &str,
        volume: &str,
        limited: bool,
    ) -> Result<BTreeMap<String, String>, CsiError> {
        let name = key.unique_name();
        self.in_use.want(key, uid);
        let attached = async {
            self.in_use.until_reported(&name).await;
            let attached = |node: &Node| is_attached(node, &name);
            self.source.until_node(&attached).await;
        };
        let attachment = attachment_name(&key.handle, &key.driver, &self.node_name);
        if tokio::time::timeout(TIMEOUT, attached).await.is_err() {
            let why = match limited {
                // An error leaves it as it is: not attached, and tried again.
                true => self.source.volume_attachment(&attachment).await.ok(),
                false => None,
            };
            return Err(match why.flatten().and_then(|found| exhausted(&found)) {
                Some(why) => CsiError::AttachLimit {
                    driver: key.driver.clone(),
                    why,
                },
                None => CsiError::NotAttached(volume.to_owned()),
            });
        }
        let no_attachment = |why: String| CsiError::NoAttachment {
            handle: key.handle.clone(),
            attachment: attachment.clone(),
            why,
        };
        let found = self.source.volume_attachment(&attachment).await;
        let found = found.map_err(|error| no_attachment(error.to_string()))?;
        let found = found.ok_or_else(|| {
            no_attachment(format!(
                "volumeattachments.storage.k8s.io {attachment:?} not found"
            ))
        })?;
        verify_attachment(&found, &key.handle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_in_use_until_its_last_pod_left_and_it_is_unstaged() {
        let key = DeviceKey {
            driver: "d".to_owned(),
            handle: "h".to_owned(),
        };
        let in_use = InUse::new(BTreeMap::new());
        in_use.want(&key, "a");
        in_use.want(&key, "b");
        assert!(in_use.leave(&key, "a"));
        in_use.release(&key);
        assert_eq!(in_use.keys(), [key.clone()]);
        assert!(!in_use.leave(&key, "b"));
        // By one at a time.
        assert!(in_use.want_alone(&key, "x"));
        assert!(in_use.want_alone(&key, "x"));
        assert!(!in_use.want_alone(&key, "y"));
        assert!(in_use.of_pod("y").is_empty());
        assert!(!in_use.leave(&key, "x"));
        // Not yet unstaged, and wanted again.
        in_use.want(&key, "c");
        in_use.release(&key);
        assert_eq!(in_use.of_pod("c"), [key.clone()]);
        assert!(!in_use.leave(&key, "c"));
        in_use.release(&key);
        assert!(in_use.keys().is_empty());
    }
}
