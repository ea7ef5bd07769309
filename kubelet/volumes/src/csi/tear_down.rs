//! Has drivers undo what they did for a pod, and for a volume that no pod uses any more.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::data::{self, Published, Staged};
use super::error::{IoAt, gone};
use super::mount::{remove_device, remove_mount_dir};
use super::{CsiError, CsiVolumes, DeviceKey, MOUNT, NAME, is_mounted, off_thread};
use crate::layout::Layout;
use crate::tear_down::TearDownFailure;

impl CsiVolumes {
    /// Every CSI volume of a pod. Goes on past errors. Its containers and subPaths must be gone.
    pub async fn unpublish_pod(self: &Arc<Self>, uid: &str) -> Vec<TearDownFailure> {
        let begun = self.memory().begun.remove(uid);
        for key in begun.into_iter().flatten() {
            // What is under way makes a record yet.
            drop(self.turn(&key).await);
        }
        let mut failures = Vec::new();
        match self.published(uid).await {
            Ok(found) => {
                for volume in found {
                    failures.extend(self.unpublish(uid, &volume.name).await.err());
                }
            }
            Err(error) => failures.push(failure(&self.layout.pod(uid), error)),
        }
        // Volumes that it waited for.
        for key in self.in_use.of_pod(uid) {
            let (this, pod) = (self.clone(), uid.to_owned());
            let path = self.staging_path(&key);
            let left = detached(async move { this.leave(&key, &pod).await }).await;
            failures.extend(left.err().map(|error| failure(&path, error)));
        }
        failures
    }

    async fn published(&self, uid: &str) -> Result<Vec<Published>, CsiError> {
        let (layout, uid) = (self.layout.clone(), uid.to_owned());
        off_thread(move || Ok(data::of_pod(&layout, &uid))).await
    }

    /// One volume of a pod, by the name of its directory.
    pub async fn unpublish(self: &Arc<Self>, uid: &str, name: &str) -> Result<(), TearDownFailure> {
        let dir = self.layout.volume(uid, NAME, name);
        let (this, pod, name) = (self.clone(), uid.to_owned(), name.to_owned());
        detached(async move { this.unpublish_one(&pod, &name).await })
            .await
            .map_err(|error| failure(&dir, error))
    }

    async fn unpublish_one(&self, uid: &str, name: &str) -> Result<(), CsiError> {
        let mut found = self.published(uid).await?;
        found.retain(|volume| volume.name == name);
        for volume in found {
            let key = volume.data.key();
            let turn = self.turn(&key).await;
            let client = self.drivers.client(&key.driver);
            let client = client.map_err(CsiError::NoDriverToUnpublish)?;
            let (target, device) = if volume.block {
                let paths = self.layout.csi_block(name);
                let link = self.layout.csi_device_links(uid).join(name);
                let map = paths.maps.join(uid);
                (paths.published.join(uid), Some((link, map)))
            } else {
                (self.layout.volume(uid, NAME, name).join(MOUNT), None)
            };
            let done = client.unpublish(&key.handle, &target).await;
            done.map_err(CsiError::Unpublish)?;
            let published = (uid.to_owned(), name.to_owned());
            self.memory().published.remove(&published);
            off_thread(move || {
                unmount_left(&target)?;
                match device {
                    Some((link, map)) => {
                        unmount_left(&map)?;
                        gone(fs::remove_file(&map)).io_at("failed to remove device map", &map)?;
                        remove_device(&target, &link)
                    }
                    None => remove_mount_dir(&target),
                }
            })
            .await?;
            drop(turn);
            if !volume.data.is_ephemeral() {
                self.leave(&key, uid).await?;
            }
        }
        Ok(())
    }

    /// The pod has no more to do with the volume: whoever is the last has it unstaged.
    async fn leave(&self, key: &DeviceKey, uid: &str) -> Result<(), CsiError> {
        let _turn = self.turn(key).await;
        let left = self.published(uid).await?;
        if left
            .iter()
            .any(|v| !v.data.is_ephemeral() && v.data.key() == *key)
        {
            // Its record is there still: it was not unpublished.
            return Ok(());
        }
        if self.in_use.leave(key, uid) {
            return Ok(());
        }
        self.unstage(key).await
    }

    /// With the turn of the volume.
    async fn unstage(&self, key: &DeviceKey) -> Result<(), CsiError> {
        let (layout, wanted) = (self.layout.clone(), key.clone());
        let looked = off_thread(move || {
            let users = data::users(&layout);
            let used = users.get(&wanted).is_some_and(|pods| !pods.is_empty());
            let mut places = data::staged(&layout);
            places.retain(|place| place.key == wanted);
            Ok((used, places))
        });
        let (used, places) = looked.await?;
        if used {
            return Ok(());
        }
        for place in places {
            let client = self.drivers.client(&key.driver);
            let client = client.map_err(CsiError::NoDriverToUnstage)?;
            let capabilities = client.capabilities().await.map_err(CsiError::Unstage)?;
            if capabilities.stage_unstage() {
                let done = client.unstage(&key.handle, &place.path).await;
                done.map_err(CsiError::Unstage)?;
            }
            self.memory().forget(key);
            let layout = self.layout.clone();
            off_thread(move || remove_staged(&layout, &place)).await?;
        }
        self.in_use.release(key);
        Ok(())
    }

    /// Volumes that are staged and that no pod uses or waits for: what a crash left, or a driver that was away.
    pub async fn unstage_unused(self: &Arc<Self>) -> Vec<TearDownFailure> {
        let layout = self.layout.clone();
        let found = off_thread(move || Ok(data::staged(&layout))).await;
        let mut failures = Vec::new();
        for place in found.unwrap_or_default() {
            let this = self.clone();
            let done = detached(async move {
                let _turn = this.turn(&place.key).await;
                if this.in_use.leave(&place.key, "") {
                    return Ok(());
                }
                this.unstage(&place.key).await
            });
            failures.extend(done.await.err().map(|error| failure(&place.path, error)));
        }
        failures
    }
}

/// Seen to its end, whatever becomes of who waits.
async fn detached(
    work: impl Future<Output = Result<(), CsiError>> + Send + 'static,
) -> Result<(), CsiError> {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(error) => Err(CsiError::Interrupted(error.to_string())),
    }
}

fn failure(path: &Path, error: CsiError) -> TearDownFailure {
    TearDownFailure {
        what: "UnmountVolume.TearDown failed for",
        path: path.to_owned(),
        source: std::io::Error::other(error),
    }
}

/// What is left on disk of a volume that is staged no more. Blocks.
fn remove_staged(layout: &Layout, place: &Staged) -> Result<(), CsiError> {
    unmount_left(&place.path)?;
    let Some(name) = &place.block else {
        return remove_mount_dir(&place.path);
    };
    let paths = layout.csi_block(name);
    // What a driver keeps there is no mount, or it was not unstaged.
    if paths.staging.exists() {
        host::remove_tree(&paths.staging).io_at("failed to remove staging path", &paths.staging)?;
    }
    let published = &paths.published;
    gone(fs::remove_dir(published)).io_at("failed to remove publish directory", published)?;
    data::remove(&paths.data).io_at("failed to delete volume data", &paths.data)?;
    let dir = paths.data.parent().unwrap_or(&paths.data);
    gone(fs::remove_dir(&paths.maps)).io_at("failed to remove dir", &paths.maps)?;
    gone(fs::remove_dir(dir)).io_at("failed to remove dir", dir)
}

/// A driver that said it is done and left its mount.
// DIFFERS: upstream leaves it, and the pod's directory, for ever.
fn unmount_left(path: &Path) -> Result<(), CsiError> {
    while is_mounted(path).io_at("failed to list the mounts at", path)? {
        tracing::warn!(path = %path.display(), "the driver left its mount");
        nix::mount::umount2(path, nix::mount::MntFlags::UMOUNT_NOFOLLOW)
            .map_err(std::io::Error::from)
            .io_at("failed to unmount", path)?;
    }
    Ok(())
}
