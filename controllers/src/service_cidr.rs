//! The service-cidr controller: a ServiceCIDR stays, by a finalizer, while it alone holds the address of a Service.
//!
//! Says so in the condition `Ready`. A ServiceCIDR that may go waits ten seconds more, so that no API server allocates from it.
//!
//! Upstream: pkg/controller/servicecidrs and pkg/api/servicecidr, v1.36.

mod controller;
pub mod sync;

pub use controller::start;
