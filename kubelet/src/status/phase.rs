//! The phase of a pod, from the statuses of its containers.
//!
//! Owns: [`get_phase`], pure. Upstream: `getPhase` in `pkg/kubelet/kubelet_pods.go`, v1.36.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod};

use crate::pod;
use crate::restart_all;

enum Seen {
    Running,
    /// Ended, now or before the present wait; the exit code.
    Stopped {
        exit_code: i32,
        /// Ended only for the pod to start over.
        for_restart: bool,
    },
    Waiting,
    Unknown,
}

fn seen(status: Option<&ContainerStatus>) -> Seen {
    let Some(state) = status.and_then(|s| s.state.as_ref()) else {
        return Seen::Unknown;
    };
    let stopped = |t: &ContainerStateTerminated| Seen::Stopped {
        exit_code: t.exit_code,
        for_restart: t.reason.as_deref() == Some(restart_all::REASON),
    };
    if state.running.is_some() {
        Seen::Running
    } else if let Some(t) = &state.terminated {
        stopped(t)
    } else if state.waiting.is_some() {
        match status.and_then(|s| s.last_state.as_ref()) {
            Some(ContainerState {
                terminated: Some(t),
                ..
            }) => stopped(t),
            _ => Seen::Waiting,
        }
    } else {
        Seen::Unknown
    }
}

/// `pod_is_terminal`: nothing of the pod will be started again. `pod_has_initialized`: a regular
/// container was created in the present sandbox.
pub fn get_phase(
    pod: &Pod,
    statuses: &[ContainerStatus],
    pod_is_terminal: bool,
    pod_has_initialized: bool,
) -> &'static str {
    let mut pending_init = 0;
    let mut pending_sidecars = 0;
    let mut failed_for_good = 0;
    let (mut unknown, mut running, mut waiting) = (0, 0, 0);
    let (mut stopped, mut stopped_for_good, mut succeeded) = (0, 0, 0);

    for container in pod::init_containers(pod) {
        let status = pod::container_status(statuses, &container.name);
        if pod::is_restartable_init(container) {
            match seen(status) {
                Seen::Running => {
                    running += 1;
                    if status.and_then(|s| s.started) != Some(true) {
                        pending_sidecars += 1;
                    }
                }
                // An ended sidecar does not count.
                Seen::Stopped { .. } => {}
                Seen::Waiting => {
                    pending_sidecars += 1;
                    waiting += 1;
                }
                Seen::Unknown => {
                    if status.is_some() {
                        pending_sidecars += 1;
                    }
                    unknown += 1;
                }
            }
        } else {
            match seen(status) {
                // Done; one that waits to run again in a new sandbox counts for nothing either.
                Seen::Stopped { exit_code: 0, .. } => {}
                Seen::Stopped {
                    exit_code,
                    for_restart,
                } => {
                    if !for_restart && !pod::container_should_restart(container, pod, exit_code) {
                        failed_for_good += 1;
                    }
                }
                _ => pending_init += 1,
            }
        }
    }
    for container in pod::containers(pod) {
        let status = pod::container_status(statuses, &container.name);
        match seen(status) {
            Seen::Running => running += 1,
            Seen::Stopped {
                exit_code,
                for_restart,
            } => {
                stopped += 1;
                if !for_restart && !pod::container_should_restart(container, pod, exit_code) {
                    stopped_for_good += 1;
                }
                let ended = status
                    .and_then(|s| s.state.as_ref())
                    .is_some_and(|s| s.terminated.is_some());
                if ended && exit_code == 0 {
                    succeeded += 1;
                }
            }
            Seen::Waiting => waiting += 1,
            Seen::Unknown => unknown += 1,
        }
    }

    if failed_for_good > 0 {
        return "Failed";
    }
    if pending_init > 0 || (pending_sidecars > 0 && !pod_has_initialized) || waiting > 0 {
        return "Pending";
    }
    if running > 0 && unknown == 0 {
        return "Running";
    }
    if running == 0 && stopped > 0 && unknown == 0 {
        let outcome = if stopped == succeeded {
            "Succeeded"
        } else {
            "Failed"
        };
        if pod_is_terminal && !pod::is_static(pod) {
            return outcome;
        }
        if stopped != stopped_for_good {
            return "Running";
        }
        return outcome;
    }
    "Pending"
}
