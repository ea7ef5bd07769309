//! What was prepared, as it is on disk: upstream's file in upstream's form, checksum and all, so that a node can change its kubelet in either
//! direction; pure.
//!
//! Upstream: state/checkpoint.go, state/state.go, v1.37.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::claims::{ClaimInfo, ClaimKey, Claims, DriverState, or_default};

/// The name of the file, below the kubelet's root. Upstream: `draManagerStateFileName`.
pub const FILE: &str = "dra_manager_state";

const KIND: &str = "DRACheckpoint";
const API_VERSION: &str = "checkpoint.dra.kubelet.k8s.io/v1";

/// Why a file says nothing. Another try says the same.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("no checkpoint of claims: {0}")]
    Json(#[from] serde_json::Error),
    #[error("checkpoint is corrupted: its checksum is {found}, that of its contents {computed}")]
    Checksum { found: u32, computed: u32 },
}

/// The data are a text of their own, whose bytes the checksum is of.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    data: String,
    checksum: u32,
}

#[derive(Serialize, Deserialize)]
struct Data {
    #[serde(default)]
    kind: String,
    #[serde(rename = "apiVersion", default)]
    api_version: String,
    #[serde(
        rename = "ClaimInfoStateList",
        default,
        deserialize_with = "or_default"
    )]
    claims: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(rename = "ClaimUID", default)]
    uid: String,
    #[serde(default)]
    claim_name: String,
    #[serde(default)]
    namespace: String,
    /// A set, as Go has it: the values are empty.
    #[serde(rename = "PodUIDs", default, deserialize_with = "or_default")]
    pods: BTreeMap<String, Empty>,
    #[serde(default, deserialize_with = "or_default")]
    driver_state: BTreeMap<String, DriverState>,
}

#[derive(Serialize, Deserialize)]
struct Empty {}

/// The text of the file.
pub fn encode(claims: &Claims) -> String {
    let entries = claims.iter().map(|(key, info)| Entry {
        uid: info.uid.clone(),
        claim_name: key.name.clone(),
        namespace: key.namespace.clone(),
        pods: info
            .pods
            .iter()
            .map(|pod| (pod.clone(), Empty {}))
            .collect(),
        driver_state: info.drivers.clone(),
    });
    let data = Data {
        kind: KIND.to_owned(),
        api_version: API_VERSION.to_owned(),
        claims: entries.collect(),
    };
    let data = serde_json::to_string(&data).expect("maps with text as keys");
    let checksum = crc32(data.as_bytes());
    serde_json::to_string(&File { data, checksum }).expect("a text and a number")
}

/// The claims that an earlier process prepared; whether drivers still have them so nobody knows, so they are asked again.
///
/// # Errors
/// It is no such file, or not as it was written.
pub fn decode(text: &[u8]) -> Result<Claims, CheckpointError> {
    let file: File = serde_json::from_slice(text)?;
    let computed = crc32(file.data.as_bytes());
    if computed != file.checksum {
        let found = file.checksum;
        return Err(CheckpointError::Checksum { found, computed });
    }
    let data: Data = serde_json::from_str(&file.data)?;
    let mut claims = Claims::default();
    for entry in data.claims {
        let key = ClaimKey {
            namespace: entry.namespace,
            name: entry.claim_name,
        };
        let info = ClaimInfo {
            uid: entry.uid,
            pods: entry.pods.into_keys().collect(),
            drivers: entry.driver_state,
            ..ClaimInfo::default()
        };
        claims.restore(key, info);
    }
    Ok(claims)
}

/// CRC-32 as Ethernet, zip and Go's `crc32.ChecksumIEEE` have it.
fn crc32(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    let step = |crc: u32| match crc & 1 {
        1 => (crc >> 1) ^ POLYNOMIAL,
        _ => crc >> 1,
    };
    let add = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc));
    !bytes.iter().fold(!0, add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims::{ClaimRequest, Device, DriverRequest};

    /// Written by upstream's own code.
    const TWO: &str = r#"{"Data":"{\"kind\":\"DRACheckpoint\",\"apiVersion\":\"checkpoint.dra.kubelet.k8s.io/v1\",\"ClaimInfoStateList\":[{\"ClaimUID\":\"067798be-454e-4be4-9047-1aa06aea63f7\",\"ClaimName\":\"example-1\",\"Namespace\":\"default\",\"PodUIDs\":{\"139cdb46-f989-4f17-9561-ca10cfb509a6\":{}},\"DriverState\":{\"test-driver.cdi.k8s.io\":{\"Devices\":[{\"PoolName\":\"worker-1\",\"DeviceName\":\"dev-1\",\"ShareID\":null,\"RequestNames\":[\"test request\"],\"CDIDeviceIDs\":[\"example.com/example=cdi-example\"]}]}}},{\"ClaimUID\":\"4cf8db2d-06c0-7d70-1a51-e59b25b2c16c\",\"ClaimName\":\"example-2\",\"Namespace\":\"default\",\"PodUIDs\":{\"139cdb46-f989-4f17-9561-ca10cfb509a6\":{}},\"DriverState\":{\"test-driver.cdi.k8s.io\":{\"Devices\":[{\"PoolName\":\"worker-1\",\"DeviceName\":\"dev-2\",\"ShareID\":null,\"RequestNames\":null,\"CDIDeviceIDs\":null}]}}}]}","Checksum":2820117767}"#;
    const WHOLE: &str = r#"{"Data":"{\"kind\":\"DRACheckpoint\",\"apiVersion\":\"checkpoint.dra.kubelet.k8s.io/v1\",\"ClaimInfoStateList\":[{\"ClaimUID\":\"067798be-454e-4be4-9047-1aa06aea63f7\",\"ClaimName\":\"example\",\"Namespace\":\"default\",\"PodUIDs\":{\"139cdb46-f989-4f17-9561-ca10cfb509a6\":{}},\"DriverState\":{\"test-driver.cdi.k8s.io\":{\"Devices\":[{\"PoolName\":\"worker-1\",\"DeviceName\":\"dev-1\",\"ShareID\":null,\"RequestNames\":[\"test request\"],\"CDIDeviceIDs\":[\"example.com/example=cdi-example\"]},{\"PoolName\":\"worker-1\",\"DeviceName\":\"dev-2\",\"ShareID\":null,\"RequestNames\":[\"test request\"],\"CDIDeviceIDs\":[\"example.com/example=cdi-example\"]}]}}}]}","Checksum":1223221469}"#;
    /// Before there were requests and shares in it.
    const OLD: &str = r#"{"Data":"{\"kind\":\"DRACheckpoint\",\"apiVersion\":\"checkpoint.dra.kubelet.k8s.io/v1\",\"ClaimInfoStateList\":[{\"ClaimUID\":\"067798be-454e-4be4-9047-1aa06aea63f7\",\"ClaimName\":\"example\",\"Namespace\":\"default\",\"PodUIDs\":{\"139cdb46-f989-4f17-9561-ca10cfb509a6\":{}},\"DriverState\":{\"test-driver.cdi.k8s.io\":{\"Devices\":[{\"PoolName\":\"worker-1\",\"DeviceName\":\"dev-1\",\"CDIDeviceIDs\":[\"example.com/example=cdi-example\"]}]}}}]}","Checksum":1137250765}"#;

    fn key(name: &str) -> ClaimKey {
        ClaimKey {
            namespace: "default".to_owned(),
            name: name.to_owned(),
        }
    }

    #[test]
    fn what_upstream_wrote_is_read() {
        let claims = decode(TWO.as_bytes()).unwrap();
        let pod = "139cdb46-f989-4f17-9561-ca10cfb509a6";
        assert_eq!(claims.of_pod(pod), [key("example-1"), key("example-2")]);
        let first = claims.get(&key("example-1")).unwrap();
        assert_eq!(first.uid, "067798be-454e-4be4-9047-1aa06aea63f7");
        let devices: Vec<_> = first.cdi_devices(Some("test request")).collect();
        assert_eq!(devices, ["example.com/example=cdi-example"]);
        assert!(!first.prepared, "the driver is asked again");
        assert_eq!(decode(encode(&claims).as_bytes()).unwrap(), claims);
        // Where Go writes no `null` for an empty list, what is written of it is the same to the byte.
        let whole = decode(WHOLE.as_bytes()).unwrap();
        assert_eq!(encode(&whole), WHOLE);
        let old = decode(OLD.as_bytes()).unwrap();
        assert_eq!(old.get(&key("example")).unwrap().drivers.len(), 1);
    }

    #[test]
    fn what_is_written_is_read() {
        let skipping = DriverRequest {
            skipped: vec!["NodeUnprepareResources".to_owned()],
        };
        let request = ClaimRequest {
            key: key("c"),
            uid: "u".to_owned(),
            drivers: [
                ("a".to_owned(), DriverRequest::default()),
                ("b".to_owned(), skipping),
            ]
            .into(),
        };
        let mut claims = Claims::default();
        claims.attach("p", &[request]).unwrap();
        let device = Device {
            pool_name: "pool".to_owned(),
            device_name: "d".to_owned(),
            share_id: Some("s".to_owned()),
            request_names: vec!["r".to_owned()],
            cdi_device_ids: vec!["v/c=d".to_owned()],
        };
        claims.took(&key("c"), "a", vec![device]);
        assert_eq!(decode(encode(&claims).as_bytes()).unwrap(), claims);
        assert_eq!(
            decode(encode(&Claims::default()).as_bytes()).unwrap(),
            Claims::default()
        );
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        let cut = &TWO[..TWO.len() - 20];
        assert!(matches!(
            decode(cut.as_bytes()),
            Err(CheckpointError::Json(_))
        ));
        let changed = TWO.replace("dev-1", "dev-9");
        assert!(matches!(
            decode(changed.as_bytes()),
            Err(CheckpointError::Checksum { .. })
        ));
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
