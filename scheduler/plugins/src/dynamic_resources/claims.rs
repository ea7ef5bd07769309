//! The claims a pod names, as they are now.

use std::sync::Arc;

use component_helpers::pod;
use component_helpers::resource_claim::{
    NameError, NotForPod, claim_name, entries, is_for_pod, is_reserved_for_pod,
};
use framework::devices::DeviceState;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceRequest, DeviceRequestAllocationResult, ResourceClaim,
};

/// Why a pod has to wait for its claims.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClaimsError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("could not find ResourceClaim \"{0}\"")]
    NotFound(String),
    #[error("resourceclaim {0:?} is being deleted")]
    Deleted(String),
    #[error(transparent)]
    NotForPod(#[from] NotForPod),
}

/// The claims of `spec.resourceClaims`; entries that need none are left out.
///
/// # Errors
/// When one is not there or cannot be used.
pub(super) fn of_pod(
    devices: &DeviceState,
    pod: &Pod,
) -> Result<Vec<Arc<ResourceClaim>>, ClaimsError> {
    let mut found = Vec::new();
    for entry in entries(pod) {
        let Some(named) = claim_name(pod, entry)? else {
            continue;
        };
        let namespace = pod::namespace(pod);
        let Some(claim) = devices.claim(namespace, named.name) else {
            return Err(ClaimsError::NotFound(format!("{namespace}/{}", named.name)));
        };
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(ClaimsError::Deleted(named.name.to_owned()));
        }
        if named.must_be_owned {
            is_for_pod(pod, claim)?;
        }
        found.push(Arc::clone(claim));
    }
    Ok(found)
}

pub(super) fn uid(claim: &ResourceClaim) -> &str {
    claim.metadata.uid.as_deref().unwrap_or_default()
}

pub(super) fn name(claim: &ResourceClaim) -> &str {
    claim.metadata.name.as_deref().unwrap_or_default()
}

pub(super) fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}

pub(super) fn requests(claim: &ResourceClaim) -> &[DeviceRequest] {
    let devices = claim.spec.as_ref().and_then(|s| s.devices.as_ref());
    devices
        .and_then(|d| d.requests.as_deref())
        .unwrap_or_default()
}

pub(super) fn results(allocation: &AllocationResult) -> &[DeviceRequestAllocationResult] {
    let devices = allocation.devices.as_ref();
    devices
        .and_then(|d| d.results.as_deref())
        .unwrap_or_default()
}

/// Reserved for nobody, or for this pod alone?
pub(super) fn is_for_nobody_else(claim: &ResourceClaim, pod: &Pod) -> bool {
    let reserved = component_helpers::resource_claim::reserved_for(claim);
    reserved.is_empty() || reserved.len() == 1 && is_reserved_for_pod(pod, claim)
}
