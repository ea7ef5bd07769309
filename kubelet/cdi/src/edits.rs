//! What a container gets with a device; pure. Upstream: specs-go/config.go, pkg/cdi/container-edits.go.

use serde::{Deserialize, Deserializer};

/// As the files have it. Nothing here was looked up on the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContainerEdits {
    /// `NAME=value`.
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub device_nodes: Vec<DeviceNode>,
    #[serde(default, deserialize_with = "or_default")]
    pub net_devices: Vec<NetDevice>,
    #[serde(default, deserialize_with = "or_default")]
    pub hooks: Vec<Hook>,
    #[serde(default, deserialize_with = "or_default")]
    pub mounts: Vec<Mount>,
    pub intel_rdt: Option<IntelRdt>,
    /// Zero is nobody's group and left out.
    #[serde(default, rename = "additionalGids", deserialize_with = "or_default")]
    pub additional_gids: Vec<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceNode {
    /// In the container.
    pub path: String,
    /// On the node; empty: the same as in the container.
    #[serde(default, deserialize_with = "or_default")]
    pub host_path: String,
    /// `b`, `c`, `u` or `p`; empty: that of the node's device.
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    pub kind: String,
    /// Zero: that of the node's device.
    #[serde(default, deserialize_with = "or_default")]
    pub major: i64,
    #[serde(default, deserialize_with = "or_default")]
    pub minor: i64,
    pub file_mode: Option<u32>,
    /// Of `r`, `w`, `m`; empty: all, `none`: none.
    #[serde(default, deserialize_with = "or_default")]
    pub permissions: String,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    pub host_path: String,
    pub container_path: String,
    #[serde(default, deserialize_with = "or_default")]
    pub options: Vec<String>,
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    pub kind: String,
}

/// When a hook runs. Upstream: the OCI's runtime specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HookName {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl HookName {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hook {
    pub hook_name: HookName,
    pub path: String,
    /// With the program's own name.
    #[serde(default, deserialize_with = "or_default")]
    pub args: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// In seconds.
    pub timeout: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetDevice {
    pub host_interface_name: String,
    pub name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IntelRdt {
    #[serde(default, rename = "closID", deserialize_with = "or_default")]
    pub clos_id: String,
    #[serde(default, deserialize_with = "or_default")]
    pub l3_cache_schema: String,
    #[serde(default, deserialize_with = "or_default")]
    pub mem_bw_schema: String,
    pub schemata: Option<Vec<String>>,
    #[serde(default, deserialize_with = "or_default")]
    pub enable_monitoring: bool,
}

/// `null` is as good as nothing, as in Go.
pub(crate) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Why edits can be carried out by nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditsError {
    #[error("invalid environment variable {0:?}")]
    Env(String),
    #[error("invalid (empty) device path")]
    DevicePath,
    #[error("device {path:?}: invalid type {kind:?}")]
    DeviceType { path: String, kind: String },
    #[error("device {path:?}: invalid device number {major}:{minor}")]
    DeviceNumber {
        path: String,
        major: i64,
        minor: i64,
    },
    #[error("device {path:?}: invalid permissions {permissions:?}")]
    Permissions { path: String, permissions: String },
    #[error("invalid hook {0:?} with empty path")]
    HookPath(&'static str),
    #[error("invalid hook {hook:?}: its timeout of {seconds} s is none")]
    HookTimeout { hook: &'static str, seconds: i64 },
    #[error("invalid mount, empty host path")]
    MountHostPath,
    #[error("invalid mount, empty container path")]
    MountContainerPath,
    #[error("invalid linux net device, an empty name")]
    NetDevice,
    #[error("invalid linux net device, {0:?} comes twice")]
    NetDeviceTwice(String),
    #[error("invalid ClosID {0:?}")]
    ClosId(String),
}

/// The kernel has twelve bits for the one and twenty for the other; a negative number would stand for all.
const MAX_NUMBER: i64 = u32::MAX as i64;

impl ContainerEdits {
    /// # Errors
    /// The first thing that cannot be. Upstream: `Validate`.
    pub fn validate(&self) -> Result<(), EditsError> {
        check_env(&self.env)?;
        for node in &self.device_nodes {
            node.validate()?;
        }
        for hook in &self.hooks {
            hook.validate()?;
        }
        for mount in &self.mounts {
            if mount.host_path.is_empty() {
                return Err(EditsError::MountHostPath);
            }
            if mount.container_path.is_empty() {
                return Err(EditsError::MountContainerPath);
            }
        }
        if let Some(rdt) = &self.intel_rdt {
            let id = rdt.clos_id.as_str();
            // A name of a directory; the root has one of its own.
            let bad = id.len() >= 4096 || id == "." || id == ".." || id.contains(['/', '\n']);
            if bad && id != "/" {
                return Err(EditsError::ClosId(rdt.clos_id.clone()));
            }
        }
        self.validate_net_devices()
    }

    fn validate_net_devices(&self) -> Result<(), EditsError> {
        for (at, device) in self.net_devices.iter().enumerate() {
            if device.host_interface_name.is_empty() || device.name.is_empty() {
                return Err(EditsError::NetDevice);
            }
            let before = &self.net_devices[..at];
            let twice = before.iter().any(|other| {
                other.name == device.name || other.host_interface_name == device.host_interface_name
            });
            if twice {
                return Err(EditsError::NetDeviceTwice(device.name.clone()));
            }
        }
        Ok(())
    }

    /// A device must bring something.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl DeviceNode {
    fn validate(&self) -> Result<(), EditsError> {
        let path = || self.path.clone();
        if self.path.is_empty() {
            return Err(EditsError::DevicePath);
        }
        if !matches!(self.kind.as_str(), "" | "b" | "c" | "u" | "p") {
            return Err(EditsError::DeviceType {
                path: path(),
                kind: self.kind.clone(),
            });
        }
        let numbers = 0..=MAX_NUMBER;
        if !numbers.contains(&self.major) || !numbers.contains(&self.minor) {
            return Err(EditsError::DeviceNumber {
                path: path(),
                major: self.major,
                minor: self.minor,
            });
        }
        let all_known = self.permissions.chars().all(|c| "rwm".contains(c));
        if !all_known && self.permissions != "none" {
            return Err(EditsError::Permissions {
                path: path(),
                permissions: self.permissions.clone(),
            });
        }
        Ok(())
    }
}

impl Hook {
    fn validate(&self) -> Result<(), EditsError> {
        let hook = self.hook_name.as_str();
        if self.path.is_empty() {
            return Err(EditsError::HookPath(hook));
        }
        match self.timeout {
            // The OCI's specification has it greater than zero.
            Some(seconds) if seconds <= 0 => Err(EditsError::HookTimeout { hook, seconds }),
            _ => check_env(&self.env),
        }
    }
}

fn check_env(env: &[String]) -> Result<(), EditsError> {
    let bad = |entry: &&String| matches!(entry.find('='), None | Some(0)) || entry.contains('\0');
    match env.iter().find(bad) {
        Some(entry) => Err(EditsError::Env(entry.clone())),
        None => Ok(()),
    }
}
