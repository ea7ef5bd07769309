//! Claims and volumes: which class they name, whose volume a volume is, and whether a volume can serve a claim.
//!
//! Shared by those who bind volumes (the controller, the scheduler) and those who mount them. Upstream:
//! k8s.io/component-helpers/storage/volume, and what of pkg/volume/util is a rule of the API, v1.36.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ContainerStatus, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::quantity::{Amount, amount};

/// On claims: binding has been completed once. The value does not matter.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On claims and volumes: the binding was made by the controller, not by a user. The value does not matter.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On claims: the node the scheduler chose; provisioning with delayed binding may begin.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On volumes: who provisioned it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On claims and volumes: the CSI driver that stands in for an in-tree plugin.
pub const MIGRATED_TO: &str = "pv.kubernetes.io/migrated-to";
/// On claims: who shall provision.
pub const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// As [`STORAGE_PROVISIONER`], from before.
pub const BETA_STORAGE_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// On claims and volumes: the class, from before there was a field. It goes before the field.
pub const BETA_STORAGE_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// On volumes that are being expanded: their size before.
pub const PRE_RESIZE_CAPACITY: &str = "volume.alpha.kubernetes.io/pre-resize-capacity";
/// The provisioner of classes whose volumes are made by people.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
/// The finalizer of external provisioners on volumes.
pub const EXTERNAL_PROVISIONER_FINALIZER: &str =
    "external-provisioner.volume.kubernetes.io/finalizer";
/// The finalizer of the controller on volumes it provisioned itself.
pub const PV_CONTROLLER_FINALIZER: &str = "kubernetes.io/pv-controller";
/// The resource claims request and volumes have.
pub const STORAGE: &str = "storage";
/// The mode of claims and volumes that name none.
pub const FILESYSTEM: &str = "Filesystem";
/// The mode of raw devices.
pub const BLOCK: &str = "Block";

/// An annotation's value; an empty one is there, too.
pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Whether the object has an annotation, whatever its value.
pub fn has_annotation(meta: &ObjectMeta, key: &str) -> bool {
    annotation(meta, key).is_some()
}

/// Sets an annotation.
pub fn set_annotation(meta: &mut ObjectMeta, key: &str, value: &str) {
    let annotations = meta.annotations.get_or_insert_with(BTreeMap::new);
    annotations.insert(key.to_owned(), value.to_owned());
}

/// Takes an annotation off, and the map with the last.
pub fn remove_annotation(meta: &mut ObjectMeta, key: &str) {
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove(key);
        if annotations.is_empty() {
            meta.annotations = None;
        }
    }
}

/// Whether the claim says which class it wants; an empty class (none, ever) is said, too.
pub fn claim_has_class(claim: &PersistentVolumeClaim) -> bool {
    has_annotation(&claim.metadata, BETA_STORAGE_CLASS)
        || claim
            .spec
            .as_ref()
            .is_some_and(|spec| spec.storage_class_name.is_some())
}

/// The class a claim wants; empty when it wants none or says nothing.
pub fn claim_class(claim: &PersistentVolumeClaim) -> &str {
    let field = || claim.spec.as_ref()?.storage_class_name.as_deref();
    annotation(&claim.metadata, BETA_STORAGE_CLASS)
        .or_else(field)
        .unwrap_or_default()
}

/// The class of a volume; empty when it has none.
pub fn volume_class(volume: &PersistentVolume) -> &str {
    let field = || volume.spec.as_ref()?.storage_class_name.as_deref();
    annotation(&volume.metadata, BETA_STORAGE_CLASS)
        .or_else(field)
        .unwrap_or_default()
}

/// The VolumeAttributesClass a claim wants; empty for none.
pub fn claim_attributes_class(claim: &PersistentVolumeClaim) -> &str {
    let spec = claim.spec.as_ref();
    spec.and_then(|spec| spec.volume_attributes_class_name.as_deref())
        .unwrap_or_default()
}

/// The VolumeAttributesClass of a volume; empty for none.
pub fn volume_attributes_class(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref();
    spec.and_then(|spec| spec.volume_attributes_class_name.as_deref())
        .unwrap_or_default()
}

/// The volume a claim names; empty for none.
pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    let spec = claim.spec.as_ref();
    spec.and_then(|spec| spec.volume_name.as_deref())
        .unwrap_or_default()
}

/// The claim a volume names.
pub fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

/// A claim's phase, empty before it has one.
pub fn claim_phase(claim: &PersistentVolumeClaim) -> &str {
    let status = claim.status.as_ref();
    status
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

/// A volume's phase, empty before it has one.
pub fn volume_phase(volume: &PersistentVolume) -> &str {
    let status = volume.status.as_ref();
    status
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

/// How much storage a claim requests; nothing when it does not say.
pub fn requested_storage(claim: &PersistentVolumeClaim) -> Amount {
    let requests = claim
        .spec
        .as_ref()
        .and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    storage_of(requests).map(amount).unwrap_or_default()
}

/// How much storage a volume has; nothing when it does not say.
pub fn volume_capacity(volume: &PersistentVolume) -> Amount {
    let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
    storage_of(capacity).map(amount).unwrap_or_default()
}

/// The entry for storage of a list of resources.
pub fn storage_of(resources: Option<&BTreeMap<String, Quantity>>) -> Option<&Quantity> {
    resources?.get(STORAGE)
}

/// Whether claim and volume are of different modes, so that one can never serve the other.
pub fn volume_modes_differ(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    claim_volume_mode(claim) != volume_mode(volume)
}

/// The mode a claim wants.
pub fn claim_volume_mode(claim: &PersistentVolumeClaim) -> &str {
    let spec = claim.spec.as_ref();
    spec.and_then(|spec| spec.volume_mode.as_deref())
        .unwrap_or(FILESYSTEM)
}

/// The mode of a volume.
pub fn volume_mode(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref();
    spec.and_then(|spec| spec.volume_mode.as_deref())
        .unwrap_or(FILESYSTEM)
}

/// A set of access modes. Sets are ordered by how many modes they have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AccessModes(u8);

/// Every access mode there is, in upstream's order.
const MODES: [&str; 4] = [
    "ReadWriteOnce",
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOncePod",
];

impl AccessModes {
    /// The set of a list; a mode nobody knows is left out, for the API server lets none through.
    pub fn new(modes: Option<&Vec<String>>) -> Self {
        let bit = |mode: &String| MODES.iter().position(|known| known == mode);
        let bits = modes.into_iter().flatten().filter_map(bit);
        Self(bits.fold(0, |set, bit| set | 1 << bit))
    }
    /// The modes a claim wants.
    pub fn of_claim(claim: &PersistentVolumeClaim) -> Self {
        Self::new(claim.spec.as_ref().and_then(|s| s.access_modes.as_ref()))
    }
    /// The modes a volume has.
    pub fn of_volume(volume: &PersistentVolume) -> Self {
        Self::new(volume.spec.as_ref().and_then(|s| s.access_modes.as_ref()))
    }
    /// Whether every mode of `other` is in this set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl Ord for AccessModes {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0.count_ones(), self.0).cmp(&(other.0.count_ones(), other.0))
    }
}
impl PartialOrd for AccessModes {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Whether the volume has all modes the claim wants.
pub fn check_access_modes(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    AccessModes::of_volume(volume).contains(AccessModes::of_claim(claim))
}

/// Whether the volume is bound to the claim, or set aside for it: same name and namespace, and the same UID if the volume has one.
pub fn is_volume_bound_to_claim(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    claim_ref(volume).is_some_and(|reference| {
        let uid = reference.uid.as_deref().unwrap_or_default();
        reference.name == claim.metadata.name
            && same(
                reference.namespace.as_deref(),
                claim.metadata.namespace.as_deref(),
            )
            && (uid.is_empty() || Some(uid) == claim.metadata.uid.as_deref())
    })
}

fn same(a: Option<&str>, b: Option<&str>) -> bool {
    a.unwrap_or_default() == b.unwrap_or_default()
}

/// The volume with the claim's reference in it; `None` when it is bound to the claim already. Everyone who binds volumes does it this
/// way, so that each understands the others' bindings.
pub fn bind_volume_to_claim(
    volume: &PersistentVolume,
    claim: &PersistentVolumeClaim,
) -> Option<PersistentVolume> {
    let bound = is_volume_bound_to_claim(volume, claim);
    let complete = bound
        && claim_ref(volume)
            .is_some_and(|reference| same(reference.uid.as_deref(), claim.metadata.uid.as_deref()));
    if complete {
        return None;
    }
    let mut volume = volume.clone();
    let spec = volume.spec.get_or_insert_default();
    spec.claim_ref = Some(claim_reference(claim));
    if !bound && !has_annotation(&volume.metadata, BOUND_BY_CONTROLLER) {
        set_annotation(&mut volume.metadata, BOUND_BY_CONTROLLER, "yes");
    }
    Some(volume)
}

/// The reference to a claim that a volume carries.
pub fn claim_reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("PersistentVolumeClaim".to_owned()),
        namespace: claim.metadata.namespace.clone(),
        name: claim.metadata.name.clone(),
        uid: claim.metadata.uid.clone(),
        resource_version: claim.metadata.resource_version.clone(),
        field_path: None,
    }
}

/// Whether the pod is done with its volumes: it ended, or it is being deleted and nothing of it runs.
/// Upstream: `IsPodTerminated` of pkg/volume/util.
pub fn is_pod_terminated(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let still = |list: Option<&Vec<ContainerStatus>>| {
        list.into_iter().flatten().all(|status| {
            let state = status.state.as_ref();
            state.is_some_and(|s| s.terminated.is_some() || s.waiting.is_some())
        })
    };
    crate::pod::is_terminal(pod)
        || pod.metadata.deletion_timestamp.is_some()
            && status.is_none_or(|status| {
                still(status.init_container_statuses.as_ref())
                    && still(status.container_statuses.as_ref())
                    && still(status.ephemeral_container_statuses.as_ref())
            })
}

#[cfg(test)]
mod tests;
