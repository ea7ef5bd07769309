//! Volumes of a pod: mounted before its containers start, and those that have grown.

use std::sync::Arc;

use component_base::tasks::spawn_helper;
use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;
use volumes::{Expanded, PodVolumes, VolumeError};

use super::Kubelet;
use crate::admission::Rejection;
use crate::events::{KubeletRecorder, Type, reason};
use crate::pod_workers::SyncError;

/// What became of a pod's volumes.
pub(super) enum Mounted {
    All(PodVolumes),
    /// The pod is being ended.
    Cancelled,
    /// It will not run here: the node has no room for its volumes.
    Rejected,
}

impl Kubelet {
    /// Mounts all of them, and tells of each that cannot be.
    pub(super) async fn mount_volumes(
        &self,
        pod: &Arc<Pod>,
        cancel: &CancellationToken,
    ) -> Result<Mounted, SyncError> {
        let mounted = tokio::select! {
            mounted = self.volumes.mount_pod(pod) => mounted,
            () = cancel.cancelled() => return Ok(Mounted::Cancelled),
        };
        let error = match mounted {
            Ok(volumes) => return Ok(Mounted::All(volumes)),
            Err(error) => error,
        };
        if let Some(driver) = error.exhausted_driver() {
            self.exhausted_drivers.tell(driver);
            let message =
                format!("Node has reached its volume attachment limit, rejecting pod. {error}");
            self.reject_pod(pod, &Rejection::attachment_limit(message));
            return Ok(Mounted::Rejected);
        }
        self.tell_unmounted(pod, &error);
        Err(SyncError(error.to_string()))
    }

    fn tell_unmounted(&self, pod: &Pod, error: &VolumeError) {
        for failure in error.failures() {
            let reason = match failure.block {
                true => reason::FAILED_MAP_VOLUME,
                false => reason::FAILED_MOUNT,
            };
            self.recorder
                .pod(pod, Type::Warning, reason, failure.to_string());
        }
        if error.failures().is_empty() {
            let message = format!("Unable to attach or mount volumes: {error}");
            self.recorder
                .pod(pod, Type::Warning, reason::FAILED_MOUNT, message);
        }
    }

    /// Has drivers make file systems as large as their volumes; the pod's round does not wait for it.
    pub(super) fn expand_volumes(&self, pod: &Arc<Pod>) {
        if !crate::pod::may_need_driver(pod) {
            return;
        }
        let (volumes, recorder, pod) = (self.volumes.clone(), self.recorder.clone(), pod.clone());
        let node = self.node.name.clone();
        spawn_helper("expansion of a pod's volumes", async move {
            for expanded in volumes.expand_pod(&pod).await {
                tell(&recorder, &pod, &node, &expanded);
            }
        });
    }
}

fn tell(recorder: &KubeletRecorder, pod: &Pod, node: &str, expanded: &Expanded) {
    match &expanded.outcome {
        Ok(()) => {
            let name = &expanded.name;
            let text = format!("MountVolume.NodeExpandVolume succeeded for volume {name:?} {node}");
            let reason = reason::FILE_SYSTEM_RESIZE_SUCCESS;
            recorder.pod(pod, Type::Normal, reason, text.clone());
            recorder.claim(&expanded.claim, Type::Normal, reason, text);
        }
        Err(error) => {
            recorder.pod(pod, Type::Warning, reason::VOLUME_RESIZE_FAILED, error);
        }
    }
}
