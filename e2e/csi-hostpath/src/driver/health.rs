//! What is wrong with volumes and with the place they are in, seen from the controller and from the node.

use csi_spec::csi::v1 as csi;
use csi_spec::csi::v1::volume_health::VolumeHealthEntry;
use csi_spec::csi::v1::{StorageHealthErrorType, VolumeHealthErrorType};
use nix::sys::statvfs::statvfs;

use super::controller::is_listed;
use super::{Answer, Driver};
use crate::state::{Access, Volume};
use crate::{loop_device, mount, plan};

/// Below this part of free blocks, volumes are about to fill up: one in so many.
const SCARCE: u64 = 100;

impl Driver {
    pub(super) fn controller_get_volume_health(
        &self,
        request: &csi::ControllerGetVolumeHealthRequest,
    ) -> Answer<csi::ControllerGetVolumeHealthResponse> {
        let id = plan::required(&request.volume_id, "volume_id")?;
        let volume = self.state.read(|state| state.volumes.get(id).cloned());
        let volume = volume.ok_or_else(|| Self::no_volume(id))?;
        Ok(csi::ControllerGetVolumeHealthResponse {
            volume_health: Some(health(&volume, self.data_health(&volume))),
        })
    }

    /// Those that something is wrong with.
    pub(super) fn controller_list_volume_health(
        &self,
        request: &csi::ControllerListVolumeHealthRequest,
    ) -> Answer<csi::ControllerListVolumeHealthResponse> {
        let volumes = self.state.read(|state| state.volumes.clone());
        let ill = volumes
            .iter()
            .filter(|(_, volume)| is_listed(volume))
            .map(|(id, volume)| (id, health(volume, self.data_health(volume))))
            .filter(|(_, health)| !health.health_statuses.is_empty());
        let (entries, next_token) = plan::page(ill, &request.starting_token, request.max_entries)?;
        Ok(csi::ControllerListVolumeHealthResponse {
            entries,
            next_token,
        })
    }

    pub(super) fn node_get_volume_health(
        &self,
        request: &csi::NodeGetVolumeHealthRequest,
    ) -> Answer<csi::NodeGetVolumeHealthResponse> {
        let id = plan::required(&request.volume_id, "volume_id")?;
        let volume = self.state.read(|state| state.volumes.get(id).cloned());
        let volume = volume.ok_or_else(|| Self::no_volume(id))?;
        let mut entries = self.data_health(&volume);
        for target in volume.published.keys() {
            if !mount::is_mount_point(target.as_ref())? {
                entries.push(entry(
                    VolumeHealthErrorType::Inaccessible,
                    "NotMounted",
                    format!("nothing is mounted at {target}"),
                ));
                break;
            }
        }
        if volume.access == Access::Block
            && !volume.staged.is_empty()
            && loop_device::devices_of(&self.disk.volume(id))?.is_empty()
        {
            entries.push(entry(
                VolumeHealthErrorType::Inaccessible,
                "NoDevice",
                "the volume's loop device is gone".to_owned(),
            ));
        }
        Ok(csi::NodeGetVolumeHealthResponse {
            volume_health: Some(health(&volume, entries)),
        })
    }

    pub(super) fn node_get_storage_health(&self) -> csi::NodeGetStorageHealthResponse {
        use csi::node_get_storage_health_response::StorageBackendHealth;
        let (status, reason, message) = match statvfs(self.disk.root()) {
            Err(err) => (
                StorageHealthErrorType::StorageUnreachable,
                "Unreachable",
                format!("{}: {err}", self.disk.root().display()),
            ),
            Ok(space) if space.blocks_available() < space.blocks() / SCARCE => (
                StorageHealthErrorType::StorageDegraded,
                "AlmostFull",
                format!("less than one block in {SCARCE} is free"),
            ),
            Ok(_) => return csi::NodeGetStorageHealthResponse::default(),
        };
        csi::NodeGetStorageHealthResponse {
            backend_health: vec![StorageBackendHealth {
                status: status.into(),
                reason: reason.to_owned(),
                message,
                ..Default::default()
            }],
        }
    }

    fn data_health(&self, volume: &Volume) -> Vec<VolumeHealthEntry> {
        let path = self.disk.volume(&volume.id);
        if !path.exists() {
            return vec![entry(
                VolumeHealthErrorType::DataLoss,
                "DataMissing",
                format!("{} does not exist", path.display()),
            )];
        }
        match statvfs(&path) {
            Ok(space) if space.blocks_available() == 0 => vec![entry(
                VolumeHealthErrorType::Degraded,
                "NoSpace",
                "no block is free".to_owned(),
            )],
            Ok(_) => Vec::new(),
            Err(err) => vec![entry(
                VolumeHealthErrorType::Inaccessible,
                "NoStatistics",
                err.to_string(),
            )],
        }
    }
}

fn entry(status: VolumeHealthErrorType, reason: &str, message: String) -> VolumeHealthEntry {
    VolumeHealthEntry {
        status: status.into(),
        reason: reason.to_owned(),
        message,
    }
}

fn health(volume: &Volume, health_statuses: Vec<VolumeHealthEntry>) -> csi::VolumeHealth {
    csi::VolumeHealth {
        volume_id: volume.id.clone(),
        health_statuses,
    }
}
