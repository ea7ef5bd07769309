//! What a container gets with its CDI devices, in the OCI's words; pure.
//!
//! What this runtime cannot do is refused with the name of the device that wants it. Upstream: `ContainerEdits.Apply` of
//! container-device-interface, `WithCDI` of containerd.

use std::path::{Path, PathBuf};

use cdi::{HookName, Part};
use serde_json::{Value, json};

use super::{ContainerSpecMounts, DEV, DeviceNode, clean};

/// Hooks of one container.
const MOST_HOOKS: usize = 64;
/// Of a hook that names no time. DIFFERS: upstream waits for good.
const HOOK_TIMEOUT_SECONDS: i64 = 30;
/// Whoever starts a container waits for all of its hooks, two minutes at most.
const MOST_HOOK_SECONDS: i64 = 60;

/// Why the devices cannot be had. No retry helps until their files are others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("CDI device {device}: {why}")]
pub struct CdiError {
    pub device: String,
    pub why: Refusal,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("intelRdt is not supported by this runtime")]
    IntelRdt,
    #[error(
        "netDevices ({0}) is not supported by this runtime: containers share the network of their pod"
    )]
    NetDevices(String),
    #[error("{0} hooks are not supported by this runtime")]
    Hook(&'static str),
    #[error("more than {MOST_HOOKS} hooks")]
    TooManyHooks,
    #[error("the path {0:?} of a hook is not absolute")]
    HookPath(String),
    #[error("a mount at {0:?} is not supported by this runtime")]
    MountPoint(String),
    #[error("the mount at {path:?} has option {option:?}, which is not supported by this runtime")]
    MountOption { path: String, option: String },
    #[error("the mount at {0:?} is no bind mount and has no type")]
    MountType(String),
    #[error("the device node {0:?} is at no place where one can be")]
    NodePath(String),
}

/// What to look up on the machine, and what is known already. In the order in which it was asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The device that brings it, and the node as its file has it.
    pub nodes: Vec<(String, cdi::DeviceNode)>,
    pub mounts: Vec<CdiMount>,
    pub rest: Injected,
}

/// What the specification takes over.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Injected {
    /// They count before all others.
    pub env: Vec<String>,
    /// Their sources are where the container finds them.
    pub mounts: Vec<CdiMount>,
    pub hooks: Vec<cdi::Hook>,
    pub groups: Vec<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CdiMount {
    pub destination: String,
    /// On the node.
    pub source: PathBuf,
    /// `bind`, or a file system's name.
    pub kind: String,
    pub options: Vec<String>,
}

impl CdiMount {
    pub fn is_bind(&self) -> bool {
        self.kind == "bind"
    }

    fn as_mount(&self) -> Value {
        json!({
            "destination": self.destination, "type": self.kind, "source": self.source, "options": self.options,
        })
    }
}

/// # Errors
/// The first thing that this runtime does not do.
pub fn plan(parts: &[Part<'_>]) -> Result<Plan, CdiError> {
    let mut plan = Plan::default();
    for part in parts {
        let refused = |why| CdiError {
            device: part.device.to_owned(),
            why,
        };
        let edits = part.edits;
        if edits.intel_rdt.is_some() {
            return Err(refused(Refusal::IntelRdt));
        }
        if let Some(device) = edits.net_devices.first() {
            let name = device.host_interface_name.clone();
            return Err(refused(Refusal::NetDevices(name)));
        }
        for node in &edits.device_nodes {
            check_place(&node.path).map_err(|_| refused(Refusal::NodePath(node.path.clone())))?;
            plan.nodes.push((part.device.to_owned(), node.clone()));
        }
        for one in &edits.mounts {
            plan.mounts.push(mount(one).map_err(refused)?);
        }
        for one in &edits.hooks {
            plan.rest.hooks.push(hook(one).map_err(refused)?);
        }
        if plan.rest.hooks.len() > MOST_HOOKS {
            return Err(refused(Refusal::TooManyHooks));
        }
        plan.rest.env.extend(edits.env.iter().cloned());
        for gid in edits.additional_gids.iter().filter(|gid| **gid != 0) {
            if !plan.rest.groups.contains(gid) {
                plan.rest.groups.push(*gid);
            }
        }
    }
    Ok(plan)
}

/// A path inside the container that stays where it is written.
fn check_place(path: &str) -> Result<String, ()> {
    let leads_out = path.split('/').any(|part| part == "..");
    let clean = clean(path);
    // libcontainer makes the devices in the one, and turns the other round.
    let taken = clean == "/" || clean == DEV;
    match path.starts_with('/') && !path.contains('\0') && !leads_out && !taken {
        true => Ok(clean),
        false => Err(()),
    }
}

fn mount(wanted: &cdi::Mount) -> Result<CdiMount, Refusal> {
    let path = || wanted.container_path.clone();
    let destination = check_place(&wanted.container_path);
    let destination = destination.map_err(|()| Refusal::MountPoint(path()))?;
    let mut options = Vec::new();
    for option in &wanted.options {
        match option.as_str() {
            // As every mount of a container is, unless its pod says otherwise.
            "private" | "rprivate" => {}
            // In a user namespace all are; there is nothing to map elsewhere.
            "idmap" | "ridmap" => {}
            "shared" | "rshared" | "slave" | "rslave" | "unbindable" | "runbindable" => {
                return Err(Refusal::MountOption {
                    path: path(),
                    option: option.clone(),
                });
            }
            _ => options.push(option.clone()),
        }
    }
    let binds = options.iter().any(|o| o == "bind" || o == "rbind");
    let kind = match (wanted.kind.as_str(), binds) {
        (_, true) => "bind",
        ("bind", false) => {
            options.insert(0, "bind".to_owned());
            "bind"
        }
        ("", false) => return Err(Refusal::MountType(path())),
        (kind, false) => kind,
    };
    Ok(CdiMount {
        destination,
        source: wanted.host_path.clone().into(),
        kind: kind.to_owned(),
        options,
    })
}

/// Those that libcontainer runs outside of the container, or before anything of the container's own is there.
///
/// A `startContainer` hook is a program of the container's files, which would run with all that libcontainer has; what runs after the end of a
/// container (`poststop`) runs nowhere here.
fn hook(wanted: &cdi::Hook) -> Result<cdi::Hook, Refusal> {
    match wanted.hook_name {
        HookName::Prestart
        | HookName::CreateRuntime
        | HookName::CreateContainer
        | HookName::Poststart => {}
        other @ (HookName::StartContainer | HookName::Poststop) => {
            return Err(Refusal::Hook(other.as_str()));
        }
    }
    if !Path::new(&wanted.path).is_absolute() {
        return Err(Refusal::HookPath(wanted.path.clone()));
    }
    let timeout = wanted.timeout.unwrap_or(HOOK_TIMEOUT_SECONDS);
    Ok(cdi::Hook {
        timeout: Some(timeout.min(MOST_HOOK_SECONDS)),
        ..wanted.clone()
    })
}

impl Injected {
    /// The place of a mount is taken over; what lies below it stays on top of it.
    pub(super) fn add_mounts(&self, spec: &mut ContainerSpecMounts) {
        for mount in &self.mounts {
            let place = mount.destination.as_str();
            let is_there = |one: &Value| one["destination"] == place;
            if let Some(at) = spec.mounts.iter().position(is_there) {
                spec.mounts.remove(at);
            }
            let is_below = |one: &Value| {
                let other = one["destination"].as_str().unwrap_or_default();
                Path::new(other).starts_with(place)
            };
            let at = spec.mounts.iter().position(is_below);
            let at = at.unwrap_or(spec.mounts.len());
            spec.mounts.insert(at, mount.as_mount());
            spec.private.retain(|other| other != place);
            if spec.propagation != "private" {
                spec.private.push(place.to_owned());
            }
        }
    }

    /// `hooks` of `config.json`; `None`: there are none.
    pub(super) fn hooks(&self) -> Option<Value> {
        if self.hooks.is_empty() {
            return None;
        }
        let mut all = json!({});
        for hook in &self.hooks {
            let mut one = json!({"path": hook.path, "timeout": hook.timeout});
            if !hook.args.is_empty() {
                one["args"] = json!(hook.args);
            }
            if !hook.env.is_empty() {
                one["env"] = json!(hook.env);
            }
            let list = &mut all[hook.hook_name.as_str()];
            match list.as_array_mut() {
                Some(list) => list.push(one),
                None => *list = json!([one]),
            }
        }
        Some(all)
    }
}

/// What is known of a node of the machine, of those that a device is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostNode {
    /// `b`, `c` or `p`.
    pub kind: char,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
}

/// Why a node cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    #[error("failed to stat CDI host device {path:?}: {why}")]
    Stat { path: String, why: String },
    #[error("CDI device ({path:?}, {host_path:?}), host type mismatch ({wanted}, {found})")]
    Type {
        path: String,
        host_path: String,
        wanted: String,
        found: char,
    },
    #[error(
        "the node at {path:?} lies outside of /dev, where only the machine's own can be: {host_path:?} is not it"
    )]
    Elsewhere { path: String, host_path: String },
}

/// The node as its file and the machine say together. `host`: what is at its path on the machine, or why nothing is; `user`: who
/// the container runs as.
///
/// # Errors
/// They do not fit. Upstream: `fillMissingInfo`.
pub fn device_node(
    wanted: &cdi::DeviceNode,
    host: Result<HostNode, String>,
    (uid, gid): (u32, u32),
) -> Result<DeviceNode, NodeError> {
    let host_path = match wanted.host_path.as_str() {
        "" => wanted.path.clone(),
        path => path.to_owned(),
    };
    // An unbuffered character device is one.
    let kind = wanted.kind.replace('u', "c").chars().next();
    let is_whole = kind == Some('p') || (kind.is_some() && wanted.major != 0);
    let number = |n: i64| u32::try_from(n).unwrap_or_default();
    let (kind, major, minor) = match (&host, kind) {
        (_, Some(kind)) if is_whole => (kind, number(wanted.major), number(wanted.minor)),
        (Err(why), _) => {
            return Err(NodeError::Stat {
                path: host_path,
                why: why.clone(),
            });
        }
        (Ok(host), Some(kind)) if kind != host.kind => {
            return Err(NodeError::Type {
                path: wanted.path.clone(),
                host_path,
                wanted: wanted.kind.clone(),
                found: host.kind,
            });
        }
        (Ok(host), _) if wanted.major != 0 => {
            (host.kind, number(wanted.major), number(wanted.minor))
        }
        (Ok(host), _) => (host.kind, host.major, host.minor),
    };
    let found = host.ok();
    let node = DeviceNode {
        container_path: clean(&wanted.path),
        host_path: host_path.clone().into(),
        kind,
        major,
        minor,
        // As runc has it for those of which nobody says anything.
        mode: wanted
            .file_mode
            .or(found.map(|found| found.mode))
            .unwrap_or(0o666)
            & 0o7777,
        uid: wanted.uid.unwrap_or(uid),
        gid: wanted.gid.unwrap_or(gid),
        access: match wanted.permissions.as_str() {
            "" => "rwm".to_owned(),
            "none" => String::new(),
            some => some.to_owned(),
        },
    };
    let is_it = found.is_some_and(|f| (f.kind, f.major, f.minor) == (kind, major, minor));
    if !node.is_in_dev() && !is_it {
        return Err(NodeError::Elsewhere {
            path: wanted.path.clone(),
            host_path,
        });
    }
    Ok(node)
}

#[cfg(test)]
mod tests;
