//! Pods: phase, conditions, readiness, priority, ports, and what they refer to.
//!
//! Upstream: pkg/api/v1/pod, pkg/scheduler/util, k8s.io/component-helpers/scheduling, v1.36.

use crate::conditions;
use crate::resources::is_restartable_init_container;
use k8s_openapi::api::core::v1::{
    Container, ContainerPort, ContainerStatus, Pod, PodCondition, PodSpec, PodStatus, Toleration,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;

pub mod references;
#[cfg(test)]
mod tests;

/// Condition types of pods.
pub mod condition {
    /// The pod has a node.
    pub const POD_SCHEDULED: &str = "PodScheduled";
    /// Sandbox and network stand.
    pub const POD_READY_TO_START_CONTAINERS: &str = "PodReadyToStartContainers";
    /// All init containers have succeeded.
    pub const INITIALIZED: &str = "Initialized";
    /// All containers are ready.
    pub const CONTAINERS_READY: &str = "ContainersReady";
    /// The pod serves requests.
    pub const READY: &str = "Ready";
    /// The pod is about to be ended by someone else's doing.
    pub const DISRUPTION_TARGET: &str = "DisruptionTarget";
    /// A resize is asked for and not yet granted.
    pub const RESIZE_PENDING: &str = "PodResizePending";
    /// A resize is being carried out.
    pub const RESIZE_IN_PROGRESS: &str = "PodResizeInProgress";
}

/// The priority from which a pod is critical for the whole cluster.
pub const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;
/// The priority of `system-node-critical`.
pub const SYSTEM_NODE_CRITICAL_PRIORITY: i32 = SYSTEM_CRITICAL_PRIORITY + 1000;

/// On a static pod's mirror in the API: the hash of the pod it mirrors.
pub const CONFIG_MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// On a pod inside the kubelet: where it came from (`file`, `http`, `api`).
pub const CONFIG_SOURCE_ANNOTATION: &str = "kubernetes.io/config.source";
/// On a static pod: the hash of its manifest, which stands in for a uid.
pub const CONFIG_HASH_ANNOTATION: &str = "kubernetes.io/config.hash";

/// The pod's namespace; empty where it has none.
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

/// The pod's name.
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// The pod's uid.
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// `namespace/name`, for messages.
pub fn key(pod: &Pod) -> String {
    format!("{}/{}", namespace(pod), name(pod))
}

/// The node the pod is bound to; `None` while it waits for one.
pub fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.node_name.as_deref())
        .filter(|name| !name.is_empty())
}

/// The node that preemption made room on for this pod.
pub fn nominated_node_name(pod: &Pod) -> Option<&str> {
    pod.status
        .as_ref()
        .and_then(|status| status.nominated_node_name.as_deref())
        .filter(|name| !name.is_empty())
}

/// The phase; empty where there is none yet.
pub fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

/// Whether all containers have ended for good: `Succeeded` or `Failed`.
pub fn is_terminal(pod: &Pod) -> bool {
    is_phase_terminal(phase(pod))
}

/// Whether this is `Succeeded` or `Failed`.
pub fn is_phase_terminal(phase: &str) -> bool {
    phase == "Succeeded" || phase == "Failed"
}

/// Whether the pod's deletion has been asked for.
pub fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether the pod counts for its controller: neither ended nor being deleted (upstream: controller.IsPodActive).
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !is_terminating(pod)
}

/// Whether the pod mirrors a static one.
pub fn is_mirror_pod(pod: &Pod) -> bool {
    annotation(pod, CONFIG_MIRROR_ANNOTATION).is_some()
}

/// Whether the pod came to the kubelet by another way than the API.
pub fn is_static_pod(pod: &Pod) -> bool {
    annotation(pod, CONFIG_SOURCE_ANNOTATION).is_some_and(|source| source != "api")
}

/// Whether the node must keep running this pod: static, mirror, or of critical priority.
pub fn is_critical_pod(pod: &Pod) -> bool {
    is_static_pod(pod) || is_mirror_pod(pod) || pod_priority(pod) >= SYSTEM_CRITICAL_PRIORITY
}

/// The value of one of the pod's annotations.
pub fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(key))
        .map(String::as_str)
}

/// The value of one of the pod's labels.
pub fn label<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata
        .labels
        .as_ref()
        .and_then(|all| all.get(key))
        .map(String::as_str)
}

/// The pod's priority; zero where none was resolved.
pub fn pod_priority(pod: &Pod) -> i32 {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.priority)
        .unwrap_or(0)
}

/// The condition of this type.
pub fn get_pod_condition<'a>(status: &'a PodStatus, type_: &str) -> Option<&'a PodCondition> {
    conditions::find(status.conditions.iter().flatten(), type_)
}

/// The pod's condition of this type.
pub fn get_condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()
        .and_then(|status| get_pod_condition(status, type_))
}

/// Puts a condition in its place; see [`conditions::set`].
pub fn update_pod_condition(status: &mut PodStatus, condition: PodCondition, now: &Time) -> bool {
    conditions::set(status.conditions.get_or_insert_default(), condition, now)
}

/// Whether the pod says that it is ready.
pub fn is_pod_ready(pod: &Pod) -> bool {
    get_condition(pod, condition::READY).is_some_and(|condition| condition.status == "True")
}

/// Whether the pod says that all its containers are ready.
pub fn is_containers_ready(pod: &Pod) -> bool {
    get_condition(pod, condition::CONTAINERS_READY)
        .is_some_and(|condition| condition.status == "True")
}

/// Whether the pod has been ready for at least `min_ready_seconds`.
pub fn is_pod_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    is_pod_ready(pod)
        && (min_ready_seconds == 0
            || available_at(pod, min_ready_seconds).is_some_and(|at| at <= now))
}

/// When a ready pod will have been ready for `min_ready_seconds`; `None` where it is not ready or does not say since when.
pub fn available_at(pod: &Pod, min_ready_seconds: i32) -> Option<Timestamp> {
    let ready =
        get_condition(pod, condition::READY).filter(|condition| condition.status == "True")?;
    let since = ready.last_transition_time.as_ref()?.0;
    since
        .checked_add(SignedDuration::from_secs(min_ready_seconds.into()))
        .ok()
}

/// When the pod started, or `now` where it has not yet.
pub fn start_time(pod: &Pod, now: Timestamp) -> Timestamp {
    pod.status
        .as_ref()
        .and_then(|status| status.start_time.as_ref())
        .map_or(now, |time| time.0)
}

/// Whether the first pod matters more: a higher priority, or the same and an earlier start.
pub fn more_important_pod(first: &Pod, second: &Pod, now: Timestamp) -> bool {
    match pod_priority(first).cmp(&pod_priority(second)) {
        std::cmp::Ordering::Equal => start_time(first, now) < start_time(second, now),
        order => order.is_gt(),
    }
}

/// The pod's tolerations.
pub fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.tolerations.as_deref())
        .unwrap_or_default()
}

/// Init and regular containers, in this order.
pub fn init_and_containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
}

/// The ports on the node that the pod occupies: those of its regular containers and sidecars.
pub fn host_ports(pod: &Pod) -> Vec<&ContainerPort> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| is_restartable_init_container(container));
    let containers = spec.containers.iter().chain(sidecars);
    containers
        .flat_map(|container| container.ports.iter().flatten())
        .filter(|port| port.host_port.unwrap_or(0) > 0)
        .collect()
}

/// The status of the container of this name.
pub fn get_container_status<'a>(
    statuses: &'a [ContainerStatus],
    name: &str,
) -> Option<&'a ContainerStatus> {
    statuses.iter().find(|status| status.name == name)
}

/// All container statuses: init, regular, ephemeral.
pub fn all_container_statuses(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    let init = status.init_container_statuses.iter().flatten();
    let ephemeral = status.ephemeral_container_statuses.iter().flatten();
    init.chain(status.container_statuses.iter().flatten())
        .chain(ephemeral)
}

/// Whether a container that ended with `exit_code` is to be started again: its own rules first, then its own policy, then
/// the pod's.
pub fn container_should_restart(spec: &PodSpec, container: &Container, exit_code: i32) -> bool {
    let by_policy = |policy: &str| match policy {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    };
    if let Some(policy) = &container.restart_policy {
        for rule in container.restart_policy_rules.iter().flatten() {
            let Some(exit_codes) = &rule.exit_codes else {
                continue;
            };
            let listed = exit_codes
                .values
                .iter()
                .flatten()
                .any(|code| *code == exit_code);
            let matches = match exit_codes.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                _ => false,
            };
            if matches && rule.action == "Restart" {
                return true;
            }
        }
        return by_policy(policy);
    }
    by_policy(spec.restart_policy.as_deref().unwrap_or("Always"))
}

/// The pod's addresses, the primary one first.
pub fn pod_ips(pod: &Pod) -> Vec<&str> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let all: Vec<&str> = status
        .pod_ips
        .iter()
        .flatten()
        .map(|ip| ip.ip.as_str())
        .filter(|ip| !ip.is_empty())
        .collect();
    if all.is_empty() {
        status
            .pod_ip
            .as_deref()
            .filter(|ip| !ip.is_empty())
            .into_iter()
            .collect()
    } else {
        all
    }
}

/// Whether the pod uses the node's own network.
pub fn is_host_network(pod: &Pod) -> bool {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.host_network)
        .unwrap_or(false)
}

/// The names of the volume claims the pod mounts; generic ephemeral volumes count under the name they will be made with.
pub fn volume_claim_names(pod: &Pod) -> BTreeSet<String> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(
            |volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
                (Some(claim), _) => Some(claim.claim_name.clone()),
                (None, Some(_)) => Some(format!("{}-{}", name(pod), volume.name)),
                _ => None,
            },
        )
        .collect()
}
