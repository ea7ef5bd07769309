//! Which devices a pod's ResourceClaims get on a node: the allocator of Dynamic Resource Allocation with structured parameters.
//!
//! ```text
//!   ResourceSlices --> Slice --> Inventory --gathered for a node--> pools
//!   ResourceClaims allocated already --> AllocatedState           |
//!   DeviceClasses --> Classes                                     v
//!   claims to allocate ------------------------> Allocator::allocate: the first choice of devices that satisfies all
//! ```
//!
//! Pure: no clock, no requests to the API, no randomness. Upstream: k8s.io/dynamic-resource-allocation/structured (the variant `incubating`, which is
//! what the gates of 1.37 select), cel, resourceslice/tracker and deviceclass/extendedresourcecache, v1.37.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod allocate_error;
mod allocator;
mod capacity;
mod classes;
mod cluster;
mod constraint;
mod counters;
mod device;
mod features;
mod outcome;
mod pools;
mod request;
mod search;
mod selector;
mod state;
mod taint_rules;
#[cfg(test)]
mod tests;

pub use allocate_error::AllocateError;
pub use allocator::Allocator;
pub use classes::{Classes, IMPLICIT_RESOURCE_PREFIX};
pub use device::{DeviceId, NodeView, PoolId, Slice};
pub use features::Features;
pub use pools::{Inventory, PlaceError};
pub use request::MAX_DEVICES_PER_CLAIM;
pub use search::Search;
pub use selector::{SelectorError, Selectors};
pub use state::AllocatedState;
pub use taint_rules::{apply_rules, rule_concerns};
