//! The decisions about a claim: which of its users are gone, and what goes with the last of them. Pure.

use component_helpers::owner_ref::get_controller_of;
use component_helpers::pod;
use component_helpers::resource_claim::{FINALIZER, is_allocated, is_pod_consumer, reserved_for};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference};

use super::sync::is_done;

/// What becomes of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It stays: the Pod may run, or the user is of a kind that is not known here.
    Keep,
    /// The Pod is done, gone, or replaced by a namesake.
    Drop,
    /// Nobody here has seen the Pod. The cache may be late, and a reservation the scheduler just made must not be undone: only the
    /// server knows.
    Ask,
}

/// What becomes of one reservation; `deleted` says that the Pod of this uid was seen to go.
pub(super) fn verdict(
    consumer: &ResourceClaimConsumerReference,
    deleted: bool,
    cached: Option<&Pod>,
) -> Verdict {
    if !is_pod_consumer(consumer) {
        return Verdict::Keep;
    }
    match cached {
        _ if deleted => Verdict::Drop,
        None => Verdict::Ask,
        Some(pod) if pod::uid(pod) != consumer.uid || is_done(pod) => Verdict::Drop,
        Some(_) => Verdict::Keep,
    }
}

fn has_finalizer(claim: &ResourceClaim) -> bool {
    let finalizers = claim.metadata.finalizers.as_ref();
    finalizers.is_some_and(|all| all.iter().any(|f| f == FINALIZER))
}

/// The claim to write when its users have become `remaining`; `None` when its status is right.
///
/// With the last user goes the allocation, so that the next one is not bound to the node of the one before; a claim that was never
/// used stays allocated until it is deleted.
pub(super) fn released(
    claim: &ResourceClaim,
    remaining: Vec<ResourceClaimConsumerReference>,
) -> Option<ResourceClaim> {
    let last = remaining.is_empty() && has_finalizer(claim);
    let fewer = remaining.len() < reserved_for(claim).len();
    let unwanted = last && claim.metadata.deletion_timestamp.is_some() && is_allocated(claim);
    if !fewer && !unwanted {
        return None;
    }
    let mut claim = claim.clone();
    let status = claim.status.get_or_insert_default();
    status.reserved_for = Some(remaining).filter(|all| !all.is_empty());
    if last {
        status.allocation = None;
    }
    Some(claim)
}

/// The claim without the control plane's finalizer; `None` when it has none, or still needs it. `released` says that this round
/// took users or the allocation away; otherwise only a claim that is to be deleted loses its finalizer.
pub(super) fn without_finalizer(claim: &ResourceClaim, released: bool) -> Option<ResourceClaim> {
    let unused = !is_allocated(claim)
        && (released
            || claim.metadata.deletion_timestamp.is_some() && reserved_for(claim).is_empty());
    if !unused || !has_finalizer(claim) {
        return None;
    }
    let mut claim = claim.clone();
    let finalizers = claim.metadata.finalizers.get_or_insert_default();
    finalizers.retain(|finalizer| finalizer != FINALIZER);
    Some(claim)
}

/// The name and uid of the Pod a claim was made for.
pub(super) fn owning_pod(claim: &ResourceClaim) -> Option<(&str, &str)> {
    let owner = get_controller_of(&claim.metadata)?;
    (owner.api_version == "v1" && owner.kind == "Pod").then_some((&*owner.name, &*owner.uid))
}

/// Whether a claim was made for a Pod that will not run: it is done, or its name is another's. A Pod that is not in the cache may be
/// one not seen yet; the garbage collector deletes the claim when it is truly gone.
pub(super) fn is_left_over(claim: &ResourceClaim, cached: Option<&Pod>) -> bool {
    let (Some((_, uid)), Some(pod)) = (owning_pod(claim), cached) else {
        return false;
    };
    pod::uid(pod) != uid || is_done(pod)
}
