//! Makes a volume's file system as large as the volume has become. Upstream: `NodeExpander`, pkg/volume/csi/expander.go.

use std::sync::Arc;

use component_helpers::quantity::amount;
use csi::Code;
use csi::proto::{CapacityRange, NodeExpandVolumeRequest};
use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimCondition,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::request::{access_mode, block_capability, mount_capability};
use super::{CsiError, CsiVolumes, DeviceKey, MOUNT, NAME};
use crate::claim::Persistent;

const STORAGE: &str = "storage";
const PENDING: &str = "NodeResizePending";
const IN_PROGRESS: &str = "NodeResizeInProgress";
const INFEASIBLE: &str = "NodeResizeInfeasible";
const NODE_ERROR: &str = "NodeResizeError";
/// Those that are about resizing; upstream: `knownResizeConditions`.
const CONDITIONS: &[&str] = &[
    "FileSystemResizePending",
    "Resizing",
    "ControllerResizeError",
    NODE_ERROR,
];

/// What the node has to do for a claim.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Expansion {
    pub size: Quantity,
    /// To be said before it is begun.
    pub mark: bool,
}

/// What is to be done; `None`: nothing (yet). Upstream: `expandVolumeDuringMount`, `runPreCheck`.
pub(super) fn expansion(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> Option<Expansion> {
    let status = claim.status.as_ref()?;
    let of = |list: Option<&std::collections::BTreeMap<String, Quantity>>| {
        list.and_then(|l| l.get(STORAGE)).cloned()
    };
    let capacity = of(volume.spec.as_ref()?.capacity.as_ref())?;
    let current = of(status.capacity.as_ref())?;
    if amount(&capacity) <= amount(&current) {
        return None;
    }
    let Some(size) = of(status.allocated_resources.as_ref()) else {
        // A resizer that does not know of recovery.
        return Some(Expansion {
            size: capacity,
            mark: false,
        });
    };
    let statuses = status.allocated_resource_statuses.as_ref();
    match statuses.and_then(|s| s.get(STORAGE)).map(String::as_str) {
        Some(PENDING) => Some(Expansion { size, mark: true }),
        Some(IN_PROGRESS) => Some(Expansion { size, mark: false }),
        _ => None,
    }
}

/// What is written to the claim's status once its file system has that size.
fn finished(claim: &PersistentVolumeClaim, size: &Quantity) -> Value {
    let conditions = claim
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten());
    let others: Vec<_> = conditions
        .filter(|c| !CONDITIONS.contains(&c.type_.as_str()))
        .collect();
    json!({"metadata": version(claim), "status": {
        "capacity": {STORAGE: size},
        "allocatedResourceStatuses": {STORAGE: null},
        "conditions": others,
    }})
}

/// Whether the claim asks for another size than its volume was made for. Upstream: `markExpansionInfeasibleOnFailure`.
fn wanted_otherwise(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let spec = claim.spec.as_ref().and_then(|s| s.resources.as_ref());
    let wanted = spec.and_then(|r| r.requests.as_ref()?.get(STORAGE));
    let spec = volume.spec.as_ref();
    let made = spec.and_then(|s| s.capacity.as_ref()?.get(STORAGE));
    wanted.map(amount) != made.map(amount)
}

fn in_progress(claim: &PersistentVolumeClaim) -> Value {
    json!({"metadata": version(claim), "status": {"allocatedResourceStatuses": {STORAGE: IN_PROGRESS}}})
}

/// What went wrong for good. `infeasible`: no retry of the same size helps.
fn failed(claim: &PersistentVolumeClaim, error: &str, infeasible: bool, now: Time) -> Value {
    let conditions = claim
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten());
    let mut conditions: Vec<_> = conditions.cloned().collect();
    let known = conditions
        .iter()
        .any(|c| c.type_ == NODE_ERROR && c.status == "True");
    if !known {
        conditions.retain(|c| c.type_ != NODE_ERROR);
        conditions.push(PersistentVolumeClaimCondition {
            type_: NODE_ERROR.to_owned(),
            status: "True".to_owned(),
            last_transition_time: Some(now),
            message: Some(format!("failed to expand pvc with {error}")),
            ..PersistentVolumeClaimCondition::default()
        });
    }
    let mut status = json!({ "conditions": conditions });
    if infeasible {
        status["allocatedResourceStatuses"] = json!({STORAGE: INFEASIBLE});
    }
    json!({ "status": status })
}

/// Two must not write over each other.
fn version(claim: &PersistentVolumeClaim) -> Value {
    json!({"resourceVersion": claim.metadata.resource_version})
}

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
        let claim = spec.claim_ref.as_ref()?;
        let namespace = claim.namespace.clone().unwrap_or_default();
        let name = claim.name.clone().unwrap_or_default();
        // Whoever cannot be asked is asked again with a later round.
        let claim = self.source.claim(&namespace, &name).await.ok()??;
        let volume = self.source.persistent_volume(persistent.name()).await;
        let volume = volume.ok()??;
        let expansion = expansion(&claim, &volume)?;
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
        if expansion.mark
            && let Err(error) = self.patch(claim, &in_progress(claim)).await
        {
            // Somebody else wrote it: looked at again with the next round.
            tracing::info!(volume = name, %error, "failed to mark node expansion in progress");
            return None;
        }
        // Somebody wants another size by now: once that one failed for good, the resizer may go by the new wish.
        let given_up = wanted_otherwise(claim, volume) && self.memory().not_expanded.contains(&key);
        let Err(error) = client.expand(request).await else {
            self.memory().not_expanded.remove(&key);
            tracing::info!(
                volume = name,
                size = expansion.size.0,
                "NodeExpandVolume succeeded"
            );
            return Some(self.finish(claim, &expansion.size).await);
        };
        if error.is_final() {
            let infeasible = given_up
                || matches!(
                    error.code(),
                    Some(Code::InvalidArgument | Code::OutOfRange | Code::NotFound)
                );
            self.memory().not_expanded.insert(key.clone());
            let now = Time(jiff::Timestamp::now());
            let body = failed(
                claim,
                &CsiError::Expand(error.clone()).to_string(),
                infeasible,
                now,
            );
            if let Err(error) = self.patch(claim, &body).await {
                tracing::error!(volume = name, %error, "failed to mark node expansion as failed");
            }
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

    /// Says so in the claim, by its newest version if this one was written over.
    async fn finish(&self, claim: &PersistentVolumeClaim, size: &Quantity) -> Result<(), CsiError> {
        let namespace = claim.metadata.namespace.clone().unwrap_or_default();
        let name = claim.metadata.name.clone().unwrap_or_default();
        let mut last = None;
        for _ in 0..3 {
            let newest = self.source.claim(&namespace, &name).await;
            let Some(newest) = newest.map_err(CsiError::ClaimStatus)? else {
                return Ok(());
            };
            match self.patch(&newest, &finished(&newest, size)).await {
                Ok(()) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        last.map_or(Ok(()), Err)
    }

    async fn patch(&self, claim: &PersistentVolumeClaim, body: &Value) -> Result<(), CsiError> {
        let namespace = claim.metadata.namespace.clone().unwrap_or_default();
        let name = claim.metadata.name.clone().unwrap_or_default();
        let patched = self
            .source
            .patch_claim_status(&namespace, &name, body)
            .await;
        patched.map_err(CsiError::ClaimStatus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::serde::de::DeserializeOwned;

    fn of<T: DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_a_claim_asks_of_the_node() {
        let volume = |size: &str| -> PersistentVolume {
            of(json!({"spec": {"capacity": {"storage": size}}}))
        };
        let claim = |status: Value| -> PersistentVolumeClaim { of(json!({ "status": status })) };
        let expand = |size: &str, mark| {
            Some(Expansion {
                size: Quantity(size.to_owned()),
                mark,
            })
        };
        let recovering = |allocated: &str, status: Option<&str>| {
            claim(json!({
                "capacity": {"storage": "1Gi"}, "allocatedResources": {"storage": allocated},
                "allocatedResourceStatuses": status.map(|s| json!({"storage": s})),
            }))
        };
        for (size, claim, expected) in [
            ("1Gi", claim(json!({"capacity": {"storage": "1Gi"}})), None),
            ("1Gi", claim(json!({"capacity": {"storage": "2Gi"}})), None),
            ("2Gi", claim(json!({})), None),
            (
                "2Gi",
                claim(json!({"capacity": {"storage": "1Gi"}})),
                expand("2Gi", false),
            ),
            ("3Gi", recovering("2Gi", Some(PENDING)), expand("2Gi", true)),
            (
                "3Gi",
                recovering("2Gi", Some(IN_PROGRESS)),
                expand("2Gi", false),
            ),
            // Not the node's turn.
            ("3Gi", recovering("2Gi", Some(INFEASIBLE)), None),
            (
                "3Gi",
                recovering("2Gi", Some("ControllerResizeInProgress")),
                None,
            ),
            ("3Gi", recovering("2Gi", None), None),
        ] {
            assert_eq!(
                expansion(&claim, &volume(size)),
                expected,
                "{size} {claim:?}"
            );
        }
    }

    #[test]
    fn what_a_claim_is_told() {
        let claim: PersistentVolumeClaim = of(
            json!({"metadata": {"resourceVersion": "7"}, "status": {"conditions": [
                {"type": "FileSystemResizePending", "status": "True"}, {"type": "Other", "status": "True"},
            ]}}),
        );
        let done = finished(&claim, &Quantity("2Gi".to_owned()));
        assert_eq!(
            done,
            json!({"metadata": {"resourceVersion": "7"}, "status": {
                "capacity": {"storage": "2Gi"}, "allocatedResourceStatuses": {"storage": null},
                "conditions": [{"type": "Other", "status": "True"}],
            }})
        );
        let told = failed(&claim, "x", true, Time(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(
            told["status"]["allocatedResourceStatuses"]["storage"],
            INFEASIBLE
        );
        let last = &told["status"]["conditions"][2];
        assert_eq!(
            (&last["type"], &last["message"]),
            (
                &json!("NodeResizeError"),
                &json!("failed to expand pvc with x")
            )
        );
        let retried = failed(&claim, "x", false, Time(jiff::Timestamp::UNIX_EPOCH));
        assert!(retried["status"].get("allocatedResourceStatuses").is_none());
    }
}
