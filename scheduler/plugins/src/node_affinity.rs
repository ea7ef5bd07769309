//! NodeAffinity: `nodeSelector`, node affinity, and the affinity a profile adds to every pod.
//!
//! Over all nodes, a term is judged once for each distinct value of a label, not once for each node. Upstream: plugins/nodeaffinity, v1.36.

use std::collections::BTreeSet;
use std::sync::Arc;

use component_helpers::affinity::{
    NodeSelectorTerms, PreferredSchedulingTerms, RequiredNodeAffinity, Term,
};
use framework::args::{NodeAffinityArgs, decode};
use framework::{
    ActionType, ClusterEventWithHint, CycleState, EnqueueExtensions, EventObject, EventResource,
    FilterPlugin, Fragments, Handle, NodeInfo, NodeSet, Normalize, Plugin, PluginError, PodInfo,
    PreFilterPlugin, PreFilterResult, PreScorePlugin, QueueingHint, ScorePlugin, Sign, Snapshot,
    Status, Verdicts,
};
use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorTerm, Pod};

use crate::names;

#[cfg(test)]
mod tests;

/// The pod's own requirements are not met.
pub const ERR_REASON_POD: &str = "node(s) didn't match Pod's node affinity/selector";
/// The profile's requirements are not met.
pub const ERR_REASON_ENFORCED: &str = "node(s) didn't match scheduler-enforced node affinity";
/// The pod's terms ask for different nodes by name.
pub const ERR_REASON_CONFLICT: &str = "pod affinity terms conflict";

const FILTER_STATE: &str = "PreFilterNodeAffinity";
const SCORE_STATE: &str = "PreScoreNodeAffinity";

#[derive(Default)]
struct Inner {
    added_required: Option<NodeSelectorTerms>,
    added_preferred: PreferredSchedulingTerms,
}

struct NodeAffinity(Arc<Inner>);

/// Makes the plugin.
///
/// # Errors
/// For arguments that do not decode or hold wrong terms.
pub fn new(
    args: Option<&serde_json::Value>,
    _handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    let args: NodeAffinityArgs = decode(names::NODE_AFFINITY, args)?;
    let mut inner = Inner::default();
    let mut problems = Vec::new();
    if let Some(added) = &args.added_affinity {
        if let Some(required) = &added.required_during_scheduling_ignored_during_execution {
            let terms = NodeSelectorTerms::new(required);
            problems.extend(terms.errors().iter().map(|e| {
                format!("addedAffinity.requiredDuringSchedulingIgnoredDuringExecution: {e}")
            }));
            inner.added_required = Some(terms);
        }
        match PreferredSchedulingTerms::new(
            added
                .preferred_during_scheduling_ignored_during_execution
                .as_deref()
                .unwrap_or_default(),
        ) {
            Ok(terms) => inner.added_preferred = terms,
            Err(e) => problems.push(format!(
                "addedAffinity.preferredDuringSchedulingIgnoredDuringExecution: {e}"
            )),
        }
    }
    if !problems.is_empty() {
        return Err(PluginError::Invalid {
            plugin: names::NODE_AFFINITY,
            problems,
        });
    }
    Ok(Arc::new(NodeAffinity(Arc::new(inner))))
}

fn required_terms(pod: &PodInfo) -> Option<&NodeSelector> {
    pod.affinity()?
        .node_affinity
        .as_ref()?
        .required_during_scheduling_ignored_during_execution
        .as_ref()
}

/// The node names a term allows; `None` when it does not speak of names.
fn names_of(term: &NodeSelectorTerm) -> Option<BTreeSet<String>> {
    let mut names: Option<BTreeSet<String>> = None;
    for field in term
        .match_fields
        .iter()
        .flatten()
        .filter(|field| field.key == "metadata.name" && field.operator == "In")
    {
        let values: BTreeSet<String> = field.values.iter().flatten().cloned().collect();
        names = Some(match names {
            Some(names) => names.intersection(&values).cloned().collect(),
            None => values,
        });
    }
    names
}

/// Which nodes match some of `terms`.
pub(crate) fn matching(terms: &[Term], snapshot: &Snapshot, among: &NodeSet) -> NodeSet {
    let mut all = NodeSet::with_capacity(snapshot.columns().len());
    for term in terms {
        all.union_with(&matching_term(term, snapshot, among));
    }
    all
}

fn matching_term(term: &Term, snapshot: &Snapshot, among: &NodeSet) -> NodeSet {
    let mut nodes = match term.node_name() {
        Some(name) => snapshot
            .index(name)
            .filter(|index| among.contains(*index))
            .into_iter()
            .collect(),
        None => among.clone(),
    };
    if term.has_fields() {
        let fits = |node: &u32| {
            snapshot
                .node(*node)
                .is_some_and(|info| term.matches_fields(info.name()))
        };
        nodes = nodes.iter().filter(fits).collect();
    }
    for requirement in term.label_requirements() {
        retain(&mut nodes, snapshot, &requirement.key, |value| {
            requirement.matches_value(value)
        });
    }
    nodes
}

/// Keeps the nodes whose value of the label `key` pleases; each distinct value is asked about once.
fn retain(
    nodes: &mut NodeSet,
    snapshot: &Snapshot,
    key: &str,
    pleases: impl Fn(Option<&str>) -> bool,
) {
    let column = snapshot.label_column(key);
    let by_id: Vec<bool> = column
        .values
        .iter()
        .enumerate()
        .map(|(id, value)| pleases((id > 0).then_some(&**value)))
        .collect();
    let absent = pleases(None);
    let keeps = |node: &u32| {
        column
            .ids
            .get(*node as usize)
            .map_or(absent, |id| by_id[*id as usize])
    };
    *nodes = nodes.iter().filter(keeps).collect();
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        names::NODE_AFFINITY
    }
    fn sign(&self, _pod: &PodInfo, _snapshot: &Snapshot) -> Option<Sign> {
        Some(Sign::node(Fragments::NODE_AFFINITY))
    }
    fn as_pre_filter(&self) -> Option<&dyn PreFilterPlugin> {
        Some(self)
    }
    fn as_filter(&self) -> Option<&dyn FilterPlugin> {
        Some(self)
    }
    fn as_pre_score(&self) -> Option<&dyn PreScorePlugin> {
        Some(self)
    }
    fn as_score(&self) -> Option<&dyn ScorePlugin> {
        Some(self)
    }
    fn as_enqueue_extensions(&self) -> Option<&dyn EnqueueExtensions> {
        Some(self)
    }
}

impl PreFilterPlugin for NodeAffinity {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        _snapshot: &Snapshot,
    ) -> (PreFilterResult, Status) {
        let required = RequiredNodeAffinity::new(&pod.pod);
        if required.is_empty() && self.0.added_required.is_none() {
            return (PreFilterResult::default(), Status::skip());
        }
        state.write(FILTER_STATE, Arc::new(required));
        let terms = required_terms(pod)
            .map(|selector| selector.node_selector_terms.as_slice())
            .unwrap_or_default();
        let mut node_names = BTreeSet::new();
        for term in terms {
            // Terms are alternatives: one that allows every name opens all nodes.
            match names_of(term) {
                Some(names) => node_names.extend(names),
                None => return (PreFilterResult::default(), Status::success()),
            }
        }
        if terms.is_empty() {
            return (PreFilterResult::default(), Status::success());
        }
        if node_names.is_empty() {
            return (
                PreFilterResult::default(),
                Status::unresolvable(ERR_REASON_CONFLICT),
            );
        }
        (
            PreFilterResult {
                node_names: Some(node_names),
            },
            Status::success(),
        )
    }
}

impl FilterPlugin for NodeAffinity {
    fn filter(&self, state: &CycleState, pod: &Arc<PodInfo>, node: &NodeInfo) -> Status {
        if self
            .0
            .added_required
            .as_ref()
            .is_some_and(|terms| !terms.matches(node.name(), node.labels()))
        {
            return Status::unresolvable(ERR_REASON_ENFORCED);
        }
        let matches = match state.read::<Arc<RequiredNodeAffinity>>(FILTER_STATE) {
            Some(required) => required.matches_labels(node.name(), node.labels()),
            None => RequiredNodeAffinity::new(&pod.pod).matches_labels(node.name(), node.labels()),
        };
        if matches {
            Status::success()
        } else {
            Status::unresolvable(ERR_REASON_POD)
        }
    }

    fn filter_all(
        &self,
        _state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        verdicts: &mut Verdicts,
    ) -> bool {
        if let Some(added) = &self.0.added_required {
            let fit = matching(added.terms(), snapshot, verdicts.feasible());
            verdicts.reject_where(
                || Status::unresolvable(ERR_REASON_ENFORCED),
                |node| !fit.contains(node),
            );
        }
        let required = RequiredNodeAffinity::new(&pod.pod);
        let mut fit = verdicts.feasible().clone();
        for (key, wanted) in required.labels.iter().flatten() {
            retain(&mut fit, snapshot, key, |value| value == Some(wanted));
        }
        if let Some(terms) = &required.terms {
            fit = matching(terms.terms(), snapshot, &fit);
        }
        if fit.len() < verdicts.feasible().len() {
            verdicts.reject_where(
                || Status::unresolvable(ERR_REASON_POD),
                |node| !fit.contains(node),
            );
        }
        true
    }
}

impl PreScorePlugin for NodeAffinity {
    fn pre_score(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        _snapshot: &Snapshot,
        _nodes: &NodeSet,
    ) -> Status {
        let preferred = match PreferredSchedulingTerms::of_pod(&pod.pod) {
            Ok(preferred) => preferred,
            Err(error) => return Status::error(error),
        };
        if preferred.terms().is_empty() && self.0.added_preferred.terms().is_empty() {
            return Status::skip();
        }
        state.write(SCORE_STATE, Arc::new(preferred));
        Status::success()
    }
}

impl ScorePlugin for NodeAffinity {
    fn score(
        &self,
        state: &CycleState,
        _pod: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Result<i64, Status> {
        let own = state.read::<Arc<PreferredSchedulingTerms>>(SCORE_STATE);
        let own = own.map_or(0, |preferred| preferred.score(node.name(), node.labels()));
        Ok(self.0.added_preferred.score(node.name(), node.labels()) + own)
    }

    fn score_all(
        &self,
        state: &CycleState,
        _pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        nodes: &NodeSet,
        scores: &mut [i64],
    ) -> bool {
        for node in nodes.iter() {
            scores[node as usize] = 0;
        }
        let own = state.read::<Arc<PreferredSchedulingTerms>>(SCORE_STATE);
        for (term, weight) in self
            .0
            .added_preferred
            .terms()
            .iter()
            .chain(own.iter().flat_map(|own| own.terms()))
        {
            for node in matching_term(term, snapshot, nodes).iter() {
                scores[node as usize] += i64::from(*weight);
            }
        }
        true
    }

    fn normalize(&self) -> Normalize {
        Normalize::ByMax { reverse: false }
    }
}

impl EnqueueExtensions for NodeAffinity {
    fn events_to_register(&self) -> Vec<ClusterEventWithHint> {
        let inner = Arc::clone(&self.0);
        let hint = move |pod: &Arc<Pod>, old: Option<&EventObject>, new: Option<&EventObject>| {
            let Some(new) = new.and_then(EventObject::node) else {
                return QueueingHint::QueueSkip;
            };
            after_node_change(&inner, pod, old.and_then(EventObject::node), new)
        };
        vec![ClusterEventWithHint::with_hint(
            EventResource::Node,
            ActionType::ADD | ActionType::UPDATE_NODE_LABEL,
            hint,
        )]
    }
}

fn after_node_change(
    inner: &Inner,
    pod: &Arc<Pod>,
    old: Option<&Arc<Node>>,
    new: &Arc<Node>,
) -> QueueingHint {
    let added = |node: &Node| {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        inner
            .added_required
            .as_ref()
            .is_none_or(|terms| terms.matches(name, &node.metadata.labels))
    };
    let required = RequiredNodeAffinity::new(pod);
    let fits = |node: &Node| added(node) && required.matches(node);
    if fits(new) && !old.is_some_and(|old| fits(old)) {
        QueueingHint::Queue
    } else {
        QueueingHint::QueueSkip
    }
}
