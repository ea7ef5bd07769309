//! What the storage plugins share: a pod's claims, and the words for what is not there.

use component_helpers::ephemeral;
use framework::pod_info::spec;
use framework::{EventObject, QueueingHint};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Upstream's text of a claim that is not there.
pub(crate) fn claim_not_found(name: &str) -> String {
    format!("persistentvolumeclaim {name:?} not found")
}

/// Upstream's text of a volume that is not there.
pub(crate) fn volume_not_found(name: &str) -> String {
    format!("persistentvolume {name:?} not found")
}

/// Upstream's text of a class that is not there.
pub(crate) fn class_not_found(name: &str) -> String {
    format!("storageclass.storage.k8s.io {name:?} not found")
}

/// The name of an object.
pub(crate) fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

/// Does a volume of the pod use the claim? Those of ephemeral volumes count if `ephemeral`.
pub(crate) fn uses(pod: &Pod, claim: &PersistentVolumeClaim, ephemeral: bool) -> bool {
    let name = name(&claim.metadata);
    claim.metadata.namespace == pod.metadata.namespace
        && spec(pod)
            .volumes
            .iter()
            .flatten()
            .any(|volume| match &volume.persistent_volume_claim {
                Some(source) => source.claim_name == name,
                None => {
                    ephemeral
                        && volume.ephemeral.is_some()
                        && ephemeral::claim_name(pod, volume) == name
                }
            })
}

/// The hint after a claim was added or changed: does the pod use it?
pub(crate) fn after_claim_change(
    pod: &Pod,
    new: Option<&EventObject>,
    ephemeral: bool,
) -> QueueingHint {
    match new.and_then(EventObject::claim) {
        Some(claim) if !uses(pod, claim, ephemeral) => QueueingHint::QueueSkip,
        _ => QueueingHint::Queue,
    }
}
