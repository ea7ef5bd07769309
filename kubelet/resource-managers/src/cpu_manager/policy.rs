//! The policy static: containers of Guaranteed pods that ask for whole CPUs get them for themselves.
//!
//! Owns: who gets exclusive CPUs, hints, what is reserved, and whether what was remembered still fits the machine. Which CPUs is
//! [`super::assignment`]'s. Upstream: policy_static.go, v1.37.

use std::collections::BTreeMap;

use component_helpers::quantity::amount;
use component_helpers::resources::{CPU, is_restartable_init_container};
use k8s_openapi::api::core::v1::{Container, Pod};

use super::assignment::{AssignmentError, Strategy, take};
use super::state::CpuState;
use crate::cpu_set::CpuSet;
use crate::numa_mask::{NumaMask, iterate_masks};
use crate::options::{OptionsError, StaticOptions};
use crate::pod;
use crate::topology::{CpuTopology, Level};
use crate::topology_manager::{Hints, Policy as TopologyPolicy, TopologyHint};

/// The policy cannot be had on this machine, or what is remembered does not fit it. Another start says the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuManagerError {
    #[error("[cpumanager] unable to determine reserved CPU resources for static policy")]
    NoReservation,
    #[error("new static policy error: {0}")]
    Options(#[from] OptionsError),
    #[error("new none policy error: {0}")]
    OptionsOfNone(#[source] OptionsError),
    #[error("unknown policy: {0:?}")]
    UnknownPolicy(String),
    #[error(
        "new static policy error: [cpumanager] unable to reserve the required amount of CPUs (size of {reserved} did not equal {wanted})"
    )]
    Reserve { reserved: CpuSet, wanted: usize },
    #[error(
        "new static policy error: [cpumanager] unable to build the reserved physical CPUs from the reserved set: unknown CPU ID: {0}"
    )]
    UnknownCpu(usize),
    #[error("default cpuset cannot be empty")]
    NoDefault,
    #[error(
        "some of strictly reserved cpus: \"{strict}\" are present in defaultCpuSet: \"{default}\""
    )]
    StrictlyReserved { strict: CpuSet, default: CpuSet },
    #[error("not all reserved cpus: \"{reserved}\" are present in defaultCpuSet: \"{default}\"")]
    NotReserved { reserved: CpuSet, default: CpuSet },
    #[error(
        "pod: {pod}, container: {container} cpuset: \"{cpus}\" overlaps with default cpuset \"{default}\""
    )]
    Overlap {
        pod: String,
        container: String,
        cpus: CpuSet,
        default: CpuSet,
    },
    #[error(
        "current set of available CPUs \"{available}\" doesn't match with CPUs in state \"{known}\""
    )]
    OtherCpus { available: CpuSet, known: CpuSet },
}

/// The container does not get its CPUs: its pod is rejected for good, as upstream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocateCpusError {
    #[error(
        "SMT Alignment Error: requested {requested} cpus not multiple cpus per core = {per_core}"
    )]
    NotWholeCores { requested: usize, per_core: usize },
    #[error(
        "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = {available}, requested CPUs = {requested}, CPUs per core = {per_core}"
    )]
    NotEnoughCores {
        available: usize,
        requested: usize,
        per_core: usize,
    },
    #[error(transparent)]
    Assignment(#[from] AssignmentError),
}

/// What an allocation came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allocated {
    /// It shares.
    Shared,
    /// It had them already.
    Held,
    New {
        cpus: CpuSet,
        /// All of one cache above the cores' own.
        uncore_aligned: bool,
    },
}

/// The policy on a machine.
#[derive(Clone, Debug)]
pub struct StaticPolicy {
    topology: CpuTopology,
    options: StaticOptions,
    /// Nobody's own.
    reserved: CpuSet,
    /// With the other threads of their cores.
    reserved_physical: CpuSet,
}

impl StaticPolicy {
    /// `reserved_milli`: what is reserved of the node's CPU, in thousandths; `named`: which those are, or nothing.
    ///
    /// # Errors
    /// Nothing is reserved, or what is does not fit the machine, nor do the options.
    pub fn new(
        topology: CpuTopology,
        options: StaticOptions,
        reserved_milli: i64,
        named: &CpuSet,
        topology_policy: TopologyPolicy,
    ) -> Result<Self, CpuManagerError> {
        // Without a reservation the shared pool could end up empty.
        let wanted = usize::try_from(reserved_milli).unwrap_or(0).div_ceil(1000);
        if wanted == 0 {
            return Err(CpuManagerError::NoReservation);
        }
        if options.align_by_socket {
            if topology_policy == TopologyPolicy::SingleNumaNode {
                return Err(OptionsError::SocketsOfSingleNode.into());
            }
            if topology.num_sockets > topology.num_numa_nodes {
                return Err(OptionsError::MoreSocketsThanNodes.into());
            }
        }
        let reserved = match named.is_empty() {
            false => named.clone(),
            true => {
                let strategy = strategy(options, &topology);
                let all = topology.details.cpus();
                take(&topology, &all, wanted, strategy).unwrap_or_default()
            }
        };
        if reserved.len() != wanted {
            return Err(CpuManagerError::Reserve { reserved, wanted });
        }
        let mut reserved_physical = CpuSet::default();
        for cpu in reserved.iter() {
            let info = topology.details.get(cpu);
            let core = info.ok_or(CpuManagerError::UnknownCpu(cpu))?.core;
            let core = topology.details.cpus_in(Level::Core, core);
            reserved_physical = reserved_physical.union(&core);
        }
        tracing::info!(%reserved, %reserved_physical, ?options, "Reserved CPUs not available for exclusive assignment");
        Ok(Self {
            topology,
            options,
            reserved,
            reserved_physical,
        })
    }

    /// Begins with what is remembered; an empty memory is filled.
    ///
    /// # Errors
    /// It does not fit the machine or the reservation.
    pub fn start(&self, state: &mut CpuState) -> Result<(), CpuManagerError> {
        let mut all = self.topology.details.cpus();
        if self.options.strict_reservation {
            all = all.difference(&self.reserved);
        }
        if state.default_cpu_set.is_empty() {
            if state.assignments.is_empty() {
                state.default_cpu_set = all;
                return Ok(());
            }
            // DIFFERS: where nobody shares the reserved CPUs, all the others may be somebody's own; upstream's kubelet does not start again then.
            if !self.options.strict_reservation || state.exclusive() != all {
                return Err(CpuManagerError::NoDefault);
            }
        }
        let default = &state.default_cpu_set;
        let shared = self.reserved.intersection(default);
        if self.options.strict_reservation && !shared.is_empty() {
            return Err(CpuManagerError::StrictlyReserved {
                strict: shared,
                default: default.clone(),
            });
        }
        if !self.options.strict_reservation && shared != self.reserved {
            return Err(CpuManagerError::NotReserved {
                reserved: self.reserved.clone(),
                default: default.clone(),
            });
        }
        let all_sets = state.assignments.iter().flat_map(|(pod, of_pod)| {
            of_pod
                .iter()
                .map(move |(container, cpus)| (pod, container, cpus))
        });
        let mut overlapping = all_sets.filter(|(_, _, cpus)| !cpus.is_disjoint(default));
        if let Some((pod, container, cpus)) = overlapping.next() {
            return Err(CpuManagerError::Overlap {
                pod: pod.clone(),
                container: container.clone(),
                cpus: cpus.clone(),
                default: default.clone(),
            });
        }
        let known = default.union(&state.exclusive());
        match known == all {
            true => Ok(()),
            false => Err(CpuManagerError::OtherCpus {
                available: all,
                known,
            }),
        }
    }

    /// What containers may have for themselves, whoever has it now.
    pub fn allocatable(&self) -> CpuSet {
        self.topology.details.cpus().difference(&self.reserved)
    }

    /// What of that is nobody's.
    pub fn available(&self, state: &CpuState) -> CpuSet {
        state.default_cpu_set.difference(&self.reserved)
    }

    /// How many of the CPUs are in each NUMA node.
    pub fn by_numa_node(&self, cpus: &CpuSet) -> BTreeMap<usize, usize> {
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        for info in cpus.iter().filter_map(|cpu| self.topology.details.get(cpu)) {
            *counts.entry(info.numa_node).or_default() += 1;
        }
        counts
    }

    pub fn full_pcpus_only(&self) -> bool {
        self.options.full_pcpus_only
    }

    /// Gives the container its CPUs: of the nodes of `affinity` first, and what its init containers leave it.
    ///
    /// # Errors
    /// It cannot have them; nothing changed.
    pub fn allocate(
        &self,
        state: &mut CpuState,
        pod: &Pod,
        container: &Container,
        affinity: Option<NumaMask>,
    ) -> Result<Allocated, AllocateCpusError> {
        let wanted = guaranteed_cpus(pod, container);
        if wanted == 0 {
            return Ok(Allocated::Shared);
        }
        let uid = pod::uid(pod);
        // Whatever the options say by now: what runs is not disturbed.
        if state.cpu_set(uid, &container.name).is_some() {
            return Ok(Allocated::Held);
        }
        let reusable = reusable(state, pod, &container.name);
        self.enforce_smt_alignment(state, &reusable, wanted)?;
        let cpus = self.choose(state, wanted, affinity, &reusable)?;
        state.default_cpu_set = state.default_cpu_set.difference(&cpus);
        state.set(uid, &container.name, cpus.clone());
        tracing::info!(pod = uid, container = container.name, %cpus, "Allocated exclusive CPUs");
        Ok(Allocated::New {
            uncore_aligned: self.topology.is_uncore_aligned(&cpus),
            cpus,
        })
    }

    /// Other threads of the cores of reserved CPUs do not count: a container could have got one alone.
    ///
    /// DIFFERS: what init containers leave is there to be had; upstream rejects a pod for which there is that and no more.
    fn enforce_smt_alignment(
        &self,
        state: &CpuState,
        reusable: &CpuSet,
        requested: usize,
    ) -> Result<(), AllocateCpusError> {
        if !self.options.full_pcpus_only {
            return Ok(());
        }
        let per_core = self.topology.cpus_per_core();
        if !requested.is_multiple_of(per_core) {
            return Err(AllocateCpusError::NotWholeCores {
                requested,
                per_core,
            });
        }
        let available = state.default_cpu_set.union(reusable);
        let available = available.difference(&self.reserved_physical);
        let available = available.len();
        match requested > available {
            true => Err(AllocateCpusError::NotEnoughCores {
                available,
                requested,
                per_core,
            }),
            false => Ok(()),
        }
    }

    fn choose(
        &self,
        state: &CpuState,
        wanted: usize,
        affinity: Option<NumaMask>,
        reusable: &CpuSet,
    ) -> Result<CpuSet, AssignmentError> {
        let strategy = strategy(self.options, &self.topology);
        let allocatable = self.available(state).union(reusable);
        let mut chosen = CpuSet::default();
        if let Some(affinity) = affinity {
            let aligned = self.aligned(affinity, &allocatable);
            let count = aligned.len().min(wanted);
            chosen = take(&self.topology, &aligned, count, strategy)?;
        }
        let rest = allocatable.difference(&chosen);
        let missing = wanted - chosen.len();
        Ok(chosen.union(&take(&self.topology, &rest, missing, strategy)?))
    }

    /// Of the nodes, or of their sockets.
    fn aligned(&self, affinity: NumaMask, allocatable: &CpuSet) -> CpuSet {
        let details = &self.topology.details;
        let cpus = match self.options.align_by_socket {
            true => details.cpus_in_any(Level::Socket, details.sockets_of(affinity.nodes())),
            false => details.cpus_in_any(Level::NumaNode, affinity.nodes()),
        };
        allocatable.intersection(&cpus)
    }

    /// Where the container's CPUs could come from; empty: it does not matter.
    pub fn topology_hints(&self, state: &CpuState, pod: &Pod, container: &Container) -> Hints {
        let requested = guaranteed_cpus(pod, container);
        if requested == 0 {
            return Hints::new();
        }
        let nothing = CpuSet::default();
        of_cpu(match state.cpu_set(pod::uid(pod), &container.name) {
            Some(held) if held.len() != requested => Vec::new(),
            Some(held) => self.generate_hints(held, &nothing, requested),
            None => {
                let reusable = reusable(state, pod, &container.name);
                self.generate_hints(&self.available(state), &reusable, requested)
            }
        })
    }

    /// The same of all that the pod's containers have at a time.
    pub fn pod_topology_hints(&self, state: &CpuState, pod: &Pod) -> Hints {
        let of_container = |c: &Container| guaranteed_cpus(pod, c) as u64;
        let requested = pod::most_at_a_time(pod, of_container) as usize;
        if requested == 0 {
            return Hints::new();
        }
        let mut assigned = CpuSet::default();
        for container in pod::all_containers(pod) {
            if let Some(held) = state.cpu_set(pod::uid(pod), &container.name) {
                if held.len() != guaranteed_cpus(pod, container) {
                    return of_cpu(Vec::new());
                }
                assigned = assigned.union(held);
            }
        }
        of_cpu(match assigned.len() == requested {
            true => self.generate_hints(&assigned, &CpuSet::default(), requested),
            false => self.generate_hints(&self.available(state), &assigned, requested),
        })
    }

    /// All sets of nodes that hold what is reusable and enough of what is available; those of the fewest nodes that could ever do are
    /// preferred.
    fn generate_hints(
        &self,
        available: &CpuSet,
        reusable: &CpuSet,
        request: usize,
    ) -> Vec<TopologyHint> {
        let details = &self.topology.details;
        let nodes: Vec<usize> = details.ids(Level::NumaNode).into_iter().collect();
        let total = self.by_numa_node(&details.cpus());
        let available = self.by_numa_node(available);
        let reusable = self.by_numa_node(reusable);
        let sum = |counts: &BTreeMap<usize, usize>, mask: NumaMask| -> usize {
            mask.nodes().filter_map(|node| counts.get(&node)).sum()
        };
        let mut least = nodes.len();
        let mut hints = Vec::new();
        iterate_masks(&nodes, |mask| {
            if sum(&total, mask) >= request {
                least = least.min(mask.count());
            }
            let holds_reusable = reusable.keys().all(|node| mask.contains(*node));
            if holds_reusable && sum(&reusable, mask) + sum(&available, mask) >= request {
                hints.push(mask);
            }
        });
        let preferred = |mask: NumaMask| {
            mask.count() == least
                || (self.options.align_by_socket && self.is_socket_aligned(mask, least))
        };
        let hints = hints.into_iter();
        hints
            .map(|mask| TopologyHint {
                affinity: Some(mask),
                preferred: preferred(mask),
            })
            .collect()
    }

    /// Whether the nodes are in no more sockets than the fewest nodes need.
    fn is_socket_aligned(&self, mask: NumaMask, least: usize) -> bool {
        let nodes = self.topology.num_numa_nodes;
        let per_socket = nodes.checked_div(self.topology.num_sockets).unwrap_or(0);
        per_socket > 0
            && self.topology.details.sockets_of(mask.nodes()).len() == least.div_ceil(per_socket)
    }
}

fn strategy(options: StaticOptions, topology: &CpuTopology) -> Strategy {
    let group = match options.full_pcpus_only {
        true => topology.cpus_per_core(),
        false => 1,
    };
    Strategy {
        spread_over_cores: options.distribute_across_cores,
        distribute: options.distribute_across_numa.then_some(group),
        align_by_socket: options.align_by_socket,
        align_by_uncore_cache: options.prefer_uncore_cache,
    }
}

fn of_cpu(hints: Vec<TopologyHint>) -> Hints {
    [(CPU.to_owned(), Some(hints))].into()
}

/// How many CPUs the container is to have for itself; zero: it shares.
pub fn guaranteed_cpus(pod: &Pod, container: &Container) -> usize {
    if !pod::may_have_its_own(pod) {
        return 0;
    }
    let requests = container.resources.as_ref();
    let requests = requests.and_then(|resources| resources.requests.as_ref());
    let Some(request) = requests.and_then(|list| list.get(CPU)).map(amount) else {
        return 0;
    };
    let whole = request.value().checked_mul(1000) == Some(request.milli_value());
    match whole {
        true => usize::try_from(request.value()).unwrap_or(0),
        false => 0,
    }
}

/// What the pod's init containers before this one leave: those of sidecars and regular containers are theirs.
///
/// Upstream remembers it (`cpusToReuse`); here it follows from who has what, so that a restart forgets nothing.
fn reusable(state: &CpuState, pod: &Pod, container: &str) -> CpuSet {
    let inits = pod::init_containers(pod).iter();
    let inits = inits.map(|c| (&c.name, !is_restartable_init_container(c)));
    let regular = pod::containers(pod).iter().map(|c| (&c.name, false));
    let earlier = inits
        .chain(regular)
        .take_while(|(name, _)| *name != container);
    earlier.fold(CpuSet::default(), |left, (name, leaves)| {
        match (state.cpu_set(pod::uid(pod), name), leaves) {
            (None, _) => left,
            (Some(held), true) => left.union(held),
            (Some(held), false) => left.difference(held),
        }
    })
}

#[cfg(test)]
mod tests;
