//! The endpointslice controller: which pods stand behind a Service, in slices of at most 100 endpoints.
//!
//! Writes only EndpointSlices that carry its own `managed-by` label. [`sync`] packs endpoints as upstream does: it changes
//! as few slices as it can, fills those it has to change anyway, and never moves an endpoint just to save a slice.
//!
//! Upstream: pkg/controller/endpointslice and k8s.io/endpointslice, v1.36.
// DIFFERS: the deprecated annotation `service.kubernetes.io/topology-mode: Auto` gives no hints;
// `spec.trafficDistribution`, its successor, does.

pub mod controller;
pub(crate) mod endpoint;
pub mod plan;
pub mod sync;
pub(crate) mod tracker;
mod traffic;
pub(crate) mod trigger_time;

#[cfg(test)]
mod tests;

pub use controller::start;
pub use plan::Plan;
pub use sync::{Observed, sync};

/// The value of the label `endpointslice.kubernetes.io/managed-by` of our slices.
pub const CONTROLLER_NAME: &str = "endpointslice-controller.k8s.io";

pub mod label {
    pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
    pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
    pub const IS_HEADLESS: &str = "service.kubernetes.io/headless";
    pub const ZONE: &str = "topology.kubernetes.io/zone";
}

/// When the change happened that a slice tells of; programmers of network latency read it.
pub const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
