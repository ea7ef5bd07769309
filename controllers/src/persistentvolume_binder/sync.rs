//! What to do about a claim and about a volume. Pure: no client, no clock.
//!
//! A [`Plan`] is a list of steps that the shell takes in order and gives up at the first that fails; another pass finds what was left.
//! Upstream: `syncClaim`, `syncVolume` and `reclaimVolume` of persistentvolume/pv_controller.go, v1.36.

use std::borrow::Cow;
use std::fmt;

use component_base::events::EventType;
use component_base::informer::ObjectKey;
use component_helpers::labels::SelectorError;
use component_helpers::persistent_volume::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, PROVISIONED_BY, SELECTED_NODE, check_access_modes,
    claim_attributes_class, claim_class, claim_has_class, claim_ref, has_annotation,
    is_volume_bound_to_claim, requested_storage, volume_attributes_class, volume_capacity,
    volume_class, volume_modes_differ, volume_name, volume_phase,
};
use controller_runtime::{Action, ApiError};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

use super::binding::{
    bind, fail_volume, lose_claim, set_claim_status, set_volume_phase, unbind_volume,
};
use super::matching::{VolumeIndex, claim_key};
use super::migration::{anneal_claim, anneal_volume};
use super::provisioning::{
    Deleter, PluginError, Provisioner, deleter_name, deleter_of, provisioner_of, with_provisioner,
};

/// Reasons of events. Upstream: pkg/controller/volume/events.
pub mod reason {
    #![allow(missing_docs, reason = "the names say it")]
    pub const FAILED_BINDING: &str = "FailedBinding";
    pub const VOLUME_MISMATCH: &str = "VolumeMismatch";
    pub const VOLUME_FAILED_RECYCLE: &str = "VolumeFailedRecycle";
    pub const VOLUME_FAILED_DELETE: &str = "VolumeFailedDelete";
    pub const EXTERNAL_PROVISIONING: &str = "ExternalProvisioning";
    pub const PROVISIONING_FAILED: &str = "ProvisioningFailed";
    pub const PROVISIONING_CLEANUP_FAILED: &str = "ProvisioningCleanupFailed";
    pub const PROVISIONING_SUCCEEDED: &str = "ProvisioningSucceeded";
    pub const WAIT_FOR_FIRST_CONSUMER: &str = "WaitForFirstConsumer";
    pub const WAIT_FOR_POD_SCHEDULED: &str = "WaitForPodScheduled";
}

/// One thing to do. Objects are whole, as they shall be; the shell puts in the versions that earlier steps made.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Replaces a volume.
    UpdateVolume(Box<PersistentVolume>),
    /// Replaces a volume's status.
    UpdateVolumeStatus(Box<PersistentVolume>),
    /// Replaces a claim.
    UpdateClaim(Box<PersistentVolumeClaim>),
    /// Replaces a claim's status.
    UpdateClaimStatus(Box<PersistentVolumeClaim>),
    /// Records an event; always [`Action::Event`].
    Event(Action),
    /// Looks at a claim soon.
    SyncClaim(ObjectKey),
    /// Starts what takes its time.
    Start(Operation),
}

/// What takes its time, and is done beside everything else. Displays as upstream's names of operations.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// Makes the volume of a claim.
    Provision {
        /// The claim.
        claim: ObjectKey,
        /// Its UID.
        uid: String,
    },
    /// Deletes a volume, and what it stands for.
    Delete {
        /// The volume's name.
        volume: String,
        /// Its UID.
        uid: String,
    },
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Provision { claim, uid } => write!(f, "provision-{claim}[{uid}]"),
            Self::Delete { volume, uid } => write!(f, "delete-{volume}[{uid}]"),
        }
    }
}

/// What a plan is for, where metrics or an event of its failure depend on that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// Nothing that anybody counts.
    #[default]
    Other,
    /// Binds a claim to a volume that was found for it; ends its provisioning, if it was provisioned.
    Bind,
    /// Gives a claim the default class.
    AssignClass,
    /// Begins to provision, by who is named.
    Provision(String),
    /// Begins to delete a volume, by who is named.
    Delete(String),
}

/// Why a claim or volume could not be dealt with.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SyncError {
    /// A write or read failed; a retry may help.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The claim's selector is none; only another claim helps.
    #[error(
        "error finding PV for claim \"{claim}\": error creating internal label selector for claim: {claim}: {source}"
    )]
    Selector {
        /// The claim.
        claim: ObjectKey,
        /// What is wrong.
        #[source]
        source: SelectorError,
    },
    /// The class does not say when its volumes are bound; the API server gives every class a mode.
    #[error("VolumeBindingMode not set for StorageClass \"{class}\"")]
    NoBindingMode {
        /// The class.
        class: String,
    },
    /// A volume without a size cannot be bound.
    #[error("PersistentVolume \"{volume}\" is without a storage capacity")]
    NoCapacity {
        /// The volume.
        volume: String,
    },
    /// The claim points to a volume of another claim, and the controller made it do so.
    #[error(
        "invalid binding of claim \"{claim}\" to volume \"{volume}\": volume already claimed by \"{by}\""
    )]
    InvalidBinding {
        /// The claim.
        claim: ObjectKey,
        /// The volume.
        volume: String,
        /// Whose it is.
        by: ObjectKey,
    },
}

/// What to do, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
    /// What they are for.
    pub purpose: Purpose,
    /// Told after the steps: the object needs another pass.
    pub error: Option<SyncError>,
}

impl Plan {
    /// Adds a step.
    pub fn push(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// Adds an event about an object.
    pub fn event<K: kube::Resource<DynamicType = ()>>(
        &mut self,
        object: &K,
        event_type: EventType,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.push(Step::Event(Action::event(
            object, event_type, reason, message,
        )));
    }
}

/// What a claim is looked at with.
#[derive(Clone, Copy)]
pub struct ClaimView<'a> {
    /// Every volume.
    pub volumes: &'a VolumeIndex,
    /// The class the claim names.
    pub class: Option<&'a StorageClass>,
    /// The default class.
    pub default_class: Option<&'a StorageClass>,
    /// Names of the pods that use the claim and wait for a node.
    pub unscheduled_pods: &'a [String],
    /// `--enable-dynamic-provisioning`.
    pub dynamic_provisioning: bool,
}

/// What a volume is looked at with.
#[derive(Clone, Copy, Default)]
pub struct VolumeView<'a> {
    /// The claim of the name and namespace the volume points to, whatever its UID; the shell has made sure by the server when there
    /// is none, or another.
    pub claim: Option<&'a PersistentVolumeClaim>,
    /// The volume's class.
    pub class: Option<&'a StorageClass>,
    /// `namespace/name` of the pods that use the claim and have not ended.
    pub users: &'a [String],
}

/// What to do about a claim.
pub fn sync_claim(claim: &PersistentVolumeClaim, view: &ClaimView<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut claim = Cow::Borrowed(claim);
    let mut annealed = claim.clone().into_owned();
    if anneal_claim(&mut annealed) {
        plan.push(Step::UpdateClaim(Box::new(annealed.clone())));
        claim = Cow::Owned(annealed);
    }
    if has_annotation(&claim.metadata, BIND_COMPLETED) {
        sync_bound_claim(&mut plan, &claim, view);
    } else if volume_name(&claim).is_empty() {
        sync_unbound_claim(&mut plan, &claim, view);
    } else {
        sync_claim_with_name(&mut plan, &claim, view);
    }
    plan
}

/// A claim that takes any volume.
fn sync_unbound_claim(plan: &mut Plan, claim: &PersistentVolumeClaim, view: &ClaimView<'_>) {
    let delay_binding = match is_delay_binding(view.class) {
        Ok(delay) => delay,
        Err(error) => return plan.error = Some(error),
    };
    match view.volumes.find_best_match(claim, delay_binding) {
        Err(source) => {
            let claim = ObjectKey::of(claim);
            plan.error = Some(SyncError::Selector { claim, source });
        }
        Ok(Some(volume)) => {
            plan.purpose = Purpose::Bind;
            bind(plan, volume, claim);
        }
        Ok(None) => without_volume(plan, claim, view, delay_binding),
    }
}

/// Whether volumes of a class are bound only when a pod wants them.
fn is_delay_binding(class: Option<&StorageClass>) -> Result<bool, SyncError> {
    let Some(class) = class else { return Ok(false) };
    match class.volume_binding_mode.as_deref() {
        Some(mode) => Ok(mode == "WaitForFirstConsumer"),
        None => Err(SyncError::NoBindingMode {
            class: class.metadata.name.clone().unwrap_or_default(),
        }),
    }
}

/// No volume serves the claim: one is made, or it waits.
fn without_volume(
    plan: &mut Plan,
    claim: &PersistentVolumeClaim,
    view: &ClaimView<'_>,
    delay_binding: bool,
) {
    if let Some(class) = view.default_class.filter(|_| !claim_has_class(claim)) {
        let mut claim = claim.clone();
        claim.spec.get_or_insert_default().storage_class_name = class.metadata.name.clone();
        plan.purpose = Purpose::AssignClass;
        return plan.push(Step::UpdateClaim(Box::new(claim)));
    }
    if delay_binding && !has_annotation(&claim.metadata, SELECTED_NODE) {
        let (reason, message) = why_delayed(view.unscheduled_pods);
        plan.event(claim, EventType::Normal, reason, message);
    } else if !claim_class(claim).is_empty() {
        return provision(plan, claim, view);
    } else {
        let message = "no persistent volumes available for this claim and no storage class is set";
        plan.event(claim, EventType::Normal, reason::FAILED_BINDING, message);
    }
    set_claim_status(plan, claim, "Pending", None);
}

fn why_delayed(pods: &[String]) -> (&'static str, String) {
    match pods {
        [] => (
            reason::WAIT_FOR_FIRST_CONSUMER,
            "waiting for first consumer to be created before binding".to_owned(),
        ),
        [pod] => (
            reason::WAIT_FOR_POD_SCHEDULED,
            format!("waiting for pod {pod} to be scheduled"),
        ),
        pods => (
            reason::WAIT_FOR_POD_SCHEDULED,
            format!("waiting for pods {} to be scheduled", pods.join(",")),
        ),
    }
}

fn provision(plan: &mut Plan, claim: &PersistentVolumeClaim, view: &ClaimView<'_>) {
    if !view.dynamic_provisioning {
        return;
    }
    let provisioner = view
        .class
        .ok_or_else(|| PluginError::NoClass(claim_class(claim).to_owned()))
        .and_then(provisioner_of);
    let provisioner = match provisioner {
        Ok(provisioner) => provisioner,
        Err(error) => {
            let message = error.to_string();
            return plan.event(
                claim,
                EventType::Warning,
                reason::PROVISIONING_FAILED,
                message,
            );
        }
    };
    plan.purpose = Purpose::Provision(provisioner.name().to_owned());
    match provisioner {
        Provisioner::HostPath => plan.push(Step::Start(Operation::Provision {
            claim: ObjectKey::of(claim),
            uid: claim.metadata.uid.clone().unwrap_or_default(),
        })),
        Provisioner::External(name) => {
            if let Some(claim) = with_provisioner(claim, &name) {
                plan.push(Step::UpdateClaim(Box::new(claim)));
            }
            let message = format!(
                "Waiting for a volume to be created either by the external provisioner '{name}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
            );
            plan.event(
                claim,
                EventType::Normal,
                reason::EXTERNAL_PROVISIONING,
                message,
            );
        }
    }
}

/// A claim that was never bound and wants one certain volume.
fn sync_claim_with_name(plan: &mut Plan, claim: &PersistentVolumeClaim, view: &ClaimView<'_>) {
    let name = volume_name(claim);
    let Some(volume) = view.volumes.get(name) else {
        return set_claim_status(plan, claim, "Pending", None);
    };
    let Some(by) = claim_key(volume) else {
        match check_volume_satisfies_claim(volume, claim) {
            Ok(()) => bind(plan, volume, claim),
            Err(why) => {
                let message = format!("Cannot bind to requested volume \"{name}\": {why}");
                plan.event(claim, EventType::Warning, reason::VOLUME_MISMATCH, message);
                set_claim_status(plan, claim, "Pending", None);
            }
        }
        return;
    };
    if is_volume_bound_to_claim(volume, claim) {
        return bind(plan, volume, claim);
    }
    let message = format!("volume \"{name}\" already bound to a different claim.");
    plan.event(claim, EventType::Warning, reason::FAILED_BINDING, message);
    if has_annotation(&claim.metadata, BOUND_BY_CONTROLLER) {
        // Someone took the mark of a completed binding off.
        plan.error = Some(SyncError::InvalidBinding {
            claim: ObjectKey::of(claim),
            volume: name.to_owned(),
            by,
        });
    } else {
        set_claim_status(plan, claim, "Pending", None);
    }
}

/// Why a volume cannot be bound to a claim that asks for it by name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Mismatch {
    #[error("the volume is marked for deletion \"{0}\"")]
    Deleted(String),
    #[error("requested PV is too small")]
    TooSmall,
    #[error("storageClassName does not match")]
    Class,
    #[error("volumeAttributesClassName does not match")]
    AttributesClass,
    #[error("incompatible volumeMode")]
    VolumeMode,
    #[error("incompatible accessMode")]
    AccessMode,
}

fn check_volume_satisfies_claim(
    volume: &PersistentVolume,
    claim: &PersistentVolumeClaim,
) -> Result<(), Mismatch> {
    let name = || volume.metadata.name.clone().unwrap_or_default();
    if volume.metadata.deletion_timestamp.is_some() {
        Err(Mismatch::Deleted(name()))
    } else if volume_capacity(volume).value() < requested_storage(claim).value() {
        Err(Mismatch::TooSmall)
    } else if volume_class(volume) != claim_class(claim) {
        Err(Mismatch::Class)
    } else if volume_attributes_class(volume) != claim_attributes_class(claim) {
        Err(Mismatch::AttributesClass)
    } else if volume_modes_differ(claim, volume) {
        Err(Mismatch::VolumeMode)
    } else if !check_access_modes(claim, volume) {
        Err(Mismatch::AccessMode)
    } else {
        Ok(())
    }
}

/// A claim that was bound before.
fn sync_bound_claim(plan: &mut Plan, claim: &PersistentVolumeClaim, view: &ClaimView<'_>) {
    let name = volume_name(claim);
    if name.is_empty() {
        let message =
            "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
        return lose_claim(plan, claim, "ClaimLost", message);
    }
    let Some(volume) = view.volumes.get(name) else {
        let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
        return lose_claim(plan, claim, "ClaimLost", message);
    };
    match claim_ref(volume) {
        // The volume came unbound, or we have not seen it bound yet.
        None => bind(plan, volume, claim),
        Some(reference) if reference.uid == claim.metadata.uid => bind(plan, volume, claim),
        Some(_) => {
            let message = "Two claims are bound to the same volume, this one is bound incorrectly";
            lose_claim(plan, claim, "ClaimMisbound", message);
        }
    }
}

/// What to do about a volume.
pub fn sync_volume(volume: &PersistentVolume, view: &VolumeView<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut annealed = volume.clone();
    let mut volume = Cow::Borrowed(volume);
    if anneal_volume(&mut annealed) {
        plan.push(Step::UpdateVolume(Box::new(annealed.clone())));
        volume = Cow::Owned(annealed);
    }
    let volume = volume.as_ref();
    let uid = claim_ref(volume).map(|reference| reference.uid.as_deref().unwrap_or_default());
    let Some(uid) = uid.filter(|uid| !uid.is_empty()) else {
        // Free, or set aside for a claim that will come; the claim's pass binds it.
        set_volume_phase(&mut plan, volume, "Available", "");
        return plan;
    };
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let claim = view
        .claim
        .filter(|claim| claim.metadata.uid.as_deref() == Some(uid));
    match claim {
        None => release(&mut plan, volume, view),
        Some(claim) if volume_name(claim).is_empty() => half_bound(&mut plan, volume, claim),
        Some(claim) if volume_name(claim) == name => {
            set_volume_phase(&mut plan, volume, "Bound", "");
        }
        // The claim is bound to another volume. This one was made for it, and is not wanted by anybody.
        Some(_)
            if has_annotation(&volume.metadata, PROVISIONED_BY)
                && reclaim_policy(volume) == "Delete" =>
        {
            release(&mut plan, volume, view);
        }
        Some(_) => unbind_volume(&mut plan, volume),
    }
    plan
}

/// The volume points to a claim that does not point back yet: the claim's pass completes it, unless it cannot.
fn half_bound(plan: &mut Plan, volume: &PersistentVolume, claim: &PersistentVolumeClaim) {
    if !volume_modes_differ(claim, volume) {
        return plan.push(Step::SyncClaim(ObjectKey::of(claim)));
    }
    let name = |meta: &Option<String>| meta.clone().unwrap_or_default();
    let message = format!(
        "Cannot bind PersistentVolume to requested PersistentVolumeClaim \"{}\" due to incompatible volumeMode.",
        name(&claim.metadata.name)
    );
    plan.event(volume, EventType::Warning, reason::VOLUME_MISMATCH, message);
    let message = format!(
        "Cannot bind PersistentVolume \"{}\" to requested PersistentVolumeClaim due to incompatible volumeMode.",
        name(&volume.metadata.name)
    );
    plan.event(claim, EventType::Warning, reason::VOLUME_MISMATCH, message);
}

fn reclaim_policy(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref();
    spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref())
        .unwrap_or_default()
}

/// Nobody has the volume any more: it is called so, unless it is called Failed already, and its policy is carried out.
fn release(plan: &mut Plan, volume: &PersistentVolume, view: &VolumeView<'_>) {
    let mut volume = Cow::Borrowed(volume);
    if !matches!(volume_phase(&volume), "Released" | "Failed") {
        set_volume_phase(plan, &volume, "Released", "");
        let status = volume.to_mut().status.get_or_insert_default();
        status.phase = Some("Released".to_owned());
        status.message = None;
    }
    reclaim(plan, &volume, view);
}

fn reclaim(plan: &mut Plan, volume: &PersistentVolume, view: &VolumeView<'_>) {
    let migrated = component_helpers::persistent_volume::annotation(
        &volume.metadata,
        component_helpers::persistent_volume::MIGRATED_TO,
    );
    if migrated.is_some_and(|driver| !driver.is_empty()) {
        // The CSI driver's provisioner does it.
        return;
    }
    match reclaim_policy(volume) {
        "Retain" => {}
        "Recycle" => recycle(plan, volume, view),
        "Delete" => {
            plan.purpose = Purpose::Delete(deleter_name(volume, view.class));
            match deleter_of(volume) {
                Err(error) => {
                    let message = error.to_string();
                    fail_volume(plan, volume, reason::VOLUME_FAILED_DELETE, &message);
                }
                Ok(Deleter::External) => {}
                Ok(Deleter::HostPath) => plan.push(Step::Start(Operation::Delete {
                    volume: volume.metadata.name.clone().unwrap_or_default(),
                    uid: volume.metadata.uid.clone().unwrap_or_default(),
                })),
            }
        }
        _ => {
            let message = "Volume has unrecognized PersistentVolumeReclaimPolicy";
            fail_volume(plan, volume, "VolumeUnknownReclaimPolicy", message);
        }
    }
}

fn recycle(plan: &mut Plan, volume: &PersistentVolume, view: &VolumeView<'_>) {
    if !view.users.is_empty() && view.claim.is_none() {
        let message = format!("Volume is used by pods: {}", view.users.join(","));
        return plan.event(
            volume,
            EventType::Normal,
            reason::VOLUME_FAILED_RECYCLE,
            message,
        );
    }
    let message = "No recycler plugin found for the volume!";
    fail_volume(plan, volume, reason::VOLUME_FAILED_RECYCLE, message);
}

/// Whether a volume's claim is gone, or has another volume, so that the volume may be deleted; `claim` is what has the claim's name now.
pub fn is_released(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> bool {
    let Some(reference) = claim_ref(volume) else {
        return false;
    };
    if reference.uid.as_deref().is_none_or(str::is_empty) {
        return false;
    }
    let claim = claim.filter(|claim| claim.metadata.uid == reference.uid);
    claim.is_none_or(|claim| {
        let name = volume_name(claim);
        !name.is_empty() && Some(name) != volume.metadata.name.as_deref()
    })
}
