//! Which NUMA nodes the memory of a container comes from.
//!
//! Owns: the policies None and Static, the reservation by node, and what is remembered; pure. Upstream: pkg/kubelet/cm/memorymanager,
//! v1.37.

pub mod checkpoint;
pub mod policy;
pub mod reserved;
pub mod state;

pub use policy::{AllocateMemoryError, MemoryManagerError, StaticPolicy};
pub use state::{Block, MemoryState};
