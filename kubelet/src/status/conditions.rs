//! The pod conditions that the kubelet owns.
//!
//! Owns: PodReadyToStartContainers, Initialized, ContainersReady, Ready; pure. Times of transition are the
//! status manager's. Upstream: `pkg/kubelet/status/generate.go`, v1.36.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodStatus};

use crate::pod;

/// The types of condition that only the kubelet writes; all others are kept as the API server has them.
pub const KUBELET_CONDITIONS: &[&str] = &[
    "PodScheduled",
    "Ready",
    "Initialized",
    "ContainersReady",
    "PodReadyToStartContainers",
    "PodResizePending",
    "PodResizeInProgress",
    "AllContainersRestarting",
];

pub(super) fn condition(
    pod: &Pod,
    type_: &str,
    status: bool,
    reason: Option<&str>,
    message: Option<String>,
) -> PodCondition {
    PodCondition {
        type_: type_.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: reason.map(str::to_owned),
        message,
        observed_generation: pod.metadata.generation,
        ..PodCondition::default()
    }
}

/// `[a b]`, as Go prints a list.
fn list(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

pub fn containers_ready(pod: &Pod, statuses: &[ContainerStatus], phase: &str) -> PodCondition {
    let verdict =
        |status, reason, message| condition(pod, "ContainersReady", status, reason, message);
    if statuses.is_empty() {
        return verdict(false, Some("UnknownContainerStatuses"), None);
    }
    let (mut unknown, mut unready) = (vec![], vec![]);
    let sidecars = pod::init_containers(pod)
        .iter()
        .filter(|c| pod::is_restartable_init(c));
    for container in sidecars.chain(pod::containers(pod)) {
        match pod::container_status(statuses, &container.name) {
            None => unknown.push(container.name.as_str()),
            Some(s) if !s.ready => unready.push(container.name.as_str()),
            Some(_) => {}
        }
    }
    if phase == "Succeeded" && unknown.is_empty() {
        return verdict(false, Some("PodCompleted"), None);
    }
    if phase == "Failed" {
        return verdict(false, Some("PodFailed"), None);
    }
    let mut messages = vec![];
    if !unknown.is_empty() {
        messages.push(format!(
            "containers with unknown status: {}",
            list(&unknown)
        ));
    }
    if !unready.is_empty() {
        messages.push(format!(
            "containers with unready status: {}",
            list(&unready)
        ));
    }
    if messages.is_empty() {
        verdict(true, None, None)
    } else {
        verdict(false, Some("ContainersNotReady"), Some(messages.join(", ")))
    }
}

/// `others`: the conditions that readiness gates may name.
pub fn ready(
    pod: &Pod,
    others: &[PodCondition],
    statuses: &[ContainerStatus],
    phase: &str,
) -> PodCondition {
    let containers = containers_ready(pod, statuses, phase);
    if containers.status != "True" {
        return PodCondition {
            type_: "Ready".to_owned(),
            ..containers
        };
    }
    let gates = pod
        .spec
        .as_ref()
        .and_then(|s| s.readiness_gates.as_deref())
        .unwrap_or_default();
    let mut messages = vec![];
    for gate in gates {
        let kind = &gate.condition_type;
        match others.iter().find(|c| c.type_ == *kind) {
            None => messages.push(format!(
                "corresponding condition of pod readiness gate {kind:?} does not exist."
            )),
            Some(c) if c.status != "True" => messages.push(format!(
                "the status of pod readiness gate {kind:?} is not \"True\", but {}",
                c.status
            )),
            Some(_) => {}
        }
    }
    if messages.is_empty() {
        condition(pod, "Ready", true, None, None)
    } else {
        condition(
            pod,
            "Ready",
            false,
            Some("ReadinessGatesNotReady"),
            Some(messages.join(", ")),
        )
    }
}

/// `old`: what was said before; a pod that was initialized stays so while it starts over in place.
pub fn initialized(
    pod: &Pod,
    statuses: &[ContainerStatus],
    phase: &str,
    old: &PodStatus,
) -> PodCondition {
    let verdict = |status, reason, message| condition(pod, "Initialized", status, reason, message);
    let init = pod::init_containers(pod);
    if statuses.is_empty() && !init.is_empty() {
        return verdict(false, Some("UnknownContainerStatuses"), None);
    }
    let (mut unknown, mut incomplete) = (vec![], vec![]);
    for container in init {
        match pod::container_status(statuses, &container.name) {
            None => unknown.push(container.name.as_str()),
            Some(s) => {
                let done = if pod::is_restartable_init(container) {
                    s.started == Some(true)
                } else {
                    s.ready
                };
                if !done {
                    incomplete.push(container.name.as_str());
                }
            }
        }
    }
    if phase == "Succeeded" && unknown.is_empty() {
        return verdict(true, Some("PodCompleted"), None);
    }
    if has_any_regular_container_started(pod, statuses) {
        return verdict(true, None, None);
    }
    let mut messages = vec![];
    if !unknown.is_empty() {
        messages.push(format!(
            "containers with unknown status: {}",
            list(&unknown)
        ));
    }
    if !incomplete.is_empty() {
        messages.push(format!(
            "containers with incomplete status: {}",
            list(&incomplete)
        ));
    }
    let was_initialized = pod::all_containers_could_restart(pod)
        && old
            .conditions
            .iter()
            .flatten()
            .any(|c| c.type_ == "Initialized" && c.status == "True");
    if messages.is_empty() || was_initialized {
        verdict(true, None, None)
    } else {
        verdict(
            false,
            Some("ContainersNotInitialized"),
            Some(messages.join(", ")),
        )
    }
}

/// Did any regular container of the pod run, now or before?
pub fn has_any_regular_container_started(pod: &Pod, statuses: &[ContainerStatus]) -> bool {
    pod::containers(pod).iter().any(|c| {
        pod::container_status(statuses, &c.name).is_some_and(|s| {
            let ran = |st: Option<&k8s_openapi::api::core::v1::ContainerState>| {
                st.is_some_and(|st| st.running.is_some() || st.terminated.is_some())
            };
            ran(s.state.as_ref())
                || s.last_state
                    .as_ref()
                    .is_some_and(|l| l.terminated.is_some())
        })
    })
}

/// Does the pod have a sandbox with a network? `missing`: what is wrong with it; empty: it has one.
pub fn ready_to_start_containers(pod: &Pod, missing: &str) -> PodCondition {
    let (reason, message) = match missing {
        "" => (None, None),
        why => (Some("PodSandboxNotReady"), Some(why.to_owned())),
    };
    let type_ = "PodReadyToStartContainers";
    condition(pod, type_, missing.is_empty(), reason, message)
}
