//! Has a driver make a volume's file system as large as the volume has become. Upstream: pkg/volume/csi/expander.go.

use std::sync::Arc;

use component_helpers::quantity::amount;
use csi::Code;
use csi::proto::{CapacityRange, NodeExpandVolumeRequest};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::request::{access_mode, block_capability, mount_capability};
use super::{CsiError, CsiVolumes, DeviceKey, MOUNT, NAME};
use crate::claim::Persistent;
use crate::expand::{self, Due, Expansion};

impl CsiVolumes {
    /// Looks whether the volume has become larger than its file system on this node, and has the driver do what is to be done.
    /// `None`: nothing was.
    pub async fn expand(
        self: &Arc<Self>,
        uid: &str,
        persistent: &Persistent,
    ) -> Option<(Arc<PersistentVolumeClaim>, Result<(), String>)> {
        let spec = persistent.volume.spec.as_ref()?;
        if spec.csi.is_none() || persistent.read_only {
            return None;
        }
        let Due {
            claim,
            volume,
            expansion,
        } = expand::due(&*self.source, persistent).await?;
        let (this, uid) = (self.clone(), uid.to_owned());
        let asked = claim.clone();
        let done =
            tokio::spawn(async move { this.node_expand(&uid, &asked, &volume, &expansion).await });
        let outcome = match done.await {
            Ok(None) => return None,
            Ok(Some(outcome)) => outcome.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        Some((claim, outcome))
    }

    async fn node_expand(
        &self,
        uid: &str,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
        expansion: &Expansion,
    ) -> Option<Result<(), CsiError>> {
        let csi = volume.spec.as_ref()?.csi.as_ref()?;
        let key = DeviceKey {
            driver: csi.driver.clone(),
            handle: csi.volume_handle.clone(),
        };
        let _turn = self.turn(&key).await;
        let name = volume.metadata.name.clone().unwrap_or_default();
        let refused = (key.clone(), expansion.size.0.clone());
        if !self.is_published(uid, &name) || self.memory().refused.contains(&refused) {
            return None;
        }
        let client = match self.drivers.client(&key.driver) {
            Ok(client) => client,
            Err(error) => return Some(Err(CsiError::NoDriverToExpand(error))),
        };
        let capabilities = match client.capabilities().await {
            Ok(capabilities) if capabilities.expand() => capabilities,
            Ok(_) => {
                tracing::debug!(
                    volume = name,
                    "NodeExpand is not supported by the CSI driver"
                );
                return None;
            }
            Err(error) => return Some(Err(CsiError::Expand(error))),
        };
        let request = match self
            .expand_request(uid, &key, volume, expansion, &capabilities)
            .await
        {
            Ok(request) => request,
            Err(error) => return Some(Err(error)),
        };
        if !expand::begin(&*self.source, claim, expansion).await {
            return None;
        }
        // Somebody wants another size by now: once that one failed for good, the resizer may go by the new wish.
        let given_up =
            expand::wanted_otherwise(claim, volume) && self.memory().not_expanded.contains(&key);
        let Err(error) = client.expand(request).await else {
            self.memory().not_expanded.remove(&key);
            tracing::info!(
                volume = name,
                size = expansion.size.0,
                "NodeExpandVolume succeeded"
            );
            let told = expand::finish(&*self.source, claim, &expansion.size).await;
            return Some(told.map_err(CsiError::ClaimStatus));
        };
        if error.is_final() {
            let infeasible = given_up
                || matches!(
                    error.code(),
                    Some(Code::InvalidArgument | Code::OutOfRange | Code::NotFound)
                );
            self.memory().not_expanded.insert(key.clone());
            let why = CsiError::Expand(error.clone()).to_string();
            expand::fail(&*self.source, claim, &why, infeasible).await;
        }
        if error.code() == Some(Code::FailedPrecondition) {
            // Not while it is in use here.
            self.memory().refused.insert(refused);
        }
        Some(Err(CsiError::Expand(error)))
    }

    async fn expand_request(
        &self,
        uid: &str,
        key: &DeviceKey,
        volume: &PersistentVolume,
        expansion: &Expansion,
        capabilities: &csi::Capabilities,
    ) -> Result<NodeExpandVolumeRequest, CsiError> {
        let missing = CsiError::Missing("volume source not found in volume.Spec");
        let spec = volume.spec.as_ref().ok_or(missing)?;
        let csi = spec.csi.clone().unwrap_or_default();
        let name = volume.metadata.name.clone().unwrap_or_default();
        let secret = csi.node_expand_secret_ref.clone();
        let secrets = super::gather::secrets(&*self.source, "NodeExpandSecretRef", secret).await?;
        let modes = spec.access_modes.as_ref();
        let mode = access_mode(
            modes.and_then(|m| m.first()).map(String::as_str),
            capabilities,
        );
        let options = spec.mount_options.clone().unwrap_or_default();
        let block = spec.volume_mode.as_deref() == Some("Block");
        let (path, staging) = if block {
            let paths = self.layout.csi_block(&name);
            (paths.published.join(uid), paths.staging)
        } else {
            let target = self.layout.volume(uid, NAME, &name).join(MOUNT);
            (target, self.staging_path(key))
        };
        let staging = staging.to_string_lossy().into_owned();
        Ok(NodeExpandVolumeRequest {
            volume_id: key.handle.clone(),
            volume_path: path.to_string_lossy().into_owned(),
            capacity_range: Some(CapacityRange {
                required_bytes: amount(&expansion.size).value(),
                ..CapacityRange::default()
            }),
            staging_target_path: match capabilities.stage_unstage() {
                true => staging,
                false => String::new(),
            },
            volume_capability: Some(match block {
                true => block_capability(mode),
                false => mount_capability(mode, &csi.fs_type.unwrap_or_default(), &options, None),
            }),
            secrets: secrets.into_iter().collect(),
        })
    }
}
