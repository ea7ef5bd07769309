//! GangScheduling: pods of a gang (`scheduling.k8s.io` PodGroup with a gang policy) get nodes together, or none does.
//!
//! A pod of a gang does not enter the queue before the group's object and `minCount` of its pods are there. The scheduling loop then tries the whole group in one cycle, and asks
//! after each pod whether the rest may still do ([`PlacementFeasiblePlugin`]). Permit is the barrier: whoever comes alone waits for the others, 5 min at most.
//! Upstream: plugins/gangscheduling, v1.37 (CompositePodGroup off).

use std::sync::Arc;
use std::time::Duration;

use framework::pod_groups::{group_of, min_count};
use framework::{
    ActionType, ClusterEventWithHint, Code, CycleState, EnqueueExtensions, EventObject,
    EventResource, GroupProgress, Handle, PermitPlugin, PlacementFeasiblePlugin, Plugin,
    PluginError, PodInfo, PreEnqueuePlugin, QueueingHint, Status,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::scheduling::v1beta1::PodGroup;

use crate::names;

#[cfg(test)]
mod tests;

/// How long pods of a gang wait for the others. Upstream: `permitTimeoutDuration`.
const PERMIT_TIMEOUT: Duration = Duration::from_secs(5 * 60);

struct GangScheduling {
    handle: Arc<dyn Handle>,
}

/// Makes the plugin.
///
/// # Errors
/// With the feature gate `GenericWorkload` off: nobody would know of a group.
pub fn new(
    _args: Option<&serde_json::Value>,
    handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    if !handle.listers().pod_groups().enabled() {
        return Err(PluginError::Invalid {
            plugin: names::GANG_SCHEDULING,
            problems: vec!["the feature gate GenericWorkload is off".to_owned()],
        });
    }
    Ok(Arc::new(GangScheduling { handle }))
}

impl Plugin for GangScheduling {
    fn name(&self) -> &'static str {
        names::GANG_SCHEDULING
    }
    fn as_pre_enqueue(&self) -> Option<&dyn PreEnqueuePlugin> {
        Some(self)
    }
    fn as_enqueue_extensions(&self) -> Option<&dyn EnqueueExtensions> {
        Some(self)
    }
    fn as_permit(&self) -> Option<&dyn PermitPlugin> {
        Some(self)
    }
    fn as_placement_feasible(&self) -> Option<&dyn PlacementFeasiblePlugin> {
        Some(self)
    }
}

impl PreEnqueuePlugin for GangScheduling {
    fn pre_enqueue(&self, pod: &Arc<Pod>) -> Status {
        let groups = self.handle.listers().pod_groups();
        let Some(of) = groups.group_of(pod) else {
            return Status::success();
        };
        let Some(group) = groups.group(of) else {
            return Status::unresolvable(format!(
                "waiting for pods's pod group {:?} to appear in scheduling queue",
                of.1
            ));
        };
        match min_count(&group) {
            Some(min_count) if groups.counts(of).all < min_count => Status::unresolvable(
                "waiting for minCount pods from a gang to appear in scheduling queue",
            ),
            _ => Status::success(),
        }
    }
}

fn hint(may_help: bool) -> QueueingHint {
    match may_help {
        true => QueueingHint::Queue,
        false => QueueingHint::QueueSkip,
    }
}

fn is_of(pod: &Pod, group: &PodGroup) -> bool {
    let meta = &group.metadata;
    let name = (meta.namespace.as_deref(), meta.name.as_deref());
    group_of(pod).is_some_and(|(ns, of)| name == (Some(ns), Some(of)))
}

/// One more of the group may be the last that was missing.
fn after_pod_added(
    pod: &Arc<Pod>,
    _: Option<&EventObject>,
    new: Option<&EventObject>,
) -> QueueingHint {
    let of = group_of(pod);
    let added = new.and_then(EventObject::pod);
    hint(of.is_some() && added.is_some_and(|added| group_of(added) == of))
}

fn after_group_added(
    pod: &Arc<Pod>,
    _: Option<&EventObject>,
    new: Option<&EventObject>,
) -> QueueingHint {
    let added = new.and_then(EventObject::pod_group);
    hint(added.is_some_and(|group| is_of(pod, group)))
}

/// Fewer may do now.
fn after_group_updated(
    pod: &Arc<Pod>,
    old: Option<&EventObject>,
    new: Option<&EventObject>,
) -> QueueingHint {
    let group = |object: Option<&EventObject>| object.and_then(EventObject::pod_group).cloned();
    let (Some(old), Some(new)) = (group(old), group(new)) else {
        return QueueingHint::QueueSkip;
    };
    let fewer = matches!((min_count(&old), min_count(&new)), (Some(old), Some(new)) if new < old);
    hint(fewer && is_of(pod, &new))
}

impl EnqueueExtensions for GangScheduling {
    fn events_to_register(&self) -> Vec<ClusterEventWithHint> {
        vec![
            ClusterEventWithHint::with_hint(
                EventResource::UnscheduledPod,
                ActionType::ADD,
                after_pod_added,
            ),
            ClusterEventWithHint::with_hint(
                EventResource::AssignedPod,
                ActionType::ADD,
                after_pod_added,
            ),
            ClusterEventWithHint::with_hint(
                EventResource::PodGroup,
                ActionType::ADD,
                after_group_added,
            ),
            ClusterEventWithHint::with_hint(
                EventResource::PodGroup,
                ActionType::UPDATE,
                after_group_updated,
            ),
        ]
    }
}

impl PermitPlugin for GangScheduling {
    fn permit(
        &self,
        _state: &mut CycleState,
        pod: &Arc<PodInfo>,
        _node_name: &str,
    ) -> (Status, Duration) {
        let groups = self.handle.listers().pod_groups();
        let Some(of) = groups.group_of(&pod.pod) else {
            return (Status::success(), Duration::ZERO);
        };
        let Some(group) = groups.group(of) else {
            let (namespace, name) = of;
            let why = format!("failed to get podGroup {namespace}/{name}: not found");
            return (Status::error(why), Duration::ZERO);
        };
        let Some(min_count) = min_count(&group) else {
            return (Status::success(), Duration::ZERO);
        };
        if groups.counts(of).scheduled < min_count {
            // Others may wait for this one to be scheduled.
            self.handle.activate(groups.unscheduled(of));
            return (
                Status::new(
                    Code::Wait,
                    "waiting for minCount pods from a gang to be scheduled",
                ),
                PERMIT_TIMEOUT,
            );
        }
        for assumed in groups.assumed(of) {
            let uid = component_helpers::pod::uid(&assumed);
            if let Some(waiting) = self.handle.waiting_pod(uid) {
                waiting.allow(names::GANG_SCHEDULING);
            }
        }
        (Status::success(), Duration::ZERO)
    }
}

impl PlacementFeasiblePlugin for GangScheduling {
    fn placement_feasible(&self, group: &PodGroup, progress: GroupProgress) -> Status {
        let min_count = min_count(group).unwrap_or(1);
        let GroupProgress {
            scheduled,
            remaining,
        } = progress;
        if remaining + scheduled < min_count {
            return Status::unschedulable(format!(
                "minCount ({min_count}) cannot be satisfied: {scheduled} scheduled, {remaining} remaining"
            ));
        }
        if scheduled < min_count {
            return Status::new(
                Code::Wait,
                format!(
                    "minCount ({min_count}) is not yet satisfied: {scheduled} scheduled, {remaining} remaining"
                ),
            );
        }
        Status::success()
    }
}
