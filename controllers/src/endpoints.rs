//! The endpoints controller: the addresses behind a Service in one Endpoints object, for those who still read it.
//!
//! Writes only Endpoints of Services with a selector. Which pods count and which port they serve it takes from
//! [`crate::endpointslice`]. At most 1000 addresses: the rest is left out and the object says so.
//!
//! Upstream: pkg/controller/endpoint, v1.36.

pub mod controller;
pub mod sync;
mod written;

#[cfg(test)]
mod tests;

pub use controller::start;

/// The value of the label `endpoints.kubernetes.io/managed-by`.
pub const CONTROLLER_NAME: &str = "endpoint-controller";
/// Who writes the object.
pub const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
/// On a headless Service's Endpoints.
pub const IS_HEADLESS: &str = "service.kubernetes.io/headless";
/// `truncated` if addresses were left out.
pub const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
