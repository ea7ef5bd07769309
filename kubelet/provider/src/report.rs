//! How a pod is, as its provider sees it.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

/// Which pod. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodId {
    /// Unique for ever; a pod of the same name that comes later has another one.
    pub uid: Arc<str>,
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
    /// The node it was bound to.
    pub node: Arc<str>,
}

impl PodId {
    /// Of an object; what the object does not say is empty.
    pub fn of(pod: &Pod) -> Self {
        let text = |field: Option<&str>| Arc::from(field.unwrap_or_default());
        let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
        Self {
            uid: text(pod.metadata.uid.as_deref()),
            namespace: text(pod.metadata.namespace.as_deref()),
            name: text(pod.metadata.name.as_deref()),
            node: text(node),
        }
    }
}

impl std::fmt::Display for PodId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `status.phase`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Not every container has been started.
    Pending,
    /// At least one container runs or will again.
    Running,
    /// All have ended well, and for good.
    Succeeded,
    /// All have ended, one of them badly.
    Failed,
}

impl Phase {
    /// The word in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Terminated {
    /// Zero means success.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, …; empty: by the exit code.
    pub reason: String,
    /// The termination message.
    pub message: String,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
}

/// What a container does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ContainerState {
    /// It has not been started, or not again.
    Waiting {
        /// `ContainerCreating`, `ImagePullBackOff`, `CrashLoopBackOff`, …
        reason: String,
        /// Why.
        message: String,
    },
    /// It runs.
    Running {
        /// Since when.
        started_at: Timestamp,
    },
    /// It has ended. Whether it will run again is said by the phase, or by restart policy.
    Terminated(Terminated),
}

/// A container, init and ephemeral ones included.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ContainerReport {
    /// Its name in the pod.
    pub name: String,
    /// What it does.
    pub state: ContainerState,
    /// How it ended last time.
    pub last: Option<Terminated>,
    /// Whether it may serve. Of an init container: that it is done.
    pub ready: bool,
    /// How often it was started again.
    pub restart_count: i32,
    /// As `scheme://id`; empty: none.
    pub container_id: String,
    /// The image's digest; empty: none.
    pub image_id: String,
}

impl ContainerReport {
    /// A container that was never restarted and is not ready.
    pub fn new(name: &str, state: ContainerState) -> Self {
        Self {
            name: name.to_owned(),
            state,
            last: None,
            ready: false,
            restart_count: 0,
            container_id: String::new(),
            image_id: String::new(),
        }
    }
}

/// How a pod is. Each report is whole: it replaces the one before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PodReport {
    /// `None`: made from the containers and their restart policy, as the kubelet does.
    pub phase: Option<Phase>,
    /// A CamelCase word for a pod that is not as it should be; empty: none.
    pub reason: String,
    /// A sentence for it.
    pub message: String,
    /// The pod's addresses, the first one first.
    pub pod_ips: Vec<IpAddr>,
    /// The address of what it runs on; `None`: the node's.
    pub host_ip: Option<IpAddr>,
    /// Containers in any order; one that is left out waits to be created.
    pub containers: Vec<ContainerReport>,
}

impl PodReport {
    /// Whether nothing of the pod runs any more, nor will.
    pub fn has_ended(&self) -> bool {
        match self.phase {
            Some(Phase::Succeeded | Phase::Failed) => true,
            Some(_) => false,
            None => {
                let ended = |c: &ContainerReport| matches!(c.state, ContainerState::Terminated(_));
                !self.containers.is_empty() && self.containers.iter().all(ended)
            }
        }
    }
}
