//! The persistentvolume-attach-detach controller: attaches the volumes of a node's pods to the node and detaches them when nobody needs them
//! any more, by VolumeAttachments that the drivers' external attachers carry out, and tells kubelets in `status.volumesAttached` what they
//! may mount.
//!
//! ```text
//! pods, claims, volumes -> desired.rs ─┐
//! nodes, VolumeAttachments -> actual.rs ┼-> sync.rs -> Round -> controller.rs -> API
//! writes and waits -> operations.rs ───┘
//! ```
//!
//! A volume is detached when no pod on its node wants it and the node no longer says that it is in use; a node that is not ready for six
//! minutes, or has the out-of-service taint, is not waited for. After a restart everything is known from `status.volumesAttached` and the
//! VolumeAttachments; one that no node tells of is uncertain, and is attached or detached again.
//!
//! Upstream: pkg/controller/volume/attachdetach, pkg/volume/csi/csi_attacher.go, v1.37.
// DIFFERS: only volumes of CSI drivers are attached, and PersistentVolumes of plugins that one stands in for. Not there: pods' inline volumes
// of such plugins (their pods are told), fc, iscsi and flexVolume; what a VolumeAttachment's status says is read from the watch at once,
// not polled; nodes' statuses are written once a round, not once a volume.

pub mod actual;
mod controller;
pub mod desired;
mod metrics;
pub mod operations;
pub mod sync;
#[cfg(test)]
mod tests;
pub mod volume;

pub use controller::start;
pub use volume::{Lookup, persistent_volume};
