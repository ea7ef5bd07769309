//! `cpu_manager_state`, in upstream's form, checksums and all: a node can change its kubelet in either direction.
//!
//! What upstream calls version 4 is written: the newest form as text within the oldest, each with a sum of its own. Versions 2 and 3 are
//! read. CPUs of pods as a whole and those before a resize (`podEntries`, `baselines`) belong to gates that are off and not built:
//! they are not written, and what a file says of them is left out, as upstream without the gates.
//!
//! Upstream: state/checkpoint.go, state/state_checkpoint.go, v1.37.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::state::{Assignments, CpuState};
use crate::checksum::{self, Fnv, print_map};
use crate::cpu_set::{CpuSet, ParseCpuSetError};

/// The name of the file, in the kubelet's root directory. Upstream: `cpuManagerStateFileName`.
pub const FILE: &str = "cpu_manager_state";

/// Why a file says nothing. Another try says the same.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("no checkpoint of a CPU manager: {0}")]
    Json(#[from] serde_json::Error),
    #[error("could not load v4 checkpoint: failed to deserialize cpu manager checkpoint data: {0}")]
    Data(#[source] serde_json::Error),
    #[error("could not load v4 checkpoint: checkpoint is corrupted")]
    CorruptData,
    #[error("checkpoint is corrupted")]
    Corrupt,
    #[error("configured policy {configured:?} differs from state checkpoint policy {found:?}")]
    Policy { configured: String, found: String },
    #[error("could not parse default CPU set {text:?}: {source}")]
    DefaultCpuSet {
        text: String,
        #[source]
        source: ParseCpuSetError,
    },
    #[error("could not parse cpuset {text:?} for container {container:?} in pod {pod:?}: {source}")]
    CpuSet {
        text: String,
        container: String,
        pod: String,
        #[source]
        source: ParseCpuSetError,
    },
}

type Entries = BTreeMap<String, BTreeMap<String, String>>;

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Data {
    policy_name: String,
    default_cpu_set: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    entries: Entries,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodEntry {
    cpu_set: String,
}

/// All versions in one.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    #[serde(flatten)]
    legacy: Data,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pod_entries: BTreeMap<String, PodEntry>,
    checksum: u64,
    data: String,
    data_checksum: u64,
}

/// The text of the file.
pub fn encode(policy: &str, state: &CpuState) -> String {
    let containers = |of_pod: &BTreeMap<String, CpuSet>| {
        let texts = of_pod.iter();
        texts
            .map(|(name, cpus)| (name.clone(), cpus.to_string()))
            .collect()
    };
    let entries = state.assignments.iter();
    let legacy = Data {
        policy_name: policy.to_owned(),
        default_cpu_set: state.default_cpu_set.to_string(),
        entries: entries
            .map(|(uid, of_pod)| (uid.clone(), containers(of_pod)))
            .collect(),
    };
    let data = serde_json::to_string(&legacy).expect("maps with text as keys");
    let file = File {
        checksum: sum(&legacy, None, ""),
        data_checksum: checksum::of_text(&data),
        legacy,
        data,
        pod_entries: BTreeMap::new(),
    };
    serde_json::to_string(&file).expect("maps with text as keys")
}

/// What a file says.
///
/// # Errors
/// It is no such file, not as it was written, or of another policy.
pub fn decode(text: &[u8], policy: &str) -> Result<CpuState, CheckpointError> {
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
    state(data)
}

fn state(data: Data) -> Result<CpuState, CheckpointError> {
    let default = data.default_cpu_set.parse();
    let default_cpu_set = default.map_err(|source| CheckpointError::DefaultCpuSet {
        text: data.default_cpu_set.clone(),
        source,
    })?;
    let mut assignments = Assignments::new();
    for (pod, of_pod) in data.entries {
        for (container, text) in of_pod {
            let cpus = text.parse().map_err(|source| CheckpointError::CpuSet {
                text: text.clone(),
                container: container.clone(),
                pod: pod.clone(),
                source,
            })?;
            let of_pod = assignments.entry(pod.clone()).or_default();
            of_pod.insert(container, cpus);
        }
    }
    Ok(CpuState {
        default_cpu_set,
        assignments,
    })
}

/// Version 3 or 2. Without a sum: of a kubelet that wrote none.
fn verified_legacy(file: File) -> Result<Data, CheckpointError> {
    let pods = Some(&file.pod_entries);
    let data = &file.legacy;
    let known = file.checksum == 0
        || [
            sum(data, pods, "V3"),
            sum(data, pods, ""),
            sum(data, None, "V2"),
            sum(data, None, ""),
        ]
        .contains(&file.checksum);
    match known {
        true => Ok(file.legacy),
        false => Err(CheckpointError::Corrupt),
    }
}

/// `version`: as it stands in the name of upstream's type.
fn sum(data: &Data, pods: Option<&BTreeMap<String, PodEntry>>, version: &str) -> u64 {
    checksum::of(|out| {
        write!(
            out,
            "(*state.CPUManagerCheckpoint{version}){{PolicyName:(string){} DefaultCPUSet:(string){} Entries:(map[string]map[string]string)",
            data.policy_name, data.default_cpu_set
        )?;
        print_map(out, &data.entries, |out, of_pod| {
            print_map(out, of_pod, |out, cpus| out.write_str(cpus))
        })?;
        if let Some(pods) = pods {
            out.write_str(" PodEntries:(state.PodCPUAssignments)")?;
            print_map(out, pods, |out, entry| print_cpus(out, &entry.cpu_set))?;
        }
        out.write_str(" Checksum:(checksum.Checksum)0}")
    })
}

/// The set as Go has it: a map with empty values.
fn print_cpus(out: &mut Fnv, text: &str) -> std::fmt::Result {
    let cpus: CpuSet = text.parse().unwrap_or_default();
    out.write_str("{CPUSet:(cpuset.CPUSet){elems:(map[int]struct {})")?;
    let ids = cpus.iter().map(|cpu| (cpu, ()));
    print_map(out, ids, |out, ()| out.write_str("{}"))?;
    out.write_str("}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by upstream's own code, v1.37.2.
    const NONE: &str = r#"{"policyName":"none","defaultCpuSet":"","checksum":1353318690,"data":"{\"policyName\":\"none\",\"defaultCpuSet\":\"\"}","dataChecksum":3028111495}"#;
    const STATIC: &str = r#"{"policyName":"static","defaultCpuSet":"0,4,6","entries":{"u-1":{"a":"3","c":"1-2"},"u-2":{"c":"5,7"}},"checksum":2144441935,"data":"{\"policyName\":\"static\",\"defaultCpuSet\":\"0,4,6\",\"entries\":{\"u-1\":{\"a\":\"3\",\"c\":\"1-2\"},\"u-2\":{\"c\":\"5,7\"}}}","dataChecksum":2835749396}"#;
    const OLDER: [&str; 3] = [
        r#"{"policyName":"static","defaultCpuSet":"0,4,6","entries":{"u-1":{"a":"3","c":"1-2"},"u-2":{"c":"5,7"}},"checksum":2144441935}"#,
        r#"{"policyName":"static","defaultCpuSet":"0,4,6","entries":{"u-1":{"a":"3","c":"1-2"},"u-2":{"c":"5,7"}},"checksum":227515145}"#,
        r#"{"policyName":"static","defaultCpuSet":"0,4,6","entries":{"u-1":{"a":"3","c":"1-2"},"u-2":{"c":"5,7"}},"podEntries":{"u-3":{"cpuSet":"8-10"}},"checksum":1141877580}"#,
    ];

    fn state() -> CpuState {
        let mut state = CpuState {
            default_cpu_set: [0, 4, 6].into(),
            ..CpuState::default()
        };
        state.set("u-1", "c", [1, 2].into());
        state.set("u-1", "a", [3].into());
        state.set("u-2", "c", [5, 7].into());
        state
    }

    #[test]
    fn files_are_written_as_upstream_writes_them() {
        assert_eq!(encode("none", &CpuState::default()), NONE);
        assert_eq!(encode("static", &state()), STATIC);
    }

    #[test]
    fn files_of_every_version_are_read() {
        assert_eq!(
            decode(NONE.as_bytes(), "none").unwrap(),
            CpuState::default()
        );
        for text in OLDER.into_iter().chain([STATIC]) {
            assert_eq!(
                decode(text.as_bytes(), "static").unwrap(),
                state(),
                "{text}"
            );
        }
        let unsummed = OLDER[0].replace("2144441935", "0");
        assert_eq!(decode(unsummed.as_bytes(), "static").unwrap(), state());
    }

    #[test]
    fn what_is_not_whole_or_of_another_policy_is_refused() {
        let check = |text: &str, expect: &str| {
            let told = decode(text.as_bytes(), "static").unwrap_err().to_string();
            assert!(told.contains(expect), "{text}: {told}");
        };
        check(
            NONE,
            "configured policy \"static\" differs from state checkpoint policy \"none\"",
        );
        check("", "no checkpoint of a CPU manager");
        check(
            &STATIC.replace("5,7\\\"", "5-7\\\""),
            "could not load v4 checkpoint: checkpoint is corrupted",
        );
        for older in OLDER {
            check(&older.replace("5,7", "5-7"), "checkpoint is corrupted");
        }
        let summed = |data: &str| {
            let sum = checksum::of_text(data);
            serde_json::json!({"data": data, "dataChecksum": sum}).to_string()
        };
        check(
            &summed(r#"{"policyName":"static","defaultCpuSet":"x"}"#),
            "could not parse default CPU set \"x\": ",
        );
        check(
            &summed(r#"{"policyName":"static","entries":{"u":{"c":"2-1"}}}"#),
            "could not parse cpuset \"2-1\" for container \"c\" in pod \"u\": ",
        );
        check(
            &summed("{"),
            "could not load v4 checkpoint: failed to deserialize",
        );
    }
}
