//! The decision: which claims a Pod lacks, and which are somebody else's. Pure.

use component_helpers::owner_ref::{is_controlled_by, new_controller_ref};
use component_helpers::pod;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// A claim of the right name that another owns, or nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PVC {namespace}/{claim} was not created for pod {namespace}/{pod} (pod is not owner)")]
pub struct NotForPod {
    namespace: String,
    claim: String,
    pod: String,
}

/// Whether the Pod has a generic ephemeral volume and is not being deleted.
pub fn is_relevant(pod: &Pod) -> bool {
    !pod::is_terminating(pod) && volumes(pod).next().is_some()
}

/// The Pod's generic ephemeral volumes.
pub fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.filter(|v| v.ephemeral.is_some())
}

/// The name of a volume's claim.
pub fn volume_claim_name(pod: &Pod, volume: &Volume) -> String {
    format!("{}-{}", pod::name(pod), volume.name)
}

/// The claim to create for a volume; `None` when it is there.
///
/// # Errors
/// When a claim of the name is there that is not this Pod's; a retry helps once it is gone.
pub fn sync(
    pod: &Pod,
    volume: &Volume,
    existing: Option<&PersistentVolumeClaim>,
) -> Result<Option<PersistentVolumeClaim>, NotForPod> {
    if let Some(claim) = existing {
        return match is_controlled_by(&claim.metadata, pod::uid(pod)) {
            true => Ok(None),
            false => Err(NotForPod {
                namespace: pod::namespace(pod).to_owned(),
                claim: volume_claim_name(pod, volume),
                pod: pod::name(pod).to_owned(),
            }),
        };
    }
    let source = volume.ephemeral.as_ref();
    let Some(template) = source.and_then(|e| e.volume_claim_template.clone()) else {
        return Ok(None);
    };
    let meta = template.metadata.unwrap_or_default();
    Ok(Some(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(volume_claim_name(pod, volume)),
            namespace: pod.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            owner_references: Some(vec![new_controller_ref::<Pod>(&pod.metadata)]),
            ..ObjectMeta::default()
        },
        spec: Some(template.spec),
        status: None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(deleted: bool) -> Pod {
        let time = deleted.then_some("2026-01-01T00:00:00Z");
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "deletionTimestamp": time},
            "spec": {"containers": [], "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "v", "ephemeral": {
                "volumeClaimTemplate": {"metadata": {"labels": {"a": "b"}},
                    "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast"}}}}]}}))
        .unwrap()
    }

    #[test]
    fn relevance() {
        assert!(
            is_relevant(&pod(false)) && !is_relevant(&pod(true)) && !is_relevant(&Pod::default())
        );
    }

    #[test]
    fn claims() {
        let pod = pod(false);
        let volume = volumes(&pod).next().unwrap();
        let claim = sync(&pod, volume, None).unwrap().unwrap();
        let expect = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "p-v", "namespace": "ns", "labels": {"a": "b"}, "ownerReferences": [
                {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true, "blockOwnerDeletion": true}]},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast"}});
        assert_eq!(serde_json::to_value(&claim).unwrap(), expect);
        assert_eq!(sync(&pod, volume, Some(&claim)), Ok(None));
        let mut foreign = claim;
        foreign.metadata.owner_references = None;
        let error = sync(&pod, volume, Some(&foreign)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "PVC ns/p-v was not created for pod ns/p (pod is not owner)"
        );
    }
}
