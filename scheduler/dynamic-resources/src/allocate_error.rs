//! [`AllocateError`]: why the claims of a pod get no devices, wherever the search comes upon it.
//!
//! Upstream: structured/internal/incubating/allocator_incubating.go, v1.37.

use k8s_openapi::api::resource::v1::ResourceClaim;

use crate::capacity::CapacityError;
use crate::pools::PlaceError;
use crate::request::Wanted;
use crate::selector::SelectorError;

/// Why claims cannot be allocated at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// Not on this node; others may do.
    #[error("invalid resource pools were encountered")]
    InvalidPools,
    /// The search was interrupted; a retry may help.
    #[error("filter operation aborted")]
    Interrupted,
    /// The claims together want more devices than are looked for at once. A retry does not help.
    #[error(
        "the claims of the pod ask for more devices and alternatives than {limit} steps of a search"
    )]
    TooDeep {
        /// How many steps deep a search may be.
        limit: usize,
    },
    /// A slice says a place that cannot be read.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A request that makes no sense, or asks for what is not there. A retry helps when its class changes.
    #[error("claim {claim}, request {request}: {reason}")]
    Request {
        /// `namespace/name`.
        claim: String,
        /// The request's name.
        request: String,
        /// What is wrong.
        reason: String,
    },
    /// A constraint of an unknown kind.
    #[error("claim {claim}, constraint #{index}: empty constraint (unsupported constraint type?)")]
    Constraint {
        /// `namespace/name`.
        claim: String,
        /// Its number, from 0.
        index: usize,
    },
    /// A selector of a class or claim that cannot be asked.
    #[error("{owner}: selector #{index}{}: {source}", on.as_ref().map(|d| format!(" on device {d}")).unwrap_or_default())]
    Selector {
        /// `class NAME` or `claim NAMESPACE/NAME`.
        owner: String,
        /// Its number, from 0.
        index: usize,
        /// The device, when it went wrong there.
        on: Option<String>,
        /// What went wrong.
        #[source]
        source: SelectorError,
    },
    /// Node selectors of slices that cannot be put together.
    #[error(
        "create NodeSelector for claim {claim}: unsupported ResourceSlice.NodeSelector with {terms} terms"
    )]
    NodeSelector {
        /// The claim's name.
        claim: String,
        /// How many terms there are.
        terms: usize,
    },
}

/// `namespace/name`.
pub(crate) fn claim_name(claim: &ResourceClaim) -> String {
    let meta = &claim.metadata;
    format!(
        "{}/{}",
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default()
    )
}

pub(crate) fn wrong(claim: &ResourceClaim, request: &str, reason: &str) -> AllocateError {
    AllocateError::Request {
        claim: claim_name(claim),
        request: request.to_owned(),
        reason: reason.to_owned(),
    }
}

pub(crate) fn wrong_capacity(
    claim: &ResourceClaim,
    wanted: &Wanted<'_>,
    device: &dyn std::fmt::Display,
    error: &CapacityError,
) -> AllocateError {
    let reason = format!("checking capacity for device {device}: {error}");
    wrong(claim, wanted.request.name, &reason)
}
