//! What nobody wants any longer: pods only the runtime knows, and the traces of pods that are gone.
//!
//! Owns: [`Kubelet::handle_pod_cleanups`] and the end of one pod. Runs after every source told of its pods once, so that
//! a restart never takes a pod for an orphan. Upstream: `HandlePodCleanups` in `kubelet_pods.go`, v1.36.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::Kubelet;
use crate::events::{Type, reason};
use crate::kuberuntime::gc::Use;
use crate::metrics;
use crate::pod;
use crate::pod_workers::{Update, WorkState};

impl Kubelet {
    /// The worker of the pod is through. If no source names it any more, nothing of it is left after this.
    pub async fn handle_pod_finished(&self, uid: &str) {
        self.status.wake();
        self.free_devices().await;
        self.allocation.forget(uid);
        // There may be room now.
        if self.allocation.has_pending() {
            self.resolve_resizes(None);
        }
        let status = match self.runtime.pod_status(uid).await {
            Ok(status) => status,
            Err(error) => {
                tracing::warn!(uid, %error, "cannot look at a finished pod, housekeeping will");
                return;
            }
        };
        let gone = self.pods.get_pod_by_uid(uid).is_none();
        let of_use = if gone { Use::Nobody } else { Use::Pod };
        let errors = self
            .runtime
            .collect_pod(&status, of_use, &self.gc_policy)
            .await;
        self.tell_gc_failed(&errors);
        if !gone {
            return;
        }
        if let Err(error) = self.volumes.remove_pod(uid).await {
            tracing::warn!(uid, %error, "failed to remove the pod's directory, housekeeping will");
        }
        self.runtime.forget_pod(uid);
        self.objects.unregister_pod(uid);
        self.probes.remove_pod(uid);
        self.workers.forget(uid);
    }

    /// A static pod that came back under its UID when its former self had ended: nothing is known of that any more, and the pod is to be
    /// admitted as any other, once nobody cleans up after it. `None`: it did not come back, or it runs.
    ///
    /// DIFFERS: upstream's pod begins anew unasked, whatever was given to others meanwhile.
    pub fn static_pod_to_restart(&self, uid: &str) -> Option<Arc<Pod>> {
        let pod = self
            .pods
            .get_pod_by_uid(uid)
            .filter(|p| pod::is_static(p))?;
        // Without a worker: it came when its former self was about to be forgotten, and was forgotten with it.
        let work = self.workers.status(uid);
        if work.is_some_and(|work| !work.finished || !work.restart_requested) {
            return None;
        }
        self.workers.forget(uid);
        metrics::RESTARTED_PODS.with_label_values(&["true"]).inc();
        Some(pod)
    }

    /// The disk is full: what pods that ended left on it goes, before anybody is evicted. Upstream: `DeleteAllUnusedContainers`.
    pub async fn delete_all_unused_containers(&self) {
        let pods = match self.runtime.pods().await {
            Ok(pods) => pods,
            Err(error) => {
                tracing::error!(%error, "failed listing pods of the runtime, no container is deleted");
                return;
            }
        };
        let mut errors = vec![];
        for (uid, status) in &pods {
            if self.workers.is_finished(uid) {
                let collected = self
                    .runtime
                    .collect_pod(status, Use::Object, &self.gc_policy)
                    .await;
                errors.extend(collected);
            }
        }
        self.tell_gc_failed(&errors);
    }

    fn tell_gc_failed(&self, errors: &[String]) {
        let text = match errors {
            [] => return,
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        self.recorder
            .node(Type::Warning, reason::CONTAINER_GC_FAILED, text);
    }

    /// The whole round. Pods come and go while it runs.
    ///
    /// **Invariant:** what there is is listed before it is asked who wants it, and that is asked anew for every single
    /// trace. A pod leaves traces only after it is known, so none of a pod that came meanwhile is taken for an orphan's.
    pub async fn handle_pod_cleanups(&self) {
        let desired = |uid: &str| self.pods.get_pod_by_uid(uid).is_some();
        let running = match self.runtime.pods().await {
            Ok(running) => running,
            Err(error) => {
                tracing::error!(%error, "failed listing pods of the runtime, no cleanup");
                return;
            }
        };
        let mut errors = vec![];
        for (uid, status) in &running {
            let known = desired(uid);
            match self.workers.status(uid) {
                None if !known => {
                    // Left by an earlier kubelet, and no source wants it.
                    metrics::ORPHANED_RUNTIME_PODS.inc();
                    tracing::info!(
                        uid,
                        pod = status.name,
                        namespace = status.namespace,
                        "clean up orphaned pod"
                    );
                    self.workers
                        .update_pod(uid, Update::KillRuntimePod(status.clone()));
                }
                Some(work) if work.finished => {
                    let of_use = if known { Use::Pod } else { Use::Nobody };
                    let collected = self
                        .runtime
                        .collect_pod(status, of_use, &self.gc_policy)
                        .await;
                    errors.extend(collected);
                }
                Some(work) if work.state == WorkState::Syncing => {
                    let collected = self
                        .runtime
                        .collect_pod(status, Use::Pod, &self.gc_policy)
                        .await;
                    errors.extend(collected);
                }
                _ => {}
            }
        }
        self.tell_gc_failed(&errors);
        for (uid, work) in self.workers.statuses() {
            if work.finished && !desired(&uid) {
                self.workers.forget(&uid);
                self.runtime.forget_pod(&uid);
            }
        }

        // Whatever runs and nobody wants has a worker by now that ends it.
        self.devices.settle();
        self.free_devices().await;
        let live =
            |uid: &str| desired(uid) || self.workers.status(uid).is_some_and(|work| !work.finished);
        self.probes.cleanup_pods(live);
        self.status.remove_orphaned_statuses(live);
        self.allocation.remove_orphans(live);
        // The directory of a pod stays as long as the runtime has a container of it.
        let keep = |uid: &str| {
            live(uid)
                || running
                    .get(uid)
                    .is_some_and(|status| status.has_live_container())
        };
        match self.volumes.orphans(keep).await {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => tracing::info!(?removed, "cleaned up orphaned pod directories"),
            Err(error) => tracing::warn!(%error, "failed to clean up orphaned pod directories"),
        }
        self.user_namespaces
            .release_orphans(&|uid| keep(uid) || running.contains_key(uid));
        // Pods that ended have had theirs destroyed; what is left and not wanted is an orphan.
        self.container_manager
            .cleanup_orphaned_pod_cgroups(keep)
            .await;
        self.runtime
            .remove_orphaned_logs(|uid| keep(uid) || running.contains_key(uid))
            .await;

        if let Some(client) = &self.client {
            for mirror in self.pods.orphaned_mirrors() {
                if let Err(error) = crate::mirror::delete_mirror_pod(client, &mirror).await {
                    tracing::warn!(pod = %pod::format(&mirror), %error, "failed deleting orphaned mirror pod");
                }
            }
        }
        self.count(&running);
    }

    fn count(&self, running: &std::collections::BTreeMap<String, crate::pod_status::PodStatus>) {
        use runtime::api::ContainerState;
        let with_sandbox = running.values().filter(|p| p.has_ready_sandbox()).count();
        metrics::RUNNING_PODS.set(i64::try_from(with_sandbox).unwrap_or(i64::MAX));
        for (state, label) in [
            (ContainerState::Created, "created"),
            (ContainerState::Running, "running"),
            (ContainerState::Exited, "exited"),
            (ContainerState::Unknown, "unknown"),
        ] {
            let n = running
                .values()
                .flat_map(|p| &p.containers)
                .filter(|c| c.state == state)
                .count();
            metrics::RUNNING_CONTAINERS
                .with_label_values(&[label])
                .set(i64::try_from(n).unwrap_or(i64::MAX));
        }
        let count = |metric: &prometheus::IntGaugeVec,
                     pods: &[std::sync::Arc<k8s_openapi::api::core::v1::Pod>]| {
            let fixed = pods.iter().filter(|p| pod::is_static(p)).count();
            metric
                .with_label_values(&["true"])
                .set(i64::try_from(fixed).unwrap_or(i64::MAX));
            metric
                .with_label_values(&[""])
                .set(i64::try_from(pods.len() - fixed).unwrap_or(i64::MAX));
        };
        count(&metrics::DESIRED_PODS, &self.pods.pods());
        count(&metrics::ACTIVE_PODS, &self.active_pods());
        self.show_resizes();
    }
}
