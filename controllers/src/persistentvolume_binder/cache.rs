//! What the controller knows of claims and volumes: the newest of what the watches told and of what it wrote itself.
//!
//! A binding is four writes and four events. Without this, the pass that an early event starts would see the other object as it was and
//! write against a version that is gone. Upstream: `storeObjectUpdate` of persistentvolume/pv_controller_base.go, v1.36.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use component_base::informer::ObjectKey;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::matching::VolumeIndex;

/// Claims and volumes as last known.
#[derive(Default)]
pub struct Cache {
    state: Mutex<State>,
}

/// What the cache holds.
#[derive(Default)]
pub struct State {
    /// The volumes.
    pub volumes: VolumeIndex,
    /// The claims.
    pub claims: HashMap<ObjectKey, Arc<PersistentVolumeClaim>>,
}

/// Whether `new` is no older than `old`. Versions that are no numbers count as news.
fn is_news(old: Option<&ObjectMeta>, new: &ObjectMeta) -> bool {
    let version = |meta: &ObjectMeta| meta.resource_version.as_deref()?.parse::<u64>().ok();
    match (old.and_then(version), version(new)) {
        (Some(old), Some(new)) => old <= new,
        _ => true,
    }
}

impl Cache {
    /// Reads under the lock; `read` must be quick.
    pub fn read<R>(&self, read: impl FnOnce(&State) -> R) -> R {
        read(&self.lock())
    }

    /// The claim of a key.
    pub fn claim(&self, key: &ObjectKey) -> Option<Arc<PersistentVolumeClaim>> {
        self.lock().claims.get(key).cloned()
    }

    /// Takes a claim in; `false` when a newer one is known.
    pub fn store_claim(&self, claim: Arc<PersistentVolumeClaim>) -> bool {
        let key = ObjectKey::of(&*claim);
        let mut state = self.lock();
        let news = is_news(state.claims.get(&key).map(|c| &c.metadata), &claim.metadata);
        if news {
            state.claims.insert(key, claim);
        }
        news
    }

    /// Takes a volume in; `false` when a newer one is known.
    pub fn store_volume(&self, volume: Arc<PersistentVolume>) -> bool {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let mut state = self.lock();
        let news = is_news(
            state.volumes.get(name).map(|v| &v.metadata),
            &volume.metadata,
        );
        if news {
            state.volumes.insert(volume);
        }
        news
    }

    /// Forgets a claim that is gone, and returns it.
    pub fn remove_claim(&self, key: &ObjectKey) -> Option<Arc<PersistentVolumeClaim>> {
        self.lock().claims.remove(key)
    }

    /// Forgets a volume that is gone, and returns it.
    pub fn remove_volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.lock().volumes.remove(name)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the lock is held")
    }
}
