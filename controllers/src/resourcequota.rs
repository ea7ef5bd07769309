//! The resourcequota controller: writes into each ResourceQuota what its namespace uses.
//!
//! Admission in the API server counts up as objects are made; this loop counts what went away, and everything anew every five minutes (`--resource-quota-sync-period`).
//!
//! Upstream: pkg/controller/resourcequota and pkg/quota/v1/evaluator/core, v1.37.

pub mod controller;
pub mod devices;
pub mod monitors;
pub mod sync;

#[cfg(test)]
mod tests;

pub use controller::start;
