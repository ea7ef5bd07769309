//! What becomes of a namespace's objects, whichever of equal ones is which: a line for each value, and how many objects have it.

use std::sync::LazyLock;

use anyhow::Result;
use regex::Regex;
use serde_json::Value;

use super::observe::{Seen, Side};
use crate::probe::Namespace;

const KINDS: &str = "deployments,replicasets,statefulsets,daemonsets,jobs,cronjobs,replicationcontrollers,poddisruptionbudgets,\
    horizontalpodautoscalers,resourcequotas,services,endpoints,endpointslices,persistentvolumeclaims,serviceaccounts,secrets,configmaps,\
    controllerrevisions,resourceclaims,pods";

/// Keys whose values are of the run, of the API server or of the kubelet.
const LEFT_OUT: &[&str] = &[
    "managedFields",
    "resourceVersion",
    "uid",
    "generation",
    "observedGeneration",
    "creationTimestamp",
    "deletionTimestamp",
    "containerStatuses",
    "initContainerStatuses",
    "volumeMounts",
    "volumes",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "nodePort",
    "ca.crt",
    "token",
    "kubectl.kubernetes.io/last-applied-configuration",
];

/// Names that a server or a controller made up.
static MADE_UP: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        (r"\b[bcdfghjklmnpqrstvwxz2456789]{8,10}\b", "HASH"),
        (r"-2\d{7}\b", "-MINUTE"),
    ]
    .into_iter()
    .map(|(pattern, name)| (Regex::new(pattern).expect("a constant"), name))
    .collect()
});

static END_OF_NAME: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"-[bcdfghjklmnpqrstvwxz2456789]{5}\b").expect("a constant"));

/// Ends of pods' names first: `-55m7s` looks like a duration, too.
fn plain(side: Side, text: &str) -> String {
    let mut text = side.plain(&END_OF_NAME.replace_all(text, "-RANDOM"));
    for (pattern, name) in MADE_UP.iter() {
        text = pattern.replace_all(&text, *name).into_owned();
    }
    text
}

/// Objects and events.
///
/// # Errors
/// kubectl fails.
pub fn all(ns: &Namespace<'_>, side: Side, seen: &mut Seen) -> Result<()> {
    let list = ns.json(&["get", KINDS])?;
    let mut lines = Vec::new();
    for object in list["items"].as_array().into_iter().flatten() {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let kind = object["kind"].as_str().unwrap_or_default();
        let place = plain(side, &format!("{kind} {name}"));
        lines.push(place.clone());
        flatten(side, &mut lines, &place, object);
    }
    count(seen, lines);
    events(ns, side, seen)
}

fn count(seen: &mut Seen, mut lines: Vec<String>) {
    lines.sort_unstable();
    for same in lines.chunk_by(|one, next| one == next) {
        seen.insert(same[0].clone(), format!("{} times", same.len()));
    }
}

fn flatten(side: Side, lines: &mut Vec<String>, place: &str, value: &Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if !LEFT_OUT.contains(&key.as_str()) {
                    flatten(side, lines, &format!("{place}.{key}"), value);
                }
            }
        }
        // The order of lists says nothing here; what is said once in one is said once in the other.
        Value::Array(items) => {
            for item in items {
                let name = ["type", "name", "key"]
                    .iter()
                    .find_map(|key| item[key].as_str())
                    .map_or_else(String::new, |name| plain(side, name));
                flatten(side, lines, &format!("{place}[{name}]"), item);
            }
        }
        Value::String(text) => lines.push(format!("{place} = {}", plain(side, text))),
        other => lines.push(format!("{place} = {other}")),
    }
}

/// How often something happened depends on the moment that is looked at. Those of kubelets are for the other comparison.
fn events(ns: &Namespace<'_>, side: Side, seen: &mut Seen) -> Result<()> {
    let list = ns.json(&["get", "events"])?;
    for event in list["items"].as_array().into_iter().flatten() {
        let text = |key: &str| event[key].as_str().unwrap_or_default();
        let component = match event["source"]["component"].as_str() {
            Some(component) if !component.is_empty() => component,
            _ => text("reportingComponent"),
        };
        if component == "kubelet" {
            continue;
        }
        let object = &event["involvedObject"];
        let of = |key: &str| object[key].as_str().unwrap_or_default();
        let place = format!(
            "event of {component}: {} {} {} {} {} {}",
            of("kind"),
            of("name"),
            text("type"),
            text("reason"),
            text("action"),
            text("message")
        );
        seen.insert(plain(side, &place), "told".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_end_of_a_name_is_no_duration() {
        let text = "Created pod: onfailure-55m7s within 55m7s";
        assert_eq!(
            plain(Side::ours(), text),
            "Created pod: onfailure-RANDOM within DURATION"
        );
    }

    #[test]
    fn equal_objects_are_counted_and_made_up_names_are_alike() {
        let mut lines = Vec::new();
        for name in ["web-7d4b9c5f6d-x2x4z", "web-7d4b9c5f6d-k8k9q"] {
            let place = plain(Side::ours(), &format!("Pod {name}"));
            let pod = json!({"metadata": {"uid": name}, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
            flatten(Side::ours(), &mut lines, &place, &pod);
        }
        let mut seen = Seen::new();
        count(&mut seen, lines);
        let found: Vec<_> = seen.iter().map(|(k, v)| format!("{k}: {v}")).collect();
        assert_eq!(
            found,
            [
                "Pod web-HASH-RANDOM.status.conditions[Ready].status = True: 2 times",
                "Pod web-HASH-RANDOM.status.conditions[Ready].type = Ready: 2 times",
                "Pod web-HASH-RANDOM.status.phase = Running: 2 times",
            ]
        );
    }
}
