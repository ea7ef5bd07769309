//! The namespace controller: empties a namespace that is being deleted, then takes its finalizer away.
//!
//! Pods go first, so that nothing that keeps them safe (a NetworkPolicy, a quota) goes before they do. Then everything
//! else that discovery knows. What remains, and why, is told by conditions of the namespace.
//!
//! ```text
//! deleted -> phase Terminating -> pods gone -> all gone -> finalizer "kubernetes" removed -> gone
//!                 (wait half of what the pods' grace periods or foreign finalizers may take)
//! ```
//!
//! Upstream: pkg/controller/namespace, v1.36.

pub mod controller;
mod deleter;
pub mod sync;

#[cfg(test)]
mod tests;

pub use controller::start;

/// The finalizer of every namespace that this controller owns.
pub const FINALIZER: &str = "kubernetes";
