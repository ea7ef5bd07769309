//! The persistentvolume-expander controller: tells who shall make the volume of a claim larger that asks for more than it has.
//!
//! No plugin in the tree can do it any more, so it always is a CSI driver's resizer, which watches claims itself; a claim of a plugin that
//! a driver stands in for is given the driver's name. Recovery from an expansion that failed is the resizer's, too: it reads and writes
//! `status.allocatedResources` and `status.allocatedResourceStatuses`.
//!
//! Upstream: pkg/controller/volume/expand, v1.36.
// DIFFERS: FlexVolumes, which only their driver on the node can expand, are left to an external controller like all others; upstream
// writes the new size and waits for the kubelet, which here mounts none.

mod controller;
pub mod sync;

pub use controller::start;
