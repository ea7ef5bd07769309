//! Resources of the node and of its pods, and the cgroups that hold them to it.
//!
//! Owns: the cgroups from `kubepods` down to the pods, node allocatable, the numbers the kernel is given. Never
//! touches a container's own cgroup: that is the runtime's. Upstream: `pkg/kubelet/cm`, v1.36.

pub mod allocatable;
pub mod cgroup;
pub mod container_manager;
pub mod kernel_tunables;
pub mod machine;
pub mod memory_qos;
pub mod resources;

pub use container_manager::ContainerManager;
