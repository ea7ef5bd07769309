//! A pod that was decided gives back what it had of its node: by a failed binding, a group that does not come together, a deletion.
//!
//! Upstream: pkg/scheduler/schedule_one.go (unreserveAndForget, handleBindingCycleError), v1.36.

use std::sync::Arc;

use framework::*;
use k8s_openapi::api::core::v1::Pod;

use crate::runtime::Framework;
use crate::scheduler::Scheduler;

/// Undoes Reserve and the assumption.
pub(crate) fn unreserve_and_forget(
    scheduler: &Scheduler,
    framework: &Framework,
    state: &mut CycleState,
    pod: &Arc<PodInfo>,
    node_name: &str,
) -> bool {
    framework.run_reserve_plugins_unreserve(state, pod, node_name);
    scheduler.shared.listers().pod_groups().forget(&pod.pod);
    match scheduler.cache.forget_pod(pod) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "ForgetPod failed");
            false
        }
    }
}

/// A decided pod gives its room on `node` back: those that wait for room hear of it, if `pre_check` lets them.
///
/// The pod never came to its node, so it is shown as nominated to it: one without any place would be of interest to nobody.
pub(crate) fn tell_of_retreat(
    scheduler: &Scheduler,
    pod: &Pod,
    node: &str,
    pre_check: Option<&dyn Fn(&PodInfo) -> bool>,
) {
    let mut placed = pod.clone();
    let status = placed.status.get_or_insert_default();
    status.nominated_node_name = Some(node.to_owned());
    scheduler.queue.move_all_to_active_or_backoff_queue(
        ClusterEvent::ASSIGNED_POD_DELETE,
        Some(EventObject::Pod(Arc::new(placed))),
        None,
        pre_check,
    );
}
