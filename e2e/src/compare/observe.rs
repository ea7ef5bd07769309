//! What a user sees of pods, without what two runs cannot have in common: names of nodes and namespaces, ids, addresses, times.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use anyhow::Result;
use regex::Regex;
use serde_json::Value;

use crate::probe::Namespace;

/// What was seen, by place: a path in a status, an event, a line of a log.
pub type Seen = BTreeMap<String, String>;

/// One of the two nodes.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    pub name: &'static str,
    pub node: &'static str,
}

impl Side {
    pub fn ours() -> Self {
        Self {
            name: "ours",
            node: "node-1",
        }
    }

    pub fn upstream() -> Self {
        Self {
            name: "theirs",
            node: "node-2",
        }
    }

    /// In a cluster of their own.
    pub fn upstreams_loops() -> Self {
        Self {
            name: "theirs",
            node: "node-1",
        }
    }

    /// The text without what is of this run alone.
    pub fn plain(self, text: &str) -> String {
        let mut text = text.replace("node-1", "NODE").replace("node-2", "NODE");
        text = text.replace(&format!("{}-", self.name), "NS-");
        for (pattern, name) in PATTERNS.iter() {
            text = pattern.replace_all(&text, *name).into_owned();
        }
        text
    }
}

/// In this order: what is longer comes first.
static PATTERNS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        (r"(containerd|youki)://[0-9a-f]{64}", "CONTAINER"),
        (r"/tmp/\.tmp[A-Za-z0-9]{6}", "MANIFEST"),
        // What each layer below a kubelet says before the cause.
        (
            r"(failed to (create|start) containerd task: )?(failed to create shim task: )?(OCI runtime (create|start) failed: )?(runc (create|start) failed: )?unable to start container process: (error during container init: )?",
            "unable to start container process: ",
        ),
        (r"sha256:[0-9a-f]{64}", "DIGEST"),
        (r"\b[0-9a-f]{64}\b", "ID"),
        (
            r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b",
            "UID",
        ),
        (
            r"\b[0-9a-f]{8}_[0-9a-f]{4}_[0-9a-f]{4}_[0-9a-f]{4}_[0-9a-f]{12}\b",
            "UID",
        ),
        (
            r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| [+-]\d{4} UTC)?",
            "TIME",
        ),
        (r"kube-api-access-[a-z0-9]{5}", "kube-api-access-RANDOM"),
        (r"\b\d{1,3}(\.\d{1,3}){3}(:\d+)?\b", "ADDRESS"),
        (
            r"\b([0-9]+h)?([0-9]+m)?[0-9]+(\.[0-9]+)?(ms|µs|s)\b",
            "DURATION",
        ),
        (r"Image size: \d+ bytes", "Image size: N bytes"),
        // What gRPC and the runtime below it say before the cause.
        (r"rpc error: code = \w+ desc = ", ""),
        (
            r#"failed to start exec( "ID")?: (OCI runtime exec failed: exec failed: )?"#,
            "failed to start exec: ",
        ),
        (
            r#"failed to resolve (image|reference "[^"]*"): "#,
            "failed to resolve: ",
        ),
        (
            r"(Internal error occurred: )+",
            "Internal error occurred: ",
        ),
        // No name server knows them here.
        (
            r#"(failed to do request: Head ")?https?://(no\.such|(?i:upper))/.*"#,
            "NO ANSWER",
        ),
        // How much other pods take.
        (r"used: \d+, capacity", "used: N, capacity"),
    ]
    .into_iter()
    .map(|(pattern, name)| (Regex::new(pattern).expect("a constant"), name))
    .collect()
});

/// Keys whose values no two runs have in common.
const OF_THE_RUN: &[&str] = &[
    "lastTransitionTime",
    "lastProbeTime",
    "lastHeartbeatTime",
    "startTime",
    "startedAt",
    "finishedAt",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "imageID",
    "observedGeneration",
];

/// Statuses, logs and events of all pods.
///
/// # Errors
/// kubectl fails.
pub fn pods(ns: &Namespace<'_>, side: Side, seen: &mut Seen) -> Result<()> {
    let list = ns.json(&["get", "pods"])?;
    for pod in list["items"].as_array().into_iter().flatten() {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        flatten(side, seen, &format!("{name} status"), &pod["status"]);
        for kind in [
            "initContainerStatuses",
            "containerStatuses",
            "ephemeralContainerStatuses",
        ] {
            for status in pod["status"][kind].as_array().into_iter().flatten() {
                let container = status["name"].as_str().unwrap_or_default();
                logs(ns, side, name, container, status, seen)?;
            }
        }
    }
    events(ns, side, seen)
}

fn logs(
    ns: &Namespace<'_>,
    side: Side,
    pod: &str,
    container: &str,
    status: &Value,
    seen: &mut Seen,
) -> Result<()> {
    if status["state"].get("waiting").is_none() {
        let output = ns.command().args(["logs", pod, "-c", container]).output()?;
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        lines(seen, &format!("{pod} log {container}"), &side.plain(&text));
    }
    if status["lastState"].get("terminated").is_some() {
        let previous = ["logs", pod, "-c", container, "--previous"];
        let output = ns.command().args(previous).output()?;
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        lines(
            seen,
            &format!("{pod} log before {container}"),
            &side.plain(&text),
        );
    }
    Ok(())
}

/// Each line a place of its own: a difference names the line. In which order they came depends on the moment, and on what a kernel lists.
pub fn lines(seen: &mut Seen, place: &str, text: &str) {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for line in text.lines() {
        *counts.entry(line).or_default() += 1;
    }
    for (line, count) in counts {
        seen.insert(format!("{place}: {line}"), format!("{count} times"));
    }
}

/// Reason, kind and message; how often something happened depends on the moment that is looked at, so only whether once or again.
fn events(ns: &Namespace<'_>, side: Side, seen: &mut Seen) -> Result<()> {
    let list = ns.json(&["get", "events"])?;
    for event in list["items"].as_array().into_iter().flatten() {
        let component = event["source"]["component"].as_str().unwrap_or_default();
        if component != "kubelet" {
            continue;
        }
        let text = |key: &str| event[key].as_str().unwrap_or_default();
        let Some(message) = said_of_images(text("reason"), text("message")) else {
            continue;
        };
        let object = &event["involvedObject"];
        let of = |key: &str| object[key].as_str().unwrap_or_default();
        let place = format!(
            "event {} {} {} {}: {}",
            of("name"),
            of("fieldPath"),
            text("type"),
            text("reason"),
            message
        );
        seen.insert(side.plain(&place), "told".to_owned());
    }
    Ok(())
}

/// The message without what depends on who is the first on a node to use an image: whether it was pulled, or there. None of a pull
/// that begins.
fn said_of_images<'a>(reason: &str, message: &'a str) -> Option<Cow<'a, str>> {
    let image = |start: &str| message.strip_prefix(start)?.split('"').nth(1);
    match reason {
        "Pulling" if image("Pulling image ").is_some() => None,
        "Pulled" => Some(
            image("Successfully pulled image ")
                .or_else(|| image("Container image "))
                .map_or(message.into(), |image| format!("{image} is there").into()),
        ),
        _ => Some(message.into()),
    }
}

/// Objects by key, lists of named things by their names.
fn flatten(side: Side, seen: &mut Seen, place: &str, value: &Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if !OF_THE_RUN.contains(&key.as_str()) {
                    flatten(side, seen, &format!("{place}.{key}"), value);
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let name = ["name", "type", "mountPath"]
                    .iter()
                    .find_map(|key| item[key].as_str())
                    .map_or_else(|| index.to_string(), |name| side.plain(name));
                flatten(side, seen, &format!("{place}[{name}]"), item);
            }
        }
        Value::String(text) => {
            seen.insert(place.to_owned(), side.plain(text));
        }
        other => {
            seen.insert(place.to_owned(), other.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn two_runs_have_the_same_plain_text() {
        let ours = "node-1 ours-probes 10.244.0.7:80 youki://0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef in 1.2s";
        let theirs = "node-2 theirs-probes 10.244.1.9:80 containerd://fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210 in 351ms";
        assert_eq!(
            Side::ours().plain(ours),
            "NODE NS-probes ADDRESS CONTAINER in DURATION"
        );
        assert_eq!(Side::ours().plain(ours), Side::upstream().plain(theirs));
    }

    #[test]
    fn who_pulls_an_image_first_is_no_difference() {
        let said = |reason, message| said_of_images(reason, message).map(Cow::into_owned);
        let there = Some("busybox:1 is there".to_owned());
        assert_eq!(said("Pulling", "Pulling image \"busybox:1\""), None);
        assert_eq!(
            said("Pulled", "Successfully pulled image \"busybox:1\" in 3s"),
            there
        );
        let message = "Container image \"busybox:1\" already present on machine and can be accessed by the pod";
        assert_eq!(said("Pulled", message), there);
        assert_eq!(said("Pulled", "other"), Some("other".to_owned()));
        assert_eq!(said("Pulling", "other"), Some("other".to_owned()));
        assert_eq!(said("BackOff", message), Some(message.to_owned()));
    }

    #[test]
    fn a_status_is_read_by_names() {
        let mut seen = Seen::new();
        let status = json!({"phase": "Running", "startTime": "x", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "y"}],
                            "containerStatuses": [{"name": "c", "ready": true, "user": {"linux": {"uid": 0, "supplementalGroups": [1, 2]}}}]});
        flatten(Side::ours(), &mut seen, "p", &status);
        let places: Vec<&str> = seen.keys().map(String::as_str).collect();
        assert_eq!(
            places,
            [
                "p.conditions[Ready].status",
                "p.conditions[Ready].type",
                "p.containerStatuses[c].name",
                "p.containerStatuses[c].ready",
                "p.containerStatuses[c].user.linux.supplementalGroups[0]",
                "p.containerStatuses[c].user.linux.supplementalGroups[1]",
                "p.containerStatuses[c].user.linux.uid",
                "p.phase"
            ]
        );
    }
}
