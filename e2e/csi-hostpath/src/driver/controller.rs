//! The controller service: volumes made, listed, enlarged, changed and removed.

use csi_spec::csi::v1 as csi;
use csi_spec::csi::v1::controller_service_capability::rpc::Type as Rpc;
use tonic::Status;

use super::{Answer, Driver, new_id};
use crate::plan::{self, Creation};
use crate::state::{Access, Attachment, Phase, Source, Volume};
use crate::{disk, loop_device};

impl Driver {
    pub(super) fn create_volume(
        &self,
        request: &csi::CreateVolumeRequest,
    ) -> Answer<csi::CreateVolumeResponse> {
        plan::required(&request.name, "name")?;
        let _name = self.alone(&format!("volume name {}", request.name))?;
        let _source = match plan::source(request.volume_content_source.as_ref())? {
            Some(Source::Snapshot(id) | Source::Volume(id)) => Some(self.shared(&id)?),
            None => None,
        };
        let id = new_id()?;
        let creation = self.state.update(|state| -> Answer<_> {
            let creation = plan::create_volume(&self.config, state, request, &id)?;
            if let Creation::New(volume) = &creation {
                state.volumes.insert(volume.id.clone(), volume.clone());
            }
            Ok(creation)
        })?;
        let volume = match creation {
            Creation::Existing(volume) => volume,
            Creation::New(volume) => self.fill(volume)?,
        };
        Ok(csi::CreateVolumeResponse {
            volume: Some(csi::Volume {
                content_source: request.volume_content_source.clone(),
                accessible_topology: self.config.topology().into_iter().collect(),
                volume_context: request.parameters.clone(),
                ..told(&volume)
            }),
        })
    }

    /// Makes the data of a volume that is entered; one that cannot be made is forgotten.
    pub(super) fn fill(&self, volume: Volume) -> Answer<Volume> {
        let path = self.disk.volume(&volume.id);
        let from = volume.source.as_ref().map(|source| match source {
            Source::Snapshot(id) => self.disk.snapshot(id),
            Source::Volume(id) => self.disk.volume(id),
        });
        // Of an earlier try.
        self.remove_volume_data(&volume.id, volume.access)?;
        let made = disk::make(&path, volume.access, volume.size_bytes).and_then(|()| match from {
            Some(from) => disk::copy(&from, &path, volume.access),
            None => Ok(()),
        });
        if let Err(err) = made {
            self.remove_volume_data(&volume.id, volume.access)?;
            self.forget(|state| drop(state.volumes.remove(&volume.id)))?;
            return Err(err.into());
        }
        let mut volume = volume;
        volume.phase = Phase::Ready;
        self.forget(|state| drop(state.volumes.insert(volume.id.clone(), volume.clone())))?;
        tracing::info!(
            volume = volume.id,
            name = volume.name,
            bytes = volume.size_bytes,
            "volume made"
        );
        Ok(volume)
    }

    pub(super) fn delete_volume(
        &self,
        request: &csi::DeleteVolumeRequest,
    ) -> Answer<csi::DeleteVolumeResponse> {
        let id = plan::required(&request.volume_id, "volume_id")?;
        let _alone = self.alone(id)?;
        self.discard_volume(id, self.config.check_volume_lifecycle)?;
        Ok(csi::DeleteVolumeResponse {})
    }

    /// Removes a volume and its data; one that is gone already is fine.
    pub(super) fn discard_volume(&self, id: &str, refuse_used: bool) -> Answer<()> {
        let access = self.state.update(|state| -> Answer<_> {
            let Some(volume) = state.volumes.get_mut(id) else {
                return Ok(None);
            };
            if volume.is_used() {
                let text = format!(
                    "volume {id} is used: attached {:?}, staged at {:?}, published at {:?}",
                    volume.attached, volume.staged, volume.published
                );
                if refuse_used {
                    return Err(Status::failed_precondition(text).into());
                }
                tracing::warn!("{text}");
            }
            volume.phase = Phase::Deleting;
            Ok(Some(volume.access))
        })?;
        if let Some(access) = access {
            self.remove_volume_data(id, access)?;
            self.forget(|state| drop(state.volumes.remove(id)))?;
            tracing::info!(volume = id, "volume deleted");
        }
        Ok(())
    }

    pub(super) fn controller_publish_volume(
        &self,
        request: &csi::ControllerPublishVolumeRequest,
    ) -> Answer<csi::ControllerPublishVolumeResponse> {
        self.must_attach()?;
        let id = plan::required(&request.volume_id, "volume_id")?;
        let node = plan::required(&request.node_id, "node_id")?;
        if request.volume_capability.is_none() {
            return Err(Status::invalid_argument("volume_capability is missing").into());
        }
        let attachment = Attachment {
            read_only: request.readonly,
        };
        self.state.update(|state| -> Answer<_> {
            let attached = state.attached();
            let volume = state
                .volumes
                .get_mut(id)
                .ok_or_else(|| Self::no_volume(id))?;
            if node != self.config.node_id {
                return Err(Status::not_found(format!(
                    "node {node} does not exist, only {}",
                    self.config.node_id
                ))
                .into());
            }
            match volume.attached {
                Some(there) if there == attachment => Ok(()),
                Some(_) => Err(Status::already_exists(format!(
                    "volume {id} is attached with another readonly"
                ))
                .into()),
                None if usize::try_from(self.config.attach_limit)
                    .is_ok_and(|limit| limit > 0 && attached >= limit) =>
                {
                    Err(Status::resource_exhausted(format!(
                        "node {node} has {attached} volumes attached, all it takes"
                    ))
                    .into())
                }
                None => {
                    volume.attached = Some(attachment);
                    Ok(())
                }
            }
        })?;
        Ok(csi::ControllerPublishVolumeResponse::default())
    }

    pub(super) fn controller_unpublish_volume(
        &self,
        request: &csi::ControllerUnpublishVolumeRequest,
    ) -> Answer<csi::ControllerUnpublishVolumeResponse> {
        self.must_attach()?;
        let id = plan::required(&request.volume_id, "volume_id")?;
        // No node is every node.
        let node = request.node_id.as_str();
        if !node.is_empty() && node != self.config.node_id {
            return Err(Status::not_found(format!("node {node} does not exist")).into());
        }
        self.state.update(|state| -> Answer<_> {
            // One that does not exist is attached nowhere.
            let Some(volume) = state.volumes.get_mut(id) else {
                return Ok(());
            };
            if !volume.staged.is_empty() || !volume.published.is_empty() {
                let text = format!(
                    "volume {id} is staged at {:?} and published at {:?}",
                    volume.staged, volume.published
                );
                if self.config.check_volume_lifecycle {
                    return Err(Status::failed_precondition(text).into());
                }
                tracing::warn!("{text}");
            }
            volume.attached = None;
            Ok(())
        })?;
        Ok(csi::ControllerUnpublishVolumeResponse {})
    }

    fn must_attach(&self) -> Result<(), Status> {
        if self.config.enable_attach {
            return Ok(());
        }
        Err(Status::unimplemented(
            "volumes are not attached (--enable-attach)",
        ))
    }

    pub(super) fn validate_volume_capabilities(
        &self,
        request: &csi::ValidateVolumeCapabilitiesRequest,
    ) -> Answer<csi::ValidateVolumeCapabilitiesResponse> {
        let id = plan::required(&request.volume_id, "volume_id")?;
        let access = plan::access(&request.volume_capabilities)?;
        let of = self
            .state
            .read(|state| state.volumes.get(id).map(|volume| volume.access));
        let of = of.ok_or_else(|| Self::no_volume(id))?;
        if of != access {
            return Ok(csi::ValidateVolumeCapabilitiesResponse {
                confirmed: None,
                message: format!("volume {id} is for {of:?}"),
            });
        }
        Ok(csi::ValidateVolumeCapabilitiesResponse {
            confirmed: Some(csi::validate_volume_capabilities_response::Confirmed {
                volume_context: request.volume_context.clone(),
                volume_capabilities: request.volume_capabilities.clone(),
                parameters: request.parameters.clone(),
                mutable_parameters: request.mutable_parameters.clone(),
            }),
            message: String::new(),
        })
    }

    pub(super) fn list_volumes(
        &self,
        request: &csi::ListVolumesRequest,
    ) -> Answer<csi::ListVolumesResponse> {
        let (entries, next_token) = self.state.read(|state| {
            let ready = state.volumes.iter().filter(|(_, volume)| is_listed(volume));
            let entries = ready.map(|(id, volume)| {
                let status = csi::list_volumes_response::VolumeStatus {
                    published_node_ids: self.nodes_of(volume),
                };
                let entry = csi::list_volumes_response::Entry {
                    volume: Some(told(volume)),
                    status: Some(status),
                };
                (id, entry)
            });
            plan::page(entries, &request.starting_token, request.max_entries)
        })?;
        Ok(csi::ListVolumesResponse {
            entries,
            next_token,
        })
    }

    fn nodes_of(&self, volume: &Volume) -> Vec<String> {
        if volume.is_used() {
            vec![self.config.node_id.clone()]
        } else {
            Vec::new()
        }
    }

    pub(super) fn controller_get_volume(
        &self,
        request: &csi::ControllerGetVolumeRequest,
    ) -> Answer<csi::ControllerGetVolumeResponse> {
        let id = plan::required(&request.volume_id, "volume_id")?;
        let volume = self.state.read(|state| state.volumes.get(id).cloned());
        let volume = volume.ok_or_else(|| Self::no_volume(id))?;
        Ok(csi::ControllerGetVolumeResponse {
            status: Some(csi::controller_get_volume_response::VolumeStatus {
                published_node_ids: self.nodes_of(&volume),
            }),
            volume: Some(told(&volume)),
        })
    }

    pub(super) fn controller_modify_volume(
        &self,
        request: &csi::ControllerModifyVolumeRequest,
    ) -> Answer<csi::ControllerModifyVolumeResponse> {
        if !self.config.enable_controller_modify_volume {
            let text = "volumes cannot be changed (--enable-controller-modify-volume)";
            return Err(Status::unimplemented(text).into());
        }
        let id = plan::required(&request.volume_id, "volume_id")?;
        self.state.update(|state| -> Answer<_> {
            let volume = state
                .volumes
                .get_mut(id)
                .ok_or_else(|| Self::no_volume(id))?;
            if request.mutable_parameters.is_empty() {
                return Err(Status::invalid_argument("mutable_parameters are missing").into());
            }
            plan::mutable_parameters(&self.config, &request.mutable_parameters)?;
            volume
                .mutable_parameters
                .extend(request.mutable_parameters.clone());
            Ok(())
        })?;
        Ok(csi::ControllerModifyVolumeResponse {})
    }

    pub(super) fn controller_expand_volume(
        &self,
        request: &csi::ControllerExpandVolumeRequest,
    ) -> Answer<csi::ControllerExpandVolumeResponse> {
        if !self.config.enable_volume_expansion || self.config.disable_controller_expansion {
            return Err(Status::unimplemented("volumes are not enlarged by the controller").into());
        }
        let id = plan::required(&request.volume_id, "volume_id")?;
        let most = self.config.max_volume_size;
        let size_bytes = self.enlarge(id, request.capacity_range.as_ref(), most)?;
        Ok(csi::ControllerExpandVolumeResponse {
            capacity_bytes: size_bytes,
            node_expansion_required: !self.config.disable_node_expansion,
        })
    }

    /// Makes a volume as large as is asked for; it never gets smaller. The volume's size is given back.
    pub(super) fn enlarge(
        &self,
        id: &str,
        range: Option<&csi::CapacityRange>,
        most: i64,
    ) -> Answer<i64> {
        let range = range.ok_or_else(|| Status::invalid_argument("capacity_range is missing"))?;
        let wanted = plan::size(Some(range), 0)?;
        if wanted > most {
            return Err(plan::too_large(wanted, most).into());
        }
        let _alone = self.alone(id)?;
        let volume = self.state.update(|state| -> Answer<_> {
            let volume = state.volumes.get(id).ok_or_else(|| Self::no_volume(id))?;
            let more = wanted.saturating_sub(volume.size_bytes);
            let kind = volume.kind.clone();
            let total = kind
                .as_ref()
                .and_then(|kind| self.config.capacity.get(kind));
            if let (Some(kind), Some(total)) = (&kind, total)
                && more > 0
                && total.saturating_sub(state.allocated(kind)) < more
            {
                let text = format!("{more} more bytes exceed what is left of kind {kind:?}");
                return Err(Status::out_of_range(text).into());
            }
            let volume = state
                .volumes
                .get_mut(id)
                .ok_or_else(|| Self::no_volume(id))?;
            volume.size_bytes = volume.size_bytes.max(wanted);
            Ok(volume.clone())
        })?;
        if volume.access == Access::Block {
            let path = self.disk.volume(id);
            disk::grow(&path, volume.size_bytes)?;
            loop_device::resize(&path)?;
        }
        Ok(volume.size_bytes)
    }

    pub(super) fn controller_capabilities(&self) -> csi::ControllerGetCapabilitiesResponse {
        let config = &self.config;
        let always = !config.ephemeral;
        let expands = config.enable_volume_expansion && !config.disable_controller_expansion;
        let capabilities = [
            (Rpc::CreateDeleteVolume, always),
            (Rpc::GetVolume, always),
            (Rpc::GetCapacity, always),
            (Rpc::CreateDeleteSnapshot, always),
            (Rpc::GetSnapshot, always),
            (Rpc::ListVolumes, always),
            (Rpc::CloneVolume, always),
            (Rpc::SingleNodeMultiWriter, always),
            (Rpc::GetVolumeHealth, always),
            (Rpc::ListVolumeHealth, always),
            (Rpc::ExpandVolume, always && expands),
            (Rpc::PublishUnpublishVolume, always && config.enable_attach),
            (
                Rpc::ModifyVolume,
                always && config.enable_controller_modify_volume,
            ),
            (Rpc::ListSnapshots, always && config.enable_list_snapshots),
        ];
        csi::ControllerGetCapabilitiesResponse {
            capabilities: capabilities
                .into_iter()
                .filter(|(_, is_on)| *is_on)
                .map(|(rpc, _)| csi::ControllerServiceCapability {
                    r#type: Some(csi::controller_service_capability::Type::Rpc(
                        csi::controller_service_capability::Rpc { r#type: rpc.into() },
                    )),
                })
                .collect(),
        }
    }
}

/// Inline volumes are the pod's alone.
pub(super) fn is_listed(volume: &Volume) -> bool {
    volume.phase == Phase::Ready && !volume.ephemeral
}

fn told(volume: &Volume) -> csi::Volume {
    csi::Volume {
        volume_id: volume.id.clone(),
        capacity_bytes: volume.size_bytes,
        ..Default::default()
    }
}
