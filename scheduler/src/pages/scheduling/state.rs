//! What the page shows, as JSON. Pure: made of copies, without a lock, a client or a clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backend::queue::{QueueCounts, WaitingPod};
use framework::{NodeInfo, PodInfo};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use crate::decisions::{Decision, Outcome};

/// More nodes than this are counted and not listed.
pub const MAX_NODES: usize = 100_000;
/// So many pods of each part of the queue are listed.
pub const MAX_PODS: usize = 500;
/// So many taints of a node are listed.
const MAX_TAINTS: usize = 16;

/// Resources every node has, in the order they are shown; others follow by name.
const NATIVE: [&str; 4] = ["cpu", "memory", "ephemeral-storage", "pods"];

/// `GET /debug/scheduling/state`.
#[derive(Debug, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// When it was so.
    pub time: Timestamp,
    /// The profiles this scheduler decides by.
    pub profiles: Vec<String>,
    /// What the numbers of the nodes stand for, in their order.
    pub resources: Vec<ResourceKind>,
    /// By name.
    pub nodes: Vec<NodeRow>,
    /// How many nodes there are beyond those listed.
    pub nodes_omitted: usize,
    /// How many pods are where.
    pub queue: QueueRow,
    /// The pods that wait, who waits longest first.
    pub waiting: Vec<PodRow>,
    /// How many pods wait beyond those listed.
    pub waiting_omitted: usize,
}

/// A resource.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub struct ResourceKind {
    /// Its name.
    pub name: String,
    /// `milli` (thousandths of a CPU), `bytes` or `count`.
    pub unit: &'static str,
}

/// A node.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeRow {
    /// Its name.
    pub name: String,
    /// What it has; null for a resource it does not know.
    pub allocatable: Vec<Option<i64>>,
    /// What its pods ask for, those on their way included.
    pub requested: Vec<i64>,
    /// `spec.unschedulable`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unschedulable: bool,
    /// `KEY=VALUE:EFFECT`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<String>,
}

/// How many pods are where.
#[derive(Debug, Default, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct QueueRow {
    /// Their turn comes.
    pub active: usize,
    /// They back off.
    pub backoff: usize,
    /// They wait for an event.
    pub unschedulable: usize,
    /// A PreEnqueue plugin keeps them out.
    pub gated: usize,
    /// They are being decided, or are on their way to a node and wait on Permit.
    pub in_flight: usize,
}

/// A pod that waits.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PodRow {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `active`, `backoff`, `unschedulable` or `gated`.
    pub queue: &'static str,
    /// Since when.
    pub since: Timestamp,
    /// How often it was tried.
    pub attempts: u32,
    /// Plugins that rejected it last time.
    pub rejected_by: Vec<&'static str>,
    /// The plugin that keeps it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gated_by: Option<&'static str>,
    /// How long it backs off still.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff_milliseconds: Option<u64>,
    /// What its condition `PodScheduled` says; empty before the first attempt.
    pub message: String,
}

/// The names of all resources, in the order of the rows.
fn names(nodes: &[Arc<NodeInfo>]) -> Vec<String> {
    let scalars = nodes.iter().flat_map(|node| {
        let (has, asked) = (node.allocatable(), node.requested());
        has.scalar.keys().chain(asked.scalar.keys())
    });
    let scalars: BTreeSet<&String> = scalars.collect();
    let native = NATIVE.iter().map(|name| (*name).to_owned());
    native.chain(scalars.into_iter().cloned()).collect()
}

fn kind(name: &str) -> ResourceKind {
    let unit = match name {
        "cpu" => "milli",
        "memory" | "ephemeral-storage" => "bytes",
        _ if name.starts_with("hugepages-") => "bytes",
        _ => "count",
    };
    ResourceKind {
        name: name.to_owned(),
        unit,
    }
}

fn row(node: &NodeInfo, resources: &[String]) -> NodeRow {
    let (has, asked) = (node.allocatable(), node.requested());
    let known = |name: &String| NATIVE.contains(&name.as_str()) || has.scalar.contains_key(name);
    let taints = node.taints().iter().take(MAX_TAINTS).map(|taint| {
        let value = taint.value.as_deref().unwrap_or_default();
        let equals = if value.is_empty() { "" } else { "=" };
        format!("{}{equals}{value}:{}", taint.key, taint.effect)
    });
    NodeRow {
        name: node.name().to_string(),
        allocatable: resources
            .iter()
            .map(|name| known(name).then(|| has.get(name)))
            .collect(),
        requested: resources
            .iter()
            .map(|name| match name.as_str() {
                "pods" => node.pods().len() as i64,
                name => asked.get(name),
            })
            .collect(),
        unschedulable: node.unschedulable(),
        taints: taints.collect(),
    }
}

fn waiting_row(waiting: &WaitingPod, now: Timestamp) -> PodRow {
    let (pod, queued) = (&waiting.pod, &waiting.queued);
    let conditions = pod.pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    let told = conditions.find(|c| c.type_ == "PodScheduled" && c.status == "False");
    PodRow {
        namespace: pod.namespace().to_owned(),
        name: pod.name().to_owned(),
        queue: queued.place,
        since: before(now, waiting.waited),
        attempts: queued.attempts,
        rejected_by: queued.rejected_by.clone(),
        gated_by: queued.gated_by,
        backoff_milliseconds: queued
            .backoff
            .map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
        message: told.and_then(|c| c.message.clone()).unwrap_or_default(),
    }
}

/// The time so long ago.
fn before(now: Timestamp, by: Duration) -> Timestamp {
    now.checked_sub(by).unwrap_or(now)
}

/// The whole.
pub fn state(
    now: Timestamp,
    profiles: Vec<String>,
    mut nodes: Vec<Arc<NodeInfo>>,
    mut waiting: Vec<WaitingPod>,
    counts: QueueCounts,
) -> State {
    nodes.retain(|node| node.exists());
    nodes.sort_unstable_by(|a, b| a.name().cmp(b.name()));
    let nodes_omitted = nodes.len().saturating_sub(MAX_NODES);
    nodes.truncate(MAX_NODES);
    waiting.sort_by(|a, b| {
        let name = |w: &WaitingPod| (w.pod.namespace().to_owned(), w.pod.name().to_owned());
        let longest = b.waited.cmp(&a.waited);
        longest.then_with(|| name(a).cmp(&name(b)))
    });
    let all = counts.active + counts.backoff + counts.unschedulable + counts.gated;
    let resources = names(&nodes);
    State {
        time: now,
        profiles,
        nodes: nodes.iter().map(|node| row(node, &resources)).collect(),
        nodes_omitted,
        resources: resources.iter().map(|name| kind(name)).collect(),
        queue: QueueRow {
            active: counts.active,
            backoff: counts.backoff,
            unschedulable: counts.unschedulable,
            gated: counts.gated,
            in_flight: counts.in_flight_pods,
        },
        waiting_omitted: all.saturating_sub(waiting.len()),
        waiting: waiting.iter().map(|w| waiting_row(w, now)).collect(),
    }
}

/// `GET /debug/scheduling/nodes/NAME`.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeDetails {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its pods by namespace and name, those on their way included.
    pub pods: Vec<PodOnNode>,
}

/// A pod on a node.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PodOnNode {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its priority.
    pub priority: i32,
    /// The CPU it asks for, in thousandths.
    pub milli_cpu: i64,
    /// The memory it asks for, in bytes.
    pub memory: i64,
}

/// A node in full.
pub fn node_details(node: &NodeInfo) -> NodeDetails {
    let pod = |pod: &Arc<PodInfo>| PodOnNode {
        namespace: pod.namespace().to_owned(),
        name: pod.name().to_owned(),
        priority: pod.priority,
        milli_cpu: pod.requests.resource.milli_cpu,
        memory: pod.requests.resource.memory,
    };
    let mut pods: Vec<PodOnNode> = node.pods().iter().map(pod).collect();
    pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    NodeDetails {
        name: node.name().to_string(),
        labels: node.labels().clone(),
        pods,
    }
}

/// A decision, for the list.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DecisionRow {
    /// Counts the decisions of the process.
    pub sequence: u64,
    /// When the attempt began.
    pub time: Timestamp,
    /// How long it took to decide.
    pub microseconds: u64,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// `node`, `rejected` or `error`.
    pub result: &'static str,
    /// The node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its score.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<i64>,
    /// On how many nodes the pod would have fitted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feasible_nodes: Option<usize>,
    /// Who rejected it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rejected_by: Vec<&'static str>,
    /// Why.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// `now` is the same moment by both clocks.
pub fn decision_row(decision: Decision, now: (Timestamp, Instant)) -> DecisionRow {
    let ago = now.1.saturating_duration_since(decision.began);
    let mut row = DecisionRow {
        sequence: decision.sequence,
        time: before(now.0, ago),
        microseconds: u64::try_from(decision.took.as_micros()).unwrap_or(u64::MAX),
        namespace: decision.namespace,
        name: decision.name,
        result: "node",
        node: None,
        score: None,
        feasible_nodes: None,
        rejected_by: Vec::new(),
        message: String::new(),
    };
    match decision.outcome {
        Outcome::Node {
            node,
            score,
            feasible_nodes,
        } => {
            row.node = Some(node.to_string());
            (row.score, row.feasible_nodes) = (score, feasible_nodes);
        }
        Outcome::Failed {
            error,
            plugins,
            message,
        } => {
            row.result = if error { "error" } else { "rejected" };
            (row.rejected_by, row.message) = (plugins, message);
        }
    }
    row
}
