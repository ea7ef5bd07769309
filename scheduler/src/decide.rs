//! [`Decider`]: which node a pod goes to.
//!
//! Every node is considered, never a sample. What was found out for a pod is kept under its signature ([`entry::Entry`]): for the next pod of the same
//! signature only the nodes that changed since are judged again. Among equally good nodes one is picked by a seeded number: the same seed and the same history give
//! the same placement.
//!
//! ```text
//!   sign --(unsigned, or PreFilter names nodes)--> from_scratch: PreFilter, Filter, PreScore, Score over the nodes
//!     |
//!   entry of the signature: build once over all nodes, then update changed nodes
//!     |                                          \
//!   no plugin looks beyond a node:                some do (spread, inter-pod affinity): their incremental views
//!   the ranking's best                            filter and score, one pass over the nodes
//! ```
//!
//! Where extenders have a say, or the configuration wants a sample, what is feasible is narrowed ([`narrow`]) before the best is taken.
//!
//! Never here: the queue, the cache, writes. Upstream: pkg/scheduler/schedule_one.go (schedulePod, findNodesThatFitPod, prioritizeNodes), v1.37.
//! DIFFERS: upstream samples nodes in large clusters; this does only where `percentageOfNodesToScore` says how many.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

use backend::queue::Nominator;
use framework::*;

use crate::extender::HttpExtender;
use crate::runtime::{Framework, checked_filter_status};

mod entry;
mod narrow;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wasm_tests;

use entry::Entry;

/// Signatures are kept within this many bytes per profile, at about [`BYTES_PER_NODE`] a node each …
const SIGNATURES_BYTES: usize = 256 << 20;
/// … counting raw scores, totals, verdicts and ranking.
const BYTES_PER_NODE: usize = 96;
/// … but never fewer than this many …
const MIN_SIGNATURES: usize = 8;
/// … and never more than this many.
const MAX_SIGNATURES: usize = 1024;

/// A node was found.
#[derive(Debug)]
pub struct Chosen {
    /// Its name.
    pub node_name: Arc<str>,
    /// How many nodes were judged.
    pub evaluated_nodes: usize,
    /// How many were feasible.
    pub feasible_nodes: usize,
    /// The node's score; `None` for one the pod was nominated to, which is taken without.
    pub score: Option<i64>,
    /// The cycle state for Reserve and what follows.
    pub state: CycleState,
}

/// Why no node was found.
#[derive(Debug)]
pub enum NotChosen {
    /// There are no nodes.
    NoNodes,
    /// None fits; preemption may help.
    NoFit(Box<FitError>),
    /// Something unexpected.
    Error(Status),
}

/// What upstream says when there are no nodes.
pub const NO_NODES_AVAILABLE: &str = "no nodes available to schedule pods";

/// Chooses nodes for one profile, and remembers.
pub struct Decider {
    entries: HashMap<Box<[u8]>, Entry>,
    seed: u64,
    decisions: u64,
    key: Vec<u8>,
    inputs: Vec<u64>,
    cluster_wide: Vec<bool>,
    /// Where the next sample of nodes begins.
    next_start: usize,
}

impl Decider {
    /// A decider without memories.
    pub fn new(seed: u64) -> Self {
        Decider {
            entries: HashMap::new(),
            seed,
            decisions: 0,
            key: Vec::new(),
            inputs: Vec::new(),
            cluster_wide: Vec::new(),
            next_start: 0,
        }
    }

    /// Chooses a node of `snapshot` for `pod`.
    ///
    /// # Errors
    /// When none fits, or a plugin fails.
    pub fn decide(
        &mut self,
        framework: &Framework,
        snapshot: &Snapshot,
        pod: &Arc<PodInfo>,
        nominator: &Nominator,
    ) -> Result<Chosen, NotChosen> {
        self.decide_within(framework, snapshot, pod, nominator, None)
    }

    /// The same as if the nodes of `within` were all there are to choose of; what plugins count in the cluster they count on all nodes. `None`: all are.
    ///
    /// # Errors
    /// When none of them fits, or a plugin fails.
    pub fn decide_within(
        &mut self,
        framework: &Framework,
        snapshot: &Snapshot,
        pod: &Arc<PodInfo>,
        nominator: &Nominator,
        within: Option<&NodeSet>,
    ) -> Result<Chosen, NotChosen> {
        let nodes = within.map_or(snapshot.num_nodes(), NodeSet::len);
        if nodes == 0 {
            return Err(NotChosen::NoNodes);
        }
        let random = self.draw();
        let nominated = relevant_nominations(nominator, snapshot, pod);
        let request = Request {
            framework,
            snapshot,
            pod,
            random,
            nominated,
            extenders: framework.extenders_of(pod),
            sample: framework.num_feasible_nodes_to_find(nodes),
            start: Cell::new(self.next_start),
            within,
        };
        let mut chosen = None;
        if self.sign(framework, snapshot, pod)
            && let Some(entry) = self.entry(&request)?
        {
            chosen = Some(entry.choose(&request));
        }
        let chosen = chosen.unwrap_or_else(|| from_scratch(&request));
        self.next_start = request.start.get();
        chosen
    }

    /// The next of the numbers that settle ties.
    pub fn draw(&mut self) -> u64 {
        self.decisions += 1;
        splitmix64(self.seed ^ self.decisions.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Fills `key`, `inputs` and `cluster_wide`; false when the pod has no signature.
    fn sign(&mut self, framework: &Framework, snapshot: &Snapshot, pod: &PodInfo) -> bool {
        self.key.clear();
        self.inputs.clear();
        self.cluster_wide.clear();
        let mut fragments = Fragments::NONE;
        for judge in framework.judges() {
            let Some(sign) = judge.plugin.sign(pod, snapshot) else {
                return false;
            };
            fragments |= sign.fragments;
            self.inputs.push(sign.inputs);
            self.cluster_wide.push(sign.scope == Scope::Cluster);
            self.key.push(u8::from(sign.scope == Scope::Cluster));
        }
        signature::encode(pod, fragments, &mut self.key);
        if fragments.contains(Fragments::MORE) {
            for judge in framework.judges() {
                // Each with its length, so that no two rows of them have equal bytes.
                let at = self.key.len();
                self.key.extend([0; 4]);
                judge.plugin.sign_more(pod, snapshot, &mut self.key);
                let length = (self.key.len() - at - 4) as u32;
                self.key[at..at + 4].copy_from_slice(&length.to_le_bytes());
            }
        }
        true
    }

    /// The entry of the signature just computed, up to date. `None`: this pod cannot have one.
    fn entry(&mut self, request: &Request<'_>) -> Result<Option<&mut Entry>, NotChosen> {
        let start = request.framework.shared().metrics().start();
        let known = self
            .entries
            .get_mut(&self.key[..])
            .filter(|entry| entry.inputs == self.inputs);
        let current = match known {
            Some(entry) => entry.update(request).map_err(NotChosen::Error),
            None => Ok(false),
        };
        if !matches!(current, Ok(true)) {
            self.entries.remove(&self.key[..]);
            current?;
            let Some(entry) = Entry::build(request, &self.inputs, &self.cluster_wide)
                .map_err(NotChosen::Error)?
            else {
                return Ok(None);
            };
            self.make_room(request.snapshot.columns().len());
            self.entries
                .insert(self.key.clone().into_boxed_slice(), entry);
        }
        request
            .framework
            .observe_point("Filter", Code::Success, start);
        let entry = self
            .entries
            .get_mut(&self.key[..])
            .expect("it was there or was just put there");
        entry.last_used = self.decisions;
        Ok(Some(entry))
    }

    fn make_room(&mut self, nodes: usize) {
        let limit = (SIGNATURES_BYTES / (BYTES_PER_NODE * nodes.max(1)))
            .clamp(MIN_SIGNATURES, MAX_SIGNATURES);
        while self.entries.len() >= limit {
            let Some(oldest) = self
                .entries
                .iter()
                .min_by_key(|(_, entry)| entry.last_used)
                .map(|(key, _)| key.clone())
            else {
                return;
            };
            self.entries.remove(&oldest);
        }
    }
}

/// One pod to decide on.
struct Request<'a> {
    framework: &'a Framework,
    snapshot: &'a Snapshot,
    pod: &'a Arc<PodInfo>,
    random: u64,
    /// Nodes with nominated pods this pod must leave room for.
    nominated: Vec<NodeIndex>,
    /// Those that have a say about this pod.
    extenders: Vec<Arc<HttpExtender>>,
    /// So many feasible nodes are enough.
    sample: Option<usize>,
    /// Where the sample begins; then where the next does.
    start: Cell<usize>,
    /// A placement: no other nodes are there for this pod. `None`: all are.
    within: Option<&'a NodeSet>,
}

impl Request<'_> {
    /// Feasible nodes where the pod would take the room of nominated pods, and why not.
    fn excluded_by_nominations(
        &self,
        feasible: &NodeSet,
        state: Option<&CycleState>,
    ) -> Result<Vec<(NodeIndex, Status)>, NotChosen> {
        let nodes: Vec<NodeIndex> = self
            .nominated
            .iter()
            .copied()
            .filter(|node| feasible.contains(*node))
            .collect();
        if nodes.is_empty() {
            return Ok(Vec::new());
        }
        let mut fresh = CycleState::new();
        let state = match state {
            Some(state) => state,
            None => {
                let (_, status, _) =
                    self.framework
                        .run_pre_filter_plugins(&mut fresh, self.pod, self.snapshot);
                if status.is_error() {
                    return Err(NotChosen::Error(status));
                }
                &fresh
            }
        };
        let mut excluded = Vec::new();
        for node in nodes {
            let Some(info) = self.snapshot.node(node) else {
                continue;
            };
            let status = self
                .framework
                .run_filter_plugins_with_nominated_pods(state, self.pod, info);
            if status.is_error() {
                return Err(NotChosen::Error(status));
            }
            if !status.is_success() {
                excluded.push((node, status));
            }
        }
        Ok(excluded)
    }

    fn chosen(
        &self,
        (node, score): (NodeIndex, Option<i64>),
        judged: usize,
        feasible: usize,
        state: CycleState,
    ) -> Chosen {
        let node_name = self
            .snapshot
            .node(node)
            .map_or_else(|| "".into(), |info| Arc::clone(info.name()));
        Chosen {
            node_name,
            evaluated_nodes: judged,
            feasible_nodes: feasible,
            score,
            state,
        }
    }

    fn no_fit(&self, verdicts: Verdicts, excluded: Vec<(NodeIndex, Status)>) -> NotChosen {
        let verdicts = match self.within {
            Some(within) => verdicts.restricted_to(within),
            None => verdicts,
        };
        let mut diagnosis = Diagnosis::default();
        for (status, _) in verdicts.rejections() {
            diagnosis.add_plugin_status(status);
        }
        diagnosis.node_to_status = NodeToStatus::from_verdicts(Arc::new(verdicts));
        for (node, status) in excluded {
            diagnosis.add_plugin_status(&status);
            if let Some(info) = self.snapshot.node(node) {
                diagnosis
                    .node_to_status
                    .set(Arc::clone(info.name()), status);
            }
        }
        NotChosen::NoFit(Box::new(FitError {
            num_all_nodes: self.num_nodes(),
            diagnosis,
        }))
    }
}

/// Runs everything, keeps nothing.
fn from_scratch(request: &Request<'_>) -> Result<Chosen, NotChosen> {
    let Request {
        framework,
        snapshot,
        pod,
        ..
    } = *request;
    let mut state = CycleState::new();
    let (result, status, narrowing) = framework.run_pre_filter_plugins(&mut state, pod, snapshot);
    if status.is_error() {
        return Err(NotChosen::Error(status));
    }
    if !status.is_success() {
        let mut diagnosis = Diagnosis {
            pre_filter_msg: status.message(),
            unschedulable_plugins: narrowing,
            ..Diagnosis::default()
        };
        diagnosis.add_plugin_status(&status);
        diagnosis.node_to_status.set_absent_nodes_status(status);
        return Err(NotChosen::NoFit(Box::new(FitError {
            num_all_nodes: request.num_nodes(),
            diagnosis,
        })));
    }
    let mut nodes: NodeSet = match &result.node_names {
        Some(names) => names
            .iter()
            .filter_map(|name| snapshot.index(name))
            .collect(),
        None => snapshot.columns().live().clone(),
    };
    if let Some(within) = request.within {
        nodes.intersect_with(within);
    }
    let start = framework.shared().metrics().start();
    let mut verdicts = Verdicts::new(nodes, snapshot.columns().len());
    for judge in framework.judges().iter().filter(|judge| judge.filter) {
        if !state.skip_filter_plugins().contains(judge.plugin.name()) {
            filter_all(&*judge.plugin, &state, pod, snapshot, &mut verdicts)
                .map_err(NotChosen::Error)?;
        }
    }
    framework.observe_point("Filter", Code::Success, start);
    let excluded = request.excluded_by_nominations(verdicts.feasible(), Some(&state))?;
    let mut feasible = verdicts.feasible().clone();
    excluded
        .iter()
        .for_each(|(node, _)| _ = feasible.remove(*node));
    if feasible.is_empty() {
        let mut error = request.no_fit(verdicts, excluded);
        if let NotChosen::NoFit(fit) = &mut error {
            let names: Vec<&str> = narrowing.iter().copied().collect();
            if !result.all_nodes() {
                let reason = format!("node(s) didn't satisfy plugin(s) [{}]", names.join(" "));
                fit.diagnosis
                    .node_to_status
                    .set_absent_nodes_status(Status::unresolvable(reason));
            }
            fit.diagnosis.unschedulable_plugins.extend(narrowing);
        }
        return Err(error);
    }
    let judged = verdicts.judged().len();
    if let Some(node) = request.own_nomination(&feasible) {
        return Ok(request.chosen((node, None), judged, 1, state));
    }
    if request.narrows()
        && let Some(refused) = request.narrow(&mut feasible)?
    {
        return Err(request.refused_by_extenders(verdicts, excluded, refused));
    }
    let mut totals = score_all(request, &mut state, &feasible).map_err(NotChosen::Error)?;
    request.add_extenders_scores(&feasible, &mut totals);
    let node = best(&feasible, &totals, request.random).expect("feasible is not empty");
    let score = Some(totals[node as usize]);
    Ok(request.chosen((node, score), judged, feasible.len(), state))
}

/// Runs one Filter over all feasible nodes, by its column form where it has one.
fn filter_all(
    plugin: &dyn Plugin,
    state: &CycleState,
    pod: &Arc<PodInfo>,
    snapshot: &Snapshot,
    verdicts: &mut Verdicts,
) -> Result<(), Status> {
    let Some(filter) = plugin.as_filter() else {
        return Ok(());
    };
    verdicts.set_plugin(plugin.name());
    if filter.filter_all(state, pod, snapshot, verdicts) {
        return Ok(());
    }
    let nodes: Vec<NodeIndex> = verdicts.feasible().iter().collect();
    for index in nodes {
        let Some(node) = snapshot.node(index) else {
            continue;
        };
        let status = filter.filter(state, pod, node);
        if status.is_success() {
            continue;
        }
        let status = checked_filter_status(plugin.name(), status);
        if status.is_error() {
            return Err(status);
        }
        let rejection = verdicts.rejection(status);
        verdicts.reject(index, rejection);
    }
    Ok(())
}

/// Runs one Score over `nodes` into `raw`, by its column form where it has one.
fn raw_scores(
    plugin: &dyn Plugin,
    state: &CycleState,
    pod: &Arc<PodInfo>,
    snapshot: &Snapshot,
    nodes: &NodeSet,
    raw: &mut [i64],
) -> Result<(), Status> {
    let Some(score) = plugin.as_score() else {
        return Ok(());
    };
    if score.score_all(state, pod, snapshot, nodes, raw) {
        return Ok(());
    }
    for index in nodes.iter() {
        if let Some(node) = snapshot.node(index) {
            raw[index as usize] = score
                .score(state, pod, node)
                .map_err(|status| failed_score(plugin.name(), &status))?;
        }
    }
    Ok(())
}

fn failed_score(plugin: &'static str, status: &Status) -> Status {
    Status::error(format!("plugin {plugin:?} failed with: {status}")).by(plugin)
}

/// Runs PreScore, Score and NormalizeScore over `nodes`; the weighted sums by index.
fn score_all(
    request: &Request<'_>,
    state: &mut CycleState,
    nodes: &NodeSet,
) -> Result<Vec<i64>, Status> {
    let Request {
        framework,
        snapshot,
        pod,
        ..
    } = *request;
    let start = framework.shared().metrics().start();
    let len = snapshot.columns().len();
    let (mut totals, mut raw) = (vec![0i64; len], vec![0i64; len]);
    for judge in framework.judges() {
        let Some(weight) = judge.score else { continue };
        let (plugin, Some(score)) = (&*judge.plugin, judge.plugin.as_score()) else {
            continue;
        };
        if let (true, Some(pre_score)) = (judge.pre_score, plugin.as_pre_score()) {
            let status = pre_score.pre_score(state, pod, snapshot, nodes);
            if status.is_skip() {
                continue;
            }
            if !status.is_success() {
                return Err(Status::error(format!(
                    "running PreScore plugin {:?}: {status}",
                    plugin.name()
                ))
                .by(plugin.name()));
            }
        }
        raw_scores(plugin, state, pod, snapshot, nodes, &mut raw)?;
        match score.normalize() {
            Normalize::Already => nodes
                .iter()
                .for_each(|n| totals[n as usize] += weight * raw[n as usize]),
            Normalize::ByMax { reverse } => {
                let max = nodes
                    .iter()
                    .map(|n| raw[n as usize])
                    .max()
                    .unwrap_or(0)
                    .max(0);
                nodes.iter().for_each(|n| {
                    totals[n as usize] += weight * Normalize::by_max(raw[n as usize], max, reverse)
                });
            }
            Normalize::Custom => {
                let mut scores: Vec<NodeScore> = nodes
                    .iter()
                    .map(|node| NodeScore {
                        node,
                        score: raw[node as usize],
                    })
                    .collect();
                let status = score.normalize_score(state, pod, snapshot, &mut scores);
                if !status.is_success() {
                    return Err(failed_score(plugin.name(), &status));
                }
                scores
                    .iter()
                    .for_each(|s| totals[s.node as usize] += weight * s.score);
            }
        }
    }
    framework.observe_point("Score", Code::Success, start);
    Ok(totals)
}

/// One of the nodes with the largest total: the `random`-th of them.
fn best(nodes: &NodeSet, totals: &[i64], random: u64) -> Option<NodeIndex> {
    let (mut top, mut ties) = (i64::MIN, 0u64);
    for node in nodes.iter() {
        let total = totals[node as usize];
        if total > top {
            (top, ties) = (total, 1);
        } else if total == top {
            ties += 1;
        }
    }
    nodes
        .iter()
        .filter(|node| totals[*node as usize] == top)
        .nth((random % ties.max(1)) as usize)
}

fn relevant_nominations(
    nominator: &Nominator,
    snapshot: &Snapshot,
    pod: &PodInfo,
) -> Vec<NodeIndex> {
    if nominator.is_empty() {
        return Vec::new();
    }
    let counts = |other: &Arc<PodInfo>| other.priority >= pod.priority && other.uid != pod.uid;
    let nodes = nominator
        .nodes()
        .into_iter()
        .filter(|(_, pods)| pods.iter().any(counts));
    nodes
        .filter_map(|(name, _)| snapshot.index(&name))
        .collect()
}

/// Mixes a counter into a number that looks random (the finalizer of SplitMix64).
fn splitmix64(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
