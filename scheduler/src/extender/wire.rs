//! What goes over the wire. Upstream's types have no tags: their fields are named as in Go, and read in any case.
//!
//! Upstream: kube-scheduler extender/v1/types.go, v1.37.

use std::collections::BTreeMap;

use framework::NodeToVictims;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde::Serialize;
use serde_json::{Value, json};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ExtenderArgs<'a> {
    pub(super) pod: &'a Pod,
    pub(super) nodes: Option<NodeList<'a>>,
    pub(super) node_names: Option<Vec<&'a str>>,
}

#[derive(Serialize)]
pub(super) struct NodeList<'a> {
    metadata: BTreeMap<&'static str, Value>,
    items: Vec<&'a Node>,
}

impl<'a> NodeList<'a> {
    pub(super) fn new(items: Vec<&'a Node>) -> Self {
        NodeList {
            metadata: BTreeMap::new(),
            items,
        }
    }
}

#[derive(Serialize)]
pub(super) struct ExtenderBindingArgs<'a> {
    #[serde(rename = "PodName")]
    pub(super) pod_name: &'a str,
    #[serde(rename = "PodNamespace")]
    pub(super) pod_namespace: &'a str,
    #[serde(rename = "PodUID")]
    pub(super) pod_uid: &'a str,
    #[serde(rename = "Node")]
    pub(super) node: &'a str,
}

/// Who would have to go where: whole pods, or for an extender that knows them their UIDs.
pub(super) fn preemption_args(pod: &Pod, candidates: &NodeToVictims, known: bool) -> Vec<u8> {
    let victims = |by_uid: bool| -> Value {
        let of = |victims: &framework::Victims| {
            let pod = |pod: &std::sync::Arc<framework::PodInfo>| match by_uid {
                true => json!({"UID": &*pod.uid}),
                false => json!(&*pod.pod),
            };
            let pods: Vec<Value> = victims.pods.iter().map(pod).collect();
            json!({"Pods": pods, "NumPDBViolations": victims.num_pdb_violations})
        };
        let by_node = candidates.iter();
        by_node.map(|(node, v)| (node.to_string(), of(v))).collect()
    };
    let (whole, meta) = match known {
        true => (Value::Null, victims(true)),
        false => (victims(false), Value::Null),
    };
    let args = json!({"Pod": pod, "NodeNameToVictims": whole, "NodeNameToMetaVictims": meta});
    serde_json::to_vec(&args).expect("JSON serialises into memory")
}

/// The answer to filter.
#[derive(Debug, Default)]
pub(super) struct FilterResult {
    pub(super) nodes: Option<Vec<String>>,
    pub(super) node_names: Option<Vec<String>>,
    pub(super) failed: BTreeMap<String, String>,
    pub(super) failed_and_unresolvable: BTreeMap<String, String>,
    pub(super) error: String,
}

/// A field by its name in any case; a null is none. The exact name goes first.
fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let object = value.as_object()?;
    let same = || {
        object
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
    };
    let found = object.get(name).or_else(|| Some(same()?.1));
    found.filter(|value| !value.is_null())
}

fn wrong(name: &str, want: &str, found: &Value) -> String {
    let what = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    format!("the extender's answer: {name}: want {want}, found {what}")
}

fn object(value: &Value) -> Result<(), String> {
    match value {
        Value::Object(_) | Value::Null => Ok(()),
        other => Err(wrong("result", "an object", other)),
    }
}

fn text(value: &Value, name: &str) -> Result<String, String> {
    match field(value, name) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(wrong(name, "a text", other)),
    }
}

fn integer(value: &Value, name: &str) -> Result<i64, String> {
    match field(value, name) {
        None => Ok(0),
        Some(found) => found
            .as_i64()
            .ok_or_else(|| wrong(name, "an integer", found)),
    }
}

fn list<'a>(value: &'a Value, name: &str) -> Result<Option<&'a Vec<Value>>, String> {
    match field(value, name) {
        None => Ok(None),
        Some(Value::Array(list)) => Ok(Some(list)),
        Some(other) => Err(wrong(name, "a list", other)),
    }
}

fn texts(value: &Value, name: &str) -> Result<BTreeMap<String, String>, String> {
    let map = match field(value, name) {
        None => return Ok(BTreeMap::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong(name, "an object of texts", other)),
    };
    let text = |(key, value): (&String, &Value)| match value {
        Value::String(text) => Ok((key.clone(), text.clone())),
        other => Err(wrong(name, "an object of texts", other)),
    };
    map.iter().map(text).collect()
}

impl FilterResult {
    pub(super) fn of(answer: &Value) -> Result<Self, String> {
        object(answer)?;
        let name = |value: &Value| match value {
            Value::String(name) => Ok(name.clone()),
            other => Err(wrong("NodeNames", "a list of texts", other)),
        };
        let names = list(answer, "NodeNames")?;
        let nodes = match field(answer, "Nodes") {
            None => None,
            Some(nodes @ Value::Object(_)) => {
                let items = list(nodes, "items")?.into_iter().flatten();
                let of = |item: &Value| match field(item, "metadata") {
                    Some(metadata) => text(metadata, "name"),
                    None => Ok(String::new()),
                };
                Some(items.map(of).collect::<Result<_, _>>()?)
            }
            Some(other) => return Err(wrong("Nodes", "a list of nodes", other)),
        };
        Ok(FilterResult {
            nodes,
            node_names: names
                .map(|names| names.iter().map(name).collect())
                .transpose()?,
            failed: texts(answer, "FailedNodes")?,
            failed_and_unresolvable: texts(answer, "FailedAndUnresolvableNodes")?,
            error: text(answer, "Error")?,
        })
    }
}

/// `Error` of an answer.
pub(super) fn error_of(answer: &Value) -> Result<String, String> {
    object(answer)?;
    text(answer, "Error")
}

/// Hosts and scores.
pub(super) fn host_priorities(answer: &Value) -> Result<Vec<(String, i64)>, String> {
    let list = match answer {
        Value::Null => return Ok(Vec::new()),
        Value::Array(list) => list,
        other => return Err(wrong("result", "a list of hosts and scores", other)),
    };
    let of = |entry: &Value| Ok((text(entry, "Host")?, integer(entry, "Score")?));
    list.iter().map(of).collect()
}

/// Who is to go from a node.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MetaVictims {
    pub(super) uids: Vec<String>,
    pub(super) num_pdb_violations: usize,
}

/// The nodes that are left.
pub(super) fn preemption_result(answer: &Value) -> Result<Vec<(String, MetaVictims)>, String> {
    object(answer)?;
    let map = match field(answer, "NodeNameToMetaVictims") {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong("NodeNameToMetaVictims", "an object", other)),
    };
    let of = |(node, victims): (&String, &Value)| {
        let pods = list(victims, "Pods")?.into_iter().flatten();
        let uids = pods.map(|pod| text(pod, "UID")).collect::<Result<_, _>>()?;
        let violations = integer(victims, "NumPDBViolations")?;
        let victims = MetaVictims {
            uids,
            num_pdb_violations: usize::try_from(violations).unwrap_or(0),
        };
        Ok((node.clone(), victims))
    };
    map.iter().map(of).collect()
}
