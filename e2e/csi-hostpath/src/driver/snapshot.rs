//! The controller service's snapshots: a copy of what the volume holds, beside it.

use csi_spec::csi::v1 as csi;
use tonic::Status;

use super::{Answer, Driver, new_id, now};
use crate::state::{Phase, Snapshot};
use crate::{disk, plan};

/// A snapshot parameter of upstream's, which makes its `tar` go past unreadable files.
const IGNORE_FAILED_READ: &str = "ignoreFailedRead";

impl Driver {
    pub(super) fn create_snapshot(
        &self,
        request: &csi::CreateSnapshotRequest,
    ) -> Answer<csi::CreateSnapshotResponse> {
        let name = plan::required(&request.name, "name")?;
        let volume_id = plan::required(&request.source_volume_id, "source_volume_id")?;
        check_parameters(&request.parameters)?;
        let _name = self.alone(&format!("snapshot name {name}"))?;
        let _volume = self.shared(volume_id)?;
        let id = new_id()?;
        let (snapshot, is_new) = self.state.update(|state| -> Answer<_> {
            match state.snapshot_by_name(name) {
                Some(there) if there.volume_id != volume_id => Err(Status::already_exists(
                    format!("snapshot {name:?} exists, of volume {}", there.volume_id),
                )
                .into()),
                Some(there) if there.phase != Phase::Ready => Err(plan::busy(name).into()),
                Some(there) => Ok((there.clone(), false)),
                None => {
                    let volume = state.volumes.get(volume_id);
                    let volume = volume.ok_or_else(|| Self::no_volume(volume_id))?;
                    let snapshot = Snapshot {
                        id: id.clone(),
                        name: name.to_owned(),
                        volume_id: volume_id.to_owned(),
                        created: now(),
                        size_bytes: volume.size_bytes,
                        access: volume.access,
                        phase: Phase::Creating,
                        group: None,
                    };
                    state.snapshots.insert(id.clone(), snapshot.clone());
                    Ok((snapshot, true))
                }
            }
        })?;
        let snapshot = if is_new {
            self.take(snapshot)?
        } else {
            snapshot
        };
        Ok(csi::CreateSnapshotResponse {
            snapshot: Some(told(&snapshot)),
        })
    }

    /// Copies the volume of a snapshot that is entered; one that cannot be taken is forgotten.
    pub(super) fn take(&self, mut snapshot: Snapshot) -> Answer<Snapshot> {
        let (from, to) = (
            self.disk.volume(&snapshot.volume_id),
            self.disk.snapshot(&snapshot.id),
        );
        if let Err(err) = disk::copy(&from, &to, snapshot.access) {
            disk::remove(&to)?;
            self.forget(|state| drop(state.snapshots.remove(&snapshot.id)))?;
            return Err(err.into());
        }
        snapshot.phase = Phase::Ready;
        self.forget(|state| {
            state
                .snapshots
                .insert(snapshot.id.clone(), snapshot.clone());
        })?;
        tracing::info!(
            snapshot = snapshot.id,
            volume = snapshot.volume_id,
            "snapshot taken"
        );
        Ok(snapshot)
    }

    pub(super) fn delete_snapshot(
        &self,
        request: &csi::DeleteSnapshotRequest,
    ) -> Answer<csi::DeleteSnapshotResponse> {
        let id = plan::required(&request.snapshot_id, "snapshot_id")?;
        let group = self.state.read(|state| {
            let snapshot = state.snapshots.get(id);
            snapshot.and_then(|snapshot| snapshot.group.clone())
        });
        if let Some(group) = group {
            let text = format!("snapshot {id} is part of group {group}");
            return Err(Status::invalid_argument(text).into());
        }
        self.discard_snapshot(id)?;
        Ok(csi::DeleteSnapshotResponse {})
    }

    /// Removes a snapshot and its data; one that is gone already is fine.
    pub(super) fn discard_snapshot(&self, id: &str) -> Answer<()> {
        let _alone = self.alone(id)?;
        let is_there = self.state.update(|state| -> Answer<_> {
            let snapshot = state.snapshots.get_mut(id);
            Ok(snapshot
                .map(|snapshot| snapshot.phase = Phase::Deleting)
                .is_some())
        })?;
        if is_there {
            disk::remove(&self.disk.snapshot(id))?;
            self.forget(|state| drop(state.snapshots.remove(id)))?;
            tracing::info!(snapshot = id, "snapshot deleted");
        }
        Ok(())
    }

    pub(super) fn list_snapshots(
        &self,
        request: &csi::ListSnapshotsRequest,
    ) -> Answer<csi::ListSnapshotsResponse> {
        if !self.config.enable_list_snapshots {
            let text = "snapshots are not listed (--enable-list-snapshots)";
            return Err(Status::unimplemented(text).into());
        }
        let (id, volume) = (&request.snapshot_id, &request.source_volume_id);
        let (entries, next_token) = self.state.read(|state| {
            let asked = state
                .snapshots
                .iter()
                .filter(|(_, one)| one.phase == Phase::Ready)
                .filter(|(_, one)| id.is_empty() || one.id == *id)
                .filter(|(_, one)| volume.is_empty() || one.volume_id == *volume);
            let entries = asked.map(|(id, one)| {
                let entry = csi::list_snapshots_response::Entry {
                    snapshot: Some(told(one)),
                };
                (id, entry)
            });
            plan::page(entries, &request.starting_token, request.max_entries)
        })?;
        Ok(csi::ListSnapshotsResponse {
            entries,
            next_token,
        })
    }

    pub(super) fn get_snapshot(
        &self,
        request: &csi::GetSnapshotRequest,
    ) -> Answer<csi::GetSnapshotResponse> {
        let id = plan::required(&request.snapshot_id, "snapshot_id")?;
        let snapshot = self
            .state
            .read(|state| state.snapshots.get(id).map(told))
            .ok_or_else(|| Status::not_found(format!("snapshot {id} does not exist")))?;
        Ok(csi::GetSnapshotResponse {
            snapshot: Some(snapshot),
        })
    }
}

/// # Errors
/// A value is none; others' parameters are others' business.
pub(super) fn check_parameters<'a>(
    parameters: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Result<(), Status> {
    for (name, value) in parameters {
        // What cannot be read fails the copy, where upstream's goes past it: nothing is unreadable for root.
        if name == IGNORE_FAILED_READ && value.parse::<bool>().is_err() && !value.is_empty() {
            return Err(Status::invalid_argument(format!(
                "parameter {IGNORE_FAILED_READ} is {value:?}, not true or false"
            )));
        }
    }
    Ok(())
}

pub(super) fn told(snapshot: &Snapshot) -> csi::Snapshot {
    csi::Snapshot {
        size_bytes: snapshot.size_bytes,
        snapshot_id: snapshot.id.clone(),
        source_volume_id: snapshot.volume_id.clone(),
        creation_time: Some(snapshot.created.into()),
        ready_to_use: snapshot.phase == Phase::Ready,
        group_snapshot_id: snapshot.group.clone().unwrap_or_default(),
        ..Default::default()
    }
}
