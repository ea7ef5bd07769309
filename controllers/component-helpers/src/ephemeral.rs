//! Generic ephemeral volumes: the claim that is made for a pod's volume.
//!
//! Upstream: k8s.io/component-helpers/storage/ephemeral, v1.36.

use std::fmt;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};

use crate::owner_ref::is_controlled_by;

/// The name of the claim of a pod's ephemeral volume.
pub fn claim_name(pod: &Pod, volume: &Volume) -> String {
    let pod = pod.metadata.name.as_deref().unwrap_or_default();
    format!("{pod}-{}", volume.name)
}

/// Was the claim made for the pod?
///
/// # Errors
/// When it was not: somebody else's claim has the name.
pub fn volume_is_for_pod(pod: &Pod, claim: &PersistentVolumeClaim) -> Result<(), NotOwnerError> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    if claim.metadata.namespace == pod.metadata.namespace && is_controlled_by(&claim.metadata, uid)
    {
        return Ok(());
    }
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    Err(NotOwnerError {
        claim_namespace: text(&claim.metadata.namespace),
        claim: text(&claim.metadata.name),
        pod_namespace: text(&pod.metadata.namespace),
        pod: text(&pod.metadata.name),
    })
}

/// A claim has the name of a pod's ephemeral volume and is not the pod's. Displays as upstream says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotOwnerError {
    /// The claim's namespace.
    pub claim_namespace: String,
    /// The claim.
    pub claim: String,
    /// The pod's namespace.
    pub pod_namespace: String,
    /// The pod.
    pub pod: String,
}

impl fmt::Display for NotOwnerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "PVC {}/{} was not created for pod {}/{} (pod is not owner)",
            self.claim_namespace, self.claim, self.pod_namespace, self.pod
        )
    }
}

impl std::error::Error for NotOwnerError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owner_ref::new_controller_ref;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    #[test]
    fn a_claim_is_its_pods() {
        let meta = |name: &str| ObjectMeta {
            name: Some(name.into()),
            namespace: Some("ns".into()),
            uid: Some(format!("uid-{name}")),
            ..ObjectMeta::default()
        };
        let pod = Pod {
            metadata: meta("p"),
            ..Pod::default()
        };
        let volume = Volume {
            name: "scratch".into(),
            ..Volume::default()
        };
        let mut claim = PersistentVolumeClaim {
            metadata: meta(&claim_name(&pod, &volume)),
            ..PersistentVolumeClaim::default()
        };
        assert_eq!(
            volume_is_for_pod(&pod, &claim).map_err(|e| e.to_string()),
            Err("PVC ns/p-scratch was not created for pod ns/p (pod is not owner)".to_owned())
        );
        claim.metadata.owner_references = Some(vec![new_controller_ref::<Pod>(&pod.metadata)]);
        assert_eq!(volume_is_for_pod(&pod, &claim), Ok(()));
    }
}
