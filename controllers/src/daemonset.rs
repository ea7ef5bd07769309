//! The daemonset controller: one pod of a DaemonSet on every node that its template fits.
//!
//! Pods are pinned to their node by affinity and bound by the scheduler. Which nodes fit is asked of taints, node selector and node
//! affinity alone, never of resources.
//!
//! Upstream: pkg/controller/daemon, v1.36.
// DIFFERS: orphaned ControllerRevisions are not adopted, and several of one template are not merged.

pub mod backoff;
pub mod controller;
pub mod sync;

#[cfg(test)]
mod tests;

pub use controller::start;
