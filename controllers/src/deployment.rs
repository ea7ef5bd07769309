//! The deployment controller: rolls a Deployment's pods over from one ReplicaSet to the next.
//!
//! Writes only ReplicaSets (create, scale, annotate, delete old ones) and the Deployment's own status and revision;
//! never a pod. [`sync`] decides; [`controller`] watches and carries out.
//!
//! ```text
//! deleted -> status only      paused, or replicas changed -> scale      rollback asked -> copy the old template
//! else -> Recreate: old down to 0, wait until their pods are gone, new up
//!      -> RollingUpdate: new up within maxSurge, old down within maxUnavailable, step by step
//! ```
//!
//! Upstream: pkg/controller/deployment, v1.36.

pub mod controller;
mod pass;
mod progress;
mod recreate;
mod replica_sets;
mod revision;
mod rolling;
mod scale;
pub mod sync;

#[cfg(test)]
mod tests;

pub use controller::start;
pub use sync::{Action, Notice, Observed, Plan, sync};

/// Condition types and reasons, and reasons of events, as users and kubectl know them.
pub mod reason {
    pub const AVAILABLE: &str = "Available";
    pub const PROGRESSING: &str = "Progressing";
    pub const REPLICA_FAILURE: &str = "ReplicaFailure";

    pub const REPLICA_SET_UPDATED: &str = "ReplicaSetUpdated";
    pub const FAILED_RS_CREATE: &str = "ReplicaSetCreateError";
    pub const NEW_REPLICA_SET: &str = "NewReplicaSetCreated";
    pub const FOUND_NEW_RS: &str = "FoundNewReplicaSet";
    pub const NEW_RS_AVAILABLE: &str = "NewReplicaSetAvailable";
    pub const TIMED_OUT: &str = "ProgressDeadlineExceeded";
    pub const PAUSED: &str = "DeploymentPaused";
    pub const RESUMED: &str = "DeploymentResumed";
    pub const MINIMUM_REPLICAS_AVAILABLE: &str = "MinimumReplicasAvailable";
    pub const MINIMUM_REPLICAS_UNAVAILABLE: &str = "MinimumReplicasUnavailable";

    pub const SCALING_REPLICA_SET: &str = "ScalingReplicaSet";
    pub const SELECTING_ALL: &str = "SelectingAll";
    pub const ROLLBACK_DONE: &str = "DeploymentRollback";
    pub const ROLLBACK_REVISION_NOT_FOUND: &str = "DeploymentRollbackRevisionNotFound";
    pub const ROLLBACK_TEMPLATE_UNCHANGED: &str = "DeploymentRollbackTemplateUnchanged";
}
