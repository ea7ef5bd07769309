//! A claim's way to a larger file system on this node: what is to be done, and what the claim is told of it.
//!
//! Upstream: `NodeExpander`, pkg/volume/util/operationexecutor.

use std::sync::Arc;

use component_helpers::quantity::amount;
use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimCondition,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use crate::claim::Persistent;
use crate::source::{ObjectSource, SourceError};

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
pub(crate) struct Expansion {
    pub size: Quantity,
    /// To be said before it is begun.
    pub mark: bool,
}

/// What is to be done; `None`: nothing (yet). Upstream: `expandVolumeDuringMount`, `runPreCheck`.
pub(crate) fn expansion(
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
pub(crate) fn wanted_otherwise(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
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

/// A claim whose volume has become larger than its file system on this node.
pub(crate) struct Due {
    pub claim: Arc<PersistentVolumeClaim>,
    pub volume: Arc<PersistentVolume>,
    pub expansion: Expansion,
}

/// `None`: nothing is to be done, or whoever could say cannot be asked; a later round asks again.
pub(crate) async fn due(source: &dyn ObjectSource, persistent: &Persistent) -> Option<Due> {
    let claim = persistent.volume.spec.as_ref()?.claim_ref.as_ref()?;
    let namespace = claim.namespace.clone().unwrap_or_default();
    let name = claim.name.clone().unwrap_or_default();
    let claim = source.claim(&namespace, &name).await.ok()??;
    let volume = source.persistent_volume(persistent.name()).await.ok()??;
    let expansion = expansion(&claim, &volume)?;
    Some(Due {
        claim,
        volume,
        expansion,
    })
}

/// Says that it is begun, where that must be said. `false`: somebody else wrote the claim, a later round looks at it again.
pub(crate) async fn begin(
    source: &dyn ObjectSource,
    claim: &PersistentVolumeClaim,
    expansion: &Expansion,
) -> bool {
    if !expansion.mark {
        return true;
    }
    let begun = patch(source, claim, &in_progress(claim)).await;
    if let Err(error) = &begun {
        let claim = claim.metadata.name.as_deref().unwrap_or_default();
        tracing::info!(claim, %error, "failed to mark node expansion in progress");
    }
    begun.is_ok()
}

/// Says so in the claim, by its newest version if this one was written over.
pub(crate) async fn finish(
    source: &dyn ObjectSource,
    claim: &PersistentVolumeClaim,
    size: &Quantity,
) -> Result<(), SourceError> {
    let namespace = claim.metadata.namespace.clone().unwrap_or_default();
    let name = claim.metadata.name.clone().unwrap_or_default();
    let mut last = None;
    for _ in 0..3 {
        let Some(newest) = source.claim(&namespace, &name).await? else {
            return Ok(());
        };
        match patch(source, &newest, &finished(&newest, size)).await {
            Ok(()) => return Ok(()),
            Err(error) => last = Some(error),
        }
    }
    last.map_or(Ok(()), Err)
}

/// Says what went wrong for good. `infeasible`: no retry of the same size helps.
pub(crate) async fn fail(
    source: &dyn ObjectSource,
    claim: &PersistentVolumeClaim,
    error: &str,
    infeasible: bool,
) {
    let now = Time(jiff::Timestamp::now());
    let said = patch(source, claim, &failed(claim, error, infeasible, now)).await;
    if let Err(error) = said {
        let claim = claim.metadata.name.as_deref().unwrap_or_default();
        tracing::error!(claim, %error, "failed to mark node expansion as failed");
    }
}

async fn patch(
    source: &dyn ObjectSource,
    claim: &PersistentVolumeClaim,
    body: &Value,
) -> Result<(), SourceError> {
    let namespace = claim.metadata.namespace.clone().unwrap_or_default();
    let name = claim.metadata.name.clone().unwrap_or_default();
    source.patch_claim_status(&namespace, &name, body).await
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
