//! ResourceClaims of pods: which claim an entry of a pod means, whose it is, who may use it, and which taints of devices it
//! tolerates.
//!
//! Claims of pod groups (the gate `DRAWorkloadResourceClaims`, off by default) are not known here.
//! Upstream: k8s.io/dynamic-resource-allocation/resourceclaim, v1.37.

use std::fmt;

use k8s_openapi::api::core::v1::{
    Pod, PodExtendedResourceClaimStatus, PodResourceClaim, PodResourceClaimStatus,
};
use k8s_openapi::api::resource::v1::{
    DeviceRequestAllocationResult, DeviceTaint, DeviceToleration, ResourceClaim,
    ResourceClaimConsumerReference,
};

use crate::owner_ref::is_controlled_by;
use crate::pod;

/// On an allocated claim; only the control plane takes it off.
pub const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// On a claim that the scheduler made for extended resources; its one value is `true`.
pub const EXTENDED_RESOURCE_CLAIM_ANNOTATION: &str =
    "resource.kubernetes.io/extended-resource-claim";
/// On a claim made from a template: the name of the entry in the pod's `spec.resourceClaims`.
pub const POD_RESOURCE_CLAIM_ANNOTATION: &str = "resource.kubernetes.io/pod-claim-name";

/// Why an entry of a pod has no claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameError {
    /// The claim is still to be made from its template.
    NotCreated {
        /// `namespace/name`.
        pod: String,
    },
    /// The entry has neither a claim nor a template: it says something newer than this build.
    Unsupported {
        /// `namespace/name`.
        pod: String,
        /// The entry.
        claim: String,
    },
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotCreated { pod } => write!(f, "pod {pod:?}: ResourceClaim not created yet"),
            Self::Unsupported { pod, claim } => write!(
                f,
                "pod {pod:?}, spec.resourceClaim {claim:?}: none of the supported fields are set"
            ),
        }
    }
}

impl std::error::Error for NameError {}

/// A claim a pod refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimName<'a> {
    /// In the pod's namespace.
    pub name: &'a str,
    /// Whether the claim counts only when the pod owns it ([`is_for_pod`]): it was made for the pod.
    pub must_be_owned: bool,
}

/// The claim an entry of `spec.resourceClaims` means; `None` where it was found that no claim is needed.
///
/// # Errors
/// When it is not made yet, or the entry is not understood.
pub fn claim_name<'a>(
    pod: &'a Pod,
    entry: &'a PodResourceClaim,
) -> Result<Option<ClaimName<'a>>, NameError> {
    if let Some(name) = &entry.resource_claim_name {
        return Ok(Some(ClaimName {
            name,
            must_be_owned: false,
        }));
    }
    if entry.resource_claim_template_name.is_none() {
        return Err(NameError::Unsupported {
            pod: pod::key(pod),
            claim: entry.name.clone(),
        });
    }
    match statuses(pod).iter().find(|s| s.name == entry.name) {
        Some(status) => Ok(status.resource_claim_name.as_deref().map(|name| ClaimName {
            name,
            must_be_owned: true,
        })),
        None => Err(NameError::NotCreated { pod: pod::key(pod) }),
    }
}

/// The entries of `spec.resourceClaims`.
pub fn entries(pod: &Pod) -> &[PodResourceClaim] {
    let spec = pod.spec.as_ref();
    spec.and_then(|s| s.resource_claims.as_deref())
        .unwrap_or_default()
}

/// `status.resourceClaimStatuses`.
pub fn statuses(pod: &Pod) -> &[PodResourceClaimStatus] {
    let status = pod.status.as_ref();
    status
        .and_then(|s| s.resource_claim_statuses.as_deref())
        .unwrap_or_default()
}

/// `status.extendedResourceClaimStatus`.
pub fn extended_status(pod: &Pod) -> Option<&PodExtendedResourceClaimStatus> {
    pod.status.as_ref()?.extended_resource_claim_status.as_ref()
}

/// All claims a pod refers to, the one for extended resources last; entries without a claim are left out.
pub fn pod_claims(pod: &Pod) -> impl Iterator<Item = ClaimName<'_>> {
    let named = entries(pod)
        .iter()
        .filter_map(|entry| claim_name(pod, entry).ok().flatten());
    let extended = extended_status(pod)
        .map(|status| status.resource_claim_name.as_str())
        .filter(|name| !name.is_empty())
        .map(|name| ClaimName {
            name,
            must_be_owned: true,
        });
    named.chain(extended)
}

/// A claim of the right name that was not made for the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotForPod {
    claim: String,
    pod: String,
}

impl fmt::Display for NotForPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { claim, pod } = self;
        write!(
            f,
            "ResourceClaim {claim} was not created for Pod {pod} (Pod is not owner)"
        )
    }
}

impl std::error::Error for NotForPod {}

/// Whether a claim was made for the pod.
///
/// # Errors
/// When the pod does not control the claim.
pub fn is_for_pod(pod: &Pod, claim: &ResourceClaim) -> Result<(), NotForPod> {
    if claim.metadata.namespace == pod.metadata.namespace
        && is_controlled_by(&claim.metadata, pod::uid(pod))
    {
        return Ok(());
    }
    let meta = &claim.metadata;
    Err(NotForPod {
        claim: format!(
            "{}/{}",
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default()
        ),
        pod: pod::key(pod),
    })
}

/// Who may use the claim now.
pub fn reserved_for(claim: &ResourceClaim) -> &[ResourceClaimConsumerReference] {
    let status = claim.status.as_ref();
    status
        .and_then(|s| s.reserved_for.as_deref())
        .unwrap_or_default()
}

/// Whether the pod may use the claim now.
pub fn is_reserved_for_pod(pod: &Pod, claim: &ResourceClaim) -> bool {
    reserved_for(claim)
        .iter()
        .any(|consumer| consumer.uid == pod::uid(pod))
}

/// Whether devices were chosen for the claim.
pub fn is_allocated(claim: &ResourceClaim) -> bool {
    claim
        .status
        .as_ref()
        .is_some_and(|s| s.allocation.is_some())
}

/// The devices chosen for the claim.
pub fn allocated_devices(claim: &ResourceClaim) -> &[DeviceRequestAllocationResult] {
    let allocation = claim.status.as_ref().and_then(|s| s.allocation.as_ref());
    allocation
        .and_then(|a| a.devices.as_ref())
        .and_then(|d| d.results.as_deref())
        .unwrap_or_default()
}

/// The reservation of a claim for the pod.
pub fn consumer(pod: &Pod) -> ResourceClaimConsumerReference {
    ResourceClaimConsumerReference {
        api_group: None,
        resource: "pods".to_owned(),
        name: pod::name(pod).to_owned(),
        uid: pod::uid(pod).to_owned(),
    }
}

/// Whether a reservation is for a pod.
pub fn is_pod_consumer(consumer: &ResourceClaimConsumerReference) -> bool {
    consumer.api_group.as_deref().unwrap_or_default().is_empty() && consumer.resource == "pods"
}

/// Whether the claim asks for administrative access to a device.
pub fn has_admin_access(claim: &ResourceClaim) -> bool {
    let devices = claim.spec.as_ref().and_then(|s| s.devices.as_ref());
    let requests = devices.and_then(|d| d.requests.as_deref());
    requests.unwrap_or_default().iter().any(|request| {
        request
            .exactly
            .as_ref()
            .is_some_and(|e| e.admin_access == Some(true))
    })
}

/// Whether a toleration covers a taint of a device. What the taint's effect does is for the caller to know.
pub fn tolerates_taint(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => {
            toleration.value.as_deref().unwrap_or_default()
                == taint.value.as_deref().unwrap_or_default()
        }
        "Exists" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::serde_json::{Value, from_value, json};

    fn pod(status: Value) -> Pod {
        let object = json!({ "metadata": { "name": "p", "namespace": "ns", "uid": "u" }, "spec": { "containers": [],
            "resourceClaims": [{ "name": "own", "resourceClaimName": "given" }, { "name": "made", "resourceClaimTemplateName": "t" },
                { "name": "new" }] }, "status": status });
        from_value(object).unwrap()
    }

    #[test]
    fn names() {
        let empty = pod(json!({}));
        let name = |pod: &Pod, index: usize| {
            let found = claim_name(pod, &entries(pod)[index]);
            found
                .map(|found| found.map(|c| (c.name.to_owned(), c.must_be_owned)))
                .map_err(|error| error.to_string())
        };
        assert_eq!(name(&empty, 0), Ok(Some(("given".into(), false))));
        let missing = "pod \"ns/p\": ResourceClaim not created yet";
        assert_eq!(name(&empty, 1), Err(missing.into()));
        let unknown =
            "pod \"ns/p\", spec.resourceClaim \"new\": none of the supported fields are set";
        assert_eq!(name(&empty, 2), Err(unknown.into()));
        assert_eq!(pod_claims(&empty).count(), 1);
        let not_needed = pod(json!({ "resourceClaimStatuses": [{ "name": "made" }] }));
        assert_eq!(name(&not_needed, 1), Ok(None));
        let full = pod(
            json!({ "resourceClaimStatuses": [{ "name": "made", "resourceClaimName": "p-made-x" }],
            "extendedResourceClaimStatus": { "resourceClaimName": "p-ext", "requestMappings": [] } }),
        );
        let all: Vec<_> = pod_claims(&full)
            .map(|c| (c.name, c.must_be_owned))
            .collect();
        assert_eq!(all, [("given", false), ("p-made-x", true), ("p-ext", true)]);
    }

    #[test]
    fn ownership_and_reservation() {
        let pod = pod(json!({}));
        let mut claim: ResourceClaim =
            from_value(json!({ "metadata": { "name": "c", "namespace": "ns" }, "spec": {} }))
                .unwrap();
        let error = is_for_pod(&pod, &claim).unwrap_err();
        assert_eq!(
            error.to_string(),
            "ResourceClaim ns/c was not created for Pod ns/p (Pod is not owner)"
        );
        claim.metadata.owner_references = Some(vec![crate::owner_ref::new_controller_ref::<Pod>(
            &pod.metadata,
        )]);
        assert_eq!(is_for_pod(&pod, &claim), Ok(()));
        claim.metadata.namespace = Some("other".into());
        assert!(is_for_pod(&pod, &claim).is_err());
        assert!(!is_reserved_for_pod(&pod, &claim));
        claim.status = Some(Default::default());
        claim.status.as_mut().unwrap().reserved_for = Some(vec![consumer(&pod)]);
        assert!(is_reserved_for_pod(&pod, &claim) && is_pod_consumer(&consumer(&pod)));
    }

    #[test]
    fn tolerations() {
        let taint: DeviceTaint =
            from_value(json!({ "key": "k", "value": "v", "effect": "NoExecute" })).unwrap();
        let check = |toleration: Value, expect: bool| {
            let parsed = from_value(toleration.clone()).unwrap();
            assert_eq!(tolerates_taint(&parsed, &taint), expect, "{toleration}");
        };
        check(json!({}), false);
        check(json!({ "operator": "Exists" }), true);
        check(
            json!({ "operator": "Exists", "effect": "NoSchedule" }),
            false,
        );
        check(json!({ "key": "k", "value": "v" }), true);
        check(
            json!({ "key": "k", "value": "w", "operator": "Equal" }),
            false,
        );
        check(json!({ "key": "other", "operator": "Exists" }), false);
        check(
            json!({ "key": "k", "operator": "Exists", "effect": "NoExecute" }),
            true,
        );
        check(
            json!({ "key": "k", "value": "v", "operator": "Newer" }),
            false,
        );
    }
}
