//! CPUs, memory and devices of a pod: given out together before it runs, and CPUs of what runs already kept to what is left.
//!
//! Owns: the order in which managers are asked, and the reconcile loop. Who gets what is decided by the crates `resource-managers` and
//! `devices`. Upstream: pkg/kubelet/cm/topologymanager scopes, `reconcileState` of cpumanager, v1.37.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ::devices::{Given, PodRequest};
use ::resource_managers::{AdmissionError, ResourceManagers, Scope, TopologyHint};
use k8s_openapi::api::core::v1::Pod;
use runtime::api::Resources;
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;

use super::Kubelet;
use crate::admission::Rejection;
use crate::kuberuntime::observe;
use crate::off_thread::spawn_blocking;
use crate::resource_managers::rejection;
use crate::{device_plugins, metrics, pod};

/// Who waits for whom.
#[derive(Default)]
pub struct Pinning {
    /// Somebody got CPUs, or left some.
    pool_changed: Notify,
    /// Of pods that want devices near to their CPUs.
    device_turn: Mutex<()>,
}

/// Pauses between two rounds are no shorter.
const LEAST_RECONCILE_PERIOD: Duration = Duration::from_millis(100);

impl Kubelet {
    /// Whether anything is to be given out before the pod may run. Who needs nothing waits for nobody.
    pub fn needs_allocation(&self, pod: &Pod, request: &PodRequest) -> bool {
        self.devices.concerns(request) || self.managers.concerns(pod)
    }

    /// A pod was asked for, and it took so long.
    pub fn observe_topology_admission(&self, took: Duration) {
        metrics::TOPOLOGY_ADMISSION_REQUESTS.inc();
        metrics::TOPOLOGY_ADMISSION_DURATION.observe(took.as_secs_f64() * 1000.0);
    }

    /// The pod's devices, CPUs and memory, before anything of it runs.
    ///
    /// # Errors
    /// It cannot have them: it is rejected for good.
    pub async fn allocate_resources(
        &self,
        pod: &Arc<Pod>,
        request: &PodRequest,
    ) -> Result<(), Rejection> {
        let begin = self.clock.monotonic();
        self.free_devices().await;
        let mut outcome = self.allocate_or_free(pod, request).await;
        if outcome.is_err() && !self.devices.is_settled() {
            // A pod that ended while no kubelet was here may have some on record still. DIFFERS: upstream rejects this one then.
            self.devices.until_settled().await;
            self.free_devices().await;
            outcome = self.allocate_or_free(pod, request).await;
        }
        if outcome.is_err() && self.managers.scope() != Scope::None {
            metrics::TOPOLOGY_ADMISSION_ERRORS.inc();
        }
        self.pinning.pool_changed.notify_one();
        self.observe_topology_admission(self.clock.monotonic() - begin);
        outcome
    }

    /// A pod that cannot have all has nothing; upstream frees it with the next pod that comes.
    async fn allocate_or_free(
        &self,
        pod: &Arc<Pod>,
        request: &PodRequest,
    ) -> Result<(), Rejection> {
        let outcome = match self.managers.scope() {
            Scope::None => self.allocate_anywhere(pod, request).await,
            scope => self.allocate_aligned(pod, request, scope).await,
        };
        if outcome.is_err() {
            let uid = pod::uid(pod).to_owned();
            let freed = self.with_managers(move |managers| managers.remove_pod(&uid));
            freed.await.unwrap_or_default();
        }
        outcome
    }

    async fn allocate_anywhere(
        &self,
        pod: &Arc<Pod>,
        request: &PodRequest,
    ) -> Result<(), Rejection> {
        if self.devices.concerns(request) {
            self.allocate_devices(request).await?;
        }
        let pod = pod.clone();
        self.admit(move |managers| managers.allocate_pod(&pod))
            .await
    }

    /// CPUs and memory in one turn with the hints, so that nobody else gets them meanwhile; devices then. Pods that want devices wait for
    /// each other, for what was hinted at must be there still.
    ///
    /// DIFFERS: upstream asks for devices before CPUs, and holds up every other pod.
    async fn allocate_aligned(
        &self,
        pod: &Arc<Pod>,
        request: &PodRequest,
        scope: Scope,
    ) -> Result<(), Rejection> {
        let _turn = match self.devices.concerns(request) {
            true => Some(self.pinning.device_turn.lock().await),
            false => None,
        };
        let mut given = Given::new();
        let outcome = match scope {
            Scope::Pod => self.allocate_by_pod(pod, request, &mut given).await,
            _ => self.allocate_by_container(pod, request, &mut given).await,
        };
        if outcome.is_err() {
            self.devices.take_back(&request.uid, &given).await;
        }
        outcome
    }

    async fn allocate_by_pod(
        &self,
        pod: &Arc<Pod>,
        request: &PodRequest,
        given: &mut Given,
    ) -> Result<(), Rejection> {
        let nodes = self.managers.numa_nodes();
        let hints = self.devices.pod_topology_hints(request, nodes);
        let of_pod = pod.clone();
        let admitted = self.admit(move |managers| managers.admit_pod(&of_pod, hints));
        let hint = admitted.await?;
        for container in &request.containers {
            self.allocate_devices_of(request, &container.name, hint, given)
                .await?;
        }
        Ok(())
    }

    async fn allocate_by_container(
        &self,
        pod: &Arc<Pod>,
        request: &PodRequest,
        given: &mut Given,
    ) -> Result<(), Rejection> {
        let containers = pod::init_containers(pod).iter().chain(pod::containers(pod));
        for container in containers {
            let (name, nodes) = (&container.name, self.managers.numa_nodes());
            let hints = self.devices.topology_hints(request, name, nodes);
            let (of_pod, of_container) = (pod.clone(), container.clone());
            let admitted =
                self.admit(move |managers| managers.admit_container(&of_pod, &of_container, hints));
            let hint = admitted.await?;
            self.allocate_devices_of(request, name, hint, given).await?;
        }
        Ok(())
    }

    async fn allocate_devices_of(
        &self,
        request: &PodRequest,
        container: &str,
        hint: TopologyHint,
        given: &mut Given,
    ) -> Result<(), Rejection> {
        if !self.devices.concerns(request) {
            return Ok(());
        }
        let allocated = self
            .devices
            .allocate_container_aligned(request, container, hint.affinity);
        let new = allocated
            .await
            .map_err(|error| device_plugins::rejection(&error))?;
        given.extend(new);
        Ok(())
    }

    async fn admit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ResourceManagers) -> Result<T, AdmissionError> + Send + 'static,
    ) -> Result<T, Rejection> {
        match self.with_managers(work).await {
            Some(outcome) => outcome.map_err(|error| rejection(&error)),
            None => Err(device_plugins::lost()),
        }
    }

    /// `None`: it panicked.
    async fn with_managers<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ResourceManagers) -> T + Send + 'static,
    ) -> Option<T> {
        let managers = self.managers.clone();
        spawn_blocking(move || work(&managers)).await.ok()
    }

    /// Frees CPUs and memory of pods that are through.
    ///
    /// DIFFERS: a pod that is gone from the API keeps them until its containers are gone; upstream frees them at once.
    pub(super) async fn free_pinned(&self) {
        let holders = self.managers.holders().into_iter();
        let gone: BTreeSet<String> = holders.filter(|uid| !self.may_use_devices(uid)).collect();
        if gone.is_empty() {
            return;
        }
        let freed = self.with_managers(move |managers| managers.retain(|uid| !gone.contains(uid)));
        if freed.await.unwrap_or_default() {
            self.pinning.pool_changed.notify_one();
        }
    }

    /// Keeps containers to the CPUs that are theirs or shared, until `shutdown`.
    ///
    /// DIFFERS: upstream looks every `period` alone; here, when somebody got CPUs or left some, too.
    pub async fn reconcile_cpus(self: Arc<Self>, period: Duration, shutdown: CancellationToken) {
        let period = period.max(LEAST_RECONCILE_PERIOD);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.pinning.pool_changed.notified() => {}
                () = self.clock.sleep(period) => {}
            }
            self.free_devices().await;
            self.reconcile_once().await;
        }
    }

    /// DIFFERS: ephemeral containers are looked at, too; upstream leaves them on CPUs that are another's by now.
    async fn reconcile_once(&self) {
        let pods = match self.runtime.pods().await {
            Ok(pods) => pods,
            Err(error) => {
                tracing::error!(%error, "failed listing pods of the runtime, no CPUs are reconciled");
                return;
            }
        };
        for (uid, status) in pods.iter().filter(|(uid, _)| self.may_use_devices(uid)) {
            for container in status.running_containers() {
                let name = &container.metadata.name;
                let wanted = self.managers.cpu_affinity(uid, name).to_string();
                if wanted.is_empty() || wanted == container.resources.cpuset_cpus {
                    continue;
                }
                let (id, runtime) = (&container.id, self.runtime.runtime());
                tracing::info!(uid, container = name, cpus = wanted, "updating container");
                let update = Resources {
                    cpuset_cpus: wanted,
                    ..Resources::default()
                };
                let call = runtime.update_container_resources(id, &update);
                if let Err(error) = observe("update_container_resources", call).await {
                    tracing::error!(uid, container = name, %error, "failed to update container");
                }
            }
        }
    }
}
