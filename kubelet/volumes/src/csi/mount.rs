//! Has a driver stage a volume and publish it to a pod.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use csi::proto::{NodePublishVolumeRequest, NodeStageVolumeRequest, VolumeCapability};
use csi::{Capabilities, Client};

use super::data::{self, VolumeData};
use super::error::{IoAt, gone};
use super::request::{access_mode, block_capability, mount_capability};
use super::{CsiError, CsiVolumes, DeviceKey, is_mounted, off_thread};
use crate::location::VolumeLocation;
use crate::ownership::{self, ChangePolicy};

/// How long a kubelet that was just started waits for the drivers it finds.
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);

/// One volume of one pod: everything that is told to its driver.
pub(crate) struct Job {
    pub csi: Arc<CsiVolumes>,
    pub key: DeviceKey,
    pub uid: String,
    /// Of its directory: the PersistentVolume's, or the pod's own for it.
    pub name: String,
    /// The VolumeAttachment's name, whether or not there is one.
    pub attachment: String,
    pub place: Place,
    /// `None`: a pod's own volume, which is never staged.
    pub staging: Option<Staging>,
    pub fs_type: String,
    pub access_mode: Option<String>,
    pub mount_options: Vec<String>,
    pub read_only: bool,
    pub publish_context: BTreeMap<String, String>,
    pub volume_context: BTreeMap<String, String>,
    pub publish_secrets: BTreeMap<String, String>,
    pub group: Option<u32>,
    pub group_policy: ChangePolicy,
    /// The kubelet hands the files to the group, if the driver does not.
    pub hands_over: bool,
}

/// Where the volume goes.
#[derive(Clone)]
pub(crate) enum Place {
    /// A directory.
    Mount { target: PathBuf, staging: PathBuf },
    /// A device.
    Block {
        target: PathBuf,
        staging: PathBuf,
        /// The directory of its record, which pods share.
        data: PathBuf,
        /// The pod's link to the target: its own record.
        link: PathBuf,
    },
}

impl Place {
    fn target(&self) -> &Path {
        match self {
            Self::Mount { target, .. } | Self::Block { target, .. } => target,
        }
    }

    fn staging(&self) -> &Path {
        match self {
            Self::Mount { staging, .. } | Self::Block { staging, .. } => staging,
        }
    }

    /// Before the driver is asked to stage. Blocks.
    fn record_staged(&self, key: &DeviceKey) -> Result<(), CsiError> {
        make_dirs(self.staging())?;
        match self {
            Self::Mount { staging, .. } => save(&VolumeData::staged(key), parent(staging)),
            // Its record was made before.
            Self::Block { .. } => Ok(()),
        }
    }

    /// Before the driver is asked to publish. Blocks.
    fn record_published(&self, data: &VolumeData) -> Result<(), CsiError> {
        match self {
            Self::Mount { target, .. } => {
                let dir = parent(target);
                make_dirs(dir)?;
                save(data, dir)
            }
            Self::Block { target, link, .. } => {
                make_dirs(parent(target))?;
                make_dirs(parent(link))?;
                match symlink(target, link) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                    other => other.io_at("failed to create link", link),
                }
            }
        }
    }

    /// Nothing was staged after all. Blocks.
    fn forget_staged(&self) -> Result<(), CsiError> {
        match self {
            Self::Mount { staging, .. } => remove_mount_dir(staging),
            Self::Block { staging, .. } => {
                gone(fs::remove_dir(staging)).io_at("failed to remove dir", staging)
            }
        }
    }

    /// Nothing was published after all. Blocks.
    fn forget_published(&self) -> Result<(), CsiError> {
        match self {
            Self::Mount { target, .. } => remove_mount_dir(target),
            Self::Block { target, link, .. } => remove_device(target, link),
        }
    }
}

/// How a volume is staged.
pub(crate) struct Staging {
    pub volume_context: BTreeMap<String, String>,
    pub secrets: BTreeMap<String, String>,
}

impl Job {
    /// Idempotent. Returns where the volume is.
    pub async fn carry_out(self) -> Result<VolumeLocation, CsiError> {
        let _turn = self.csi.turn(&self.key).await;
        let settled = self.csi.drivers.until_settled();
        // Whoever takes longer than that is not there.
        let _ = tokio::time::timeout(SETTLE_PATIENCE, settled).await;
        let client = self.csi.drivers.client(&self.key.driver);
        let client = client.map_err(|error| match self.staging {
            Some(_) => CsiError::NoDriverToStage(error),
            None => CsiError::NoDriver(error),
        })?;
        let capabilities = client.capabilities().await;
        let capabilities = capabilities.map_err(|error| match self.staging {
            Some(_) => CsiError::Stage(error),
            None => CsiError::Publish(error),
        })?;
        let data = VolumeData::published(
            &self.key,
            &self.name,
            &self.csi.node_name,
            &self.attachment,
            self.staging.is_none(),
        );
        if let Place::Block { data: dir, .. } = self.place.clone() {
            let data = data.clone();
            off_thread(move || {
                make_dirs(&dir)?;
                save(&data, &dir)
            })
            .await?;
        }
        let mut staged = false;
        if let Some(staging) = &self.staging
            && capabilities.stage_unstage()
        {
            self.stage(&client, &capabilities, staging).await?;
            staged = true;
        }
        self.publish(&client, &capabilities, data, staged).await?;
        let target = self.place.target().to_owned();
        if let Place::Block { .. } = self.place {
            return Ok(VolumeLocation::Device(target));
        }
        self.hand_over(&capabilities).await?;
        Ok(VolumeLocation::Path(target))
    }

    fn capability(&self, capabilities: &Capabilities) -> VolumeCapability {
        let mode = access_mode(self.access_mode.as_deref(), capabilities);
        if let Place::Block { .. } = self.place {
            return block_capability(mode);
        }
        // Of drivers that hand the files over by themselves.
        let group = self.group.filter(|_| capabilities.volume_mount_group());
        mount_capability(mode, &self.fs_type, &self.mount_options, group)
    }

    async fn stage(
        &self,
        client: &Client,
        capabilities: &Capabilities,
        staging: &Staging,
    ) -> Result<(), CsiError> {
        if self.csi.memory().staged.contains(&self.key) {
            return Ok(());
        }
        let (place, key) = (self.place.clone(), self.key.clone());
        off_thread(move || place.record_staged(&key)).await?;
        let request = NodeStageVolumeRequest {
            volume_id: self.key.handle.clone(),
            publish_context: map(&self.publish_context),
            staging_target_path: text(self.place.staging()),
            volume_capability: Some(self.capability(capabilities)),
            secrets: map(&staging.secrets),
            volume_context: map(&staging.volume_context),
        };
        if let Err(error) = client.stage(request).await {
            if error.is_final() {
                let place = self.place.clone();
                tidy(off_thread(move || place.forget_staged()).await);
            }
            return Err(CsiError::Stage(error));
        }
        self.csi.memory().staged.insert(self.key.clone());
        Ok(())
    }

    async fn publish(
        &self,
        client: &Client,
        capabilities: &Capabilities,
        data: VolumeData,
        staged: bool,
    ) -> Result<(), CsiError> {
        let place = self.place.clone();
        off_thread(move || place.record_published(&data)).await?;
        let request = NodePublishVolumeRequest {
            volume_id: self.key.handle.clone(),
            publish_context: map(&self.publish_context),
            staging_target_path: match staged {
                true => text(self.place.staging()),
                false => String::new(),
            },
            target_path: text(self.place.target()),
            volume_capability: Some(self.capability(capabilities)),
            readonly: self.read_only,
            secrets: map(&self.publish_secrets),
            volume_context: map(&self.volume_context),
        };
        let again = self.csi.is_published(&self.uid, &self.name);
        if let Err(error) = client.publish(request).await {
            // What containers look at already stays.
            if error.is_final() && !again {
                let place = self.place.clone();
                tidy(off_thread(move || place.forget_published()).await);
            }
            return Err(CsiError::Publish(error));
        }
        let published = (self.uid.clone(), self.name.clone());
        self.csi.memory().published.insert(published);
        Ok(())
    }

    async fn hand_over(&self, capabilities: &Capabilities) -> Result<(), CsiError> {
        let Some(group) = self.group.filter(|_| self.hands_over) else {
            return Ok(());
        };
        if capabilities.volume_mount_group() {
            return Ok(());
        }
        let (target, policy) = (self.place.target().to_owned(), self.group_policy);
        let handle = self.key.handle.clone();
        off_thread(move || {
            ownership::change_permissions(&target, group, false, policy)
                .map_err(|source| CsiError::Group { handle, source })
        })
        .await
    }
}

fn map(pairs: &BTreeMap<String, String>) -> HashMap<String, String> {
    pairs.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// Paths of ours are text: their parts were checked, or are ours.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// Private to root, as all that leads to volumes.
fn make_dirs(dir: &Path) -> Result<(), CsiError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(dir)
        .io_at("failed to create dir", dir)
}

fn save(data: &VolumeData, dir: &Path) -> Result<(), CsiError> {
    data.write(dir)
        .io_at("failed to save volume data file", dir)
}

/// A failure is told first by what it followed.
fn tidy(done: Result<(), CsiError>) {
    if let Err(error) = done {
        tracing::error!(%error, "failed to remove mount dir after error");
    }
}

/// What a driver was told to mount to, with its record, if nothing is mounted there any more. Only what is empty is removed.
/// Blocks. Upstream: `removeMountDir`.
pub(super) fn remove_mount_dir(path: &Path) -> Result<(), CsiError> {
    if is_mounted(path).io_at("failed to list the mounts at", path)? {
        return Ok(());
    }
    // A driver that links leaves no directory.
    let removed = match fs::symlink_metadata(path) {
        Ok(info) if !info.is_dir() => fs::remove_file(path),
        _ => fs::remove_dir(path),
    };
    gone(removed).io_at("failed to remove dir", path)?;
    let dir = parent(path);
    data::remove(dir).io_at("failed to delete volume path", dir)
}

/// A published device, if nothing is mounted there any more, and the pod's link to it. Blocks.
pub(super) fn remove_device(path: &Path, link: &Path) -> Result<(), CsiError> {
    if is_mounted(path).io_at("failed to list the mounts at", path)? {
        return Ok(());
    }
    gone(fs::remove_file(path)).io_at("failed to remove device", path)?;
    gone(fs::remove_file(link)).io_at("failed to remove link", link)
}
