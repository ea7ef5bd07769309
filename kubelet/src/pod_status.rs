//! What the runtime knows of one pod: its sandboxes and containers, newest first.
//!
//! Owns: grouping the runtime's lists by pod UID. Never asks the runtime by itself and never holds API
//! objects. Upstream: `kubecontainer.PodStatus`, v1.36.

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;

use k8s_openapi::api::core::v1::Pod;
use runtime::api::{
    ContainerState, ContainerStatus, NamespaceMode, PodSandboxStatus, SandboxState,
};

use crate::pod::{self, label};

/// All that the runtime knows of one pod UID.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodStatus {
    pub uid: String,
    pub name: String,
    pub namespace: String,
    /// Newest first.
    pub sandboxes: Vec<PodSandboxStatus>,
    /// Every instance, dead ones included; newest first. Not changed once one was looked for by its name.
    pub containers: Vec<ContainerStatus>,
    /// Where the newest of each name is.
    pub newest: Newest,
}

/// Places by name, made when they are first asked for: a pod may have thousands of containers, and each is looked for by its name. Says nothing
/// of its own: any two are equal, and a copy is empty.
#[derive(Debug, Default)]
pub struct Newest(OnceLock<HashMap<String, usize>>);

impl Clone for Newest {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Newest {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// Fewer are sooner looked through than put in order.
const FEW: usize = 16;

/// Does the pod need another sandbox? `(changed, attempt, id of the sandbox in place)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxChange {
    pub changed: bool,
    /// Why, for people; empty: it is as it should be. Upstream: `PodSandboxNotReadyMsg…`.
    pub why: &'static str,
    pub attempt: u32,
    /// Empty when there is none, or when it must not be used again.
    pub sandbox_id: String,
}

impl PodStatus {
    /// Groups the runtime's lists by pod UID.
    pub fn group(
        sandboxes: Vec<PodSandboxStatus>,
        containers: Vec<ContainerStatus>,
    ) -> BTreeMap<String, PodStatus> {
        let mut pods: BTreeMap<String, PodStatus> = BTreeMap::new();
        let mut uid_of = BTreeMap::new();
        for sandbox in sandboxes {
            uid_of.insert(sandbox.id.clone(), sandbox.metadata.uid.clone());
            let pod = pods.entry(sandbox.metadata.uid.clone()).or_default();
            pod.uid = sandbox.metadata.uid.clone();
            pod.name = sandbox.metadata.name.clone();
            pod.namespace = sandbox.metadata.namespace.clone();
            pod.sandboxes.push(sandbox);
        }
        for container in containers {
            let label = |key: &str| container.labels.get(key).cloned().unwrap_or_default();
            let uid = match uid_of.get(&container.sandbox_id) {
                Some(uid) => uid.clone(),
                None => label(label::POD_UID),
            };
            if uid.is_empty() {
                continue;
            }
            let pod = pods.entry(uid.clone()).or_default();
            if pod.uid.is_empty() {
                pod.uid = uid;
                pod.name = label(label::POD_NAME);
                pod.namespace = label(label::POD_NAMESPACE);
            }
            pod.containers.push(container);
        }
        for pod in pods.values_mut() {
            pod.sandboxes.sort_by(|a, b| {
                (b.created_at, b.metadata.attempt).cmp(&(a.created_at, a.metadata.attempt))
            });
            pod.containers.sort_by(|a, b| {
                (b.created_at, b.metadata.attempt).cmp(&(a.created_at, a.metadata.attempt))
            });
        }
        pods
    }

    /// The newest instance of the container of that name.
    pub fn find_container_status_by_name(&self, name: &str) -> Option<&ContainerStatus> {
        if self.containers.len() <= FEW {
            return self.containers.iter().find(|c| c.metadata.name == name);
        }
        let newest = self.newest.0.get_or_init(|| {
            // From the oldest on: a newer one takes its place.
            let all = self.containers.iter().enumerate().rev();
            all.map(|(place, c)| (c.metadata.name.clone(), place))
                .collect()
        });
        self.containers.get(*newest.get(name)?)
    }

    pub fn running_containers(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.containers
            .iter()
            .filter(|c| c.state == ContainerState::Running)
    }

    /// Is anything of the pod still alive: a container that runs, or may run?
    pub fn has_live_container(&self) -> bool {
        self.containers
            .iter()
            .any(|c| matches!(c.state, ContainerState::Running | ContainerState::Unknown))
    }

    pub fn has_ready_sandbox(&self) -> bool {
        self.sandboxes
            .iter()
            .any(|s| s.state == SandboxState::Ready)
    }

    /// The addresses of the newest sandbox, if it is ready.
    pub fn ips(&self) -> &[String] {
        match self.sandboxes.first() {
            Some(s) if s.state == SandboxState::Ready => &s.ips,
            _ => &[],
        }
    }

    /// Containers of the newest sandbox.
    pub fn active_containers(&self) -> impl Iterator<Item = &ContainerStatus> {
        let id = self
            .sandboxes
            .first()
            .map(|s| s.id.as_str())
            .unwrap_or_default();
        self.containers.iter().filter(move |c| c.sandbox_id == id)
    }

    /// The newest instance of the container of that name in the newest sandbox.
    pub fn find_active_container_status_by_name(&self, name: &str) -> Option<&ContainerStatus> {
        self.active_containers().find(|c| c.metadata.name == name)
    }

    /// Must a new sandbox be made for the pod, and what is in the way?
    pub fn pod_sandbox_changed(&self, pod: &Pod) -> SandboxChange {
        let change = |why: &'static str, attempt, sandbox_id: &str| SandboxChange {
            changed: !why.is_empty(),
            why,
            attempt,
            sandbox_id: sandbox_id.to_owned(),
        };
        let Some(newest) = self.sandboxes.first() else {
            return change("no pod sandbox exists", 0, "");
        };
        let ready = self
            .sandboxes
            .iter()
            .filter(|s| s.state == SandboxState::Ready)
            .count();
        let next = newest.metadata.attempt + 1;
        if ready > 1 {
            let why = "multiple pod sandboxes are ready and need to be reconciled";
            return change(why, next, &newest.id);
        }
        if newest.state != SandboxState::Ready {
            return change("pod sandbox is not ready", next, &newest.id);
        }
        let wanted = if pod::is_host_network(pod) {
            NamespaceMode::Node
        } else {
            NamespaceMode::Pod
        };
        if newest.namespaces.network != wanted {
            let why = "network namespace mode changed and sandbox needs to be recreated";
            return change(why, next, "");
        }
        if wanted == NamespaceMode::Pod && newest.ips.is_empty() {
            return change("pod sandbox has no IP address", next, &newest.id);
        }
        change("", newest.metadata.attempt, &newest.id)
    }

    /// Was any regular container of the pod ever created? Then its init containers are done.
    pub fn has_any_regular_container_created(&self, pod: &Pod) -> bool {
        pod::containers(pod)
            .iter()
            .any(|c| self.find_container_status_by_name(&c.name).is_some())
    }

    /// Was any regular container created in the newest sandbox?
    pub fn has_any_active_regular_container_started(&self, pod: &Pod) -> bool {
        self.active_containers().any(|status| {
            pod::containers(pod)
                .iter()
                .any(|c| c.name == status.metadata.name)
        })
    }
}

/// The hash the container was made with; `None` for a container that carries none.
pub fn container_hash(status: &ContainerStatus) -> Option<u64> {
    let value = status
        .annotations
        .get(label::CONTAINER_HASH)
        .or_else(|| status.labels.get(label::CONTAINER_HASH))?;
    u64::from_str_radix(value, 16).ok()
}

/// Must the container be started (again) by the pod's rules? Back-off is not looked at here.
pub fn should_container_be_restarted(
    container: &k8s_openapi::api::core::v1::Container,
    pod: &Pod,
    status: &PodStatus,
) -> bool {
    if pod::is_deleted(pod) {
        return false;
    }
    match status.find_container_status_by_name(&container.name) {
        None => true,
        Some(s) => match s.state {
            ContainerState::Running => false,
            ContainerState::Unknown | ContainerState::Created => true,
            ContainerState::Exited => pod::container_should_restart(container, pod, s.exit_code),
        },
    }
}
