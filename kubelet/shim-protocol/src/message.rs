//! The messages.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a shim is started with: `shim.json` in the sandbox's state directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimConfig {
    pub version: u32,
    pub sandbox_id: String,
    pub pod_uid: String,
    /// The sandbox's volatile directory: socket, pinned namespaces, libcontainer's state.
    pub state_dir: PathBuf,
    /// Locked for as long as the shim lives: one running sandbox a pod UID.
    pub lock_path: PathBuf,
    pub namespaces: NamespaceConfig,
    /// Empty: leave the name as it is (host network).
    pub hostname: String,
    /// Set inside the pod's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Move the shim to this cgroup (below every hierarchy's root); `None`: stay in the starter's.
    #[serde(default)]
    pub shim_cgroup: Option<String>,
    /// How many files the pod's processes may have open; `None`: as the starter has it.
    #[serde(default)]
    pub open_files: Option<OpenFiles>,
}

/// RLIMIT_NOFILE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFiles {
    pub soft: u64,
    pub hard: u64,
}

/// Which namespaces the sandbox has of its own. Each is pinned at `<state_dir>/ns/<name>`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceConfig {
    pub net: bool,
    pub ipc: bool,
    pub uts: bool,
    /// One PID namespace for all containers of the pod, with an init that reaps.
    pub pid: bool,
    pub user: Option<UserMappings>,
}

/// The lines of `uid_map` and `gid_map`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserMappings {
    pub uids: Vec<IdMap>,
    pub gids: Vec<IdMap>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    pub container_id: u32,
    pub host_id: u32,
    pub length: u32,
}

/// A process as the container's user gets it. The shim applies it itself, last thing before
/// `execve`: libcontainer's own ways miss the user namespace and seccomp for execs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    /// Bit sets, bit N is capability N. `permitted` is also the effective set.
    pub bounding: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
    pub no_new_privileges: bool,
    /// A file of `struct sock_filter`s, loaded as they are; `None`: unconfined.
    pub seccomp_bpf: Option<PathBuf>,
    /// Value for `/proc/self/attr/apparmor/exec`; `None`: unconfined.
    #[serde(default)]
    pub apparmor_profile: Option<String>,
    pub oom_score_adj: Option<i32>,
    pub terminal: bool,
}

/// A container to create and start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStart {
    pub id: String,
    /// Holds `config.json`.
    pub bundle: PathBuf,
    pub process: ProcessSpec,
    pub log_path: PathBuf,
    pub stdin: bool,
    pub stdin_once: bool,
    /// Below every hierarchy's root.
    pub cgroup_path: PathBuf,
    /// Where the shim writes [`ContainerExit`], atomically.
    pub exit_file: PathBuf,
    /// The container shares a PID namespace: at its exit the shim kills what is left in its cgroup.
    pub shared_pid: bool,
    /// cgroup v2 files set as they are.
    #[serde(default)]
    pub unified: BTreeMap<String, String>,
    /// Rules for cgroup v2, where libcontainer was built without its own; first match from the end wins.
    #[serde(default)]
    pub devices: Vec<DeviceRule>,
    /// Mount points inside the container that must not receive later mounts of the host.
    #[serde(default)]
    pub private_mounts: Vec<String>,
    /// What is mounted over the container's own /dev.
    #[serde(default)]
    pub dev_mount: Option<DevMount>,
}

/// A directory of the node's at a container's /dev.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevMount {
    pub source: PathBuf,
    pub read_only: bool,
    /// What is mounted below it, too.
    pub recursive_read_only: bool,
    pub propagation: Propagation,
    /// Mount points of the container below /dev, none below another: they are mounted there again.
    pub below: Vec<String>,
}

/// Which later mounts the node and the container share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    Private,
    Slave,
    Shared,
}

/// One line of the device cgroup. `None` matches every number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    pub allow: bool,
    /// `a`, `b` or `c`.
    pub kind: char,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    /// Of `r`, `w`, `m`.
    pub access: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// Answered by `State`, then by an `Event` for each change until hung up.
    Subscribe,
    /// Answered by `Started` or `Error`.
    Start(Box<ContainerStart>),
    /// Signals a container's first process, or with `all` every process in its cgroup.
    Kill {
        container: String,
        signal: i32,
        #[serde(default)]
        all: bool,
    },
    /// Carries as many descriptors as there are `true`s, in the order stdin, stdout, stderr; with a
    /// terminal none. Answered by `ExecStarted` (with the terminal's master, if any) and later by
    /// `ExecExited`, or by `Error`.
    Exec {
        container: String,
        process: Box<ProcessSpec>,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    /// Signals an exec by the PID that `ExecStarted` told.
    KillExec {
        pid: i32,
        signal: i32,
    },
    /// Carries a descriptor to write to for stdout and one for stderr, if asked for. Answered by
    /// `Attached`, with the container's stdin (or its terminal) if `stdin` or `terminal`; then by
    /// `Exited` when the container is gone.
    Attach {
        container: String,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    /// Closes the container's stdin for good: the first attached client is done (`stdinOnce`).
    CloseStdin {
        container: String,
    },
    ReopenLog {
        container: String,
    },
    /// Forgets a container that has exited or never started.
    Remove {
        container: String,
    },
    /// Kills everything, answers `Ok`, and ends.
    Shutdown,
    #[serde(other)]
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Response {
    Ok,
    Error(ShimError),
    State(ShimState),
    Started {
        pid: i32,
        started_at_ns: i64,
    },
    ExecStarted {
        pid: i32,
    },
    ExecExited {
        exit_code: i32,
    },
    Attached {
        terminal: bool,
    },
    Exited(ContainerExit),
    Event(Event),
    #[serde(other)]
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ShimError {
    pub kind: ErrorKind,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// No such container or exec.
    NotFound,
    /// The container is in the wrong state for the request.
    State,
    /// The container could not be created: its configuration or the machine is at fault.
    Create,
    /// The program could not be executed.
    Exec,
    /// The request is unknown to this shim.
    Unsupported,
    /// A system call failed.
    #[serde(other)]
    System,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ShimState {
    pub version: u32,
    pub sandbox_id: String,
    pub pid: i32,
    pub containers: Vec<ContainerInfo>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerInfo {
    pub id: String,
    /// Zero until it started.
    pub pid: i32,
    pub started_at_ns: i64,
    pub exit: Option<ContainerExit>,
}

/// How a container ended; also the content of its exit file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerExit {
    #[serde(default)]
    pub version: u32,
    pub id: String,
    /// 128 + signal for a signal.
    pub exit_code: i32,
    pub signal: Option<i32>,
    pub oom_killed: bool,
    /// Unix time in nanoseconds.
    pub started_at_ns: i64,
    pub finished_at_ns: i64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    ContainerStarted {
        container: String,
        pid: i32,
        started_at_ns: i64,
    },
    ContainerExited(ContainerExit),
    /// The start came to nothing, and the shim has forgotten the container. Who asked for it hears it as the answer;
    /// this is for who took over meanwhile.
    ContainerFailed {
        container: String,
        error: ShimError,
    },
    #[serde(other)]
    Unknown,
}
