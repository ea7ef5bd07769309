//! [`run`]: what follows the choice of a node, in a task of its own: wait on Permit, PreBind, Bind, PostBind.
//!
//! Failure takes everything back: Unreserve, forget, tell the pods that wait for room, requeue. Upstream: pkg/scheduler/schedule_one.go (bindingCycle,
//! handleBindingCycleError), v1.36.

use std::sync::Arc;
use std::time::Instant;

use backend::QueuedPodInfo;
use framework::*;

use crate::failure::{Failure, handle_scheduling_failure};
use crate::retreat::{tell_of_retreat, unreserve_and_forget};
use crate::runtime::Framework;
use crate::scheduler::Scheduler;

/// A pod on its way to a node.
pub struct BindingCycle {
    /// The scheduler.
    pub scheduler: Arc<Scheduler>,
    /// The pod's profile.
    pub framework: Arc<Framework>,
    /// The pod.
    pub queued: Box<QueuedPodInfo>,
    /// The node chosen.
    pub node_name: Arc<str>,
    /// What the scheduling cycle left.
    pub state: CycleState,
    /// When the attempt began.
    pub start: Instant,
}

/// See the module.
pub async fn run(mut cycle: BindingCycle) {
    let _running = cycle.scheduler.shared.metrics().running("binding");
    let status = binding_cycle(&mut cycle).await;
    if !status.is_success() {
        handle_binding_cycle_error(cycle, status);
    }
}

async fn binding_cycle(cycle: &mut BindingCycle) -> Status {
    let BindingCycle {
        scheduler,
        framework,
        queued,
        node_name,
        state,
        start,
    } = cycle;
    let pod = Arc::clone(&queued.pod);
    let pre_flight = framework.run_pre_bind_pre_flights(state, &pod, node_name);
    if pre_flight.is_error() || pre_flight.is_rejected() {
        return pre_flight;
    }
    let will_wait = scheduler.shared.waiting_pods().get(&pod.uid).is_some();
    if pre_flight.is_success() || will_wait {
        // Others shall see where the pod is going, should the way there take long.
        let nominating = NominatingInfo::Override(node_name.to_string());
        if let Err(error) = scheduler
            .shared
            .api()
            .patch_pod_status(&pod.pod, None, nominating)
            .await
        {
            tracing::error!(pod = pod.name(), namespace = pod.namespace(), %error, "Failed to update the nominated node name in the binding cycle");
        }
    }
    let status = framework.wait_on_permit(&pod).await;
    if !status.is_success() {
        return status;
    }
    // From here on only an error of the API brings the pod back; no event has to be kept for it.
    scheduler.queue.done(&pod.uid);
    if pre_flight.is_success() {
        let cancelled = scheduler.shared.start_pre_bind(&pod.uid);
        let status = tokio::select! {
            status = framework.run_pre_bind_plugins(state, &pod, node_name) => status,
            () = cancelled.cancelled() => Status::error("binding was cancelled"),
        };
        if !scheduler.shared.end_pre_bind(&pod.uid) {
            return Status::error("binding was cancelled");
        }
        if !status.is_success() {
            return status;
        }
    }
    let status = framework.bind(state, &pod, node_name).await;
    if !status.is_success() {
        tracing::info!(pod = pod.name(), namespace = pod.namespace(), %status, "Failed to bind pod");
        return status;
    }
    bound(scheduler, framework, queued, node_name, *start);
    framework.run_post_bind_plugins(state, &pod, node_name);
    Status::success()
}

fn bound(
    scheduler: &Scheduler,
    framework: &Framework,
    queued: &QueuedPodInfo,
    node_name: &str,
    start: Instant,
) {
    let pod = &queued.pod;
    scheduler.shared.record(EventRecord {
        regarding: Arc::clone(&pod.pod),
        related: None,
        warning: false,
        reason: "Scheduled",
        action: "Binding",
        note: format!(
            "Successfully assigned {}/{} to {node_name}",
            pod.namespace(),
            pod.name()
        ),
    });
    tracing::info!(
        pod = pod.name(),
        namespace = pod.namespace(),
        node = node_name,
        "Successfully bound pod to node"
    );
    let metrics = scheduler.shared.metrics();
    metrics.observe_attempt("scheduled", framework.profile_name(), start);
    let first = queued.initial_attempt_timestamp;
    metrics.observe_bound(
        queued.attempts,
        first,
        queued.was_flushed_from_unschedulable,
    );
}

fn handle_binding_cycle_error(cycle: BindingCycle, status: Status) {
    let BindingCycle {
        scheduler,
        framework,
        queued,
        node_name,
        mut state,
        start,
    } = cycle;
    let pod = Arc::clone(&queued.pod);
    let forgotten = unreserve_and_forget(&scheduler, &framework, &mut state, &pod, &node_name)
        // Its deletion forgot it, and told so; but what plugins had reserved for it is free only now.
        || scheduler.cache.get_placed_pod(&pod.uid).is_none();
    let rejected = status.is_rejected();
    let tell = |pre_check| tell_of_retreat(&scheduler, &pod.pod, &node_name, pre_check);
    if forgotten && !rejected {
        tell(None);
    }
    let clear = NominatingInfo::Override(String::new());
    handle_scheduling_failure(
        &scheduler,
        &framework,
        queued,
        Failure::on_node(status, &node_name),
        &clear,
        start,
    );
    if forgotten && rejected {
        // The pod itself gains nothing by its own retreat.
        tell(Some(&|other: &PodInfo| other.uid != pod.uid));
    }
}
