//! Which container's log is meant: the one that runs, the one that ran last, or the one before.

use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};

/// A container by its runtime's id.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) id: String,
    /// Names the log file should the runtime have forgotten the container.
    pub(super) restart_count: i32,
}

/// Chooses by the pod's status; the error's text is upstream's.
pub(super) fn container(pod: &Pod, name: &str, previous: bool) -> Result<Chosen, String> {
    let pod_name = crate::pod::name(pod);
    let statuses = pod.status.as_ref().map(|status| {
        [
            &status.container_statuses,
            &status.init_container_statuses,
            &status.ephemeral_container_statuses,
        ]
    });
    let status = statuses
        .into_iter()
        .flatten()
        .flatten()
        .flatten()
        .find(|status| status.name == name)
        .ok_or_else(|| format!("container {name:?} in pod {pod_name:?} is not available"))?;
    let chosen = |id: Option<&String>, restart_count: i32| {
        id.map(|id| bare(id))
            .filter(|id| !id.is_empty())
            .map(|id| Chosen { id, restart_count })
    };
    let last: Option<&ContainerStateTerminated> = status
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    let of_last = || {
        last.and_then(|last| {
            chosen(
                last.container_id.as_ref(),
                (status.restart_count - 1).max(0),
            )
        })
    };
    let is_terminated = || format!("container {name:?} in pod {pod_name:?} is terminated");
    if previous {
        return of_last().ok_or_else(|| {
            format!("previous terminated container {name:?} in pod {pod_name:?} not found")
        });
    }
    let state = status.state.clone().unwrap_or_default();
    if state.running.is_some() {
        return chosen(status.container_id.as_ref(), status.restart_count)
            .ok_or_else(|| format!("container {name:?} in pod {pod_name:?} is not available"));
    }
    if let Some(terminated) = &state.terminated {
        // Without an id of its own, it never started: the one before has the last word.
        return chosen(terminated.container_id.as_ref(), status.restart_count)
            .or_else(of_last)
            .ok_or_else(is_terminated);
    }
    if last.is_some() {
        return of_last().ok_or_else(is_terminated);
    }
    let waiting = format!("container {name:?} in pod {pod_name:?} is waiting to start");
    Err(match state.waiting.and_then(|waiting| waiting.reason) {
        Some(reason) if reason == "ErrImagePull" => format!("{waiting}: image can't be pulled"),
        Some(reason) if reason == "ImagePullBackOff" => {
            format!("{waiting}: trying and failing to pull image")
        }
        Some(reason) => format!("{waiting}: {reason}"),
        None => format!("{waiting} - no logs yet"),
    })
}

/// `<runtime>://<id>` without its scheme.
fn bare(id: &str) -> String {
    id.split_once("://").map_or(id, |(_, id)| id).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(status: serde_json::Value, previous: bool, expect: Result<&str, &str>) {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "status": {"containerStatuses": [status]},
        }))
        .unwrap();
        let got = container(&pod, "c", previous)
            .map(|chosen| format!("{} {}", chosen.id, chosen.restart_count));
        assert_eq!(got, expect.map(str::to_owned).map_err(str::to_owned));
    }

    fn status(state: serde_json::Value, last: serde_json::Value, id: &str) -> serde_json::Value {
        json!({
            "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 2,
            "state": state, "lastState": last, "containerID": id,
        })
    }

    #[test]
    fn chooses() {
        let none = json!({});
        let ended = |id: &str| json!({"terminated": {"exitCode": 1, "containerID": id}});
        let running = json!({"running": {}});
        let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
        check(
            status(running.clone(), none.clone(), "youki://a"),
            false,
            Ok("a 2"),
        );
        check(
            status(running.clone(), ended("youki://b"), "youki://a"),
            true,
            Ok("b 1"),
        );
        check(
            status(running, none.clone(), "youki://a"),
            true,
            Err("previous terminated container \"c\" in pod \"p\" not found"),
        );
        check(
            status(ended("youki://a"), none.clone(), ""),
            false,
            Ok("a 2"),
        );
        check(status(ended(""), ended("youki://b"), ""), false, Ok("b 1"));
        check(
            status(ended(""), none.clone(), ""),
            false,
            Err("container \"c\" in pod \"p\" is terminated"),
        );
        check(
            status(waiting("CrashLoopBackOff"), ended("youki://b"), ""),
            false,
            Ok("b 1"),
        );
        for (reason, text) in [
            ("ErrImagePull", "image can't be pulled"),
            ("ImagePullBackOff", "trying and failing to pull image"),
            ("ContainerCreating", "ContainerCreating"),
        ] {
            let expect = format!("container \"c\" in pod \"p\" is waiting to start: {text}");
            check(
                status(waiting(reason), none.clone(), ""),
                false,
                Err(&expect),
            );
        }
        let empty: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}})).unwrap();
        assert_eq!(
            container(&empty, "c", false),
            Err("container \"c\" in pod \"p\" is not available".to_owned())
        );
    }
}
