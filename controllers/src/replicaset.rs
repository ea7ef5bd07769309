//! The replicaset controller: keeps as many pods of a template as its ReplicaSet says; and the replicationcontroller
//! controller, which is the same for another [`kind`].
//!
//! Creates, adopts, releases and deletes pods, and writes the ReplicaSet's status; never its spec. What it created or
//! deleted and has not seen yet it remembers as expectations, so a slow cache cannot make it act twice.
//!
//! Upstream: pkg/controller/replicaset, v1.36.

pub mod controller;
pub mod kind;
pub mod ranking;
pub mod sync;

#[cfg(test)]
mod tests;

pub use sync::{Observed, Plan, sync};

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;

use crate::context::{ControllerContext, Running, StartError};

/// Starts the controller of ReplicaSets.
///
/// # Errors
/// When it has no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    controller::start::<ReplicaSet>(context).await
}

/// Starts the controller of ReplicationControllers.
///
/// # Errors
/// When it has no client.
pub async fn start_replication(context: ControllerContext) -> Result<Running, StartError> {
    controller::start::<ReplicationController>(context).await
}

/// Of the condition `ReplicaFailure` and of events.
pub mod reason {
    pub const REPLICA_FAILURE: &str = "ReplicaFailure";
    pub const FAILED_CREATE: &str = "FailedCreate";
    pub const SUCCESSFUL_CREATE: &str = "SuccessfulCreate";
    pub const FAILED_DELETE: &str = "FailedDelete";
    pub const SUCCESSFUL_DELETE: &str = "SuccessfulDelete";
}
