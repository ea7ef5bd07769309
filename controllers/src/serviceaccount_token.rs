//! The serviceaccount-token controller: fills Secrets of the type `kubernetes.io/service-account-token`, and deletes those whose
//! ServiceAccount is gone.
//!
//! Acts with the process's own credentials, as upstream's does, and only with `--service-account-private-key-file`.
//!
//! Upstream: pkg/controller/serviceaccount/tokens_controller.go and pkg/serviceaccount/{jwt,legacy}.go, v1.36.
// DIFFERS: upstream starts it before all others, which wait for their tokens; ours ask for bound tokens instead.

mod controller;
pub mod sign;
pub mod sync;

pub use controller::start;
