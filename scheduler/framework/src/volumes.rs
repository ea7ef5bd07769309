//! [`VolumeCache`]: volumes, claims, classes and what storage drivers tell, with what the scheduler has assumed of them.
//!
//! Told of every change by the scheduler's event handlers, so that content and revisions change together. Plugins read it and assume. An assumption
//! stands on the version of the object that it was made of, and falls with it. Never here: requests to the API. Upstream:
//! plugins/volumebinding/passive_assume_cache.go, and what the storage plugins' informers index, v1.36.
//!
//! DIFFERS: one for all profiles, where upstream has assumptions of its own for each.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::event::EventObject;
use crate::watch::{Watch, Watches};

mod state;
#[cfg(test)]
mod tests;
mod volume;

pub use state::VolumeState;
pub use volume::{Capacity, Volume, volume_limit};

/// More nodes and claims than this that nobody has asked about yet, and all nodes count as touched.
const MAX_TOUCHED: usize = 65_536;

/// The key of a claim: `namespace/name`.
pub fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// Where a change may have altered what fits, though neither node nor pods changed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Touched {
    /// Nodes.
    pub nodes: BTreeSet<String>,
    /// Claims: the nodes with pods that use them.
    pub claims: BTreeSet<String>,
    /// All nodes.
    pub all: bool,
}

impl Touched {
    fn node(&mut self, name: String) {
        self.nodes.insert(name);
        self.limit();
    }
    fn claim(&mut self, key: String) {
        self.claims.insert(key);
        self.limit();
    }
    fn limit(&mut self) {
        if self.nodes.len() + self.claims.len() > MAX_TOUCHED {
            *self = Touched {
                all: true,
                ..Touched::default()
            };
        }
    }
}

/// The object was not as it was thought to be. A retry helps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is out of sync")]
pub struct OutOfSyncError {
    /// The object.
    pub name: String,
}

/// See the module.
#[derive(Default)]
pub struct VolumeCache {
    state: RwLock<VolumeState>,
    any_touched: AtomicBool,
    watches: Watches,
}

impl VolumeCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// What is known, for as long as the guard is kept: not across a wait.
    pub fn read(&self) -> RwLockReadGuard<'_, VolumeState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, VolumeState> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a change of an object (`None`: it was not there, it is gone). Objects of other kinds are none of its business.
    pub fn apply(&self, old: Option<&EventObject>, new: Option<&EventObject>) {
        let Some(object) = new.or(old) else { return };
        let name = |meta: &ObjectMeta| meta.name.clone().unwrap_or_default();
        let mut claims = Vec::new();
        let mut state = self.write();
        match object {
            EventObject::PersistentVolume(object) => {
                let of = |e: &EventObject| match e {
                    EventObject::PersistentVolume(v) => Some(Arc::new(Volume::new(Arc::clone(v)))),
                    _ => None,
                };
                let name = name(&object.metadata);
                let new = new.and_then(of);
                let known = [state.stored_volume(&name), state.volume(&name)];
                let known: Vec<String> = known
                    .into_iter()
                    .flatten()
                    .filter_map(|v| v.claim_key())
                    .collect();
                claims.extend(
                    new.as_ref()
                        .and_then(|v| v.claim_key())
                        .into_iter()
                        .chain(known),
                );
                state.set_volume(&name, new);
            }
            EventObject::PersistentVolumeClaim(object) => {
                let key = state::claim_key(object);
                state.set_claim(&key, new.and_then(EventObject::claim).cloned());
                claims.push(key);
            }
            EventObject::StorageClass(object) => {
                let new = new.and_then(EventObject::storage_class).cloned();
                state.set_class(&name(&object.metadata), new);
            }
            EventObject::CSIDriver(object) => {
                let new = new.and_then(EventObject::csi_driver).cloned();
                state.set_csi_driver(&name(&object.metadata), new);
            }
            EventObject::CSINode(object) => {
                let new = new.and_then(EventObject::csi_node).cloned();
                state.set_csi_node(&name(&object.metadata), new);
            }
            EventObject::CSIStorageCapacity(object) => {
                let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
                let id = key(namespace, &name(&object.metadata));
                let new = new.and_then(EventObject::csi_storage_capacity);
                let new = new.map(|c| Arc::new(Capacity::new(Arc::clone(c))));
                state.set_capacity(&object.storage_class_name, &id, new);
            }
            EventObject::VolumeAttachment(object) => {
                let (old, new) = (
                    old.and_then(EventObject::volume_attachment),
                    new.and_then(EventObject::volume_attachment),
                );
                state.set_attachment(&name(&object.metadata), old.map(|a| &**a), new);
            }
            EventObject::Pod(_)
            | EventObject::Node(_)
            | EventObject::Namespace(_)
            | EventObject::ResourceClaim(_)
            | EventObject::ResourceSlice(_)
            | EventObject::DeviceClass(_)
            | EventObject::DeviceTaintRule(_)
            | EventObject::PodGroup(_)
            | EventObject::Custom(_) => {}
        }
        if state.touched != Touched::default() {
            self.any_touched.store(true, Ordering::Release);
        }
        drop(state);
        self.watches.notify(&claims);
    }

    /// Assumes the volume to be like this, until the API server tells of another version.
    ///
    /// # Errors
    /// When there is another version already.
    pub fn assume_volume(&self, volume: Arc<PersistentVolume>) -> Result<(), OutOfSyncError> {
        let volume = Volume::new(volume);
        let name = volume.name().to_owned();
        match self.write().assume_volume(volume) {
            true => Ok(()),
            false => Err(OutOfSyncError { name }),
        }
    }

    /// Takes back what was assumed on this version.
    pub fn restore_volume(&self, volume: &PersistentVolume) {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        self.write()
            .restore_volume(name, state::version(&volume.metadata));
    }

    /// Assumes the claim to be like this, until the API server tells of another version.
    ///
    /// # Errors
    /// When there is another version already.
    pub fn assume_claim(&self, claim: Arc<PersistentVolumeClaim>) -> Result<(), OutOfSyncError> {
        let name = state::claim_key(&claim);
        match self.write().assume_claim(claim) {
            true => Ok(()),
            false => Err(OutOfSyncError { name }),
        }
    }

    /// Takes back what was assumed on this version.
    pub fn restore_claim(&self, claim: &PersistentVolumeClaim) {
        self.write().restore_claim(claim);
    }

    /// What was touched since the last call; `None` for nothing, which is cheap to ask. One caller.
    pub fn take_touched(&self) -> Option<Touched> {
        if !self.any_touched.swap(false, Ordering::AcqRel) {
            return None;
        }
        Some(std::mem::take(&mut self.write().touched))
    }

    /// Watches claims (by key), and the volumes that name them, for change.
    pub fn watch(&self, claims: Vec<String>) -> Watch<'_> {
        self.watches.watch(claims)
    }

    /// Wakes everybody who watches: something else that matters to binding changed, say a node.
    pub fn wake_all(&self) {
        self.watches.notify_all();
    }
}
