//! The job controller: runs pods of a Job until enough have succeeded, or too many have failed.
//!
//! Every pod carries the finalizer [`TRACKING_FINALIZER`] until it is counted, so a pod that is deleted is not forgotten:
//!
//! ```text
//! decide -> create or delete pods -> track: UIDs into status.uncountedTerminatedPods -> write status
//!        -> take finalizers off -> settle: UIDs become numbers, the last one brings Complete or Failed -> write status
//! ```
//!
//! Upstream: pkg/controller/job, v1.36.
// DIFFERS: no Workload and PodGroup is made for a Job (behind a gate that is off upstream).

pub mod backoff;
pub mod condition;
pub mod controller;
pub mod decide;
pub mod decision;
pub mod index;
pub mod pods;
pub mod policy;
pub mod tracking;

#[cfg(test)]
mod tests;

pub use controller::start;

/// Off a pod once it is counted.
pub const TRACKING_FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// The index of a pod of an Indexed Job; label and annotation.
pub const COMPLETION_INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// How often the index has failed before this pod.
pub const INDEX_FAILURE_COUNT: &str = "batch.kubernetes.io/job-index-failure-count";
/// How often it has failed in a way that the policy ignores.
pub const INDEX_IGNORED_FAILURE_COUNT: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}
