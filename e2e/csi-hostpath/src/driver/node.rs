//! The node service: volumes staged, published to pods and taken back.
//!
//! A volume is entered as staged or published before it is mounted, and struck out after it was unmounted: whatever call was cut short,
//! the next one of the same kind finishes it.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use csi_spec::csi::v1 as csi;
use csi_spec::csi::v1::node_service_capability::rpc::Type as Rpc;
use csi_spec::csi::v1::volume_capability::AccessType;
use csi_spec::csi::v1::volume_capability::access_mode::Mode;
use nix::mount::MsFlags;
use nix::sys::statvfs::statvfs;
use rand::RngExt;
use tonic::Status;

use super::{Answer, Driver, clear_target};
use crate::plan::{self, EPHEMERAL};
use crate::state::{Access, Phase, Volume};
use crate::{loop_device, mount};

/// How many volumes a node takes where it makes up the limit itself. Upstream: `nodeserver.go`.
const MADE_UP_LIMIT: std::ops::RangeInclusive<i64> = 1..=10;

impl Driver {
    pub(super) fn node_stage_volume(
        &self,
        request: &csi::NodeStageVolumeRequest,
    ) -> Answer<csi::NodeStageVolumeResponse> {
        let id = plan::required(&request.volume_id, "volume_id")?;
        let path = plan::required(&request.staging_target_path, "staging_target_path")?;
        let capability = request
            .volume_capability
            .as_ref()
            .ok_or_else(|| Status::invalid_argument("volume_capability is missing"))?;
        let access = plan::access(std::slice::from_ref(capability))?;
        let _alone = self.alone(id)?;
        self.state.update(|state| -> Answer<_> {
            let volume = state
                .volumes
                .get_mut(id)
                .ok_or_else(|| Self::no_volume(id))?;
            is_usable(volume, access)?;
            if self.config.enable_attach && volume.attached.is_none() {
                let text = format!("volume {id} must be attached before it is staged");
                return Err(Status::failed_precondition(text).into());
            }
            if volume.staged.iter().any(|staged| staged == path) {
                return Ok(());
            }
            if !volume.staged.is_empty() {
                let text = format!("volume {id} is staged at {:?} already", volume.staged);
                return Err(Status::failed_precondition(text).into());
            }
            volume.staged.push(path.to_owned());
            Ok(())
        })?;
        if access == Access::Block {
            loop_device::attach(&self.disk.volume(id), false)?;
        }
        Ok(csi::NodeStageVolumeResponse {})
    }

    pub(super) fn node_unstage_volume(
        &self,
        request: &csi::NodeUnstageVolumeRequest,
    ) -> Answer<csi::NodeUnstageVolumeResponse> {
        let id = plan::required(&request.volume_id, "volume_id")?;
        let path = plan::required(&request.staging_target_path, "staging_target_path")?;
        let _alone = self.alone(id)?;
        let volume = self.state.read(|state| state.volumes.get(id).cloned());
        // DIFFERS: nothing is left of a volume that is gone, so that the caller need not come for ever (upstream: NotFound).
        let Some(volume) = volume else {
            return Ok(csi::NodeUnstageVolumeResponse {});
        };
        if !volume.staged.iter().any(|staged| staged == path) {
            return Ok(csi::NodeUnstageVolumeResponse {});
        }
        if !volume.published.is_empty() {
            let text = format!("volume {id} is published at {:?}", volume.published);
            return Err(Status::failed_precondition(text).into());
        }
        if volume.access == Access::Block {
            loop_device::detach(&self.disk.volume(id))?;
        }
        self.change(id, |volume| volume.staged.retain(|staged| staged != path))?;
        Ok(csi::NodeUnstageVolumeResponse {})
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Volume)) -> Answer<()> {
        Ok(self.forget(|state| {
            if let Some(volume) = state.volumes.get_mut(id) {
                change(volume);
            }
        })?)
    }

    pub(super) fn node_publish_volume(
        &self,
        request: &csi::NodePublishVolumeRequest,
    ) -> Answer<csi::NodePublishVolumeResponse> {
        let id = plan::required(&request.volume_id, "volume_id")?;
        let target = plan::required(&request.target_path, "target_path")?;
        let capability = request
            .volume_capability
            .as_ref()
            .ok_or_else(|| Status::invalid_argument("volume_capability is missing"))?;
        let access = plan::access(std::slice::from_ref(capability))?;
        let flags = match &capability.access_type {
            Some(AccessType::Mount(mount)) => {
                // A directory has no file system of its own: the type is upstream's driver's business as little as ours.
                mount::flags(&mount.mount_flags, request.readonly)?
            }
            _ => MsFlags::empty(),
        };
        let ephemeral = request.volume_context.get(EPHEMERAL).map(String::as_str);
        let is_inline = match ephemeral {
            Some("true") => true,
            None | Some("") => self.config.ephemeral,
            Some(_) => false,
        };
        let _alone = self.alone(id)?;
        if is_inline {
            self.make_ephemeral(request)?;
        }
        let is_new = self.state.update(|state| -> Answer<_> {
            let volume = state
                .volumes
                .get_mut(id)
                .ok_or_else(|| Self::no_volume(id))?;
            is_usable(volume, access)?;
            may_publish(volume, request, is_inline)?;
            Ok(volume
                .published
                .insert(target.to_owned(), request.readonly)
                .is_none())
        })?;
        let place = Path::new(target);
        if mount::is_mount_point(place)? {
            if !is_new {
                return Ok(csi::NodePublishVolumeResponse {});
            }
            // What nobody entered was left by somebody else.
            mount::unmount(place)?;
        }
        let from = match access {
            Access::Mount => {
                make_folder(place)?;
                self.disk.volume(id)
            }
            Access::Block => {
                make_file(place)?;
                loop_device::attach(&self.disk.volume(id), request.readonly)?
            }
        };
        mount::bind(&from, place, flags)?;
        Ok(csi::NodePublishVolumeResponse {})
    }

    fn make_ephemeral(&self, request: &csi::NodePublishVolumeRequest) -> Answer<()> {
        let volume = self.state.update(|state| -> Answer<_> {
            match state.volumes.get(&request.volume_id) {
                Some(there) if there.ephemeral => Ok(None),
                Some(_) => Err(Status::already_exists(format!(
                    "volume {} exists and is no inline one",
                    request.volume_id
                ))
                .into()),
                None => {
                    let volume = plan::create_ephemeral(&self.config, state, request)?;
                    state.volumes.insert(volume.id.clone(), volume.clone());
                    Ok(Some(volume))
                }
            }
        })?;
        if let Some(volume) = volume {
            self.fill(volume)?;
        }
        Ok(())
    }

    pub(super) fn node_unpublish_volume(
        &self,
        request: &csi::NodeUnpublishVolumeRequest,
    ) -> Answer<csi::NodeUnpublishVolumeResponse> {
        let id = plan::required(&request.volume_id, "volume_id")?;
        let target = plan::required(&request.target_path, "target_path")?;
        let _alone = self.alone(id)?;
        // DIFFERS: a volume that is gone (an inline one, by the call before this) leaves at most its mount (upstream: NotFound).
        clear_target(Path::new(target))?;
        let left = self.state.update(|state| -> Answer<_> {
            let Some(volume) = state.volumes.get_mut(id) else {
                return Ok(None);
            };
            volume.published.remove(target);
            Ok(Some(volume.clone()))
        })?;
        if left.is_some_and(|volume| volume.ephemeral && volume.published.is_empty()) {
            self.discard_volume(id, false)?;
        }
        Ok(csi::NodeUnpublishVolumeResponse {})
    }

    pub(super) fn node_get_volume_stats(
        &self,
        request: &csi::NodeGetVolumeStatsRequest,
    ) -> Answer<csi::NodeGetVolumeStatsResponse> {
        let id = plan::required(&request.volume_id, "volume_id")?;
        let path = plan::required(&request.volume_path, "volume_path")?;
        let volume = self.state.read(|state| state.volumes.get(id).cloned());
        let volume = volume.ok_or_else(|| Self::no_volume(id))?;
        let meta = fs::metadata(path)
            .map_err(|err| Status::not_found(format!("volume_path {path}: {err}")))?;
        let usage = if meta.file_type().is_block_device() || volume.access == Access::Block {
            vec![csi::VolumeUsage {
                total: volume.size_bytes,
                unit: csi::volume_usage::Unit::Bytes.into(),
                ..Default::default()
            }]
        } else {
            let space = statvfs(path).map_err(|err| Status::internal(format!("{path}: {err}")))?;
            let block = space.fragment_size();
            let bytes =
                |blocks: u64| i64::try_from(blocks.saturating_mul(block)).unwrap_or(i64::MAX);
            let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
            vec![
                csi::VolumeUsage {
                    available: bytes(space.blocks_available()),
                    total: bytes(space.blocks()),
                    used: bytes(space.blocks().saturating_sub(space.blocks_free())),
                    unit: csi::volume_usage::Unit::Bytes.into(),
                },
                csi::VolumeUsage {
                    available: count(space.files_free()),
                    total: count(space.files()),
                    used: count(space.files().saturating_sub(space.files_free())),
                    unit: csi::volume_usage::Unit::Inodes.into(),
                },
            ]
        };
        Ok(csi::NodeGetVolumeStatsResponse { usage })
    }

    pub(super) fn node_expand_volume(
        &self,
        request: &csi::NodeExpandVolumeRequest,
    ) -> Answer<csi::NodeExpandVolumeResponse> {
        if !self.config.enable_volume_expansion || self.config.disable_node_expansion {
            return Err(Status::unimplemented("volumes are not enlarged on the node").into());
        }
        let id = plan::required(&request.volume_id, "volume_id")?;
        let volume = self.state.read(|state| state.volumes.get(id).cloned());
        let volume = volume.ok_or_else(|| Self::no_volume(id))?;
        let path = plan::required(&request.volume_path, "volume_path")?;
        let meta = fs::metadata(path)
            .map_err(|err| Status::not_found(format!("volume_path {path}: {err}")))?;
        // The kubelet names the folder that a block volume's device lies in.
        let fits = match volume.access {
            Access::Mount => meta.is_dir(),
            Access::Block => meta.is_dir() || meta.file_type().is_block_device(),
        };
        if !fits {
            let text = format!("volume_path {path} is no {:?} volume", volume.access);
            return Err(Status::invalid_argument(text).into());
        }
        let most = self.config.max_volume_size_node;
        let wanted = plan::size(request.capacity_range.as_ref(), volume.size_bytes)?;
        if wanted > most {
            return Err(plan::too_large(wanted, most).into());
        }
        let range = csi::CapacityRange {
            required_bytes: wanted,
            limit_bytes: 0,
        };
        let capacity_bytes = self.enlarge(id, Some(&range), most)?;
        Ok(csi::NodeExpandVolumeResponse { capacity_bytes })
    }

    pub(super) fn node_get_info(&self) -> csi::NodeGetInfoResponse {
        let config = &self.config;
        csi::NodeGetInfoResponse {
            node_id: config.node_id.clone(),
            max_volumes_per_node: match config.attach_limit {
                0 => config.max_volumes_per_node,
                limit if limit > 0 => limit,
                _ => rand::rng().random_range(MADE_UP_LIMIT),
            },
            accessible_topology: config.topology(),
        }
    }

    pub(super) fn node_capabilities(&self) -> csi::NodeGetCapabilitiesResponse {
        let config = &self.config;
        let expands = config.enable_volume_expansion && !config.disable_node_expansion;
        let capabilities = [
            (Rpc::StageUnstageVolume, true),
            (Rpc::GetVolumeStats, true),
            (Rpc::SingleNodeMultiWriter, true),
            (Rpc::GetVolumeHealth, true),
            (Rpc::GetStorageHealth, true),
            (Rpc::ExpandVolume, expands),
        ];
        csi::NodeGetCapabilitiesResponse {
            capabilities: capabilities
                .into_iter()
                .filter(|(_, is_on)| *is_on)
                .map(|(rpc, _)| csi::NodeServiceCapability {
                    r#type: Some(csi::node_service_capability::Type::Rpc(
                        csi::node_service_capability::Rpc { r#type: rpc.into() },
                    )),
                })
                .collect(),
        }
    }
}

/// The volume is there, and of the kind it is wanted as.
fn is_usable(volume: &Volume, access: Access) -> Result<(), Status> {
    if volume.phase != Phase::Ready {
        return Err(plan::busy(&volume.id));
    }
    if volume.access != access {
        return Err(Status::invalid_argument(format!(
            "volume {} is for {:?}, not {access:?}",
            volume.id, volume.access
        )));
    }
    Ok(())
}

/// The volume is staged, and nobody has it who must have it alone.
fn may_publish(
    volume: &Volume,
    request: &csi::NodePublishVolumeRequest,
    is_inline: bool,
) -> Result<(), Status> {
    let id = &volume.id;
    let mode = request
        .volume_capability
        .as_ref()
        .and_then(|capability| capability.access_mode)
        .map(|mode| mode.mode());
    let is_elsewhere = volume
        .published
        .keys()
        .any(|target| *target != request.target_path);
    if mode == Some(Mode::SingleNodeSingleWriter) && is_elsewhere {
        return Err(Status::failed_precondition(format!(
            "volume {id} is for one writer and published at {:?} already",
            volume.published
        )));
    }
    if volume
        .published
        .get(&request.target_path)
        .is_some_and(|read_only| *read_only != request.readonly)
    {
        return Err(Status::already_exists(format!(
            "volume {id} is published at {} with another readonly",
            request.target_path
        )));
    }
    if is_inline {
        return Ok(());
    }
    if volume.staged.is_empty() {
        return Err(Status::failed_precondition(format!(
            "volume {id} must be staged before it is published"
        )));
    }
    if !volume.staged.contains(&request.staging_target_path) {
        return Err(Status::invalid_argument(format!(
            "volume {id} is staged at {:?}, not at {:?}",
            volume.staged, request.staging_target_path
        )));
    }
    Ok(())
}

fn make_folder(path: &Path) -> io::Result<()> {
    match fs::create_dir_all(path) {
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => Err(err),
        _ => Ok(()),
    }
}

fn make_file(path: &Path) -> io::Result<()> {
    let folder: PathBuf = path.parent().map(Path::to_owned).unwrap_or_default();
    fs::create_dir_all(folder)?;
    fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map(drop)
}
