//! `local` PersistentVolumes: a directory of the node, bound into the pod's own; a device with a file system, mounted there; or, with
//! volumeMode Block, the device itself. Upstream: pkg/volume/local.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Volume};
use nix::mount::{MsFlags, mount};

use crate::claim::Persistent;
use crate::device::{format_and_mount, grow, make_read_only};
use crate::empty_dir;
use crate::expand;
use crate::location::VolumeLocation;
use crate::mountinfo;
use crate::ownership::{self, ChangePolicy};
use crate::plugin::{IoAt, Mounter, SetUpError, VolumePlugin, blocking};
use crate::source::ObjectSource;

pub(crate) const NAME: &str = "kubernetes.io/local-volume";

pub(crate) struct Local;

#[async_trait]
impl VolumePlugin for Local {
    fn name(&self) -> &'static str {
        NAME
    }

    fn can_support(&self, _: &Volume) -> bool {
        false
    }

    fn can_support_persistent(&self, volume: &PersistentVolume) -> bool {
        volume.spec.as_ref().is_some_and(|s| s.local.is_some())
    }

    async fn set_up(&self, mounter: &Mounter<'_>) -> Result<VolumeLocation, SetUpError> {
        let request = Request::new(mounter);
        if mounter.persistent.is_some_and(Persistent::is_block) {
            return blocking(move || device(&request.source).map(VolumeLocation::Device)).await;
        }
        blocking(move || set_up(&request).map(VolumeLocation::Path)).await
    }
}

/// The device, which pods may share: nothing of it is kept. Blocks.
fn device(source: &Path) -> Result<PathBuf, SetUpError> {
    let kind = look(source)?;
    if !kind.file_type().is_block_device() {
        return Err(SetUpError::HostPathType {
            path: source.display().to_string(),
            expected: "a block device",
        });
    }
    Ok(source.to_owned())
}

fn look(source: &Path) -> Result<fs::Metadata, SetUpError> {
    if source.components().any(|c| c == Component::ParentDir) {
        return Err(SetUpError::HostPathBacksteps(source.display().to_string()));
    }
    fs::metadata(source).io_at("failed to look at the local volume", source)
}

#[derive(Debug)]
struct Request {
    source: PathBuf,
    dir: PathBuf,
    meta: PathBuf,
    /// Directories of the pod that must be there first, private to root.
    parents: [PathBuf; 3],
    read_only: bool,
    /// Of a device.
    fs_type: Option<String>,
    options: Vec<String>,
    fs_group: Option<u32>,
    policy: ChangePolicy,
}

impl Request {
    fn new(mounter: &Mounter<'_>) -> Self {
        let (layout, uid, name) = (mounter.layout, mounter.pod_uid, mounter.directory);
        let persistent = mounter.persistent.expect("can_support_persistent said so");
        let local = persistent
            .volume
            .spec
            .as_ref()
            .and_then(|s| s.local.as_ref());
        let local = local.expect("can_support_persistent said so");
        Self {
            source: PathBuf::from(&local.path),
            fs_type: local.fs_type.clone().filter(|t| !t.is_empty()),
            options: persistent.mount_options(),
            dir: layout.volume(uid, NAME, name),
            meta: layout.meta(uid, NAME, name),
            parents: [layout.pod(uid), layout.volumes(uid), layout.plugins(uid)],
            read_only: persistent.read_only,
            fs_group: mounter.ownership.fs_group,
            policy: mounter.ownership.policy,
        }
    }
}

/// Idempotent. Blocks.
fn set_up(request: &Request) -> Result<PathBuf, SetUpError> {
    let (source, dir) = (&request.source, &request.dir);
    let kind = look(source)?;
    let is_device = kind.file_type().is_block_device();
    if !kind.is_dir() && !is_device {
        return Err(SetUpError::HostPathType {
            path: source.display().to_string(),
            expected: "a directory or block device",
        });
    }
    for parent in &request.parents {
        empty_dir::make_dirs(parent, 0o750)?;
    }
    empty_dir::make_dirs(dir, 0o750)?;
    let mounts = mountinfo::list().io_at("failed to list the mounts at", dir)?;
    if mountinfo::at(&mounts, dir).is_none() {
        if is_device {
            let fs_type = request.fs_type.as_deref();
            format_and_mount(source, dir, fs_type, &request.options, request.read_only)?;
        } else {
            bind(source, dir).io_at("failed to bind the local volume to", dir)?;
        }
        if request.read_only {
            make_read_only(dir).io_at("failed to make read-only", dir)?;
        }
    }
    if let Some(group) = request.fs_group.filter(|_| !request.read_only) {
        ownership::change_permissions(dir, group, false, request.policy)
            .io_at("failed to set the group of", dir)?;
    }
    empty_dir::mark_ready(&request.meta)?;
    Ok(dir.clone())
}

/// Makes the file system of a device as large as the device has become. Of a directory, and of a device that is handed to containers,
/// there is nothing to do but to say so. `None`: nothing is to be done, or it is tried again. Upstream: `NodeExpand`.
pub(crate) async fn expand(
    source: &dyn ObjectSource,
    dir: &Path,
    persistent: &Persistent,
) -> Option<(Arc<PersistentVolumeClaim>, Result<(), String>)> {
    let local = persistent.volume.spec.as_ref()?.local.as_ref()?;
    if persistent.read_only {
        return None;
    }
    let due = expand::due(source, persistent).await?;
    if !expand::begin(source, &due.claim, &due.expansion).await {
        return None;
    }
    let (device, dir) = (PathBuf::from(&local.path), dir.to_owned());
    let grown = match persistent.is_block() {
        true => Ok(()),
        false => blocking(move || grow_if_device(&device, &dir)).await,
    };
    let outcome = match grown {
        Ok(()) => expand::finish(source, &due.claim, &due.expansion.size)
            .await
            .map_err(|error| error.to_string()),
        Err(error) => {
            let why = error.to_string();
            expand::fail(source, &due.claim, &why, false).await;
            Err(why)
        }
    };
    Some((due.claim, outcome))
}

fn grow_if_device(source: &Path, dir: &Path) -> Result<(), SetUpError> {
    if look(source)?.file_type().is_block_device() {
        grow(source, dir)?;
    }
    Ok(())
}

fn bind(source: &Path, dir: &Path) -> io::Result<()> {
    let none = None::<&str>;
    Ok(mount(Some(source), dir, none, MsFlags::MS_BIND, none)?)
}
