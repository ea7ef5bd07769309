//! The resourceclaim controller: makes the claims of a Pod's templates, reserves allocated claims for Pods that were bound without a
//! scheduler's help, and takes reservations, allocations and generated claims back when their Pods are done.
//!
//! Claims of pod groups (gates `GenericWorkload` and `DRAWorkloadResourceClaims`, off by default) are not built: such Pods are
//! refused in the log, as upstream does with the gates off. Upstream: pkg/controller/resourceclaim, v1.37.
//!
//! ```text
//! pod ----> claim from template ----> pod.status.resourceClaimStatuses ----> (scheduler: allocation, reservedFor)
//! pod done ----> reservedFor shrinks ----> none left: allocation and finalizer go ----> generated claim is deleted
//! ```

mod controller;
mod created;
mod metrics;
mod release;
mod sync;
#[cfg(test)]
mod tests;

pub use controller::start;
