//! Who makes the volume of a claim and who deletes it, and which class is the default. Pure.
//!
//! Upstream: `findProvisionablePlugin`, `findDeletablePlugin`, `setClaimProvisioner`, `getProvisionerNameFromVolume` of
//! persistentvolume/pv_controller.go; pkg/volume/plugins.go; pkg/volume/util/storageclass.go; v1.36.

use std::sync::Arc;

use component_helpers::persistent_volume::{
    BETA_STORAGE_PROVISIONER, MIGRATED_TO, PROVISIONED_BY, STORAGE_PROVISIONER, annotation,
    has_annotation, set_annotation,
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::host_path;
use super::migration::{IN_TREE_PREFIX, anneal_claim, csi_driver};

/// The in-tree plugin of NFS volumes: it can neither make nor delete any.
const NFS: &str = "kubernetes.io/nfs";
/// A name in metrics for who cannot be told.
pub const NOT_AVAILABLE: &str = "N/A";

/// Who makes the volume of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provisioner {
    /// A program that watches claims which carry its name.
    External(String),
    /// We, by a directory of this machine.
    HostPath,
}

impl Provisioner {
    /// The name claims and metrics carry.
    pub fn name(&self) -> &str {
        match self {
            Self::External(name) => name,
            Self::HostPath => host_path::PLUGIN_NAME,
        }
    }
}

/// Who deletes a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deleter {
    /// Whoever provisioned it.
    External,
    /// We, for it is a directory.
    HostPath,
}

/// Why nobody can be told who makes or deletes a volume. Only a change of the class or the volume helps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PluginError {
    /// The class a claim names is not there.
    #[error("storageclass.storage.k8s.io \"{0}\" not found")]
    NoClass(String),
    /// Nobody has this name.
    #[error("no volume plugin matched name: {0}")]
    UnknownName(String),
    /// The plugin cannot provision.
    #[error("no provisionable volume plugin matched")]
    NotProvisionable,
    /// The plugin of a name cannot delete.
    #[error("no deletable volume plugin matched")]
    NotDeletable,
    /// The plugin of a volume's kind cannot delete.
    #[error(
        "error getting deleter volume plugin for volume \"{0}\": no deletable volume plugin matched"
    )]
    VolumeNotDeletable(String),
    /// No plugin knows the volume's kind.
    #[error("error getting deleter volume plugin for volume \"{0}\": no volume plugin matched")]
    UnknownKind(String),
}

/// Who makes volumes of a class.
///
/// # Errors
/// When it names an in-tree plugin that is not there or makes none.
pub fn provisioner_of(class: &StorageClass) -> Result<Provisioner, PluginError> {
    let name = class.provisioner.as_str();
    if let Some(driver) = csi_driver(name) {
        return Ok(Provisioner::External(driver.to_owned()));
    }
    match name {
        host_path::PLUGIN_NAME => Ok(Provisioner::HostPath),
        NFS => Err(PluginError::NotProvisionable),
        name if name.starts_with(IN_TREE_PREFIX) => Err(PluginError::UnknownName(name.to_owned())),
        name => Ok(Provisioner::External(name.to_owned())),
    }
}

/// Who deletes a volume: who made it, if it says so, else whoever knows its kind.
///
/// # Errors
/// When nobody can.
pub fn deleter_of(volume: &PersistentVolume) -> Result<Deleter, PluginError> {
    let made_by = annotation(&volume.metadata, PROVISIONED_BY).unwrap_or_default();
    match made_by {
        "" => {}
        host_path::PLUGIN_NAME => return Ok(Deleter::HostPath),
        NFS => return Err(PluginError::NotDeletable),
        name if name.starts_with(IN_TREE_PREFIX) => {
            return Err(PluginError::UnknownName(name.to_owned()));
        }
        _ => return Ok(Deleter::External),
    }
    let spec = volume.spec.clone().unwrap_or_default();
    if has_annotation(&volume.metadata, MIGRATED_TO) || spec.csi.is_some() {
        return Ok(Deleter::External);
    }
    let name = volume.metadata.name.clone().unwrap_or_default();
    if spec.host_path.is_some() {
        Ok(Deleter::HostPath)
    } else if spec.nfs.is_some() {
        Err(PluginError::VolumeNotDeletable(name))
    } else {
        Err(PluginError::UnknownKind(name))
    }
}

/// Who deletes a volume, for metrics; `class` is the volume's. The annotation is not used for external ones: provisioners of local
/// storage write anything there.
pub fn deleter_name(volume: &PersistentVolume, class: Option<&StorageClass>) -> String {
    let name = match deleter_of(volume) {
        Err(_) => NOT_AVAILABLE,
        Ok(Deleter::HostPath) => host_path::PLUGIN_NAME,
        Ok(Deleter::External) => class.map_or(NOT_AVAILABLE, |class| {
            csi_driver(&class.provisioner).unwrap_or(&class.provisioner)
        }),
    };
    name.to_owned()
}

/// The plugin of a volume, for metrics.
pub fn plugin_name(volume: &PersistentVolume) -> &'static str {
    let spec = volume.spec.as_ref();
    match spec {
        Some(spec) if spec.host_path.is_some() => host_path::PLUGIN_NAME,
        Some(spec) if spec.nfs.is_some() => NFS,
        _ => NOT_AVAILABLE,
    }
}

/// The claim with the name of who shall provision, which is what external provisioners wait for; `None` when it has it.
pub fn with_provisioner(
    claim: &PersistentVolumeClaim,
    provisioner: &str,
) -> Option<PersistentVolumeClaim> {
    if annotation(&claim.metadata, STORAGE_PROVISIONER) == Some(provisioner) {
        return None;
    }
    let mut claim = claim.clone();
    set_annotation(&mut claim.metadata, BETA_STORAGE_PROVISIONER, provisioner);
    set_annotation(&mut claim.metadata, STORAGE_PROVISIONER, provisioner);
    anneal_claim(&mut claim);
    Some(claim)
}

/// Whether a class is marked as default.
pub fn is_default(meta: &ObjectMeta) -> bool {
    [
        "storageclass.kubernetes.io/is-default-class",
        "storageclass.beta.kubernetes.io/is-default-class",
    ]
    .iter()
    .any(|key| annotation(meta, key) == Some("true"))
}

/// The default class: of several the newest, and of those made in one second the first by name.
pub fn default_class(classes: &[Arc<StorageClass>]) -> Option<&Arc<StorageClass>> {
    let created = |class: &StorageClass| class.metadata.creation_timestamp.clone().map(|t| t.0);
    let defaults = classes.iter().filter(|class| is_default(&class.metadata));
    defaults.min_by(|a, b| {
        created(b)
            .cmp(&created(a))
            .then_with(|| a.metadata.name.cmp(&b.metadata.name))
    })
}
