//! Checks that the forms of a plugin agree: node by node, over all nodes, and its incremental view.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cycle_state::CycleState;
use crate::node_set::NodeSet;
use crate::plugin::{Incremental, NodeScore, Normalize, Plugin, ScorePlugin};
use crate::pod_info::PodInfo;
use crate::snapshot::Snapshot;
use crate::verdicts::Verdicts;

/// Runs a plugin's PreFilter, Filter and its form over all nodes, and its PreScore, Score and form over all nodes, and its incremental view, and asserts
/// that they agree.
///
/// # Panics
/// When two forms disagree: that is the point.
pub fn assert_forms_agree(plugin: &dyn Plugin, pod: &Arc<PodInfo>, snapshot: &Snapshot) {
    let mut state = CycleState::new();
    let (all, len) = (snapshot.columns().live().clone(), snapshot.columns().len());
    let mut feasible = all.clone();
    let mut filter_on = plugin.as_filter().is_some();
    if let Some(pre_filter) = plugin.as_pre_filter() {
        let (_, status) = pre_filter.pre_filter(&mut state, pod, snapshot);
        if status.is_rejected() || status.is_error() {
            return;
        }
        filter_on &= !status.is_skip();
    }
    let mut statuses = BTreeMap::new();
    if let (true, Some(filter)) = (filter_on, plugin.as_filter()) {
        for (index, node) in snapshot.iter() {
            let status = filter.filter(&state, pod, node);
            if !status.is_success() {
                feasible.remove(index);
                statuses.insert(index, status.by(plugin.name()));
            }
        }
        let mut verdicts = Verdicts::new(all.clone(), len);
        verdicts.set_plugin(plugin.name());
        if filter.filter_all(&state, pod, snapshot, &mut verdicts) {
            for (index, node) in snapshot.iter() {
                assert_eq!(
                    verdicts.status(index),
                    statuses.get(&index),
                    "filter_all of {} on {}",
                    plugin.name(),
                    node.name()
                );
            }
        }
    }
    let score_on = plugin.as_pre_score().is_none_or(|p| {
        p.pre_score(&mut state, pod, snapshot, &feasible)
            .is_success()
    });
    let mut raw = vec![0; len];
    if let (true, Some(score)) = (score_on, plugin.as_score()) {
        for node in feasible.iter() {
            let info = snapshot
                .node(node)
                .expect("feasible nodes are in the snapshot");
            raw[node as usize] = score.score(&state, pod, info).expect("scores");
        }
        let mut column = vec![0; len];
        if score.score_all(&state, pod, snapshot, &feasible, &mut column) {
            for node in feasible.iter() {
                assert_eq!(
                    column[node as usize],
                    raw[node as usize],
                    "score_all of {} on node {node}",
                    plugin.name()
                );
            }
        }
    }
    if let Some(mut view) = plugin.incremental(pod, snapshot) {
        let (verdicts, scores) = run_view(view.as_mut(), snapshot, &all);
        for (index, node) in snapshot.iter() {
            assert_eq!(
                verdicts
                    .status(index)
                    .map(|s| s.clone().by(plugin.name()))
                    .as_ref(),
                statuses.get(&index),
                "view of {} on {}",
                plugin.name(),
                node.name()
            );
        }
        if let (Some(scores), true, Some(score)) = (scores, score_on, plugin.as_score()) {
            for NodeScore { node, score } in
                normalized(score, &state, pod, snapshot, &feasible, &raw)
            {
                assert_eq!(
                    scores[node as usize],
                    score,
                    "score of the view of {} on node {node}",
                    plugin.name()
                );
            }
        }
    }
}

/// Filters and scores all of `nodes` by an incremental view; `None` scores: the plugin skips scoring.
pub fn run_view(
    view: &mut dyn Incremental,
    snapshot: &Snapshot,
    nodes: &NodeSet,
) -> (Verdicts, Option<Vec<i64>>) {
    let len = snapshot.columns().len();
    let mut verdicts = Verdicts::new(nodes.clone(), len);
    view.filter_all(snapshot, &mut verdicts);
    let mut scores = vec![0; len];
    let scored = view.score_all(snapshot, verdicts.feasible(), &mut scores);
    (verdicts, scored.then_some(scores))
}

/// Raw scores made scores as the runtime does.
pub fn normalized(
    plugin: &dyn ScorePlugin,
    state: &CycleState,
    pod: &Arc<PodInfo>,
    snapshot: &Snapshot,
    nodes: &NodeSet,
    raw: &[i64],
) -> Vec<NodeScore> {
    let mut scores: Vec<_> = nodes
        .iter()
        .map(|node| NodeScore {
            node,
            score: raw[node as usize],
        })
        .collect();
    match plugin.normalize() {
        Normalize::Already => {}
        Normalize::ByMax { reverse } => {
            let max = scores.iter().map(|s| s.score).max().unwrap_or(0);
            scores
                .iter_mut()
                .for_each(|s| s.score = Normalize::by_max(s.score, max, reverse));
        }
        Normalize::Custom => assert!(
            plugin
                .normalize_score(state, pod, snapshot, &mut scores)
                .is_success()
        ),
    }
    scores
}
