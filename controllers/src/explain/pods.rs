//! What pods are about: who waits for what. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use component_helpers::pod::{
    get_condition, is_pod_ready, is_terminal, is_terminating, name, node_name, phase,
};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use serde::Serialize;

/// Pods in the same state.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodState {
    pub state: String,
    pub count: usize,
    /// One of them, by its name.
    pub example: String,
}

/// The states that `pods` are in, the most frequent first.
pub fn states(pods: &[Arc<Pod>]) -> Vec<PodState> {
    let mut by_state: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for pod in pods {
        by_state.entry(state(pod)).or_default().push(name(pod));
    }
    let mut states: Vec<PodState> = by_state
        .into_iter()
        .map(|(state, names)| PodState {
            state,
            count: names.len(),
            example: names.into_iter().min().unwrap_or_default().to_owned(),
        })
        .collect();
    states.sort_by_key(|state| std::cmp::Reverse(state.count));
    states
}

fn state(pod: &Pod) -> String {
    if is_terminal(pod) {
        let status = pod.status.as_ref();
        let reason = status.and_then(|s| s.reason.as_deref());
        return match reason {
            Some(reason) => format!("{}: {reason}", phase(pod)),
            None => phase(pod).to_owned(),
        };
    }
    if is_terminating(pod) {
        return match pod.metadata.finalizers.as_deref() {
            Some([first, ..]) => format!("being deleted, held by the finalizer {first}"),
            _ => "being deleted".to_owned(),
        };
    }
    if node_name(pod).is_none() {
        let condition = get_condition(pod, "PodScheduled").filter(|c| c.status == "False");
        return match condition.and_then(|c| c.message.as_deref()) {
            Some(message) => format!("not scheduled: {message}"),
            None => "not scheduled yet".to_owned(),
        };
    }
    if let Some(waiting) = waiting(pod) {
        return waiting;
    }
    match is_pod_ready(pod) {
        true => "ready".to_owned(),
        false => not_ready(pod),
    }
}

fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let init = status.and_then(|s| s.init_container_statuses.as_ref());
    let main = status.and_then(|s| s.container_statuses.as_ref());
    init.into_iter().flatten().chain(main.into_iter().flatten())
}

/// The first container that waits for more than its turn.
fn waiting(pod: &Pod) -> Option<String> {
    containers(pod).find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref()?;
        if matches!(reason, "PodInitializing" | "ContainerCreating") {
            return None;
        }
        let name = &container.name;
        Some(match waiting.message.as_deref() {
            Some(message) => format!("container {name} waits: {reason}: {message}"),
            None => format!("container {name} waits: {reason}"),
        })
    })
}

fn not_ready(pod: &Pod) -> String {
    if phase(pod) != "Running" {
        return "starting".to_owned();
    }
    let late: Vec<&str> = containers(pod)
        .filter(|c| !c.ready && c.state.as_ref().is_some_and(|s| s.running.is_some()))
        .map(|c| c.name.as_str())
        .collect();
    match late.is_empty() {
        true => "running, not ready".to_owned(),
        false => format!("running, not ready: container {}", late.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(meta: Value, spec: Value, status: Value, expect: &str) {
        let pod = json!({ "metadata": meta, "spec": spec, "status": status });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        assert_eq!(state(&pod), expect);
    }

    #[test]
    fn what_a_pod_waits_for() {
        let bound = || json!({ "nodeName": "n", "containers": [] });
        let free = || json!({ "containers": [] });
        let container = |ready: bool, state: Value| json!({ "name": "c", "ready": ready, "restartCount": 0, "image": "i", "imageID": "", "state": state });
        let unscheduled = json!({ "type": "PodScheduled", "status": "False", "message": "0/3 nodes are available" });
        check(
            json!({}),
            free(),
            json!({ "conditions": [unscheduled] }),
            "not scheduled: 0/3 nodes are available",
        );
        check(json!({}), free(), json!({}), "not scheduled yet");
        let pull =
            json!({ "waiting": { "reason": "ImagePullBackOff", "message": "no such image" } });
        check(
            json!({}),
            bound(),
            json!({ "phase": "Pending", "containerStatuses": [container(false, pull)] }),
            "container c waits: ImagePullBackOff: no such image",
        );
        let creating = json!({ "waiting": { "reason": "ContainerCreating" } });
        check(
            json!({}),
            bound(),
            json!({ "phase": "Pending", "containerStatuses": [container(false, creating)] }),
            "starting",
        );
        check(
            json!({}),
            bound(),
            json!({ "phase": "Running", "containerStatuses": [container(false, json!({ "running": {} }))] }),
            "running, not ready: container c",
        );
        let ready = json!({ "type": "Ready", "status": "True" });
        check(
            json!({}),
            bound(),
            json!({ "phase": "Running", "conditions": [ready] }),
            "ready",
        );
        let going = json!({ "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a/b"] });
        check(
            going,
            bound(),
            json!({}),
            "being deleted, held by the finalizer a/b",
        );
        check(
            json!({}),
            bound(),
            json!({ "phase": "Failed", "reason": "Evicted" }),
            "Failed: Evicted",
        );
    }
}
