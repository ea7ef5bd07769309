//! The list of the kinds of volumes there are, and those that are refused by name.

use k8s_openapi::api::core::v1::{PersistentVolume, Volume};

use crate::plugin::{SetUpError, VolumePlugin};

/// Every kind this node can set up.
pub(crate) static PLUGINS: &[&dyn VolumePlugin] = &[
    &crate::empty_dir::EmptyDir,
    &crate::host_path::HostPath,
    &crate::config_map::ConfigMapVolume,
    &crate::secret::SecretVolume,
    &crate::projected::Projected,
    &crate::downward_api::DownwardApi,
    &crate::image::ImageVolume,
    &crate::local::Local,
    &crate::nfs::Nfs,
    &crate::csi_plugin::Csi,
];

/// `persistent`: what is behind the claim, if the volume is one.
///
/// # Errors
/// [`SetUpError::UnsupportedKind`] naming the kind.
pub(crate) fn find_plugin(
    volume: &Volume,
    persistent: Option<&PersistentVolume>,
) -> Result<&'static dyn VolumePlugin, SetUpError> {
    let fits = |plugin: &&&dyn VolumePlugin| {
        plugin.can_support(volume) || persistent.is_some_and(|p| plugin.can_support_persistent(p))
    };
    if let Some(plugin) = PLUGINS.iter().find(fits) {
        return Ok(*plugin);
    }
    match (persistent, unsupported_kind(volume)) {
        (Some(persistent), _) => Err(SetUpError::UnsupportedKind {
            kind: unsupported_persistent(persistent),
        }),
        (None, Some(kind)) => Err(SetUpError::UnsupportedKind { kind }),
        // A volume without any source is an emptyDir, as the API's defaulting has it.
        (None, None) => Ok(&crate::empty_dir::EmptyDir),
    }
}

fn unsupported_persistent(volume: &PersistentVolume) -> &'static str {
    let Some(spec) = &volume.spec else {
        return "PersistentVolume without a source";
    };
    let kinds = [
        ("iscsi", spec.iscsi.is_some()),
        ("fc", spec.fc.is_some()),
        ("flexVolume", spec.flex_volume.is_some()),
        ("rbd", spec.rbd.is_some()),
        ("cephfs", spec.cephfs.is_some()),
        ("azureFile", spec.azure_file.is_some()),
        ("azureDisk", spec.azure_disk.is_some()),
        (
            "awsElasticBlockStore",
            spec.aws_elastic_block_store.is_some(),
        ),
        ("gcePersistentDisk", spec.gce_persistent_disk.is_some()),
        ("cinder", spec.cinder.is_some()),
        ("vsphereVolume", spec.vsphere_volume.is_some()),
    ];
    let found = kinds.into_iter().find_map(|(kind, is)| is.then_some(kind));
    found.unwrap_or("PersistentVolume of another kind")
}

fn unsupported_kind(volume: &Volume) -> Option<&'static str> {
    let kinds = [
        (
            "awsElasticBlockStore",
            volume.aws_elastic_block_store.is_some(),
        ),
        ("azureDisk", volume.azure_disk.is_some()),
        ("azureFile", volume.azure_file.is_some()),
        ("cephfs", volume.cephfs.is_some()),
        ("cinder", volume.cinder.is_some()),
        ("ephemeral", volume.ephemeral.is_some()),
        ("fc", volume.fc.is_some()),
        ("flexVolume", volume.flex_volume.is_some()),
        ("flocker", volume.flocker.is_some()),
        ("gcePersistentDisk", volume.gce_persistent_disk.is_some()),
        ("gitRepo", volume.git_repo.is_some()),
        ("glusterfs", volume.glusterfs.is_some()),
        ("iscsi", volume.iscsi.is_some()),
        (
            "photonPersistentDisk",
            volume.photon_persistent_disk.is_some(),
        ),
        ("portworxVolume", volume.portworx_volume.is_some()),
        ("quobyte", volume.quobyte.is_some()),
        ("rbd", volume.rbd.is_some()),
        ("scaleIO", volume.scale_io.is_some()),
        ("storageos", volume.storageos.is_some()),
        ("vsphereVolume", volume.vsphere_volume.is_some()),
    ];
    kinds.into_iter().find_map(|(kind, is)| is.then_some(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_kinds_are_refused_by_name() {
        let volume: Volume = serde_json::from_value(
            serde_json::json!({"name": "v", "iscsi": {"targetPortal": "s", "iqn": "i", "lun": 0}}),
        )
        .unwrap();
        let error = find_plugin(&volume, None).err().unwrap();
        assert_eq!(
            error.to_string(),
            "volumes of kind iscsi are not supported by this kubelet"
        );
        let none: Volume = serde_json::from_value(serde_json::json!({"name": "v"})).unwrap();
        assert_eq!(
            find_plugin(&none, None).ok().unwrap().name(),
            "kubernetes.io/empty-dir"
        );
    }
}
