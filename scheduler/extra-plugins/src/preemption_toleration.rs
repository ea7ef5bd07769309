//! PreemptionToleration: preemption as DefaultPreemption has it, but for pods whose priority class says that they tolerate it for a while, or for ever.
//!
//! A class says so by annotations: which priority preempts its pods at once, and for how many seconds after they got their node those below cannot. Enabled at
//! `postFilter` in the place of DefaultPreemption. Upstream: pkg/preemptiontoleration.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use component_helpers::pod::{condition::POD_SCHEDULED, get_condition};
use framework::args::{DefaultPreemptionArgs, decode};
use framework::{
    CycleState, EventObject, Handle, NodeIndex, NodeToStatus, NominatingInfo, Object, ObjectKind,
    Observer, Plugin, PluginError, PodInfo, PostFilterPlan, PostFilterPlugin, PreEnqueuePlugin,
    Snapshot, Status,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use plugins::preemption::{
    Evaluator, Preemptor, calculate_num_candidates, pod_eligible_to_preempt_others,
    validate_num_candidates,
};

use crate::kinds::{PRIORITY_CLASS, PriorityClass};
use crate::names;
use crate::observed::Observed;

#[cfg(test)]
mod tests;

/// The annotation: pods of this priority and above preempt at once.
pub const MINIMUM_PREEMPTABLE_PRIORITY: &str =
    "preemption-toleration.scheduling.x-k8s.io/minimum-preemptable-priority";
/// The annotation: so many seconds after it got its node a pod is preempted by others, too; less than none: never.
pub const TOLERATION_SECONDS: &str = "preemption-toleration.scheduling.x-k8s.io/toleration-seconds";

/// What a priority class says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Pods of this priority and above preempt at once. Where nothing is said: those above its own.
    pub minimum_preemptable_priority: i32,
    /// For how long others cannot; none where nothing is said, for ever where it is less than none.
    pub toleration_seconds: i64,
}

impl Policy {
    /// `None` when an annotation is no number: such a class tolerates nothing.
    fn parse(class: &Object) -> Option<Self> {
        let value = class.decode::<PriorityClass>().ok()?.value;
        let annotations = class.metadata.annotations.as_ref();
        let annotation = |key: &str| annotations.and_then(|all| all.get(key));
        Some(Policy {
            minimum_preemptable_priority: match annotation(MINIMUM_PREEMPTABLE_PRIORITY) {
                Some(text) => text.parse().ok()?,
                None => value.saturating_add(1),
            },
            toleration_seconds: match annotation(TOLERATION_SECONDS) {
                Some(text) => text.parse().ok()?,
                None => 0,
            },
        })
    }

    /// Does `victim` stay when `preemptor` comes?
    pub fn exempts(&self, victim: &PodInfo, preemptor: &PodInfo, now: Timestamp) -> bool {
        if preemptor.priority >= self.minimum_preemptable_priority {
            return false;
        }
        if self.toleration_seconds < 0 {
            return true;
        }
        let scheduled = get_condition(&victim.pod, POD_SCHEDULED);
        let Some(scheduled) = scheduled.filter(|condition| condition.status == "True") else {
            return true;
        };
        let since = scheduled.last_transition_time.as_ref().map(|time| time.0);
        let until = since.unwrap_or(Timestamp::UNIX_EPOCH);
        // A time beyond the calendar's end never comes.
        until
            .checked_add(SignedDuration::from_secs(self.toleration_seconds))
            .map_or(true, |until| until > now)
    }
}

struct PreemptionToleration {
    args: DefaultPreemptionArgs,
    evaluator: Evaluator,
    /// By name. `None`: its annotations make no sense.
    classes: RwLock<HashMap<String, Option<Policy>>>,
}

/// Makes the plugin.
///
/// # Errors
/// For arguments that do not decode or are out of range.
pub fn new(
    args: Option<&serde_json::Value>,
    handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    let plugin = names::PREEMPTION_TOLERATION;
    let args: DefaultPreemptionArgs = decode(plugin, args)?;
    let problems = validate_num_candidates(
        args.min_candidate_nodes_percentage,
        args.min_candidate_nodes_absolute,
    );
    if !problems.is_empty() {
        return Err(PluginError::Invalid { plugin, problems });
    }
    Ok(Arc::new(PreemptionToleration {
        args,
        evaluator: Evaluator::new(plugin, handle),
        classes: RwLock::default(),
    }))
}

impl Plugin for PreemptionToleration {
    fn name(&self) -> &'static str {
        names::PREEMPTION_TOLERATION
    }
    fn as_pre_enqueue(&self) -> Option<&dyn PreEnqueuePlugin> {
        Some(self)
    }
    fn as_post_filter(&self) -> Option<&dyn PostFilterPlugin> {
        Some(self)
    }
    fn as_observer(&self) -> Option<&dyn Observer> {
        Some(self)
    }
}

impl Observer for PreemptionToleration {
    fn kinds(&self) -> Vec<ObjectKind> {
        vec![PRIORITY_CLASS]
    }

    fn hears_pods(&self) -> bool {
        false
    }

    fn observe(&self, old: Option<&EventObject>, new: Option<&EventObject>) {
        let mut classes = self.classes.write().unwrap_or_else(PoisonError::into_inner);
        match Observed::new(old, new) {
            Some(Observed::Object(class)) => {
                let policy = Policy::parse(class);
                if policy.is_none() {
                    tracing::error!(
                        priorityClass = class.name(),
                        "the preemption toleration of a priority class is no number; its pods tolerate no preemption"
                    );
                }
                classes.insert(class.name().to_owned(), policy);
            }
            Some(Observed::ObjectGone(class)) => {
                classes.remove(class.name());
            }
            // Pods are not asked for.
            Some(Observed::Pod { .. } | Observed::PodGone(_)) | None => {}
        }
    }
}

impl PreEnqueuePlugin for PreemptionToleration {
    fn pre_enqueue(&self, pod: &Arc<Pod>) -> Status {
        self.evaluator.pre_enqueue(pod)
    }
}

impl PostFilterPlugin for PreemptionToleration {
    fn reads_state(&self, pod: &Arc<PodInfo>, snapshot: &Snapshot) -> bool {
        let lowest = &snapshot.columns().lowest_priority;
        lowest.iter().any(|priority| *priority < pod.priority)
    }

    fn post_filter(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        statuses: &NodeToStatus,
    ) -> (Option<NominatingInfo>, Status) {
        self.evaluator
            .post_filter(self, state, pod, snapshot, statuses)
    }

    fn dry_run(
        &self,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        statuses: &NodeToStatus,
    ) -> Option<PostFilterPlan> {
        let plan = self.evaluator.dry_run(self, state, pod, snapshot, statuses);
        Some(plan)
    }
}

impl Preemptor for PreemptionToleration {
    fn eligible(
        &self,
        _state: &CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
        statuses: &NodeToStatus,
    ) -> Result<(), &'static str> {
        pod_eligible_to_preempt_others(pod, snapshot, statuses, |other| {
            other.priority < pod.priority && other.is_terminating()
        })
    }

    fn may_have_victims(&self, pod: &PodInfo, snapshot: &Snapshot, node: NodeIndex) -> bool {
        snapshot.columns().lowest_priority[node as usize] < pod.priority
    }

    fn is_potential_victim(
        &self,
        _state: &CycleState,
        pod: &PodInfo,
        other: &PodInfo,
        now: Timestamp,
    ) -> Result<bool, Status> {
        if other.priority >= pod.priority {
            return Ok(false);
        }
        let class = other.spec().priority_class_name.as_deref();
        let Some(class) = class.filter(|class| !class.is_empty()) else {
            return Ok(true);
        };
        let classes = self.classes.read().unwrap_or_else(PoisonError::into_inner);
        match classes.get(class) {
            Some(Some(policy)) => Ok(!policy.exempts(other, pod, now)),
            Some(None) => Ok(true),
            // Its pods may be of a kind that must not go.
            None => Err(Status::error(format!(
                "priorityclass.scheduling.k8s.io {class:?} not found"
            ))),
        }
    }

    fn num_candidates(&self, nodes: usize) -> usize {
        let (share, least) = (
            self.args.min_candidate_nodes_percentage,
            self.args.min_candidate_nodes_absolute,
        );
        calculate_num_candidates(nodes, share, least)
    }
}
