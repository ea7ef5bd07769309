//! `secret` volumes, on tmpfs: secrets never reach the node's disk. Upstream: pkg/volume/secret.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{KeyToPath, Volume};

use crate::atomic_writer::Payload;
use crate::config_map::select;
use crate::content::{self, mode};
use crate::empty_dir::Medium;
use crate::location::VolumeLocation;
use crate::plugin::{Mounter, SetUpError, VolumePlugin};

pub(crate) struct SecretVolume;

#[async_trait]
impl VolumePlugin for SecretVolume {
    fn name(&self) -> &'static str {
        "kubernetes.io/secret"
    }

    fn can_support(&self, volume: &Volume) -> bool {
        volume.secret.is_some()
    }

    fn requires_remount(&self) -> bool {
        true
    }

    fn read_only(&self) -> bool {
        true
    }

    async fn set_up(&self, mounter: &Mounter<'_>) -> Result<VolumeLocation, SetUpError> {
        let source = mounter.volume.secret.as_ref().expect("can_support said so");
        let payload = collect(
            mounter,
            source.secret_name.as_deref().unwrap_or_default(),
            source.items.as_deref().unwrap_or_default(),
            mode(source.default_mode),
            source.optional.unwrap_or(false),
        )
        .await?;
        content::set_up(mounter, self.name(), Medium::Memory, payload).await
    }
}

/// Also a source of projected volumes.
pub(crate) async fn collect(
    mounter: &Mounter<'_>,
    name: &str,
    items: &[KeyToPath],
    default_mode: u32,
    optional: bool,
) -> Result<Payload, SetUpError> {
    match mounter.source.secret(mounter.namespace(), name).await? {
        Some(secret) => {
            let data = secret
                .data
                .iter()
                .flatten()
                .map(|(key, value)| (key.as_str(), value.0.as_slice()))
                .collect();
            select(
                items,
                data,
                default_mode,
                optional,
                SetUpError::SecretKeyNotFound,
            )
        }
        None if optional => Ok(Payload::new()),
        None => Err(SetUpError::SecretNotFound(name.to_owned())),
    }
}
