//! What happens to a pod that could not be scheduled or bound: back into the queue, an event, `PodScheduled=False`.
//!
//! Upstream: pkg/scheduler/schedule_one.go (handleSchedulingFailure), v1.36. The words are part of the contract.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use component_base::tasks;

use backend::QueuedPodInfo;
use framework::*;
use k8s_openapi::api::core::v1::PodCondition;

use crate::decide::NO_NODES_AVAILABLE;
use crate::runtime::Framework;
use crate::scheduler::Scheduler;

/// The longest note of an event (upstream's `NoteLengthLimit`).
const NOTE_LENGTH_LIMIT: usize = 1024;

/// Why.
#[derive(Debug)]
pub enum Failure {
    /// There are no nodes.
    NoNodes,
    /// It fits nowhere, or a plugin rejected it on the node chosen.
    Fit(Code, Box<FitError>),
    /// The group it belongs to did not come together: the message, and who rejected pods of it.
    Group(String, BTreeSet<&'static str>),
    /// Anything else.
    Status(Status),
}

impl Failure {
    /// A plugin's answer for the node chosen; a rejection reads as a fit error over that node.
    pub fn on_node(status: Status, node_name: &str) -> Self {
        if !status.is_rejected() {
            return Failure::Status(status);
        }
        let mut diagnosis = Diagnosis::default();
        diagnosis.add_plugin_status(&status);
        let code = status.code();
        diagnosis.node_to_status.set(node_name, status);
        Failure::Fit(
            code,
            Box::new(FitError {
                num_all_nodes: 1,
                diagnosis,
            }),
        )
    }

    /// Is it found that the pod does not fit? Otherwise something went wrong.
    pub fn is_rejected(&self) -> bool {
        match self {
            Failure::NoNodes | Failure::Fit(..) | Failure::Group(..) => true,
            Failure::Status(status) => status.is_rejected(),
        }
    }

    /// What is said of it.
    pub fn message(&self) -> String {
        match self {
            Failure::NoNodes => NO_NODES_AVAILABLE.to_owned(),
            Failure::Fit(_, fit) => fit.message(),
            Failure::Group(message, _) => message.clone(),
            Failure::Status(status) => status.message(),
        }
    }
}

/// See the module. Ends the pod's time in flight.
pub fn handle_scheduling_failure(
    scheduler: &Arc<Scheduler>,
    framework: &Framework,
    mut queued: Box<QueuedPodInfo>,
    failure: Failure,
    nominating: &NominatingInfo,
    start: Instant,
) {
    let (reason, result) = if failure.is_rejected() {
        ("Unschedulable", "unschedulable")
    } else {
        ("SchedulerError", "error")
    };
    let metrics = scheduler.shared.metrics();
    metrics.observe_attempt(result, framework.profile_name(), start);
    let message = failure.message();
    queued.unschedulable_plugins.clear();
    queued.pending_plugins.clear();
    queued.gating_plugin = None;
    let pod = Arc::clone(&queued.pod);
    match &failure {
        Failure::NoNodes => tracing::info!(
            pod = pod.name(),
            namespace = pod.namespace(),
            "Unable to schedule pod; no nodes are registered to the cluster; waiting"
        ),
        Failure::Fit(_, fit) => {
            queued
                .unschedulable_plugins
                .clone_from(&fit.diagnosis.unschedulable_plugins);
            queued
                .pending_plugins
                .clone_from(&fit.diagnosis.pending_plugins);
            tracing::info!(
                pod = pod.name(),
                namespace = pod.namespace(),
                err = message,
                "Unable to schedule pod; no fit; waiting"
            );
        }
        Failure::Group(_, plugins) => {
            queued.unschedulable_plugins.clone_from(plugins);
            tracing::info!(
                pod = pod.name(),
                namespace = pod.namespace(),
                err = message,
                "Unable to schedule pod belonging to a pod group; waiting"
            );
        }
        Failure::Status(_) => tracing::error!(
            pod = pod.name(),
            namespace = pod.namespace(),
            err = message,
            "Error scheduling pod; retrying"
        ),
    }
    let rejected_by = &queued.unschedulable_plugins;
    scheduler.shared.decisions().failed(
        &pod,
        !failure.is_rejected(),
        rejected_by,
        truncate_message(&message),
        (start, metrics.start()),
    );
    let Some(pod) = requeue(scheduler, queued, nominating) else {
        return;
    };
    scheduler.shared.record(EventRecord {
        regarding: Arc::clone(&pod.pod),
        related: None,
        warning: true,
        reason: "FailedScheduling",
        action: "Scheduling",
        note: truncate_message(&message),
    });
    let condition = PodCondition {
        type_: "PodScheduled".into(),
        status: "False".into(),
        reason: Some(reason.into()),
        message: Some(message),
        observed_generation: pod.pod.metadata.generation,
        ..PodCondition::default()
    };
    let (api, nominating) = (Arc::clone(scheduler.shared.api()), nominating.clone());
    let patch = async move {
        if let Err(error) = api
            .patch_pod_status(&pod.pod, Some(condition), nominating)
            .await
        {
            tracing::error!(pod = pod.name(), namespace = pod.namespace(), %error, "Error updating pod");
        }
    };
    scheduler
        .shared
        .tasks()
        .spawn(tasks::vital("pod condition", patch));
}

/// Puts the pod, in its newest form, back into the queue; `None` when it was replaced by another of the same name.
fn requeue(
    scheduler: &Scheduler,
    mut queued: Box<QueuedPodInfo>,
    nominating: &NominatingInfo,
) -> Option<Arc<PodInfo>> {
    let uid = Arc::clone(&queued.pod.uid);
    let mut pod = Arc::clone(&queued.pod);
    match scheduler.shared.listers().pod(pod.namespace(), pod.name()) {
        None => {
            tracing::info!(
                pod = pod.name(),
                namespace = pod.namespace(),
                "Pod doesn't exist in informer cache"
            );
            scheduler.queue.done(&uid);
        }
        Some(cached) if cached.metadata.uid.as_deref() != Some(&*uid) => {
            tracing::info!(
                pod = pod.name(),
                namespace = pod.namespace(),
                "Pod was recreated while handling scheduling failure. Skip requeueing and status updates."
            );
            scheduler.queue.done(&uid);
            return None;
        }
        Some(cached)
            if framework::pod_info::spec(&cached)
                .node_name
                .as_deref()
                .is_some_and(|node| !node.is_empty()) =>
        {
            tracing::info!(
                pod = pod.name(),
                namespace = pod.namespace(),
                "Pod has been assigned to node. Abort adding it back to queue."
            );
            scheduler.queue.done(&uid);
        }
        Some(cached) => {
            if let Ok(newest) = queued.pod.with_updated_pod(cached) {
                pod = Arc::new(newest);
                queued.pod = Arc::clone(&pod);
            }
            scheduler.queue.nominator().add(&pod, nominating);
            scheduler.queue.add_unschedulable_if_not_present(queued);
        }
    }
    Some(pod)
}

/// Short enough for an event's note.
pub(crate) fn truncate_message(message: &str) -> String {
    const SUFFIX: &str = " ...";
    if message.len() <= NOTE_LENGTH_LIMIT {
        return message.to_owned();
    }
    let mut end = NOTE_LENGTH_LIMIT - SUFFIX.len();
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{SUFFIX}", &message[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_cut_at_the_limit() {
        assert_eq!(truncate_message("short"), "short");
        let cut = truncate_message(&"ä".repeat(2000));
        assert!(cut.len() <= NOTE_LENGTH_LIMIT && cut.ends_with(" ..."));
    }

    #[test]
    fn a_rejection_on_the_node_reads_as_a_fit_error() {
        let failure = Failure::on_node(Status::unschedulable("no room").by("Permit"), "n");
        assert_eq!(failure.message(), "0/1 nodes are available: 1 no room.");
        assert!(
            failure.is_rejected() && !Failure::on_node(Status::error("boom"), "n").is_rejected()
        );
    }
}
