//! [`explain`]: why a pod is where it is: which nodes which plugin rejects and how much is missing there, what preemption would do, what would wake the pod.
//!
//! Decides as the scheduling cycle does, on a snapshot, and touches nothing: no assumption, no nomination, no victim. Extenders that filter are
//! asked, as in a cycle. The answer is JSON for machines; [`crate::kubectl`] shows it to people.

use std::collections::BTreeMap;
use std::sync::Arc;

use backend::queue::{Nominator, PodInQueue};
use framework::{
    ActionType, ClusterEventWithHint, Code, CycleState, FitError, NodeInfo, PodInfo, Resource,
    Snapshot, Status,
};
use serde::{Deserialize, Serialize};

use crate::decide::{Decider, NO_NODES_AVAILABLE, NotChosen};
use crate::runtime::Framework;
use crate::scheduler::queueing;

#[cfg(test)]
mod tests;

/// So many nodes of a group are named.
const EXAMPLES: usize = 5;

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Explanation {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The profile that decides.
    pub scheduler_name: String,
    /// The node it has already, or is being bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Where it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// The node it would go to if it were its turn now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub would_go_to: Option<String>,
    /// How many nodes there are.
    pub nodes: usize,
    /// On how many it would fit.
    pub feasible_nodes: usize,
    /// What the event of the pod would say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Nodes that are rejected for the same reason, the largest group first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
    /// What preemption would do, where the pod fits nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preemption: Option<Preemption>,
    /// What would make the scheduler try again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub woken_by: Vec<Wake>,
}

/// A pod in the queue.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Waiting {
    /// `active`, `backoff`, `unschedulable`, `gated` or `inFlight`.
    pub queue: String,
    /// How often it was tried.
    pub attempts: u32,
    /// Who rejected it last time.
    pub rejected_by: Vec<String>,
    /// Who keeps it out of the queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gated_by: Option<String>,
    /// How long it backs off still.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff_milliseconds: Option<u64>,
}

/// Nodes that one plugin rejects for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Group {
    /// The plugin; empty where none is to blame alone.
    pub plugin: String,
    /// Why.
    pub reasons: Vec<String>,
    /// Ending other pods may help.
    pub preemption_may_help: bool,
    /// How many nodes.
    pub nodes: usize,
    /// Some of them.
    pub examples: Vec<String>,
    /// What is missing on the node that lacks the least.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<Missing>,
}

/// What a node lacks of a resource.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Missing {
    /// The resource. CPU is in thousandths, memory in bytes.
    pub resource: String,
    /// What the pod asks for.
    pub requested: i64,
    /// What is free on the node; less than nothing where pods were put there regardless.
    pub free: i64,
    /// What the node has in all.
    pub allocatable: i64,
    /// The node.
    pub node: String,
}

/// What preemption would do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Preemption {
    /// The plugin.
    pub plugin: String,
    /// Where there would be room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Who would be ended, as `namespace/name`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub victims: Vec<String>,
    /// Why not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub refused: String,
}

/// An event that brings the pod back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Wake {
    /// The plugin that rejects the pod and registered for the event.
    pub plugin: String,
    /// The kind of object.
    pub resource: String,
    /// What has to happen to it.
    pub actions: Vec<String>,
    /// The plugin looks at the object whether it helps.
    pub looks_at_the_object: bool,
}

/// See the module. `waiting` is what the queue knows of the pod.
pub fn explain(
    framework: &Framework,
    snapshot: &Snapshot,
    pod: &Arc<PodInfo>,
    nominator: &Nominator,
    waiting: Option<PodInQueue>,
) -> Explanation {
    let mut explanation = Explanation {
        namespace: pod.namespace().to_owned(),
        name: pod.name().to_owned(),
        scheduler_name: framework.profile_name().to_owned(),
        nodes: snapshot.num_nodes(),
        waiting: waiting.map(Waiting::from),
        ..Explanation::default()
    };
    // A decider of its own: nothing is kept, and ties fall the same way each time.
    let decided = Decider::new(0).decide(framework, snapshot, pod, nominator);
    match decided {
        Ok(chosen) => {
            explanation.would_go_to = Some(chosen.node_name.to_string());
            explanation.feasible_nodes = chosen.feasible_nodes;
        }
        Err(NotChosen::NoNodes) => explanation.message = NO_NODES_AVAILABLE.to_owned(),
        Err(NotChosen::Error(status)) => explanation.message = status.message(),
        Err(NotChosen::NoFit(fit)) => not_fit(&mut explanation, framework, snapshot, pod, &fit),
    }
    if explanation.woken_by.is_empty()
        && let Some(gate) = explanation
            .waiting
            .as_ref()
            .and_then(|w| w.gated_by.clone())
    {
        explanation.woken_by = wakes(framework, |plugin| plugin == gate);
    }
    explanation
}

fn not_fit(
    explanation: &mut Explanation,
    framework: &Framework,
    snapshot: &Snapshot,
    pod: &Arc<PodInfo>,
    fit: &FitError,
) {
    explanation.groups = groups(snapshot, pod, fit);
    let mut state = CycleState::new();
    let _ = framework.run_pre_filter_plugins(&mut state, pod, snapshot);
    let statuses = &fit.diagnosis.node_to_status;
    let mut told = fit.clone();
    for plugin in &framework.points().post_filter {
        let Some(post_filter) = plugin.as_post_filter() else {
            continue;
        };
        if let Some(plan) = post_filter.dry_run(&state, pod, snapshot, statuses) {
            let key = |pod: &Arc<PodInfo>| format!("{}/{}", pod.namespace(), pod.name());
            let said = plan.status.message();
            told.diagnosis.post_filter_msg.clone_from(&said);
            let refused = Some(said).filter(|_| plan.node.is_none());
            explanation.preemption = Some(Preemption {
                plugin: plugin.name().to_owned(),
                node: plan.node.map(|node| node.to_string()),
                victims: plan.victims.iter().map(key).collect(),
                refused: refused.unwrap_or_default(),
            });
            break;
        }
    }
    explanation.message = told.message();
    let rejectors = &fit.diagnosis.unschedulable_plugins;
    explanation.woken_by = wakes(framework, |plugin| rejectors.contains(plugin));
}

/// The nodes by why they are rejected, the largest group first.
fn groups(snapshot: &Snapshot, pod: &PodInfo, fit: &FitError) -> Vec<Group> {
    let statuses = &fit.diagnosis.node_to_status;
    let mut by_status: BTreeMap<(&str, &[String], bool), Vec<&Arc<NodeInfo>>> = BTreeMap::new();
    for (_, node) in snapshot.list() {
        let status: &Status = statuses.get(node.name(), snapshot);
        let may_help = status.code() == Code::Unschedulable;
        let key = (status.plugin(), status.reasons(), may_help);
        by_status.entry(key).or_default().push(node);
    }
    let mut groups: Vec<Group> = Vec::new();
    for ((plugin, reasons, may_help), nodes) in by_status {
        let names = nodes
            .iter()
            .take(EXAMPLES)
            .map(|node| node.name().to_string());
        groups.push(Group {
            plugin: plugin.to_owned(),
            reasons: reasons.to_vec(),
            preemption_may_help: may_help,
            nodes: nodes.len(),
            examples: names.collect(),
            missing: least_missing(pod, &nodes),
        });
    }
    groups.sort_by(|a, b| {
        b.nodes
            .cmp(&a.nodes)
            .then_with(|| a.reasons.cmp(&b.reasons))
    });
    groups
}

/// What is missing on the node that comes nearest: it lacks the fewest resources, and of them the smallest share.
fn least_missing(pod: &PodInfo, nodes: &[&Arc<NodeInfo>]) -> Vec<Missing> {
    let share = |missing: &[Missing]| -> f64 {
        let of =
            |m: &Missing| m.requested.saturating_sub(m.free) as f64 / m.requested.max(1) as f64;
        missing.iter().map(of).sum()
    };
    let all = nodes.iter().map(|node| missing(pod, node));
    let nearest = all.filter(|missing| !missing.is_empty()).min_by(|a, b| {
        let order = a.len().cmp(&b.len());
        order.then_with(|| share(a).total_cmp(&share(b)))
    });
    nearest.unwrap_or_default()
}

/// Which resources the node has too little of for the pod.
pub fn missing(pod: &PodInfo, node: &NodeInfo) -> Vec<Missing> {
    let (wanted, allocatable, used) =
        (&pod.requests.resource, node.allocatable(), node.requested());
    let mut found = Vec::new();
    let mut look = |resource: &str, requested: i64, used: i64| {
        let allocatable = Resource::get(allocatable, resource);
        let free = allocatable - used;
        if requested > 0 && requested > free {
            found.push(Missing {
                resource: resource.to_owned(),
                requested,
                free,
                allocatable,
                node: node.name().to_string(),
            });
        }
    };
    let pods = i64::try_from(node.pods().len()).unwrap_or(i64::MAX);
    look("pods", 1, pods);
    for resource in ["cpu", "memory", "ephemeral-storage"] {
        look(resource, wanted.get(resource), used.get(resource));
    }
    for (resource, amount) in &wanted.scalar {
        look(resource, *amount, used.get(resource));
    }
    found
}

/// The events that the plugins registered for.
fn wakes(framework: &Framework, of: impl Fn(&str) -> bool) -> Vec<Wake> {
    let hints = queueing(framework).hints;
    let wake = |(plugin, hint): &(&'static str, ClusterEventWithHint)| Wake {
        plugin: (*plugin).to_owned(),
        resource: hint.event.resource.as_str().to_owned(),
        actions: actions(hint.event.action),
        looks_at_the_object: hint.queueing_hint.is_some(),
    };
    hints
        .iter()
        .filter(|(plugin, _)| of(plugin))
        .map(wake)
        .collect()
}

fn actions(action: ActionType) -> Vec<String> {
    if action == ActionType::ALL {
        return vec!["any change".to_owned()];
    }
    action.names().map(str::to_owned).collect()
}

impl From<PodInQueue> for Waiting {
    fn from(queued: PodInQueue) -> Self {
        let names = queued.rejected_by.iter().map(|plugin| (*plugin).to_owned());
        Waiting {
            queue: queued.place.to_owned(),
            attempts: queued.attempts,
            rejected_by: names.collect(),
            gated_by: queued.gated_by.map(str::to_owned),
            backoff_milliseconds: queued
                .backoff
                .map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}
