//! The provider seam: trait [`Runtime`] and the plain types it speaks.
//!
//! The types mirror the messages of the CRI (same field meanings, same names in snake_case), so
//! that a CRI gRPC server can stand on the same trait. They hold no Kubernetes API objects.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use shim_protocol::chain;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::detail::Detail;

pub type Labels = BTreeMap<String, String>;
pub type Annotations = BTreeMap<String, String>;

/// Why a runtime call failed; its words are for users, so they name every cause. `NotFound` of a stop or remove is success to the caller's eyes.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("pod sandbox {id} not found")]
    SandboxNotFound { id: String },
    #[error("container {id} not found")]
    ContainerNotFound { id: String },
    #[error("container {id} is not running (state: {state:?})")]
    NotRunning { id: String, state: ContainerState },
    #[error("invalid {field}: {value:?}: {reason}")]
    Invalid {
        field: &'static str,
        value: String,
        reason: String,
    },
    /// Creating the container failed for a reason in its configuration. Upstream: `CreateContainerError`.
    #[error("failed to create containerd task: {0}")]
    Create(String),
    /// The program could not be started (missing, not executable). Upstream: `RunContainerError` / `StartError`, exit code 128.
    #[error("{0}")]
    Start(String),
    #[error("failed to set up pod sandbox {name:?}: {reason}")]
    Sandbox { name: String, reason: String },
    #[error("failed to set up network for sandbox {id:?}: {}", chain(&**source))]
    Network {
        id: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("{what} timed out after {after:?}")]
    Timeout { what: String, after: Duration },
    #[error("shim of pod sandbox {id}: {reason}")]
    Shim { id: String, reason: String },
    #[error("{context}: {}", chain(source))]
    Io {
        context: String,
        #[source]
        source: std::io::Error,
    },
    /// The provider does not offer this.
    #[error("{0} is not supported by this runtime")]
    Unsupported(&'static str),
}

/// Why an image call failed; the variants map one to one to upstream's waiting reasons.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Reason `InvalidImageName`.
    #[error("couldn't parse image name {image:?}: {reason}")]
    InvalidImageName { image: String, reason: String },
    /// Reason `ErrImagePull`. A retry may help.
    #[error("failed to pull and unpack image {image:?}: {reason}")]
    Pull { image: String, reason: String },
    /// Reason `RegistryUnavailable`. A retry may help.
    #[error("failed to pull image {image:?}: registry unavailable: {reason}")]
    RegistryUnavailable { image: String, reason: String },
    /// Reason `SignatureValidationFailed` or a digest that does not match.
    #[error("image {image:?}: content does not match its digest: {reason}")]
    Verification { image: String, reason: String },
    #[error("image {image:?} not found")]
    NotFound { image: String },
}

/// What the node says its runtime is, and the scheme of container ids: the same, as `kubectl` users and agents that look
/// containers up by it expect.
pub const RUNTIME_NAME: &str = "youki";

/// Who asked for a sandbox or a container, and so decides when it goes: each leaves the other's alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    #[default]
    Kubelet,
    /// A client of the CRI's socket.
    Cri,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSandboxMetadata {
    pub name: String,
    pub uid: String,
    pub namespace: String,
    /// Counts the sandboxes of one pod, from 0.
    pub attempt: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerMetadata {
    pub name: String,
    /// The restart count the kubelet gave it.
    pub attempt: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// One for the whole pod.
    #[default]
    Pod,
    /// One a container (the usual PID mode).
    Container,
    /// The node's.
    Node,
    /// That of the container named in `NamespaceOptions::target_id` (ephemeral containers).
    Target,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    pub host_id: u32,
    pub container_id: u32,
    pub length: u32,
}

/// `None` in `user` means the node's user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceOptions {
    pub network: NamespaceMode,
    pub pid: NamespaceMode,
    pub ipc: NamespaceMode,
    pub target_id: Option<String>,
    pub user: Option<UserNamespace>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    pub uids: Vec<IdMapping>,
    pub gids: Vec<IdMapping>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecurityProfile {
    RuntimeDefault,
    #[default]
    Unconfined,
    /// Absolute path on the node.
    Localhost(PathBuf),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    pub protocol: Protocol,
    pub container_port: u16,
    pub host_port: u16,
    /// Empty: every address of the node.
    pub host_ip: String,
}

/// Everything a sandbox is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSandboxConfig {
    pub metadata: PodSandboxMetadata,
    /// Empty: the node's.
    pub hostname: String,
    /// `/var/log/pods/<namespace>_<name>_<uid>`.
    pub log_directory: PathBuf,
    pub dns: Option<DnsConfig>,
    pub port_mappings: Vec<PortMapping>,
    pub labels: Labels,
    pub annotations: Annotations,
    /// The pod's cgroup, as the kubelet named it: `/kubepods/burstable/pod<uid>` below the cgroup root,
    /// or the systemd slice name.
    pub cgroup_parent: String,
    pub namespaces: NamespaceOptions,
    pub sysctls: BTreeMap<String, String>,
    /// Size of the pod's /dev/shm; `None`: 64 MiB.
    pub shm_size_bytes: Option<u64>,
    /// RuntimeClass handler; empty: the default one.
    pub runtime_handler: String,
    pub privileged: bool,
    pub supplemental_groups: Vec<u32>,
    #[serde(default)]
    pub origin: Origin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxState {
    Ready,
    NotReady,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodSandboxStatus {
    pub id: String,
    pub metadata: PodSandboxMetadata,
    pub state: SandboxState,
    pub created_at: jiff::Timestamp,
    /// Primary first; empty for host network.
    pub ips: Vec<String>,
    pub namespaces: NamespaceOptions,
    pub labels: Labels,
    pub annotations: Annotations,
    pub runtime_handler: String,
    #[serde(default)]
    pub origin: Origin,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountPropagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub container_path: String,
    /// Empty for an image mount.
    pub host_path: PathBuf,
    pub readonly: bool,
    pub recursive_read_only: bool,
    pub propagation: MountPropagation,
    /// For image volumes: mount this image's root instead of `host_path`.
    pub image: Option<String>,
    pub image_sub_path: String,
    /// Map ids so that files look owned inside the user namespace as outside.
    pub idmap: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub container_path: String,
    pub host_path: PathBuf,
    /// Of `r`, `w`, `m`.
    pub permissions: String,
}

/// Linux resource limits. `None` or zero means no limit or the kernel's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    pub cpu_shares: Option<u64>,
    pub cpu_quota_us: Option<i64>,
    pub cpu_period_us: Option<u64>,
    pub memory_limit_bytes: Option<i64>,
    /// memory + swap, as the kernel counts it.
    pub memory_swap_limit_bytes: Option<i64>,
    pub oom_score_adj: i32,
    pub pids_limit: Option<i64>,
    pub hugepage_limits: BTreeMap<String, u64>,
    /// The CPUs to run on (`0-3,8`); empty: all of the pod's.
    #[serde(default)]
    pub cpuset_cpus: String,
    /// The NUMA nodes to have memory of; empty: all of the pod's.
    #[serde(default)]
    pub cpuset_mems: String,
    /// cgroup v2 keys set as they are (`memory.min`, …); ignored on v1.
    pub unified: BTreeMap<String, String>,
}

impl Resources {
    /// Takes over what an update of a container names, as the CRI has it; the rest stays.
    pub fn merge(&mut self, update: &Self) {
        self.cpu_shares = update.cpu_shares.or(self.cpu_shares);
        self.cpu_quota_us = update.cpu_quota_us.or(self.cpu_quota_us);
        self.cpu_period_us = update.cpu_period_us.or(self.cpu_period_us);
        self.memory_limit_bytes = update.memory_limit_bytes.or(self.memory_limit_bytes);
        self.memory_swap_limit_bytes = update
            .memory_swap_limit_bytes
            .or(self.memory_swap_limit_bytes);
        self.pids_limit = update.pids_limit.or(self.pids_limit);
        for (own, new) in [
            (&mut self.cpuset_cpus, &update.cpuset_cpus),
            (&mut self.cpuset_mems, &update.cpuset_mems),
        ] {
            if !new.is_empty() {
                own.clone_from(new);
            }
        }
        self.unified.extend(update.unified.clone());
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityContext {
    pub privileged: bool,
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    pub run_as_user: Option<u32>,
    pub run_as_username: Option<String>,
    pub run_as_group: Option<u32>,
    pub supplemental_groups: Vec<u32>,
    /// `true`: add the groups that the image's /etc/group gives the user (policy `Merge`).
    pub merge_image_groups: bool,
    pub readonly_rootfs: bool,
    pub no_new_privileges: bool,
    pub seccomp: SecurityProfile,
    pub apparmor: SecurityProfile,
    /// `procMount: Unmasked` empties these two.
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    pub namespaces: NamespaceOptions,
}

/// Everything a container is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerConfig {
    pub metadata: ContainerMetadata,
    /// A reference or image id that `image_status` knows.
    pub image: String,
    /// As the user wrote it in the pod.
    pub user_specified_image: String,
    /// Replaces the image's ENTRYPOINT if not empty.
    pub command: Vec<String>,
    /// Replaces the image's CMD if not empty.
    pub args: Vec<String>,
    /// Empty: the image's, or `/`.
    pub working_dir: String,
    pub envs: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    /// Names of CDI devices (`vendor/class=device`), besides those that annotations name.
    #[serde(default)]
    pub cdi_devices: Vec<String>,
    pub labels: Labels,
    pub annotations: Annotations,
    /// Relative to the sandbox's log directory: `<container>/<restart>.log`.
    pub log_path: PathBuf,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    pub resources: Resources,
    pub security: SecurityContext,
    /// `lifecycle.stopSignal`, e.g. `SIGUSR1`; `None`: the image's, or SIGTERM.
    pub stop_signal: Option<String>,
    #[serde(default)]
    pub origin: Origin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ContainerState {
    Created,
    Running,
    Exited,
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerStatus {
    pub id: String,
    pub sandbox_id: String,
    pub metadata: ContainerMetadata,
    pub state: ContainerState,
    pub created_at: jiff::Timestamp,
    pub started_at: Option<jiff::Timestamp>,
    pub finished_at: Option<jiff::Timestamp>,
    /// Only of meaning when `Exited`; 128 + signal for a signal.
    pub exit_code: i32,
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerCannotRun`.
    pub reason: String,
    pub message: String,
    pub image: String,
    pub image_id: String,
    /// `repo@digest` the image came from, if known.
    pub image_ref: String,
    pub labels: Labels,
    pub annotations: Annotations,
    pub log_path: PathBuf,
    /// PID on the node of the container's first process, while running.
    pub pid: Option<u32>,
    pub resources: Resources,
    /// The user the container really runs as: uid, gid, groups.
    pub user: Option<(u32, u32, Vec<u32>)>,
    pub stop_signal: String,
    pub mounts: Vec<Mount>,
    #[serde(default)]
    pub origin: Origin,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSyncResponse {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit_code: i32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    pub stdin: bool,
    pub stdout: bool,
    /// Never together with `tty`.
    pub stderr: bool,
    pub tty: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// A running exec, or an attachment to a container's own streams. Dropping it hangs up: an exec'd
/// process sees its stdin closed (SIGHUP with a terminal), an attached container lives on.
pub struct Session {
    pub stdin: Option<Writer>,
    pub stdout: Option<Reader>,
    pub stderr: Option<Reader>,
    pub resize: Option<mpsc::Sender<TerminalSize>>,
    /// Of an attachment: it ends when the client's input does, while the container keeps its stdin open. Upstream: the
    /// runtimes detach so unless the container has `stdinOnce` and no terminal.
    pub detaches_with_stdin: bool,
    /// The exit code of the exec, or of the container for attach.
    pub exit: oneshot::Receiver<Result<i32, RuntimeError>>,
}

/// Both directions of one forwarded port.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeEvent {
    ContainerCreated {
        sandbox_id: String,
        pod_uid: String,
        container_id: String,
    },
    ContainerStarted {
        sandbox_id: String,
        pod_uid: String,
        container_id: String,
    },
    ContainerExited {
        sandbox_id: String,
        pod_uid: String,
        container_id: String,
        exit_code: i32,
    },
    ContainerRemoved {
        sandbox_id: String,
        pod_uid: String,
        container_id: String,
    },
    SandboxReady {
        sandbox_id: String,
        pod_uid: String,
    },
    /// Somebody asked for it.
    SandboxStopped {
        sandbox_id: String,
        pod_uid: String,
    },
    /// The sandbox (its shim, its namespaces) went away unasked.
    SandboxNotReady {
        sandbox_id: String,
        pod_uid: String,
    },
    SandboxRemoved {
        sandbox_id: String,
        pod_uid: String,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeStatus {
    /// `Err` holds the reason and message of the condition.
    pub runtime_ready: Option<(String, String)>,
    pub network_ready: Option<(String, String)>,
    pub handlers: Vec<RuntimeHandler>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeHandler {
    pub name: String,
    pub recursive_read_only_mounts: bool,
    pub user_namespaces: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerStats {
    pub id: String,
    pub sandbox_id: String,
    pub name: String,
    pub timestamp: jiff::Timestamp,
    pub cpu_usage_core_nanoseconds: u64,
    pub memory_usage_bytes: u64,
    pub memory_working_set_bytes: u64,
    pub memory_rss_bytes: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    pub writable_layer_used_bytes: u64,
    pub writable_layer_inodes_used: u64,
}

/// Counters of a network interface since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceStats {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

impl InterfaceStats {
    /// Every interface but the loopback of a `/proc/net/dev`.
    pub fn parse(table: &str) -> Vec<Self> {
        table
            .lines()
            .filter_map(|line| {
                let (name, rest) = line.split_once(':')?;
                let name = name.trim();
                let fields: Vec<u64> = rest
                    .split_whitespace()
                    .map_while(|field| field.parse().ok())
                    .collect();
                // Receive: bytes packets errs drop fifo frame compressed multicast; transmit: the same first four.
                if name == "lo" || fields.len() < 12 {
                    return None;
                }
                Some(Self {
                    name: name.to_owned(),
                    rx_bytes: fields[0],
                    rx_packets: fields[1],
                    rx_errors: fields[2],
                    rx_dropped: fields[3],
                    tx_bytes: fields[8],
                    tx_packets: fields[9],
                    tx_errors: fields[10],
                    tx_dropped: fields[11],
                })
            })
            .collect()
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodSandboxStats {
    pub id: String,
    /// None where the pod has the node's network.
    pub interfaces: Vec<InterfaceStats>,
    pub process_count: u64,
    pub containers: Vec<ContainerStats>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStatus {
    /// `sha256:…` of the image's config.
    pub id: String,
    pub repo_tags: Vec<String>,
    pub repo_digests: Vec<String>,
    pub size_bytes: u64,
    /// From the image's USER, if a number.
    pub uid: Option<u32>,
    /// From the image's USER, if a name.
    pub username: Option<String>,
    pub pinned: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageAuth {
    pub username: String,
    pub password: String,
    pub identity_token: String,
    pub registry_token: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FsUsage {
    pub mountpoint: PathBuf,
    pub used_bytes: u64,
    pub inodes_used: u64,
}

/// The verbs of the CRI. Every call is idempotent where the CRI's is: stopping the stopped and
/// removing the removed succeed.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// (runtime name, runtime version).
    fn version(&self) -> (String, String);
    async fn status(&self) -> Result<RuntimeStatus, RuntimeError>;
    /// The pod CIDRs the API server gave this node; empty until it did.
    async fn update_pod_cidrs(&self, pod_cidrs: Vec<String>) -> Result<(), RuntimeError>;
    /// Exits and starts, pushed by the shims; a lagging receiver re-lists.
    fn events(&self) -> broadcast::Receiver<RuntimeEvent>;

    async fn run_pod_sandbox(&self, config: &PodSandboxConfig) -> Result<String, RuntimeError>;
    async fn stop_pod_sandbox(&self, sandbox_id: &str) -> Result<(), RuntimeError>;
    async fn remove_pod_sandbox(&self, sandbox_id: &str) -> Result<(), RuntimeError>;
    async fn pod_sandbox_status(&self, sandbox_id: &str) -> Result<PodSandboxStatus, RuntimeError>;
    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandboxStatus>, RuntimeError>;

    async fn create_container(
        &self,
        sandbox_id: &str,
        config: &ContainerConfig,
    ) -> Result<String, RuntimeError>;
    async fn start_container(&self, container_id: &str) -> Result<(), RuntimeError>;
    /// Stop signal, then SIGKILL after `timeout` (zero: at once). Returns when the container has exited.
    async fn stop_container(
        &self,
        container_id: &str,
        timeout: Duration,
    ) -> Result<(), RuntimeError>;
    async fn remove_container(&self, container_id: &str) -> Result<(), RuntimeError>;
    async fn container_status(&self, container_id: &str) -> Result<ContainerStatus, RuntimeError>;
    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError>;
    async fn update_container_resources(
        &self,
        container_id: &str,
        resources: &Resources,
    ) -> Result<(), RuntimeError>;
    async fn reopen_container_log(&self, container_id: &str) -> Result<(), RuntimeError>;

    /// Runs a command to its end. Of each output `limit` bytes are kept, the rest is read and dropped.
    async fn exec_sync(
        &self,
        container_id: &str,
        command: &[String],
        timeout: Option<Duration>,
        limit: usize,
    ) -> Result<ExecSyncResponse, RuntimeError>;
    async fn exec(
        &self,
        container_id: &str,
        command: &[String],
        options: &StreamOptions,
    ) -> Result<Session, RuntimeError>;
    async fn attach(
        &self,
        container_id: &str,
        options: &StreamOptions,
    ) -> Result<Session, RuntimeError>;
    /// Connects to `port` on localhost inside the sandbox's network namespace.
    async fn port_forward(
        &self,
        sandbox_id: &str,
        port: u16,
    ) -> Result<Box<dyn Duplex>, RuntimeError>;

    async fn list_container_stats(&self) -> Result<Vec<ContainerStats>, RuntimeError>;
    async fn list_pod_sandbox_stats(&self) -> Result<Vec<PodSandboxStats>, RuntimeError>;
    /// What metrics tell beyond usage, by container; of running ones only. Dear: it looks at every process.
    async fn list_container_details(&self) -> Result<BTreeMap<String, Detail>, RuntimeError>;

    /// Returns the image id, after the registry that `image` names agreed. `auths` are tried in order; none: anonymously.
    async fn pull_image(&self, image: &str, auths: &[ImageAuth]) -> Result<String, RuntimeError>;
    async fn image_status(&self, image: &str) -> Result<Option<ImageStatus>, RuntimeError>;
    async fn list_images(&self) -> Result<Vec<ImageStatus>, RuntimeError>;
    async fn remove_image(&self, image: &str) -> Result<(), RuntimeError>;
    async fn image_fs_info(&self) -> Result<FsUsage, RuntimeError>;
}
