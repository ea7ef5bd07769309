//! What the manager does with claims and volumes of drivers, besides setting them up: see [`crate::csi`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use csi::{Drivers, VolumeUsage};
use futures::future::join_all;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

use super::wanted::Wanted;
use super::{VolumeError, VolumeLocation, VolumeManager, blocking, mounted_volumes, pod_uid};
use crate::claim::Persistent;
use crate::kinds::find_plugin;
use crate::local;
use crate::plugin::SetUpError;
use crate::tear_down::{self, TearDownError};

/// Between two looks at a pod's claims; upstream's are a minute apart.
const EXPANSION_PERIOD: Duration = Duration::from_secs(30);

/// What CSI volumes need of the node.
pub struct CsiHost {
    pub drivers: Arc<Drivers>,
    pub node_name: String,
}

/// One volume of a pod that was made larger on this node, or could not be.
#[derive(Debug)]
pub struct Expanded {
    /// As the pod names it.
    pub volume: String,
    /// The PersistentVolume.
    pub name: String,
    pub claim: Arc<PersistentVolumeClaim>,
    /// `Err`: in the words of the event `VolumeResizeFailed`.
    pub outcome: Result<(), String>,
}

fn expanded(
    volume: &str,
    behind: &Persistent,
    claim: Arc<PersistentVolumeClaim>,
    outcome: Result<(), String>,
) -> Expanded {
    Expanded {
        volume: volume.to_owned(),
        name: behind.name().to_owned(),
        claim,
        outcome,
    }
}

impl VolumeManager {
    /// Makes the file systems of the pod's volumes, of drivers and of local devices, as large as the volumes have become; at most
    /// twice a minute, as it asks the API server. What was not tried is not in the answer.
    pub async fn expand_pod(&self, pod: &Pod) -> Vec<Expanded> {
        let Ok(uid) = pod_uid(pod) else {
            return Vec::new();
        };
        let (mut told, due) = {
            let mut pods = self.pods();
            let state = pods.entry(uid.to_owned()).or_default();
            let told = std::mem::take(&mut state.expanded);
            let due = state
                .expansion_looked
                .is_none_or(|at| at.elapsed() >= EXPANSION_PERIOD);
            if due {
                state.expansion_looked = Some(Instant::now());
            }
            (told, due)
        };
        if !due {
            return told;
        }
        let persistent = self.persistent(uid);
        let volumes = persistent.iter().map(|(volume, behind)| async move {
            let (claim, outcome) = self.expand(uid, behind).await?;
            let name = behind.name();
            let outcome = outcome.map_err(|error| {
                format!("NodeExpandVolume.NodeExpandVolume failed for volume {name:?} : {error}")
            });
            Some(expanded(volume, behind, claim, outcome))
        });
        told.extend(join_all(volumes).await.into_iter().flatten());
        told
    }

    /// `None`: nothing is to be done, or its kind does not grow.
    async fn expand(
        &self,
        uid: &str,
        behind: &Persistent,
    ) -> Option<(Arc<PersistentVolumeClaim>, Result<(), String>)> {
        if behind.driver().is_some() {
            return self.inner.csi.expand(uid, behind).await;
        }
        let dir = self.inner.layout.volume(uid, local::NAME, behind.name());
        local::expand(&*self.inner.source, &dir, behind).await
    }

    /// A volume that grew while no pod had it is made as large before containers get it. Upstream: `expandVolumeDuringMount`.
    pub(super) async fn expand_first(
        &self,
        uid: &str,
        volume: &str,
        behind: &Persistent,
    ) -> Result<(), SetUpError> {
        let Some((claim, outcome)) = self.expand(uid, behind).await else {
            return Ok(());
        };
        let failed = outcome.as_ref().err().cloned();
        let mut pods = self.pods();
        let state = pods.entry(uid.to_owned()).or_default();
        // Nobody may have asked since an earlier try.
        state.expanded.retain(|earlier| earlier.volume != volume);
        let done = expanded(volume, behind, claim, outcome);
        state.expanded.push(done);
        if let Some(error) = failed {
            return Err(SetUpError::Expand(error));
        }
        if let Some(known) = state.persistent.get_mut(volume) {
            known.outgrown = false;
        }
        Ok(())
    }

    /// Where a volume lies that is a claim, on a file system of its own or of the node. `None`: it is none, or not known yet.
    pub fn claim_directory(&self, pod_uid: &str, volume: &str) -> Option<PathBuf> {
        let pods = self.pods();
        let state = pods.get(pod_uid)?;
        let behind = state.persistent.get(volume)?;
        match state.unmanaged.get(volume) {
            Some((_, VolumeLocation::Path(path))) => Some(path.clone()),
            Some((_, VolumeLocation::Device(_) | VolumeLocation::Image { .. })) => None,
            None if behind.is_block() => None,
            None => {
                let plugin = find_plugin(&behind.as_volume(volume), Some(&behind.volume)).ok()?;
                Some(plugin.directory(&self.inner.layout, pod_uid, behind.name()))
            }
        }
    }

    /// Where a volume is that is as it should be.
    pub(super) fn kept(&self, uid: &str, wanted: &Wanted<'_>) -> Option<VolumeLocation> {
        let layout = &self.inner.layout;
        if !wanted.managed {
            let pods = self.pods();
            let (_, location) = pods.get(uid)?.unmanaged.get(&wanted.volume.name)?;
            return Some(location.clone());
        }
        if wanted.persistent.is_some_and(Persistent::is_block) {
            let published = layout.csi_block(&wanted.want.name).published;
            return Some(VolumeLocation::Device(published.join(uid)));
        }
        let dir = wanted.plugin.directory(layout, uid, &wanted.want.name);
        Some(VolumeLocation::Path(dir))
    }

    #[cfg(test)]
    pub(crate) fn forget_expansions(&self) {
        for state in self.pods().values_mut() {
            state.expansion_looked = None;
        }
    }

    /// What drivers say that a pod's volumes hold, by volume; `None`: the driver does not say. At most a minute old.
    pub async fn driver_usage(&self, uid: &str) -> HashMap<String, Option<VolumeUsage>> {
        let directories: HashMap<String, String> = self
            .persistent(uid)
            .into_iter()
            .map(|(volume, behind)| (behind.name().to_owned(), volume))
            .collect();
        let usage = self.inner.csi.usage(uid).await.into_iter();
        // A pod's own volume has its own name for its directory.
        usage
            .map(|(name, usage)| (directories.get(&name).cloned().unwrap_or(name), usage))
            .collect()
    }

    /// The volumes that must not be detached from the node, for its status.
    pub async fn volumes_in_use(&self) -> Vec<String> {
        self.inner.csi.volumes_in_use().await
    }

    /// The API server has those.
    pub fn reported_in_use(&self, names: &[String]) {
        self.inner.csi.reported_in_use(names);
    }

    /// Resolves when [`volumes_in_use`](Self::volumes_in_use) has changed. One waiter. Cancel-safe.
    pub async fn in_use_changed(&self) {
        self.inner.csi.in_use_changed().await;
    }

    /// Has drivers undo what they did for a pod. SubPaths first: they keep what they are of busy.
    pub(super) async fn unpublish(&self, uid: &str) -> Result<(), VolumeError> {
        let (inner, pod) = (self.inner.clone(), uid.to_owned());
        blocking(move || tear_down::tear_down_sub_paths(&inner.layout, &pod)).await??;
        let failures = self.inner.csi.unpublish_pod(uid).await;
        if failures.is_empty() {
            Ok(())
        } else {
            Err(TearDownError { failures }.into())
        }
    }

    /// The volumes of the pod that their driver wants to publish again and again. Upstream: `RequiresRemount`.
    pub(super) async fn republished(
        &self,
        pod: &Pod,
        persistent: &BTreeMap<String, Persistent>,
    ) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for volume in mounted_volumes(pod) {
            let own = volume.csi.as_ref().map(|csi| csi.driver.as_str());
            let behind = persistent.get(&volume.name);
            let Some(driver) = own.or_else(|| behind.and_then(Persistent::driver)) else {
                continue;
            };
            let object = self.inner.source.csi_driver(driver).await;
            let wants = object
                .ok()
                .flatten()
                .and_then(|d| d.spec.requires_republish);
            if wants == Some(true) {
                found.insert(volume.name.clone());
            }
        }
        found
    }
}
