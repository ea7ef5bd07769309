//! From a provider's report to `v1.PodStatus`. Pure.
//!
//! Upstream: `getPhase`, `convertStatusToAPIStatus` in `pkg/kubelet/kubelet_pods.go` and `pkg/kubelet/status/generate.go`, v1.36.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{
    ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, HostIP, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kubelet_provider::{ContainerReport, ContainerState, Phase, PodReport, Terminated};

use super::record::{ContainerShape, Record, RestartPolicy};

/// When a condition took its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    type_: &'static str,
    is_true: bool,
    at: Timestamp,
}

const SCHEDULED: &str = "PodScheduled";
const STARTED: &str = "PodReadyToStartContainers";
const INITIALIZED: &str = "Initialized";
const CONTAINERS_READY: &str = "ContainersReady";
const READY: &str = "Ready";
/// In upstream's order.
const TYPES: [&str; 5] = [STARTED, INITIALIZED, READY, CONTAINERS_READY, SCHEDULED];

impl Transition {
    /// Those of conditions that are written here.
    pub fn of(conditions: &[PodCondition]) -> Vec<Self> {
        let find = |type_: &'static str| {
            let found = conditions.iter().find(|c| c.type_ == type_)?;
            Some(Self {
                type_,
                is_true: found.status == "True",
                at: found.last_transition_time.as_ref()?.0,
            })
        };
        TYPES.into_iter().filter_map(find).collect()
    }
}

/// A condition before it has a time.
struct Verdict {
    type_: &'static str,
    /// `Err`: reason and message.
    holds: Result<Option<&'static str>, (&'static str, String)>,
}

/// The status of a pod now, and the times of its conditions.
pub fn generate(
    record: &Record,
    host_ip: Option<IpAddr>,
    now: Timestamp,
) -> (PodStatus, Vec<Transition>) {
    let empty = PodReport::default();
    let report = record.report.as_deref().unwrap_or(&empty);
    let shape = &record.shape;
    let lost = record.lost;
    let statuses = |shapes: &[ContainerShape], init: bool| -> Vec<ContainerStatus> {
        let one = |shape: &ContainerShape| {
            let found = report.containers.iter().find(|c| c.name == *shape.name);
            container(shape, found, init, lost, now)
        };
        shapes.iter().map(one).collect()
    };
    let init = statuses(&shape.init, true);
    let containers = statuses(&shape.containers, false);
    let ephemeral = statuses(&shape.ephemeral, false);
    let phase = record.forced_phase().or(report.phase).unwrap_or_else(|| {
        phase(
            &shape.init,
            &init,
            &containers,
            shape.restart_policy,
            record.terminating.is_some(),
        )
    });
    let verdicts = verdicts(record, report, phase, &init, &containers);
    let (conditions, transitions) = with_times(verdicts, record, now);
    let (reason, message) = reason(record, report);
    let some = |list: Vec<ContainerStatus>| (!list.is_empty()).then_some(list);
    let host = report.host_ip.or(host_ip).map(|ip| ip.to_string());
    let started = record.started.unwrap_or(now);
    let status = PodStatus {
        phase: Some(phase.as_str().to_owned()),
        conditions: Some(conditions),
        reason: (!reason.is_empty()).then_some(reason),
        message: (!message.is_empty()).then_some(message),
        start_time: Some(seconds(started)),
        qos_class: Some(shape.qos.to_owned()),
        observed_generation: shape.generation,
        host_ips: host.clone().map(|ip| vec![HostIP { ip }]),
        host_ip: host,
        pod_ip: report.pod_ips.first().map(ToString::to_string),
        pod_ips: (!report.pod_ips.is_empty()).then(|| {
            let ips = report.pod_ips.iter();
            ips.map(|ip| PodIP { ip: ip.to_string() }).collect()
        }),
        init_container_statuses: some(init),
        container_statuses: some(containers),
        ephemeral_container_statuses: some(ephemeral),
        ..PodStatus::default()
    };
    (status, transitions)
}

fn reason(record: &Record, report: &PodReport) -> (String, String) {
    match (&record.refused, record.forced_phase()) {
        (Some(refusal), _) => (refusal.reason.to_owned(), refusal.message.clone()),
        (None, Some(_)) => (
            "NotFound".to_owned(),
            "The pod was lost: the provider has nothing of it any more".to_owned(),
        ),
        (None, None) => (report.reason.clone(), report.message.clone()),
    }
}

fn seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

fn terminated(t: &Terminated, container_id: &str) -> ContainerStateTerminated {
    let reason = match (t.reason.as_str(), t.exit_code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (reason, _) => reason,
    };
    ContainerStateTerminated {
        exit_code: t.exit_code,
        reason: Some(reason.to_owned()),
        message: (!t.message.is_empty()).then(|| t.message.clone()),
        started_at: Some(seconds(t.started_at)),
        finished_at: Some(seconds(t.finished_at)),
        container_id: (!container_id.is_empty()).then(|| container_id.to_owned()),
        signal: None,
    }
}

fn container(
    shape: &ContainerShape,
    report: Option<&ContainerReport>,
    init: bool,
    lost: bool,
    now: Timestamp,
) -> ContainerStatus {
    let waiting = |reason: &str, message: &str| ApiState {
        waiting: Some(ContainerStateWaiting {
            reason: (!reason.is_empty()).then(|| reason.to_owned()),
            message: (!message.is_empty()).then(|| message.to_owned()),
        }),
        ..ApiState::default()
    };
    let ended = |t: ContainerStateTerminated| ApiState {
        terminated: Some(t),
        ..ApiState::default()
    };
    let id = report.map_or("", |r| r.container_id.as_str());
    let state = match report.map(|r| &r.state) {
        // Upstream says so of what ran and cannot be found any more.
        Some(ContainerState::Running { started_at }) if lost => {
            ended(ContainerStateTerminated {
                exit_code: 137,
                reason: Some("ContainerStatusUnknown".to_owned()),
                message: Some("The container could not be located when the pod was deleted.  The container used to be Running".to_owned()),
                started_at: Some(seconds(*started_at)),
                finished_at: Some(seconds(now)),
                ..ContainerStateTerminated::default()
            })
        }
        Some(ContainerState::Running { started_at }) => ApiState {
            running: Some(ContainerStateRunning {
                started_at: Some(seconds(*started_at)),
            }),
            ..ApiState::default()
        },
        Some(ContainerState::Terminated(t)) => ended(terminated(t, id)),
        Some(ContainerState::Waiting { reason, message }) => waiting(reason, message),
        None if init => waiting("PodInitializing", ""),
        None => waiting("ContainerCreating", ""),
    };
    let running = state.running.is_some();
    let last = report.and_then(|r| r.last.as_ref());
    ContainerStatus {
        name: shape.name.to_string(),
        image: shape.image.to_string(),
        image_id: report.map_or(String::new(), |r| r.image_id.clone()),
        container_id: (!id.is_empty()).then(|| id.to_owned()),
        ready: !lost && report.is_some_and(|r| r.ready),
        started: Some(running),
        restart_count: report.map_or(0, |r| r.restart_count),
        last_state: last.map(|t| ended(terminated(t, ""))),
        state: Some(state),
        ..ContainerStatus::default()
    }
}

fn exit_code(status: &ContainerStatus) -> Option<i32> {
    let state = status.state.as_ref()?;
    state.terminated.as_ref().map(|t| t.exit_code)
}

fn is_running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.running.is_some())
}

/// An init container that lets the next one begin.
fn is_done(shape: &ContainerShape, status: &ContainerStatus) -> bool {
    match shape.sidecar {
        true => is_running(status) || exit_code(status).is_some(),
        false => exit_code(status) == Some(0),
    }
}

fn phase(
    shapes: &[ContainerShape],
    init: &[ContainerStatus],
    containers: &[ContainerStatus],
    policy: RestartPolicy,
    terminating: bool,
) -> Phase {
    let failed_init = shapes.iter().zip(init).any(|(shape, status)| {
        let failed = exit_code(status).is_some_and(|code| code != 0);
        failed && !shape.sidecar && (policy == RestartPolicy::Never || terminating)
    });
    if failed_init {
        return Phase::Failed;
    }
    if shapes
        .iter()
        .zip(init)
        .any(|(shape, status)| !is_done(shape, status))
    {
        return Phase::Pending;
    }
    let again = |status: &&ContainerStatus| status.last_state.is_some();
    let waiting: Vec<&ContainerStatus> = containers
        .iter()
        .filter(|status| !is_running(status) && exit_code(status).is_none())
        .collect();
    if waiting.iter().any(|status| !again(status)) {
        return Phase::Pending;
    }
    if !waiting.is_empty() || containers.iter().any(is_running) {
        return Phase::Running;
    }
    let well = containers.iter().all(|status| exit_code(status) == Some(0));
    match (policy, well) {
        (RestartPolicy::Always, _) if !terminating => Phase::Running,
        (_, true) => Phase::Succeeded,
        (RestartPolicy::OnFailure, false) if !terminating => Phase::Running,
        _ => Phase::Failed,
    }
}

fn verdicts(
    record: &Record,
    report: &PodReport,
    phase: Phase,
    init: &[ContainerStatus],
    containers: &[ContainerStatus],
) -> Vec<Verdict> {
    let shape = &record.shape;
    let refused = record.refused.is_some();
    let begun = |s: &ContainerStatus| is_running(s) || exit_code(s).is_some();
    let started = !report.pod_ips.is_empty() || init.iter().chain(containers).any(begun);
    let pairs = || shape.init.iter().zip(init);
    let undone: Vec<&str> = pairs()
        .filter(|(shape, status)| !is_done(shape, status))
        .map(|(shape, _)| &*shape.name)
        .collect();
    let ended = match phase {
        Phase::Succeeded => Some("PodCompleted"),
        Phase::Failed => Some("PodFailed"),
        _ => None,
    };
    let initialized = match (undone.is_empty(), ended) {
        (true, Some("PodCompleted")) => Ok(Some("PodCompleted")),
        (true, _) => Ok(None),
        (false, _) => Err((
            "ContainersNotInitialized",
            format!("containers with incomplete status: [{}]", undone.join(" ")),
        )),
    };
    let sidecars = pairs().filter(|(shape, _)| shape.sidecar).map(|(_, s)| s);
    let unready: Vec<&str> = sidecars
        .chain(containers)
        .filter(|status| !status.ready)
        .map(|status| status.name.as_str())
        .collect();
    let containers_ready = || match (ended, unready.is_empty()) {
        (Some(reason), _) => Err((reason, String::new())),
        (None, true) => Ok(None),
        (None, false) => Err((
            "ContainersNotReady",
            format!("containers with unready status: [{}]", unready.join(" ")),
        )),
    };
    let closed = shape.gates.iter().filter(|(_, open)| !open);
    let closed: Vec<String> = closed
        .map(|(type_, _)| format!("corresponding condition of pod readiness gate {type_:?} does not exist or is not true."))
        .collect();
    let ready = match containers_ready() {
        Ok(_) if !closed.is_empty() => Err(("ReadinessGatesNotReady", closed.join(", "))),
        other => other,
    };
    let sandbox = match started && ended.is_none() && !record.lost && !refused {
        true => Ok(None),
        false => Err(("", String::new())),
    };
    let verdict = |type_, holds| Verdict { type_, holds };
    vec![
        verdict(STARTED, sandbox),
        verdict(INITIALIZED, initialized),
        verdict(READY, ready),
        verdict(CONTAINERS_READY, containers_ready()),
        verdict(SCHEDULED, Ok(None)),
    ]
}

fn with_times(
    verdicts: Vec<Verdict>,
    record: &Record,
    now: Timestamp,
) -> (Vec<PodCondition>, Vec<Transition>) {
    let mut conditions = Vec::with_capacity(verdicts.len());
    let mut transitions = Vec::with_capacity(verdicts.len());
    for Verdict { type_, holds } in verdicts {
        let is_true = holds.is_ok();
        let before = record.transitions.iter().find(|t| t.type_ == type_);
        let at = before
            .filter(|t| t.is_true == is_true)
            .map_or(now, |t| t.at);
        let (reason, message) = match holds {
            Ok(reason) => (reason.unwrap_or_default(), String::new()),
            Err((reason, message)) => (reason, message),
        };
        conditions.push(PodCondition {
            type_: type_.to_owned(),
            status: if is_true { "True" } else { "False" }.to_owned(),
            reason: (!reason.is_empty()).then(|| reason.to_owned()),
            message: (!message.is_empty()).then_some(message),
            last_transition_time: Some(seconds(at)),
            observed_generation: record.shape.generation,
            ..PodCondition::default()
        });
        transitions.push(Transition { type_, is_true, at });
    }
    (conditions, transitions)
}
