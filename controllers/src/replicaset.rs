//! The replicaset controller: keeps as many pods of a template as its ReplicaSet says.
//!
//! Creates, adopts, releases and deletes pods, and writes the ReplicaSet's status; never its spec. What it created or
//! deleted and has not seen yet it remembers as expectations, so a slow cache cannot make it act twice.
//!
//! Upstream: pkg/controller/replicaset, v1.36.

pub mod controller;
pub mod ranking;
pub mod sync;

#[cfg(test)]
mod tests;

pub use controller::start;
pub use sync::{Observed, Plan, sync};

/// Of the condition `ReplicaFailure` and of events.
pub mod reason {
    pub const REPLICA_FAILURE: &str = "ReplicaFailure";
    pub const FAILED_CREATE: &str = "FailedCreate";
    pub const SUCCESSFUL_CREATE: &str = "SuccessfulCreate";
    pub const FAILED_DELETE: &str = "FailedDelete";
    pub const SUCCESSFUL_DELETE: &str = "SuccessfulDelete";
}
