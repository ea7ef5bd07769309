//! Devices of plugins and of claims: asked for before a pod runs, freed when it is through.

use ::devices::{AllocationError, DevicesError, PodRequest};

use super::Kubelet;
use crate::admission::Rejection;
use crate::device_plugins::rejection;
use crate::pod;
use crate::pod_workers::WorkState;

impl Kubelet {
    /// The pod's devices, before anything of it runs.
    ///
    /// # Errors
    /// It cannot have them: it is rejected for good.
    pub async fn allocate_devices(&self, request: &PodRequest) -> Result<(), Rejection> {
        self.free_devices().await;
        let mut allocated = self.devices.allocate_pod(request).await;
        let all_taken = matches!(
            allocated,
            Err(DevicesError::Allocation(
                AllocationError::Unavailable { .. }
            ))
        );
        if all_taken && !self.devices.is_settled() {
            // A pod that ended while no kubelet was here may have them on record still. DIFFERS: upstream rejects this one then.
            self.devices.until_settled().await;
            self.free_devices().await;
            allocated = self.devices.allocate_pod(request).await;
        }
        allocated.map_err(|error| rejection(&error))
    }

    /// Frees what pods have that are through: devices, CPUs and memory.
    ///
    /// DIFFERS: a pod that is gone from the API keeps its devices until its containers are; upstream frees them at once.
    pub async fn free_devices(&self) {
        self.devices.retain(|uid| self.may_use_devices(uid)).await;
        if self.devices.is_settled() {
            self.free_pinned().await;
        }
    }

    /// Lets go of the claims of pods that are through, where the end of the pod did not do it.
    pub async fn reconcile_claims(&self) {
        // Before, a pod that runs may not be known yet.
        if self.devices.is_settled() {
            let manager = &self.claims.manager;
            manager.reconcile(|uid| self.may_use_devices(uid)).await;
        }
    }

    pub(super) fn may_use_devices(&self, uid: &str) -> bool {
        if let Some(work) = self.workers.status(uid) {
            return !work.finished && work.state != WorkState::Terminated;
        }
        let Some(pod) = self.pods.get_pod_by_uid(uid) else {
            return false;
        };
        let own = self.status.get_pod_status(uid).and_then(|s| s.phase);
        !pod::is_terminal_phase(pod::phase(&pod))
            && !pod::is_terminal_phase(own.as_deref().unwrap_or_default())
    }
}
