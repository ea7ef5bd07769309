//! DefaultPreemption: when a pod fits nowhere, finds the node where ending the least important pods makes room, and ends them.
//!
//! Who may be ended is said here; [`crate::preemption`] searches and carries it out. Upstream: plugins/defaultpreemption, v1.36.

use std::sync::Arc;

use framework::args::{DefaultPreemptionArgs, decode};
use framework::{
    ActionType, ClusterEventWithHint, CycleState, EnqueueExtensions, EventResource, Handle,
    NodeIndex, NodeToStatus, NominatingInfo, Plugin, PluginError, PodInfo, PostFilterPlan,
    PostFilterPlugin, PreEnqueuePlugin, QueueingHint, Snapshot, Status,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::names;
use crate::preemption::{
    Evaluator, Preemptor, calculate_num_candidates, pod_eligible_to_preempt_others,
    terminating_by_preemption, validate_num_candidates,
};

#[cfg(test)]
mod tests;

struct DefaultPreemption {
    args: DefaultPreemptionArgs,
    evaluator: Evaluator,
}

/// Makes the plugin.
///
/// # Errors
/// For arguments that do not decode or are out of range.
pub fn new(
    args: Option<&serde_json::Value>,
    handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    let plugin = names::DEFAULT_PREEMPTION;
    let args: DefaultPreemptionArgs = decode(plugin, args)?;
    let (percentage, absolute) = (
        args.min_candidate_nodes_percentage,
        args.min_candidate_nodes_absolute,
    );
    let problems = validate_num_candidates(percentage, absolute);
    if !problems.is_empty() {
        return Err(PluginError::Invalid { plugin, problems });
    }
    Ok(Arc::new(DefaultPreemption {
        args,
        evaluator: Evaluator::new(plugin, handle),
    }))
}

impl Plugin for DefaultPreemption {
    fn name(&self) -> &'static str {
        names::DEFAULT_PREEMPTION
    }
    fn as_pre_enqueue(&self) -> Option<&dyn PreEnqueuePlugin> {
        Some(self)
    }
    fn as_post_filter(&self) -> Option<&dyn PostFilterPlugin> {
        Some(self)
    }
    fn as_enqueue_extensions(&self) -> Option<&dyn EnqueueExtensions> {
        Some(self)
    }
}

impl PreEnqueuePlugin for DefaultPreemption {
    fn pre_enqueue(&self, pod: &Arc<Pod>) -> Status {
        self.evaluator.pre_enqueue(pod)
    }
}

impl EnqueueExtensions for DefaultPreemption {
    fn events_to_register(&self) -> Vec<ClusterEventWithHint> {
        // A deletion lets the queue ask PreEnqueue again; whether it helps is for the plugins to say that rejected the pod.
        vec![ClusterEventWithHint::with_hint(
            EventResource::Pod,
            ActionType::DELETE,
            |_, _, _| QueueingHint::QueueSkip,
        )]
    }
}

impl PostFilterPlugin for DefaultPreemption {
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

impl Preemptor for DefaultPreemption {
    fn eligible(
        &self,
        _state: &CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
        statuses: &NodeToStatus,
    ) -> Result<(), &'static str> {
        pod_eligible_to_preempt_others(pod, snapshot, statuses, |other| {
            other.priority < pod.priority && terminating_by_preemption(&other.pod)
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
        _now: Timestamp,
    ) -> Result<bool, Status> {
        Ok(other.priority < pod.priority)
    }

    fn num_candidates(&self, nodes: usize) -> usize {
        let (share, least) = (
            self.args.min_candidate_nodes_percentage,
            self.args.min_candidate_nodes_absolute,
        );
        calculate_num_candidates(nodes, share, least)
    }
}
