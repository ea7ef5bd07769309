//! What is known of each connected sandbox, one file each. The records are the address reservations too.
//!
//! Written before the kernel is touched and removed after it is clean, so a crash leaves at most a record
//! without links, which the next `setup`, `teardown` or `reconcile` of the sandbox deals with.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use host::atomic_file;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Bandwidth, NetworkError, Peer, PortMapping, SandboxNetwork};

const VERSION: u32 = 1;

/// A sandbox that is, or is about to be, connected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxRecord {
    pub version: u32,
    pub sandbox_id: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub netns: PathBuf,
    /// Name of the node's end of the veth pair; empty for a sandbox that CNI plugins connected.
    pub link: String,
    pub addresses: Vec<IpAddr>,
    pub port_mappings: Vec<PortMapping>,
    pub bandwidth: Bandwidth,
    /// The links are made. Not on disk: the kernel knows (a link gets its alias last; CNI leaves a result).
    #[serde(skip)]
    pub connected: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni: Option<CniRecord>,
}

/// With what a sandbox was connected: DEL is called with the same, whatever the directory says by then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CniRecord {
    pub config: serde_json::Value,
    pub result: serde_json::Value,
    pub pod_cidrs: Vec<IpNet>,
}

impl SandboxRecord {
    pub fn new(sandbox: &SandboxNetwork, link: String, addresses: Vec<IpAddr>) -> Self {
        Self {
            version: VERSION,
            sandbox_id: sandbox.sandbox_id.clone(),
            namespace: sandbox.namespace.clone(),
            name: sandbox.name.clone(),
            uid: sandbox.uid.clone(),
            netns: sandbox.netns.clone(),
            link,
            addresses,
            port_mappings: sandbox.port_mappings.clone(),
            bandwidth: sandbox.bandwidth,
            connected: false,
            cni: None,
        }
    }

    pub fn sandbox(&self) -> SandboxNetwork {
        SandboxNetwork {
            sandbox_id: self.sandbox_id.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            netns: self.netns.clone(),
            port_mappings: self.port_mappings.clone(),
            bandwidth: self.bandwidth,
        }
    }
}

/// The directory of records.
#[derive(Debug)]
pub struct Store {
    sandboxes: PathBuf,
    last_reserved: PathBuf,
    peers: PathBuf,
    pod_cidrs: PathBuf,
}

impl Store {
    /// Opens the directory (made if missing) and reads all records. A torn file costs only itself.
    pub fn open(state_dir: &Path) -> Result<(Self, BTreeMap<String, SandboxRecord>), NetworkError> {
        let store = Self {
            sandboxes: state_dir.join("sandboxes"),
            last_reserved: state_dir.join("last-reserved.json"),
            peers: state_dir.join("peers.json"),
            pod_cidrs: state_dir.join("pod-cidrs.json"),
        };
        let context = |path: &Path| format!("open {}", path.display());
        std::fs::create_dir_all(&store.sandboxes)
            .map_err(|e| NetworkError::io(context(&store.sandboxes), e))?;
        let mut records = BTreeMap::new();
        let entries = std::fs::read_dir(&store.sandboxes)
            .map_err(|e| NetworkError::io(context(&store.sandboxes), e))?;
        for entry in entries {
            let path = entry
                .map_err(|e| NetworkError::io(context(&store.sandboxes), e))?
                .path();
            if path.extension().is_none_or(|extension| extension != "json") {
                // What a crash left of a write in progress.
                let _ = std::fs::remove_file(&path);
                continue;
            }
            let text = std::fs::read(&path).map_err(|e| NetworkError::io(context(&path), e))?;
            match serde_json::from_slice::<SandboxRecord>(&text) {
                Ok(record) if record.version == VERSION => {
                    records.insert(record.sandbox_id.clone(), record);
                }
                Ok(record) => {
                    return Err(NetworkError::State {
                        path,
                        reason: format!("unknown version {}", record.version),
                    });
                }
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "unreadable sandbox record set aside");
                    let _ = std::fs::rename(&path, path.with_extension("unreadable"));
                }
            }
        }
        Ok((store, records))
    }

    /// Writes a record atomically. It waits for the disk only for a sandbox of CNI plugins: what they keep elsewhere
    /// outlives a loss of power and wants its DEL, while links, namespaces and rules of our own do not.
    pub fn write(&self, record: &SandboxRecord) -> Result<(), NetworkError> {
        let text =
            serde_json::to_vec(record).expect("a record has no map with keys that are not strings");
        write_atomically(&self.path(&record.sandbox_id), &text, record.cni.is_some())
    }

    /// Removes a record; one that is not there is no error.
    pub fn remove(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        let path = self.path(sandbox_id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(NetworkError::io(
                format!("remove {}", path.display()),
                error,
            )),
            _ => Ok(()),
        }
    }

    /// The last address given out of each range. Lost or stale, it costs only the rest of an address between uses.
    pub fn last_reserved(&self) -> BTreeMap<IpNet, IpAddr> {
        let text = std::fs::read(&self.last_reserved).unwrap_or_default();
        let pairs: Vec<(IpNet, IpAddr)> = serde_json::from_slice(&text).unwrap_or_default();
        pairs.into_iter().collect()
    }

    pub fn write_last_reserved(&self, last: &BTreeMap<IpNet, IpAddr>) -> Result<(), NetworkError> {
        let pairs: Vec<_> = last.iter().collect();
        let text = serde_json::to_vec(&pairs).expect("addresses can be written");
        write_atomically(&self.last_reserved, &text, false)
    }

    /// The peers as last told: a restart must not take the routes to them away until they are told again.
    pub fn peers(&self) -> Vec<Peer> {
        read_or_default(&self.peers)
    }

    pub fn write_peers(&self, peers: &[Peer]) -> Result<(), NetworkError> {
        let text =
            serde_json::to_vec(peers).expect("a peer has no map with keys that are not strings");
        write_atomically(&self.peers, &text, false)
    }

    /// This node's ranges as last told, so that a restart without an API server can go on.
    pub fn pod_cidrs(&self) -> Vec<IpNet> {
        read_or_default(&self.pod_cidrs)
    }

    pub fn write_pod_cidrs(&self, pod_cidrs: &[IpNet]) -> Result<(), NetworkError> {
        let text = serde_json::to_vec(pod_cidrs).expect("ranges can be written");
        write_atomically(&self.pod_cidrs, &text, false)
    }

    fn path(&self, sandbox_id: &str) -> PathBuf {
        self.sandboxes.join(format!("{sandbox_id}.json"))
    }
}

/// What is told again anyway may be lost.
fn read_or_default<T: Default + serde::de::DeserializeOwned>(path: &Path) -> T {
    std::fs::read(path)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default()
}

fn write_atomically(path: &Path, content: &[u8], durable: bool) -> Result<(), NetworkError> {
    let write = match durable {
        true => atomic_file::write,
        false => atomic_file::write_unsynced,
    };
    write(path, content).map_err(|e| NetworkError::io(format!("write {}", path.display()), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_and_torn_ones_cost_only_themselves() {
        let dir = std::env::temp_dir().join(format!("gantry-nettest-store-{}", std::process::id()));
        let (store, records) = Store::open(&dir).unwrap();
        assert!(records.is_empty());
        let sandbox = SandboxNetwork {
            sandbox_id: "a".into(),
            name: "pod".into(),
            ..Default::default()
        };
        let record =
            SandboxRecord::new(&sandbox, "veth1".into(), vec!["10.0.0.2".parse().unwrap()]);
        store.write(&record).unwrap();
        std::fs::write(dir.join("sandboxes/b.json"), b"{\"version\":1,").unwrap();
        std::fs::write(dir.join("sandboxes/c.tmp"), b"x").unwrap();
        let (store, records) = Store::open(&dir).unwrap();
        assert_eq!(records.into_values().collect::<Vec<_>>(), [record]);
        store.remove("a").unwrap();
        store.remove("a").unwrap();
        assert!(Store::open(&dir).unwrap().1.is_empty());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
