//! What was given out, as it is on disk: upstream's file in upstream's form, checksum and all, so that a node can change its kubelet in
//! either direction; pure.
//!
//! Upstream: checkpoint/checkpoint.go, `PodDevicesEntry`; pkg/kubelet/checkpointmanager/checksum, v1.37.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::pod_devices::{Allocation, PodDevices};
use crate::v1beta1::ContainerAllocateResponse;

/// The name of the file. Upstream: `kubeletDeviceManagerCheckpoint`.
pub const FILE: &str = "kubelet_internal_checkpoint";

/// Why a file says nothing. Another try says the same.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("no checkpoint of a device manager: {0}")]
    Json(#[from] serde_json::Error),
    #[error("checkpoint is corrupted: its checksum is {found}, that of its contents {computed}")]
    Checksum { found: u64, computed: u64 },
    #[error(
        "checkpoint entry of pod {pod:?}, container {container:?}, resource {resource:?}: {why}"
    )]
    Entry {
        pod: String,
        container: String,
        resource: String,
        why: String,
    },
}

/// `null` and empty lists are not the same to the checksum.
#[derive(Serialize, Deserialize)]
struct File {
    #[serde(rename = "Data")]
    data: Data,
    #[serde(rename = "Checksum")]
    checksum: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    pod_device_entries: Option<Vec<Entry>>,
    registered_devices: Option<BTreeMap<String, Option<Vec<String>>>>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(rename = "PodUID")]
    pod: String,
    #[serde(rename = "ContainerName")]
    container: String,
    #[serde(rename = "ResourceName")]
    resource: String,
    #[serde(rename = "DeviceIDs")]
    devices: Option<BTreeMap<i64, Option<Vec<String>>>>,
    /// The protobuf of the answer, in base64.
    #[serde(rename = "AllocResp")]
    response: Option<String>,
}

/// The text of the file. `registered`: the healthy devices of each resource.
pub fn encode(pods: &PodDevices, registered: BTreeMap<String, Vec<String>>) -> String {
    let mut entries = Vec::new();
    for (pod, of_pod) in pods.pods() {
        for (container, of_container) in of_pod {
            for (resource, allocation) in of_container {
                let devices = allocation.devices.iter();
                let devices = devices.map(|(node, ids)| (*node, Some(ids.clone())));
                entries.push(Entry {
                    pod: pod.clone(),
                    container: container.clone(),
                    resource: resource.clone(),
                    devices: Some(devices.collect()),
                    response: Some(STANDARD.encode(allocation.response.encode_to_vec())),
                });
            }
        }
    }
    let registered = registered.into_iter();
    let registered = registered.map(|(name, ids)| (name, Some(ids)));
    let data = Data {
        pod_device_entries: (!entries.is_empty()).then_some(entries),
        registered_devices: Some(registered.collect()),
    };
    // What was encoded a line above is base64.
    let checksum = checksum(&data).unwrap_or_default();
    serde_json::to_string(&File { data, checksum }).expect("maps with text and numbers as keys")
}

/// What a file says.
#[derive(Debug, Default)]
pub struct Read {
    pub pods: PodDevices,
    /// The names of the resources.
    pub registered: Vec<String>,
    /// Entries that say nothing; the others do.
    pub lost: Vec<CheckpointError>,
}

/// Who has what.
///
/// # Errors
/// It is no such file, or not as it was written.
pub fn decode(text: &[u8]) -> Result<Read, CheckpointError> {
    let file: File = serde_json::from_slice(text)?;
    let computed = checksum(&file.data)?;
    if computed != file.checksum {
        let found = file.checksum;
        return Err(CheckpointError::Checksum { found, computed });
    }
    let mut read = Read::default();
    for entry in file.data.pod_device_entries.into_iter().flatten() {
        let response = match entry.answer() {
            Ok(response) => response,
            Err(error) => {
                read.lost.push(error);
                continue;
            }
        };
        let devices = entry.devices.into_iter().flatten();
        let devices = devices.map(|(node, ids)| (node, ids.unwrap_or_default()));
        let allocation = Allocation {
            devices: devices.collect(),
            response,
        };
        let (container, resource) = (&entry.container, &entry.resource);
        read.pods
            .insert(&entry.pod, container, resource, allocation);
    }
    let registered = file.data.registered_devices.into_iter().flatten();
    read.registered = registered.map(|(name, _)| name).collect();
    Ok(read)
}

impl Entry {
    fn bytes(&self) -> Result<Vec<u8>, CheckpointError> {
        let text = self.response.as_deref().unwrap_or_default();
        STANDARD.decode(text).map_err(|error| self.error(&error))
    }

    fn answer(&self) -> Result<ContainerAllocateResponse, CheckpointError> {
        let answer = ContainerAllocateResponse::decode(self.bytes()?.as_slice());
        answer.map_err(|error| self.error(&error))
    }

    fn error(&self, why: &dyn std::error::Error) -> CheckpointError {
        CheckpointError::Entry {
            pod: self.pod.clone(),
            container: self.container.clone(),
            resource: self.resource.clone(),
            why: why.to_string(),
        }
    }
}

/// FNV-1a of what Go's spew prints of the data. Upstream: `DeepHashObject`.
fn checksum(data: &Data) -> Result<u64, CheckpointError> {
    let mut hash = Fnv::default();
    print(data, &mut hash)?;
    Ok(u64::from(hash.0))
}

struct Fnv(u32);

impl Default for Fnv {
    fn default() -> Self {
        Self(0x811c_9dc5)
    }
}

impl fmt::Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        const PRIME: u32 = 0x0100_0193;
        let hash = text.bytes();
        self.0 = hash.fold(self.0, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(PRIME)
        });
        Ok(())
    }
}

/// What is written into never fails.
fn print(data: &Data, out: &mut Fnv) -> Result<(), CheckpointError> {
    let _ = out
        .write_str("(checkpoint.checkpointData){PodDeviceEntries:([]checkpoint.PodDevicesEntry)");
    match &data.pod_device_entries {
        None => print_nil(out),
        Some(entries) => {
            let _ = out.write_char('[');
            for (at, entry) in entries.iter().enumerate() {
                let _ = out.write_str(blank(at));
                print_entry(entry, out)?;
            }
            let _ = out.write_char(']');
        }
    }
    let _ = out.write_str(" RegisteredDevices:(map[string][]string)");
    print_map(data.registered_devices.as_ref(), out);
    let _ = out.write_char('}');
    Ok(())
}

/// Between items.
fn blank(at: usize) -> &'static str {
    if at == 0 { "" } else { " " }
}

fn print_nil(out: &mut Fnv) {
    let _ = out.write_str("<nil>");
}

fn print_list<T: fmt::Display>(list: impl IntoIterator<Item = T>, out: &mut Fnv) {
    let _ = out.write_char('[');
    for (at, item) in list.into_iter().enumerate() {
        let _ = write!(out, "{}{item}", blank(at));
    }
    let _ = out.write_char(']');
}

fn print_entry(entry: &Entry, out: &mut Fnv) -> Result<(), CheckpointError> {
    let _ = write!(
        out,
        "{{PodUID:(string){} ContainerName:(string){} ResourceName:(string){} DeviceIDs:(checkpoint.DevicesPerNUMA)",
        entry.pod, entry.container, entry.resource,
    );
    print_map(entry.devices.as_ref(), out);
    let _ = out.write_str(" AllocResp:([]uint8)");
    match &entry.response {
        None => print_nil(out),
        Some(_) => print_list(entry.bytes()?, out),
    }
    let _ = out.write_char('}');
    Ok(())
}

fn print_map<K: fmt::Display>(map: Option<&BTreeMap<K, Option<Vec<String>>>>, out: &mut Fnv) {
    let Some(map) = map else {
        return print_nil(out);
    };
    let _ = out.write_str("map[");
    for (at, (key, list)) in map.iter().enumerate() {
        let _ = write!(out, "{}{key}:", blank(at));
        match list {
            None => print_nil(out),
            Some(list) => print_list(list, out),
        }
    }
    let _ = out.write_char(']');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by upstream's own code, v1.37.2.
    const EMPTY: &str =
        r#"{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{}},"Checksum":3467439661}"#;
    const FULL: &str = r#"{"Data":{"PodDeviceEntries":[{"PodUID":"u-1","ContainerName":"c","ResourceName":"example.com/gpu","DeviceIDs":{"-1":["g2","g0"],"0":["g1"],"10":null,"2":["ü"]},"AllocResp":"CggKAUESA2Eg/w=="},{"PodUID":"u-2","ContainerName":"c","ResourceName":"example.com/nic","DeviceIDs":{"-1":["n0"]},"AllocResp":""},{"PodUID":"u-3","ContainerName":"c","ResourceName":"example.com/nic","DeviceIDs":null,"AllocResp":null}],"RegisteredDevices":{"b.com/x":null,"example.com/a":[],"example.com/gpu":["g2","g0","g1"]}},"Checksum":3784972985}"#;

    fn allocation() -> Allocation {
        Allocation {
            devices: [(-1, vec!["a".to_owned()]), (1, vec!["b".to_owned()])].into(),
            response: ContainerAllocateResponse {
                envs: [("GPU".to_owned(), "a,b".to_owned())].into(),
                ..ContainerAllocateResponse::default()
            },
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut pods = PodDevices::default();
        pods.insert("u", "c", "example.com/gpu", allocation());
        let registered = BTreeMap::from([("example.com/gpu".to_owned(), vec!["a".to_owned()])]);
        let text = encode(&pods, registered);
        let read = decode(text.as_bytes()).unwrap();
        assert_eq!(read.pods, pods);
        assert_eq!(read.registered, ["example.com/gpu"]);
        assert!(read.lost.is_empty());
    }

    #[test]
    fn the_checksum_is_upstreams() {
        assert_eq!(encode(&PodDevices::default(), BTreeMap::new()), EMPTY);
        let file: File = serde_json::from_str(FULL).unwrap();
        assert_eq!(checksum(&file.data).unwrap(), file.checksum);
    }

    #[test]
    fn what_upstream_wrote_is_understood() {
        // The answer of the first entry is none: it was made up to try every byte. The others count.
        let read = decode(FULL.as_bytes()).unwrap();
        let lost: Vec<String> = read.lost.iter().map(ToString::to_string).collect();
        assert_eq!(lost.len(), 1);
        assert!(
            lost[0].starts_with("checkpoint entry of pod \"u-1\""),
            "{lost:?}"
        );
        let pods: Vec<&String> = read.pods.pods().map(|(uid, _)| uid).collect();
        assert_eq!(pods, ["u-2", "u-3"]);
        assert_eq!(read.registered.len(), 3);
        let read = decode(EMPTY.as_bytes()).unwrap();
        assert_eq!(
            (read.pods, read.registered.len()),
            (PodDevices::default(), 0)
        );
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        let torn = EMPTY.replace(
            "RegisteredDevices\":{}",
            "RegisteredDevices\":{\"a.com/x\":[]}",
        );
        let told = decode(torn.as_bytes()).unwrap_err().to_string();
        assert!(told.starts_with("checkpoint is corrupted"), "{told}");
        for text in ["", "{}", "[]", &EMPTY[..40]] {
            let told = decode(text.as_bytes()).unwrap_err();
            assert!(matches!(told, CheckpointError::Json(_)), "{told}");
        }
    }
}
