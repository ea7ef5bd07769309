//! From the configuration, the machine and the files to policies that may begin, or why they may not.
//!
//! Upstream: `NewManager` and `Start` of cpu_manager.go and memory_manager.go, v1.37.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use component_helpers::quantity::Amount;
use component_helpers::resources::{Amounts, CPU};

use crate::cpu_manager::{self, CpuManagerError, CpuState};
use crate::cpu_set::CpuSet;
use crate::memory_manager::reserved::{Reservation, system_reserved};
use crate::memory_manager::{self, MemoryManagerError, MemoryState};
use crate::options::{Gates, OptionsError, StaticOptions};
use crate::topology::Topology;
use crate::topology_manager::{Policy, TopologyManagerError};

/// A file of a thousand pods has a few hundred KiB.
const FILE_BYTES: u64 = 16 << 20;

/// The kubelet cannot start. Another start says the same until something is done about it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Topology(#[from] TopologyManagerError),
    #[error(transparent)]
    Cpu(#[from] CpuManagerError),
    #[error(transparent)]
    Memory(#[from] MemoryManagerError),
    #[error("start {manager} manager error: {error}")]
    State {
        manager: &'static str,
        error: String,
    },
    #[error(
        "start {manager} manager error: could not restore state from checkpoint: {error}, please drain this node and delete the {name} manager checkpoint file {path:?} before restarting Kubelet"
    )]
    Restore {
        manager: &'static str,
        name: &'static str,
        error: String,
        path: PathBuf,
    },
    #[error("start {manager} manager error: write {}: {source}", path.display())]
    Write {
        manager: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What the configuration says.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub cpu_policy: String,
    pub cpu_options: BTreeMap<String, String>,
    pub cpu_gates: Gates,
    /// `reservedSystemCPUs`
    pub reserved_cpus: CpuSet,
    pub memory_policy: String,
    pub reserved_memory: Vec<Reservation>,
    pub topology_policy: String,
    pub topology_scope: String,
    pub topology_options: BTreeMap<String, String>,
    /// What of the node is kept back from pods. Upstream: `GetNodeAllocatableReservation`.
    pub node_reservation: Amounts,
}

pub(super) fn cpu_policy(
    settings: &Settings,
    machine: &Topology,
    topology: Policy,
) -> Result<Option<cpu_manager::StaticPolicy>, CpuManagerError> {
    let options = &settings.cpu_options;
    match settings.cpu_policy.as_str() {
        "none" if options.is_empty() => Ok(None),
        "none" => {
            let pairs: Vec<String> = options.iter().map(|(k, v)| format!("{k}:{v}")).collect();
            let error = OptionsError::OfNone(format!("map[{}]", pairs.join(" ")));
            Err(CpuManagerError::OptionsOfNone(error))
        }
        "static" => {
            let options = StaticOptions::parse(options, settings.cpu_gates)?;
            let reserved = settings
                .node_reservation
                .get(CPU)
                .map_or(0, Amount::milli_value);
            let cpus = machine.cpus.clone();
            let named = &settings.reserved_cpus;
            cpu_manager::StaticPolicy::new(cpus, options, reserved, named, topology).map(Some)
        }
        other => Err(CpuManagerError::UnknownPolicy(other.to_owned())),
    }
}

pub(super) fn memory_policy(
    settings: &Settings,
    machine: &Topology,
) -> Result<Option<memory_manager::StaticPolicy>, MemoryManagerError> {
    match settings.memory_policy.as_str() {
        "None" => Ok(None),
        "Static" => {
            let (nodes, entries) = (&machine.nodes, &settings.reserved_memory);
            let reserved = system_reserved(nodes, &settings.node_reservation, entries)?;
            memory_manager::StaticPolicy::new(nodes.clone(), reserved).map(Some)
        }
        "BestEffort" => Err(MemoryManagerError::BestEffort),
        other => Err(MemoryManagerError::UnknownPolicy(other.to_owned())),
    }
}

/// What a kubelet before this one remembered, as it fits this one.
pub(super) fn restore(
    settings: &Settings,
    dir: &Path,
    cpu: Option<&cpu_manager::StaticPolicy>,
    memory: Option<&memory_manager::StaticPolicy>,
) -> Result<(CpuState, MemoryState), StartError> {
    let path = dir.join(cpu_manager::checkpoint::FILE);
    let restored = read(&path).and_then(|text| {
        let state = text.map(|text| cpu_manager::checkpoint::decode(&text, &settings.cpu_policy));
        state.transpose().map_err(|error| error.to_string())
    });
    let mut of_cpu = restored
        .map_err(|error| StartError::Restore {
            manager: "cpu",
            name: "CPU",
            error,
            path,
        })?
        .unwrap_or_default();
    if let Some(policy) = cpu {
        let started = policy.start(&mut of_cpu);
        started.map_err(|error| state_error("cpu", &error))?;
    }
    let path = dir.join(memory_manager::checkpoint::FILE);
    let restored = read(&path).and_then(|text| {
        let policy = &settings.memory_policy;
        let state = text.map(|text| memory_manager::checkpoint::decode(&text, policy));
        state.transpose().map_err(|error| error.to_string())
    });
    let mut of_memory = restored
        .map_err(|error| StartError::Restore {
            manager: "memory",
            name: "memory",
            error,
            path,
        })?
        .unwrap_or_default();
    if let Some(policy) = memory {
        let started = policy.start(&mut of_memory);
        started.map_err(|error| state_error("memory", &error))?;
    }
    Ok((of_cpu, of_memory))
}

/// Upstream tells what to do in its log.
fn state_error(manager: &'static str, error: &dyn std::error::Error) -> StartError {
    let error = format!("{error}; invalid state, please drain node and remove policy state file");
    StartError::State { manager, error }
}

/// `None`: there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    match host::file::read_regular(path, FILE_BYTES) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}
