//! Decides what a pod needs next: a sandbox, which containers to start, which to kill.
//!
//! Owns: [`compute_pod_actions`], a pure function of the pod, what the runtime knows of it and the probe
//! results. Never talks to the runtime, never looks at back-off or a clock.
//! Upstream: `computePodActions`, `computeInitContainerActions` in `pkg/kubelet/kuberuntime`, v1.36.

mod init;
#[cfg(test)]
mod tests;

use k8s_openapi::api::core::v1::{Container, Pod};
use runtime::api::{ContainerState, ContainerStatus};

use crate::pod;
use crate::pod_status::{PodStatus, container_hash, should_container_be_restarted};
use crate::restart_all::{ContainerToReset, containers_to_reset};

/// The last decisive answer of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    Success,
    Failure,
    Unknown,
}

/// Probe results by container id, as the prober knows them.
pub trait ProbeResults {
    fn liveness(&self, container_id: &str) -> Option<ProbeResult>;
    fn startup(&self, container_id: &str) -> Option<ProbeResult>;
}

/// Why a container is killed; decides its grace period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillReason {
    LivenessProbe,
    StartupProbe,
    FailedPostStartHook,
    /// The pod ends, the definition changed, or the state is unknown.
    Other,
}

/// A container to end before anything else of the pod is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerToKill {
    pub container_id: String,
    pub name: String,
    /// For the `Killing` event; empty: "Stopping container NAME".
    pub message: String,
    pub reason: KillReason,
}

/// What to do, in this order: kill, create the sandbox, ephemeral, init, regular.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodActions {
    /// Stop every container and the sandbox.
    pub kill_pod: bool,
    pub create_sandbox: bool,
    /// The sandbox in place, if any.
    pub sandbox_id: String,
    /// Of the sandbox to create, or of the one in place.
    pub attempt: u32,
    /// Indexes into `spec.ephemeralContainers`, `initContainers`, `containers`.
    pub ephemeral_containers_to_start: Vec<usize>,
    pub init_containers_to_start: Vec<usize>,
    pub containers_to_start: Vec<usize>,
    pub containers_to_kill: Vec<ContainerToKill>,
    /// To be taken away, in this order, because the pod starts over in its sandbox; nothing else is done then.
    pub containers_to_reset: Vec<ContainerToReset>,
    /// Running containers whose resources are to be changed in place.
    pub containers_to_update: Vec<ContainerToUpdate>,
}

/// A running container that gets other resources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerToUpdate {
    pub container_id: String,
    pub name: String,
    pub resources: runtime::api::Resources,
}

/// What the runtime should enforce for a container; `None`: not looked at.
pub type WantedResources<'a> = &'a (dyn Fn(&Container) -> Option<runtime::api::Resources> + Sync);

impl PodActions {
    /// Nothing to do: everything is as it should be, or must stay as it ended.
    pub fn is_empty(&self) -> bool {
        !self.kill_pod
            && !self.create_sandbox
            && self.ephemeral_containers_to_start.is_empty()
            && self.init_containers_to_start.is_empty()
            && self.containers_to_start.is_empty()
            && self.containers_to_kill.is_empty()
            && self.containers_to_reset.is_empty()
            && self.containers_to_update.is_empty()
    }

    fn kill(&mut self, status: &ContainerStatus, message: String, reason: KillReason) {
        self.containers_to_kill.push(ContainerToKill {
            container_id: status.id.clone(),
            name: status.metadata.name.clone(),
            message,
            reason,
        });
    }
}

/// The one decision about a pod that is not being ended. `restart_all`: a container's exit starts the whole pod over.
pub fn compute_pod_actions(
    pod: &Pod,
    status: &PodStatus,
    probes: &dyn ProbeResults,
    wanted: WantedResources<'_>,
    restart_all: bool,
) -> PodActions {
    let sandbox = status.pod_sandbox_changed(pod);
    let mut actions = PodActions {
        kill_pod: sandbox.changed,
        create_sandbox: sandbox.changed,
        sandbox_id: sandbox.sandbox_id,
        attempt: sandbox.attempt,
        ..PodActions::default()
    };
    if restart_all {
        actions.kill_pod = false;
        actions.create_sandbox = false;
        actions.containers_to_reset = containers_to_reset(pod, status);
        return actions;
    }
    if sandbox.changed {
        start_afresh(pod, status, &mut actions);
        return actions;
    }

    actions.ephemeral_containers_to_start = pod::ephemeral_containers(pod)
        .iter()
        .enumerate()
        .filter(|(_, c)| status.find_container_status_by_name(&c.name).is_none())
        .map(|(i, _)| i)
        .collect();

    let has_initialized =
        init::compute_init_container_actions(pod, status, probes, wanted, &mut actions);
    if actions.kill_pod || !has_initialized {
        return actions;
    }

    let mut keep_count = 0;
    for (index, container) in pod::containers(pod).iter().enumerate() {
        let current = status.find_container_status_by_name(&container.name);
        match current {
            Some(running) if running.state == ContainerState::Running => {
                match reason_to_kill(container, pod, running, probes)
                    .or_else(|| resize(container, running, wanted, &mut actions))
                {
                    None => keep_count += 1,
                    Some((mut message, reason, restart)) => {
                        if restart {
                            message.push_str(", will be restarted");
                            actions.containers_to_start.push(index);
                        }
                        actions.kill(running, message, reason);
                    }
                }
            }
            _ => {
                if should_container_be_restarted(container, pod, status) {
                    actions.containers_to_start.push(index);
                    if let Some(unknown) = current.filter(|c| c.state == ContainerState::Unknown) {
                        let message =
                            "Container is in \"unknown\" state, try killing it before restart";
                        actions.kill(unknown, message.to_owned(), KillReason::Other);
                    }
                }
            }
        }
    }
    if keep_count == 0 && actions.containers_to_start.is_empty() {
        actions.kill_pod = true;
        // Sidecars must not keep the pod alive.
        actions.init_containers_to_start.clear();
    }
    actions
}

/// The pod has no usable sandbox: everything starts from the beginning, unless the pod is done.
fn start_afresh(pod: &Pod, status: &PodStatus, actions: &mut PodActions) {
    let never = pod::restart_policy(pod) == "Never";
    if never && actions.attempt != 0 && !status.containers.is_empty() {
        // The pod ran; another sandbox would only confuse. Kill what is left.
        actions.create_sandbox = false;
        return;
    }
    let to_start: Vec<usize> = pod::containers(pod)
        .iter()
        .enumerate()
        .filter(|(_, c)| {
            let policy = c
                .restart_policy
                .as_deref()
                .unwrap_or(pod::restart_policy(pod));
            !(policy == "OnFailure" && container_succeeded(c, status))
        })
        .map(|(i, _)| i)
        .collect();
    if to_start.is_empty() && status.has_any_regular_container_created(pod) {
        actions.create_sandbox = false;
        return;
    }
    if pod::init_containers(pod).is_empty() {
        actions.containers_to_start = to_start;
    } else {
        actions.init_containers_to_start = vec![0];
    }
}

fn container_succeeded(container: &Container, status: &PodStatus) -> bool {
    status
        .find_container_status_by_name(&container.name)
        .is_some_and(|s| s.state == ContainerState::Exited && s.exit_code == 0)
}

fn container_changed(container: &Container, status: &ContainerStatus) -> bool {
    container_hash(status).is_some_and(|hash| hash != pod::hash_container(container))
}

/// (message, reason, start it again afterwards)
fn reason_to_kill(
    container: &Container,
    pod: &Pod,
    status: &ContainerStatus,
    probes: &dyn ProbeResults,
) -> Option<(String, KillReason, bool)> {
    let name = &container.name;
    if container_changed(container, status) {
        return Some((
            format!("Container {name} definition changed"),
            KillReason::Other,
            true,
        ));
    }
    let policy = container
        .restart_policy
        .as_deref()
        .unwrap_or(pod::restart_policy(pod));
    let restart = policy != "Never";
    if probes.liveness(&status.id) == Some(ProbeResult::Failure) {
        return Some((
            format!("Container {name} failed liveness probe"),
            KillReason::LivenessProbe,
            restart,
        ));
    }
    if probes.startup(&status.id) == Some(ProbeResult::Failure) {
        return Some((
            format!("Container {name} failed startup probe"),
            KillReason::StartupProbe,
            restart,
        ));
    }
    None
}

/// The container's resources differ: changed in place, or by a restart where its policy says so.
fn resize(
    container: &Container,
    status: &ContainerStatus,
    wanted: WantedResources<'_>,
    actions: &mut PodActions,
) -> Option<(String, KillReason, bool)> {
    let wanted = wanted(container)?;
    let difference = crate::resize::difference(&wanted, &status.resources);
    let began_with_others = crate::resize::began_with_others(container, &status.annotations);
    if !difference.any() && !began_with_others {
        return None;
    }
    if difference.needs_restart(container) || began_with_others {
        let message = format!("Container {} resize requires restart", container.name);
        return Some((message, KillReason::Other, true));
    }
    actions.containers_to_update.push(ContainerToUpdate {
        container_id: status.id.clone(),
        name: container.name.clone(),
        resources: crate::resize::update_for(&wanted, &status.resources),
    });
    None
}
