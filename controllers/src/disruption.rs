//! The disruption controller: writes into each PodDisruptionBudget how many of its pods may be evicted right now.
//!
//! The eviction API counts `disruptionsAllowed` down and notes the pod in `disruptedPods`; this loop counts everything anew, drops
//! notes that came to nothing, and closes the budget (`disruptionsAllowed: 0`) when it cannot count. A second queue takes back
//! `DisruptionTarget` from pods that nobody deleted.
//!
//! Upstream: pkg/controller/disruption, v1.36.
// DIFFERS: a pod that several budgets select wakes all of them, and one whose labels change also those that selected it before.
// DIFFERS: what fails by a request that may succeed later is tried again with back-off, after the budget was closed.

pub mod controller;
pub mod scale;
pub mod sync;

#[cfg(test)]
mod tests;

pub use controller::start;
