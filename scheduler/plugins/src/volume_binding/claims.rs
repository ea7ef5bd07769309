//! [`PodVolumeClaims`]: a pod's claims, by what is to be done about them.

use std::sync::Arc;

use component_helpers::ephemeral::volume_is_for_pod;
use component_helpers::persistent_volume::{
    BIND_COMPLETED, claim_class, claim_phase, has_annotation, volume_name,
};
use framework::{PodInfo, Status, VolumeState};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use crate::volume_claims::{claim_not_found, name};

/// A claim and its key.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) key: String,
    pub(super) object: Arc<PersistentVolumeClaim>,
}

/// In the order of the pod's volumes.
#[derive(Debug, Default)]
pub(super) struct PodVolumeClaims {
    /// Bound.
    pub(super) bound: Vec<Claim>,
    /// To be bound to a volume, or to get one, where the pod goes.
    pub(super) delayed: Vec<Claim>,
    /// Should be bound already, without the scheduler.
    pub(super) immediate: Vec<Claim>,
}

/// Is the claim bound to its volume, and the volume to it, as the binder saw it?
pub(super) fn is_fully_bound(claim: &PersistentVolumeClaim) -> bool {
    !volume_name(claim).is_empty() && has_annotation(&claim.metadata, BIND_COMPLETED)
}

/// Does the class of the claim wait for the first pod?
///
/// # Errors
/// For a class that says nothing, which the API server lets nobody make.
fn is_delayed(volumes: &VolumeState, claim: &PersistentVolumeClaim) -> Result<bool, Status> {
    let class = claim_class(claim);
    match volumes.storage_class(class) {
        None => Ok(false),
        Some(found) => match found.volume_binding_mode.as_deref() {
            Some(mode) => Ok(mode == "WaitForFirstConsumer"),
            None => Err(Status::error(format!(
                "VolumeBindingMode not set for StorageClass {class:?}"
            ))),
        },
    }
}

impl PodVolumeClaims {
    /// Reads a pod's claims, as assumed.
    ///
    /// # Errors
    /// A rejection for claims no pod can use as they are; an error for what cannot be told.
    pub(super) fn of_pod(volumes: &VolumeState, pod: &PodInfo) -> Result<Self, Status> {
        let mut claims = PodVolumeClaims::default();
        for used in &pod.claims {
            let Some(object) = volumes.claim(&used.key) else {
                let reason = if used.ephemeral {
                    format!(
                        "waiting for ephemeral volume controller to create the persistentvolumeclaim {:?}",
                        used.name
                    )
                } else {
                    claim_not_found(&used.name)
                };
                return Err(Status::unresolvable(reason));
            };
            let (called, volume) = (name(&object.metadata), volume_name(object));
            if claim_phase(object) == "Lost" {
                let reason = format!(
                    "persistentvolumeclaim {called:?} bound to non-existent persistentvolume {volume:?}"
                );
                return Err(Status::unresolvable(reason));
            }
            if object.metadata.deletion_timestamp.is_some() {
                let reason = format!("persistentvolumeclaim {called:?} is being deleted");
                return Err(Status::unresolvable(reason));
            }
            if used.ephemeral {
                volume_is_for_pod(&pod.pod, object)
                    .map_err(|error| Status::unresolvable(error.to_string()))?;
            }
            let claim = Claim {
                key: used.key.clone(),
                object: Arc::clone(object),
            };
            if is_fully_bound(object) {
                claims.bound.push(claim);
            } else if is_delayed(volumes, object)? && volume.is_empty() {
                claims.delayed.push(claim);
            } else {
                claims.immediate.push(claim);
            }
        }
        Ok(claims)
    }

    /// Is nothing left to do?
    pub(super) fn all_bound(&self) -> bool {
        self.delayed.is_empty() && self.immediate.is_empty()
    }
}
