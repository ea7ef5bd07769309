//! `memory_manager_state`, in upstream's form, checksums and all: a node can change its kubelet in either direction.
//!
//! What upstream calls version 3 is written; versions 1 and 2 are read. Memory of pods as a whole (`podEntries`) belongs to a gate that
//! is off and not built: it is not written, and what a file says of it is left out, as upstream without the gate.
//!
//! Upstream: state/checkpoint.go, state/state_checkpoint.go, v1.37.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use super::state::{Assignments, Block, MachineState, MemoryState, NumaNodeState};
use crate::checksum::{self, Fnv, print_list, print_map};

/// The name of the file, in the kubelet's root directory. Upstream: `memoryManagerStateFileName`.
pub const FILE: &str = "memory_manager_state";

/// Why a file says nothing. Another try says the same.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("no checkpoint of a memory manager: {0}")]
    Json(#[from] serde_json::Error),
    #[error(
        "could not load v3 checkpoint: failed to deserialize memory manager checkpoint data: {0}"
    )]
    Data(#[source] serde_json::Error),
    #[error("could not load v3 checkpoint: checkpoint is corrupted")]
    CorruptData,
    #[error("checkpoint is corrupted")]
    Corrupt,
    #[error(
        "[memorymanager] configured policy {configured:?} differs from state checkpoint policy {found:?}"
    )]
    Policy { configured: String, found: String },
}

#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Data {
    policy_name: String,
    machine_state: MachineState,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    entries: Assignments,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodEntry {
    memory_blocks: Option<Vec<Block>>,
}

/// All versions in one.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    policy_name: String,
    machine_state: MachineState,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    entries: Assignments,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pod_entries: BTreeMap<String, PodEntry>,
    checksum: u64,
    data: String,
    data_checksum: u64,
}

/// The text of the file.
pub fn encode(policy: &str, state: &MemoryState) -> String {
    let legacy = Data {
        policy_name: policy.to_owned(),
        machine_state: state.machine.clone(),
        entries: state.assignments.clone(),
    };
    let data = serde_json::to_string(&legacy).expect("maps with text and numbers as keys");
    let file = File {
        checksum: sum(&legacy, None),
        data_checksum: checksum::of_text(&data),
        policy_name: legacy.policy_name,
        machine_state: legacy.machine_state,
        entries: legacy.entries,
        pod_entries: BTreeMap::new(),
        data,
    };
    serde_json::to_string(&file).expect("maps with text and numbers as keys")
}

/// What a file says.
///
/// # Errors
/// It is no such file, not as it was written, or of another policy.
pub fn decode(text: &[u8], policy: &str) -> Result<MemoryState, CheckpointError> {
    let file: File = serde_json::from_slice(text)?;
    let data = match file.data.is_empty() && file.data_checksum == 0 {
        true => verified_legacy(file)?,
        false if checksum::of_text(&file.data) != file.data_checksum => {
            return Err(CheckpointError::CorruptData);
        }
        false => serde_json::from_str(&file.data).map_err(CheckpointError::Data)?,
    };
    if data.policy_name != policy {
        return Err(CheckpointError::Policy {
            configured: policy.to_owned(),
            found: data.policy_name,
        });
    }
    Ok(MemoryState {
        machine: data.machine_state,
        assignments: data.entries,
    })
}

/// Version 2 or 1. Without a sum: of a kubelet that wrote none.
fn verified_legacy(file: File) -> Result<Data, CheckpointError> {
    let data = Data {
        policy_name: file.policy_name,
        machine_state: file.machine_state,
        entries: file.entries,
    };
    let known = file.checksum == 0
        || [sum(&data, Some(&file.pod_entries)), sum(&data, None)].contains(&file.checksum);
    match known {
        true => Ok(data),
        false => Err(CheckpointError::Corrupt),
    }
}

/// Under the name that upstream's type had at first, which it keeps for older kubelets.
fn sum(data: &Data, pods: Option<&BTreeMap<String, PodEntry>>) -> u64 {
    checksum::of(|out| {
        write!(
            out,
            "(*state.MemoryManagerCheckpoint){{PolicyName:(string){} MachineState:(state.NUMANodeMap)",
            data.policy_name
        )?;
        print_map(out, &data.machine_state, print_node)?;
        out.write_str(" Entries:(state.ContainerMemoryAssignments)")?;
        print_map(out, &data.entries, |out, of_pod| {
            print_map(out, of_pod, |out, blocks| {
                print_list(out, blocks, print_block)
            })
        })?;
        if let Some(pods) = pods {
            out.write_str(" PodEntries:(state.PodMemoryAssignments)")?;
            print_map(out, pods, |out, entry| {
                out.write_str("{MemoryBlocks:([]state.Block)")?;
                match &entry.memory_blocks {
                    None => out.write_str("<nil>")?,
                    Some(blocks) => print_list(out, blocks, print_block)?,
                }
                out.write_str("}")
            })?;
        }
        out.write_str(" Checksum:(checksum.Checksum)0}")
    })
}

fn print_node(out: &mut Fnv, node: &NumaNodeState) -> fmt::Result {
    write!(
        out,
        "<*>{{NumberOfAssignments:(int){} MemoryMap:(map[v1.ResourceName]*state.MemoryTable)",
        node.number_of_assignments
    )?;
    print_map(out, &node.memory_map, |out, table| {
        write!(
            out,
            "<*>{{TotalMemSize:(uint64){} SystemReserved:(uint64){} Allocatable:(uint64){} Reserved:(uint64){} Free:(uint64){}}}",
            table.total, table.system_reserved, table.allocatable, table.reserved, table.free
        )
    })?;
    out.write_str(" Cells:([]int)")?;
    print_list(out, &node.cells, |out, id| write!(out, "{id}"))?;
    out.write_str("}")
}

fn print_block(out: &mut Fnv, block: &Block) -> fmt::Result {
    out.write_str("{NUMAAffinity:([]int)")?;
    print_list(out, &block.numa_affinity, |out, id| write!(out, "{id}"))?;
    write!(
        out,
        " Type:(v1.ResourceName){} Size:(uint64){}}}",
        block.resource, block.size
    )
}

#[cfg(test)]
mod tests;
