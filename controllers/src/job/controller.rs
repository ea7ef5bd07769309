//! The shell: watches Jobs and Pods, keeps expectations and backoffs, and carries out what [`super::decide`] and [`super::tracking`] decide.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::events::{EventType, object_reference};
use component_base::informer::{Factory, Informer, InformerEvent, InformerOptions};
use component_base::shutdown::Shutdown;
use component_helpers::labels::Selector;
use component_helpers::pod::{is_pod_ready, is_terminating, name, namespace, uid};
use controller_runtime::executor::{Action, Executor};
use controller_runtime::expectations::Expectations;
use controller_runtime::work_queue::RateLimit;
use controller_runtime::{
    ApiError, Controller, ObjectKey, Queues, Watches, WorkQueue, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use serde_json::json;

use super::TRACKING_FINALIZER;
use super::backoff::Backoff;
use super::condition::is_finished;
use super::decide::decide;
use super::decision::{Decision, Observed};
use super::pods::has_finalizer;
use super::tracking::{Outcome, Tracked, settle, track};
use crate::context::{ControllerContext, Running, StartError};
use crate::controller_ref::{controlled_by, index_by_controller};
use crate::controller_ref_manager::{claim_objects, concerned, resolve};
use crate::pod_control::{create_pods, delete_pod, record};

/// Changes of a Job's pods and of its status are looked at together. Upstream: `SyncJobBatchPeriod`.
const BATCH_PERIOD: Duration = Duration::from_secs(1);
/// Retries at least every minute: a quota may have room again. Upstream: `DefaultJobApiBackOff`, `MaxJobApiBackOff`.
const API_BACK_OFF: RateLimit = RateLimit {
    base: Duration::from_secs(1),
    max: Duration::from_secs(60),
    qps: 0.0,
    burst: 0,
};
/// A sync on a stale cache is put off for this time.
const STALE_PAUSE: Duration = Duration::from_secs(1);
/// `spec.managedBy` of Jobs that are ours.
const MANAGED_BY: &str = "kubernetes.io/job-controller";

/// Starts the controller under its own account.
///
/// # Errors
/// When it has no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let executor = context.executor("job-controller", "job-controller").await?;
    let workers = context.options.workers("job");
    let (controller, queue, watches) = JobController::new(
        &context.queues,
        &context.informers,
        executor,
        context.clock.clone(),
        &context.shutdown,
    );
    Ok(run_controller(
        controller,
        queue,
        watches,
        workers,
        context.shutdown.clone(),
    )
    .boxed())
}

/// What is reconciled.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum JobKey {
    /// A Job.
    Job(ObjectKey),
    /// A pod with our finalizer and no Job that counts it.
    Orphan(ObjectKey),
}

impl std::fmt::Display for JobKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Job(key) => write!(f, "{key}"),
            Self::Orphan(key) => write!(f, "orphan pod {key}"),
        }
    }
}

/// Reconciles Jobs by key.
pub struct JobController {
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    expectations: Expectations,
    /// UIDs of pods whose finalizer we took off and the cache still shows; by Job.
    finalizer_removed: Mutex<HashMap<ObjectKey, HashSet<String>>>,
    backoffs: Mutex<HashMap<ObjectKey, Backoff>>,
    /// UID of a Job and the version of the last status that was written.
    written: Mutex<HashMap<ObjectKey, (String, u64)>>,
    executor: Executor,
    clock: Clock,
}

impl JobController {
    /// The controller, its queue, and the watches that fill it; run them with [`controller_runtime::run_controller`].
    pub fn new(
        queues: &Queues,
        factory: &Factory,
        executor: Executor,
        clock: Clock,
        shutdown: &Shutdown,
    ) -> (Arc<Self>, WorkQueue<JobKey>, Watches) {
        let jobs = factory.informer(InformerOptions::default());
        let pods = factory.informer(InformerOptions::default());
        Self::over(queues, jobs, pods, executor, clock, shutdown)
    }

    pub(super) fn over(
        queues: &Queues,
        jobs: Informer<Job>,
        pods: Informer<Pod>,
        executor: Executor,
        clock: Clock,
        shutdown: &Shutdown,
    ) -> (Arc<Self>, WorkQueue<JobKey>, Watches) {
        let controller = Arc::new(Self {
            jobs,
            pods,
            expectations: Expectations::new(clock.clone()),
            finalizer_removed: Mutex::default(),
            backoffs: Mutex::default(),
            written: Mutex::default(),
            executor,
            clock,
        });
        index_by_controller(&controller.pods);
        let queue = queues.queue_with("job", API_BACK_OFF);
        let mut watches = Watches::new(shutdown.clone());
        let (handler, keys) = (controller.clone(), queue.clone());
        watches.on(&controller.jobs, move |event| handler.on_job(&keys, &event));
        let (handler, keys) = (controller.clone(), queue.clone());
        watches.on(&controller.pods, move |event| handler.on_pod(&keys, &event));
        (controller, queue, watches)
    }

    fn on_job(&self, queue: &WorkQueue<JobKey>, event: &InformerEvent<Job>) {
        let job = event.object();
        if matches!(event, InformerEvent::Deleted(_)) || is_finished(job) {
            for pod in controlled_by(&self.pods, job.metadata.uid.as_deref().unwrap_or_default()) {
                if has_finalizer(&pod) {
                    queue.add(JobKey::Orphan(ObjectKey::of(&*pod)));
                }
            }
        }
        let key = JobKey::Job(ObjectKey::of(&**job));
        match event {
            // Most often what this controller wrote itself. Upstream: `updateJob`.
            InformerEvent::Updated { old, new } if is_status_change(old, new) => {
                queue.add_after(key, BATCH_PERIOD)
            }
            _ => queue.add(key),
        }
    }

    fn on_pod(&self, queue: &WorkQueue<JobKey>, event: &InformerEvent<Pod>) {
        let pod = event.object();
        let owner =
            resolve(&self.jobs, &pod.metadata).map(|job| (ObjectKey::of(&*job), is_finished(&job)));
        let deleted = matches!(event, InformerEvent::Deleted(_));
        if let Some((key, _)) = &owner {
            match event {
                InformerEvent::Added(pod) if !is_terminating(pod) => {
                    self.expectations.creation_observed(key)
                }
                _ if deleted || is_terminating(pod) => {
                    self.expectations.deleted_uid_observed(key, uid(pod))
                }
                _ => {}
            }
            if deleted || !has_finalizer(pod) {
                self.finalizer_seen_off(key, uid(pod));
            }
        }
        if has_finalizer(pod) && !deleted && owner.as_ref().is_none_or(|(_, finished)| *finished) {
            queue.add(JobKey::Orphan(ObjectKey::of(&**pod)));
        }
        for key in concerned(&self.jobs, event, |job, pod| {
            selector(job).is_some_and(|s| s.matches(&pod.metadata.labels))
        }) {
            queue.add_after(JobKey::Job(key), BATCH_PERIOD);
        }
    }

    fn finalizer_seen_off(&self, key: &ObjectKey, uid: &str) {
        let mut all = self
            .finalizer_removed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(uids) = all.get_mut(key) {
            uids.remove(uid);
            if uids.is_empty() {
                all.remove(key);
            }
        }
    }

    fn note_written(&self, key: &ObjectKey, job: &Job) {
        if let (Some(uid), Some(version)) = (job.metadata.uid.clone(), version(job)) {
            self.written
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(key.clone(), (uid, version));
        }
    }

    /// Whether the cache has not seen what was written last. Pods that were counted since are without their finalizer, and such a
    /// Job does not know of them: they would be made once more. Upstream: `consistencyStore` and `finishedJobExpectations`.
    fn is_stale(&self, key: &ObjectKey, job: &Job) -> bool {
        let all = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(key).is_some_and(|(uid, written)| {
            job.metadata.uid.as_ref() == Some(uid) && version(job).is_some_and(|v| v < *written)
        })
    }

    fn forget(&self, key: &ObjectKey, gone: bool) {
        self.backoffs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key);
        self.written
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key);
        if gone {
            self.expectations.delete(key);
            self.finalizer_removed
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(key);
        }
    }

    /// Takes our finalizer off a pod; it may be gone already.
    async fn remove_finalizer(&self, pod: &Pod) -> Result<(), ApiError> {
        let patch = json!({"metadata": {"uid": uid(pod), "$deleteFromPrimitiveList/finalizers": [TRACKING_FINALIZER]}});
        let action = Action::strategic_patch::<Pod>(namespace(pod), name(pod), patch);
        match self.executor.execute(&action).await {
            // Gone, or a namesake by now.
            Ok(_) | Err(ApiError::NotFound(_) | ApiError::Conflict(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn sync_orphan(&self, key: &ObjectKey) -> Result<(), ApiError> {
        let Some(pod) = self.pods.get_key(key).filter(|p| has_finalizer(p)) else {
            return Ok(());
        };
        let owner = component_helpers::owner_ref::get_controller_of(&pod.metadata);
        if owner.is_some_and(|o| o.kind != "Job" || o.api_version != "batch/v1") {
            return Ok(());
        }
        match resolve(&self.jobs, &pod.metadata) {
            Some(job) if !is_ours(&job) || !is_finished(&job) => Ok(()),
            _ => self.remove_finalizer(&pod).await,
        }
    }

    async fn act(
        &self,
        key: &ObjectKey,
        job: &Job,
        decision: &Decision,
    ) -> (Outcome, Option<ApiError>) {
        let about = object_reference(job);
        let mut outcome = Outcome::default();
        let mut first_error = None;
        if !decision.create.is_empty() {
            self.expectations
                .expect_creations(key, decision.create.len());
            let created = create_pods(&self.executor, &about, &decision.create).await;
            // What failed and what was not tried will never be seen.
            for _ in created.count..decision.create.len() {
                self.expectations.creation_observed(key);
            }
            outcome.created = created.count;
            return (outcome, created.error);
        }
        self.expectations_for_removal(key, decision);
        let removals = decision
            .remove
            .iter()
            .map(|p| (p, true))
            .chain(decision.delete.iter().map(|p| (p, false)));
        let results = removals.map(|(pod, uncounted)| {
            let about = &about;
            async move {
                if uncounted {
                    self.remove_finalizer(pod).await.map_err(|e| (pod, e))?;
                }
                delete_pod(&self.executor, about, pod)
                    .await
                    .map(|there| (pod, there))
                    .map_err(|e| (pod, e))
            }
        });
        for result in futures::future::join_all(results).await {
            match result {
                Ok((pod, there)) => {
                    outcome.deleted += 1;
                    outcome.deleted_ready += usize::from(is_pod_ready(pod));
                    if !there {
                        self.expectations.deleted_uid_observed(key, uid(pod));
                    }
                }
                Err((pod, error)) => {
                    self.expectations.deleted_uid_observed(key, uid(pod));
                    first_error.get_or_insert(error);
                }
            }
        }
        (outcome, first_error)
    }

    /// Pods that end with the Job keep their finalizer and stay in sight: only the others are waited for.
    fn expectations_for_removal(&self, key: &ObjectKey, decision: &Decision) {
        if !decision.remove.is_empty() {
            let uids = decision.remove.iter().map(|p| uid(p).to_owned());
            self.expectations.expect_deleted_uids(key, uids);
        }
    }

    async fn sync_job(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let Some(job) = self.jobs.get_key(key) else {
            self.forget(key, true);
            return Ok(None);
        };
        if !is_ours(&job) {
            return Ok(None);
        }
        if self.is_stale(key, &job) {
            return Ok(Some(STALE_PAUSE));
        }
        if is_finished(&job) {
            self.forget(key, false);
            return Ok(None);
        }
        let about = object_reference(&*job);
        if !self.has_known_mode(&job, &about).await {
            return Ok(None);
        }
        let expectations_met = self.expectations.satisfied(key);
        let Some(selector) = selector(&job) else {
            // No retry helps; a change of the Job brings it back.
            tracing::error!(job = %key, "couldn't convert Job selector");
            return Ok(None);
        };
        let claimed = claim_objects::<Job, Pod>(
            &self.executor,
            &self.pods,
            &job.metadata,
            &selector,
            Some(TRACKING_FINALIZER),
            |_| true,
        );
        let Some(pods) = claimed.await? else {
            return Ok(None);
        };
        let removed = {
            let all = self
                .finalizer_removed
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            all.get(key).cloned().unwrap_or_default()
        };
        let backoff = {
            let all = self.backoffs.lock().unwrap_or_else(PoisonError::into_inner);
            all.get(key).copied().unwrap_or_default()
        };
        let now = self.clock.now();
        let observed = Observed {
            pods,
            expectations_met,
            finalizer_removed: removed.clone(),
            backoff,
        };
        let decision = decide(&job, &observed, now);
        let (outcome, error) = self.act(key, &job, &decision).await;
        let (requeue_after, new_backoff) = (decision.requeue_after, decision.backoff);
        if let Some(suspended) = decision.suspension {
            let (reason, message) = match suspended {
                true => ("Suspended", "Job suspended"),
                false => ("Resumed", "Job resumed"),
            };
            record(&self.executor, &about, EventType::Normal, reason, message).await;
        }
        let tracked = track(&job, decision, outcome, &observed.pods, &removed, now);
        let mut written = (*job).clone();
        if tracked.flush {
            written = match self.executor.update_status(&tracked.job).await {
                Ok(written) => written,
                Err(ApiError::NotFound(_)) => return Ok(None),
                Err(error) => return Err(error),
            };
            self.note_written(key, &written);
            self.backoffs
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(key.clone(), new_backoff);
        }
        let failure = self.take_off(key, &tracked, &mut written, &about).await?;
        match error.or(failure) {
            Some(error) => Err(error),
            None => Ok(requeue_after),
        }
    }

    /// Whether the completion mode is one we know; people are told where it is not.
    async fn has_known_mode(&self, job: &Job, about: &ObjectReference) -> bool {
        let mode = job.spec.as_ref().and_then(|s| s.completion_mode.as_deref());
        let known = matches!(mode, None | Some("NonIndexed" | "Indexed"));
        if !known {
            let reason = "UnknownCompletionMode";
            let message = "Skipped Job sync because completion mode is unknown";
            record(&self.executor, about, EventType::Warning, reason, message).await;
        }
        known
    }

    /// Takes finalizers off and writes what is then counted. Returns the first finalizer that failed.
    async fn take_off(
        &self,
        key: &ObjectKey,
        tracked: &Tracked,
        written: &mut Job,
        about: &ObjectReference,
    ) -> Result<Option<ApiError>, ApiError> {
        let uids = tracked.remove_finalizer.iter().map(|p| uid(p).to_owned());
        if !tracked.remove_finalizer.is_empty() {
            let mut all = self
                .finalizer_removed
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            all.entry(key.clone()).or_default().extend(uids);
        }
        let removals = tracked
            .remove_finalizer
            .iter()
            .map(|pod| async move { (pod, self.remove_finalizer(pod).await) });
        let (mut gone, mut first_error) = (HashSet::new(), None);
        for (pod, result) in futures::future::join_all(removals).await {
            match result {
                Ok(()) => {
                    gone.insert(uid(pod).to_owned());
                    // Its last event may have come before it was expected.
                    if self
                        .pods
                        .get_key(&ObjectKey::of(&**pod))
                        .is_none_or(|p| !has_finalizer(&p))
                    {
                        self.finalizer_seen_off(key, uid(pod));
                    }
                }
                Err(error) => {
                    self.finalizer_seen_off(key, uid(pod));
                    first_error.get_or_insert(error);
                }
            }
        }
        let Some((job, finished)) = settle(tracked, written, &gone, self.clock.now()) else {
            return Ok(first_error);
        };
        match self.executor.update_status(&job).await {
            Ok(stored) => self.note_written(key, &stored),
            Err(ApiError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        }
        if let Some(last) = tracked.finished.as_ref().filter(|_| finished) {
            for (event_type, reason, message) in finish_events(&job, last) {
                record(&self.executor, about, event_type, reason, message).await;
            }
        }
        Ok(first_error)
    }
}

/// What is told of a Job that finished, in order.
fn finish_events<'a>(
    job: &Job,
    finished: &'a JobCondition,
) -> Vec<(EventType, &'static str, &'a str)> {
    if finished.type_ != "Complete" {
        let message = finished.message.as_deref().unwrap_or_default();
        let reason = failure_reason(finished.reason.as_deref());
        return vec![(EventType::Warning, reason, message)];
    }
    let succeeded = job.status.as_ref().and_then(|s| s.succeeded).unwrap_or(0);
    let wanted = job.spec.as_ref().and_then(|s| s.completions);
    let too_many = (
        EventType::Warning,
        "TooManySucceededPods",
        "Too many succeeded pods running after completion count reached",
    );
    let completed = (EventType::Normal, "Completed", "Job completed");
    let is_too_many = wanted.is_some_and(|wanted| succeeded > wanted);
    is_too_many
        .then_some(too_many)
        .into_iter()
        .chain([completed])
        .collect()
}

#[cfg(test)]
mod finish_tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn more_successes_than_wanted_are_told_of() {
        let check = |completions: Option<i32>, succeeded: i32, type_: &str, expect: &[&str]| {
            let job: Job = serde_json::from_value(json!({
                "metadata": {}, "spec": {"template": {}, "completions": completions},
                "status": {"succeeded": succeeded},
            }))
            .unwrap();
            let finished = JobCondition {
                type_: type_.to_owned(),
                reason: Some("DeadlineExceeded".to_owned()),
                ..JobCondition::default()
            };
            let events = finish_events(&job, &finished);
            let reasons: Vec<_> = events.iter().map(|(_, reason, _)| *reason).collect();
            assert_eq!(reasons, expect, "{completions:?} {succeeded}");
        };
        check(
            Some(2),
            3,
            "Complete",
            &["TooManySucceededPods", "Completed"],
        );
        check(Some(2), 2, "Complete", &["Completed"]);
        check(None, 3, "Complete", &["Completed"]);
        check(Some(2), 3, "Failed", &["DeadlineExceeded"]);
    }
}

fn failure_reason(reason: Option<&str>) -> &'static str {
    match reason.unwrap_or_default() {
        "PodFailurePolicy" => "PodFailurePolicy",
        "DeadlineExceeded" => "DeadlineExceeded",
        "MaxFailedIndexesExceeded" => "MaxFailedIndexesExceeded",
        "FailedIndexes" => "FailedIndexes",
        _ => "BackoffLimitExceeded",
    }
}

/// Whether what is wanted is the same, and something may be left to do.
fn is_status_change(old: &Job, new: &Job) -> bool {
    old.metadata.uid == new.metadata.uid
        && old.metadata.generation == new.metadata.generation
        && old.metadata.deletion_timestamp == new.metadata.deletion_timestamp
        && !is_finished(new)
}

/// As a number, which grows with each write.
fn version(job: &Job) -> Option<u64> {
    job.metadata.resource_version.as_deref()?.parse().ok()
}

fn is_ours(job: &Job) -> bool {
    let by = job.spec.as_ref().and_then(|s| s.managed_by.as_deref());
    by.is_none_or(|by| by == MANAGED_BY)
}

fn selector(job: &Job) -> Option<Selector> {
    let selector = Selector::from_optional(job.spec.as_ref()?.selector.as_ref()).ok()?;
    (!selector.is_everything()).then_some(selector)
}

#[async_trait]
impl Controller for JobController {
    type Key = JobKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        "job-controller"
    }

    async fn reconcile(&self, key: &JobKey) -> Result<Option<Duration>, ApiError> {
        match key {
            JobKey::Job(key) => self.sync_job(key).await,
            JobKey::Orphan(key) => self.sync_orphan(key).await.map(|()| None),
        }
    }
}

#[cfg(test)]
mod tests;
