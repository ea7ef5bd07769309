//! Which CPUs a container gets: as few NUMA nodes, sockets, caches and cores as can be, or spread over them where the options say so.
//!
//! Owns: [`take`], a pure function of the machine and of what is free. Upstream: cpu_assignment.go, v1.37.

mod distributed;

use std::collections::BTreeSet;

use crate::cpu_set::CpuSet;
use crate::topology::{CpuDetails, CpuTopology, Level};

/// The CPUs cannot be had. Later they may be, but upstream rejects the pod for good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssignmentError {
    #[error(
        "not enough cpus available to satisfy request: requested={requested}, available={available}"
    )]
    NotEnough { requested: usize, available: usize },
    #[error("failed to allocate cpus")]
    Failed,
    #[error("accounting error, not enough CPUs allocated, remaining: {0}")]
    Accounting(usize),
}

/// How to choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strategy {
    /// One thread of each core first, no whole cores. Upstream: `CPUSortingStrategySpread`.
    pub spread_over_cores: bool,
    /// As many of each NUMA node where it takes several; in groups of so many CPUs. Upstream: `takeByTopologyNUMADistributed`.
    pub distribute: Option<usize>,
    /// Of those the nodes of one socket first.
    pub align_by_socket: bool,
    /// Whole uncore caches first, then within as few as can be. Has no effect on what is distributed.
    pub align_by_uncore_cache: bool,
}

/// `count` of the `available` CPUs.
///
/// # Errors
/// There are not so many.
pub fn take(
    topology: &CpuTopology,
    available: &CpuSet,
    count: usize,
    strategy: Strategy,
) -> Result<CpuSet, AssignmentError> {
    match strategy.distribute {
        Some(group) if group > 0 && count.is_multiple_of(group) => {
            distributed::take(topology, available, count, group, strategy)
        }
        // What cannot be handed out in such groups is packed, without regard to caches.
        Some(_) => packed(topology, available, count, without_caches(strategy)),
        None => packed(topology, available, count, strategy),
    }
}

fn without_caches(strategy: Strategy) -> Strategy {
    Strategy {
        align_by_uncore_cache: false,
        ..strategy
    }
}

fn packed(
    topology: &CpuTopology,
    available: &CpuSet,
    count: usize,
    strategy: Strategy,
) -> Result<CpuSet, AssignmentError> {
    let mut acc = Accumulator::new(topology, available, count, strategy.spread_over_cores)?;
    for level in acc.order() {
        acc.take_full(level);
    }
    if strategy.align_by_uncore_cache {
        acc.take_uncore_caches();
    }
    if !strategy.spread_over_cores {
        acc.take_full(Level::Core);
    }
    acc.take_remaining();
    match acc.needed {
        0 => Ok(acc.taken),
        _ => Err(AssignmentError::Failed),
    }
}

/// What is taken, and what is left to take from.
struct Accumulator<'a> {
    topology: &'a CpuTopology,
    /// What is free.
    details: CpuDetails,
    needed: usize,
    taken: CpuSet,
    spread: bool,
}

impl<'a> Accumulator<'a> {
    fn new(
        topology: &'a CpuTopology,
        available: &CpuSet,
        count: usize,
        spread: bool,
    ) -> Result<Self, AssignmentError> {
        let details = topology.details.keep_only(available);
        if count > details.cpus().len() {
            return Err(AssignmentError::NotEnough {
                requested: count,
                available: available.len(),
            });
        }
        Ok(Self {
            topology,
            details,
            needed: count,
            taken: CpuSet::default(),
            spread,
        })
    }

    /// The larger of sockets and NUMA nodes first.
    fn order(&self) -> [Level; 2] {
        match self.topology.num_sockets >= self.topology.num_numa_nodes {
            true => [Level::NumaNode, Level::Socket],
            false => [Level::Socket, Level::NumaNode],
        }
    }

    /// Those with the fewest free CPUs first, so that the others stay whole.
    fn sort(&self, level: Level, ids: BTreeSet<usize>) -> Vec<usize> {
        let mut ids: Vec<usize> = ids.into_iter().collect();
        ids.sort_by_cached_key(|id| (self.details.count_in(level, *id), *id));
        ids
    }

    /// All of the level, in the order of those above it.
    fn sorted(&self, level: Level) -> Vec<usize> {
        let [first, second] = self.order();
        let within = match level {
            l if l == first => return self.sort(first, self.details.ids(first)),
            l if l == second => first,
            Level::UncoreCache => Level::NumaNode,
            // Cores, below the smaller of the two.
            _ => second,
        };
        let above = self.sorted(within).into_iter();
        above
            .flat_map(|id| self.sort(level, self.details.ids_in(level, within, id)))
            .collect()
    }

    fn is_free(&self, level: Level, id: usize) -> bool {
        let whole = match level {
            Level::Socket => self.topology.cpus_per_socket(),
            Level::Core => self.topology.cpus_per_core(),
            Level::NumaNode | Level::UncoreCache => self.topology.details.count_in(level, id),
        };
        self.details.count_in(level, id) == whole
    }

    fn take(&mut self, cpus: &CpuSet) {
        let new = cpus.difference(&self.taken);
        self.needed = self.needed.saturating_sub(new.len());
        self.taken = self.taken.union(&new);
        let left = self.details.cpus().difference(&new);
        self.details = self.details.keep_only(&left);
    }

    /// Whole ones of the level, as long as all their CPUs are needed.
    fn take_full(&mut self, level: Level) {
        let free: Vec<usize> = self
            .sorted(level)
            .into_iter()
            .filter(|id| self.is_free(level, *id))
            .collect();
        for id in free {
            let cpus = self.topology.details.cpus_in(level, id);
            if self.needed > 0 && self.needed >= cpus.len() {
                self.take(&cpus);
            }
        }
    }

    fn take_uncore_caches(&mut self) {
        for cache in self.sorted(Level::UncoreCache) {
            if self.needed >= self.topology.cpus_per_uncore_cache() {
                self.take_full(Level::UncoreCache);
            }
            if self.needed == 0 {
                return;
            }
            self.take_partial_uncore_cache(cache);
        }
    }

    /// All that is still needed out of one cache, or nothing.
    fn take_partial_uncore_cache(&mut self, cache: usize) {
        let per_core = self.topology.cpus_per_core();
        let cores = self
            .details
            .ids_in(Level::Core, Level::UncoreCache, cache)
            .into_iter()
            .take(self.needed.div_ceil(per_core));
        let mut cpus: Vec<usize> = self
            .details
            .cpus_in_any(Level::Core, cores)
            .iter()
            .collect();
        if !self.needed.is_multiple_of(2) && per_core > 1 && cpus.len() > self.needed {
            // Of the last core one thread is enough.
            cpus.pop();
        }
        if cpus.len() == self.needed {
            self.take(&cpus.into_iter().collect());
        }
    }

    /// CPU by CPU, of cores that are begun first; where they are to be spread, in the order of their numbers.
    fn take_remaining(&mut self) {
        let level = if self.spread {
            Level::Socket
        } else {
            Level::Core
        };
        let cpus: Vec<usize> = self
            .sorted(level)
            .into_iter()
            .flat_map(|id| self.details.cpus_in(level, id).iter().collect::<Vec<_>>())
            .collect();
        for cpu in cpus {
            if self.needed == 0 {
                return;
            }
            self.take(&[cpu].into());
        }
    }
}

#[cfg(test)]
mod tests;
