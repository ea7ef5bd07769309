//! The steps that bind, unbind and change phases, each left out when it is done already. Pure.
//!
//! Upstream: `bind`, `unbindVolume`, `updateClaimStatus`, `updateVolumePhase` of persistentvolume/pv_controller.go, v1.36.

use component_base::events::EventType;
use component_helpers::persistent_volume::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, PRE_RESIZE_CAPACITY, STORAGE, annotation,
    bind_volume_to_claim, claim_phase, has_annotation, remove_annotation, set_annotation,
    storage_of, volume_name, volume_phase,
};
use component_helpers::quantity::{self, Amount};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::sync::{Plan, Step, SyncError};

/// Writes the binding into the volume and the claim, the volume first.
pub fn bind(plan: &mut Plan, volume: &PersistentVolume, claim: &PersistentVolumeClaim) {
    let bound = bind_volume_to_claim(volume, claim);
    if let Some(bound) = &bound {
        plan.push(Step::UpdateVolume(Box::new(bound.clone())));
    }
    let volume = bound.as_ref().unwrap_or(volume);
    set_volume_phase(plan, volume, "Bound", "");
    let bound = bind_claim_to_volume(claim, volume);
    if let Some(bound) = &bound {
        plan.push(Step::UpdateClaim(Box::new(bound.clone())));
    }
    let claim = bound.as_ref().unwrap_or(claim);
    match claim_status(claim, "Bound", Some(volume)) {
        Ok(Some(claim)) => plan.push(Step::UpdateClaimStatus(Box::new(claim))),
        Ok(None) => {}
        Err(error) => plan.error = Some(error),
    }
}

/// The claim with the volume's name in it; `None` when it has it.
fn bind_claim_to_volume(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> Option<PersistentVolumeClaim> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let named = volume_name(claim) == name;
    if named && has_annotation(&claim.metadata, BIND_COMPLETED) {
        return None;
    }
    let mut claim = claim.clone();
    if !named {
        claim.spec.get_or_insert_default().volume_name = Some(name.to_owned());
        if !has_annotation(&claim.metadata, BOUND_BY_CONTROLLER) {
            set_annotation(&mut claim.metadata, BOUND_BY_CONTROLLER, "yes");
        }
    }
    if !has_annotation(&claim.metadata, BIND_COMPLETED) {
        set_annotation(&mut claim.metadata, BIND_COMPLETED, "yes");
    }
    Some(claim)
}

/// The claim with the phase, and with what it has of the volume; `None` when nothing changes.
///
/// # Errors
/// When the volume does not say how large it is.
pub fn claim_status(
    claim: &PersistentVolumeClaim,
    phase: &str,
    volume: Option<&PersistentVolume>,
) -> Result<Option<PersistentVolumeClaim>, SyncError> {
    let mut new = claim.clone();
    let old = claim.status.clone().unwrap_or_default();
    let status = new.status.get_or_insert_default();
    status.phase = Some(phase.to_owned());
    match volume {
        None => {
            status.access_modes = None;
            status.capacity = None;
            status.current_volume_attributes_class_name = None;
        }
        Some(volume) => {
            let spec = volume.spec.clone().unwrap_or_default();
            status.access_modes = spec.access_modes.filter(|modes| !modes.is_empty());
            // Only when it gets bound: later on another size may be meant, that of the file system.
            if claim_phase(claim) != phase {
                if storage_of(spec.capacity.as_ref()).is_none() {
                    let name = volume.metadata.name.clone().unwrap_or_default();
                    return Err(SyncError::NoCapacity { volume: name });
                }
                if let Some(size) = size_before_resize(volume) {
                    let capacity = status.capacity.get_or_insert_default();
                    capacity.insert(STORAGE.to_owned(), size);
                } else if !same_storage(old.capacity.as_ref(), spec.capacity.as_ref()) {
                    status.capacity = spec.capacity;
                }
            }
            // Later on it is the resizer's.
            if claim_phase(claim) == "Pending" && phase == "Bound" {
                status.current_volume_attributes_class_name = spec.volume_attributes_class_name;
            }
        }
    }
    Ok((new.status.as_ref() != Some(&old)).then_some(new))
}

type Resources = std::collections::BTreeMap<String, Quantity>;

fn same_storage(a: Option<&Resources>, b: Option<&Resources>) -> bool {
    match (storage_of(a), storage_of(b)) {
        (Some(a), Some(b)) => quantity::cmp(a, b).is_eq(),
        _ => false,
    }
}

/// What the claim of a volume has until its file system has grown: what the annotation says, and where that is nonsense the volume's.
fn size_before_resize(volume: &PersistentVolume) -> Option<Quantity> {
    let text = annotation(&volume.metadata, PRE_RESIZE_CAPACITY)?;
    if text.parse::<Amount>().is_ok() {
        return Some(Quantity(text.to_owned()));
    }
    let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
    storage_of(capacity).cloned()
}

/// Sets the phase of a claim, and what it has of a volume.
pub fn set_claim_status(
    plan: &mut Plan,
    claim: &PersistentVolumeClaim,
    phase: &str,
    volume: Option<&PersistentVolume>,
) {
    match claim_status(claim, phase, volume) {
        Ok(Some(claim)) => plan.push(Step::UpdateClaimStatus(Box::new(claim))),
        Ok(None) => {}
        Err(error) => plan.error = Some(error),
    }
}

/// Gives a claim up, and says why, once.
pub fn lose_claim(
    plan: &mut Plan,
    claim: &PersistentVolumeClaim,
    reason: &'static str,
    message: &str,
) {
    if claim_phase(claim) != "Lost" {
        set_claim_status(plan, claim, "Lost", None);
        plan.event(claim, EventType::Warning, reason, message);
    }
}

/// Sets the phase of a volume; whether it changed.
pub fn set_volume_phase(
    plan: &mut Plan,
    volume: &PersistentVolume,
    phase: &str,
    message: &str,
) -> bool {
    if volume_phase(volume) == phase {
        return false;
    }
    let mut volume = volume.clone();
    let status = volume.status.get_or_insert_default();
    status.phase = Some(phase.to_owned());
    status.message = Some(message.to_owned()).filter(|message| !message.is_empty());
    plan.push(Step::UpdateVolumeStatus(Box::new(volume)));
    true
}

/// Calls a volume Failed, and says why, once.
pub fn fail_volume(
    plan: &mut Plan,
    volume: &PersistentVolume,
    reason: &'static str,
    message: &str,
) {
    if set_volume_phase(plan, volume, "Failed", message) {
        plan.event(volume, EventType::Warning, reason, message);
    }
}

/// Takes a binding back: what the controller bound becomes free, what a user set aside for a claim stays set aside.
pub fn unbind_volume(plan: &mut Plan, volume: &PersistentVolume) {
    let mut volume = volume.clone();
    let by_controller = has_annotation(&volume.metadata, BOUND_BY_CONTROLLER);
    let spec = volume.spec.get_or_insert_default();
    if by_controller {
        spec.claim_ref = None;
        remove_annotation(&mut volume.metadata, BOUND_BY_CONTROLLER);
    } else if let Some(reference) = &mut spec.claim_ref {
        reference.uid = None;
    }
    plan.push(Step::UpdateVolume(Box::new(volume.clone())));
    set_volume_phase(plan, &volume, "Available", "");
}
