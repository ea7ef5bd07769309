//! From the CRI's words to the OCI's: what libcontainer reads (`config.json`) and what the shim
//! applies itself ([`ProcessSpec`]). Pure: everything the machine knows comes in with [`Facts`].
//!
//! libcontainer is asked for root with every capability and no seccomp; the shim's last steps then
//! take away what the container may not have (see `kubelet/shim/src/process.rs` for why).
//!
//! Upstream: containerd's `internal/cri/server/container_create_linux.go`, v2.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use shim_protocol::{DevMount, DeviceRule, ProcessSpec, Propagation, capability};

use crate::api::*;

pub mod cdi;
pub mod seccomp;
pub mod user;

pub use user::{User, UserError};

/// What the image's config says, as far as a spec needs it.
#[derive(Clone, Debug, Default)]
pub struct ImageFacts {
    pub user: String,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    /// Of VOLUME: directories that must not lie on the container's overlay.
    pub volumes: Vec<String>,
}

/// A device node of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNode {
    pub container_path: String,
    pub host_path: PathBuf,
    /// `b`, `c` or `p`.
    pub kind: char,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of `r`, `w`, `m`; empty: the container may see it and no more.
    pub access: String,
}

impl DeviceNode {
    /// libcontainer makes devices there and nowhere else.
    fn is_in_dev(&self) -> bool {
        clean(&self.container_path).starts_with("/dev/")
    }

    /// In a user namespace nobody makes devices: libcontainer mounts the machine's own of the same name.
    fn has_other_name(&self) -> bool {
        self.host_path != Path::new(&clean(&self.container_path))
    }

    /// The machine's node itself, wherever the container wants it.
    fn as_mount(&self) -> Value {
        json!({
            "destination": clean(&self.container_path), "type": "bind", "source": self.host_path, "options": ["bind", "rw"],
        })
    }
}

/// What the machine and the sandbox add to the configuration.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub rootfs: PathBuf,
    /// The sandbox's pinned namespaces.
    pub namespace_dir: PathBuf,
    /// `/proc/<pid>/ns/pid` of the target container (`NamespaceMode::Target`).
    pub target_pid_namespace: Option<PathBuf>,
    /// Below every hierarchy's root.
    pub cgroup_path: PathBuf,
    pub unified_cgroups: bool,
    /// Mounted v1 controllers (directories of /sys/fs/cgroup); empty on v2.
    pub v1_controllers: Vec<String>,
    pub hugetlb: bool,
    pub swap_accounting: bool,
    /// The runtime's own bounding set: nobody can be given more.
    pub available_capabilities: u64,
    pub shm_path: PathBuf,
    pub resolv_conf: PathBuf,
    pub hostname_file: PathBuf,
    /// Host paths of `config.mounts`, in their order: as asked for, or staged (idmapped, images).
    pub mount_sources: Vec<PathBuf>,
    /// Container path and host path of the image's volumes that no mount takes the place of.
    pub image_volumes: Vec<(String, PathBuf)>,
    pub devices: Vec<DeviceNode>,
    /// What comes with the container's CDI devices, but for their nodes, which are among `devices`.
    pub cdi: cdi::Injected,
    pub user: User,
    /// The compiled profile; `None`: unconfined.
    pub seccomp_filter: Option<PathBuf>,
    /// A profile that is loaded; `None`: unconfined.
    pub apparmor_profile: Option<String>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("no command specified")]
    NoCommand,
    #[error("unknown capability {0:?} to add or drop")]
    UnknownCapability(String),
    #[error("mount path {0:?} is not absolute")]
    RelativeMount(String),
    #[error("namespace target without a running container")]
    NoTarget,
}

/// Everything the shim needs to create the container.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerSpec {
    /// libcontainer's `config.json`.
    pub oci: Value,
    pub process: ProcessSpec,
    /// For cgroup v2.
    pub device_rules: Vec<DeviceRule>,
    /// Destinations that must not receive the host's later mounts.
    pub private_mounts: Vec<String>,
    /// What covers the container's /dev; not among the spec's mounts.
    pub dev_mount: Option<DevMount>,
    pub shared_pid: bool,
}

/// Where libcontainer makes devices and links.
const DEV: &str = "/dev";

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Character devices every container may use; the numbers are the kernel's.
const DEFAULT_DEVICES: [(Option<u32>, Option<u32>, &str); 9] = [
    (None, None, "m"),
    (Some(1), Some(3), "rwm"), // null
    (Some(1), Some(8), "rwm"), // random
    (Some(1), Some(7), "rwm"), // full
    (Some(5), Some(0), "rwm"), // tty
    (Some(1), Some(5), "rwm"), // zero
    (Some(1), Some(9), "rwm"), // urandom
    (Some(136), None, "rwm"),  // pts
    (Some(5), Some(2), "rwm"), // ptmx
];

/// Builds the spec.
///
/// # Errors
/// The configuration cannot be carried out; no retry helps.
pub fn container_spec(
    sandbox: &PodSandboxConfig,
    config: &ContainerConfig,
    image: &ImageFacts,
    facts: &Facts,
) -> Result<ContainerSpec, SpecError> {
    let privileged = config.security.privileged;
    let process = process_spec(sandbox, config, image, facts)?;
    let device_rules = device_rules(privileged, facts);
    let in_user_namespace = is_in_user_namespace(sandbox, config);
    let is_made = |device: &&DeviceNode| {
        device.is_in_dev() && !(in_user_namespace && device.has_other_name())
    };
    let (in_dev, elsewhere): (Vec<&DeviceNode>, Vec<&DeviceNode>) =
        facts.devices.iter().partition(is_made);
    let mut mounted = mounts(config, facts)?;
    let elsewhere = elsewhere.into_iter().map(DeviceNode::as_mount);
    mounted.mounts.extend(elsewhere);
    facts.cdi.add_mounts(&mut mounted);
    let ContainerSpecMounts {
        mounts,
        private: private_mounts,
        propagation,
    } = mounted;
    let (mounts, dev_mount) = without_dev(mounts, config, facts);
    let (namespaces, shared_pid) = namespaces(sandbox, config, facts)?;
    let mut readonly_paths = config.security.readonly_paths.clone();
    if !privileged {
        // v1: the tmpfs; what is mounted in there is read-only by itself.
        readonly_paths.push("/sys/fs/cgroup".to_owned());
    }
    let all = capability::names(facts.available_capabilities);
    let mut resources = resources(&config.resources, facts);
    resources["devices"] = device_rules
        .iter()
        .map(|rule| {
            let mut entry = json!({ "allow": rule.allow, "type": rule.kind.to_string(), "access": rule.access });
            if let Some(major) = rule.major {
                entry["major"] = json!(major);
            }
            if let Some(minor) = rule.minor {
                entry["minor"] = json!(minor);
            }
            entry
        })
        .collect();
    let devices: Vec<Value> = in_dev
        .into_iter()
        .map(|device| {
            json!({
                "path": device.container_path, "type": device.kind.to_string(), "major": device.major,
                "minor": device.minor, "fileMode": device.mode, "uid": device.uid, "gid": device.gid,
            })
        })
        .collect();
    let mut linux = json!({
        "cgroupsPath": facts.cgroup_path,
        "namespaces": namespaces,
        "resources": resources,
        "devices": devices,
        "maskedPaths": config.security.masked_paths,
        "readonlyPaths": readonly_paths,
        "rootfsPropagation": propagation,
    });
    if let Some(user) = &config.security.namespaces.user {
        let maps = |maps: &[IdMapping]| -> Value {
            maps.iter()
                .map(|map| json!({ "containerID": map.container_id, "hostID": map.host_id, "size": map.length }))
                .collect()
        };
        linux["uidMappings"] = maps(&user.uids);
        linux["gidMappings"] = maps(&user.gids);
    }
    let mut oci = json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": config.tty,
            "user": { "uid": 0, "gid": 0 },
            "args": process.args,
            // The shim gives it to the program itself; this lies on disk.
            "env": [],
            "cwd": "/",
            "capabilities": { "bounding": all, "effective": all, "permitted": all },
        },
        "root": { "path": facts.rootfs, "readonly": config.security.readonly_rootfs },
        "mounts": mounts,
        "linux": linux,
    });
    if let Some(hooks) = facts.cdi.hooks() {
        oci["hooks"] = hooks;
    }
    Ok(ContainerSpec {
        oci,
        process,
        device_rules,
        private_mounts,
        dev_mount,
        shared_pid,
    })
}

fn process_spec(
    sandbox: &PodSandboxConfig,
    config: &ContainerConfig,
    image: &ImageFacts,
    facts: &Facts,
) -> Result<ProcessSpec, SpecError> {
    let security = &config.security;
    let args: Vec<String> = if config.command.is_empty() {
        let args = if config.args.is_empty() {
            &image.cmd
        } else {
            &config.args
        };
        image.entrypoint.iter().chain(args).cloned().collect()
    } else {
        config.command.iter().chain(&config.args).cloned().collect()
    };
    if args.is_empty() {
        return Err(SpecError::NoCommand);
    }
    let set = capabilities(security, facts.available_capabilities)?;
    let mut additional_gids = facts.user.groups.clone();
    let more = facts.cdi.groups.iter();
    additional_gids.extend(more.filter(|gid| !facts.user.groups.contains(gid)));
    Ok(ProcessSpec {
        args,
        env: environment(sandbox, config, image, facts),
        cwd: [config.working_dir.as_str(), image.working_dir.as_str(), "/"]
            .into_iter()
            .find(|cwd| !cwd.is_empty())
            .unwrap_or("/")
            .to_owned(),
        uid: facts.user.uid,
        gid: facts.user.gid,
        additional_gids,
        bounding: set,
        permitted: set,
        inheritable: 0,
        ambient: 0,
        no_new_privileges: security.no_new_privileges,
        seccomp_bpf: facts.seccomp_filter.clone(),
        apparmor_profile: facts.apparmor_profile.clone(),
        oom_score_adj: Some(config.resources.oom_score_adj),
        terminal: config.tty,
    })
}

/// Later entries win: defaults, the image's, the container's own, those of its CDI devices.
fn environment(
    sandbox: &PodSandboxConfig,
    config: &ContainerConfig,
    image: &ImageFacts,
    facts: &Facts,
) -> Vec<String> {
    let mut env: Vec<String> = vec![];
    // A pod may have a hundred thousand of them.
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut set = |entry: String| {
        let name = entry.split('=').next().unwrap_or_default().to_owned();
        match places.entry(name) {
            Entry::Occupied(place) => env[*place.get()] = entry,
            Entry::Vacant(place) => {
                place.insert(env.len());
                env.push(entry);
            }
        }
    };
    set(DEFAULT_PATH.to_owned());
    if config.tty {
        set("TERM=xterm".to_owned());
    }
    if !sandbox.hostname.is_empty() {
        set(format!("HOSTNAME={}", sandbox.hostname));
    }
    image.env.iter().cloned().for_each(&mut set);
    config
        .envs
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .for_each(&mut set);
    facts.cdi.env.iter().cloned().for_each(&mut set);
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", facts.user.home));
    }
    env
}

/// The set a container gets: containerd's defaults, plus and minus; never more than is available.
pub fn capabilities(security: &SecurityContext, available: u64) -> Result<u64, SpecError> {
    if security.privileged {
        return Ok(available);
    }
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let bit = |name: &String| {
        capability::bit(name).ok_or_else(|| SpecError::UnknownCapability(name.clone()))
    };
    let mut set = capability::DEFAULT
        .iter()
        .filter_map(|name| capability::bit(name))
        .fold(0, |set, bit| set | bit);
    if security.add_capabilities.iter().any(is_all) {
        set = capability::ALL;
    }
    if security.drop_capabilities.iter().any(is_all) {
        set = 0;
    }
    for name in security
        .add_capabilities
        .iter()
        .filter(|name| !is_all(name))
    {
        set |= bit(name)?;
    }
    for name in security
        .drop_capabilities
        .iter()
        .filter(|name| !is_all(name))
    {
        set &= !bit(name)?;
    }
    Ok(set & available)
}

fn device_rules(privileged: bool, facts: &Facts) -> Vec<DeviceRule> {
    let rule = |allow, kind, major, minor, access: &str| DeviceRule {
        allow,
        kind,
        major,
        minor,
        access: access.to_owned(),
    };
    if privileged {
        return vec![rule(true, 'a', None, None, "rwm")];
    }
    let mut rules = vec![rule(false, 'a', None, None, "rwm")];
    rules.push(rule(true, 'b', None, None, "m"));
    rules.extend(
        DEFAULT_DEVICES
            .iter()
            .map(|(major, minor, access)| rule(true, 'c', *major, *minor, access)),
    );
    // A pipe needs none, and one that allows nothing is none.
    let ruled =
        |device: &&DeviceNode| matches!(device.kind, 'b' | 'c') && !device.access.is_empty();
    rules.extend(facts.devices.iter().filter(ruled).map(|device| {
        rule(
            true,
            device.kind,
            Some(device.major),
            Some(device.minor),
            &device.access,
        )
    }));
    rules
}

fn is_in_user_namespace(sandbox: &PodSandboxConfig, config: &ContainerConfig) -> bool {
    config.security.namespaces.user.is_some() || sandbox.namespaces.user.is_some()
}

fn namespaces(
    sandbox: &PodSandboxConfig,
    config: &ContainerConfig,
    facts: &Facts,
) -> Result<(Value, bool), SpecError> {
    let wanted = &config.security.namespaces;
    let pinned =
        |kind: &str, name: &str| json!({ "type": kind, "path": facts.namespace_dir.join(name) });
    let mut list = vec![json!({ "type": "mount" })];
    if wanted.network != NamespaceMode::Node {
        list.push(pinned("network", "net"));
        // A pod on the host's network has the host's name too.
        list.push(pinned("uts", "uts"));
    }
    if wanted.ipc != NamespaceMode::Node {
        list.push(pinned("ipc", "ipc"));
    }
    if is_in_user_namespace(sandbox, config) {
        list.push(pinned("user", "user"));
    }
    match wanted.pid {
        NamespaceMode::Container => list.push(json!({ "type": "pid" })),
        NamespaceMode::Pod => list.push(pinned("pid", "pid")),
        NamespaceMode::Node => {}
        NamespaceMode::Target => {
            let path = facts
                .target_pid_namespace
                .as_ref()
                .ok_or(SpecError::NoTarget)?;
            list.push(json!({ "type": "pid", "path": path }));
        }
    }
    if !config.security.privileged {
        list.push(json!({ "type": "cgroup" }));
    }
    Ok((Value::Array(list), wanted.pid != NamespaceMode::Container))
}

/// Everything about mounts but what covers /dev.
struct ContainerSpecMounts {
    mounts: Vec<Value>,
    /// Destinations to make private.
    private: Vec<String>,
    /// The root's.
    propagation: &'static str,
}

fn mounts(config: &ContainerConfig, facts: &Facts) -> Result<ContainerSpecMounts, SpecError> {
    let security = &config.security;
    let rw = if security.privileged { "rw" } else { "ro" };
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let mut list = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", rw]),
    ];
    list.extend(cgroup_mounts(facts, rw));
    let taken = |path: &str| {
        config
            .mounts
            .iter()
            .any(|mount| clean(&mount.container_path) == path)
    };
    if let Some(relative) = config
        .mounts
        .iter()
        .find(|mount| !mount.container_path.starts_with('/'))
    {
        return Err(SpecError::RelativeMount(relative.container_path.clone()));
    }
    let bind = |destination: String, source: &Path, mode: &str| json!({ "destination": destination, "type": "bind", "source": source, "options": ["rbind", mode] });
    let asked = config.mounts.iter().zip(&facts.mount_sources);
    let mut binds: Vec<Value> = asked
        .map(|(mount, source)| {
            let mode = match (mount.readonly, mount.recursive_read_only) {
                (true, true) => "rro",
                (true, false) => "ro",
                (false, _) => "rw",
            };
            bind(clean(&mount.container_path), source, mode)
        })
        .collect();
    let own_rw = if security.readonly_rootfs { "ro" } else { "rw" };
    for (destination, source, mode) in [
        ("/dev/shm", &facts.shm_path, "rw"),
        ("/etc/resolv.conf", &facts.resolv_conf, own_rw),
        ("/etc/hostname", &facts.hostname_file, own_rw),
    ] {
        if !source.as_os_str().is_empty() && !taken(destination) {
            binds.push(bind(destination.to_owned(), source, mode));
        }
    }
    for (destination, source) in &facts.image_volumes {
        binds.push(bind(clean(destination), source, "rw"));
    }
    // A mount below another one comes after it, whoever asks for either: a volume at /etc leaves the pod its resolv.conf. Equals
    // keep their order.
    binds.sort_by_key(|bind| {
        let destination = bind["destination"].as_str().unwrap_or_default();
        Path::new(destination).components().count()
    });
    list.extend(binds);
    let wants = |propagation| {
        config
            .mounts
            .iter()
            .any(|mount| mount.propagation == propagation)
    };
    let root = match (
        wants(MountPropagation::Bidirectional),
        wants(MountPropagation::HostToContainer),
    ) {
        (true, _) => "shared",
        (false, true) => "slave",
        (false, false) => "private",
    };
    let private = config
        .mounts
        .iter()
        .filter(|mount| root != "private" && mount.propagation == MountPropagation::Private)
        .map(|mount| clean(&mount.container_path))
        .filter(|destination| destination != DEV)
        .collect();
    Ok(ContainerSpecMounts {
        mounts: list,
        private,
        propagation: root,
    })
}

/// What a container sees of its own cgroup.
///
/// v1: a tmpfs and a bind a controller. libcontainer's own mount takes every cgroup mount of the machine for a controller; kind
/// and others bind parts of the hierarchies onto themselves.
fn cgroup_mounts(facts: &Facts, rw: &str) -> Vec<Value> {
    const TOP: &str = "/sys/fs/cgroup";
    if facts.unified_cgroups {
        return vec![json!({
            "destination": TOP, "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", rw],
        })];
    }
    let own = facts
        .cgroup_path
        .strip_prefix("/")
        .unwrap_or(&facts.cgroup_path);
    let tmpfs = json!({
        "destination": TOP, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "noexec", "nodev", "mode=755"],
    });
    let controllers = facts.v1_controllers.iter().map(|name| {
        json!({
            "destination": format!("{TOP}/{name}"), "type": "bind", "source": Path::new(TOP).join(name).join(own),
            "options": ["bind", "nosuid", "noexec", "nodev", "relatime", rw],
        })
    });
    std::iter::once(tmpfs).chain(controllers).collect()
}

/// Takes what the config wants at /dev out of the spec's mounts (of several the last, as it would cover the others):
/// libcontainer would write into it.
fn without_dev(
    mut mounts: Vec<Value>,
    config: &ContainerConfig,
    facts: &Facts,
) -> (Vec<Value>, Option<DevMount>) {
    let asked = config.mounts.iter().zip(&facts.mount_sources);
    let mut at_dev = asked.filter(|(mount, _)| clean(&mount.container_path) == DEV);
    let Some((mount, source)) = at_dev.next_back() else {
        return (mounts, None);
    };
    mounts.retain(|one| one["destination"] != DEV || one["type"] == "tmpfs");
    let all: BTreeSet<&str> = mounts
        .iter()
        .filter_map(|one| one["destination"].as_str())
        .filter(|path| Path::new(path).starts_with(DEV) && *path != DEV)
        .collect();
    let is_below = |path: &str, other: &str| path != other && Path::new(path).starts_with(other);
    let below = all
        .iter()
        .filter(|path| !all.iter().any(|other| is_below(path, other)))
        .map(|path| (*path).to_owned())
        .collect();
    let dev_mount = DevMount {
        source: source.clone(),
        read_only: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        propagation: match mount.propagation {
            MountPropagation::Private => Propagation::Private,
            MountPropagation::HostToContainer => Propagation::Slave,
            MountPropagation::Bidirectional => Propagation::Shared,
        },
        below,
    };
    (mounts, Some(dev_mount))
}

/// Without double and trailing slashes.
pub fn clean(path: &str) -> String {
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    format!("/{}", parts.join("/"))
}

/// The resources as libcontainer reads them.
pub fn resources(resources: &Resources, facts: &Facts) -> Value {
    let mut value = json!({});
    let mut cpu = json!({});
    if let Some(shares) = resources.cpu_shares.filter(|shares| *shares > 0) {
        cpu["shares"] = json!(shares);
    }
    if let Some(quota) = resources.cpu_quota_us.filter(|quota| *quota != 0) {
        cpu["quota"] = json!(quota);
    }
    if let Some(period) = resources.cpu_period_us.filter(|period| *period > 0) {
        cpu["period"] = json!(period);
    }
    for (name, set) in [
        ("cpus", &resources.cpuset_cpus),
        ("mems", &resources.cpuset_mems),
    ] {
        if !set.is_empty() {
            cpu[name] = json!(set);
        }
    }
    value["cpu"] = cpu;
    let mut memory = json!({});
    if let Some(limit) = resources.memory_limit_bytes.filter(|limit| *limit > 0) {
        memory["limit"] = json!(limit);
        if let Some(swap) = resources
            .memory_swap_limit_bytes
            .filter(|swap| *swap > 0 && facts.swap_accounting)
        {
            memory["swap"] = json!(swap);
        }
    }
    if memory.as_object().is_some_and(|object| !object.is_empty()) {
        value["memory"] = memory;
    }
    if let Some(limit) = resources.pids_limit.filter(|limit| *limit > 0) {
        value["pids"] = json!({ "limit": limit });
    }
    if facts.hugetlb && !resources.hugepage_limits.is_empty() {
        value["hugepageLimits"] = resources
            .hugepage_limits
            .iter()
            .map(|(size, limit)| json!({ "pageSize": size, "limit": limit }))
            .collect();
    }
    value
}

/// The process of an exec: the container's own, with another command.
pub fn exec_process(container: &ProcessSpec, command: &[String], terminal: bool) -> ProcessSpec {
    let mut process = container.clone();
    process.args = command.to_vec();
    process.terminal = terminal;
    if terminal && !process.env.iter().any(|entry| entry.starts_with("TERM=")) {
        process.env.push("TERM=xterm".to_owned());
    }
    process
}

#[cfg(test)]
mod tests;
