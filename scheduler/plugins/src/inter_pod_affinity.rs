//! InterPodAffinity: pods near to, or far from, other pods, by what they themselves ask and by what those already placed ask.
//!
//! What a placed pod contributes is told by [`terms`] alone. From scratch, contributions are summed by label value ([`counts`]); in the [`view`] kept for a
//! signature they are summed by domain, and a node that changed is taken out and put in again. Upstream: plugins/interpodaffinity, v1.36.

use std::sync::Arc;

use framework::args::{InterPodAffinityArgs, decode};
use framework::{
    CycleState, EnqueueExtensions, FilterPlugin, Fragments, Handle, Incremental, NodeInfo,
    NodeScore, NodeSet, Normalize, Plugin, PluginError, PodInfo, PreFilterExtensions,
    PreFilterPlugin, PreFilterResult, PreScorePlugin, ScorePlugin, Sign, Snapshot, Status,
};

use crate::names;

mod counts;
mod hints;
mod terms;
#[cfg(test)]
mod tests;
mod view;

use counts::Counts;
use terms::{Kind, Terms};

/// A placed pod does not want this one near.
pub const ERR_REASON_EXISTING_ANTI_AFFINITY_RULES_NOT_MATCH: &str =
    "node(s) didn't satisfy existing pods anti-affinity rules";
/// The pods that this one wants near are not there.
pub const ERR_REASON_AFFINITY_RULES_NOT_MATCH: &str = "node(s) didn't match pod affinity rules";
/// A pod that this one does not want near is there.
pub const ERR_REASON_ANTI_AFFINITY_RULES_NOT_MATCH: &str =
    "node(s) didn't match pod anti-affinity rules";

const FILTER_STATE: &str = "PreFilterInterPodAffinity";
const SCORE_STATE: &str = "PreScoreInterPodAffinity";

struct InterPodAffinity {
    args: InterPodAffinityArgs,
    handle: Arc<dyn Handle>,
}

/// Makes the plugin.
///
/// # Errors
/// For arguments that do not decode or are out of range.
pub fn new(
    args: Option<&serde_json::Value>,
    handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    let args: InterPodAffinityArgs = decode(names::INTER_POD_AFFINITY, args)?;
    let weight = args.hard_pod_affinity_weight;
    if !(0..=100).contains(&weight) {
        let problems = vec![format!(
            "hardPodAffinityWeight: Invalid value: {weight}: not in valid range [0, 100]"
        )];
        return Err(PluginError::Invalid {
            plugin: names::INTER_POD_AFFINITY,
            problems,
        });
    }
    Ok(Arc::new(InterPodAffinity { args, handle }))
}

impl InterPodAffinity {
    fn terms(&self, pod: &Arc<PodInfo>) -> Terms {
        Terms::new(pod, self.handle.listers(), &self.args)
    }
}

/// What filtering needs.
#[derive(Clone)]
struct FilterState {
    terms: Arc<Terms>,
    counts: Counts,
}

impl FilterState {
    fn change(&mut self, pod: &PodInfo, node: &NodeInfo, delta: i64) {
        let counts = &mut self.counts;
        self.terms
            .filter_contributions(pod, &mut |kind, key| counts.add(kind, key, node, delta));
    }
}

/// What scoring needs.
struct ScoreState {
    counts: Counts,
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        names::INTER_POD_AFFINITY
    }

    fn sign(&self, pod: &PodInfo, snapshot: &Snapshot) -> Option<Sign> {
        if !pod.has_affinity() && snapshot.nodes_with_affinity().is_empty() {
            return Some(Sign::node(Fragments::POD_AFFINITY));
        }
        let sign =
            Sign::cluster(Fragments::POD_AFFINITY | Fragments::LABELS | Fragments::NAMESPACE);
        Some(Sign {
            inputs: self.handle.listers().namespaces_revision(),
            ..sign
        })
    }

    fn incremental(&self, pod: &Arc<PodInfo>, snapshot: &Snapshot) -> Option<Box<dyn Incremental>> {
        Some(Box::new(view::View::new(self.terms(pod), snapshot)))
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

impl PreFilterPlugin for InterPodAffinity {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
    ) -> (PreFilterResult, Status) {
        let terms = self.terms(pod);
        let mut counts = Counts::default();
        for (_, node) in terms.filter_nodes(snapshot) {
            for other in terms.filter_pods(node) {
                terms.filter_contributions(other, &mut |kind, key| counts.add(kind, key, node, 1));
            }
        }
        if counts.is_empty(Kind::ExistingAntiAffinity) && !terms.has_required() {
            return (PreFilterResult::default(), Status::skip());
        }
        state.write(
            FILTER_STATE,
            FilterState {
                terms: Arc::new(terms),
                counts,
            },
        );
        (PreFilterResult::default(), Status::success())
    }

    fn extensions(&self) -> Option<&dyn PreFilterExtensions> {
        Some(self)
    }
}

impl PreFilterExtensions for InterPodAffinity {
    fn add_pod(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        to_add: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Status {
        match state.read_mut::<FilterState>(FILTER_STATE) {
            Some(state) => state.change(to_add, node, 1),
            // Nothing stood against the pod so far; the one to add may.
            None if !to_add.required_anti_affinity_terms.is_empty() => {
                let mut fresh = FilterState {
                    terms: Arc::new(self.terms(pod)),
                    counts: Counts::default(),
                };
                fresh.change(to_add, node, 1);
                state.write(FILTER_STATE, fresh);
            }
            None => {}
        }
        Status::success()
    }

    fn remove_pod(
        &self,
        state: &mut CycleState,
        _pod: &Arc<PodInfo>,
        to_remove: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Status {
        if let Some(state) = state.read_mut::<FilterState>(FILTER_STATE) {
            state.change(to_remove, node, -1);
        }
        Status::success()
    }
}

impl FilterPlugin for InterPodAffinity {
    fn filter(&self, state: &CycleState, _pod: &Arc<PodInfo>, node: &NodeInfo) -> Status {
        let Some(FilterState { terms, counts }) = state.read::<FilterState>(FILTER_STATE) else {
            return Status::error(
                "reading \"PreFilterInterPodAffinity\" from cycleState: not found",
            );
        };
        let mut near = true;
        for term in &terms.affinity {
            match node.labels().get(&term.topology_key) {
                Some(value) => near &= counts.get(Kind::Affinity, &term.topology_key, value) > 0,
                None => return Status::unresolvable(ERR_REASON_AFFINITY_RULES_NOT_MATCH),
            }
        }
        // The first of a group that wants to be together has nobody to join.
        let is_first = terms.matches_itself && counts.is_empty(Kind::Affinity);
        if !near && !is_first {
            return Status::unresolvable(ERR_REASON_AFFINITY_RULES_NOT_MATCH);
        }
        if counts.any_on(Kind::AntiAffinity, node) {
            return Status::unschedulable(ERR_REASON_ANTI_AFFINITY_RULES_NOT_MATCH);
        }
        if counts.any_on(Kind::ExistingAntiAffinity, node) {
            return Status::unschedulable(ERR_REASON_EXISTING_ANTI_AFFINITY_RULES_NOT_MATCH);
        }
        Status::success()
    }
}

impl PreScorePlugin for InterPodAffinity {
    fn pre_score(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        _nodes: &NodeSet,
    ) -> Status {
        let terms = self.terms(pod);
        let mut counts = Counts::default();
        for (_, node) in terms.score_nodes(snapshot) {
            for other in terms.score_pods(node) {
                terms.score_contributions(other, &mut |key, weight| {
                    counts.add_score(key, node, weight)
                });
            }
        }
        if counts.is_untouched() {
            return Status::skip();
        }
        state.write(SCORE_STATE, Arc::new(ScoreState { counts }));
        Status::success()
    }
}

impl ScorePlugin for InterPodAffinity {
    fn score(
        &self,
        state: &CycleState,
        _pod: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Result<i64, Status> {
        match state.read::<Arc<ScoreState>>(SCORE_STATE) {
            Some(state) => Ok(state.counts.sum_on(Kind::Score, node)),
            None => Err(Status::error(
                "failed to read \"PreScoreInterPodAffinity\" from cycleState: not found",
            )),
        }
    }

    fn normalize(&self) -> Normalize {
        Normalize::Custom
    }

    fn normalize_score(
        &self,
        _state: &CycleState,
        _pod: &Arc<PodInfo>,
        _snapshot: &Snapshot,
        scores: &mut [NodeScore],
    ) -> Status {
        let range = view::Range::of(scores.iter().map(|s| s.score));
        for s in scores {
            s.score = range.normalize(s.score);
        }
        Status::success()
    }
}
