//! The horizontal-pod-autoscaler controller: how many pods the target of a HorizontalPodAutoscaler should have, by metrics.
//!
//! ```text
//! spec, scale, pods, metrics -> calculator.rs (replicas of one metric) -> evaluate.rs (status and errors of one metric)
//!                            -> behavior.rs (rates, windows) -> sync.rs (what to do and to say) -> controller.rs -> API
//! ```
//!
//! Upstream: pkg/controller/podautoscaler, v1.37.
// DIFFERS: a sync that fails is done again after the sync period like any other; upstream does the same by a rate limiter. Reading a scale of
// another version of its kind is tried only with the version the server prefers.

pub mod behavior;
pub mod calculator;
mod controller;
pub mod evaluate;
pub mod metrics_api;
mod monitor;
mod reader;
pub mod sync;

#[cfg(test)]
mod tests;
mod writes;

pub use controller::{CONSISTENCY, GENERATION, SCALE_TO_ZERO, start};
