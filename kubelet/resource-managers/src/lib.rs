//! Which CPUs and which memory a container gets, and how its resources are brought near to each other: upstream's CPU manager, memory
//! manager and topology manager.
//!
//! Owns: the picture of the machine, who has what of it, and the files that remember it. Knows nothing of the runtime, of the API server or
//! of device plugins: those give [`topology_manager::Hints`] and take what was merged. All decisions are pure; [`discover`] reads /sys, and
//! [`ResourceManagers`] is the shell with the files.
//!
//! Upstream: pkg/kubelet/cm/{cpumanager,memorymanager,topologymanager}, v1.37.
//!
//! [`discover`]: topology::discover

pub mod cpu_manager;
pub mod cpu_set;
pub mod memory_manager;
pub mod numa_mask;
pub mod options;
pub mod topology;
pub mod topology_manager;

mod checksum;
mod managers;
mod pod;

pub use cpu_set::CpuSet;
pub use managers::{
    AdmissionError, Alignment, Observation, Observer, Resource, ResourceManagers, Settings,
    StartError,
};
pub use numa_mask::NumaMask;
pub use topology::Topology;
pub use topology_manager::{Hints, Policy, Scope, TopologyHint};
