//! Pure rules of the Kubernetes API that every binary needs: what a quantity means, whether a selector matches, what a
//! pod requests, which taints it tolerates, whether it is ready.
//!
//! Owns meaning only: no client, no clock, no I/O, and no dependency but `k8s-openapi`. Time is always an argument.
//! Upstream: k8s.io/component-helpers, k8s.io/apimachinery and pkg/api, v1.36.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod affinity;
pub mod conditions;
pub mod csi_migration;
pub mod ephemeral;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod intstr;
pub mod labels;
pub mod names;
pub mod node;
pub mod owner_ref;
pub mod persistent_volume;
pub mod pod;
pub mod qos;
pub mod quantity;
pub mod resource_claim;
pub mod resources;
pub mod taints;
