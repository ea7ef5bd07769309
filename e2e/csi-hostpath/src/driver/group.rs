//! The group controller service: snapshots of several volumes, taken, told of and removed together.

use csi_spec::csi::v1 as csi;
use tonic::Status;

use super::snapshot::{check_parameters, told};
use super::{Answer, Driver, new_id, now};
use crate::plan;
use crate::state::{Group, Phase, Snapshot};

impl Driver {
    pub(super) fn create_volume_group_snapshot(
        &self,
        request: &csi::CreateVolumeGroupSnapshotRequest,
    ) -> Answer<csi::CreateVolumeGroupSnapshotResponse> {
        let name = plan::required(&request.name, "name")?;
        if request.source_volume_ids.is_empty() {
            return Err(Status::invalid_argument("source_volume_ids are missing").into());
        }
        check_parameters(&request.parameters)?;
        let _name = self.alone(&format!("group name {name}"))?;
        let _volumes = request
            .source_volume_ids
            .iter()
            .map(|id| self.shared(id))
            .collect::<Result<Vec<_>, _>>()?;
        let existing = self.state.read(|state| state.group_by_name(name).cloned());
        let group = match existing {
            Some(there) if !same(&there.volumes, &request.source_volume_ids) => {
                let text = format!("group {name:?} exists, of other volumes");
                return Err(Status::already_exists(text).into());
            }
            Some(there) if there.phase != Phase::Ready => return Err(plan::busy(name).into()),
            Some(there) => there,
            None => self.take_group(name, &request.source_volume_ids)?,
        };
        Ok(csi::CreateVolumeGroupSnapshotResponse {
            group_snapshot: Some(self.told_group(&group)),
        })
    }

    fn take_group(&self, name: &str, volumes: &[String]) -> Answer<Group> {
        let (id, created) = (new_id()?, now());
        let ids = volumes
            .iter()
            .map(|_| new_id())
            .collect::<Result<Vec<_>, _>>()?;
        let mut group = Group {
            id: id.clone(),
            name: name.to_owned(),
            created,
            phase: Phase::Creating,
            snapshots: ids.clone(),
            volumes: volumes.to_owned(),
        };
        let snapshots = self.state.update(|state| -> Answer<_> {
            let mut snapshots = Vec::new();
            for (snapshot_id, volume_id) in ids.iter().zip(volumes) {
                let volume = state.volumes.get(volume_id);
                let volume = volume.ok_or_else(|| Self::no_volume(volume_id))?;
                snapshots.push(Snapshot {
                    id: snapshot_id.clone(),
                    name: format!("{name}-{volume_id}"),
                    volume_id: volume_id.clone(),
                    created,
                    size_bytes: volume.size_bytes,
                    access: volume.access,
                    phase: Phase::Creating,
                    group: Some(id.clone()),
                });
            }
            for snapshot in &snapshots {
                state
                    .snapshots
                    .insert(snapshot.id.clone(), snapshot.clone());
            }
            state.groups.insert(id.clone(), group.clone());
            Ok(snapshots)
        })?;
        let taken = snapshots
            .into_iter()
            .try_for_each(|snapshot| self.take(snapshot).map(drop));
        if let Err(err) = taken {
            self.discard_group(&group)?;
            return Err(err);
        }
        group.phase = Phase::Ready;
        self.forget(|state| drop(state.groups.insert(id, group.clone())))?;
        Ok(group)
    }

    pub(super) fn delete_volume_group_snapshot(
        &self,
        request: &csi::DeleteVolumeGroupSnapshotRequest,
    ) -> Answer<csi::DeleteVolumeGroupSnapshotResponse> {
        let id = plan::required(&request.group_snapshot_id, "group_snapshot_id")?;
        let _alone = self.alone(id)?;
        let group = self.state.update(|state| -> Answer<_> {
            let Some(group) = state.groups.get_mut(id) else {
                return Ok(None);
            };
            if !request.snapshot_ids.is_empty() && !same(&group.snapshots, &request.snapshot_ids) {
                let text = format!("snapshot_ids are not those of group {id}");
                return Err(Status::invalid_argument(text).into());
            }
            group.phase = Phase::Deleting;
            Ok(Some(group.clone()))
        })?;
        if let Some(group) = group {
            self.discard_group(&group)?;
        }
        Ok(csi::DeleteVolumeGroupSnapshotResponse {})
    }

    fn discard_group(&self, group: &Group) -> Answer<()> {
        for snapshot in &group.snapshots {
            self.discard_snapshot(snapshot)?;
        }
        self.forget(|state| drop(state.groups.remove(&group.id)))?;
        Ok(())
    }

    pub(super) fn get_volume_group_snapshot(
        &self,
        request: &csi::GetVolumeGroupSnapshotRequest,
    ) -> Answer<csi::GetVolumeGroupSnapshotResponse> {
        let id = plan::required(&request.group_snapshot_id, "group_snapshot_id")?;
        let group = self.state.read(|state| state.groups.get(id).cloned());
        let group = group.ok_or_else(|| Status::not_found(format!("group {id} does not exist")))?;
        if !request.snapshot_ids.is_empty() && !same(&group.snapshots, &request.snapshot_ids) {
            let text = format!("snapshot_ids are not those of group {id}");
            return Err(Status::invalid_argument(text).into());
        }
        Ok(csi::GetVolumeGroupSnapshotResponse {
            group_snapshot: Some(self.told_group(&group)),
        })
    }

    fn told_group(&self, group: &Group) -> csi::VolumeGroupSnapshot {
        let snapshots: Vec<csi::Snapshot> = self.state.read(|state| {
            let all = group.snapshots.iter();
            all.filter_map(|id| state.snapshots.get(id).map(told))
                .collect()
        });
        csi::VolumeGroupSnapshot {
            group_snapshot_id: group.id.clone(),
            ready_to_use: group.phase == Phase::Ready
                && snapshots.iter().all(|snapshot| snapshot.ready_to_use),
            snapshots,
            creation_time: Some(group.created.into()),
        }
    }

    pub(super) fn group_capabilities() -> csi::GroupControllerGetCapabilitiesResponse {
        use csi::group_controller_service_capability::{Rpc, Type, rpc};
        csi::GroupControllerGetCapabilitiesResponse {
            capabilities: vec![csi::GroupControllerServiceCapability {
                r#type: Some(Type::Rpc(Rpc {
                    r#type: rpc::Type::CreateDeleteGetVolumeGroupSnapshot.into(),
                })),
            }],
        }
    }
}

/// The same IDs, in whatever order.
fn same(one: &[String], other: &[String]) -> bool {
    let sorted = |ids: &[String]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    };
    sorted(one) == sorted(other)
}
