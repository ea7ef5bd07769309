//! Carries out what `pod_actions` decided, through the runtime.
//!
//! Owns: the order of steps to bring a pod up or down, start back-off, and why a start failed. Decides nothing about
//! what should run. Upstream: `pkg/kubelet/kuberuntime`, v1.36.

pub mod gc;
mod kill;
mod resize;
mod start;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use runtime::api::{Origin, PodSandboxConfig, Runtime, RuntimeError};
use tokio_util::sync::CancellationToken;
use volumes::{PodVolumes, VolumeLocation, VolumeManager};

use crate::backoff::Backoff;
use crate::cm::ContainerManager;
use crate::cm::resources::{ContainerResourceDefaults, container_resources};
use crate::configuration::KubeletConfiguration;
use crate::dns::Configurer;
use crate::dynamic_resources::DynamicResources;
use crate::environment::Objects;
use crate::events::{KubeletRecorder, Type, reason};
use crate::hosts;
use crate::image_manager::ImageManager;
use crate::metrics;
use crate::node::NodeState;
use crate::off_thread::off_thread;
use crate::paths::Paths;
use crate::pod::{self, ContainerKind};
use crate::pod_actions::{PodActions, compute_pod_actions};
use crate::pod_status::PodStatus;
use crate::prober::ProbeManager;
use crate::sandbox_config::{SandboxFacts, generate_pod_sandbox_config};
use crate::status::containers::StartFailure;
use crate::user_namespaces::UserNamespaceManager;

/// RuntimeClasses, as the API server has them.
#[async_trait]
pub trait RuntimeClasses: Send + Sync {
    /// The handler of the class; empty for no class.
    ///
    /// # Errors
    /// The class does not exist, or cannot be read now.
    async fn handler(&self, class: Option<&str>) -> Result<String, String>;
}

/// Everything needed to run pods; made once.
pub struct Dependencies {
    pub runtime: Arc<dyn Runtime>,
    pub recorder: KubeletRecorder,
    pub images: Arc<ImageManager>,
    pub volumes: VolumeManager,
    pub devices: Arc<::devices::Manager>,
    pub claims: Arc<DynamicResources>,
    pub managers: Arc<::resource_managers::ResourceManagers>,
    pub objects: Arc<dyn Objects>,
    pub runtime_classes: Arc<dyn RuntimeClasses>,
    pub container_manager: Arc<ContainerManager>,
    pub user_namespaces: Arc<UserNamespaceManager>,
    pub probes: Arc<ProbeManager>,
    pub node: Arc<NodeState>,
    pub paths: Paths,
    pub config: Arc<KubeletConfiguration>,
    pub clock: Clock,
    /// Of containers that end again and again.
    pub crash_loop: Backoff,
    /// For static pods before the API server is known.
    pub supports_rro: bool,
    /// Gate `ContainerStopSignals`.
    pub stop_signals: bool,
    pub supports_user_namespaces: bool,
    pub security: Arc<crate::security_context::NodeSecurity>,
}

/// Shared by the pod workers.
pub struct RuntimeManager {
    d: Dependencies,
    /// Pod UID -> container -> why it does not start.
    failures: Mutex<HashMap<String, HashMap<String, StartFailure>>>,
}

/// What one round over a pod came to.
#[derive(Debug, Default)]
pub struct SyncResult {
    /// One text a step that failed.
    pub errors: Vec<String>,
    /// The earliest time at which a failed step is worth another try; `None`: the usual back-off.
    pub retry_after: Option<Duration>,
    /// An image was asked for and could not be had; one that waits for its next try is none of them.
    pub pull_failed: bool,
    /// Resources of the pod or of running containers were changed.
    pub resized: bool,
    /// Why they could not be.
    pub resize_error: Option<String>,
    /// Containers were taken away for the pod to start over: look again at once.
    pub reset: bool,
}

impl SyncResult {
    fn fail(&mut self, text: String, retry_after: Option<Duration>) {
        self.errors.push(text);
        if let Some(wait) = retry_after {
            self.retry_after = Some(self.retry_after.map_or(wait, |before| before.min(wait)));
        }
    }
}

/// Why a sandbox could not be made.
#[derive(Debug, thiserror::Error)]
enum SandboxFailure {
    #[error(transparent)]
    Dns(#[from] crate::dns::DnsError),
    #[error(transparent)]
    Hostname(#[from] hosts::HostnameError),
    #[error(transparent)]
    UserNamespace(#[from] crate::user_namespaces::UserNamespaceError),
    #[error("{0}")]
    RuntimeClass(String),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// It was made, and cannot be looked at.
    #[error("{0}")]
    Status(#[source] RuntimeError),
    #[error("create log directory {path}: {source}")]
    LogDirectory {
        path: PathBuf,
        source: std::io::Error,
    },
}

impl RuntimeManager {
    pub fn new(d: Dependencies) -> Self {
        Self {
            d,
            failures: Mutex::default(),
        }
    }

    /// Can the runtime make all of a mount read-only, with what is mounted below it?
    pub fn supports_rro(&self) -> bool {
        self.d.supports_rro
    }

    /// Gate `ContainerStopSignals`.
    pub fn stop_signals(&self) -> bool {
        self.d.stop_signals
    }

    pub fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.d.runtime
    }

    /// All that the runtime knows of the kubelet's pods, by UID. What clients of the CRI's socket made is theirs.
    ///
    /// # Errors
    /// The runtime's; a retry may help.
    pub async fn pods(&self) -> Result<BTreeMap<String, PodStatus>, RuntimeError> {
        // Sandboxes last: a container whose sandbox is not listed yet still carries its labels.
        let mut containers = observe("list_containers", self.d.runtime.list_containers()).await?;
        let mut sandboxes = observe("list_podsandbox", self.d.runtime.list_pod_sandboxes()).await?;
        containers.retain(|container| container.origin == Origin::Kubelet);
        sandboxes.retain(|sandbox| sandbox.origin == Origin::Kubelet);
        Ok(PodStatus::group(sandboxes, containers))
    }

    /// What the runtime knows of one pod; empty if nothing.
    ///
    /// # Errors
    /// The runtime's; a retry may help.
    pub async fn pod_status(&self, uid: &str) -> Result<PodStatus, RuntimeError> {
        Ok(self.pods().await?.remove(uid).unwrap_or_else(|| PodStatus {
            uid: uid.to_owned(),
            ..PodStatus::default()
        }))
    }

    /// Why containers of the pod do not start, by name.
    pub fn start_failures(&self, uid: &str) -> HashMap<String, StartFailure> {
        self.failures().get(uid).cloned().unwrap_or_default()
    }

    fn failures(
        &self,
    ) -> std::sync::MutexGuard<'_, HashMap<String, HashMap<String, StartFailure>>> {
        self.failures.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The pod is gone.
    pub fn forget_pod(&self, uid: &str) {
        self.failures().remove(uid);
        self.d.images.forget_pod(uid);
        self.d.crash_loop.forget_prefix(&format!("{uid}/"));
    }

    /// Brings the pod a step nearer to what it should be. `restart_all`: by taking its containers away first.
    pub async fn sync_pod(
        &self,
        pod: &Arc<Pod>,
        status: &PodStatus,
        volumes: &PodVolumes,
        secrets: &[Arc<Secret>],
        cancel: &CancellationToken,
        restart_all: bool,
    ) -> SyncResult {
        let mut result = SyncResult::default();
        let actions = compute_pod_actions(
            pod,
            status,
            self.d.probes.as_ref(),
            &|c| Some(self.wanted_resources(pod, c)),
            restart_all,
        );
        if !actions.is_empty() {
            tracing::debug!(pod = %pod::format(pod), ?actions, "computed pod actions");
        }
        if actions.create_sandbox && !actions.sandbox_id.is_empty() {
            self.d.recorder.pod(
                pod,
                Type::Normal,
                reason::SANDBOX_CHANGED,
                "Pod sandbox changed, it will be killed and re-created.",
            );
        }
        if actions.kill_pod {
            if let Err(error) = self.kill_pod(Some(pod), status, None).await {
                result.fail(format!("KillPodSandbox: {error}"), None);
                return result;
            }
            if actions.create_sandbox {
                self.purge_init_containers(pod, status).await;
            }
        } else {
            for kill in &actions.containers_to_kill {
                let id = &kill.container_id;
                if let Err(error) = self
                    .kill_container(pod, id, &kill.name, &kill.message, kill.reason, None, None)
                    .await
                {
                    result.fail(format!("KillContainer {}: {error}", kill.name), None);
                    return result;
                }
            }
        }
        if cancel.is_cancelled() {
            return result;
        }
        if !actions.containers_to_reset.is_empty() {
            self.reset_containers(pod, status, &actions, &mut result)
                .await;
            return result;
        }

        self.resize_pod(pod, status, &actions, &mut result).await;
        let mut pod_ips = status.ips().to_vec();
        let mut sandbox_id = actions.sandbox_id.clone();
        if actions.create_sandbox {
            count_start(pod);
            if !self.prepare_claims(pod, cancel, &mut result).await {
                return result;
            }
            match self.create_pod_sandbox(pod, actions.attempt).await {
                Ok((id, ips)) => {
                    sandbox_id = id;
                    pod_ips = ips;
                }
                Err(error) => {
                    count_failed_start(pod);
                    if !cancel.is_cancelled() {
                        self.tell_sandbox_failure(pod, &error);
                    }
                    let pod = pod::format(pod);
                    let message = format!("CreatePodSandbox for pod {pod:?} failed: {error}");
                    result.fail(message, None);
                    return result;
                }
            }
        }
        if pod::is_host_network(pod) {
            pod_ips = self.d.node.host_ips.load().as_ref().clone();
        }
        self.start_all(
            pod,
            status,
            &actions,
            &sandbox_id,
            &pod_ips,
            volumes,
            secrets,
            cancel,
            &mut result,
        )
        .await;
        result
    }

    /// The pod's claims, before anything of it is made. Whether they are all prepared.
    ///
    /// DIFFERS: a pod whose claims are not prepared is tried again as after any failure; upstream waits for its next round of sync.
    async fn prepare_claims(
        &self,
        pod: &Pod,
        cancel: &CancellationToken,
        result: &mut SyncResult,
    ) -> bool {
        let prepared = tokio::select! {
            prepared = self.d.claims.prepare(pod) => prepared,
            // What a driver did meanwhile is undone with the pod's end.
            () = cancel.cancelled() => return false,
        };
        let Err(error) = prepared else { return true };
        let message =
            format!("Failed to prepare dynamic resources: prepare dynamic resources: {error}");
        let reason = reason::FAILED_PREPARE_DYNAMIC_RESOURCES;
        self.d
            .recorder
            .pod(pod, Type::Warning, reason, message.clone());
        result.fail(message, None);
        false
    }

    fn tell_sandbox_failure(&self, pod: &Pod, error: &SandboxFailure) {
        let (reason, what) = match error {
            SandboxFailure::Status(_) => (
                reason::FAILED_STATUS_POD_SANDBOX,
                "Unable to get pod sandbox status",
            ),
            _ => (
                reason::FAILED_CREATE_POD_SANDBOX,
                "Failed to create pod sandbox",
            ),
        };
        let message = format!("{what}: {error}");
        self.d.recorder.pod(pod, Type::Warning, reason, message);
    }

    /// Takes the pod's containers away, without grace; their logs stay.
    async fn reset_containers(
        &self,
        pod: &Arc<Pod>,
        status: &PodStatus,
        actions: &PodActions,
        result: &mut SyncResult,
    ) {
        for reset in &actions.containers_to_reset {
            let Some(container) = status
                .containers
                .iter()
                .find(|c| c.id == reset.container_id)
            else {
                continue;
            };
            if reset.kill {
                let name = &reset.name;
                self.d
                    .recorder
                    .container(pod, name, Type::Normal, reason::KILLING, "killing");
                let call = self
                    .d
                    .runtime
                    .stop_container(&reset.container_id, Duration::ZERO);
                match observe("stop_container", call).await {
                    Ok(())
                    | Err(
                        RuntimeError::ContainerNotFound { .. } | RuntimeError::NotRunning { .. },
                    ) => {}
                    Err(error) => {
                        return result.fail(format!("KillContainer {name}: {error}"), None);
                    }
                }
            }
            if let Err(error) = self.remove_container_only(container).await {
                let name = &reset.name;
                return result.fail(format!("RemoveContainer {name}: {error}"), None);
            }
            result.reset = true;
        }
    }

    #[allow(clippy::too_many_arguments)]
    async fn start_all(
        &self,
        pod: &Arc<Pod>,
        status: &PodStatus,
        actions: &PodActions,
        sandbox_id: &str,
        pod_ips: &[String],
        volumes: &PodVolumes,
        secrets: &[Arc<Secret>],
        cancel: &CancellationToken,
        result: &mut SyncResult,
    ) {
        let nothing = actions.ephemeral_containers_to_start.is_empty()
            && actions.init_containers_to_start.is_empty()
            && actions.containers_to_start.is_empty();
        if nothing || (actions.kill_pod && !actions.create_sandbox) {
            return;
        }
        let ephemeral = !actions.ephemeral_containers_to_start.is_empty();
        let inits = actions.init_containers_to_start.iter();
        let inits = inits.filter_map(|i| pod::init_containers(pod).get(*i));
        let regulars = actions.containers_to_start.iter();
        let regulars = regulars.filter_map(|i| pod::containers(pod).get(*i));
        let mut containers = inits.chain(regulars);
        // Nobody is told again and again of images for containers whose time has not come.
        let image_volumes = match ephemeral || containers.any(|c| !self.backs_off(pod, status, c)) {
            true => self.pull_image_volumes(pod, volumes, secrets, cancel).await,
            false => HashMap::new(),
        };
        let context = start::StartContext {
            pod,
            status,
            sandbox_id,
            pod_ips,
            volumes,
            image_volumes: &image_volumes,
            secrets,
            cancel,
        };
        for index in &actions.ephemeral_containers_to_start {
            if let Some(c) = pod::ephemeral_containers(pod).get(*index) {
                let container = pod::ephemeral_as_container(c);
                // Its failure holds up nothing else.
                self.start(
                    &context,
                    &container,
                    ContainerKind::Ephemeral,
                    c.target_container_name.as_deref(),
                    result,
                )
                .await;
            }
        }
        for index in &actions.init_containers_to_start {
            let Some(container) = pod::init_containers(pod).get(*index) else {
                continue;
            };
            let sidecar = pod::is_restartable_init(container);
            let kind = if sidecar {
                ContainerKind::Sidecar
            } else {
                ContainerKind::Init
            };
            if !self.start(&context, container, kind, None, result).await && !sidecar {
                return;
            }
        }
        for index in &actions.containers_to_start {
            if let Some(container) = pod::containers(pod).get(*index) {
                self.start(&context, container, ContainerKind::Regular, None, result)
                    .await;
            }
        }
    }

    /// Volume name -> image id, or why it cannot be had.
    async fn pull_image_volumes(
        &self,
        pod: &Arc<Pod>,
        volumes: &PodVolumes,
        secrets: &[Arc<Secret>],
        cancel: &CancellationToken,
    ) -> HashMap<String, Result<String, crate::image_manager::ImageFailure>> {
        let mut out = HashMap::new();
        for volume in volumes.iter() {
            if let VolumeLocation::Image {
                reference,
                pull_policy,
            } = &volume.location
            {
                let pulled = self
                    .d
                    .images
                    .ensure_image_exists(
                        pod,
                        "",
                        reference,
                        pull_policy.as_deref(),
                        secrets,
                        cancel,
                    )
                    .await;
                out.insert(volume.name.clone(), pulled.map(|image| image.id));
            }
        }
        out
    }

    async fn create_pod_sandbox(
        &self,
        pod: &Arc<Pod>,
        attempt: u32,
    ) -> Result<(String, Vec<String>), SandboxFailure> {
        let config = self.sandbox_config(pod, attempt).await?;
        let directory = config.log_directory.clone();
        off_thread(move || std::fs::create_dir_all(directory))
            .await
            .map_err(std::io::Error::other)
            .and_then(|made| made)
            .map_err(|source| SandboxFailure::LogDirectory {
                path: config.log_directory.clone(),
                source,
            })?;
        let run = observe("run_podsandbox", self.d.runtime.run_pod_sandbox(&config));
        let (made, took) = timed(run).await;
        let handler = [config.runtime_handler.as_str()];
        metrics::RUN_POD_SANDBOX_DURATION
            .with_label_values(&handler)
            .observe(took.as_secs_f64());
        let id = made.inspect_err(|_| {
            metrics::RUN_POD_SANDBOX_ERRORS
                .with_label_values(&handler)
                .inc();
        })?;
        let status = observe("podsandbox_status", self.d.runtime.pod_sandbox_status(&id))
            .await
            .map_err(SandboxFailure::Status)?;
        Ok((id, status.ips))
    }

    async fn sandbox_config(
        &self,
        pod: &Arc<Pod>,
        attempt: u32,
    ) -> Result<PodSandboxConfig, SandboxFailure> {
        let config = &self.d.config;
        let node_ips = self.d.node.host_ips.load().as_ref().clone();
        let dns = Configurer {
            cluster_dns: config.cluster_dns.clone(),
            cluster_domain: config.cluster_domain.clone(),
            resolver_config: (!config.resolv_conf.is_empty())
                .then(|| PathBuf::from(&config.resolv_conf)),
            node_ips,
        }
        .get_pod_dns(pod)?;
        for (reason, message) in dns.warnings {
            self.d.recorder.pod(pod, Type::Warning, reason, message);
        }
        let (hostname, domain) =
            hosts::generate_pod_hostname_and_domain(pod, &config.cluster_domain)?;
        let hostname = hosts::get_nodename_for_kernel(pod, &hostname, &domain)?;
        let class = pod
            .spec
            .as_ref()
            .and_then(|s| s.runtime_class_name.as_deref());
        let runtime_handler = self
            .d
            .runtime_classes
            .handler(class)
            .await
            .map_err(SandboxFailure::RuntimeClass)?;
        let user = self.user_namespace(pod)?;
        let facts = SandboxFacts {
            hostname,
            dns: dns.config,
            log_directory: self.d.paths.pod_log_directory(
                pod::namespace(pod),
                pod::name(pod),
                pod::uid(pod),
            ),
            cgroup_parent: self.d.container_manager.pod_cgroup(pod),
            runtime_handler,
            user,
        };
        Ok(generate_pod_sandbox_config(pod, attempt, facts))
    }

    fn user_namespace(
        &self,
        pod: &Pod,
    ) -> Result<Option<runtime::api::UserNamespace>, crate::user_namespaces::UserNamespaceError>
    {
        let class = pod
            .spec
            .as_ref()
            .and_then(|s| s.runtime_class_name.as_deref())
            .unwrap_or_default();
        self.d
            .user_namespaces
            .get_or_create(pod, class, self.d.supports_user_namespaces)
    }

    /// What the runtime should enforce for the container.
    pub fn wanted_resources(&self, pod: &Pod, container: &Container) -> runtime::api::Resources {
        let mut resources = container_resources(pod, container, &self.resource_defaults());
        let (uid, name, managers) = (pod::uid(pod), &container.name, &self.d.managers);
        if !managers.exclusive_cpus(uid, name).is_empty() {
            // What has its own is not held back. Upstream: `DisableCPUQuotaWithExclusiveCPUs`.
            resources.cpu_quota_us = None;
        }
        resources.cpuset_cpus = managers.cpu_affinity(uid, name).to_string();
        resources.cpuset_mems = managers.memory_nodes(uid, name).to_string();
        resources
    }

    fn resource_defaults(&self) -> ContainerResourceDefaults {
        let config = &self.d.config;
        ContainerResourceDefaults {
            cpu_cfs_quota: config.cpu_cfs_quota,
            cpu_cfs_quota_period: config.cpu_cfs_quota_period.0,
            pids_limit: (config.pod_pids_limit > 0).then_some(config.pod_pids_limit),
            memory_capacity_bytes: self.d.node.machine.memory_capacity_bytes,
            cgroup_v2: self.d.container_manager.cgroups().is_v2(),
            single_process_oom_kill: config.single_process_oom_kill,
            memory_qos: self.d.container_manager.memory_qos(),
            memory_allocatable_bytes: self
                .d
                .node
                .allocatable
                .load()
                .get("memory")
                .map_or(0, |q| component_helpers::quantity::amount(q).value()),
            page_sizes: self
                .d
                .node
                .machine
                .hugepages
                .iter()
                .map(|(size, _)| size.clone())
                .collect(),
        }
    }

    /// Init containers of an older sandbox must not pass for those of the new one.
    async fn purge_init_containers(&self, pod: &Pod, status: &PodStatus) {
        for container in &status.containers {
            if pod::init_containers(pod)
                .iter()
                .any(|c| c.name == container.metadata.name)
                && let Err(error) = self.remove_container(container).await
            {
                tracing::warn!(pod = %pod::format(pod), container = container.id, %error, "failed to remove init container");
            }
        }
    }
}

/// What came of it, and how long it took.
pub(crate) async fn timed<T>(work: impl std::future::Future<Output = T>) -> (T, Duration) {
    let begin = std::time::Instant::now();
    let result = work.await;
    (result, begin.elapsed())
}

fn has_own_users(pod: &Pod) -> u64 {
    u64::from(pod.spec.as_ref().and_then(|s| s.host_users) == Some(false))
}

fn count_start(pod: &Pod) {
    metrics::STARTED_PODS.inc();
    metrics::STARTED_USER_NAMESPACED_PODS.inc_by(has_own_users(pod));
}

fn count_failed_start(pod: &Pod) {
    metrics::STARTED_PODS_ERRORS.inc();
    metrics::STARTED_USER_NAMESPACED_PODS_ERRORS.inc_by(has_own_users(pod));
}

/// Counts and times a call of the runtime.
pub(crate) async fn observe<T>(
    operation: &str,
    call: impl std::future::Future<Output = Result<T, RuntimeError>>,
) -> Result<T, RuntimeError> {
    let (result, took) = timed(call).await;
    metrics::RUNTIME_OPERATIONS
        .with_label_values(&[operation])
        .inc();
    metrics::RUNTIME_OPERATIONS_DURATION
        .with_label_values(&[operation])
        .observe(took.as_secs_f64());
    if result.is_err() {
        metrics::RUNTIME_OPERATIONS_ERRORS
            .with_label_values(&[operation])
            .inc();
    }
    result
}

#[cfg(test)]
mod tests;
