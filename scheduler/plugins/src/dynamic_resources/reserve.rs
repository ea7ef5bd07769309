//! Reserve, Unreserve and PostFilter: what is taken, and given up.

use std::sync::Arc;
use std::time::Duration;

use component_helpers::resource_claim::{FINALIZER, is_reserved_for_pod};
use framework::devices::claim_key;
use framework::{ApiWriteError, ApiWriter, DeviceCache, NodeToStatus, PodInfo, Snapshot, Status};
use k8s_openapi::api::resource::v1::ResourceClaim;

use super::DynamicResources;
use super::claims::{allocation, is_for_nobody_else, name, uid};
use super::extended::is_in_memory;
use super::filter::NOT_AVAILABLE;
use super::state::State;
use crate::names;

/// After so long a write that nobody waits for any more was taken, or never will be.
const WRITES_SETTLE: Duration = Duration::from_secs(1);

/// The choice of the node is under way from here on.
pub(super) fn reserve(devices: &DeviceCache, state: &State, node_name: &str) -> Status {
    if state.unallocated.is_empty() {
        return Status::success();
    }
    // It holds what was taken before: without it nothing has to be copied.
    state.forget_allocator();
    let mut progress = state.progress();
    let Some(chosen) = progress.nodes.get(node_name).cloned() else {
        // Device plugins have what the pod asks for.
        return match state.own {
            0 => Status::success(),
            _ => Status::error("claim allocation not found for node"),
        };
    };
    let wanted = state
        .unallocated
        .iter()
        .filter(|i| chosen.special.is_some() || !state.is_special(**i));
    let wanted: Vec<usize> = wanted.copied().collect();
    if chosen.results.len() != wanted.len() {
        return Status::error(format!(
            "internal error, have {} allocations, want {} claims",
            chosen.results.len(),
            wanted.len()
        ));
    }
    for (index, result) in wanted.into_iter().zip(chosen.results) {
        let special = chosen.special.as_ref().filter(|_| state.is_special(index));
        let mut claim = (**special.unwrap_or(&progress.claims[index])).clone();
        let finalizers = claim.metadata.finalizers.get_or_insert_default();
        if !finalizers.iter().any(|f| f == FINALIZER) {
            finalizers.push(FINALIZER.to_owned());
        }
        claim.status.get_or_insert_default().allocation = Some(result.clone());
        let id = uid(&claim).to_owned();
        if let Err(error) = devices.begin_allocation(&id, Arc::new(claim), special.is_some()) {
            return Status::error(format!(
                "internal error, couldn't signal allocation for claim: {error}"
            ));
        }
        progress.pending.push(id);
        progress.reserved[index] = Some(result);
    }
    // Of all others nothing will be asked.
    progress.nodes.retain(|node, _| node == node_name);
    Status::success()
}

/// Takes the scheduler's finalizer off the claim and deletes it.
async fn delete(api: &dyn ApiWriter, claim: &ResourceClaim) -> Result<(), ApiWriteError> {
    let Some(writer) = api.claims() else {
        return Ok(());
    };
    let mut claim = claim.clone();
    for _ in 0..super::binding::TRIES {
        let finalizers = claim.metadata.finalizers.get_or_insert_default();
        finalizers.retain(|f| f != FINALIZER);
        match writer.write_finalizers(&claim).await {
            Err(ApiWriteError::Conflict(_)) => {
                let namespace = claim.metadata.namespace.clone().unwrap_or_default();
                claim = match writer.get(&namespace, name(&claim)).await {
                    Err(ApiWriteError::NotFound(_)) => return Ok(()),
                    found => found?,
                };
            }
            Err(ApiWriteError::NotFound(_)) => return Ok(()),
            Err(error) => return Err(error),
            Ok(written) => return writer.delete(&written).await,
        }
    }
    Err(ApiWriteError::Conflict(format!(
        "resourceclaim {} keeps changing",
        name(&claim)
    )))
}

impl DynamicResources {
    /// Runs a write behind the scheduling thread.
    fn write_later<F>(&self, what: &'static str, claim: Arc<ResourceClaim>, write: F)
    where
        F: for<'a> FnOnce(
                &'a dyn ApiWriter,
                &'a ResourceClaim,
            ) -> framework::BoxFuture<'a, Result<(), ApiWriteError>>
            + Send
            + 'static,
    {
        let api = self.handle.api();
        self.handle.spawn(Box::pin(async move {
            if let Err(error) = write(&*api, &claim).await {
                tracing::error!(%error, claim = claim_key(&claim), "{what}");
            }
        }));
    }

    fn delete_later(&self, claim: Arc<ResourceClaim>) {
        self.write_later(
            "deleting the claim for extended resources",
            claim,
            |api, claim| Box::pin(delete(api, claim)),
        );
    }

    /// The claim may have been written, or not. Its devices stay taken until the API server has said which: nobody else shall get them meanwhile.
    // DIFFERS: upstream frees them at once, and another claim may get the same devices until the change is told.
    fn end_when_certain(&self, claim: &Arc<ResourceClaim>, pod: &Arc<PodInfo>) {
        let (handle, claim, pod) = (Arc::clone(&self.handle), Arc::clone(claim), Arc::clone(pod));
        let settled = self.handle.sleep(WRITES_SETTLE);
        self.handle.spawn(Box::pin(async move {
            settled.await;
            let (api, devices) = (handle.api(), handle.listers().devices());
            if let Some(writer) = api.claims() {
                let namespace = claim.metadata.namespace.clone().unwrap_or_default();
                match writer.get(&namespace, name(&claim)).await {
                    Ok(found) if uid(&found) == uid(&claim) => {
                        let reserved = is_reserved_for_pod(&pod.pod, &found);
                        // Told of already, or of a newer version: as well.
                        let _ = devices.assume(Arc::new(found.clone()), false);
                        if reserved && let Err(error) = writer.unreserve(&found, &pod.uid).await {
                            tracing::error!(%error, claim = claim_key(&claim), "unreserve");
                        }
                    }
                    Ok(_) | Err(ApiWriteError::NotFound(_)) => {}
                    Err(error) => {
                        tracing::error!(%error, claim = claim_key(&claim), "Whether the claim was allocated is not known");
                    }
                }
            }
            devices.end_allocation(uid(&claim));
            // No event tells of an allocation that was not written.
            handle.activate(vec![Arc::clone(&pod.pod)]);
        }));
    }

    /// The opposite of Reserve, and of what PreBind has written.
    pub(super) fn take_back(&self, state: &State, pod: &Arc<PodInfo>) {
        let (claims, pending, uncertain) = {
            let mut progress = state.progress();
            let uncertain = progress.uncertain.take();
            (
                progress.claims.clone(),
                std::mem::take(&mut progress.pending),
                uncertain.map(|index| Arc::clone(&progress.claims[index])),
            )
        };
        let devices = self.devices();
        for id in pending {
            match &uncertain {
                Some(claim) if uid(claim) == id => self.end_when_certain(claim, pod),
                _ => _ = devices.end_allocation(&id),
            }
        }
        // DIFFERS: upstream forgets what it assumed of claims that were written; the API server has it, so it stands until a newer version comes.
        for (index, claim) in claims.iter().enumerate() {
            if state.is_special(index) {
                // Of a claim that is deleted nobody may ever tell.
                devices.restore(&claim_key(claim));
                if !is_in_memory(claim) {
                    self.delete_later(Arc::clone(claim));
                }
                continue;
            }
            if allocation(claim).is_some() && is_reserved_for_pod(&pod.pod, claim) {
                let pod_uid = pod.uid.to_string();
                self.write_later("unreserve", Arc::clone(claim), move |api, claim| {
                    Box::pin(async move {
                        match api.claims() {
                            Some(writer) => writer.unreserve(claim, &pod_uid).await.map(|_| ()),
                            None => Ok(()),
                        }
                    })
                });
            }
        }
    }

    /// Gives up one allocation that some node cannot use, if there is one that nobody else uses. `None`: there is none.
    // DIFFERS: upstream waits for the write; the change of the claim brings the pod back here.
    pub(super) fn give_up_allocation(
        &self,
        state: &State,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        statuses: &NodeToStatus,
    ) -> Option<Status> {
        let claims = state.claims();
        let rejected = |name: &str| {
            let status = statuses.get(name, snapshot);
            status.plugin() == names::DYNAMIC_RESOURCES
                && status.reasons().iter().any(|r| r == NOT_AVAILABLE)
        };
        let nodes: Vec<_> = snapshot
            .iter()
            .filter(|(_, node)| rejected(node.name()))
            .collect();
        let unavailable = claims
            .iter()
            .enumerate()
            .take(state.own)
            .find(|(index, claim)| {
                let unusable = nodes
                    .iter()
                    .any(|(_, node)| !self.is_available(state, *index, claim, node));
                unusable && is_for_nobody_else(claim, &pod.pod)
            });
        if let Some((_, claim)) = unavailable {
            tracing::debug!(
                pod = pod.name(),
                namespace = pod.namespace(),
                claim = name(claim),
                "Deallocation of ResourceClaim"
            );
            let mut free = (**claim).clone();
            if let Some(status) = &mut free.status {
                (status.allocation, status.reserved_for, status.devices) = (None, None, None);
            }
            self.write_later("deallocating the claim", Arc::new(free), |api, claim| {
                Box::pin(async move {
                    match api.claims() {
                        Some(writer) => writer.write_status(claim).await.map(|_| ()),
                        None => Ok(()),
                    }
                })
            });
            return Some(Status::unschedulable(
                "deallocation of ResourceClaim started",
            ));
        }
        let stale = claims
            .get(state.own)
            .filter(|special| !is_in_memory(special))?;
        self.delete_later(Arc::clone(stale));
        Some(Status::unschedulable("deletion of ResourceClaim started"))
    }
}
