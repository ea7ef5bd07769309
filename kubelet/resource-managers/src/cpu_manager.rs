//! Which containers have CPUs of their own, and which share the rest.
//!
//! Owns: the policies none and static, and what they remember ([`state`], [`checkpoint`]); pure. Upstream: pkg/kubelet/cm/cpumanager,
//! v1.37.
//!
//! ```text
//! all CPUs = shared (reserved ones among them, unless the reservation is strict) + those of each container
//! ```

pub mod assignment;
pub mod checkpoint;
pub mod policy;
pub mod state;

pub use policy::{AllocateCpusError, CpuManagerError, StaticPolicy};
pub use state::CpuState;
