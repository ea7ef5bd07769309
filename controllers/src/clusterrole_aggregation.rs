//! Fills ClusterRoles that have an `aggregationRule` (`admin`, `edit`, `view`, …) with the rules of those it selects.
//!
//! Upstream: pkg/controller/clusterroleaggregation, v1.36.

mod controller;
mod sync;

pub use controller::start;
