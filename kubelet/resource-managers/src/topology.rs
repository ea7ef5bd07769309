//! How the machine is made: CPUs, their cores, sockets, caches and NUMA nodes, and the memory of those.
//!
//! Owns: the picture, and questions of it; [`discover`] reads it. Upstream: pkg/kubelet/cm/cpumanager/topology, cadvisor's
//! `GetNodesInfo`, v1.37.

pub mod discover;

use std::collections::{BTreeMap, BTreeSet};

use crate::cpu_set::CpuSet;

/// Where a CPU is. Two CPUs with the same core are hyper-threads of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuInfo {
    pub numa_node: usize,
    pub socket: usize,
    /// The lowest CPU of the core: the machine's own numbers are unique in a socket only.
    pub core: usize,
    /// The cache above the core's own; the socket where all share one.
    pub uncore_cache: usize,
}

/// What CPUs are grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    NumaNode,
    Socket,
    UncoreCache,
    Core,
}

impl CpuInfo {
    pub fn at(&self, level: Level) -> usize {
        match level {
            Level::NumaNode => self.numa_node,
            Level::Socket => self.socket,
            Level::UncoreCache => self.uncore_cache,
            Level::Core => self.core,
        }
    }
}

/// Some CPUs of the machine, and where they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuDetails(BTreeMap<usize, CpuInfo>);

impl CpuDetails {
    pub fn get(&self, cpu: usize) -> Option<&CpuInfo> {
        self.0.get(&cpu)
    }

    pub fn cpus(&self) -> CpuSet {
        self.0.keys().copied().collect()
    }

    pub fn keep_only(&self, cpus: &CpuSet) -> Self {
        let kept = self.0.iter().filter(|(cpu, _)| cpus.contains(**cpu));
        Self(kept.map(|(cpu, info)| (*cpu, *info)).collect())
    }

    /// Which of the level there are, in order.
    pub fn ids(&self, level: Level) -> BTreeSet<usize> {
        self.0.values().map(|info| info.at(level)).collect()
    }

    /// The same, of CPUs within one of another level.
    pub fn ids_in(&self, level: Level, within: Level, id: usize) -> BTreeSet<usize> {
        let inside = self.0.values().filter(|info| info.at(within) == id);
        inside.map(|info| info.at(level)).collect()
    }

    pub fn cpus_in(&self, level: Level, id: usize) -> CpuSet {
        self.cpus_in_any(level, [id])
    }

    pub fn cpus_in_any(&self, level: Level, ids: impl IntoIterator<Item = usize>) -> CpuSet {
        let ids: BTreeSet<usize> = ids.into_iter().collect();
        let inside = self
            .0
            .iter()
            .filter(|(_, info)| ids.contains(&info.at(level)));
        inside.map(|(cpu, _)| *cpu).collect()
    }

    /// How many CPUs there are in one of the level.
    pub fn count_in(&self, level: Level, id: usize) -> usize {
        self.0.values().filter(|info| info.at(level) == id).count()
    }

    /// The sockets that the nodes belong to.
    pub fn sockets_of(&self, nodes: impl IntoIterator<Item = usize>) -> BTreeSet<usize> {
        let nodes: BTreeSet<usize> = nodes.into_iter().collect();
        let inside = self.0.values().filter(|i| nodes.contains(&i.numa_node));
        inside.map(|info| info.socket).collect()
    }

    /// Whether all nodes are known and of one socket.
    pub fn are_in_one_socket(&self, nodes: &[usize]) -> bool {
        let known = self.ids(Level::NumaNode);
        nodes.iter().all(|node| known.contains(node))
            && self.sockets_of(nodes.iter().copied()).len() <= 1
    }
}

impl FromIterator<(usize, CpuInfo)> for CpuDetails {
    fn from_iter<I: IntoIterator<Item = (usize, CpuInfo)>>(all: I) -> Self {
        Self(all.into_iter().collect())
    }
}

/// All CPUs of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuTopology {
    pub num_cpus: usize,
    pub num_cores: usize,
    pub num_sockets: usize,
    pub num_numa_nodes: usize,
    pub num_uncore_caches: usize,
    pub details: CpuDetails,
}

impl CpuTopology {
    pub fn of(details: CpuDetails) -> Self {
        Self {
            num_cpus: details.0.len(),
            num_cores: details.ids(Level::Core).len(),
            num_sockets: details.ids(Level::Socket).len(),
            num_numa_nodes: details.ids(Level::NumaNode).len(),
            num_uncore_caches: details.ids(Level::UncoreCache).len(),
            details,
        }
    }

    /// How many CPUs are in a core, if all have as many; one where nothing is known.
    pub fn cpus_per_core(&self) -> usize {
        self.num_cpus
            .checked_div(self.num_cores)
            .unwrap_or(1)
            .max(1)
    }

    pub fn cpus_per_socket(&self) -> usize {
        self.num_cpus.checked_div(self.num_sockets).unwrap_or(0)
    }

    pub fn cpus_per_uncore_cache(&self) -> usize {
        let per_cache = self.num_cpus.checked_div(self.num_uncore_caches);
        per_cache.unwrap_or(0)
    }

    /// Whether all of them share an uncore cache.
    pub fn is_uncore_aligned(&self, cpus: &CpuSet) -> bool {
        let caches: Option<BTreeSet<usize>> = cpus
            .iter()
            .map(|cpu| Some(self.details.get(cpu)?.uncore_cache))
            .collect();
        cpus.len() <= 1 || caches.is_some_and(|caches| caches.len() == 1)
    }
}

/// Huge pages of one size that are set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HugePages {
    pub page_size_kib: u64,
    pub count: u64,
}

/// A NUMA node; it may have memory and no CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NumaNode {
    pub id: usize,
    pub memory_bytes: u64,
    pub huge_pages: Vec<HugePages>,
    /// To every node, in the order of their ids; empty: the machine does not say.
    pub distances: Vec<u64>,
}

/// The machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    pub cpus: CpuTopology,
    /// In the order of their ids.
    pub nodes: Vec<NumaNode>,
}

impl Topology {
    pub fn node_ids(&self) -> Vec<usize> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    /// A made-up machine: `sockets` with `nodes` each, those with `cores` each, and `threads` a core. CPUs are numbered as most
    /// machines do it: all first threads, then all second ones. A node has `memory_bytes`.
    pub fn regular([sockets, nodes, cores, threads]: [usize; 4], memory_bytes: u64) -> Self {
        let all_nodes = sockets * nodes;
        let all_cores = all_nodes * cores;
        let cpus = (0..all_cores * threads).map(|cpu| {
            let core = cpu % all_cores;
            let numa_node = core / cores;
            let socket = numa_node / nodes;
            let info = CpuInfo {
                numa_node,
                socket,
                core,
                uncore_cache: socket,
            };
            (cpu, info)
        });
        let distance = |a: usize, b: usize| match (a == b, a / nodes == b / nodes) {
            (true, _) => 10,
            (false, true) => 11,
            (false, false) => 20,
        };
        Self {
            cpus: CpuTopology::of(cpus.collect()),
            nodes: (0..all_nodes)
                .map(|id| NumaNode {
                    id,
                    memory_bytes,
                    huge_pages: Vec::new(),
                    distances: (0..all_nodes).map(|to| distance(id, to)).collect(),
                })
                .collect(),
        }
    }
}
