//! Where a volume is, for containers.

use std::path::PathBuf;

/// Where a container finds a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeLocation {
    /// On the node.
    Path(PathBuf),
    /// A device, for containers that name the volume in `volumeDevices`.
    Device(PathBuf),
    /// The root of an image, which the runtime pulls and mounts; `pull_policy` as the pod says, `None`: the default.
    Image {
        reference: String,
        pull_policy: Option<String>,
    },
}
