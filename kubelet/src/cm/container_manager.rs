//! The cgroups `kubepods`, its QoS classes and the pods in them.
//!
//! Owns: which cgroup a pod lives in, its limits, and removing it. Upstream: `pkg/kubelet/cm/qos_container_manager_linux.go`,
//! `pod_container_manager_linux.go`, v1.36.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use component_helpers::qos::{QosClass, get_pod_qos};
use component_helpers::quantity::{Amount, amount};
use component_helpers::resources::{PodResourcesOptions, ResourceList, pod_requests};
use k8s_openapi::api::core::v1::Pod;
use resource_managers::ResourceManagers;

use super::cgroup::{CgroupError, CgroupManager};
use super::memory_qos::{ClassMemory, MemoryQos};
use super::resources::{ResourceConfig, milli_cpu_to_shares, resource_config_for_pod};
use crate::configuration::KubeletConfiguration;
use crate::events::{KubeletRecorder, Type, reason};
use crate::metrics;
use crate::pod;

/// Upstream: `CgroupV1DeprecatedWarning`.
pub const CGROUP_V1_WARNING: &str = "cgroup v1 detected. cgroup v1 support is deprecated and will be removed in a future release. \
     Please migrate to cgroup v2. More information at https://git.k8s.io/enhancements/keps/sig-node/5573-remove-cgroup-v1";

/// Shared by the workers.
#[derive(Clone, Debug)]
pub struct ContainerManager {
    cgroups: CgroupManager,
    /// `/`, or `cgroupRoot`.
    root: String,
    enforce_node_allocatable: bool,
    cpu_cfs_quota: bool,
    cpu_cfs_quota_period: Duration,
    pod_pids_limit: i64,
    reserved_cpu: Amount,
    reserved_memory: Amount,
    /// On cgroup v2.
    memory_qos: Option<MemoryQos>,
    /// Who has CPUs for himself; unset before there is a kubelet.
    managers: Arc<OnceLock<Arc<ResourceManagers>>>,
    /// What each pod's cgroup was set to since this kubelet started, by pod UID.
    applied: Arc<Mutex<HashMap<String, ResourceConfig>>>,
}

impl ContainerManager {
    /// `memory_qos`: the gate `MemoryQoS` is on.
    pub fn new(config: &KubeletConfiguration, cgroups: CgroupManager, memory_qos: bool) -> Self {
        let reserved = |name: &str| {
            [&config.system_reserved, &config.kube_reserved]
                .into_iter()
                .filter_map(|m| m.get(name).and_then(|v| v.parse::<Amount>().ok()))
                .sum::<Amount>()
        };
        metrics::CGROUP_VERSION.set(if cgroups.is_v2() { 2 } else { 1 });
        Self {
            memory_qos: MemoryQos::of(config, memory_qos, cgroups.is_v2()),
            cgroups,
            root: config.cgroup_root.trim_end_matches('/').to_owned(),
            enforce_node_allocatable: config
                .enforce_node_allocatable()
                .iter()
                .any(|e| e == "pods"),
            cpu_cfs_quota: config.cpu_cfs_quota,
            cpu_cfs_quota_period: config.cpu_cfs_quota_period.0,
            pod_pids_limit: config.pod_pids_limit,
            reserved_cpu: reserved("cpu"),
            reserved_memory: reserved("memory"),
            managers: Arc::default(),
            applied: Arc::default(),
        }
    }

    /// From now on pods with CPUs of their own have no quota. For the first call alone.
    pub fn set_resource_managers(&self, managers: Arc<ResourceManagers>) {
        // Every later one is the same.
        let _ = self.managers.set(managers);
    }

    /// Upstream: `DisableCPUQuotaWithExclusiveCPUs`, which is locked.
    fn has_exclusive_cpus(&self, pod: &Pod) -> bool {
        let managers = self.managers.get();
        managers.is_some_and(|managers| managers.has_exclusive_cpus(pod::uid(pod)))
    }

    fn applied(&self) -> std::sync::MutexGuard<'_, HashMap<String, ResourceConfig>> {
        self.applied.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Tells of the cgroups, which were set up before there was anyone to tell.
    pub fn tell(&self, recorder: &KubeletRecorder) {
        if !self.cgroups.is_v2() {
            recorder.node(Type::Warning, reason::CGROUP_V1, CGROUP_V1_WARNING);
        }
        if self.enforce_node_allocatable {
            recorder.node(
                Type::Normal,
                reason::NODE_ALLOCATABLE_ENFORCED,
                "Updated Node Allocatable limit across pods",
            );
        }
    }

    /// How memory is protected; `None` on cgroup v1.
    pub fn memory_qos(&self) -> Option<MemoryQos> {
        self.memory_qos
    }

    pub fn cgroups(&self) -> &CgroupManager {
        &self.cgroups
    }

    /// The cgroup above all pods.
    pub fn kubepods(&self) -> String {
        format!("{}/kubepods", self.root)
    }

    /// The limit that holds all pods together and what they use of it, in bytes. `None`: there is no limit. Reads files.
    pub fn memory_of_pods(&self) -> Option<(u64, u64)> {
        let kubepods = self.kubepods();
        let (limit, _) = self.cgroups.memory(&kubepods);
        let limit = limit.and_then(|limit| u64::try_from(limit).ok())?;
        Some((limit, self.cgroups.working_set(&kubepods)?))
    }

    /// The cgroups that hold those of pods: the one above all, and the two classes below it.
    pub fn classes(&self) -> [String; 3] {
        [
            QosClass::Guaranteed,
            QosClass::Burstable,
            QosClass::BestEffort,
        ]
        .map(|qos| self.class(qos))
    }

    fn class(&self, qos: QosClass) -> String {
        match qos {
            QosClass::Guaranteed => self.kubepods(),
            QosClass::Burstable => format!("{}/burstable", self.kubepods()),
            QosClass::BestEffort => format!("{}/besteffort", self.kubepods()),
        }
    }

    /// `/kubepods/burstable/pod<uid>`
    pub fn pod_cgroup(&self, pod: &Pod) -> String {
        // A static pod's UID is the hash of its source; its cgroup must not depend on the mirror.
        format!("{}/pod{}", self.class(get_pod_qos(pod)), pod::uid(pod))
    }

    /// Makes the top cgroups; with node allocatable enforced, they hold all pods together to it.
    ///
    /// # Errors
    /// The first directory or file that refuses.
    pub fn setup_node(&self, capacity: &ResourceList) -> Result<(), CgroupError> {
        let total = |name: &str| capacity.get(name).map_or(Amount::ZERO, amount);
        let mut config = ResourceConfig::default();
        if self.enforce_node_allocatable {
            let cpu = (total("cpu") - self.reserved_cpu).milli_value();
            let memory = (total("memory") - self.reserved_memory).value();
            config.cpu_shares = Some(milli_cpu_to_shares(cpu));
            config.memory_bytes = (memory > 0).then_some(memory);
        }
        // What an earlier configuration protected; with the first pods it is summed up anew.
        let nobody = ClassMemory::default();
        config.unified = nobody.top();
        self.cgroups.ensure(&self.kubepods(), &config)?;
        let least = ResourceConfig {
            cpu_shares: Some(super::resources::MIN_SHARES),
            ..ResourceConfig::default()
        };
        let burstable = ResourceConfig {
            unified: nobody.burstable(),
            ..ResourceConfig::default()
        };
        self.cgroups
            .ensure(&self.class(QosClass::Burstable), &burstable)?;
        self.cgroups
            .ensure(&self.class(QosClass::BestEffort), &least)
    }

    /// The burstable class gets the sum of what its pods ask for, and the top what both classes are to keep of memory.
    ///
    /// # Errors
    /// The file that refuses; the next pod tries again.
    pub fn update_qos_cgroups(&self, active: &[Arc<Pod>]) -> Result<(), CgroupError> {
        let options = PodResourcesOptions::default();
        let milli: i64 = active
            .iter()
            .filter(|p| get_pod_qos(p) == QosClass::Burstable)
            .map(|p| {
                pod_requests(p, &options)
                    .get("cpu")
                    .map_or(0, |a| a.milli_value())
            })
            .fold(0, i64::saturating_add);
        let mut config = ResourceConfig {
            cpu_shares: Some(milli_cpu_to_shares(milli)),
            ..ResourceConfig::default()
        };
        let active = active.iter().map(AsRef::as_ref);
        if let Some(memory) = self.memory_qos.and_then(|qos| qos.classes(active)) {
            crate::metrics::MEMORY_QOS_NODE_MEMORY_MIN.set(memory.guaranteed);
            crate::metrics::MEMORY_QOS_NODE_MEMORY_LOW.set(memory.burstable);
            config.unified = memory.burstable();
            let top = ResourceConfig {
                unified: memory.top(),
                ..ResourceConfig::default()
            };
            self.cgroups.update(&self.kubepods(), &top)?;
        }
        self.cgroups
            .update(&self.class(QosClass::Burstable), &config)
    }

    pub fn exists(&self, pod: &Pod) -> bool {
        self.cgroups.exists(&self.pod_cgroup(pod))
    }

    /// What the pod's cgroup is to be set to.
    pub fn pod_config(&self, pod: &Pod) -> ResourceConfig {
        let quota = self.cpu_cfs_quota && !self.has_exclusive_cpus(pod);
        let mut config = resource_config_for_pod(pod, quota, self.cpu_cfs_quota_period);
        if self.pod_pids_limit > 0 {
            config.pids_limit = Some(self.pod_pids_limit);
        }
        config.unified = self.memory_qos.map(|qos| qos.pod(pod)).unwrap_or_default();
        config
    }

    /// Was the pod's cgroup made or set by this kubelet?
    pub fn is_set(&self, pod: &Pod) -> bool {
        self.applied().contains_key(pod::uid(pod)) && self.exists(pod)
    }

    /// Is the pod's cgroup set to something else than the pod now asks for?
    pub fn pod_differs(&self, pod: &Pod) -> bool {
        let wanted = self.pod_config(pod);
        self.applied()
            .get(pod::uid(pod))
            .is_some_and(|c| *c != wanted)
    }

    /// Makes the pod's cgroup and sets its limits; again for a pod whose resources changed.
    ///
    /// # Errors
    /// The first directory or file that refuses; a retry may help.
    pub fn ensure_pod(&self, pod: &Pod) -> Result<(), CgroupError> {
        let config = self.pod_config(pod);
        self.cgroups.ensure(&self.pod_cgroup(pod), &config)?;
        self.applied().insert(pod::uid(pod).to_owned(), config);
        Ok(())
    }

    /// Makes room in the pod's cgroup for its containers as they are and as they are to be.
    ///
    /// # Errors
    /// The first file that refuses; a retry may help.
    pub fn widen_pod(&self, pod: &Pod) -> Result<(), CgroupError> {
        let wanted = self.pod_config(pod);
        let wide = match self.applied().get(pod::uid(pod)) {
            Some(now) => now.covering(&wanted),
            None => wanted,
        };
        self.cgroups.update(&self.pod_cgroup(pod), &wide)
    }

    /// The memory limit of the pod's cgroup, if it has one, and what is used of it, in bytes. `None`: it cannot be read.
    pub fn pod_memory(&self, pod: &Pod) -> (Option<i64>, Option<u64>) {
        self.cgroups.memory(&self.pod_cgroup(pod))
    }

    /// # Errors
    /// What could not be removed; housekeeping finds it again.
    pub async fn destroy_pod(&self, pod: &Pod) -> Result<(), CgroupError> {
        self.applied().remove(pod::uid(pod));
        self.cgroups.destroy(&self.pod_cgroup(pod)).await
    }

    /// Removes the cgroups of pods that are not `live`, which is asked anew for every one.
    pub async fn cleanup_orphaned_pod_cgroups(&self, live: impl Fn(&str) -> bool) {
        for qos in [
            QosClass::Guaranteed,
            QosClass::Burstable,
            QosClass::BestEffort,
        ] {
            let class = self.class(qos);
            for child in self.cgroups.children(&class) {
                let Some(uid) = child.strip_prefix("pod") else {
                    continue;
                };
                if live(uid) {
                    continue;
                }
                let name = format!("{class}/{child}");
                match self.cgroups.destroy(&name).await {
                    Ok(()) => tracing::info!(cgroup = name, "removed orphaned pod cgroup"),
                    Err(error) => {
                        tracing::warn!(cgroup = name, %error, "failed to remove orphaned pod cgroup")
                    }
                }
            }
        }
    }
}
