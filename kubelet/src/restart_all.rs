//! Container restart rules with action `RestartAllContainers`: the pod starts over in its sandbox.
//!
//! Owns: when that is under way and when it is done; pure. Upstream: `ShouldAllContainersRestart`,
//! `AllContainersRestartCleanedUp` in `pkg/kubelet/container/helpers.go`, v1.36.
//!
//! ```text
//! a container exits by such a rule -> AllContainersRestarting=True -> all are killed and removed, the one that exited last
//!   -> AllContainersRestarting=False -> the pod starts as a new one, init containers first
//! ```

use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, PodStatus as ApiPodStatus};
use runtime::api::ContainerState;

use crate::pod;
use crate::pod_status::PodStatus;

/// The type of the condition.
pub const CONDITION: &str = "AllContainersRestarting";
/// Reason of waiting containers, and of the ends that the restart brought about.
pub const REASON: &str = "RestartingAllContainers";
/// Their message.
pub const MESSAGE: &str = "The container is removed because RestartAllContainers in place";

fn all_containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod::init_containers(pod).iter().chain(pod::containers(pod))
}

/// Does the container's exit with this code start the whole pod over?
pub fn is_source(container: &Container, exit_code: i32) -> bool {
    pod::matching_restart_rule(container, exit_code)
        .is_some_and(|rule| rule.action == pod::RESTART_ALL_CONTAINERS)
}

/// Is the condition told as `True`?
pub fn is_told(status: &ApiPodStatus) -> bool {
    let conditions = status.conditions.iter().flatten();
    conditions
        .into_iter()
        .any(|c| c.type_ == CONDITION && c.status == "True")
}

/// Is the pod to start over: was it said so, or did a container exit by such a rule? `observed`: `None` where only what was
/// told counts.
pub fn should_restart(pod: &Pod, observed: Option<&PodStatus>, told: &ApiPodStatus) -> bool {
    if is_told(told) {
        return true;
    }
    if !pod::all_containers_could_restart(pod) {
        return false;
    }
    let statuses = || {
        told.init_container_statuses
            .iter()
            .chain(told.container_statuses.iter())
            .flatten()
    };
    all_containers(pod).any(|c| {
        if let Some(observed) = observed {
            return observed
                .find_container_status_by_name(&c.name)
                .is_some_and(|s| s.state == ContainerState::Exited && is_source(c, s.exit_code));
        }
        statuses()
            .filter(|s| s.name == c.name)
            .filter_map(|s| s.state.as_ref()?.terminated.as_ref())
            .any(|t| is_source(c, t.exit_code))
    })
}

/// Is nothing of the pod's containers left?
pub fn is_cleaned_up(pod: &Pod, observed: &PodStatus) -> bool {
    all_containers(pod).all(|c| observed.find_container_status_by_name(&c.name).is_none())
}

/// The condition; `None` for a pod without such a rule.
pub fn condition(
    pod: &Pod,
    observed: &PodStatus,
    told: &ApiPodStatus,
    phase: &str,
) -> Option<PodCondition> {
    if !pod::all_containers_could_restart(pod) {
        return None;
    }
    let make = |status: &str, reason: Option<&str>, message: Option<&str>| PodCondition {
        type_: CONDITION.to_owned(),
        status: status.to_owned(),
        reason: reason.map(str::to_owned),
        message: message.map(str::to_owned),
        ..PodCondition::default()
    };
    Some(match phase {
        "Succeeded" => make("False", Some("PodCompleted"), None),
        "Failed" => make("False", Some("PodFailed"), None),
        _ if should_restart(pod, Some(observed), told) && !is_cleaned_up(pod, observed) => make(
            "True",
            Some("RestartAllContainersStarted"),
            Some("container exited with restart policy rule"),
        ),
        _ => make("False", None, None),
    })
}

/// A container to take away before the pod starts over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerToReset {
    pub container_id: String,
    pub name: String,
    /// It still runs.
    pub kill: bool,
}

/// Every instance of every container: regular ones first, those whose exit was the cause last, so that a kubelet that is
/// restarted on the way still knows.
pub fn containers_to_reset(pod: &Pod, observed: &PodStatus) -> Vec<ContainerToReset> {
    let (mut sources, mut targets) = (vec![], vec![]);
    for list in [pod::containers(pod), pod::init_containers(pod)] {
        for container in list {
            for cs in &observed.containers {
                if cs.metadata.name != container.name {
                    continue;
                }
                let exited = cs.state == ContainerState::Exited;
                let reset = ContainerToReset {
                    container_id: cs.id.clone(),
                    name: container.name.clone(),
                    kill: !exited,
                };
                if exited && is_source(container, cs.exit_code) {
                    sources.push(reset);
                } else {
                    targets.push(reset);
                }
            }
        }
    }
    targets.extend(sources);
    targets
}
