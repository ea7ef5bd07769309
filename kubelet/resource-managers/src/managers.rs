//! The shell: the policies with what they remember, on disk.
//!
//! Owns: one memory for all who ask, the turn of those who change it, and the files. Blocking where it says so: not for async threads.
//! Upstream: cpu_manager.go, memory_manager.go, scope_container.go, scope_pod.go, v1.37.
//!
//! **Invariant:** what a container was given is on disk before its pod may run.
//!
//! **Invariant:** between the hints of a container and its allocation nobody else gets anything.

mod observation;
mod start;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{Container, Pod};

pub use self::observation::{Alignment, Observation, Observer, Resource};
use self::observation::{NUMA_NODE, NUMA_NODE_OF_POD, PHYSICAL_CPU, UNCORE_CACHE};
pub use self::start::{Settings, StartError};
use crate::cpu_manager::policy::{Allocated as AllocatedCpus, guaranteed_cpus};
use crate::cpu_manager::{self, AllocateCpusError, CpuState};
use crate::cpu_set::CpuSet;
use crate::memory_manager::policy::{Allocated as AllocatedMemory, wants_memory};
use crate::memory_manager::{self, AllocateMemoryError, Block, MemoryState};
use crate::pod;
use crate::topology::Topology;
use crate::topology_manager::{Hints, Policy, Scope, TopologyHint, TopologyManager};

/// The pod cannot have what it asks for: it is rejected for good, as upstream.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    #[error("Resources cannot be allocated with Topology locality")]
    TopologyAffinity,
    #[error(transparent)]
    Cpus(#[from] AllocateCpusError),
    #[error(transparent)]
    Memory(#[from] AllocateMemoryError),
    #[error("failed to write {}: {source}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl AdmissionError {
    /// What the pod's status names; `None`: something that is not to be expected (`UnexpectedAdmissionError`).
    pub fn reason(&self) -> Option<&'static str> {
        match self {
            Self::TopologyAffinity => Some("TopologyAffinityError"),
            Self::Cpus(
                AllocateCpusError::NotWholeCores { .. } | AllocateCpusError::NotEnoughCores { .. },
            ) => Some("SMTAlignmentError"),
            Self::Cpus(AllocateCpusError::Assignment(_)) | Self::Memory(_) | Self::Write { .. } => {
                None
            }
        }
    }
}

#[derive(Default)]
struct Inner {
    cpu: CpuState,
    memory: MemoryState,
}

/// What the files say.
#[derive(Default)]
struct Written {
    cpu: String,
    memory: String,
}

/// Shared by all who ask.
pub struct ResourceManagers {
    topology: TopologyManager,
    nodes: Vec<usize>,
    /// `None`: the policy none.
    cpu: Option<cpu_manager::StaticPolicy>,
    /// `None`: the policy None.
    memory: Option<memory_manager::StaticPolicy>,
    cpu_policy: String,
    memory_policy: String,
    dir: PathBuf,
    observer: Arc<dyn Observer>,
    inner: Mutex<Inner>,
    written: Mutex<Written>,
}

impl ResourceManagers {
    /// `dir`: the kubelet's root directory. Blocking.
    ///
    /// # Errors
    /// The configuration does not fit the machine or what is remembered.
    pub fn start(
        settings: &Settings,
        machine: &Topology,
        dir: &Path,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, StartError> {
        let topology = TopologyManager::new(
            &settings.topology_policy,
            &settings.topology_scope,
            &settings.topology_options,
            &machine.nodes,
        )?;
        let cpu = start::cpu_policy(settings, machine, topology.policy())?;
        let memory = start::memory_policy(settings, machine)?;
        let (of_cpu, of_memory) = start::restore(settings, dir, cpu.as_ref(), memory.as_ref())?;
        let managers = Self {
            topology,
            nodes: machine.node_ids(),
            cpu,
            memory,
            cpu_policy: settings.cpu_policy.clone(),
            memory_policy: settings.memory_policy.clone(),
            dir: dir.to_owned(),
            observer,
            inner: Mutex::new(Inner {
                cpu: of_cpu,
                memory: of_memory,
            }),
            written: Mutex::default(),
        };
        managers.observe_start();
        managers
            .write()
            .map_err(|(manager, path, source)| StartError::Write {
                manager,
                path,
                source,
            })?;
        Ok(managers)
    }

    fn observe_start(&self) {
        let mut could = Vec::new();
        if self.topology.policy() != Policy::None {
            could.extend([NUMA_NODE, NUMA_NODE_OF_POD]);
        }
        if self.cpu.is_some() {
            could.extend([PHYSICAL_CPU, UNCORE_CACHE]);
        }
        for alignment in could {
            self.observer.observe(Observation::CouldAlign(alignment));
        }
        self.observe_pool(&self.inner());
    }

    fn observe_pool(&self, inner: &Inner) {
        let Some(policy) = &self.cpu else { return };
        let exclusive = inner.cpu.exclusive();
        self.observer.observe(Observation::Pool {
            shared_cpus: policy.available(&inner.cpu).len(),
            exclusive_cpus: exclusive.len(),
            exclusive_by_numa_node: policy.by_numa_node(&exclusive),
        });
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ids of the machine's nodes.
    pub fn numa_nodes(&self) -> &[usize] {
        &self.nodes
    }

    pub fn scope(&self) -> Scope {
        self.topology.scope()
    }

    /// Whether there is anything to decide for the pod. Who is of no concern waits for nobody.
    pub fn concerns(&self, pod: &Pod) -> bool {
        let cpu = |c: &Container| self.cpu.is_some() && guaranteed_cpus(pod, c) > 0;
        let memory = |c: &Container| self.memory.is_some() && wants_memory(pod, c);
        self.scope() != Scope::None || pod::all_containers(pod).any(|c| cpu(c) || memory(c))
    }

    /// Gives all containers of the pod what is theirs, wherever it is: without a topology manager. Blocking.
    ///
    /// # Errors
    /// A container cannot have it. What others of the pod have stays theirs until [`ResourceManagers::remove_pod`].
    pub fn allocate_pod(&self, pod: &Pod) -> Result<(), AdmissionError> {
        let mut inner = self.inner();
        for container in pod::all_containers(pod) {
            self.allocate(&mut inner, pod, container, TopologyHint::default())?;
        }
        drop(inner);
        self.write_before_admission()
    }

    /// Finds nodes for the container and gives it what is of them. `others`: the hints of other providers. Blocking.
    ///
    /// # Errors
    /// As [`ResourceManagers::allocate_pod`], or there are no such nodes.
    pub fn admit_container(
        &self,
        pod: &Pod,
        container: &Container,
        others: Hints,
    ) -> Result<TopologyHint, AdmissionError> {
        let mut inner = self.inner();
        let mut hints = vec![others];
        let of_cpu = self.cpu.as_ref();
        hints.push(of_cpu.map_or_else(Hints::new, |policy| {
            policy.topology_hints(&inner.cpu, pod, container)
        }));
        let of_memory = self.memory.as_ref();
        hints.push(of_memory.map_or_else(Hints::new, |policy| {
            policy.topology_hints(&inner.memory, pod, container)
        }));
        let hint = self.merge(&hints, NUMA_NODE)?;
        self.allocate(&mut inner, pod, container, hint)?;
        drop(inner);
        self.write_before_admission()?;
        self.observe_aligned(NUMA_NODE);
        Ok(hint)
    }

    /// Finds nodes for the pod as a whole and gives its containers what is of them. Blocking.
    ///
    /// # Errors
    /// As [`ResourceManagers::admit_container`].
    pub fn admit_pod(&self, pod: &Pod, others: Hints) -> Result<TopologyHint, AdmissionError> {
        let mut inner = self.inner();
        let mut hints = vec![others];
        let of_cpu = self.cpu.as_ref();
        hints.push(of_cpu.map_or_else(Hints::new, |policy| {
            policy.pod_topology_hints(&inner.cpu, pod)
        }));
        let of_memory = self.memory.as_ref();
        hints.push(of_memory.map_or_else(Hints::new, |policy| {
            policy.pod_topology_hints(&inner.memory, pod)
        }));
        let hint = self.merge(&hints, NUMA_NODE_OF_POD)?;
        for container in pod::all_containers(pod) {
            self.allocate(&mut inner, pod, container, hint)?;
        }
        drop(inner);
        self.write_before_admission()?;
        self.observe_aligned(NUMA_NODE_OF_POD);
        Ok(hint)
    }

    fn merge(&self, hints: &[Hints], to: Alignment) -> Result<TopologyHint, AdmissionError> {
        let (hint, admit) = self.topology.merge(hints);
        tracing::debug!(?hints, ?hint, admit, "merged topology hints");
        if admit {
            return Ok(hint);
        }
        if self.topology.guarantees_alignment() {
            self.observer.observe(Observation::NotAligned(to));
        }
        Err(AdmissionError::TopologyAffinity)
    }

    fn observe_aligned(&self, to: Alignment) {
        if self.topology.guarantees_alignment() {
            self.observer.observe(Observation::Aligned(to));
        }
    }

    fn allocate(
        &self,
        inner: &mut Inner,
        pod: &Pod,
        container: &Container,
        hint: TopologyHint,
    ) -> Result<(), AdmissionError> {
        if let Some(policy) = &self.cpu {
            let outcome = policy.allocate(&mut inner.cpu, pod, container, hint.affinity);
            self.observe_cpus(policy, inner, &outcome);
            outcome?;
        }
        if let Some(policy) = &self.memory {
            let outcome = policy.allocate(&mut inner.memory, pod, container, hint);
            self.observe_memory(inner, pod, container, &outcome);
            outcome?;
        }
        Ok(())
    }

    fn observe_cpus(
        &self,
        policy: &cpu_manager::StaticPolicy,
        inner: &Inner,
        outcome: &Result<AllocatedCpus, AllocateCpusError>,
    ) {
        let tell = |observation| self.observer.observe(observation);
        if matches!(outcome, Ok(AllocatedCpus::Shared)) {
            return;
        }
        tell(Observation::PinningRequested(Resource::Cpu));
        if outcome.is_err() {
            tell(Observation::PinningFailed(Resource::Cpu));
        }
        if policy.full_pcpus_only() {
            tell(match outcome {
                Ok(_) => Observation::Aligned(PHYSICAL_CPU),
                Err(_) => Observation::NotAligned(PHYSICAL_CPU),
            });
        }
        if let Ok(AllocatedCpus::New { uncore_aligned, .. }) = outcome {
            tell(Observation::Allocated(Resource::Cpu));
            tell(Observation::Assigned(Resource::Cpu));
            if *uncore_aligned {
                tell(Observation::Aligned(UNCORE_CACHE));
            }
            self.observe_pool(inner);
        }
    }

    fn observe_memory(
        &self,
        inner: &Inner,
        pod: &Pod,
        container: &Container,
        outcome: &Result<AllocatedMemory, AllocateMemoryError>,
    ) {
        let tell = |observation| self.observer.observe(observation);
        if matches!(
            outcome,
            Ok(AllocatedMemory::Shared) | Err(AllocateMemoryError::NotWhole)
        ) {
            return;
        }
        tell(Observation::PinningRequested(Resource::Memory));
        match outcome {
            Err(_) => tell(Observation::PinningFailed(Resource::Memory)),
            Ok(AllocatedMemory::New) => {
                let blocks = inner.memory.blocks(pod::uid(pod), &container.name);
                for _ in blocks.unwrap_or_default() {
                    tell(Observation::Allocated(Resource::Memory));
                }
                tell(Observation::Assigned(Resource::Memory));
            }
            Ok(_) => {}
        }
    }

    /// The container is about to run: the memory of the init containers before it is free, as far as it was left to nobody. Blocking.
    pub fn add_container(&self, pod: &Pod, container: &str) {
        let mut inner = self.inner();
        let inits = pod::init_containers(pod).iter().map(|init| &init.name);
        let earlier = inits.take_while(|name| *name != container);
        let mut changed = false;
        for name in earlier.filter(|name| pod::is_regular_init(pod, name)) {
            changed |= inner.memory.remove(pod::uid(pod), name);
        }
        drop(inner);
        if changed {
            self.write_or_tell();
        }
    }

    /// Frees all that the pod has; returns whether the shared pool grew. Blocking.
    pub fn remove_pod(&self, uid: &str) -> bool {
        self.retain(|other| other != uid)
    }

    /// Frees what pods have that are not `live`; returns whether the shared pool grew. Blocking. Upstream: `removeStaleState`.
    pub fn retain(&self, live: impl Fn(&str) -> bool) -> bool {
        let mut inner = self.inner();
        let gone = |uid: &&String| !live(uid);
        let of_cpu: Vec<String> = inner.cpu.assignments.keys().filter(gone).cloned().collect();
        let of_memory = inner.memory.assignments.keys();
        let of_memory: Vec<String> = of_memory.filter(gone).cloned().collect();
        for uid in &of_cpu {
            let containers = inner.cpu.assignments.get(uid);
            let names: Vec<String> = containers
                .into_iter()
                .flatten()
                .map(|(n, _)| n.clone())
                .collect();
            for name in names {
                let released = inner.cpu.remove(uid, &name).unwrap_or_default();
                tracing::info!(pod = uid, container = name, cpus = %released, "released exclusive CPUs");
            }
        }
        for uid in &of_memory {
            let containers = inner.memory.assignments.get(uid);
            let names: Vec<String> = containers
                .into_iter()
                .flatten()
                .map(|(n, _)| n.clone())
                .collect();
            for name in names {
                inner.memory.remove(uid, &name);
            }
        }
        if of_cpu.is_empty() && of_memory.is_empty() {
            return false;
        }
        self.observe_pool(&inner);
        drop(inner);
        self.write_or_tell();
        !of_cpu.is_empty()
    }

    /// UIDs of the pods that have anything for themselves.
    pub fn holders(&self) -> BTreeSet<String> {
        let inner = self.inner();
        let of_cpu = inner.cpu.assignments.keys();
        of_cpu
            .chain(inner.memory.assignments.keys())
            .cloned()
            .collect()
    }

    /// Whether containers are to be kept to CPUs at all.
    pub fn has_cpu_policy(&self) -> bool {
        self.cpu.is_some()
    }

    /// Whether containers may have memory for themselves.
    pub fn has_memory_policy(&self) -> bool {
        self.memory.is_some()
    }

    /// Whether a container of the pod has CPUs for itself.
    pub fn has_exclusive_cpus(&self, pod: &str) -> bool {
        self.inner().cpu.assignments.contains_key(pod)
    }

    /// What the container has for itself; empty: nothing.
    pub fn exclusive_cpus(&self, pod: &str, container: &str) -> CpuSet {
        let inner = self.inner();
        inner
            .cpu
            .cpu_set(pod, container)
            .cloned()
            .unwrap_or_default()
    }

    /// What the container runs on; empty: on all there are, without a say of ours.
    pub fn cpu_affinity(&self, pod: &str, container: &str) -> CpuSet {
        self.inner().cpu.cpu_set_or_default(pod, container).clone()
    }

    /// The nodes the container's memory is of; empty: of all there are.
    pub fn memory_nodes(&self, pod: &str, container: &str) -> CpuSet {
        let blocks = self.memory(pod, container).into_iter();
        blocks.flat_map(|block| block.numa_affinity).collect()
    }

    /// What the container has for itself.
    pub fn memory(&self, pod: &str, container: &str) -> Vec<Block> {
        let inner = self.inner();
        inner
            .memory
            .blocks(pod, container)
            .unwrap_or_default()
            .to_vec()
    }

    /// What containers may have for themselves, whoever has it now.
    pub fn allocatable_cpus(&self) -> CpuSet {
        let policy = self.cpu.as_ref();
        policy
            .map(cpu_manager::StaticPolicy::allocatable)
            .unwrap_or_default()
    }

    /// The same of memory.
    pub fn allocatable_memory(&self) -> Vec<Block> {
        let policy = self.memory.as_ref();
        policy.map_or_else(Vec::new, |policy| policy.allocatable(&self.inner().memory))
    }

    fn write_before_admission(&self) -> Result<(), AdmissionError> {
        self.write()
            .map_err(|(_, path, source)| AdmissionError::Write { path, source })
    }

    fn write_or_tell(&self) {
        if let Err((manager, _, error)) = self.write() {
            tracing::error!(manager, %error, "Failed to store state to checkpoint");
        }
    }

    /// Both files, as far as they say something else.
    fn write(&self) -> Result<(), (&'static str, PathBuf, io::Error)> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let (cpu, memory) = {
            let inner = self.inner();
            (
                cpu_manager::checkpoint::encode(&self.cpu_policy, &inner.cpu),
                memory_manager::checkpoint::encode(&self.memory_policy, &inner.memory),
            )
        };
        let Written {
            cpu: of_cpu,
            memory: of_memory,
        } = &mut *written;
        for (manager, name, text, before) in [
            ("cpu", cpu_manager::checkpoint::FILE, cpu, of_cpu),
            (
                "memory",
                memory_manager::checkpoint::FILE,
                memory,
                of_memory,
            ),
        ] {
            if *before == text {
                continue;
            }
            let path = self.dir.join(name);
            before.clear();
            if let Err(error) = host::atomic_file::write(&path, text.as_bytes()) {
                return Err((manager, path, error));
            }
            *before = text;
        }
        Ok(())
    }
}

impl fmt::Debug for ResourceManagers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cpu, memory) = (&self.cpu_policy, &self.memory_policy);
        f.debug_struct("ResourceManagers")
            .field("cpu", cpu)
            .field("memory", memory)
            .field("topology", &self.topology.policy())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
