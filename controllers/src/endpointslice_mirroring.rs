//! The endpointslice-mirroring controller: the Endpoints that people write for Services without a selector, as EndpointSlices.
//!
//! Writes only slices that carry its own `managed-by` label. A subset of an Endpoints object becomes at most one slice an address
//! family; what is beyond `--mirroring-max-endpoints-per-subset` is left out, and an event says so.
//!
//! Upstream: pkg/controller/endpointslicemirroring, v1.36.

pub mod controller;
pub mod repack;
pub mod sync;

#[cfg(test)]
mod tests;

pub use controller::start;

/// The value of the label `endpointslice.kubernetes.io/managed-by` of our slices.
pub const CONTROLLER_NAME: &str = "endpointslicemirroring-controller.k8s.io";
