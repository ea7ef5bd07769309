//! Container statuses: what the runtime reports, what was known before, and why a start failed.
//!
//! Owns: [`convert_to_api_container_statuses`], pure. Upstream: `convertToAPIContainerStatuses` in
//! `pkg/kubelet/kubelet_pods.go`, v1.36.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, ContainerUser, LinuxContainerUser, Pod,
    VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use runtime::api as cri;

use crate::pod::{self, ContainerKind};
use crate::pod_status::{PodStatus, should_container_be_restarted};
use crate::restart_all;

/// Why the last attempt to start a container failed: the waiting reason and its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartFailure {
    pub reason: String,
    pub message: String,
}

/// The scheme of container ids in the API, before `://`.
pub const CONTAINER_ID_SCHEME: &str = runtime::api::RUNTIME_NAME;

/// `youki://<id>`
pub fn container_id(id: &str) -> String {
    format!("{CONTAINER_ID_SCHEME}://{id}")
}

fn time(t: Option<jiff::Timestamp>) -> Option<Time> {
    // metav1.Time has a resolution of one second.
    let t = t.unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    Some(Time(
        jiff::Timestamp::from_second(t.as_second()).unwrap_or(t),
    ))
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message,
        }),
        ..ContainerState::default()
    }
}

fn terminated(t: ContainerStateTerminated) -> ContainerState {
    ContainerState {
        terminated: Some(t),
        ..ContainerState::default()
    }
}

/// A container that was running when last seen and of which no trace is left.
fn lost() -> ContainerStateTerminated {
    ContainerStateTerminated {
        reason: Some("ContainerStatusUnknown".to_owned()),
        message: Some(
            "The container could not be located when the pod was deleted.  The container used to be Running"
                .to_owned(),
        ),
        exit_code: 137,
        ..ContainerStateTerminated::default()
    }
}

fn volume_mounts(container: &Container, supports_rro: bool) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_deref().unwrap_or_default();
    if mounts.is_empty() {
        return None;
    }
    Some(
        mounts
            .iter()
            .map(|m| {
                let read_only = m.read_only.unwrap_or(false);
                let enabled = match m.recursive_read_only.as_deref() {
                    Some("Enabled") => true,
                    Some("IfPossible") => supports_rro,
                    _ => false,
                };
                VolumeMountStatus {
                    name: m.name.clone(),
                    mount_path: m.mount_path.clone(),
                    read_only: read_only.then_some(true),
                    recursive_read_only: read_only
                        .then(|| if enabled { "Enabled" } else { "Disabled" }.to_owned()),
                    volume_status: None,
                }
            })
            .collect(),
    )
}

fn convert(
    spec: &Container,
    cs: &cri::ContainerStatus,
    old: Option<&ContainerStatus>,
    actuated: bool,
) -> ContainerStatus {
    let id = container_id(&cs.id);
    let mut status = ContainerStatus {
        name: cs.metadata.name.clone(),
        restart_count: i32::try_from(cs.metadata.attempt).unwrap_or(i32::MAX),
        image: cs.image.clone(),
        image_id: if cs.image_ref.is_empty() {
            cs.image_id.clone()
        } else {
            cs.image_ref.clone()
        },
        container_id: Some(id.clone()),
        ..ContainerStatus::default()
    };
    if let Some(old) = old {
        status.restart_count = status.restart_count.max(old.restart_count);
        let ended = old.state.as_ref().and_then(|s| s.terminated.clone());
        if old.container_id.as_deref() != Some(&id) && ended.is_some() {
            status.last_state = ended.map(terminated);
        } else if old
            .last_state
            .as_ref()
            .is_some_and(|s| s.terminated.is_some())
        {
            status.last_state = old.last_state.clone();
        }
    }
    let state = match cs.state {
        cri::ContainerState::Running => ContainerState {
            running: Some(ContainerStateRunning {
                started_at: time(cs.started_at),
            }),
            ..ContainerState::default()
        },
        cri::ContainerState::Created => ContainerState {
            waiting: Some(ContainerStateWaiting::default()),
            ..ContainerState::default()
        },
        cri::ContainerState::Exited => terminated(ContainerStateTerminated {
            exit_code: cs.exit_code,
            reason: (!cs.reason.is_empty()).then(|| cs.reason.clone()),
            message: (!cs.message.is_empty()).then(|| cs.message.clone()),
            started_at: time(cs.started_at),
            finished_at: time(cs.finished_at),
            container_id: Some(id),
            ..ContainerStateTerminated::default()
        }),
        cri::ContainerState::Unknown => {
            match old
                .and_then(|o| o.state.as_ref())
                .and_then(|s| s.running.as_ref())
            {
                Some(running) => terminated(ContainerStateTerminated {
                    started_at: running.started_at.clone(),
                    container_id: Some(id),
                    message: Some(
                        "The container could not be located when the pod was terminated".to_owned(),
                    ),
                    ..lost()
                }),
                None => ContainerState {
                    waiting: Some(ContainerStateWaiting::default()),
                    ..ContainerState::default()
                },
            }
        }
    };
    status.state = Some(state);
    status.resources = crate::resize::shown_resources(spec, actuated, old);
    status.allocated_resources = spec.resources.as_ref().and_then(|r| r.requests.clone());
    status.user = cs.user.as_ref().map(|(uid, gid, groups)| ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: i64::from(*uid),
            gid: i64::from(*gid),
            supplemental_groups: Some(groups.iter().map(|g| i64::from(*g)).collect()),
        }),
    });
    status
}

/// Everything a container's status is made from, beside its spec.
pub struct ContainerStatusInput<'a> {
    pub pod: &'a Pod,
    pub status: &'a PodStatus,
    pub start_failures: &'a HashMap<String, StartFailure>,
    /// All containers are being taken away for the pod to start over.
    pub restarting: bool,
    pub supports_rro: bool,
    /// Gate `ContainerStopSignals`: what stops a container is told.
    pub stop_signals: bool,
    /// Does the runtime enforce what the pod was granted?
    pub actuated: &'a (dyn Fn(&Container, &cri::ContainerStatus) -> bool + Sync),
}

/// No two have one name.
pub fn by_name(specs: &[Container]) -> HashMap<&str, &Container> {
    specs.iter().map(|s| (s.name.as_str(), s)).collect()
}

/// `specs` are all of one kind; the order is the spec's for init containers, else by name.
pub fn convert_to_api_container_statuses(
    input: &ContainerStatusInput<'_>,
    specs: &[Container],
    old: &[ContainerStatus],
    kind: ContainerKind,
) -> Vec<ContainerStatus> {
    let mut statuses: BTreeMap<&str, ContainerStatus> = BTreeMap::new();
    for spec in specs {
        let previous = pod::container_status(old, &spec.name);
        statuses.insert(&spec.name, before_runtime(input, spec, previous, kind));
    }

    // The newest instance gives the state, the one before it the last state.
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let by_name = by_name(specs);
    for cs in &input.status.containers {
        let Some(spec) = by_name.get(cs.metadata.name.as_str()).copied() else {
            continue;
        };
        let count = seen.entry(&spec.name).or_default();
        if *count < 2 {
            let actuated = cs.state != cri::ContainerState::Running || (input.actuated)(spec, cs);
            let mut status = convert(spec, cs, pod::container_status(old, &spec.name), actuated);
            let slot = statuses
                .get_mut(spec.name.as_str())
                .expect("inserted for every spec above");
            if *count == 0 {
                status.volume_mounts = volume_mounts(spec, input.supports_rro);
                if input.stop_signals && !cs.stop_signal.is_empty() {
                    status.stop_signal = Some(cs.stop_signal.clone());
                }
                *slot = status;
            } else {
                slot.last_state = status.state;
            }
        }
        *count += 1;
    }

    for spec in specs {
        explain_wait(
            input,
            spec,
            kind,
            statuses
                .get_mut(spec.name.as_str())
                .expect("inserted above"),
        );
    }
    if matches!(kind, ContainerKind::Init | ContainerKind::Sidecar) {
        specs
            .iter()
            .filter_map(|s| statuses.remove(s.name.as_str()))
            .collect()
    } else {
        statuses.into_values().collect()
    }
}

/// What a container's status is as long as the runtime knows nothing of it: waiting, but for what was told before.
fn before_runtime(
    input: &ContainerStatusInput<'_>,
    spec: &Container,
    previous: Option<&ContainerStatus>,
    kind: ContainerKind,
) -> ContainerStatus {
    let has_init = !pod::init_containers(input.pod).is_empty();
    let default_reason = match has_init {
        true => "PodInitializing",
        false => "ContainerCreating",
    };
    let mut status = ContainerStatus {
        name: spec.name.clone(),
        image: spec.image.clone().unwrap_or_default(),
        state: Some(waiting(default_reason, None)),
        volume_mounts: volume_mounts(spec, input.supports_rro),
        ..ContainerStatus::default()
    };
    if let Some(previous) = previous {
        if previous
            .state
            .as_ref()
            .is_some_and(|s| s.terminated.is_some())
        {
            status = previous.clone();
        } else {
            status.restart_count = previous.restart_count;
            status.last_state = previous.last_state.clone();
        }
        let was_running = previous.state.as_ref().is_some_and(|s| s.running.is_some());
        let found = input
            .status
            .find_container_status_by_name(&spec.name)
            .is_some();
        let remembered = status
            .last_state
            .as_ref()
            .is_some_and(|s| s.terminated.is_some());
        let was_waiting = previous.state.as_ref().is_none_or(|s| s.waiting.is_some());
        if input.restarting && !found && !was_waiting && kind != ContainerKind::Ephemeral {
            // Taken away for the pod to start over; what it ended with is not its own doing.
            status.state = Some(waiting(
                restart_all::REASON,
                Some(restart_all::MESSAGE.to_owned()),
            ));
            status.last_state = Some(terminated(ContainerStateTerminated {
                reason: Some(restart_all::REASON.to_owned()),
                message: Some(restart_all::MESSAGE.to_owned()),
                exit_code: 137,
                ..ContainerStateTerminated::default()
            }));
            status.restart_count = previous.restart_count + 1;
        } else if was_running && !found && !remembered {
            status.last_state = Some(terminated(lost()));
            if !pod::is_deleted(input.pod) {
                status.restart_count += 1;
            }
        }
    }
    status
}

/// A container that is to be started again and could not be: it waits, and says why.
fn explain_wait(
    input: &ContainerStatusInput<'_>,
    spec: &Container,
    kind: ContainerKind,
    status: &mut ContainerStatus,
) {
    if matches!(kind, ContainerKind::Init | ContainerKind::Sidecar) {
        let current = input.status.find_container_status_by_name(&spec.name);
        if current.is_some_and(|c| c.state == cri::ContainerState::Exited && c.exit_code == 0)
            && !pod::is_restartable_init(spec)
        {
            return;
        }
        let is_waiting = status.state.as_ref().is_some_and(|s| s.waiting.is_some());
        if current.is_none()
            && is_waiting
            && !pod::is_restartable_init(spec)
            && input.status.has_any_regular_container_created(input.pod)
        {
            status.state = Some(terminated(ContainerStateTerminated {
                reason: Some("Completed".to_owned()),
                message: Some(
                    "Unable to get init container status from container runtime and pod has been \
                     initialized, treat it as exited normally"
                        .to_owned(),
                ),
                ..ContainerStateTerminated::default()
            }));
            return;
        }
    }
    if kind == ContainerKind::Ephemeral
        && input
            .status
            .find_container_status_by_name(&spec.name)
            .is_some()
    {
        return;
    }
    if !should_container_be_restarted(spec, input.pod, input.status) {
        return;
    }
    let Some(failure) = input.start_failures.get(&spec.name) else {
        return;
    };
    if status
        .state
        .as_ref()
        .is_some_and(|s| s.terminated.is_some())
    {
        status.last_state = status.state.take();
    }
    status.state = Some(waiting(&failure.reason, Some(failure.message.clone())));
}
