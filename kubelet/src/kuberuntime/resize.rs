//! Puts resizes in force: the pod's cgroup, then its containers'.
//!
//! Owns: the order of steps. Decides nothing about what is granted. Upstream: `doPodResizeAction`, `validateMemoryResizeAction`
//! in `pkg/kubelet/kuberuntime`, v1.36.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::{RuntimeManager, SyncResult, observe, timed};
use crate::metrics;
use crate::pod;
use crate::pod_actions::{ContainerToUpdate, PodActions};
use crate::pod_status::PodStatus;
use crate::resize::{MemoryLimit, check_memory_decrease};

impl RuntimeManager {
    /// Resizes in place: the pod's cgroup makes room first and shrinks last. A container that restarts for its resize
    /// needs the room, too.
    pub(super) async fn resize_pod(
        &self,
        pod: &Arc<Pod>,
        status: &PodStatus,
        actions: &PodActions,
        result: &mut SyncResult,
    ) {
        let manager = &self.d.container_manager;
        if actions.containers_to_update.is_empty() && !manager.pod_differs(pod) {
            return;
        }
        result.resized = true;
        let ((), took) = timed(self.put_in_force(pod, status, actions, result)).await;
        let success = result.resize_error.is_none().to_string();
        metrics::POD_RESIZE_DURATION
            .with_label_values(&[success.as_str()])
            .observe(took.as_secs_f64() * 1000.0);
    }

    async fn put_in_force(
        &self,
        pod: &Arc<Pod>,
        status: &PodStatus,
        actions: &PodActions,
        result: &mut SyncResult,
    ) {
        let manager = &self.d.container_manager;
        let mut fail = |error: String| {
            result.fail(format!("ResizePodInPlace: {error}"), None);
            result.resize_error.get_or_insert(error);
        };
        if let Err(error) = self
            .check_memory(pod, status, &actions.containers_to_update)
            .await
        {
            return fail(error);
        }
        if let Err(error) = manager.widen_pod(pod) {
            return fail(error.to_string());
        }
        for update in &actions.containers_to_update {
            let call = self
                .d
                .runtime
                .update_container_resources(&update.container_id, &update.resources);
            if let Err(error) = observe("update_container_resources", call).await {
                return fail(error.to_string());
            }
        }
        if let Err(error) = manager.ensure_pod(pod) {
            fail(error.to_string());
        }
    }

    /// Looks whether a memory limit is to go below what is used, as far as one goes down at all.
    async fn check_memory(
        &self,
        pod: &Pod,
        status: &PodStatus,
        updates: &[ContainerToUpdate],
    ) -> Result<(), String> {
        let manager = &self.d.container_manager;
        let of_pod = manager.pod_config(pod).memory_bytes.map(|desired| {
            let (current, usage) = manager.pod_memory(pod);
            MemoryLimit {
                desired,
                current,
                usage,
            }
        });
        let mut containers: Vec<(String, MemoryLimit)> = updates
            .iter()
            .filter_map(|update| {
                let now = status
                    .containers
                    .iter()
                    .find(|c| c.id == update.container_id);
                let limit = MemoryLimit {
                    desired: update.resources.memory_limit_bytes?,
                    current: now.and_then(|c| c.resources.memory_limit_bytes),
                    usage: None,
                };
                Some((update.name.clone(), limit))
            })
            .collect();
        // Asked for only when it matters.
        if containers.iter().any(|(_, l)| l.decreases()) {
            let stats = self.d.runtime.list_container_stats().await.map_err(|_| {
                format!("unable to read memory usage for pod {:?}", pod::format(pod))
            })?;
            let usage: HashMap<&str, u64> = stats
                .iter()
                .map(|s| (s.id.as_str(), s.memory_usage_bytes))
                .collect();
            for (update, (_, limit)) in updates
                .iter()
                .filter(|u| u.resources.memory_limit_bytes.is_some())
                .zip(&mut containers)
            {
                limit.usage = usage.get(update.container_id.as_str()).copied();
            }
        }
        check_memory_decrease(of_pod, &containers)
    }
}
