//! In-tree plugins that CSI drivers stand in for: what claims and volumes of theirs must carry. Pure.
//!
//! Migration is finished and locked for all of them. Upstream: pkg/volume/csimigration, k8s.io/csi-translation-lib,
//! `updateMigrationAnnotations` and `modifyDeletionFinalizers`, v1.36.

use component_helpers::csi_migration::InTreePlugin;
use component_helpers::persistent_volume::{
    BETA_STORAGE_PROVISIONER, EXTERNAL_PROVISIONER_FINALIZER, MIGRATED_TO, PROVISIONED_BY,
    PV_CONTROLLER_FINALIZER, STORAGE_PROVISIONER, annotation, remove_annotation, set_annotation,
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// What names of in-tree plugins begin with.
pub const IN_TREE_PREFIX: &str = "kubernetes.io/";

/// The CSI driver that stands in for an in-tree plugin.
pub fn csi_driver(plugin: &str) -> Option<&'static str> {
    InTreePlugin::of_name(plugin).map(InTreePlugin::driver)
}

/// The in-tree plugin of a volume's kind, of those that a driver stands in for.
pub fn in_tree_plugin(volume: &PersistentVolume) -> Option<&'static str> {
    InTreePlugin::of_volume(volume).map(InTreePlugin::name)
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
