//! Evicts Pods whose devices have `NoExecute` taints, from ResourceSlices or DeviceTaintRules, that their claims do not tolerate; tells
//! in each rule's status what it does, or would do.
//!
//! Upstream: pkg/controller/devicetainteviction, v1.37.
//!
//! ```text
//! slices, rules, claims, pods ----> pod keys ----> eviction (pure, from the caches) ----> none: forgotten, "Cancelling deletion"
//!                      |                              `----> at a time: the key again then; over: condition, deletion
//!                      `----> rule keys ----> condition EvictionInProgress, at most every 10 s
//! ```
//!
//! DIFFERS: nothing is remembered of slices, rules and claims beside the caches; whatever changes, the Pods it may concern are
//! judged anew. Upstream keeps its own picture of them and updates it event by event.

mod controller;
mod rule_status;
mod sync;
#[cfg(test)]
mod tests;

pub use controller::{DEVICE_TAINT_RULES, DEVICE_TAINTS, start};
