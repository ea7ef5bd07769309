//! The policy Static: containers of Guaranteed pods have their memory of as few NUMA nodes as can be.
//!
//! **Invariant:** a node gives memory to containers of its own, or of one group of nodes, never of both.
//!
//! Upstream: policy_static.go, v1.37.

use std::collections::{BTreeMap, BTreeSet};

use component_helpers::quantity::{Amount, amount};
use component_helpers::resources::{HUGEPAGES_PREFIX, MEMORY, is_restartable_init_container};
use k8s_openapi::api::core::v1::{Container, Pod};

use super::reserved::{ReservedMemoryError, SystemReserved, whole};
use super::state::{Block, MachineState, MemoryState, MemoryTable, NumaNodeState, occupy};
use crate::numa_mask::{NumaMask, iterate_masks};
use crate::pod;
use crate::topology::NumaNode;
use crate::topology_manager::{Hints, TopologyHint};

/// The policy cannot be had on this machine, or what is remembered does not fit it. Another start says the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryManagerError {
    #[error(transparent)]
    Reserved(#[from] ReservedMemoryError),
    #[error("[memorymanager] you should specify the system reserved memory")]
    NothingReserved,
    #[error("unknown policy: {0:?}")]
    UnknownPolicy(String),
    #[error("policy \"BestEffort\" is not available for platform \"linux\"")]
    BestEffort,
    #[error("[memorymanager] machine state can not be empty when it has memory assignments")]
    NoMachine,
    #[error(
        "[memorymanager] (pod: {pod}, container: {container}) the memory assignment uses the NUMA that does not exist"
    )]
    NoSuchNode { pod: String, container: String },
    #[error(
        "[memorymanager] (pod: {pod}, container: {container}) the memory assignment uses memory resource that does not exist"
    )]
    NoSuchResource { pod: String, container: String },
    #[error("[memorymanager] the expected machine state is different from the real one")]
    OtherMachine,
}

/// The container does not get its memory: its pod is rejected for good, as upstream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocateMemoryError {
    #[error("[memorymanager] failed to represent quantity as int64")]
    NotWhole,
    #[error(
        "[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available"
    )]
    NoDefault,
    #[error("[memorymanager] failed to find the default preferred hint")]
    NoPreferredDefault,
    #[error("[memorymanager] failed to find NUMA nodes to extend the current topology hint")]
    NoExtension,
    #[error("[memorymanager] failed to find the extended preferred hint")]
    NoPreferredExtension,
    #[error("[memorymanager] preferred hint violates NUMA node allocation")]
    Violates,
}

/// What an allocation came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocated {
    /// Nothing of its own.
    Shared,
    /// It had it already.
    Held,
    New,
}

/// Bytes by name of the resource.
type Requests = BTreeMap<String, u64>;

/// The policy on a machine.
#[derive(Clone, Debug)]
pub struct StaticPolicy {
    nodes: Vec<NumaNode>,
    reserved: SystemReserved,
}

impl StaticPolicy {
    /// # Errors
    /// No memory is reserved.
    pub fn new(nodes: Vec<NumaNode>, reserved: SystemReserved) -> Result<Self, MemoryManagerError> {
        let of_node = |node: &BTreeMap<String, u64>| node.get(MEMORY).copied().unwrap_or(0);
        match reserved.values().map(of_node).any(|bytes| bytes > 0) {
            true => Ok(Self { nodes, reserved }),
            false => Err(MemoryManagerError::NothingReserved),
        }
    }

    /// Begins with what is remembered; an empty memory is filled.
    ///
    /// # Errors
    /// It does not fit the machine or the reservation.
    pub fn start(&self, state: &mut MemoryState) -> Result<(), MemoryManagerError> {
        let mut expected = self.default_machine();
        if state.machine.is_empty() {
            if !state.assignments.is_empty() {
                return Err(MemoryManagerError::NoMachine);
            }
            state.machine = expected;
            return Ok(());
        }
        for (pod, of_pod) in &state.assignments {
            for (container, blocks) in of_pod {
                for block in blocks {
                    check_block(&expected, block, pod, container)?;
                    let (nodes, resource) = (&block.numa_affinity, &block.resource);
                    occupy(&mut expected, nodes, resource, block.size);
                }
            }
        }
        match are_equal(&state.machine, &expected) {
            true => Ok(()),
            false => Err(MemoryManagerError::OtherMachine),
        }
    }

    /// The machine with nobody on it.
    fn default_machine(&self) -> MachineState {
        let nodes = self.nodes.iter();
        nodes
            .map(|node| (node.id, self.default_node(node)))
            .collect()
    }

    fn default_node(&self, node: &NumaNode) -> NumaNodeState {
        let reserved = |resource: &str| {
            let of_node = self.reserved.get(&node.id);
            of_node
                .and_then(|list| list.get(resource))
                .copied()
                .unwrap_or(0)
        };
        let table = |resource: &str, total: u64, gone: u64| {
            let system_reserved = reserved(resource);
            let allocatable = total.saturating_sub(system_reserved).saturating_sub(gone);
            MemoryTable {
                total,
                system_reserved,
                allocatable,
                reserved: 0,
                free: allocatable,
            }
        };
        let mut memory_map = BTreeMap::new();
        let mut in_huge_pages = 0;
        for pages in &node.huge_pages {
            let name = huge_page_resource(pages.page_size_kib);
            let total = pages.count * pages.page_size_kib * 1024;
            in_huge_pages += total;
            memory_map.insert(name.clone(), table(&name, total, 0));
        }
        let memory = table(MEMORY, node.memory_bytes, in_huge_pages);
        memory_map.insert(MEMORY.to_owned(), memory);
        NumaNodeState {
            number_of_assignments: 0,
            memory_map,
            cells: vec![node.id],
        }
    }

    /// What containers may have of each node, whoever has it now; what is nothing is left out.
    pub fn allocatable(&self, state: &MemoryState) -> Vec<Block> {
        let nodes = state.machine.iter();
        let tables = nodes.flat_map(|(id, node)| node.memory_map.iter().map(move |t| (id, t)));
        let some = tables.filter(|(_, (_, table))| table.allocatable > 0);
        some.map(|(id, (resource, table))| Block {
            numa_affinity: vec![*id],
            resource: resource.clone(),
            size: table.allocatable,
        })
        .collect()
    }

    /// Gives the container its memory: of the nodes of `hint`, or of more, where those have not enough.
    ///
    /// # Errors
    /// It cannot have it; nothing changed.
    pub fn allocate(
        &self,
        state: &mut MemoryState,
        pod: &Pod,
        container: &Container,
        hint: TopologyHint,
    ) -> Result<Allocated, AllocateMemoryError> {
        if !pod::may_have_its_own(pod) {
            return Ok(Allocated::Shared);
        }
        let requests = container_requests(container)?;
        if requests.is_empty() {
            return Ok(Allocated::Shared);
        }
        let uid = pod::uid(pod);
        if state.blocks(uid, &container.name).is_some() {
            return Ok(Allocated::Held);
        }
        let reusable = Reusable::of(state, pod, &container.name);
        let mask = choose(&state.machine, &reusable, &requests, hint)?;
        let earlier = Reusable::held(state, pod, earlier_init_containers(pod, &container.name));
        let nodes: Vec<usize> = mask.nodes().collect();
        let mut blocks = Vec::new();
        for (resource, size) in requests {
            let of_earlier = size.min(earlier.get(mask, &resource));
            let left = reusable.get(mask, &resource);
            let new = size.saturating_sub(left);
            occupy(&mut state.machine, &nodes, &resource, new);
            // What the others leave it goes over to it; what those after it lend it stays theirs.
            blocks.push(Block {
                numa_affinity: nodes.clone(),
                resource,
                size: of_earlier + new,
            });
        }
        take_from_init_containers(state, pod, &container.name, &blocks);
        tracing::info!(
            pod = uid,
            container = container.name,
            ?nodes,
            "Allocated exclusive memory"
        );
        let of_pod = state.assignments.entry(uid.to_owned()).or_default();
        of_pod.insert(container.name.clone(), blocks);
        Ok(Allocated::New)
    }

    /// Where the container's memory could come from; empty: it does not matter, or there is not enough of it.
    pub fn topology_hints(&self, state: &MemoryState, pod: &Pod, container: &Container) -> Hints {
        if !pod::may_have_its_own(pod) {
            return Hints::new();
        }
        let Ok(requests) = container_requests(container) else {
            tracing::error!(
                pod = pod::uid(pod),
                container = container.name,
                "Failed to get container requested resources"
            );
            return Hints::new();
        };
        if requests.is_empty() {
            return Hints::new();
        }
        if let Some(blocks) = state.blocks(pod::uid(pod), &container.name) {
            return regenerate_hints(blocks, &requests);
        }
        let reusable = Reusable::of(state, pod, &container.name);
        calculate_hints(&state.machine, &reusable, &requests)
    }

    /// The same of all that the pod's containers have at a time.
    pub fn pod_topology_hints(&self, state: &MemoryState, pod: &Pod) -> Hints {
        if !pod::may_have_its_own(pod) {
            return Hints::new();
        }
        let Ok(requests) = pod_requests(pod) else {
            tracing::error!(pod = pod::uid(pod), "Failed to get pod requested resources");
            return Hints::new();
        };
        if requests.is_empty() {
            return Hints::new();
        }
        let held = pod::all_containers(pod).find_map(|c| state.blocks(pod::uid(pod), &c.name));
        match held {
            Some(blocks) => regenerate_hints(blocks, &requests),
            None => calculate_hints(&state.machine, &Reusable::default(), &requests),
        }
    }
}

/// `hugepages-2Mi`
fn huge_page_resource(size_kib: u64) -> String {
    let bytes = i64::try_from(size_kib).unwrap_or(0).saturating_mul(1024);
    let size = match bytes {
        _ if bytes % (1 << 30) == 0 => format!("{}Gi", bytes >> 30),
        _ if bytes % (1 << 20) == 0 => format!("{}Mi", bytes >> 20),
        _ => format!("{}Ki", bytes >> 10),
    };
    format!("{HUGEPAGES_PREFIX}{size}")
}

/// Memory and huge pages that the container asks for.
fn container_requests(container: &Container) -> Result<Requests, AllocateMemoryError> {
    let resources = container.resources.as_ref();
    let list = resources.and_then(|resources| resources.requests.as_ref());
    let memory = list.into_iter().flatten();
    let memory = memory.filter(|(name, _)| *name == MEMORY || name.starts_with(HUGEPAGES_PREFIX));
    memory
        .map(|(name, quantity)| {
            let amount: Amount = amount(quantity);
            let bytes = whole(&amount).ok_or(AllocateMemoryError::NotWhole)?;
            Ok((name.clone(), bytes))
        })
        .collect()
}

/// Of what regular containers ask for, the most that is used at a time. What init containers alone ask for does not count, as upstream.
fn pod_requests(pod: &Pod) -> Result<Requests, AllocateMemoryError> {
    for container in pod::init_containers(pod) {
        container_requests(container)?;
    }
    let mut names = BTreeSet::new();
    for container in pod::containers(pod) {
        names.extend(container_requests(container)?.into_keys());
    }
    let most = |name: &String| {
        pod::most_at_a_time(pod, |container| {
            let requests = container_requests(container).unwrap_or_default();
            requests.get(name).copied().unwrap_or(0)
        })
    };
    Ok(names
        .iter()
        .map(|name| (name.clone(), most(name)))
        .collect())
}

/// Whether a container needs something of its own.
pub fn wants_memory(pod: &Pod, container: &Container) -> bool {
    pod::may_have_its_own(pod) && container_requests(container).map_or(true, |r| !r.is_empty())
}

/// What init containers leave to those after them, and what they can use of those that do not run yet, by nodes and resource.
///
/// Upstream remembers the one (`initContainersReusableMemory`); here it is what the blocks of the init containers still hold.
///
/// DIFFERS: of the other upstream knows nothing. An init container whose pod is admitted anew, on a machine that started again, takes
/// memory besides what its pod has, and without it the pod is rejected for good.
#[derive(Default)]
struct Reusable(BTreeMap<(NumaMask, String), u64>);

impl Reusable {
    fn of(state: &MemoryState, pod: &Pod, container: &str) -> Self {
        let earlier = earlier_init_containers(pod, container);
        Self::held(state, pod, earlier.chain(containers_after(pod, container)))
    }

    fn held<'a>(state: &MemoryState, pod: &Pod, containers: impl Iterator<Item = &'a str>) -> Self {
        let mut left = BTreeMap::new();
        for name in containers {
            for block in state.blocks(pod::uid(pod), name).unwrap_or_default() {
                let mask = NumaMask::of(block.numa_affinity.iter().copied());
                let bytes: &mut u64 = left.entry((mask, block.resource.clone())).or_default();
                *bytes += block.size;
            }
        }
        Self(left)
    }

    fn get(&self, mask: NumaMask, resource: &str) -> u64 {
        let key = (mask, resource.to_owned());
        self.0.get(&key).copied().unwrap_or(0)
    }
}

/// Those that end before the container starts.
fn earlier_init_containers<'a>(pod: &'a Pod, container: &'a str) -> impl Iterator<Item = &'a str> {
    let inits = pod::init_containers(pod).iter();
    let earlier = inits.take_while(move |init| init.name != container);
    earlier
        .filter(|init| !is_restartable_init_container(init))
        .map(|init| init.name.as_str())
}

/// Those that start when the container has ended: nobody, if it runs on.
fn containers_after<'a>(pod: &'a Pod, container: &'a str) -> impl Iterator<Item = &'a str> {
    let ends = pod::is_regular_init(pod, container);
    let all = pod::all_containers(pod).skip_while(move |one| one.name != container);
    let after = all.skip(1).filter(move |_| ends);
    after.map(|one| one.name.as_str())
}

/// So that the blocks of a pod add up to what is given out.
fn take_from_init_containers(state: &mut MemoryState, pod: &Pod, container: &str, taken: &[Block]) {
    let Some(of_pod) = state.assignments.get_mut(pod::uid(pod)) else {
        return;
    };
    for block in taken {
        let nodes = NumaMask::of(block.numa_affinity.iter().copied());
        let mut left = block.size;
        for init in earlier_init_containers(pod, container) {
            for theirs in of_pod.get_mut(init).into_iter().flatten() {
                let same = theirs.resource == block.resource
                    && NumaMask::of(theirs.numa_affinity.iter().copied()) == nodes;
                if same {
                    let moved = left.min(theirs.size);
                    theirs.size -= moved;
                    left -= moved;
                }
            }
        }
    }
}

/// The nodes that give what is asked for.
fn choose(
    machine: &MachineState,
    reusable: &Reusable,
    requests: &Requests,
    hint: TopologyHint,
) -> Result<NumaMask, AllocateMemoryError> {
    // Hints of all kinds of memory are the same.
    let of_memory = || {
        let mut hints = calculate_hints(machine, reusable, requests);
        hints.remove(MEMORY).flatten().unwrap_or_default()
    };
    let (mask, preferred) = match hint.affinity {
        Some(mask) => (mask, hint.preferred),
        None => {
            let best = best_hint(of_memory()).ok_or(AllocateMemoryError::NoDefault)?;
            if hint.preferred && !best.1 {
                return Err(AllocateMemoryError::NoPreferredDefault);
            }
            best
        }
    };
    let mask = match satisfies(machine, mask, requests) {
        true => mask,
        // What the providers agree on may be less than this one needs.
        false => {
            let mut wider = of_memory();
            wider.retain(|hint| hint.affinity.is_some_and(|wide| mask.is_subset(wide)));
            let (wide, is_preferred) = best_hint(wider).ok_or(AllocateMemoryError::NoExtension)?;
            if preferred && !is_preferred {
                return Err(AllocateMemoryError::NoPreferredExtension);
            }
            wide
        }
    };
    match violates(machine, mask) {
        true => Err(AllocateMemoryError::Violates),
        false => Ok(mask),
    }
}

/// A preferred one before the others, then the narrowest.
fn best_hint(hints: Vec<TopologyHint>) -> Option<(NumaMask, bool)> {
    let hints = hints.into_iter();
    let hints = hints.filter_map(|hint| Some((hint.affinity?, hint.preferred)));
    hints.reduce(|best, hint| {
        let better = match (best.1, hint.1) {
            (false, true) => true,
            (true, false) => false,
            _ => hint.0.is_narrower_than(best.0),
        };
        if better { hint } else { best }
    })
}

fn table<'a>(machine: &'a MachineState, node: usize, resource: &str) -> Option<&'a MemoryTable> {
    machine.get(&node)?.memory_map.get(resource)
}

fn sum(machine: &MachineState, mask: NumaMask, resource: &str, of: fn(&MemoryTable) -> u64) -> u64 {
    let tables = mask
        .nodes()
        .filter_map(|node| table(machine, node, resource));
    tables.map(of).fold(0, u64::saturating_add)
}

fn satisfies(machine: &MachineState, mask: NumaMask, requests: &Requests) -> bool {
    let mut requests = requests.iter();
    requests.all(|(resource, size)| sum(machine, mask, resource, |table| table.free) >= *size)
}

/// Whether a node of several gives memory alone already, or with others. A node that gives with others cannot give alone, which the
/// hints see to.
fn violates(machine: &MachineState, mask: NumaMask) -> bool {
    let mut used = mask.nodes().filter_map(|node| machine.get(&node));
    mask.count() > 1
        && used.any(|node| {
            let cells = NumaMask::of(node.cells.iter().copied());
            node.number_of_assignments > 0 && (node.cells.len() == 1 || cells != mask)
        })
}

/// All sets of nodes that have enough free; those of the fewest nodes that could ever do are preferred.
fn calculate_hints(machine: &MachineState, reusable: &Reusable, requests: &Requests) -> Hints {
    let nodes: Vec<usize> = machine.keys().copied().collect();
    let mut least = nodes.len();
    let mut masks = Vec::new();
    iterate_masks(&nodes, |mask| {
        let fits = |of: fn(&MemoryTable) -> u64, more: bool| {
            requests.iter().all(|(resource, size)| {
                let left = if more {
                    reusable.get(mask, resource)
                } else {
                    0
                };
                sum(machine, mask, resource, of).saturating_add(left) >= *size
            })
        };
        if !fits(|table| table.allocatable, false) {
            return;
        }
        least = least.min(mask.count());
        let grouped = |node: usize| machine.get(&node).is_some_and(|n| n.cells.len() > 1);
        let alone_in_group = mask.count() == 1 && mask.nodes().any(grouped);
        if !alone_in_group && !violates(machine, mask) && fits(|table| table.free, true) {
            masks.push(mask);
        }
    });
    if masks.is_empty() {
        return Hints::new();
    }
    let hints: Vec<TopologyHint> = masks
        .into_iter()
        .map(|mask| TopologyHint {
            affinity: Some(mask),
            preferred: mask.count() == least,
        })
        .collect();
    let names = requests.keys();
    names
        .map(|name| (name.clone(), Some(hints.clone())))
        .collect()
}

/// Of what is given out already. Empty where it is not what is asked for, as upstream.
fn regenerate_hints(blocks: &[Block], requests: &Requests) -> Hints {
    if blocks.len() != requests.len() {
        tracing::info!(
            "The number of requested resources by the container differs from the number of memory blocks"
        );
        return Hints::new();
    }
    let mut hints = Hints::new();
    for block in blocks {
        if requests.get(&block.resource) != Some(&block.size) {
            tracing::info!(
                resource = block.resource,
                "Memory already allocated with different numbers than requested"
            );
            return Hints::new();
        }
        let hint = TopologyHint {
            affinity: Some(NumaMask::of(block.numa_affinity.iter().copied())),
            preferred: true,
        };
        hints.insert(block.resource.clone(), Some(vec![hint]));
    }
    hints
}

fn check_block(
    machine: &MachineState,
    block: &Block,
    pod: &str,
    container: &str,
) -> Result<(), MemoryManagerError> {
    let (pod, container) = (pod.to_owned(), container.to_owned());
    for node in &block.numa_affinity {
        if !machine.contains_key(node) {
            return Err(MemoryManagerError::NoSuchNode { pod, container });
        }
        if table(machine, *node, &block.resource).is_none() {
            return Err(MemoryManagerError::NoSuchResource { pod, container });
        }
    }
    Ok(())
}

/// Whether they say the same; what a group of nodes gave out may be spread over it in another order.
fn are_equal(one: &MachineState, other: &MachineState) -> bool {
    let fixed = |table: &MemoryTable| (table.total, table.system_reserved, table.allocatable);
    let cells = |node: &NumaNodeState| NumaMask::of(node.cells.iter().copied());
    one.len() == other.len()
        && one.iter().all(|(id, a)| {
            let Some(b) = other.get(id) else {
                return false;
            };
            let group = cells(a);
            a.number_of_assignments == b.number_of_assignments
                && group == cells(b)
                && a.memory_map.len() == b.memory_map.len()
                && a.memory_map.iter().all(|(resource, table)| {
                    let same = |of: fn(&MemoryTable) -> u64| {
                        sum(one, group, resource, of) == sum(other, group, resource, of)
                    };
                    b.memory_map.get(resource).map(fixed) == Some(fixed(table))
                        && same(|table| table.free)
                        && same(|table| table.reserved)
                })
        })
}

#[cfg(test)]
mod tests;
