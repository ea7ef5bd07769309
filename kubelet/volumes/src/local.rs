//! `local` PersistentVolumes: a directory of the node, bound into the pod's own. Upstream: pkg/volume/local.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Component, Path, PathBuf};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolume, Volume};
use nix::mount::{MsFlags, mount};

use crate::content::blocking;
use crate::empty_dir;
use crate::manager::VolumeLocation;
use crate::mountinfo;
use crate::ownership::{self, ChangePolicy};
use crate::plugin::{IoAt, Mounter, SetUpError, VolumePlugin};

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
        blocking(move || set_up(&request).map(VolumeLocation::Path)).await
    }
}

#[derive(Debug)]
struct Request {
    source: PathBuf,
    dir: PathBuf,
    meta: PathBuf,
    /// Directories of the pod that must be there first, private to root.
    parents: [PathBuf; 3],
    read_only: bool,
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
        Self {
            source: PathBuf::from(&local.expect("can_support_persistent said so").path),
            dir: layout.volume(uid, NAME, name),
            meta: layout.meta(uid, empty_dir::NAME, &empty_dir::meta_name(NAME, name)),
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
    if source.components().any(|c| c == Component::ParentDir) {
        return Err(SetUpError::HostPathBacksteps(source.display().to_string()));
    }
    let kind = fs::metadata(source).io_at("failed to look at the local volume", source)?;
    if kind.file_type().is_block_device() {
        return Err(SetUpError::UnsupportedKind {
            kind: "local (a block device with a file system)",
        });
    }
    if !kind.is_dir() {
        return Err(SetUpError::HostPathType {
            path: source.display().to_string(),
            expected: "a directory",
        });
    }
    for parent in &request.parents {
        make_dirs(parent)?;
    }
    make_dirs(dir)?;
    let mounts = mountinfo::list().io_at("failed to list the mounts at", dir)?;
    if mountinfo::at(&mounts, dir).is_none() {
        bind(source, dir, request.read_only).io_at("failed to bind the local volume to", dir)?;
    }
    if let Some(group) = request.fs_group.filter(|_| !request.read_only) {
        ownership::change_permissions(dir, group, false, request.policy)
            .io_at("failed to set the group of", dir)?;
    }
    empty_dir::mark_ready(&request.meta)?;
    Ok(dir.clone())
}

fn make_dirs(dir: &Path) -> Result<(), SetUpError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(dir)
        .io_at("failed to create directory", dir)
}

fn bind(source: &Path, dir: &Path, read_only: bool) -> io::Result<()> {
    let none = None::<&str>;
    mount(Some(source), dir, none, MsFlags::MS_BIND, none)?;
    if read_only {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        if let Err(error) = mount(none, dir, none, flags, none) {
            // Writable is not what was asked for.
            nix::mount::umount(dir)?;
            return Err(error.into());
        }
    }
    Ok(())
}
