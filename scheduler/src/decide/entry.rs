//! [`Entry`]: what is known for one pod signature about every node.
//!
//! Invariant: after `build` or `update`, verdicts, raw scores, totals and ranking are what running the plugins from scratch on this snapshot would give.

use std::collections::BTreeMap;
use std::sync::Arc;

use backend::Ranking;
use framework::*;

use super::{Chosen, NotChosen, Request, best, failed_score, filter_all, raw_scores};
use crate::runtime::{Framework, checked_filter_status};

/// A Score plugin whose raw score of a node depends on that node alone.
struct Scorer {
    plugin: Arc<dyn Plugin>,
    weight: i64,
    /// Raw scores need the largest of them to become scores.
    by_max: Option<ByMax>,
    raw: Vec<i64>,
}

struct ByMax {
    reverse: bool,
    /// How many feasible nodes have each raw score.
    counts: BTreeMap<i64, u32>,
    max: i64,
}

impl ByMax {
    fn largest(&self) -> i64 {
        self.counts
            .last_key_value()
            .map_or(0, |(raw, _)| (*raw).max(0))
    }

    fn add(&mut self, raw: i64) {
        *self.counts.entry(raw).or_default() += 1;
    }

    fn remove(&mut self, raw: i64) {
        if let Some(count) = self.counts.get_mut(&raw) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&raw);
            }
        }
    }
}

/// A plugin that looks at the whole cluster, in its incremental form.
struct View {
    name: &'static str,
    filter: bool,
    weight: Option<i64>,
    incremental: Box<dyn Incremental>,
}

/// See the module.
pub(super) struct Entry {
    pub(super) inputs: Vec<u64>,
    pub(super) last_used: u64,
    state: CycleState,
    version: u64,
    verdicts: Verdicts,
    filters: Vec<Arc<dyn Plugin>>,
    scorers: Vec<Scorer>,
    views: Vec<View>,
    totals: Vec<i64>,
    ranking: Ranking,
    changed: Vec<NodeIndex>,
    scratch: Scratch,
}

/// Room for one decision with views, used again for the next: in a large cluster getting it anew costs more than filling it.
#[derive(Default)]
struct Scratch {
    verdicts: Verdicts,
    feasible: NodeSet,
    totals: Vec<i64>,
    scores: Vec<i64>,
}

impl Entry {
    /// Judges all nodes. `None`: results for this pod cannot be kept (PreFilter rejects it or names nodes, or a plugin lacks the needed form).
    pub(super) fn build(
        request: &Request<'_>,
        inputs: &[u64],
        cluster_wide: &[bool],
    ) -> Result<Option<Self>, Status> {
        let Request {
            framework,
            snapshot,
            pod,
            ..
        } = *request;
        let judges = || framework.judges().iter().zip(cluster_wide.iter().copied());
        let mut views = Vec::new();
        for (judge, _) in judges().filter(|(_, wide)| *wide) {
            let Some(incremental) = judge.plugin.incremental(pod, snapshot) else {
                return Ok(None);
            };
            views.push(View {
                name: judge.plugin.name(),
                filter: judge.filter,
                weight: judge.score,
                incremental,
            });
        }
        let mut state = CycleState::new();
        let Some(filters) = pre_filter(framework, cluster_wide, &mut state, pod, snapshot) else {
            return Ok(None);
        };
        let len = snapshot.columns().len();
        let mut verdicts = Verdicts::new(snapshot.columns().live().clone(), len);
        for plugin in &filters {
            filter_all(&**plugin, &state, pod, snapshot, &mut verdicts)?;
        }
        let mut scorers = Vec::new();
        for (judge, _) in judges().filter(|(_, wide)| !*wide) {
            let (Some(weight), Some(score)) = (judge.score, judge.plugin.as_score()) else {
                continue;
            };
            if let (true, Some(pre_score)) = (judge.pre_score, judge.plugin.as_pre_score()) {
                let status = pre_score.pre_score(&mut state, pod, snapshot, verdicts.feasible());
                if status.is_skip() {
                    continue;
                }
                if !status.is_success() {
                    return Err(Status::error(format!(
                        "running PreScore plugin {:?}: {status}",
                        judge.plugin.name()
                    ))
                    .by(judge.plugin.name()));
                }
            }
            let by_max = match score.normalize() {
                Normalize::Already => None,
                Normalize::ByMax { reverse } => Some(ByMax {
                    reverse,
                    counts: BTreeMap::new(),
                    max: 0,
                }),
                Normalize::Custom => return Ok(None),
            };
            scorers.push(Scorer {
                plugin: Arc::clone(&judge.plugin),
                weight,
                by_max,
                raw: vec![0; len],
            });
        }
        for scorer in &mut scorers {
            raw_scores(
                &*scorer.plugin,
                &state,
                pod,
                snapshot,
                verdicts.feasible(),
                &mut scorer.raw,
            )?;
            if let Some(by_max) = &mut scorer.by_max {
                verdicts
                    .feasible()
                    .iter()
                    .for_each(|node| by_max.add(scorer.raw[node as usize]));
            }
        }
        let mut entry = Entry {
            inputs: inputs.to_vec(),
            last_used: 0,
            state,
            version: snapshot.version(),
            verdicts,
            filters,
            scorers,
            views,
            totals: vec![0; len],
            ranking: Ranking::default(),
            changed: Vec::new(),
            scratch: Scratch::default(),
        };
        entry.total_all();
        Ok(Some(entry))
    }

    /// Takes in what changed since the entry was last up to date; false when too much did (build anew).
    pub(super) fn update(&mut self, request: &Request<'_>) -> Result<bool, Status> {
        let Request { snapshot, pod, .. } = *request;
        if self.version == snapshot.version() {
            return Ok(true);
        }
        let mut changed = std::mem::take(&mut self.changed);
        changed.clear();
        if !snapshot.changes_since(self.version, |node| changed.push(node))
            || changed.len() > 16 + snapshot.num_nodes() / 4
        {
            return Ok(false);
        }
        let len = snapshot.columns().len();
        if self.totals.len() < len {
            self.totals.resize(len, 0);
            self.scorers
                .iter_mut()
                .for_each(|scorer| scorer.raw.resize(len, 0));
        }
        for &node in &changed {
            self.judge_again(node, pod, snapshot)?;
        }
        if self
            .scorers
            .iter()
            .any(|s| s.by_max.as_ref().is_some_and(|b| b.largest() != b.max))
        {
            self.total_all();
        } else {
            for &node in &changed {
                let feasible = self.verdicts.feasible().contains(node);
                if feasible {
                    self.totals[node as usize] = self.total(node);
                }
                if self.views.is_empty() {
                    self.ranking
                        .set(node, feasible.then(|| self.totals[node as usize]));
                }
            }
        }
        for view in &mut self.views {
            view.incremental.update(snapshot, &changed);
        }
        self.changed = changed;
        self.version = snapshot.version();
        Ok(true)
    }

    fn judge_again(
        &mut self,
        node: NodeIndex,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
    ) -> Result<(), Status> {
        let i = node as usize;
        if self.verdicts.feasible().contains(node) {
            for scorer in &mut self.scorers {
                if let Some(by_max) = &mut scorer.by_max {
                    by_max.remove(scorer.raw[i]);
                }
            }
        }
        let info = snapshot.node(node);
        self.verdicts.reset(node, info.is_some());
        let Some(info) = info else { return Ok(()) };
        for plugin in &self.filters {
            let Some(filter) = plugin.as_filter() else {
                continue;
            };
            let status = filter.filter(&self.state, pod, info);
            if status.is_success() {
                continue;
            }
            let status = checked_filter_status(plugin.name(), status);
            if status.is_error() {
                return Err(status);
            }
            let rejection = self.verdicts.rejection(status);
            self.verdicts.reject(node, rejection);
            return Ok(());
        }
        for scorer in &mut self.scorers {
            let Some(score) = scorer.plugin.as_score() else {
                continue;
            };
            scorer.raw[i] = score
                .score(&self.state, pod, info)
                .map_err(|status| failed_score(scorer.plugin.name(), &status))?;
            if let Some(by_max) = &mut scorer.by_max {
                by_max.add(scorer.raw[i]);
            }
        }
        Ok(())
    }

    fn total(&self, node: NodeIndex) -> i64 {
        let score = |scorer: &Scorer| {
            let raw = scorer.raw[node as usize];
            scorer.weight
                * scorer
                    .by_max
                    .as_ref()
                    .map_or(raw, |b| Normalize::by_max(raw, b.max, b.reverse))
        };
        self.scorers.iter().map(score).sum()
    }

    fn total_all(&mut self) {
        for by_max in self.scorers.iter_mut().filter_map(|s| s.by_max.as_mut()) {
            by_max.max = by_max.largest();
        }
        for node in self.verdicts.feasible().iter() {
            self.totals[node as usize] = self.total(node);
        }
        if self.views.is_empty() {
            self.ranking = Ranking::new(self.verdicts.feasible(), &self.totals);
        }
    }

    /// The best node for the pod of `request`, which has this entry's signature.
    pub(super) fn choose(&mut self, request: &Request<'_>) -> Result<Chosen, NotChosen> {
        if self.views.is_empty() && !request.narrows() {
            match request.within {
                Some(within) => self.choose_of_few(request, within),
                None => self.choose_ranked(request),
            }
        } else {
            self.choose_viewed(request)
        }
    }

    fn choose_ranked(&mut self, request: &Request<'_>) -> Result<Chosen, NotChosen> {
        let feasible = self.verdicts.feasible();
        let excluded = request.excluded_by_nominations(feasible, None)?;
        if feasible.len() == excluded.len() {
            return Err(request.no_fit(self.verdicts.clone(), excluded));
        }
        let own = request
            .own_nomination(feasible)
            .filter(|node| excluded.iter().all(|(excluded, _)| excluded != node));
        excluded
            .iter()
            .for_each(|(node, _)| self.ranking.set(*node, None));
        let node = own
            .or_else(|| self.ranking.pick(request.random))
            .expect("some feasible node is not excluded");
        excluded
            .iter()
            .for_each(|(node, _)| self.ranking.set(*node, Some(self.totals[*node as usize])));
        let (judged, feasible) = (
            self.verdicts.judged().len(),
            self.verdicts.feasible().len() - excluded.len(),
        );
        let score = own.is_none().then(|| self.totals[node as usize]);
        let state = self.state.clone();
        Ok(request.chosen((node, score), judged, feasible, state))
    }

    /// Looks at the nodes of a placement alone: the work follows its size and not the cluster's.
    fn choose_of_few(
        &mut self,
        request: &Request<'_>,
        within: &NodeSet,
    ) -> Result<Chosen, NotChosen> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let Scratch {
            feasible, totals, ..
        } = &mut scratch;
        feasible.copy_from(self.verdicts.feasible());
        feasible.intersect_with(within);
        let chosen = self.best_of(request, within, feasible, totals);
        self.scratch = scratch;
        chosen
    }

    fn best_of(
        &self,
        request: &Request<'_>,
        within: &NodeSet,
        feasible: &mut NodeSet,
        totals: &mut Vec<i64>,
    ) -> Result<Chosen, NotChosen> {
        let excluded = request.excluded_by_nominations(feasible, None)?;
        for (node, _) in &excluded {
            feasible.remove(*node);
        }
        if feasible.is_empty() {
            return Err(request.no_fit(self.verdicts.clone(), excluded));
        }
        let judged = within.len();
        if let Some(node) = request.own_nomination(feasible) {
            return Ok(request.chosen((node, None), judged, 1, self.state.clone()));
        }
        totals.resize(self.totals.len(), 0);
        for node in feasible.iter() {
            totals[node as usize] = self.totals[node as usize];
        }
        self.correct_for_fewer(feasible, totals);
        let node = best(feasible, totals, request.random).expect("feasible is not empty");
        let (score, state) = (Some(totals[node as usize]), self.state.clone());
        Ok(request.chosen((node, score), judged, feasible.len(), state))
    }

    fn choose_viewed(&mut self, request: &Request<'_>) -> Result<Chosen, NotChosen> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let chosen = self.choose_with(request, &mut scratch);
        self.scratch = scratch;
        chosen
    }

    fn choose_with(
        &mut self,
        request: &Request<'_>,
        scratch: &mut Scratch,
    ) -> Result<Chosen, NotChosen> {
        let snapshot = request.snapshot;
        let Scratch {
            verdicts,
            feasible,
            totals,
            scores,
        } = scratch;
        verdicts.copy_from(&self.verdicts);
        for view in self.views.iter_mut().filter(|view| view.filter) {
            verdicts.set_plugin(view.name);
            view.incremental.filter_all(snapshot, verdicts);
        }
        feasible.copy_from(verdicts.feasible());
        if let Some(within) = request.within {
            feasible.intersect_with(within);
        }
        let excluded = request.excluded_by_nominations(feasible, None)?;
        for (node, _) in &excluded {
            feasible.remove(*node);
        }
        if feasible.is_empty() {
            return Err(request.no_fit(verdicts.clone(), excluded));
        }
        let judged = verdicts.judged().len();
        if let Some(node) = request.own_nomination(feasible) {
            return Ok(request.chosen((node, None), judged, 1, self.state.clone()));
        }
        if request.narrows()
            && let Some(refused) = request.narrow(feasible)?
        {
            return Err(request.refused_by_extenders(verdicts.clone(), excluded, refused));
        }
        totals.clone_from(&self.totals);
        self.correct_for_fewer(feasible, totals);
        scores.resize(totals.len(), 0);
        for view in &mut self.views {
            let Some(weight) = view.weight else { continue };
            if view.incremental.score_all(snapshot, feasible, scores) {
                for node in feasible.iter() {
                    totals[node as usize] += weight * scores[node as usize];
                }
            }
        }
        request.add_extenders_scores(feasible, totals);
        let node = best(feasible, totals, request.random).expect("feasible is not empty");
        let (score, state) = (Some(totals[node as usize]), self.state.clone());
        Ok(request.chosen((node, score), judged, feasible.len(), state))
    }

    /// Fewer nodes may be feasible than without the views, so the largest raw scores may differ, and with them the totals.
    fn correct_for_fewer(&self, feasible: &NodeSet, totals: &mut [i64]) {
        if feasible.len() == self.verdicts.feasible().len() {
            return;
        }
        for scorer in &self.scorers {
            let Some(by_max) = &scorer.by_max else {
                continue;
            };
            let raw = feasible.iter().map(|node| scorer.raw[node as usize]);
            let max = raw.max().unwrap_or(0).max(0);
            if max == by_max.max {
                continue;
            }
            for node in feasible.iter() {
                let raw = scorer.raw[node as usize];
                let score = |max| Normalize::by_max(raw, max, by_max.reverse);
                totals[node as usize] += scorer.weight * (score(max) - score(by_max.max));
            }
        }
    }
}

/// Runs PreFilter of the plugins that look at nodes alone; the Filter plugins that have something to do. `None`: a rejection, an error or a
/// narrowing, which is not kept.
fn pre_filter(
    framework: &Framework,
    cluster_wide: &[bool],
    state: &mut CycleState,
    pod: &Arc<PodInfo>,
    snapshot: &Snapshot,
) -> Option<Vec<Arc<dyn Plugin>>> {
    let mut filters = Vec::new();
    let mut skip = std::collections::BTreeSet::new();
    for (judge, wide) in framework.judges().iter().zip(cluster_wide) {
        if *wide {
            continue;
        }
        if let (true, Some(pre_filter)) = (judge.pre_filter, judge.plugin.as_pre_filter()) {
            let (result, status) = pre_filter.pre_filter(state, pod, snapshot);
            if status.is_skip() {
                skip.insert(judge.plugin.name());
                continue;
            }
            if !status.is_success() || !result.all_nodes() {
                return None;
            }
        }
        if judge.filter {
            filters.push(Arc::clone(&judge.plugin));
        }
    }
    state.set_skip_filter_plugins(skip);
    Some(filters)
}
