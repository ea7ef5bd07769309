//! Volumes of a pod that have grown.

use std::sync::Arc;

use component_base::tasks::spawn_helper;
use k8s_openapi::api::core::v1::Pod;
use volumes::Expanded;

use super::Kubelet;
use crate::events::{KubeletRecorder, Type, reason};

impl Kubelet {
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
