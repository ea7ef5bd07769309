//! Where the kubelet keeps what on disk.
//!
//! Owns: every path below `--root-dir` and the pods' log directories. Upstream: `pkg/kubelet/kubelet_getters.go`,
//! `pkg/kubelet/kuberuntime/helpers.go`, v1.36.

use std::path::{Path, PathBuf};

/// The old log links, read by log collectors; upstream: `ContainerLogsDir`.
const CONTAINER_LOGS_DIR: &str = "/var/log/containers";

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Paths {
    root: PathBuf,
    pod_logs: PathBuf,
    container_logs: PathBuf,
}

impl Paths {
    pub fn new(root: PathBuf, pod_logs: PathBuf) -> Self {
        Self {
            root,
            pod_logs,
            container_logs: CONTAINER_LOGS_DIR.into(),
        }
    }

    /// With the old log links in a folder of their own, for tests.
    pub fn with_container_logs(mut self, folder: PathBuf) -> Self {
        self.container_logs = folder;
        self
    }

    /// Where the old log links are.
    pub fn container_logs(&self) -> &Path {
        &self.container_logs
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    pub fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    /// `<pod>/containers/<name>`: termination messages.
    pub fn container(&self, uid: &str, name: &str) -> PathBuf {
        self.pod(uid).join("containers").join(name)
    }

    /// Where agents of the node ask for its pods. Upstream: `LocalEndpoint` of `DefaultKubeletPodsAPIDirName` and `pods.Socket`.
    pub fn pods_api(&self) -> PathBuf {
        self.root.join("pods-api/pods-api.sock")
    }

    /// Where agents of the node ask which devices its pods have. Upstream: `DefaultKubeletPodResourcesDirName` and `podresources.Socket`.
    pub fn pod_resources(&self) -> PathBuf {
        self.root.join("pod-resources/kubelet.sock")
    }

    /// Where device plugins register, and what was given out of theirs. Upstream: `DevicePluginPath`, wherever the root directory is.
    pub fn device_plugins(&self) -> PathBuf {
        self.root.join("device-plugins")
    }

    /// Where plugins make themselves known.
    pub fn plugins_registry(&self) -> PathBuf {
        self.root.join("plugins_registry")
    }

    /// What drivers keep, and what is theirs of all pods.
    pub fn plugins(&self) -> PathBuf {
        self.root.join("plugins")
    }

    pub fn seccomp(&self) -> PathBuf {
        self.root.join("seccomp")
    }

    pub fn pod_logs_root(&self) -> &Path {
        &self.pod_logs
    }

    /// `<logs>/<namespace>_<name>_<uid>`
    pub fn pod_log_directory(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.pod_logs.join(format!("{namespace}_{name}_{uid}"))
    }

    /// `/var/log/containers/<pod>_<namespace>_<container>-<id>.log`
    pub fn legacy_log_link(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        id: &str,
    ) -> PathBuf {
        let name = format!("{pod}_{namespace}_{container}");
        // The file name must stay below 255 bytes, as upstream cuts it.
        let name: String = name.chars().take(251 - id.len().min(200) - 1).collect();
        self.container_logs.join(format!("{name}-{id}.log"))
    }
}

/// The UID in the name of a pod's log directory.
pub fn uid_of_log_directory(name: &str) -> Option<&str> {
    let uid = name.rsplit('_').next()?;
    (name.matches('_').count() >= 2 && !uid.is_empty()).then_some(uid)
}
