//! A resize on its way: granted in order, put in force by the workers, and told of.
//!
//! Owns: when waiting resizes are looked at, and their events. What is granted is decided in `resize::allocation`.
//! Upstream: `handlePodResourcesResize`, `SyncPod`, v1.36.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::Kubelet;
use crate::events::{Type, reason};
use crate::kuberuntime::SyncResult;
use crate::metrics;
use crate::pod;
use crate::pod_status::PodStatus;
use crate::resize::allocation::INFEASIBLE;
use crate::resize::{Change, Pinned, began_with_others, difference, event_message};

impl Kubelet {
    /// Looks at every resize that waits. `own`: the pod whose worker asks; it need not be woken.
    pub(super) fn resolve_resizes(&self, own: Option<&str>) {
        let changes = self.allocation.resolve(
            &self.active(),
            &self.node.allocatable.load(),
            Pinned {
                cpu: self.managers.has_cpu_policy(),
                memory: self.managers.has_memory_policy(),
            },
            self.clock.now(),
        );
        for (pod, change) in changes {
            let tell = |kind, reason: &str, what: &str, error: &str| {
                let text = event_message(what, &pod, pod.metadata.generation, error);
                self.recorder.pod(&pod, kind, reason, text);
            };
            match change {
                Change::Granted => {
                    tracing::info!(pod = %pod::format(&pod), "resize is granted");
                    tell(
                        Type::Normal,
                        reason::RESIZE_STARTED,
                        "Pod resize started",
                        "",
                    );
                }
                Change::Pending(pending) => {
                    if let Some(detail) = pending.reason_detail {
                        metrics::POD_INFEASIBLE_RESIZES
                            .with_label_values(&[detail])
                            .inc();
                    }
                    let event = if pending.reason == INFEASIBLE {
                        reason::RESIZE_INFEASIBLE
                    } else {
                        reason::RESIZE_DEFERRED
                    };
                    let what = format!("Pod resize {}", pending.reason);
                    tell(Type::Warning, event, &what, &pending.message);
                }
                Change::Reverted => {}
            }
            let uid = pod::uid(&pod);
            if own != Some(uid) {
                self.workers.wake(uid);
            }
        }
        self.show_resizes();
    }

    /// The gauges of what waits and of what is under way.
    pub(super) fn show_resizes(&self) {
        let counts = self.allocation.counts(&self.pods.pods());
        metrics::POD_PENDING_RESIZES.reset();
        for ((reason, bucket), count) in &counts.pending {
            metrics::POD_PENDING_RESIZES
                .with_label_values(&[reason.as_str(), bucket])
                .set(*count);
        }
        metrics::POD_IN_PROGRESS_RESIZES.set(counts.in_progress);
    }

    /// Does the runtime enforce what the container was granted?
    pub(super) fn actuated(
        &self,
        pod: &Pod,
        spec: &Container,
        cs: &runtime::api::ContainerStatus,
    ) -> bool {
        !difference(&self.runtime.wanted_resources(pod, spec), &cs.resources).any()
            && !began_with_others(spec, &cs.annotations)
    }

    /// Notes whether a resize is under way, and tells when it is complete. `pod`: with what it was granted.
    pub(super) fn note_resize_progress(&self, pod: &Arc<Pod>, status: &PodStatus) {
        let sidecars = pod::init_containers(pod)
            .iter()
            .filter(|c| pod::is_restartable_init(c));
        let differs = pod::containers(pod).iter().chain(sidecars).any(|spec| {
            let current = status.find_container_status_by_name(&spec.name);
            current.is_some_and(|cs| {
                cs.state == runtime::api::ContainerState::Running && !self.actuated(pod, spec, cs)
            })
        });
        let differs = differs || self.container_manager.pod_differs(pod);
        if let Some(generation) = self.allocation.progress(pod, differs) {
            let text = event_message("Pod resize completed", pod, generation, "");
            self.recorder
                .pod(pod, Type::Normal, reason::RESIZE_COMPLETED, text);
            self.show_resizes();
        }
    }

    /// What a round came to, as far as it resized.
    pub(super) fn after_resize(&self, pod: &Arc<Pod>, result: &SyncResult) {
        if let Some(error) = &result.resize_error
            && let Some(generation) = self.allocation.failed(pod, error)
        {
            let text = event_message("Pod resize error", pod, generation, error);
            self.recorder
                .pod(pod, Type::Warning, reason::RESIZE_ERROR, text);
        }
        if result.resized
            && result.resize_error.is_none()
            && let Err(error) = self
                .container_manager
                .update_qos_cgroups(&self.active_pods())
        {
            tracing::warn!(pod = %pod::format(pod), %error, "failed to update QoS cgroups after a resize");
        }
    }
}
