//! The cloud-node-lifecycle controller: deletes Nodes that are not ready and whose instances are gone, and taints those whose instances
//! are shut down.
//!
//! Upstream: k8s.io/cloud-provider/controllers/nodelifecycle, v0.37.

mod controller;
pub mod sync;
#[cfg(test)]
mod tests;

pub use controller::start;
