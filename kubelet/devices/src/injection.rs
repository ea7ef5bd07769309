//! What a container gets besides its own specification, for all its devices together; pure.
//!
//! Upstream: `deviceRunContainerOptions` in pod_devices.go.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use prost::Message as _;

use crate::pod_devices::OfContainer;
use crate::v1beta1::{ContainerAllocateResponse, DeviceSpec, Mount};

/// Of an answer, encoded: it is kept, and written down with all others, as long as the pod is there. DIFFERS: upstream takes 4 MiB.
const MOST_BYTES: usize = 64 << 10;

/// To be added to a container, by path and name. The container's own environment comes before this one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Injection {
    pub envs: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<DeviceSpec>,
    /// Names of CDI devices, none twice. What is behind them the runtime looks up.
    pub cdi_devices: Vec<String>,
}

/// Why an answer of a plugin cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    #[error("the {what} path {path:?} that was answered is not absolute")]
    Path { what: &'static str, path: String },
    #[error(
        "the permissions {permissions:?} that were answered for {path:?} are other than r, w and m"
    )]
    Permissions { path: String, permissions: String },
    #[error("the environment variable {0:?} that was answered has no valid name or value")]
    Env(String),
    #[error("the answer has {0} bytes, more than {MOST_BYTES}")]
    TooLong(usize),
}

/// # Errors
/// The first thing that cannot be carried out.
pub fn check(response: &ContainerAllocateResponse) -> Result<(), AnswerError> {
    let bytes = response.encoded_len();
    if bytes > MOST_BYTES {
        return Err(AnswerError::TooLong(bytes));
    }
    let mounts = response.mounts.iter();
    let mounts = mounts.map(|m| ("mount's", &m.host_path, &m.container_path));
    let devices = response.devices.iter();
    let devices = devices.map(|d| ("device's", &d.host_path, &d.container_path));
    for (what, host, container) in mounts.chain(devices) {
        let bad = |path: &&&String| !path.starts_with('/') || path.contains('\0');
        if let Some(path) = [host, container].iter().find(bad) {
            let path = (*path).clone();
            return Err(AnswerError::Path { what, path });
        }
    }
    for device in &response.devices {
        if !device.permissions.chars().all(|c| "rwm".contains(c)) {
            return Err(AnswerError::Permissions {
                path: device.host_path.clone(),
                permissions: device.permissions.clone(),
            });
        }
    }
    let bad = |(name, value): &(&String, &String)| {
        name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
    };
    match response.envs.iter().find(bad) {
        Some((name, _)) => Err(AnswerError::Env(name.clone())),
        None => Ok(()),
    }
}

/// Of several answers for one name or path the first counts; that they differ is told.
pub fn merge(held: &OfContainer) -> Injection {
    let mut out = Injection::default();
    let (mut mounts, mut devices) = (BTreeMap::new(), BTreeMap::new());
    for (resource, allocation) in held {
        let response = &allocation.response;
        let differs = |what: &str, name: &str| {
            tracing::error!(
                resource,
                name,
                "{what} has conflicting settings of device plugins"
            );
        };
        for (name, value) in &response.envs {
            if !put(&mut out.envs, name, value) {
                differs("Environment variable", name);
            }
        }
        for (name, value) in &response.annotations {
            if !put(&mut out.annotations, name, value) {
                differs("Annotation", name);
            }
        }
        for mount in &response.mounts {
            let new = !mounts.contains_key(&mount.container_path);
            if !put(&mut mounts, &mount.container_path, &mount.host_path) {
                differs("Container mount", &mount.container_path);
            }
            out.mounts.extend(new.then(|| mount.clone()));
        }
        for device in &response.devices {
            let new = !devices.contains_key(&device.container_path);
            if !put(&mut devices, &device.container_path, &device.host_path) {
                differs("Container device", &device.container_path);
            }
            out.devices.extend(new.then(|| device.clone()));
        }
        for device in &response.cdi_devices {
            if !out.cdi_devices.contains(&device.name) {
                out.cdi_devices.push(device.name.clone());
            }
        }
    }
    out
}

/// Whether it is there with this value now.
fn put(map: &mut BTreeMap<String, String>, name: &str, value: &str) -> bool {
    match map.entry(name.to_owned()) {
        Entry::Vacant(entry) => {
            entry.insert(value.to_owned());
            true
        }
        Entry::Occupied(entry) => entry.get() == value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod_devices::Allocation;
    use crate::v1beta1::CdiDevice;

    fn response(env: (&str, &str), path: &str, host: &str) -> ContainerAllocateResponse {
        ContainerAllocateResponse {
            envs: [(env.0.to_owned(), env.1.to_owned())].into(),
            annotations: [(format!("{}/note", env.0), env.1.to_owned())].into(),
            mounts: vec![Mount {
                container_path: path.to_owned(),
                host_path: host.to_owned(),
                read_only: true,
            }],
            devices: vec![DeviceSpec {
                container_path: format!("/dev{path}"),
                host_path: host.to_owned(),
                permissions: "rw".to_owned(),
            }],
            cdi_devices: ["v.com/all=0", env.1]
                .map(|name| CdiDevice {
                    name: name.to_owned(),
                })
                .to_vec(),
        }
    }

    #[test]
    fn answers_for_several_resources_come_together() {
        let held = |list: Vec<(&str, ContainerAllocateResponse)>| -> OfContainer {
            let one = |(name, response): (&str, _)| {
                let allocation = Allocation {
                    devices: BTreeMap::new(),
                    response,
                };
                (name.to_owned(), allocation)
            };
            list.into_iter().map(one).collect()
        };
        let both = merge(&held(vec![
            ("a.com/x", response(("A", "1"), "/lib", "/opt/lib")),
            ("b.com/y", response(("B", "2"), "/etc/y", "/opt/y")),
        ]));
        let envs: Vec<_> = both.envs.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(envs, ["A=1", "B=2"]);
        assert_eq!(both.annotations.len(), 2);
        let mounts: Vec<_> = both.mounts.iter().map(|m| &m.container_path).collect();
        assert_eq!(mounts, ["/lib", "/etc/y"]);
        assert_eq!(both.devices[1].container_path, "/dev/etc/y");
        assert_eq!(both.cdi_devices, ["v.com/all=0", "1", "2"]);
        // The same path and name twice: the first counts.
        let twice = merge(&held(vec![
            ("a.com/x", response(("A", "1"), "/lib", "/opt/lib")),
            ("b.com/y", response(("A", "2"), "/lib", "/opt/y")),
        ]));
        assert_eq!(twice.envs["A"], "1");
        assert_eq!((twice.mounts.len(), twice.devices.len()), (1, 1));
        assert_eq!(twice.mounts[0].host_path, "/opt/lib");
    }

    #[test]
    fn what_cannot_be_carried_out_is_refused_by_name() {
        let good = response(("A", "1"), "/lib", "/opt/lib");
        assert_eq!(check(&good), Ok(()));
        let told = |change: fn(&mut ContainerAllocateResponse)| {
            let mut bad = good.clone();
            change(&mut bad);
            check(&bad).unwrap_err().to_string()
        };
        for (change, words) in [
            (
                (|r| r.mounts[0].container_path = "lib".to_owned())
                    as fn(&mut ContainerAllocateResponse),
                "the mount's path \"lib\" that was answered is not absolute",
            ),
            (
                |r| r.devices[0].host_path = String::new(),
                "the device's path \"\" that was answered is not absolute",
            ),
            (
                |r| r.devices[0].permissions = "rx".to_owned(),
                "the permissions \"rx\"",
            ),
            (
                |r| drop(r.envs.insert("A=B".to_owned(), String::new())),
                "the environment variable \"A=B\"",
            ),
            (
                |r| drop(r.envs.insert("B".to_owned(), "b".repeat(MOST_BYTES))),
                "the answer has 65",
            ),
        ] {
            let told = told(change);
            assert!(told.starts_with(words), "{told}");
        }
    }
}
