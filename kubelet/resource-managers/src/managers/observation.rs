//! What happens, for whoever counts.

use std::collections::BTreeMap;

/// What is given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    Cpu,
    Memory,
}

/// What something is aligned to. The texts are upstream's labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// `container` or `pod`
    pub scope: &'static str,
    /// `numa_node`, `physical_cpu` or `uncore_cache`
    pub boundary: &'static str,
}

const fn of_container(boundary: &'static str) -> Alignment {
    Alignment {
        scope: "container",
        boundary,
    }
}

pub(super) const PHYSICAL_CPU: Alignment = of_container("physical_cpu");
pub(super) const UNCORE_CACHE: Alignment = of_container("uncore_cache");
pub(super) const NUMA_NODE: Alignment = of_container("numa_node");
pub(super) const NUMA_NODE_OF_POD: Alignment = Alignment {
    scope: "pod",
    boundary: "numa_node",
};

/// What happens, for metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// Something may be aligned on this machine and was not yet.
    CouldAlign(Alignment),
    Aligned(Alignment),
    NotAligned(Alignment),
    /// A container wants some of its own.
    PinningRequested(Resource),
    PinningFailed(Resource),
    /// A container got some of its own; once a resource of memory.
    Allocated(Resource),
    /// As [`Observation::Allocated`], once a container.
    Assigned(Resource),
    /// Who has CPUs is another than before.
    Pool {
        /// What is nobody's, without what is reserved.
        shared_cpus: usize,
        exclusive_cpus: usize,
        exclusive_by_numa_node: BTreeMap<usize, usize>,
    },
}

/// Told of what happens; it must not block.
pub trait Observer: Send + Sync + 'static {
    fn observe(&self, observation: Observation);
}
