//! Makes sure that every active namespace has the ServiceAccount `default`.
//!
//! Upstream: pkg/controller/serviceaccount/serviceaccounts_controller.go, v1.36.

mod controller;
mod sync;

pub use controller::start;
