//! Who has which CPUs.
//!
//! Upstream: state/state_mem.go, v1.37.

use std::collections::BTreeMap;

use crate::cpu_set::CpuSet;

/// By UID of the pod, then by name of the container.
pub type Assignments = BTreeMap<String, BTreeMap<String, CpuSet>>;

/// All that the CPU manager remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuState {
    /// The shared pool; empty: there is no policy but none.
    pub default_cpu_set: CpuSet,
    /// An init container's may be a later container's, too.
    pub assignments: Assignments,
}

impl CpuState {
    /// What the container has for itself.
    pub fn cpu_set(&self, pod: &str, container: &str) -> Option<&CpuSet> {
        self.assignments.get(pod)?.get(container)
    }

    /// What the container runs on.
    pub fn cpu_set_or_default(&self, pod: &str, container: &str) -> &CpuSet {
        let own = self.cpu_set(pod, container);
        own.unwrap_or(&self.default_cpu_set)
    }

    pub fn set(&mut self, pod: &str, container: &str, cpus: CpuSet) {
        let of_pod = self.assignments.entry(pod.to_owned()).or_default();
        of_pod.insert(container.to_owned(), cpus);
    }

    /// Takes the container off; what only it had goes back to the shared pool, and is returned.
    pub fn remove(&mut self, pod: &str, container: &str) -> Option<CpuSet> {
        let of_pod = self.assignments.get_mut(pod)?;
        let cpus = of_pod.remove(container)?;
        let of_others = of_pod.values();
        let released = of_others.fold(cpus, |cpus, others| cpus.difference(others));
        if of_pod.is_empty() {
            self.assignments.remove(pod);
        }
        self.default_cpu_set = self.default_cpu_set.union(&released);
        Some(released)
    }

    /// All that is somebody's own.
    pub fn exclusive(&self) -> CpuSet {
        let all = self.assignments.values().flat_map(BTreeMap::values);
        all.fold(CpuSet::default(), |all, cpus| all.union(cpus))
    }
}
