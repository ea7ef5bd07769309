//! Init containers and sidecars: which one is next, which ones run again.
//!
//! Owns: the reverse walk over `spec.initContainers` (the newest trace left by an init container says how far
//! the pod came, as older ones may be gone from the runtime). Never touches regular containers.

use k8s_openapi::api::core::v1::{Container, Pod};
use runtime::api::{ContainerState, ContainerStatus};

use super::{
    KillReason, PodActions, ProbeResult, ProbeResults, WantedResources, container_changed, resize,
};
use crate::pod;
use crate::pod_status::{PodStatus, should_container_be_restarted};

/// Adds what init containers and sidecars need; `true` when regular containers may start.
pub(super) fn compute_init_container_actions(
    pod: &Pod,
    status: &PodStatus,
    probes: &dyn ProbeResults,
    wanted: WantedResources<'_>,
    actions: &mut PodActions,
) -> bool {
    let init = pod::init_containers(pod);
    if init.is_empty() {
        return true;
    }
    // In this sandbox: what an earlier one left says nothing, and a regular container that came so far shows that all init
    // containers are done, also those that the runtime has no trace of any more.
    let mut pod_has_initialized = status.has_any_active_regular_container_started(pod);
    let mut previously_initialized = pod_has_initialized;
    // Gathered backwards.
    let mut to_start: Vec<usize> = Vec::new();

    for (i, container) in init.iter().enumerate().rev() {
        let sidecar = pod::is_restartable_init(container);
        let Some(current) = status.find_active_container_status_by_name(&container.name) else {
            if previously_initialized && sidecar {
                to_start.push(i);
            }
            continue;
        };
        if previously_initialized && !sidecar {
            continue;
        }
        let last = i + 1 == init.len();
        match current.state {
            ContainerState::Created => to_start.push(i),
            ContainerState::Running if !sidecar => {}
            ContainerState::Running => {
                if sidecar_is_started(container, current, probes, actions, i, &mut to_start) {
                    if last {
                        pod_has_initialized = true;
                    } else if !previously_initialized {
                        to_start.push(i + 1);
                    }
                    let killed = check_running_sidecar(
                        container,
                        current,
                        probes,
                        actions,
                        i,
                        &mut to_start,
                    );
                    if !killed
                        && let Some((message, reason, _)) =
                            resize(container, current, wanted, actions)
                    {
                        actions.kill(current, message, reason);
                        to_start.push(i);
                    }
                }
            }
            ContainerState::Exited if sidecar => to_start.push(i),
            ContainerState::Exited if current.exit_code != 0 || current.reason == "OOMKilled" => {
                if !should_container_be_restarted(container, pod, status) {
                    actions.kill_pod = true;
                    actions.init_containers_to_start.clear();
                    return false;
                }
                to_start.push(i);
            }
            ContainerState::Exited => {
                if last {
                    pod_has_initialized = true;
                } else {
                    to_start.push(i + 1);
                }
            }
            ContainerState::Unknown => {
                let policy = container
                    .restart_policy
                    .as_deref()
                    .unwrap_or(pod::restart_policy(pod));
                if !sidecar && policy == "Never" {
                    actions.kill_pod = true;
                    actions.init_containers_to_start.clear();
                    return false;
                }
                let message =
                    "Init container is in \"unknown\" state, try killing it before restart";
                actions.kill(current, message.to_owned(), KillReason::Other);
                to_start.push(i);
            }
        }
        // Whatever comes before this one in the spec is done.
        previously_initialized = true;
    }
    if !previously_initialized {
        to_start.push(0);
    }
    to_start.reverse();
    actions.init_containers_to_start = to_start;
    pod_has_initialized
}

/// Has a running sidecar passed its startup probe? If the probe failed for good, it is restarted.
fn sidecar_is_started(
    container: &Container,
    status: &ContainerStatus,
    probes: &dyn ProbeResults,
    actions: &mut PodActions,
    index: usize,
    to_start: &mut Vec<usize>,
) -> bool {
    if container.startup_probe.is_none() {
        return true;
    }
    match probes.startup(&status.id) {
        Some(ProbeResult::Success) => true,
        Some(ProbeResult::Failure) => {
            let message = format!("Init container {} failed startup probe", container.name);
            actions.kill(status, message, KillReason::StartupProbe);
            to_start.push(index);
            false
        }
        _ => false,
    }
}

/// Returns whether it is killed.
fn check_running_sidecar(
    container: &Container,
    status: &ContainerStatus,
    probes: &dyn ProbeResults,
    actions: &mut PodActions,
    index: usize,
    to_start: &mut Vec<usize>,
) -> bool {
    if container_changed(container, status) {
        let message = format!("Init container {} definition changed", container.name);
        actions.kill(status, message, KillReason::Other);
        to_start.push(index);
    } else if container.liveness_probe.is_some()
        && probes.liveness(&status.id) == Some(ProbeResult::Failure)
    {
        let message = format!("Init container {} failed liveness probe", container.name);
        actions.kill(status, message, KillReason::LivenessProbe);
        to_start.push(index);
    } else {
        return false;
    }
    true
}
