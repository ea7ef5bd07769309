//! The kind of volume that drivers have: what a pod or a PersistentVolume wants of one, handed to [`crate::csi`].

use std::path::PathBuf;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolume, Volume};

use crate::csi::{MOUNT, NAME, Wanted, gather};
use crate::layout::Layout;
use crate::location::VolumeLocation;
use crate::plugin::{Mounter, SetUpError, VolumePlugin};

pub(crate) struct Csi;

#[async_trait]
impl VolumePlugin for Csi {
    fn name(&self) -> &'static str {
        NAME
    }

    fn can_support(&self, volume: &Volume) -> bool {
        volume.csi.is_some()
    }

    fn can_support_persistent(&self, volume: &PersistentVolume) -> bool {
        volume.spec.as_ref().is_some_and(|s| s.csi.is_some())
    }

    fn directory(&self, layout: &Layout, uid: &str, name: &str) -> PathBuf {
        layout.volume(uid, NAME, name).join(MOUNT)
    }

    async fn set_up(&self, mounter: &Mounter<'_>) -> Result<VolumeLocation, SetUpError> {
        let wanted = Wanted {
            csi: mounter.csi,
            tokens: mounter.tokens,
            now: mounter.now,
            pod: mounter.pod,
            pod_uid: mounter.pod_uid,
            namespace: mounter.namespace(),
            volume: mounter.volume,
            persistent: mounter.persistent,
            directory: mounter.directory,
            group: mounter.ownership.fs_group,
            group_policy: mounter.ownership.policy,
        };
        let job = gather(&wanted).await?;
        // Seen to its end, whatever becomes of who waits.
        let done = tokio::spawn(job.carry_out()).await;
        let location = done.map_err(|error| SetUpError::Interrupted(error.to_string()))??;
        Ok(location)
    }
}
