//! What configMap, secret, projected and downwardAPI volumes have in common: an emptyDir below, filled by the atomic writer.

use std::fs;
use std::os::unix::fs::DirBuilderExt;

use crate::atomic_writer::{self, Payload};
use crate::empty_dir::{self, Medium, Request};
use crate::location::VolumeLocation;
use crate::nested::nested_mount_points;
use crate::ownership;
use crate::plugin::{IoAt, Mounter, SetUpError, blocking};

/// Of all files of one volume. A pod of a megabyte may name one object some ten thousand times, and the files lie in the node's memory.
///
/// DIFFERS: upstream writes whatever comes of it.
pub(crate) const MAX_BYTES: usize = 32 << 20;

/// Counts the bytes of a volume's files, before they are made.
#[derive(Default)]
pub(crate) struct Size(usize);

impl Size {
    /// # Errors
    /// [`SetUpError::TooLarge`]
    pub(crate) fn add(&mut self, bytes: usize) -> Result<(), SetUpError> {
        self.0 = self.0.saturating_add(bytes);
        match self.0 > MAX_BYTES {
            true => Err(SetUpError::TooLarge),
            false => Ok(()),
        }
    }
}

/// The mode of a file whose pod was not defaulted by an API server (static pods).
pub(crate) const DEFAULT_MODE: u32 = 0o644;

/// The permission bits of `defaultMode` or an item's `mode`.
pub(crate) fn mode(mode: Option<i32>) -> u32 {
    mode.and_then(|m| u32::try_from(m).ok())
        .map_or(DEFAULT_MODE, |m| m & 0o777)
}

/// Sets up the directory if need be, and makes its files those of `payload`.
// DIFFERS: upstream tears the volume down if the writing fails; ours keeps the old content, which containers may
// be reading, and the next refresh tries again.
pub(crate) async fn set_up(
    mounter: &Mounter<'_>,
    plugin: &'static str,
    medium: Medium,
    payload: Payload,
) -> Result<VolumeLocation, SetUpError> {
    let request = Request::new(mounter, plugin, medium)?;
    let nested = nested_mount_points(&mounter.volume.name, mounter.pod);
    let fs_group = mounter.ownership.fs_group;
    blocking(move || {
        let dir = empty_dir::set_up(&request)?;
        for path in nested {
            let path = dir.join(path);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&path)
                .io_at("unable to create nested volume mountpoints", path)?;
        }
        atomic_writer::write(&dir, payload, || match fs_group {
            // The whole volume, not only the new version: nested mount points may have come too.
            Some(group) => {
                ownership::change_permissions(&dir, group, true, ownership::ChangePolicy::Always)
            }
            None => Ok(()),
        })?;
        Ok(VolumeLocation::Path(dir))
    })
    .await
}
