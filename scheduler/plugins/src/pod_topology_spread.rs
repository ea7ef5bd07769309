//! PodTopologySpread: pods that belong together are spread evenly over zones, nodes, or any other topology.
//!
//! `DoNotSchedule` constraints filter, `ScheduleAnyway` constraints score. Both rest on the same counting ([`counter`]): how many matching pods each domain
//! (value of a topology label) holds. Pods of one signature share a [`view`] whose counts are kept up to date node by node.
//! Upstream: plugins/podtopologyspread, v1.36.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use framework::args::{PodTopologySpreadArgs, decode};
use framework::{
    CycleState, EnqueueExtensions, FilterPlugin, Fragments, Handle, Incremental, NodeInfo,
    NodeScore, NodeSet, Normalize, Plugin, PluginError, PodInfo, PreFilterExtensions,
    PreFilterPlugin, PreFilterResult, PreScorePlugin, ScorePlugin, Sign, Snapshot, Status,
    Verdicts,
};

use crate::names;

mod constraint;
mod counter;
mod hints;
mod score;
#[cfg(test)]
mod tests;
mod validation;
mod view;

use constraint::{Action, Constraint, Source};
use counter::{Counter, Domains};
use score::SoftState;

/// A constraint would be broken.
pub const ERR_REASON_CONSTRAINTS_NOT_MATCH: &str =
    "node(s) didn't match pod topology spread constraints";
/// The node is in no domain.
pub const ERR_REASON_NODE_LABEL_NOT_MATCH: &str =
    "node(s) didn't match pod topology spread constraints (missing required label)";

const FILTER_STATE: &str = "PreFilterPodTopologySpread";
const SCORE_STATE: &str = "PreScorePodTopologySpread";

struct PodTopologySpread {
    source: Arc<Source>,
}

/// Makes the plugin.
///
/// # Errors
/// For arguments that do not decode or make no sense.
pub fn new(
    args: Option<&serde_json::Value>,
    handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    let args: PodTopologySpreadArgs = decode(names::POD_TOPOLOGY_SPREAD, args)?;
    let problems = validation::validate(&args);
    if !problems.is_empty() {
        return Err(PluginError::Invalid {
            plugin: names::POD_TOPOLOGY_SPREAD,
            problems,
        });
    }
    Ok(Arc::new(PodTopologySpread {
        source: Arc::new(Source::new(args, handle)),
    }))
}

/// What filtering needs: the hard constraints and what is counted for each.
#[derive(Clone)]
struct HardState {
    constraints: Arc<[Constraint]>,
    domains: Vec<Domains>,
}

impl HardState {
    /// Whether a node whose labels are in these domains (0: in none) may take the pod.
    fn check(
        constraint: &Constraint,
        domains: &Domains,
        domain: Option<u32>,
        present: bool,
    ) -> Result<(), &'static str> {
        if !present {
            return Err(ERR_REASON_NODE_LABEL_NOT_MATCH);
        }
        let pods = domain.map_or(0, |id| domains.pods(id));
        if pods > domains.limit(constraint) {
            Err(ERR_REASON_CONSTRAINTS_NOT_MATCH)
        } else {
            Ok(())
        }
    }

    fn reason(text: &'static str) -> Status {
        if text == ERR_REASON_NODE_LABEL_NOT_MATCH {
            Status::unresolvable(text)
        } else {
            Status::unschedulable(text)
        }
    }

    /// As if a pod came to the node, or left it.
    fn change(&mut self, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, delta: i64) {
        let has_keys = self
            .constraints
            .iter()
            .all(|constraint| node.labels().contains_key(&constraint.topology_key));
        if !has_keys || other.namespace() != pod.namespace() {
            return;
        }
        let eligibility = counter::Eligibility::new(pod);
        for (constraint, domains) in self.constraints.iter().zip(&mut self.domains) {
            if constraint.counts(other, pod.namespace())
                && eligibility.includes(constraint, node)
                && let Some(id) = node
                    .labels()
                    .get(&constraint.topology_key)
                    .and_then(|value| domains.id(value))
            {
                domains.add_pods(id, delta);
            }
        }
    }
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        names::POD_TOPOLOGY_SPREAD
    }

    fn sign(&self, pod: &PodInfo, _snapshot: &Snapshot) -> Option<Sign> {
        if Source::has_own(pod) {
            return Some(Sign::cluster(
                Fragments::TOPOLOGY_SPREAD
                    | Fragments::NAMESPACE
                    | Fragments::LABELS
                    | Fragments::NODE_AFFINITY
                    | Fragments::TOLERATIONS,
            ));
        }
        let fragments = Fragments::TOPOLOGY_SPREAD | Fragments::NAMESPACE | Fragments::OWNER;
        let Some(selector) = self.source.default_selector(pod) else {
            return Some(Sign::node(fragments));
        };
        let mut hasher = DefaultHasher::new();
        selector.hash(&mut hasher);
        // The pod's own labels matter only to constraints that filter.
        let labels = if self.source.has_hard_defaults() {
            Fragments::LABELS
        } else {
            Fragments::NONE
        };
        let fragments = fragments | labels | Fragments::NODE_AFFINITY | Fragments::TOLERATIONS;
        Some(Sign {
            inputs: hasher.finish().max(1),
            ..Sign::cluster(fragments)
        })
    }

    fn incremental(&self, pod: &Arc<PodInfo>, snapshot: &Snapshot) -> Option<Box<dyn Incremental>> {
        let hard = self.source.constraints(pod, Action::DoNotSchedule).ok()?;
        let soft = self.source.constraints(pod, Action::ScheduleAnyway).ok()?;
        Some(Box::new(view::View::new(
            pod,
            hard,
            soft,
            self.source.require_all_topologies(pod),
            snapshot,
        )))
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

impl PreFilterPlugin for PodTopologySpread {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
    ) -> (PreFilterResult, Status) {
        let constraints = match self.source.constraints(pod, Action::DoNotSchedule) {
            Ok(constraints) => constraints,
            Err(error) => return (PreFilterResult::default(), Status::error(error)),
        };
        if constraints.is_empty() {
            return (PreFilterResult::default(), Status::skip());
        }
        let counter = Counter::new(pod, constraints, true, snapshot);
        state.write(
            FILTER_STATE,
            HardState {
                constraints: counter.constraints(),
                domains: counter.into_domains(),
            },
        );
        (PreFilterResult::default(), Status::success())
    }

    fn extensions(&self) -> Option<&dyn PreFilterExtensions> {
        Some(self)
    }
}

impl PreFilterExtensions for PodTopologySpread {
    fn add_pod(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        to_add: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Status {
        if let Some(state) = state.read_mut::<HardState>(FILTER_STATE) {
            state.change(pod, to_add, node, 1);
        }
        Status::success()
    }

    fn remove_pod(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        to_remove: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Status {
        if let Some(state) = state.read_mut::<HardState>(FILTER_STATE) {
            state.change(pod, to_remove, node, -1);
        }
        Status::success()
    }
}

impl FilterPlugin for PodTopologySpread {
    fn filter(&self, state: &CycleState, _pod: &Arc<PodInfo>, node: &NodeInfo) -> Status {
        let Some(state) = state.read::<HardState>(FILTER_STATE) else {
            return Status::error(
                "reading \"PreFilterPodTopologySpread\" from cycleState: not found",
            );
        };
        for (constraint, domains) in state.constraints.iter().zip(&state.domains) {
            let value = node.labels().get(&constraint.topology_key);
            let domain = value.and_then(|value| domains.id(value));
            if let Err(text) = HardState::check(constraint, domains, domain, value.is_some()) {
                return HardState::reason(text);
            }
        }
        Status::success()
    }

    fn filter_all(
        &self,
        state: &CycleState,
        _pod: &Arc<PodInfo>,
        _snapshot: &Snapshot,
        verdicts: &mut Verdicts,
    ) -> bool {
        let Some(state) = state.read::<HardState>(FILTER_STATE) else {
            return false;
        };
        for (constraint, domains) in state.constraints.iter().zip(&state.domains) {
            domains.filter_all(constraint, verdicts);
        }
        true
    }
}

impl PreScorePlugin for PodTopologySpread {
    fn pre_score(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        nodes: &NodeSet,
    ) -> Status {
        let constraints = match self.source.constraints(pod, Action::ScheduleAnyway) {
            Ok(constraints) => constraints,
            Err(error) => return Status::error(error),
        };
        if constraints.is_empty() || snapshot.num_nodes() == 0 {
            return Status::skip();
        }
        let require_all = self.source.require_all_topologies(pod);
        let counter = Counter::new(pod, constraints, require_all, snapshot);
        let weights = score::normalizing_weights(&counter, nodes);
        state.write(SCORE_STATE, Arc::new(SoftState { counter, weights }));
        Status::success()
    }
}

impl ScorePlugin for PodTopologySpread {
    fn score(
        &self,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Result<i64, Status> {
        let state = state.read::<Arc<SoftState>>(SCORE_STATE);
        state.map(|state| state.score(pod, node)).ok_or_else(|| {
            Status::error("reading \"PreScorePodTopologySpread\" from cycleState: not found")
        })
    }

    fn score_all(
        &self,
        state: &CycleState,
        _pod: &Arc<PodInfo>,
        _snapshot: &Snapshot,
        nodes: &NodeSet,
        scores: &mut [i64],
    ) -> bool {
        let Some(state) = state.read::<Arc<SoftState>>(SCORE_STATE) else {
            return false;
        };
        score::raw_scores(&state.counter, &state.weights, nodes, scores);
        true
    }

    fn normalize(&self) -> Normalize {
        Normalize::Custom
    }

    fn normalize_score(
        &self,
        state: &CycleState,
        _pod: &Arc<PodInfo>,
        _snapshot: &Snapshot,
        scores: &mut [NodeScore],
    ) -> Status {
        let Some(state) = state.read::<Arc<SoftState>>(SCORE_STATE) else {
            return Status::success();
        };
        let counted = scores
            .iter()
            .filter(|s| !state.counter.ignores(s.node))
            .map(|s| s.score);
        let range = score::Range::of(counted);
        for s in scores {
            s.score = if state.counter.ignores(s.node) {
                0
            } else {
                range.normalize(s.score)
            };
        }
        Status::success()
    }
}
