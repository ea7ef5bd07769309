//! In-tree plugins that CSI drivers stand in for: their names, and what claims and volumes of theirs must carry. Pure.
//!
//! Migration is finished and locked for all of them. Upstream: pkg/volume/csimigration, k8s.io/csi-translation-lib,
//! `updateMigrationAnnotations` and `modifyDeletionFinalizers`, v1.36.

use component_helpers::persistent_volume::{
    BETA_STORAGE_PROVISIONER, EXTERNAL_PROVISIONER_FINALIZER, MIGRATED_TO, PROVISIONED_BY,
    PV_CONTROLLER_FINALIZER, STORAGE_PROVISIONER, annotation, remove_annotation, set_annotation,
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// What names of in-tree plugins begin with.
pub const IN_TREE_PREFIX: &str = "kubernetes.io/";

/// In-tree plugin and CSI driver.
const MIGRATED: [(&str, &str); 7] = [
    ("kubernetes.io/aws-ebs", "ebs.csi.aws.com"),
    ("kubernetes.io/azure-disk", "disk.csi.azure.com"),
    ("kubernetes.io/azure-file", "file.csi.azure.com"),
    ("kubernetes.io/cinder", "cinder.csi.openstack.org"),
    ("kubernetes.io/gce-pd", "pd.csi.storage.gke.io"),
    ("kubernetes.io/portworx-volume", "pxd.portworx.com"),
    ("kubernetes.io/vsphere-volume", "csi.vsphere.vmware.com"),
];

/// The CSI driver that stands in for an in-tree plugin.
pub fn csi_driver(plugin: &str) -> Option<&'static str> {
    let entry = MIGRATED.iter().find(|(name, _)| *name == plugin);
    entry.map(|(_, driver)| *driver)
}

/// The in-tree plugin of a volume's kind, of those that a driver stands in for.
pub fn in_tree_plugin(volume: &PersistentVolume) -> Option<&'static str> {
    let spec = volume.spec.as_ref()?;
    let kinds = [
        (spec.aws_elastic_block_store.is_some(), "aws-ebs"),
        (spec.azure_disk.is_some(), "azure-disk"),
        (spec.azure_file.is_some(), "azure-file"),
        (spec.cinder.is_some(), "cinder"),
        (spec.gce_persistent_disk.is_some(), "gce-pd"),
        (spec.portworx_volume.is_some(), "portworx-volume"),
        (spec.vsphere_volume.is_some(), "vsphere-volume"),
    ];
    let (_, short) = kinds.into_iter().find(|(is_it, _)| *is_it)?;
    let names = MIGRATED.iter().map(|(name, _)| *name);
    names
        .into_iter()
        .find(|name| name.strip_prefix(IN_TREE_PREFIX) == Some(short))
}

/// Sets or takes off the name of the driver that stands in for `plugin`; whether that changed anything.
fn anneal(meta: &mut ObjectMeta, plugin: Option<&str>) -> bool {
    let Some(plugin) = plugin else { return false };
    let driver = csi_driver(plugin);
    let old = annotation(meta, MIGRATED_TO).unwrap_or_default();
    match driver {
        Some(driver) if old != driver => set_annotation(meta, MIGRATED_TO, driver),
        None if !old.is_empty() => remove_annotation(meta, MIGRATED_TO),
        _ => return false,
    }
    true
}

/// Gives a claim the name of the driver that stands in for its provisioner; whether that changed anything.
pub fn anneal_claim(claim: &mut PersistentVolumeClaim) -> bool {
    let provisioner = annotation(&claim.metadata, STORAGE_PROVISIONER)
        .or_else(|| annotation(&claim.metadata, BETA_STORAGE_PROVISIONER))
        .map(str::to_owned);
    anneal(&mut claim.metadata, provisioner.as_deref())
}

/// Gives a volume the name of the driver that stands in for its provisioner, and the finalizers it should have; whether that changed
/// anything.
pub fn anneal_volume(volume: &mut PersistentVolume) -> bool {
    let provisioner = annotation(&volume.metadata, PROVISIONED_BY).map(str::to_owned);
    let annealed = anneal(&mut volume.metadata, provisioner.as_deref());
    let Some(provisioner) = provisioner else {
        return annealed;
    };
    let policy = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let before = volume.metadata.finalizers.clone().unwrap_or_default();
    let after = finalizers(&before, &provisioner, policy.unwrap_or_default());
    let changed = before != after;
    if changed {
        volume.metadata.finalizers = Some(after);
    }
    annealed || changed
}

/// The finalizers of a provisioned volume: the controller's own is for volumes of in-tree plugins that it will delete, that of external
/// provisioners is for theirs.
fn finalizers(old: &[String], provisioner: &str, reclaim_policy: &str) -> Vec<String> {
    let mut list = old.to_vec();
    if csi_driver(provisioner).is_some() {
        list.retain(|finalizer| finalizer != PV_CONTROLLER_FINALIZER);
        return list;
    }
    if !provisioner.starts_with(IN_TREE_PREFIX) {
        return list;
    }
    match reclaim_policy {
        "Delete" if !list.iter().any(|f| f == PV_CONTROLLER_FINALIZER) => {
            list.push(PV_CONTROLLER_FINALIZER.to_owned());
        }
        "Retain" | "Recycle" => list.retain(|f| f != PV_CONTROLLER_FINALIZER),
        _ => {}
    }
    list.retain(|finalizer| finalizer != EXTERNAL_PROVISIONER_FINALIZER);
    list
}
