//! The search of preemption, whatever may be preempted: the node where ending the least important pods makes room, and the carrying out.
//!
//! ```text
//! eligible? -> candidate nodes -> dry run on each (victims, fewest first to go) -> pick one -> executor deletes victims, the pod is nominated
//! ```
//! A [`Preemptor`] says who may be a victim, and what else must hold on a node; [`Evaluator`] does the rest. The choice is made within the scheduling cycle and
//! touches nothing; the executor carries it out beside it.
//! Upstream: framework/preemption, v1.36. DIFFERS: the search starts at a node derived from the pod's UID, not at a random one.

use std::sync::Arc;

use component_helpers::labels::Selector;
use component_helpers::names::fnv64a;
use framework::{
    Code, CycleState, Diagnosis, Extender, FitError, Handle, NodeIndex, NodeInfo, NodeSet,
    NodeToStatus, NodeToVictims, NominatingInfo, PodInfo, PostFilterPlan, Snapshot, Status,
    Verdicts,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

mod candidate;
mod executor;

pub use candidate::Candidate;
use candidate::pick_one_node_for_preemption;
use executor::Executor;

/// There is nobody of lower priority.
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";
/// The extenders left none.
const NO_CANDIDATE: &str = "no candidate node for preemption";
/// The victims of the pod are being ended.
const RUNNING: &str = "waiting for the preemption for this pod to be finished";
/// Whoever is ended there, the pod will not fit.
const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";

/// Who may be ended for whom.
pub trait Preemptor: Send + Sync {
    /// May the pod preempt at all? Else why not.
    ///
    /// # Errors
    /// The reason, in upstream's words.
    fn eligible(
        &self,
        state: &CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
        statuses: &NodeToStatus,
    ) -> Result<(), &'static str>;

    /// May a pod of this node be a victim? A cheap look that spares nodes the trial; true where it cannot tell.
    fn may_have_victims(&self, pod: &PodInfo, snapshot: &Snapshot, node: NodeIndex) -> bool;

    /// Is `other` a victim, as things are in `state`: with the victims chosen on the node before it gone? The least important are asked about first.
    ///
    /// # Errors
    /// When it cannot be told; the node is given up then.
    fn is_potential_victim(
        &self,
        state: &CycleState,
        pod: &PodInfo,
        other: &PodInfo,
        now: Timestamp,
    ) -> Result<bool, Status>;

    /// With all potential victims gone the filters let the pod in: is there nothing else against it?
    ///
    /// # Errors
    /// What is against it.
    fn admits(&self, state: &CycleState, pod: &PodInfo) -> Result<(), Status> {
        let _ = (state, pod);
        Ok(())
    }

    /// A victim was put back, and the filters let the pod in beside it: is there nothing else against it?
    fn spares(&self, state: &CycleState, pod: &PodInfo) -> bool {
        let _ = (state, pod);
        true
    }

    /// How many nodes that would do are enough to choose from, of so many.
    fn num_candidates(&self, nodes: usize) -> usize;
}

/// At least this share of the nodes, and at least so many: how many nodes that would do are enough. Upstream: `calculateNumCandidates`.
pub fn calculate_num_candidates(nodes: usize, percentage: i32, absolute: i32) -> usize {
    let share = nodes * usize::try_from(percentage).unwrap_or(0) / 100;
    share.max(usize::try_from(absolute).unwrap_or(0)).min(nodes)
}

/// Checks the arguments of how many candidates are enough; every problem with its field.
pub fn validate_num_candidates(percentage: i32, absolute: i32) -> Vec<String> {
    let mut problems = Vec::new();
    if !(0..=100).contains(&percentage) {
        problems.push(format!(
            "minCandidateNodesPercentage: Invalid value: {percentage}: not in valid range [0, 100]"
        ));
    }
    if absolute < 0 {
        problems.push(format!(
            "minCandidateNodesAbsolute: Invalid value: {absolute}: not in valid range [0, inf)"
        ));
    }
    if percentage == 0 && absolute == 0 {
        problems.push("minCandidateNodesPercentage: Invalid value: 0: cannot be zero at the same time as minCandidateNodesAbsolute".into());
    }
    problems
}

/// The search and its carrying out, for one plugin.
pub struct Evaluator {
    handle: Arc<dyn Handle>,
    executor: Arc<Executor>,
}

fn in_our_name(status: Status) -> Status {
    match status.reasons().is_empty() {
        true => status,
        false => Status::new(status.code(), format!("preemption: {}", status.message())),
    }
}

/// What the pod is told while its victims go.
fn found(best: &Candidate) -> Status {
    let (node, victims) = (&best.node, best.victims.len());
    let text =
        format!("found a potential placement for pod on node {node}, preempting {victims} victims");
    Status::new(Code::Success, text)
}

impl Evaluator {
    /// For the plugin of this name.
    pub fn new(plugin: &'static str, handle: Arc<dyn Handle>) -> Self {
        let executor = Arc::new(Executor::new(plugin, Arc::clone(&handle)));
        Evaluator { handle, executor }
    }

    /// Keeps a pod out of the queue while its victims are being ended.
    pub fn pre_enqueue(&self, pod: &Pod) -> Status {
        if self
            .executor
            .is_pod_running_preemption(component_helpers::pod::uid(pod))
        {
            return Status::unresolvable(RUNNING);
        }
        Status::success()
    }

    /// Makes room for the pod, as PostFilter has it.
    pub fn post_filter(
        &self,
        preemptor: &dyn Preemptor,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        statuses: &NodeToStatus,
    ) -> (Option<NominatingInfo>, Status) {
        self.handle.observe_preemption(None);
        let (result, status) = self.preempt(preemptor, state, pod, snapshot, statuses);
        (result, in_our_name(status))
    }

    /// What [`Evaluator::post_filter`] would do.
    pub fn dry_run(
        &self,
        preemptor: &dyn Preemptor,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        statuses: &NodeToStatus,
    ) -> PostFilterPlan {
        match self.evaluate(preemptor, state, pod, snapshot, statuses) {
            Ok(best) => PostFilterPlan {
                status: in_our_name(found(&best)),
                node: Some(best.node),
                victims: best.victims,
            },
            Err((_, status)) => PostFilterPlan {
                status: in_our_name(status),
                node: None,
                victims: Vec::new(),
            },
        }
    }

    fn preempt(
        &self,
        preemptor: &dyn Preemptor,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        statuses: &NodeToStatus,
    ) -> (Option<NominatingInfo>, Status) {
        // The nomination may be newer than the pod in hand.
        let Some(latest) = self.handle.listers().pod(pod.namespace(), pod.name()) else {
            return (
                None,
                Status::error(format!("pod {:?} not found", pod.name())),
            );
        };
        let pod = match pod.with_updated_pod(latest) {
            Ok(pod) => Arc::new(pod),
            Err(error) => return (None, Status::error(error)),
        };
        let best = match self.evaluate(preemptor, state, &pod, snapshot, statuses) {
            Ok(best) => best,
            Err(refused) => return refused,
        };
        tracing::info!(
            pod = pod.name(),
            namespace = pod.namespace(),
            node = &*best.node,
            victims = best.victims.len(),
            "preempting"
        );
        self.handle.observe_preemption(Some(best.victims.len()));
        let nominating = NominatingInfo::Override(best.node.to_string());
        let status = found(&best);
        Executor::prepare_candidate_async(&self.executor, best, pod);
        (Some(nominating), status)
    }

    /// Which node is the best, with which victims; or what becomes of the nomination, and why. Touches nothing.
    fn evaluate(
        &self,
        preemptor: &dyn Preemptor,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        statuses: &NodeToStatus,
    ) -> Result<Candidate, (Option<NominatingInfo>, Status)> {
        if let Err(reason) = preemptor.eligible(state, pod, snapshot, statuses) {
            return Err((None, Status::unschedulable(reason)));
        }
        if self.executor.is_pod_running_preemption(&pod.uid) {
            return Err((None, Status::unschedulable(RUNNING)));
        }
        let now = self.handle.wall_time();
        let (mut candidates, node_statuses, errors) =
            self.find_candidates(preemptor, state, pod, snapshot, statuses, now);
        if !candidates.is_empty() {
            let left = self.call_extenders(pod, snapshot, candidates, now);
            candidates = left.map_err(|status| (None, status))?;
            if candidates.is_empty() {
                return Err((None, Status::unschedulable(NO_CANDIDATE)));
            }
        }
        pick_one_node_for_preemption(candidates, now).ok_or_else(|| {
            if !errors.is_empty() {
                return (None, Status::error(errors.join(", ")));
            }
            let diagnosis = Diagnosis {
                node_to_status: node_statuses,
                ..Diagnosis::default()
            };
            let error = FitError {
                num_all_nodes: snapshot.num_nodes(),
                diagnosis,
            };
            (
                Some(NominatingInfo::Override(String::new())),
                Status::unschedulable(error.message()),
            )
        })
    }

    /// The candidates that the extenders with a say in preemption leave, with the victims they leave.
    fn call_extenders(
        &self,
        pod: &PodInfo,
        snapshot: &Snapshot,
        candidates: Vec<Candidate>,
        now: Timestamp,
    ) -> Result<Vec<Candidate>, Status> {
        let extenders = self.handle.extenders();
        let say = |e: &&Arc<dyn Extender>| e.supports_preemption() && e.is_interested(&pod.pod);
        let mut extenders = extenders.iter().filter(say).peekable();
        if extenders.peek().is_none() {
            return Ok(candidates);
        }
        let mut victims: NodeToVictims = candidates.into_iter().map(Candidate::into).collect();
        for extender in extenders {
            if victims.is_empty() {
                break;
            }
            let (name, ignorable) = (extender.name(), extender.is_ignorable());
            let mut left = match extender.process_preemption(pod, &victims, snapshot) {
                Ok(left) => left,
                Err(err) if ignorable => {
                    tracing::info!(
                        extender = name,
                        err,
                        "Skipped extender as it returned error and has ignorable flag set"
                    );
                    continue;
                }
                Err(error) => return Err(Status::error(error)),
            };
            if let Some((node, _)) = left.iter().find(|(_, v)| v.pods.is_empty())
                && !ignorable
            {
                let reason = format!("expected at least one victim pod on node {node:?}");
                return Err(Status::error(reason));
            }
            left.retain(|_, victims| !victims.pods.is_empty());
            for victims in left.values_mut() {
                victims.pods.sort_by(|a, b| compare_importance(a, b, now));
            }
            victims = left;
        }
        Ok(victims.into_iter().map(Candidate::from).collect())
    }

    /// Tries nodes until enough of them would do. What became of the others, and what went wrong, comes along.
    fn find_candidates(
        &self,
        preemptor: &dyn Preemptor,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        statuses: &NodeToStatus,
        now: Timestamp,
    ) -> (Vec<Candidate>, NodeToStatus, Vec<String>) {
        let mut node_statuses = NodeToStatus::default();
        node_statuses.set_absent_nodes_status(Status::unresolvable(NOT_HELPFUL));
        let mut errors = Vec::new();
        let nodes = statuses.nodes_for_status_code(snapshot, Code::Unschedulable);
        let (with_victims, without): (Vec<_>, Vec<_>) = nodes
            .iter()
            .partition(|(index, _)| preemptor.may_have_victims(pod, snapshot, *index));
        if !without.is_empty() {
            // Most nodes of a full cluster: told by index, not by name.
            let without: NodeSet = without.iter().map(|(index, _)| *index).collect();
            let mut verdicts = Verdicts::new(without.clone(), snapshot.columns().len());
            verdicts.reject_all(&without, Status::unresolvable(NO_VICTIMS));
            node_statuses = NodeToStatus::from_verdicts(Arc::new(verdicts));
            node_statuses.set_absent_nodes_status(Status::unresolvable(NOT_HELPFUL));
        }
        if with_victims.is_empty() {
            return (Vec::new(), node_statuses, errors);
        }
        let budgets = Budget::all(&self.handle.listers().pod_disruption_budgets());
        let enough = preemptor.num_candidates(nodes.len());
        let offset = (fnv64a(pod.uid.as_bytes()) % with_victims.len() as u64) as usize;
        let (mut clean, mut violating) = (Vec::new(), Vec::new());
        for i in 0..with_victims.len() {
            let (_, node) = with_victims[(offset + i) % with_victims.len()];
            match self.select_victims_on_node(preemptor, state, pod, node, &budgets, now) {
                Ok(candidate) if candidate.num_pdb_violations == 0 => clean.push(candidate),
                Ok(candidate) => violating.push(candidate),
                Err(status) => {
                    if status.is_error() {
                        errors.push(status.message());
                    }
                    node_statuses.set(Arc::clone(node.name()), status);
                }
            }
            if !clean.is_empty() && clean.len() + violating.len() >= enough {
                break;
            }
        }
        clean.append(&mut violating);
        (clean, node_statuses, errors)
    }

    /// Takes all who may be victims off a copy of the node, and puts back as many as the pod leaves room for, the most important first.
    fn select_victims_on_node(
        &self,
        preemptor: &dyn Preemptor,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        node: &Arc<NodeInfo>,
        budgets: &[Budget],
        now: Timestamp,
    ) -> Result<Candidate, Status> {
        let mut trial = Trial {
            handle: &*self.handle,
            preemptor,
            state: state.clone(),
            node: NodeInfo::clone(node),
            pod,
        };
        let mut pods: Vec<Arc<PodInfo>> = node.pods().to_vec();
        pods.sort_by(|a, b| compare_importance(b, a, now));
        let mut potential = Vec::new();
        for other in pods {
            if preemptor.is_potential_victim(&trial.state, pod, &other, now)? {
                trial.remove(&other)?;
                potential.push(other);
            }
        }
        if potential.is_empty() {
            return Err(Status::unresolvable(NO_VICTIMS));
        }
        trial.fits()?;
        preemptor.admits(&trial.state, pod)?;
        potential.sort_by(|a, b| compare_importance(a, b, now));
        let (violating, clean) = filter_pods_with_pdb_violation(potential, budgets);
        let both = !violating.is_empty() && !clean.is_empty();
        let mut victims = Vec::new();
        let mut num_pdb_violations = 0;
        for (victim, violates) in violating
            .into_iter()
            .map(|v| (v, true))
            .chain(clean.into_iter().map(|v| (v, false)))
        {
            if !trial.reprieve(&victim)? {
                victims.push(victim);
                num_pdb_violations += usize::from(violates);
            }
        }
        if both {
            victims.sort_by(|a, b| compare_importance(a, b, now));
        }
        if victims.is_empty() {
            return Err(Status::error(format!(
                "expected at least one victim pod on node {:?}",
                node.name()
            )));
        }
        Ok(Candidate {
            node: Arc::clone(node.name()),
            victims,
            num_pdb_violations,
        })
    }
}

/// A copy of a node on which pods are tried away and back.
struct Trial<'a> {
    handle: &'a dyn Handle,
    preemptor: &'a dyn Preemptor,
    state: CycleState,
    node: NodeInfo,
    pod: &'a Arc<PodInfo>,
}

fn ok(status: Status) -> Result<(), Status> {
    if status.is_success() {
        Ok(())
    } else {
        Err(status)
    }
}

impl Trial<'_> {
    fn remove(&mut self, victim: &Arc<PodInfo>) -> Result<(), Status> {
        self.node.remove_pod(&victim.uid).map_err(Status::error)?;
        ok(self.handle.run_pre_filter_extension_remove_pod(
            &mut self.state,
            self.pod,
            victim,
            &self.node,
        ))
    }

    fn fits(&self) -> Result<(), Status> {
        ok(self
            .handle
            .run_filter_plugins_with_nominated_pods(&self.state, self.pod, &self.node))
    }

    /// Puts a pod back; takes it away again, and says false, when there is no room for both.
    fn reprieve(&mut self, victim: &Arc<PodInfo>) -> Result<bool, Status> {
        self.node.add_pod(Arc::clone(victim));
        ok(self.handle.run_pre_filter_extension_add_pod(
            &mut self.state,
            self.pod,
            victim,
            &self.node,
        ))?;
        if self.fits().is_ok() && self.preemptor.spares(&self.state, self.pod) {
            return Ok(true);
        }
        self.remove(victim)?;
        Ok(false)
    }
}

/// The more important first: higher priority, then the longer running.
fn compare_importance(a: &PodInfo, b: &PodInfo, now: Timestamp) -> std::cmp::Ordering {
    let started = |pod: &PodInfo| component_helpers::pod::start_time(&pod.pod, now);
    b.priority
        .cmp(&a.priority)
        .then_with(|| started(a).cmp(&started(b)))
}

/// Whether the pod may preempt at all: not when it declines to, and not while its last victims are still going.
///
/// `going`: whether a pod on the nominated node is one of those.
///
/// # Errors
/// The reason, in upstream's words.
pub fn pod_eligible_to_preempt_others(
    pod: &PodInfo,
    snapshot: &Snapshot,
    statuses: &NodeToStatus,
    going: impl Fn(&PodInfo) -> bool,
) -> Result<(), &'static str> {
    if pod.spec().preemption_policy.as_deref() == Some("Never") {
        return Err("not eligible due to preemptionPolicy=Never.");
    }
    let nominated = pod.nominated_node_name();
    if nominated.is_empty()
        || statuses.get(nominated, snapshot).code() == Code::UnschedulableAndUnresolvable
    {
        return Ok(());
    }
    match snapshot.get(nominated) {
        Some(node) if node.pods().iter().any(|other| going(other)) => {
            Err("not eligible due to a terminating pod on the nominated node.")
        }
        _ => Ok(()),
    }
}

/// Is it being ended to make room?
pub fn terminating_by_preemption(pod: &Pod) -> bool {
    use component_helpers::pod::{condition::DISRUPTION_TARGET, get_condition, is_terminating};
    let preempted = || {
        get_condition(pod, DISRUPTION_TARGET).is_some_and(|c| {
            c.status == "True" && c.reason.as_deref() == Some(executor::PREEMPTION_BY_SCHEDULER)
        })
    };
    is_terminating(pod) && preempted()
}

/// A disruption budget made ready.
pub(crate) struct Budget {
    source: Arc<PodDisruptionBudget>,
    selector: Selector,
    allowed: i32,
}

impl Budget {
    /// Those that can match anything: a wrong, absent or empty selector matches nothing here.
    pub(crate) fn all(budgets: &[Arc<PodDisruptionBudget>]) -> Vec<Budget> {
        let ready = |source: &Arc<PodDisruptionBudget>| {
            let selector = Selector::from_optional(
                source.spec.as_ref().and_then(|spec| spec.selector.as_ref()),
            )
            .ok()?;
            let allowed = source
                .status
                .as_ref()
                .map_or(0, |status| status.disruptions_allowed.unwrap_or(0));
            (!selector.is_everything() && !selector.is_nothing()).then(|| Budget {
                source: Arc::clone(source),
                selector,
                allowed,
            })
        };
        budgets.iter().filter_map(ready).collect()
    }

    fn counts(&self, pod: &PodInfo) -> bool {
        let disrupted = self
            .source
            .status
            .as_ref()
            .and_then(|status| status.disrupted_pods.as_ref());
        self.source.metadata.namespace.as_deref() == Some(pod.namespace())
            && !pod.labels().is_empty()
            && self.selector.matches(pod.labels())
            && !disrupted.is_some_and(|pods| pods.contains_key(pod.name()))
    }
}

/// Those whose end would break a budget, and the others; the order stays.
pub(crate) fn filter_pods_with_pdb_violation(
    pods: Vec<Arc<PodInfo>>,
    budgets: &[Budget],
) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut allowed: Vec<i32> = budgets.iter().map(|budget| budget.allowed).collect();
    pods.into_iter().partition(|pod| {
        let mut violated = false;
        for (budget, allowed) in budgets.iter().zip(&mut allowed) {
            if budget.counts(pod) {
                *allowed -= 1;
                violated |= *allowed < 0;
            }
        }
        violated
    })
}
