//! `image` volumes: only named here. The runtime pulls the image and mounts its root, read-only.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Volume;

use crate::location::VolumeLocation;
use crate::plugin::{Mounter, SetUpError, VolumePlugin};

pub(crate) struct ImageVolume;

#[async_trait]
impl VolumePlugin for ImageVolume {
    fn name(&self) -> &'static str {
        "kubernetes.io/image"
    }

    fn can_support(&self, volume: &Volume) -> bool {
        volume.image.is_some()
    }

    fn read_only(&self) -> bool {
        true
    }

    fn managed(&self) -> bool {
        false
    }

    async fn set_up(&self, mounter: &Mounter<'_>) -> Result<VolumeLocation, SetUpError> {
        let source = mounter.volume.image.as_ref().expect("can_support said so");
        let reference = source
            .reference
            .clone()
            .filter(|r| !r.is_empty())
            .ok_or(SetUpError::NoImageReference)?;
        Ok(VolumeLocation::Image {
            reference,
            pull_policy: source.pull_policy.clone(),
        })
    }
}
