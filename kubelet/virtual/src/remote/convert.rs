//! Between the protocol's messages and the types of `kubelet-provider`. Pure.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kubelet_provider::{
    Condition, ContainerReport, ContainerState, Phase, PodId, PodReport, PodUsage, ProviderError,
    Terminated, Usage,
};
use tonic::{Code, Status};

use super::v1;

/// What a code means. `what` names what an UNIMPLEMENTED refuses.
pub(super) fn failure(status: &Status, what: &'static str) -> ProviderError {
    let text = || match status.message() {
        "" => status.code().to_string(),
        message => message.to_owned(),
    };
    match status.code() {
        Code::Unimplemented => ProviderError::Unsupported(what),
        Code::NotFound => ProviderError::NotFound,
        Code::InvalidArgument => {
            let text = text();
            let (field, message) = match text.split_once(": ") {
                Some((field, message)) if !field.contains(' ') => (field, message),
                _ => ("pod", text.as_str()),
            };
            ProviderError::Invalid {
                field: field.to_owned(),
                message: message.to_owned(),
            }
        }
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => {
            ProviderError::Unavailable(text())
        }
        _ => ProviderError::Failed(text()),
    }
}

pub(super) fn message(id: &PodId) -> v1::PodId {
    v1::PodId {
        uid: id.uid.to_string(),
        namespace: id.namespace.to_string(),
        name: id.name.to_string(),
        node: id.node.to_string(),
    }
}

pub(super) fn id(id: v1::PodId) -> PodId {
    PodId {
        uid: id.uid.into(),
        namespace: id.namespace.into(),
        name: id.name.into(),
        node: id.node.into(),
    }
}

/// The id and the JSON of an object.
pub(super) fn pod(pod: &Pod) -> Result<(PodId, Vec<u8>), ProviderError> {
    let json = k8s_openapi::serde_json::to_vec(pod);
    let json = json.map_err(|error| ProviderError::Failed(error.to_string()))?;
    Ok((PodId::of(pod), json))
}

pub(super) fn condition(condition: v1::NodeCondition) -> Condition {
    Condition {
        type_: condition.r#type,
        status: condition.status,
        reason: condition.reason,
        message: condition.message,
    }
}

fn time(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn terminated(t: v1::Terminated) -> Terminated {
    Terminated {
        exit_code: t.exit_code,
        reason: t.reason,
        message: t.message,
        started_at: time(t.started_at),
        finished_at: time(t.finished_at),
    }
}

fn container(status: v1::ContainerStatus) -> ContainerReport {
    use v1::container_status::State;
    let state = match status.state {
        Some(State::Running(running)) => ContainerState::Running {
            started_at: time(running.started_at),
        },
        Some(State::Terminated(t)) => ContainerState::Terminated(terminated(t)),
        Some(State::Waiting(waiting)) => ContainerState::Waiting {
            reason: waiting.reason,
            message: waiting.message,
        },
        None => ContainerState::Waiting {
            reason: "ContainerCreating".to_owned(),
            message: String::new(),
        },
    };
    ContainerReport {
        name: status.name,
        state,
        last: status.last.map(terminated),
        ready: status.ready,
        restart_count: status.restart_count,
        container_id: status.container_id,
        image_id: status.image_id,
    }
}

/// `None`: it does not say of which pod. Addresses and phases that are none are left out, with a warning.
pub(super) fn status(status: v1::PodStatus) -> Option<(PodId, PodReport)> {
    let pod = id(status.id?);
    let phase = match status.phase.as_str() {
        "" => None,
        "Pending" => Some(Phase::Pending),
        "Running" => Some(Phase::Running),
        "Succeeded" => Some(Phase::Succeeded),
        "Failed" => Some(Phase::Failed),
        other => {
            tracing::warn!(pod = %pod, phase = other, "The provider tells of a phase that is none");
            None
        }
    };
    let address = |text: &String| match text.parse() {
        Ok(ip) => Some(ip),
        Err(_) => {
            tracing::warn!(pod = %pod, address = text, "The provider tells of an address that is none");
            None
        }
    };
    let report = PodReport {
        phase,
        reason: status.reason,
        message: status.message,
        pod_ips: status.pod_ips.iter().filter_map(address).collect(),
        host_ip: Some(status.host_ip)
            .filter(|t| !t.is_empty())
            .as_ref()
            .and_then(address),
        containers: status.containers.into_iter().map(container).collect(),
    };
    Some((pod, report))
}

pub(super) fn usage(usage: v1::PodUsage) -> Option<PodUsage> {
    let containers = usage.containers.into_iter().map(|container| {
        let usage = Usage {
            cpu_nanoseconds: container.cpu_nanoseconds,
            memory_working_set_bytes: container.memory_working_set_bytes,
        };
        (container.name, usage)
    });
    Some(PodUsage {
        pod: id(usage.id?),
        containers: containers.collect(),
    })
}
