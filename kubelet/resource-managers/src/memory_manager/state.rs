//! Who has how much memory of which NUMA nodes.
//!
//! Upstream: state/state.go, v1.37.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Bytes of one kind of memory on one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryTable {
    pub total: u64,
    pub system_reserved: u64,
    /// What containers may have.
    pub allocatable: u64,
    /// What of that they have.
    pub reserved: u64,
    pub free: u64,
}

/// A NUMA node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NumaNodeState {
    /// Blocks that are of this node, among others.
    pub number_of_assignments: i64,
    /// By name of the resource: `memory`, `hugepages-2Mi`.
    pub memory_map: BTreeMap<String, MemoryTable>,
    /// The nodes that memory is given out of together with this one; itself, too.
    pub cells: Vec<usize>,
}

/// By id of the node.
pub type MachineState = BTreeMap<usize, NumaNodeState>;

/// Memory of one kind, of some nodes together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    pub numa_affinity: Vec<usize>,
    #[serde(rename = "type")]
    pub resource: String,
    /// Bytes. What an init container left to another one counts there.
    pub size: u64,
}

/// By UID of the pod, then by name of the container.
pub type Assignments = BTreeMap<String, BTreeMap<String, Vec<Block>>>;

/// All that the memory manager remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryState {
    /// Empty under the policy None.
    pub machine: MachineState,
    pub assignments: Assignments,
}

impl MemoryState {
    /// `None`: the container has nothing of its own.
    pub fn blocks(&self, pod: &str, container: &str) -> Option<&[Block]> {
        Some(self.assignments.get(pod)?.get(container)?.as_slice())
    }

    /// Takes the container off and frees what it has.
    pub fn remove(&mut self, pod: &str, container: &str) -> bool {
        let Some(of_pod) = self.assignments.get_mut(pod) else {
            return false;
        };
        let Some(blocks) = of_pod.remove(container) else {
            return false;
        };
        if of_pod.is_empty() {
            self.assignments.remove(pod);
        }
        release(&mut self.machine, &blocks);
        true
    }
}

/// Gives `size` bytes out of the nodes, the first first.
pub(super) fn occupy(machine: &mut MachineState, nodes: &[usize], resource: &str, size: u64) {
    let mut missing = size;
    for id in nodes {
        let Some(node) = machine.get_mut(id) else {
            continue;
        };
        node.number_of_assignments += 1;
        node.cells = nodes.to_vec();
        if let Some(table) = node.memory_map.get_mut(resource) {
            let given = missing.min(table.free);
            table.reserved += given;
            table.free -= given;
            missing -= given;
        }
    }
}

fn release(machine: &mut MachineState, blocks: &[Block]) {
    for block in blocks {
        let mut left = block.size;
        for id in &block.numa_affinity {
            let Some(node) = machine.get_mut(id) else {
                continue;
            };
            node.number_of_assignments = (node.number_of_assignments - 1).max(0);
            if node.number_of_assignments == 0 {
                node.cells = vec![*id];
            }
            if let Some(table) = node.memory_map.get_mut(&block.resource) {
                let freed = left.min(table.reserved);
                table.free += freed;
                table.reserved -= freed;
                left -= freed;
            }
        }
    }
}
