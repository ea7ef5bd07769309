//! The ephemeral-volume controller: makes the claim of each generic ephemeral volume of a Pod, owned by the Pod.
//!
//! The garbage collector deletes it with the Pod. Upstream: pkg/controller/volume/ephemeral, v1.36.

mod controller;
pub mod sync;

pub use controller::start;
