//! The first step: what to do about the pods, and whether the Job is over. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use component_helpers::pod::{is_active, is_pod_ready, is_terminal, is_terminating, phase, uid};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;

use super::condition::{condition, ensure_condition, seconds, true_condition};
use super::decision::{Decision, Observed};
use super::index::{self, Indexes, completion_index};
use super::pods::{failures_of, has_finalizer, is_failed, is_indexed, manage_pods};
use super::policy::{Verdict, match_pod_failure_policy, match_success_policy};
use super::{INDEX_FAILURE_COUNT, INDEX_IGNORED_FAILURE_COUNT, count};

/// Decides one pass of a Job that is not finished.
pub fn decide(job: &Job, observed: &Observed, now: Timestamp) -> Decision {
    let spec = job.spec.clone().unwrap_or_default();
    let mut job = job.clone();
    let suspended = spec.suspend == Some(true);
    let status = job.status.get_or_insert_default();
    if status.start_time.is_none() && !suspended {
        status.start_time = Some(seconds(now));
    }
    let ended = Ended::of(&spec, status, observed);
    let active: Vec<_> = observed
        .pods
        .iter()
        .filter(|p| is_active(p))
        .cloned()
        .collect();
    let going = observed
        .pods
        .iter()
        .filter(|p| is_terminating(p) && !is_terminal(p))
        .count();
    let mut requeue_after = None;
    let finished = earlier_verdict(&job, now)
        .or_else(|| verdict_of_policy(&spec, observed, now))
        .or_else(|| limits(&job, &spec, observed, ended.failed, now, &mut requeue_after));
    let mut decision = Decision {
        finished,
        requeue_after,
        active: count(active.len()),
        ready: count(active.iter().filter(|p| is_pod_ready(p)).count()),
        terminating: count(going),
        backoff: observed.backoff.after(
            ended.new_succeeded.iter().map(|p| &**p),
            ended.new_failed.iter().map(|p| &**p),
        ),
        succeeded: ended.succeeded,
        expectations_met: observed.expectations_met,
        ..Decision::default()
    };
    let mut indexes = EndedIndexes::default();
    if is_indexed(&spec) {
        let status = job.status.get_or_insert_default();
        let total = spec.completions.unwrap_or(0);
        decision.previous_succeeded = index::parse(
            status.completed_indexes.as_deref().unwrap_or_default(),
            total,
        );
        indexes = EndedIndexes::of(&spec, status, observed, &decision.previous_succeeded);
        decision.succeeded = count(indexes.succeeded.len());
        if spec.backoff_limit_per_index.is_some() {
            status.failed_indexes = Some(index::format(&indexes.failed));
            decision.delayed = delayed(&ended.new_failed, &indexes_of(&active, total), &indexes);
        }
        decision.finished = decision
            .finished
            .or_else(|| verdict_of_indexes(&spec, &indexes, now));
    }
    if decision.finished.is_some() {
        decision.delete = active;
    } else {
        let manage = observed.expectations_met && job.metadata.deletion_timestamp.is_none();
        if manage {
            let indexes = (&indexes.succeeded, &indexes.failed);
            manage_pods(&job, &spec, observed, &active, indexes, now, &mut decision);
        }
        let succeeded = decision.succeeded;
        decision.may_complete = spec
            .completions
            .map_or(succeeded > 0, |wanted| succeeded >= wanted);
        if manage && !decision.may_complete {
            suspend_or_resume(&mut job, suspended, now, &mut decision);
        }
    }
    decision.job = job;
    decision
}

/// The pods that ended: those nobody has counted yet, and how many there are with those that were.
struct Ended {
    new_succeeded: Vec<Arc<Pod>>,
    new_failed: Vec<Arc<Pod>>,
    succeeded: i32,
    /// Without those that the policy ignores.
    failed: i32,
}

impl Ended {
    fn of(spec: &JobSpec, status: &mut JobStatus, observed: &Observed) -> Self {
        let uncounted = status
            .uncounted_terminated_pods
            .get_or_insert_default()
            .clone();
        let (counted_ok, counted_failed) = (
            uncounted.succeeded.unwrap_or_default(),
            uncounted.failed.unwrap_or_default(),
        );
        let fresh = |pod: &&Arc<Pod>| {
            let id = uid(pod).to_owned();
            has_finalizer(pod)
                && !observed.finalizer_removed.contains(&id)
                && !counted_ok.contains(&id)
                && !counted_failed.contains(&id)
                && (!is_indexed(spec)
                    || completion_index(pod).is_some_and(|i| i < spec.completions.unwrap_or(0)))
        };
        let pods = || observed.pods.iter().filter(fresh);
        let new_succeeded: Vec<_> = pods()
            .filter(|p| phase(p) == "Succeeded")
            .cloned()
            .collect();
        let new_failed: Vec<_> = pods().filter(|p| is_failed(p, spec)).cloned().collect();
        let policy = spec.pod_failure_policy.as_ref();
        let counting = new_failed
            .iter()
            .filter(|p| match_pod_failure_policy(policy, p) != Verdict::Ignore)
            .count();
        Self {
            succeeded: status.succeeded.unwrap_or(0)
                + count(new_succeeded.len() + counted_ok.len()),
            failed: status.failed.unwrap_or(0) + count(counting + counted_failed.len()),
            new_succeeded,
            new_failed,
        }
    }
}

/// The indexes that ended for good.
#[derive(Default)]
struct EndedIndexes {
    succeeded: Indexes,
    /// Only with a limit for each index.
    failed: Indexes,
}

impl EndedIndexes {
    fn of(spec: &JobSpec, status: &JobStatus, observed: &Observed, before: &Indexes) -> Self {
        let total = spec.completions.unwrap_or(0);
        let uncounted = || observed.pods.iter().filter(|p| has_finalizer(p));
        let mut succeeded = before.clone();
        succeeded.join(&indexes_of(
            uncounted().filter(|p| phase(p) == "Succeeded"),
            total,
        ));
        let mut failed = Indexes::new();
        if let Some(limit) = spec.backoff_limit_per_index {
            failed = index::parse(status.failed_indexes.as_deref().unwrap_or_default(), total);
            let policy = spec.pod_failure_policy.as_ref();
            let for_good = |p: &&Arc<Pod>| {
                is_failed(p, spec)
                    && match match_pod_failure_policy(policy, p) {
                        Verdict::FailIndex => true,
                        Verdict::Ignore => false,
                        _ => failures_of(p, INDEX_FAILURE_COUNT) >= limit,
                    }
            };
            failed.join(&indexes_of(uncounted().filter(for_good), total));
        }
        Self { succeeded, failed }
    }
}

fn indexes_of<'a>(pods: impl IntoIterator<Item = &'a Arc<Pod>>, total: i32) -> Indexes {
    pods.into_iter()
        .filter_map(|p| completion_index(p))
        .filter(|i| *i < total)
        .collect()
}

/// By index that is neither running nor through: the pod with the most failures, by which the next one waits.
fn delayed(
    new_failed: &[Arc<Pod>],
    running: &Indexes,
    ended: &EndedIndexes,
) -> BTreeMap<i32, Arc<Pod>> {
    let failures =
        |p: &Pod| failures_of(p, INDEX_FAILURE_COUNT) + failures_of(p, INDEX_IGNORED_FAILURE_COUNT);
    let mut delayed: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
    for pod in new_failed {
        let Some(at) = completion_index(pod) else {
            continue;
        };
        let over = [running, &ended.failed, &ended.succeeded]
            .iter()
            .any(|indexes| indexes.contains(at));
        if !over
            && delayed
                .get(&at)
                .is_none_or(|last| failures(last) <= failures(pod))
        {
            delayed.insert(at, pod.clone());
        }
    }
    delayed
}

fn verdict_of_policy(spec: &JobSpec, observed: &Observed, now: Timestamp) -> Option<JobCondition> {
    let policy = spec.pod_failure_policy.as_ref();
    let mut failed = observed.pods.iter().filter(|p| is_failed(p, spec));
    let message = failed.find_map(|p| match match_pod_failure_policy(policy, p) {
        Verdict::FailJob(message) => Some(message),
        _ => None,
    })?;
    Some(condition(
        "FailureTarget",
        "True",
        "PodFailurePolicy",
        message,
        now,
    ))
}

fn verdict_of_indexes(
    spec: &JobSpec,
    indexes: &EndedIndexes,
    now: Timestamp,
) -> Option<JobCondition> {
    let total = spec.completions.unwrap_or(0);
    let (bad, good) = (count(indexes.failed.len()), count(indexes.succeeded.len()));
    let failure = |reason, message| Some(condition("FailureTarget", "True", reason, message, now));
    if spec.max_failed_indexes.is_some_and(|max| bad > max) {
        return failure(
            "MaxFailedIndexesExceeded",
            "Job has exceeded the specified maximal number of failed indexes",
        );
    }
    if bad > 0 && bad.saturating_add(good) >= total {
        return failure("FailedIndexes", "Job has failed indexes");
    }
    match_success_policy(spec.success_policy.as_ref(), total, &indexes.succeeded)
        .map(|message| condition("SuccessCriteriaMet", "True", "SuccessPolicy", message, now))
}

/// What an earlier pass has found: it stands.
fn earlier_verdict(job: &Job, now: Timestamp) -> Option<JobCondition> {
    if let Some(met) = true_condition(job, "SuccessCriteriaMet") {
        return Some(met.clone());
    }
    let target = true_condition(job, "FailureTarget")?;
    let reason = target.reason.as_deref().unwrap_or_default();
    Some(condition(
        "Failed",
        "True",
        reason,
        target.message.clone().unwrap_or_default(),
        now,
    ))
}

/// The limits of failures and of time.
fn limits(
    job: &Job,
    spec: &JobSpec,
    observed: &Observed,
    failed: i32,
    now: Timestamp,
    requeue_after: &mut Option<Duration>,
) -> Option<JobCondition> {
    let limit = spec.backoff_limit.unwrap_or(6);
    let on_failure = spec
        .template
        .spec
        .as_ref()
        .and_then(|s| s.restart_policy.as_deref())
        == Some("OnFailure");
    let restarts: i32 = observed
        .pods
        .iter()
        .filter(|p| on_failure && matches!(phase(p), "Running" | "Pending"))
        .filter_map(|p| p.status.as_ref())
        .flat_map(|s| {
            s.init_container_statuses
                .iter()
                .chain(&s.container_statuses)
                .flatten()
        })
        .map(|c| c.restart_count)
        .sum();
    if failed > limit || (on_failure && restarts > 0 && restarts >= limit) {
        let message = "Job has reached the specified backoff limit";
        return Some(condition(
            "FailureTarget",
            "True",
            "BackoffLimitExceeded",
            message,
            now,
        ));
    }
    let deadline = spec
        .active_deadline_seconds
        .filter(|_| spec.suspend != Some(true))?;
    let start = job.status.as_ref()?.start_time.as_ref()?.0;
    let left = SignedDuration::from_secs(deadline).saturating_sub(now.duration_since(start));
    if left <= SignedDuration::ZERO {
        let message = "Job was active longer than specified deadline";
        return Some(condition(
            "FailureTarget",
            "True",
            "DeadlineExceeded",
            message,
            now,
        ));
    }
    *requeue_after = Duration::try_from(left).ok();
    None
}

fn suspend_or_resume(job: &mut Job, suspended: bool, now: Timestamp, decision: &mut Decision) {
    let status = job.status.get_or_insert_default();
    let (value, reason, message) = match suspended {
        true => ("True", "JobSuspended", "Job suspended"),
        false => ("False", "JobResumed", "Job resumed"),
    };
    if ensure_condition(status, condition("Suspended", value, reason, message, now)) {
        decision.suspension = Some(suspended);
        status.start_time = (!suspended).then(|| seconds(now));
    }
}
