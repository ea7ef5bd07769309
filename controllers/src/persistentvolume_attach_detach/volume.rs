//! Which volumes of a pod are attached, and what they are called. Pure.

use std::sync::Arc;

use component_base::informer::ObjectKey;
use component_helpers::csi_migration::InTreePlugin;
use component_helpers::ephemeral;
use component_helpers::persistent_volume::{claim_phase, claim_ref, volume_name};
use component_helpers::pod;
use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, Pod, Volume as PodVolume,
};
use k8s_openapi::api::storage::v1::{
    CSIDriver, VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec,
};
use sha2::{Digest as _, Sha256};

/// What names of CSI volumes begin with, as nodes report them.
const CSI_PREFIX: &str = "kubernetes.io/csi/";
/// Between driver and handle. Upstream: `volNameSep`.
const SEPARATOR: char = '^';

/// A volume that can be attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The driver's name.
    pub driver: String,
    /// The driver's name of the volume.
    pub handle: String,
    /// The PersistentVolume.
    pub persistent_volume: String,
    /// Whether it may be at several nodes at once.
    pub multi_attach: bool,
}

impl Volume {
    /// What a PersistentVolume is for its CSI driver; `None` if it has none.
    pub fn of(volume: &PersistentVolume) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        let (driver, handle) = match (&spec.csi, InTreePlugin::of_volume(volume)) {
            (Some(csi), _) => (csi.driver.clone(), csi.volume_handle.clone()),
            (None, Some(plugin)) => (plugin.driver().to_owned(), plugin.handle(volume)?),
            (None, None) => return None,
        };
        let modes = spec.access_modes.as_deref().unwrap_or_default();
        let shared = |mode: &String| matches!(mode.as_str(), "ReadWriteMany" | "ReadOnlyMany");
        Some(Self {
            driver,
            handle,
            persistent_volume: volume.metadata.name.clone().unwrap_or_default(),
            // Without modes nobody knows; the driver will say.
            multi_attach: modes.is_empty() || modes.iter().any(shared),
        })
    }

    /// The name that nodes report in `volumesInUse` and read in `volumesAttached`.
    pub fn unique_name(&self) -> String {
        format!("{CSI_PREFIX}{}{SEPARATOR}{}", self.driver, self.handle)
    }

    /// The VolumeAttachment for a node.
    pub fn attachment(&self, node: &str) -> VolumeAttachment {
        let mut attachment = VolumeAttachment {
            spec: VolumeAttachmentSpec {
                attacher: self.driver.clone(),
                node_name: node.to_owned(),
                source: VolumeAttachmentSource {
                    persistent_volume_name: Some(self.persistent_volume.clone()),
                    inline_volume_spec: None,
                },
            },
            ..VolumeAttachment::default()
        };
        attachment.metadata.name = Some(attachment_name(&self.driver, &self.handle, node));
        attachment
    }
}

/// Driver and handle in a name of [`Volume::unique_name`]; `None` for volumes of other kinds.
pub fn split_unique_name(name: &str) -> Option<(&str, &str)> {
    let (driver, handle) = name.strip_prefix(CSI_PREFIX)?.split_once(SEPARATOR)?;
    (!handle.contains(SEPARATOR)).then_some((driver, handle))
}

/// The name of a VolumeAttachment. Upstream: `getAttachmentName`.
pub fn attachment_name(driver: &str, handle: &str, node: &str) -> String {
    let digest = Sha256::digest(format!("{handle}{driver}{node}"));
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("csi-{digits}")
}

/// Where claims, volumes and drivers are looked up.
pub trait Lookup {
    fn claim(&self, key: &ObjectKey) -> Option<Arc<PersistentVolumeClaim>>;
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>>;
    fn driver(&self, name: &str) -> Option<Arc<CSIDriver>>;
}

/// Whether the driver wants volumes attached; one without a CSIDriver does.
pub fn attach_required(lookup: &dyn Lookup, driver: &str) -> bool {
    let driver = lookup.driver(driver);
    driver.is_none_or(|driver| driver.spec.attach_required != Some(false))
}

/// Why nothing can be said about a pod's volume now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    #[error("failed to find PVC {0} in PVCInformer cache")]
    NoClaim(ObjectKey),
    #[error(transparent)]
    NotForPod(#[from] NotOwner),
    #[error(
        "PVC {claim} has non-bound phase ({phase:?}) or empty pvc.Spec.VolumeName ({volume:?})"
    )]
    NotBound {
        claim: ObjectKey,
        phase: String,
        volume: String,
    },
    #[error("failed to find PV {0:?} in PVInformer cache")]
    NoVolume(String),
    #[error("found PV object {volume:?} but it is not bound to the claim {claim}")]
    OtherClaim { volume: String, claim: ObjectKey },
}

/// A claim is not the pod's own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotOwner(String);

/// The volume to attach for one of a pod's volumes; `None` if there is nothing to attach.
///
/// # Errors
/// When claim and volume are not there, or not bound to each other.
pub fn resolve(
    pod: &Pod,
    volume: &PodVolume,
    lookup: &dyn Lookup,
) -> Result<Option<Volume>, Unresolved> {
    let volume = persistent_volume(pod, volume, lookup)?;
    let volume = volume.and_then(|volume| Volume::of(&volume));
    Ok(volume.filter(|volume| attach_required(lookup, &volume.driver)))
}

/// The PersistentVolume of one of a pod's volumes; `None` if it is of another kind.
///
/// # Errors
/// When claim and volume are not there, or not bound to each other.
pub fn persistent_volume(
    pod: &Pod,
    volume: &PodVolume,
    lookup: &dyn Lookup,
) -> Result<Option<Arc<PersistentVolume>>, Unresolved> {
    let name = match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => source.claim_name.clone(),
        (None, Some(_)) => ephemeral::claim_name(pod, volume),
        (None, None) => return Ok(None),
    };
    let key = ObjectKey::new(pod::namespace(pod), name);
    let claim = lookup.claim(&key);
    let claim = claim.ok_or_else(|| Unresolved::NoClaim(key.clone()))?;
    if claim_phase(&claim) != "Bound" || volume_name(&claim).is_empty() {
        return Err(Unresolved::NotBound {
            claim: key,
            phase: claim_phase(&claim).to_owned(),
            volume: volume_name(&claim).to_owned(),
        });
    }
    if volume.ephemeral.is_some() {
        ephemeral::volume_is_for_pod(pod, &claim).map_err(|e| NotOwner(e.to_string()))?;
    }
    let name = volume_name(&claim);
    let volume = lookup.volume(name);
    let volume = volume.ok_or_else(|| Unresolved::NoVolume(name.to_owned()))?;
    if claim_ref(&volume).is_none_or(|reference| reference.uid != claim.metadata.uid) {
        let volume = name.to_owned();
        return Err(Unresolved::OtherClaim { volume, claim: key });
    }
    Ok(Some(volume))
}
