//! The decision: on which nodes to create and which pods to delete, and the status. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use component_helpers::affinity::RequiredNodeAffinity;
use component_helpers::intstr::scaled_value;
use component_helpers::owner_ref::new_controller_ref;
use component_helpers::pod::{
    is_pod_available, is_pod_ready, is_terminal, is_terminating, label, node_name, phase,
    tolerations,
};
use component_helpers::taints::tolerations_tolerate_taint;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod,
    Toleration,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::history::HASH_LABEL;
use crate::pod_control::pod_from_template;

/// Upstream's BurstReplicas.
const BURST_REPLICAS: usize = 250;
/// The generation of the template, for those from before hashes.
const TEMPLATE_GENERATION: &str = "pod-template-generation";
/// Deprecated, and still how a DaemonSet gets a template generation.
const DEPRECATED_TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// What the caches hold about one DaemonSet.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub nodes: Vec<Arc<Node>>,
    /// Controlled and selected.
    pub pods: Vec<Arc<Pod>>,
    /// Of the revision of the present template.
    pub hash: String,
    /// All that was done before has been seen: pods may be created and deleted.
    pub expectations_met: bool,
    /// Nodes on which failed pods are left alone for now.
    pub held_back: BTreeSet<String>,
}

/// What to do about the pods.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub create: Vec<Pod>,
    pub delete: Vec<Arc<Pod>>,
}

type ByNode<'a> = BTreeMap<String, Vec<&'a Arc<Pod>>>;

/// Decides one pass.
pub fn sync(ds: &DaemonSet, observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if !observed.expectations_met || ds.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let by_node = by_node(&observed.pods);
    let mut nodes = Vec::new();
    for node in &observed.nodes {
        manage_node(
            ds,
            node,
            &by_node,
            observed,
            now,
            &mut nodes,
            &mut plan.delete,
        );
    }
    // Of nodes that are gone the pod collector takes care, but for pods nobody has bound.
    let known = |name: &str| {
        observed
            .nodes
            .iter()
            .any(|n| n.metadata.name.as_deref() == Some(name))
    };
    for (name, pods) in &by_node {
        if !known(name) {
            let unbound = pods
                .iter()
                .filter(|p| node_name(p).is_none() && !is_terminating(p));
            plan.delete.extend(unbound.map(|p| (*p).clone()));
        }
    }
    // An update waits until the rest is as it should be.
    if nodes.is_empty() && plan.delete.is_empty() && is_rolling(ds) {
        rolling_update(ds, observed, &by_node, now, &mut nodes, &mut plan.delete);
    }
    nodes.truncate(BURST_REPLICAS);
    plan.delete.truncate(BURST_REPLICAS);
    plan.create = nodes
        .iter()
        .map(|node| new_pod(ds, node, &observed.hash))
        .collect();
    plan
}

fn is_rolling(ds: &DaemonSet) -> bool {
    let strategy = ds
        .spec
        .update_strategy
        .as_ref()
        .and_then(|s| s.type_.as_deref());
    strategy.unwrap_or("RollingUpdate") == "RollingUpdate"
}

fn by_node(pods: &[Arc<Pod>]) -> ByNode<'_> {
    let mut by_node = ByNode::new();
    for pod in pods
        .iter()
        .filter(|p| !(is_terminating(p) && is_terminal(p)))
    {
        if let Some(node) = target_node(pod) {
            by_node.entry(node).or_default().push(pod);
        }
    }
    by_node
}

/// The node a pod is bound to, or pinned to.
pub fn target_node(pod: &Pod) -> Option<String> {
    if let Some(name) = node_name(pod) {
        return Some(name.to_owned());
    }
    let terms = RequiredNodeAffinity::new(pod).terms?;
    let names = terms
        .terms()
        .iter()
        .find_map(|t| t.node_name().map(str::to_owned));
    names
}

/// Whether a pod should be started there, and whether one that is there may stay.
pub fn node_should_run(ds: &DaemonSet, node: &Node) -> (bool, bool) {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let pod = new_pod(ds, name, "");
    let own_node = ds
        .spec
        .template
        .spec
        .as_ref()
        .and_then(|s| s.node_name.as_deref());
    let fits_name = own_node.is_none_or(|own| own.is_empty() || own == name);
    // The pin has replaced fields of the template's terms; labels must fit all the same.
    if !fits_name || !RequiredNodeAffinity::new(&template_pod(ds)).matches(node) {
        return (false, false);
    }
    let taints = node
        .spec
        .as_ref()
        .and_then(|s| s.taints.as_deref())
        .unwrap_or_default();
    let tolerated = |effects: &[&str]| {
        taints
            .iter()
            .filter(|t| effects.contains(&t.effect.as_str()))
            .all(|t| tolerations_tolerate_taint(tolerations(&pod), t, false))
    };
    let stays = tolerated(&["NoExecute"]);
    (stays && tolerated(&["NoSchedule"]), stays)
}

fn template_pod(ds: &DaemonSet) -> Pod {
    Pod {
        spec: ds.spec.template.spec.clone(),
        ..Pod::default()
    }
}

fn age(pod: &Pod) -> (bool, Option<Timestamp>, Option<String>) {
    // Running ones first, then the oldest.
    let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    (node_name(pod).is_none(), created, pod.metadata.name.clone())
}

fn manage_node(
    ds: &DaemonSet,
    node: &Node,
    by_node: &ByNode<'_>,
    observed: &Observed,
    now: Timestamp,
    create: &mut Vec<String>,
    delete: &mut Vec<Arc<Pod>>,
) {
    let name = node.metadata.name.clone().unwrap_or_default();
    let (run, stay) = node_should_run(ds, node);
    let mut held_back = observed.held_back.contains(&name);
    let pods = by_node.get(&name).map(Vec::as_slice).unwrap_or_default();
    let present = pods.iter().filter(|p| !is_terminating(p));
    if !stay {
        delete.extend(present.map(|p| (*p).clone()));
        return;
    }
    if run && pods.is_empty() {
        create.push(name);
        return;
    }
    let (ended, mut running): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) =
        present.copied().partition(|p| is_terminal(p));
    for pod in ended {
        // Of several failed ones one goes; the back-off it starts holds for the others.
        if phase(pod) != "Failed" || !std::mem::replace(&mut held_back, true) {
            delete.push(pod.clone());
        }
    }
    running.sort_by_key(|p| age(p));
    if max_surge(ds, observed) == 0 {
        delete.extend(running.into_iter().skip(1).cloned());
        return;
    }
    if running.is_empty() && run {
        create.push(name);
        return;
    }
    let (new, old): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) = running
        .into_iter()
        .partition(|p| label(p, HASH_LABEL) == Some(&observed.hash));
    delete.extend(
        new.iter()
            .skip(1)
            .chain(old.iter().skip(1))
            .map(|p| (*p).clone()),
    );
    if let (Some(new), Some(old)) = (new.first(), old.first())
        && (!is_pod_ready(old) || is_pod_available(new, min_ready_seconds(ds), now))
    {
        delete.push((*old).clone());
    }
}

/// `minReadySeconds`.
pub fn min_ready_seconds(ds: &DaemonSet) -> i32 {
    ds.spec.min_ready_seconds.unwrap_or(0)
}

fn desired(ds: &DaemonSet, nodes: &[Arc<Node>]) -> i32 {
    let wanted = nodes.iter().filter(|n| node_should_run(ds, n).0).count();
    i32::try_from(wanted).unwrap_or(i32::MAX)
}

fn max_surge(ds: &DaemonSet, observed: &Observed) -> i32 {
    let rolling = ds
        .spec
        .update_strategy
        .as_ref()
        .and_then(|s| s.rolling_update.as_ref());
    let surge = rolling
        .and_then(|r| r.max_surge.as_ref())
        .filter(|_| is_rolling(ds));
    surge.map_or(0, |v| match v {
        IntOrString::Int(0) => 0,
        v => scaled_value(v, desired(ds, &observed.nodes), true).unwrap_or(0),
    })
}

fn max_unavailable(ds: &DaemonSet, observed: &Observed) -> i32 {
    let rolling = ds
        .spec
        .update_strategy
        .as_ref()
        .and_then(|s| s.rolling_update.as_ref());
    let one = IntOrString::Int(1);
    let value = rolling
        .and_then(|r| r.max_unavailable.as_ref())
        .unwrap_or(&one);
    scaled_value(value, desired(ds, &observed.nodes), true).unwrap_or(1)
}

/// Old pods that are not available go at once, others as `maxUnavailable` allows; with `maxSurge` new ones come before. Where none
/// may come (a taint) the old one goes too, as soon as there are enough without it.
fn rolling_update(
    ds: &DaemonSet,
    observed: &Observed,
    by_node: &ByNode<'_>,
    now: Timestamp,
    create: &mut Vec<String>,
    delete: &mut Vec<Arc<Pod>>,
) {
    let surge = max_surge(ds, observed);
    let available = |p: &Pod| is_pod_available(p, min_ready_seconds(ds), now);
    let (mut unavailable, mut surging, mut serving) = (0, 0, 0);
    let mut candidates: Vec<(&String, &Arc<Pod>)> = Vec::new();
    for (node, pods) in by_node {
        let present = pods.iter().filter(|p| !is_terminating(p));
        let (new, old): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) = present
            .copied()
            .partition(|p| label(p, HASH_LABEL) == Some(&observed.hash));
        serving += i32::from(old.first().or(new.first()).is_some_and(|p| available(p)));
        match (new.first(), old.first()) {
            (None, None) => unavailable += 1,
            (Some(_), Some(_)) => {
                unavailable += 1;
                surging += 1;
            }
            (Some(new), None) => unavailable += i32::from(!available(new)),
            (None, Some(old)) if surge > 0 || available(old) => candidates.push((node, old)),
            (None, Some(old)) => {
                unavailable += 1;
                delete.push((*old).clone());
            }
        }
    }
    let room = |limit: i32, used: i32| usize::try_from(limit - used).unwrap_or(0);
    if surge > 0 {
        let runs = |name: &str| {
            let node = observed
                .nodes
                .iter()
                .find(|n| n.metadata.name.as_deref() == Some(name));
            node.map(|n| node_should_run(ds, n).0)
        };
        let mut more = room(surge, surging);
        let mut surplus = room(serving, desired(ds, &observed.nodes));
        for (name, old) in candidates {
            let broken = !available(old);
            match runs(name) {
                Some(true) if broken => create.push(name.clone()),
                Some(true) if more > 0 => {
                    more -= 1;
                    create.push(name.clone());
                }
                Some(false) if broken => delete.push(old.clone()),
                Some(false) if surplus > 0 => {
                    surplus -= 1;
                    delete.push(old.clone());
                }
                _ => {}
            }
        }
    } else {
        let more = candidates
            .iter()
            .take(room(max_unavailable(ds, observed), unavailable));
        delete.extend(more.map(|(_, pod)| (*pod).clone()));
    }
}

fn template_generation(ds: &DaemonSet) -> Option<String> {
    ds.metadata
        .annotations
        .as_ref()?
        .get(DEPRECATED_TEMPLATE_GENERATION)
        .cloned()
}

/// A pod pinned to a node, with the tolerations that every daemon pod has.
pub fn new_pod(ds: &DaemonSet, node: &str, hash: &str) -> Pod {
    let template = ds.spec.template.clone();
    let owner = new_controller_ref::<DaemonSet>(&ds.metadata);
    let generate_name = format!("{}-", ds.metadata.name.as_deref().unwrap_or_default());
    let mut pod = pod_from_template(
        &template,
        ds.metadata.namespace.clone(),
        generate_name,
        owner,
    );
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
    labels.extend(template_generation(ds).map(|g| (TEMPLATE_GENERATION.to_owned(), g)));
    let spec = pod.spec.get_or_insert_default();
    let affinity = spec.affinity.get_or_insert_with(Affinity::default);
    pin(
        affinity
            .node_affinity
            .get_or_insert_with(NodeAffinity::default),
        node,
    );
    let network = spec.host_network == Some(true);
    let wanted = [
        ("not-ready", "NoExecute"),
        ("unreachable", "NoExecute"),
        ("disk-pressure", "NoSchedule"),
        ("memory-pressure", "NoSchedule"),
        ("pid-pressure", "NoSchedule"),
        ("unschedulable", "NoSchedule"),
        ("network-unavailable", "NoSchedule"),
    ];
    let tolerations = spec.tolerations.get_or_insert_default();
    for (name, effect) in wanted
        .into_iter()
        .filter(|(name, _)| *name != "network-unavailable" || network)
    {
        let toleration = Toleration {
            key: Some(format!("node.kubernetes.io/{name}")),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        add_or_update(tolerations, toleration);
    }
    pod
}

/// One of the template that differs in nothing but its time becomes endless: daemon pods are not evicted from a node in trouble.
/// Upstream: `AddOrUpdateTolerationInPodSpec`.
fn add_or_update(tolerations: &mut Vec<Toleration>, wanted: Toleration) {
    let is_same = |own: &Toleration| {
        let value = own.value.as_deref().unwrap_or_default();
        own.key == wanted.key
            && own.operator == wanted.operator
            && own.effect == wanted.effect
            && value.is_empty()
    };
    let mut found = false;
    for own in tolerations.iter_mut().filter(|own| is_same(own)) {
        own.toleration_seconds = None;
        found = true;
    }
    if !found {
        tolerations.push(wanted);
    }
}

/// The node's name replaces what the terms say of fields.
fn pin(affinity: &mut NodeAffinity, node: &str) {
    let field = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(NodeSelector::default);
    if required.node_selector_terms.is_empty() {
        required
            .node_selector_terms
            .push(NodeSelectorTerm::default());
    }
    for term in &mut required.node_selector_terms {
        term.match_fields = Some(vec![field.clone()]);
    }
}

/// The status by what is observed now.
pub fn calculate_status(ds: &DaemonSet, observed: &Observed, now: Timestamp) -> DaemonSetStatus {
    let by_node = by_node(&observed.pods);
    let old = ds.status.clone().unwrap_or_default();
    let mut status = DaemonSetStatus {
        collision_count: old.collision_count,
        conditions: old.conditions,
        observed_generation: ds.metadata.generation,
        ..DaemonSetStatus::default()
    };
    let (mut available, mut updated) = (0, 0);
    for node in &observed.nodes {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let mut pods = by_node.get(name).cloned().unwrap_or_default();
        let (run, _) = node_should_run(ds, node);
        if !run {
            status.number_misscheduled += i32::from(!pods.is_empty());
            continue;
        }
        status.desired_number_scheduled += 1;
        // The oldest stands for its node: a node that surges is updated when its old pod has gone.
        pods.sort_by_key(|p| age(p));
        let Some(pod) = pods.first() else { continue };
        status.current_number_scheduled += 1;
        let ready = is_pod_ready(pod) && phase(pod) != "Failed";
        status.number_ready += i32::from(ready);
        available += i32::from(ready && is_pod_available(pod, min_ready_seconds(ds), now));
        updated += i32::from(label(pod, HASH_LABEL) == Some(&observed.hash));
    }
    let nonzero = |n: i32| Some(n).filter(|n| *n != 0);
    status.updated_number_scheduled = nonzero(updated);
    status.number_available = nonzero(available);
    status.number_unavailable = nonzero(status.desired_number_scheduled - available);
    status
}
