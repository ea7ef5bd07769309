//! The kubelet proper: what is done for one pod, from its first sight to its last trace.
//!
//! Owns: the three rounds of a pod worker (sync, terminate, clean up) and everything they need. The pods themselves come
//! through `sync_loop`. Upstream: `SyncPod`, `SyncTerminatingPod`, `SyncTerminatedPod` in `pkg/kubelet/kubelet.go`, v1.36.

mod cleanup;
mod devices;
mod pinning;
mod resizing;
mod server_context;
mod volumes;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ::volumes::VolumeManager;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use component_base::clock::Clock;
use component_helpers::qos::get_pod_qos;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus as ApiPodStatus};
use tokio_util::sync::CancellationToken;

use crate::active_deadline;
use crate::admission::Rejection;
use crate::cm::ContainerManager;
use crate::configuration::KubeletConfiguration;
use crate::csi_node::{Exhausted, StorageError};
use crate::device_plugins;
use crate::dynamic_resources::DynamicResources;
use crate::events::{KubeletRecorder, Type, reason};
use crate::image_gc::ImageGcManager;
use crate::kuberuntime::gc::GcPolicy;
use crate::kuberuntime::{RuntimeManager, SyncResult};
use crate::node::NodeState;
use crate::object_cache::ObjectCache;
use crate::paths::Paths;
use crate::pending::Pending;
use crate::pod;
use crate::pod_manager::PodManager;
use crate::pod_status::PodStatus;
use crate::pod_workers::{PodSyncer, PodWorkers, SyncError, SyncOutcome};
use crate::prober::ProbeManager;
use crate::resize::AllocationManager;
use crate::restart_all;
use crate::status::generate::{ForcedFailure, GenerateInput, generate_api_pod_status};
use crate::status::manager::StatusManager;
use crate::user_namespaces::UserNamespaceManager;
use crate::{metrics, mirror, termination};

pub use self::pinning::Pinning;
use self::volumes::Mounted;

/// When the network is not ready yet; upstream: `backOffOnTransientErrorPeriod`.
const TRANSIENT_ERROR_RETRY: Duration = Duration::from_secs(1);

/// How often a long round of sync looks at the clock; upstream's loop looks every second.
const DEADLINE_CHECK_PERIOD: Duration = Duration::from_secs(1);

/// What the runtime last said of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeState {
    /// `None`: not asked yet. `Some(None)`: ready. Else reason and message.
    pub runtime: Option<Option<(String, String)>>,
    pub network: Option<Option<(String, String)>>,
}

/// The parts of a kubelet, made by `app`.
pub struct Kubelet {
    pub node: Arc<NodeState>,
    pub pods: Arc<PodManager>,
    pub status: Arc<StatusManager>,
    pub workers: Arc<PodWorkers>,
    pub runtime: Arc<RuntimeManager>,
    pub probes: Arc<ProbeManager>,
    pub volumes: VolumeManager,
    pub devices: Arc<::devices::Manager>,
    pub claims: Arc<DynamicResources>,
    pub managers: Arc<::resource_managers::ResourceManagers>,
    pub pinning: Pinning,
    pub objects: Arc<ObjectCache>,
    pub container_manager: Arc<ContainerManager>,
    pub user_namespaces: Arc<UserNamespaceManager>,
    pub image_gc: Arc<ImageGcManager>,
    pub security: Arc<crate::security_context::NodeSecurity>,
    pub recorder: KubeletRecorder,
    pub paths: Paths,
    pub config: Arc<KubeletConfiguration>,
    pub client: Option<kube::Client>,
    pub runtime_state: ArcSwap<RuntimeState>,
    pub runtime_handlers: ArcSwap<Vec<runtime::api::RuntimeHandler>>,
    /// Wakes the sync loop when a worker is through.
    pub finished: Arc<Pending<String>>,
    pub gc_policy: GcPolicy,
    pub allocation: Arc<AllocationManager>,
    /// What the node says it can do; sorted.
    pub declared_features: Vec<String>,
    pub clock: Clock,
    /// When the sync loop last turned, by [`Clock::monotonic`]; for its health.
    pub loop_turned: ArcSwap<Option<Duration>>,
    pub storage_error: StorageError,
    pub exhausted_drivers: Exhausted,
    /// Every source told of its pods once.
    pub sources_told: AtomicBool,
}

impl Kubelet {
    /// The status of the pod as of now, from all that is known.
    async fn generate_status(
        &self,
        pod: &Pod,
        status: &PodStatus,
        pod_is_terminal: bool,
        forced: Option<&ForcedFailure>,
    ) -> ApiPodStatus {
        let mut status = status.clone();
        termination::fill_messages(&self.paths, &mut status.containers).await;
        let uid = pod::uid(pod);
        let old = self
            .status
            .get_pod_status(uid)
            .or_else(|| pod.status.clone())
            .unwrap_or_default();
        let actuated =
            |spec: &Container, cs: &runtime::api::ContainerStatus| self.actuated(pod, spec, cs);
        let pod_config = self.container_manager.pod_config(pod);
        let resize_conditions = if pod_is_terminal {
            vec![]
        } else {
            self.allocation.conditions(uid)
        };
        let mut new = generate_api_pod_status(&GenerateInput {
            pod,
            status: &status,
            old: &old,
            pod_is_terminal,
            start_failures: &self.runtime.start_failures(uid),
            probes: self.probes.as_ref(),
            host_ips: &self.node.host_ips.load(),
            qos_class: get_pod_qos(pod).as_str(),
            supports_rro: self.runtime.supports_rro(),
            stop_signals: self.runtime.stop_signals(),
            forced_failure: forced,
            actuated: &actuated,
            resize_conditions,
            pod_config: &pod_config,
            pod_actuated: !self.container_manager.pod_differs(pod),
            now: self.clock.now(),
        });
        device_plugins::tell_health(&self.devices, uid, &mut new);
        self.claims.tell_health(pod, &mut new);
        let overdue = |s: &ApiPodStatus| s.reason.as_deref() == Some(active_deadline::REASON);
        if overdue(&new) && !overdue(&old) {
            let text = active_deadline::MESSAGE;
            self.recorder
                .pod(pod, Type::Normal, active_deadline::REASON, text);
        }
        new
    }

    /// What is left of the pod's time, by the newest that is known of it.
    fn until_deadline(&self, uid: &str) -> Option<Duration> {
        let pod = self.pods.get_pod_by_uid(uid)?;
        let start = match self.status.get_pod_status(uid) {
            Some(status) => status.start_time,
            None => pod.status.as_ref().and_then(|s| s.start_time.clone()),
        };
        active_deadline::remaining(&pod, start.map(|t| t.0), self.clock.now())
    }

    /// One round of sync, given up when the pod's time is over: a pull or a hook may take longer than the pod has.
    async fn sync_within_deadline(
        &self,
        pod: &Arc<Pod>,
        cancel: &CancellationToken,
    ) -> Result<SyncOutcome, SyncError> {
        let uid = pod::uid(pod);
        let round = cancel.child_token();
        let work = self.sync(pod, &round);
        tokio::pin!(work);
        loop {
            tokio::select! {
                outcome = &mut work => return outcome,
                // The deadline may be set or moved meanwhile.
                () = tokio::time::sleep(DEADLINE_CHECK_PERIOD), if !round.is_cancelled() => {}
            }
            if self.until_deadline(uid) == Some(Duration::ZERO) {
                round.cancel();
            }
        }
    }

    /// Waits for the end; of a pod that the kubelet ends on its own account it tells when that takes too long.
    async fn watch_kill<T>(
        &self,
        pod: &Pod,
        forced: Option<&ForcedFailure>,
        grace_period_seconds: i64,
        kill: impl Future<Output = T>,
    ) -> T {
        tokio::pin!(kill);
        if forced.is_some() {
            match tokio::time::timeout(kill_timeout(grace_period_seconds), &mut kill).await {
                Ok(done) => return done,
                Err(_) => self.recorder.pod(
                    pod,
                    Type::Warning,
                    reason::EXCEEDED_GRACE_PERIOD,
                    "Container runtime did not kill the pod within specified grace period.",
                ),
            }
        }
        kill.await
    }

    /// The newest version of the pod that a source gave, with the resources it was granted.
    fn latest(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        let pod = self
            .pods
            .get_pod_by_uid(pod::uid(pod))
            .unwrap_or_else(|| pod.clone());
        self.allocation.granted(&pod)
    }

    async fn reconcile_mirror_pod(&self, pod: &Pod) {
        if !pod::is_static(pod) {
            return;
        }
        let Some(client) = &self.client else { return };
        let mut present = false;
        if let Some(mirror) = self.pods.get_mirror_pod_by_pod(pod) {
            if pod::is_deleted(&mirror) || pod::mirror_hash(&mirror) != pod::config_hash(pod) {
                if let Err(error) = mirror::delete_mirror_pod(client, &mirror).await {
                    tracing::warn!(pod = %pod::format(&mirror), %error, "failed deleting mirror pod");
                    return;
                }
            } else {
                present = true;
            }
        }
        if !present && let Err(error) = mirror::create_mirror_pod(client, &self.node, pod).await {
            tracing::warn!(pod = %pod::format(pod), %error, "failed creating a mirror pod");
        }
    }

    fn make_pod_data_dirs(&self, pod: &Pod) -> std::io::Result<()> {
        let dir = self.paths.pod(pod::uid(pod));
        for path in [dir.clone(), dir.join("volumes"), dir.join("plugins")] {
            std::fs::create_dir_all(&path)?;
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o750))?;
        }
        Ok(())
    }

    fn observe_start(&self, pod: &Pod, before: Option<&ApiPodStatus>, now: &ApiPodStatus) {
        let was_pending = before.is_none_or(|s| s.phase.as_deref() == Some("Pending"));
        if !was_pending || now.phase.as_deref() != Some("Running") {
            return;
        }
        let since = |t: Timestamp| self.clock.now().duration_since(t).as_secs_f64().max(0.0);
        let seen = pod::annotation(pod, pod::CONFIG_FIRST_SEEN_ANNOTATION)
            .and_then(|t| t.parse::<Timestamp>().ok());
        if let Some(seen) = seen {
            metrics::POD_START_DURATION.observe(since(seen));
        }
        if let Some(created) = pod.metadata.creation_timestamp.as_ref() {
            metrics::POD_START_SLI_DURATION.observe(since(created.0));
        }
    }

    /// The pod's cgroup, made if need be.
    fn ensure_cgroup(&self, pod: &Arc<Pod>) -> Result<(), SyncError> {
        // Not set by this kubelet yet: a resize may have been granted and not done when the last one ended.
        let first = !self.container_manager.is_set(pod);
        if first
            && let Err(error) = self
                .container_manager
                .update_qos_cgroups(&self.active_pods())
        {
            tracing::warn!(%error, "failed to update QoS cgroups while syncing pod");
        }
        if !first {
            return Ok(());
        }
        self.container_manager.ensure_pod(pod).map_err(|error| {
            let message = format!("unable to ensure pod container exists: {error}");
            self.recorder.pod(
                pod,
                Type::Warning,
                reason::FAILED_CREATE_POD_CONTAINER,
                message.clone(),
            );
            SyncError(message)
        })
    }

    /// The pod will not run here: it is Failed for good.
    pub fn reject_pod(&self, pod: &Pod, rejection: &Rejection) {
        metrics::ADMISSION_REJECTIONS
            .with_label_values(&[&rejection.reason])
            .inc();
        self.recorder.pod(
            pod,
            Type::Warning,
            &rejection.reason,
            rejection.message.clone(),
        );
        let status = ApiPodStatus {
            qos_class: Some(get_pod_qos(pod).as_str().to_owned()),
            phase: Some("Failed".to_owned()),
            reason: Some(rejection.reason.clone()),
            message: Some(format!("Pod was rejected: {}", rejection.message)),
            observed_generation: pod.metadata.generation,
            conditions: pod.status.as_ref().and_then(|s| s.conditions.clone()),
            ..ApiPodStatus::default()
        };
        self.status.set_pod_status(pod, status);
    }

    async fn sync(
        &self,
        pod: &Arc<Pod>,
        cancel: &CancellationToken,
    ) -> Result<SyncOutcome, SyncError> {
        let uid = pod::uid(pod);
        let status = self.runtime.pod_status(uid).await.map_err(|error| {
            let message = format!("error determining status: {error}");
            self.recorder
                .pod(pod, Type::Warning, reason::FAILED_SYNC, message.clone());
            SyncError(message)
        })?;
        self.note_resize_progress(pod, &status);
        let api_status = self.generate_status(pod, &status, false, None).await;
        if pod::is_terminal_phase(api_status.phase.as_deref().unwrap_or_default()) {
            self.status.set_pod_status(pod, api_status);
            return Ok(SyncOutcome {
                terminal: true,
                ..SyncOutcome::default()
            });
        }
        self.observe_start(pod, self.status.get_pod_status(uid).as_ref(), &api_status);
        let restart_all = restart_all::is_told(&api_status);
        self.status.set_pod_status(pod, api_status.clone());
        self.probes.trigger_unready(uid, &api_status);

        if self.lacks_network(pod) {
            return Ok(SyncOutcome {
                failed: true,
                retry_after: Some(TRANSIENT_ERROR_RETRY),
                ..SyncOutcome::default()
            });
        }
        if cancel.is_cancelled() {
            return Ok(SyncOutcome::default());
        }
        self.objects.register_pod(pod);
        self.ensure_cgroup(pod)?;
        self.reconcile_mirror_pod(pod).await;
        self.make_pod_data_dirs(pod).map_err(|error| {
            let message = format!("error making pod data directories: {error}");
            self.recorder
                .pod(pod, Type::Warning, reason::FAILED, message.clone());
            SyncError(message)
        })?;

        let volumes = match self.mount_volumes(pod, cancel).await? {
            Mounted::All(volumes) => volumes,
            Mounted::Cancelled => return Ok(SyncOutcome::default()),
            Mounted::Rejected => {
                return Ok(SyncOutcome {
                    terminal: true,
                    ..SyncOutcome::default()
                });
            }
        };
        self.expand_volumes(pod);
        let (secrets, missing) = self.objects.pull_secrets(pod).await;
        self.probes.add_pod(pod);

        let result = self
            .runtime
            .sync_pod(pod, &status, &volumes, &secrets, cancel, restart_all)
            .await;
        // Where every image is to be had nobody misses them.
        if result.pull_failed && !missing.is_empty() && !cancel.is_cancelled() {
            let message = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            );
            self.recorder
                .pod(pod, Type::Warning, reason::UNABLE_TO_PULL_SECRETS, message);
        }
        self.after_resize(pod, &result);
        if (!result.errors.is_empty() || result.resized) && !cancel.is_cancelled() {
            self.tell_errors(pod, &result).await;
        }
        let refresh = self.volumes.next_refresh(uid).map(|at| {
            Duration::try_from(at.duration_since(self.clock.now()))
                .unwrap_or(Duration::ZERO)
                .max(Duration::from_secs(1))
        });
        Ok(SyncOutcome {
            terminal: false,
            failed: !result.errors.is_empty(),
            retry_after: [
                result.retry_after,
                refresh,
                result.reset.then_some(Duration::ZERO),
            ]
            .into_iter()
            .flatten()
            .min(),
        })
    }

    /// Whether the pod waits for the node's network; it is told so.
    fn lacks_network(&self, pod: &Pod) -> bool {
        let state = self.runtime_state.load();
        let Some(Some((_, message))) = &state.network else {
            return false;
        };
        if pod::is_host_network(pod) {
            return false;
        }
        let message = format!("network is not ready: {message}");
        let reason = reason::NETWORK_NOT_READY;
        self.recorder.pod(pod, Type::Warning, reason, message);
        true
    }

    async fn tell_errors(&self, pod: &Arc<Pod>, result: &SyncResult) {
        for error in &result.errors {
            tracing::warn!(pod = %pod::format(pod), error, "error syncing pod");
        }
        // Why it waits must be seen now, not at the next round.
        if let Ok(status) = self.runtime.pod_status(pod::uid(pod)).await {
            if result.resize_error.is_none() {
                self.note_resize_progress(pod, &status);
            }
            let api_status = self.generate_status(pod, &status, false, None).await;
            self.status.set_pod_status(pod, api_status);
        }
    }

    /// Everything that counts when another pod asks for room, with what it was granted.
    pub fn active_pods(&self) -> Vec<Arc<Pod>> {
        self.active()
            .iter()
            .map(|p| self.allocation.granted(p))
            .collect()
    }

    /// The same, as the sources have it.
    fn active(&self) -> Vec<Arc<Pod>> {
        self.pods
            .pods()
            .into_iter()
            .filter(|p| {
                let uid = pod::uid(p);
                let ended = |s: Option<&str>| pod::is_terminal_phase(s.unwrap_or_default());
                match self.workers.status(uid) {
                    Some(work) => {
                        !work.finished && work.state != crate::pod_workers::WorkState::Terminated
                    }
                    None => {
                        let own = self.status.get_pod_status(uid);
                        !ended(Some(pod::phase(p)))
                            && !ended(own.as_ref().and_then(|s| s.phase.as_deref()))
                    }
                }
            })
            .collect()
    }
}

/// Half as long again as the grace period, and at least ten seconds; upstream: `killPodNow`.
fn kill_timeout(grace_period_seconds: i64) -> Duration {
    const LEAST: u64 = 10;
    let grace = u64::try_from(grace_period_seconds).unwrap_or(0);
    Duration::from_secs((grace + grace / 2).max(LEAST))
}

#[async_trait]
impl PodSyncer for Kubelet {
    async fn sync_pod(&self, pod: &Arc<Pod>, cancel: &CancellationToken) -> SyncOutcome {
        let pod = self
            .pods
            .get_pod_by_uid(pod::uid(pod))
            .unwrap_or_else(|| pod.clone());
        self.allocation.add(&pod);
        if self.allocation.is_pending(&pod) {
            self.resolve_resizes(Some(pod::uid(&pod)));
        }
        let pod = self.allocation.granted(&pod);
        let begin = self.clock.monotonic();
        let outcome = self.sync_within_deadline(&pod, cancel).await;
        metrics::POD_WORKER_DURATION
            .with_label_values(&["sync"])
            .observe((self.clock.monotonic() - begin).as_secs_f64());
        let mut outcome = outcome.unwrap_or_else(|error| {
            tracing::error!(pod = %pod::format(&pod), %error, "Error syncing pod, skipping");
            SyncOutcome {
                failed: true,
                ..SyncOutcome::default()
            }
        });
        // However the round ended, the deadline is not slept through.
        let deadline = self.until_deadline(pod::uid(&pod));
        outcome.retry_after = outcome.retry_after.into_iter().chain(deadline).min();
        outcome
    }

    async fn sync_terminating_pod(
        &self,
        pod: &Arc<Pod>,
        forced: Option<&ForcedFailure>,
        grace_period_seconds: i64,
    ) -> Result<(), SyncError> {
        let pod = self.latest(pod);
        let uid = pod::uid(&pod);
        let fail = |e: &dyn std::fmt::Display| SyncError(e.to_string());
        let status = self.runtime.pod_status(uid).await.map_err(|e| fail(&e))?;
        let api_status = self.generate_status(&pod, &status, false, forced).await;
        self.status.set_pod_status(&pod, api_status);
        self.probes.stop_liveness_and_startup(&pod);
        let kill = self
            .runtime
            .kill_pod(Some(&pod), &status, Some(grace_period_seconds));
        if let Err(error) = self
            .watch_kill(&pod, forced, grace_period_seconds, kill)
            .await
        {
            let message = format!("error killing pod: {error}");
            self.recorder.pod(
                &pod,
                Type::Warning,
                reason::FAILED_KILL_POD,
                message.clone(),
            );
            return Err(SyncError(message));
        }
        self.probes.remove_pod(uid);
        let stopped = self.runtime.pod_status(uid).await.map_err(|e| fail(&e))?;
        let running: Vec<&str> = stopped
            .running_containers()
            .map(|c| c.id.as_str())
            .collect();
        if !running.is_empty() {
            return Err(SyncError(format!(
                "detected running containers after a successful KillPod, CRI violation: {running:?}"
            )));
        }
        // Before the terminal phase is written: then the claims may be given to others.
        self.claims.unprepare(uid).await.map_err(|e| fail(&e))?;
        let api_status = self.generate_status(&pod, &stopped, true, forced).await;
        self.status.set_pod_status(&pod, api_status);
        // The terminal phase may be written from now on; the state of the worker changes right after.
        self.status.wake();
        Ok(())
    }

    async fn sync_terminating_runtime_pod(&self, pod: &PodStatus) -> Result<(), SyncError> {
        let status = self
            .runtime
            .pod_status(&pod.uid)
            .await
            .map_err(|e| SyncError(e.to_string()))?;
        self.runtime
            .kill_pod(None, &status, None)
            .await
            .map_err(|e| SyncError(e.to_string()))?;
        self.claims
            .unprepare(&pod.uid)
            .await
            .map_err(|e| SyncError(e.to_string()))
    }

    async fn sync_terminated_pod(&self, pod: &Arc<Pod>) -> Result<(), SyncError> {
        let pod = self.latest(pod);
        let uid = pod::uid(&pod);
        let fail = |e: &dyn std::fmt::Display| SyncError(e.to_string());
        let status = self.runtime.pod_status(uid).await.map_err(|e| fail(&e))?;
        let forced = self.workers.status(uid).and_then(|s| s.forced);
        let api_status = self
            .generate_status(&pod, &status, true, forced.as_ref())
            .await;
        self.status.set_pod_status(&pod, api_status);
        self.volumes.unmount_pod(uid).await.map_err(|e| fail(&e))?;
        self.objects.unregister_pod(uid);
        self.container_manager
            .destroy_pod(&pod)
            .await
            .map_err(|e| fail(&e))?;
        self.user_namespaces.release(uid);
        self.status.terminate_pod(&pod);
        Ok(())
    }

    fn pod_finished(&self, uid: &str) {
        self.finished.add(uid.to_owned());
    }
}
