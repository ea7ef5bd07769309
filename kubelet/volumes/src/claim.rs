//! Claims: from a pod's volume to the PersistentVolume behind it. Upstream: `getPVCExtractPV`, `getPVSpec` of
//! pkg/kubelet/volumemanager/populator, checkNodeAffinity of pkg/volume/util, v1.36.

use std::collections::BTreeMap;
use std::sync::Arc;

use component_helpers::affinity::NodeSelectorTerms;
use component_helpers::quantity::amount;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, Volume};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::layout::{InvalidName, check_component};
use crate::source::ObjectSource;

/// Why a claim gives no volume (yet). A retry may help.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("error processing PVC {namespace}/{claim}: failed to fetch PVC from API server: {why}")]
    NoClaim {
        namespace: String,
        claim: String,
        why: String,
    },
    #[error("error processing PVC {namespace}/{claim}: {why}")]
    NotReady {
        namespace: String,
        claim: String,
        why: &'static str,
    },
    #[error("PVC {namespace}/{claim} was not created for pod {namespace}/{pod} (pod is not owner)")]
    NotOwned {
        namespace: String,
        claim: String,
        pod: String,
    },
    #[error("failed to fetch PV {volume} from API server: {why}")]
    NoVolume { volume: String, why: String },
    #[error("found PV object {volume} with unexpected pvc.UID {found}, expected {expected}")]
    OtherClaim {
        volume: String,
        found: String,
        expected: String,
    },
    #[error("volume {volume} has volumeMode {mode}, but is specified in {field}")]
    Mode {
        volume: String,
        mode: &'static str,
        field: &'static str,
    },
    #[error(
        "MountVolume.NodeAffinity check failed for volume {0:?} : no matching NodeSelectorTerms"
    )]
    OtherNode(String),
    /// The claim is bound to what can be no volume. No retry helps.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
}

/// A volume of a pod whose claim is bound.
#[derive(Clone, Debug)]
pub(crate) struct Persistent {
    pub volume: Arc<PersistentVolume>,
    /// As the pod's volume says.
    pub read_only: bool,
    /// When it was looked up, the volume was larger than the claim's file system.
    pub outgrown: bool,
}

impl Persistent {
    /// Its own, and the name of its directories.
    pub fn name(&self) -> &str {
        self.volume.metadata.name.as_deref().unwrap_or_default()
    }

    /// Of a CSI volume.
    pub fn driver(&self) -> Option<&str> {
        let spec = self.volume.spec.as_ref()?;
        spec.csi.as_ref().map(|csi| csi.driver.as_str())
    }

    /// As the PersistentVolume has them.
    pub fn mount_options(&self) -> Vec<String> {
        let spec = self.volume.spec.as_ref();
        let options = spec.and_then(|s| s.mount_options.clone());
        options.unwrap_or_default()
    }

    /// Containers get it as a device.
    pub fn is_block(&self) -> bool {
        is_block(&self.volume)
    }

    /// The pod's volume with the source that is behind the claim, of the kinds that a pod can name, too.
    pub fn as_volume(&self, name: &str) -> Volume {
        let spec = self.volume.spec.as_ref();
        Volume {
            name: name.to_owned(),
            host_path: spec.and_then(|s| s.host_path.clone()),
            nfs: spec.and_then(|s| s.nfs.clone()),
            ..Volume::default()
        }
    }
}

fn is_block(volume: &PersistentVolume) -> bool {
    let spec = volume.spec.as_ref();
    spec.and_then(|s| s.volume_mode.as_deref()) == Some("Block")
}

/// The claim that a volume of a pod means: its name, and whether the pod wants it read-only. `None`: none.
pub(crate) fn claim_of(pod: &Pod, volume: &Volume) -> Option<(String, bool)> {
    if let Some(claim) = &volume.persistent_volume_claim {
        return Some((claim.claim_name.clone(), claim.read_only.unwrap_or(false)));
    }
    let template = volume.ephemeral.as_ref()?.volume_claim_template.as_ref();
    // Upstream: `ephemeral.VolumeClaimName`.
    template.map(|_| {
        let pod = pod.metadata.name.as_deref().unwrap_or_default();
        (format!("{pod}-{}", volume.name), false)
    })
}

/// The name of the volume that the claim is bound to.
fn bound_to<'a>(
    pod: &Pod,
    volume: &Volume,
    claim: &'a PersistentVolumeClaim,
) -> Result<&'a str, ClaimError> {
    let namespace = claim.metadata.namespace.clone().unwrap_or_default();
    let name = claim.metadata.name.clone().unwrap_or_default();
    if volume.ephemeral.is_some() {
        let owners = claim.metadata.owner_references.iter().flatten();
        let mut controllers = owners.filter(|owner| owner.controller == Some(true));
        let uid = pod.metadata.uid.as_deref();
        if !controllers.any(|owner| Some(owner.uid.as_str()) == uid) {
            return Err(ClaimError::NotOwned {
                namespace,
                claim: name,
                pod: pod.metadata.name.clone().unwrap_or_default(),
            });
        }
    }
    // One that runs had its volume before the deletion; this kubelet may have been started since.
    let runs = pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
    let why = if claim.metadata.deletion_timestamp.is_some() && !runs {
        "PVC is being deleted"
    } else {
        let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
        let volume = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref());
        match (phase, volume) {
            (Some("Bound"), Some(volume)) if !volume.is_empty() => return Ok(volume),
            _ => "PVC is not bound",
        }
    };
    Err(ClaimError::NotReady {
        namespace,
        claim: name,
        why,
    })
}

/// Whether the volume is this claim's, of the mode that containers want, and to be had from this node.
fn check(
    volume: &PersistentVolume,
    claim: &PersistentVolumeClaim,
    used: Used,
    node: Option<&Node>,
) -> Result<(), ClaimError> {
    let name = volume.metadata.name.clone().unwrap_or_default();
    let spec = volume.spec.as_ref();
    let of = |uid: &Option<String>| uid.clone().unwrap_or_default();
    let found = spec.and_then(|s| s.claim_ref.as_ref());
    let (found, expected) = (
        found.map_or(String::new(), |c| of(&c.uid)),
        of(&claim.metadata.uid),
    );
    if found != expected {
        return Err(ClaimError::OtherClaim {
            volume: name,
            found,
            expected,
        });
    }
    let (mode, field) = match is_block(volume) {
        true if used.mounted => ("Block", "volumeMounts"),
        false if used.as_device => ("Filesystem", "volumeDevices"),
        _ => ("", ""),
    };
    if !mode.is_empty() {
        return Err(ClaimError::Mode {
            volume: name,
            mode,
            field,
        });
    }
    let required = spec
        .and_then(|s| s.node_affinity.as_ref())
        .and_then(|affinity| affinity.required.as_ref());
    if let Some(selector) = required {
        let empty = std::collections::BTreeMap::new();
        let metadata = node.map(|node| &node.metadata);
        let labels = metadata.and_then(|m| m.labels.as_ref()).unwrap_or(&empty);
        let node_name = metadata.and_then(|m| m.name.as_deref()).unwrap_or_default();
        if !NodeSelectorTerms::new(selector).matches(node_name, labels) {
            return Err(ClaimError::OtherNode(name));
        }
    }
    Ok(())
}

fn outgrown(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let capacity = volume.spec.as_ref().and_then(|s| s.capacity.as_ref());
    let current = claim.status.as_ref().and_then(|s| s.capacity.as_ref());
    let of =
        |list: Option<&BTreeMap<String, Quantity>>| list.and_then(|l| l.get("storage")).map(amount);
    of(capacity) > of(current)
}

/// How containers use a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    pub mounted: bool,
    pub as_device: bool,
}

/// Asks the API server for the claim and its volume.
///
/// # Errors
/// There is none, or it is not to be used yet, or not here.
pub(crate) async fn resolve(
    source: &dyn ObjectSource,
    pod: &Pod,
    volume: &Volume,
    (claim, read_only): (&str, bool),
    used: Used,
) -> Result<Persistent, ClaimError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let no_claim = |why: String| ClaimError::NoClaim {
        namespace: namespace.to_owned(),
        claim: claim.to_owned(),
        why,
    };
    let found = source
        .claim(namespace, claim)
        .await
        .map_err(|error| no_claim(error.to_string()))?
        .ok_or_else(|| no_claim(format!("persistentvolumeclaims {claim:?} not found")))?;
    let name = bound_to(pod, volume, &found)?;
    check_component("spec.volumeName", name)?;
    let no_volume = |why: String| ClaimError::NoVolume {
        volume: name.to_owned(),
        why,
    };
    let behind = source
        .persistent_volume(name)
        .await
        .map_err(|error| no_volume(error.to_string()))?
        .ok_or_else(|| no_volume(format!("persistentvolumes {name:?} not found")))?;
    check(&behind, &found, used, source.node().as_deref())?;
    Ok(Persistent {
        outgrown: outgrown(&behind, &found),
        volume: behind,
        read_only,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of<T: k8s_openapi::serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn volumes_that_mean_a_claim() {
        let pod: Pod = of(json!({"metadata": {"name": "web-0"}}));
        for (volume, expected) in [
            (json!({"emptyDir": {}}), None),
            (
                json!({"persistentVolumeClaim": {"claimName": "data"}}),
                Some(("data", false)),
            ),
            (
                json!({"persistentVolumeClaim": {"claimName": "data", "readOnly": true}}),
                Some(("data", true)),
            ),
            (json!({"ephemeral": {}}), None),
            (
                json!({"ephemeral": {"volumeClaimTemplate": {"spec": {}}}}),
                Some(("web-0-v", false)),
            ),
        ] {
            let mut volume: Volume = of(volume);
            volume.name = "v".to_owned();
            let expected = expected.map(|(name, read_only)| (name.to_owned(), read_only));
            assert_eq!(claim_of(&pod, &volume), expected);
        }
    }

    #[test]
    fn a_claim_is_used_once_it_is_bound() {
        let pod: Pod = of(json!({"metadata": {"name": "p", "uid": "1"}}));
        let plain: Volume = of(json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}}));
        let ephemeral: Volume =
            of(json!({"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}));
        let owner = |uid: &str| json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": true}]);
        let bound = json!({"phase": "Bound"});
        for (volume, claim, expected) in [
            (
                &plain,
                json!({"spec": {"volumeName": "pv"}, "status": bound}),
                Ok("pv"),
            ),
            (
                &plain,
                json!({"spec": {"volumeName": "pv"}, "status": {"phase": "Pending"}}),
                Err("PVC is not bound"),
            ),
            (
                &plain,
                json!({"spec": {}, "status": bound}),
                Err("PVC is not bound"),
            ),
            (
                &plain,
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"volumeName": "pv"}, "status": bound}),
                Err("PVC is being deleted"),
            ),
            (
                &ephemeral,
                json!({"spec": {"volumeName": "pv"}, "status": bound}),
                Err("pod is not owner"),
            ),
            (
                &ephemeral,
                json!({"metadata": {"ownerReferences": owner("2")}, "spec": {"volumeName": "pv"}, "status": bound}),
                Err("pod is not owner"),
            ),
            (
                &ephemeral,
                json!({"metadata": {"ownerReferences": owner("1")}, "spec": {"volumeName": "pv"}, "status": bound}),
                Ok("pv"),
            ),
        ] {
            let claim: PersistentVolumeClaim = of(claim);
            match (bound_to(&pod, volume, &claim), expected) {
                (Ok(name), Ok(expected)) => assert_eq!(name, expected),
                (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
                (got, expected) => panic!("{got:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn a_volume_is_the_claims_own_and_of_this_node() {
        let claim: PersistentVolumeClaim = of(json!({"metadata": {"uid": "1"}}));
        let node: Node = of(json!({"metadata": {"name": "n", "labels": {"zone": "a"}}}));
        let affinity = |zone: &str| {
            json!({"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]}
            ]}})
        };
        let (mounted, device) = (
            Used {
                mounted: true,
                as_device: false,
            },
            Used {
                mounted: false,
                as_device: true,
            },
        );
        for (used, mode, expected) in [
            (mounted, "Filesystem", None),
            (device, "Block", None),
            (
                mounted,
                "Block",
                Some("has volumeMode Block, but is specified in volumeMounts"),
            ),
            (
                device,
                "Filesystem",
                Some("has volumeMode Filesystem, but is specified in volumeDevices"),
            ),
        ] {
            let volume: PersistentVolume =
                of(json!({"spec": {"claimRef": {"uid": "1"}, "volumeMode": mode}}));
            let told = check(&volume, &claim, used, None)
                .err()
                .map(|e| e.to_string());
            match (&told, expected) {
                (None, None) => {}
                (Some(told), Some(words)) => assert!(told.contains(words), "{told}"),
                _ => panic!("{told:?}, not {expected:?}"),
            }
        }
        for (spec, expected) in [
            (json!({"claimRef": {"uid": "1"}}), None),
            (
                json!({"claimRef": {"uid": "2"}}),
                Some("unexpected pvc.UID 2, expected 1"),
            ),
            (json!({}), Some("unexpected pvc.UID , expected 1")),
            (
                json!({"claimRef": {"uid": "1"}, "nodeAffinity": affinity("a")}),
                None,
            ),
            (
                json!({"claimRef": {"uid": "1"}, "nodeAffinity": affinity("b")}),
                Some("no matching NodeSelectorTerms"),
            ),
        ] {
            let volume: PersistentVolume = of(json!({"metadata": {"name": "pv"}, "spec": spec}));
            let told = check(&volume, &claim, mounted, Some(&node))
                .err()
                .map(|e| e.to_string());
            match (&told, expected) {
                (None, None) => {}
                (Some(told), Some(words)) => assert!(told.contains(words), "{told}"),
                _ => panic!("{told:?}, not {expected:?}"),
            }
        }
    }
}
