//! `nfs` volumes, a pod's own or behind a claim: mounted by the node's `mount.nfs`. Upstream: pkg/volume/nfs.
//!
//! Files belong to whom the server says: no group is handed over.

use std::ffi::OsString;
use std::path::PathBuf;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolume, Volume};

use crate::device::{mount_by_program, no_dash};
use crate::location::VolumeLocation;
use crate::plugin::{IoAt, Mounter, SetUpError, VolumePlugin, blocking};
use crate::{empty_dir, mountinfo};

pub(crate) const NAME: &str = "kubernetes.io/nfs";

pub(crate) struct Nfs;

#[async_trait]
impl VolumePlugin for Nfs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn can_support(&self, volume: &Volume) -> bool {
        volume.nfs.is_some()
    }

    fn can_support_persistent(&self, volume: &PersistentVolume) -> bool {
        volume.spec.as_ref().is_some_and(|s| s.nfs.is_some())
    }

    async fn set_up(&self, mounter: &Mounter<'_>) -> Result<VolumeLocation, SetUpError> {
        let request = Request::new(mounter)?;
        blocking(move || set_up(&request).map(VolumeLocation::Path)).await
    }
}

#[derive(Debug)]
struct Request {
    source: OsString,
    options: Vec<String>,
    dir: PathBuf,
    meta: PathBuf,
    /// Directories of the pod that must be there first, private to root.
    parents: [PathBuf; 3],
}

impl Request {
    fn new(mounter: &Mounter<'_>) -> Result<Self, SetUpError> {
        let (layout, uid, name) = (mounter.layout, mounter.pod_uid, mounter.directory);
        let nfs = mounter.volume.nfs.as_ref().expect("can_support said so");
        no_dash("nfs.server", &nfs.server)?;
        let behind = mounter.persistent;
        let read_only = nfs.read_only == Some(true) || behind.is_some_and(|p| p.read_only);
        let mut options = behind.map_or_else(Vec::new, |p| p.mount_options());
        if read_only {
            options.push("ro".to_owned());
        }
        Ok(Self {
            source: source(&nfs.server, &nfs.path).into(),
            options,
            dir: layout.volume(uid, NAME, name),
            meta: layout.meta(uid, NAME, name),
            parents: [layout.pod(uid), layout.volumes(uid), layout.plugins(uid)],
        })
    }
}

/// An IPv6 address stands in brackets.
fn source(server: &str, path: &str) -> String {
    match server.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]:{path}"),
        Err(_) => format!("{server}:{path}"),
    }
}

/// Idempotent. Blocks, as long as the server lets `mount.nfs` wait.
fn set_up(request: &Request) -> Result<PathBuf, SetUpError> {
    for parent in &request.parents {
        empty_dir::make_dirs(parent, 0o750)?;
    }
    let dir = &request.dir;
    empty_dir::make_dirs(dir, 0o750)?;
    let mounts = mountinfo::list().io_at("failed to list the mounts at", dir)?;
    if mountinfo::at(&mounts, dir).is_none() {
        mount_by_program(&request.source, dir, "nfs", &request.options)?;
    }
    empty_dir::mark_ready(&request.meta)?;
    Ok(dir.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers() {
        assert_eq!(source("nfs.example", "/a"), "nfs.example:/a");
        assert_eq!(source("192.0.2.1", "/"), "192.0.2.1:/");
        assert_eq!(source("2001:db8::1", "/a"), "[2001:db8::1]:/a");
    }
}
