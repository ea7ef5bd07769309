//! The decisions, in three steps with writes between them: [`decide`], [`track`], [`settle`]. Pure.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use component_helpers::owner_ref::new_controller_ref;
use component_helpers::pod::{
    annotation, is_active, is_pod_ready, is_terminal, is_terminating, phase, uid,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::backoff::{Backoff, finished_at};
use super::index::{self, Indexes, completion_index};
use super::policy::{Verdict, match_pod_failure_policy, match_success_policy};
use super::{
    COMPLETION_INDEX, INDEX_FAILURE_COUNT, INDEX_IGNORED_FAILURE_COUNT, TRACKING_FINALIZER,
};
use crate::pod_control::pod_from_template;
use crate::replicaset::ranking::pods_to_delete;

/// Upstream's MaxPodCreateDeletePerSync.
const MAX_POD_CREATE_DELETE: usize = 500;
/// Upstream's MaxUncountedPods.
const MAX_UNCOUNTED_PODS: usize = 500;

/// What the caches hold about one Job.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Controlled and selected, ended ones too.
    pub pods: Vec<Arc<Pod>>,
    /// All that was created and deleted before has been seen.
    pub expectations_met: bool,
    /// UIDs of pods whose finalizer was taken off, which the cache may not show yet.
    pub finalizer_removed: HashSet<String>,
    /// The failures before.
    pub backoff: Backoff,
}

/// What to do about the pods, and what the status will say after it.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    /// With start time, indexes and the condition `Suspended`.
    pub job: Job,
    /// The condition the Job will end by.
    pub finished: Option<JobCondition>,
    /// Delete, and leave the finalizer for later: the Job is over.
    pub delete: Vec<Arc<Pod>>,
    /// Too many: take off the finalizer, so they are not counted, and delete.
    pub remove: Vec<Arc<Pod>>,
    pub create: Vec<Pod>,
    pub active: i32,
    pub ready: i32,
    pub terminating: i32,
    pub backoff: Backoff,
    pub requeue_after: Option<Duration>,
    /// For an event: suspended or resumed.
    pub suspension: Option<bool>,
    succeeded: i32,
    /// May complete, if nothing stays active.
    may_complete: bool,
    previous_succeeded: Indexes,
    delayed: BTreeMap<i32, Arc<Pod>>,
    expectations_met: bool,
}

/// What came of the creations and deletions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    pub created: usize,
    pub deleted: usize,
    pub deleted_ready: usize,
}

pub fn is_finished(job: &Job) -> bool {
    ["Complete", "Failed"]
        .iter()
        .any(|t| true_condition(job, t).is_some())
}

fn true_condition<'a>(job: &'a Job, type_: &str) -> Option<&'a JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    conditions
        .iter()
        .find(|c| c.type_ == type_ && c.status == "True")
}

pub fn has_finalizer(pod: &Pod) -> bool {
    pod.metadata
        .finalizers
        .iter()
        .flatten()
        .any(|f| f == TRACKING_FINALIZER)
}

fn spec(job: &Job) -> JobSpec {
    job.spec.clone().unwrap_or_default()
}

fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

fn only_replace_failed(spec: &JobSpec) -> bool {
    match &spec.pod_replacement_policy {
        Some(policy) => policy == "Failed",
        None => spec.pod_failure_policy.is_some(),
    }
}

fn is_failed(pod: &Pod, spec: &JobSpec) -> bool {
    phase(pod) == "Failed"
        || (!only_replace_failed(spec) && is_terminating(pod) && phase(pod) != "Succeeded")
}

fn seconds(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

fn condition(
    type_: &str,
    status: &str,
    reason: &str,
    message: impl Into<String>,
    now: Timestamp,
) -> JobCondition {
    JobCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.into()),
        last_probe_time: Some(seconds(now)),
        last_transition_time: Some(seconds(now)),
    }
}

/// Whether it changed. A condition that was never there is not added as false.
fn ensure_condition(status: &mut JobStatus, new: JobCondition) -> bool {
    let conditions = status.conditions.get_or_insert_default();
    match conditions.iter_mut().find(|c| c.type_ == new.type_) {
        Some(old)
            if old.status == new.status
                && old.reason == new.reason
                && old.message == new.message =>
        {
            false
        }
        Some(old) => {
            *old = new;
            true
        }
        None if new.status == "False" => false,
        None => {
            conditions.push(new);
            true
        }
    }
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

fn failures_of(pod: &Pod, key: &str) -> i32 {
    annotation(pod, key)
        .and_then(|v| v.parse().ok())
        .unwrap_or(0)
}

/// Decides one pass of a Job that is not finished.
pub fn decide(job: &Job, observed: &Observed, now: Timestamp) -> Decision {
    let spec = spec(job);
    let mut job = job.clone();
    let suspended = spec.suspend == Some(true);
    let completions = spec.completions;
    let mut status = job.status.take().unwrap_or_default();
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
            && (!is_indexed(&spec)
                || completion_index(pod).is_some_and(|i| i < completions.unwrap_or(0)))
    };
    let new_succeeded: Vec<_> = observed
        .pods
        .iter()
        .filter(fresh)
        .filter(|p| phase(p) == "Succeeded")
        .collect();
    let new_failed: Vec<_> = observed
        .pods
        .iter()
        .filter(fresh)
        .filter(|p| is_failed(p, &spec))
        .collect();
    let policy = spec.pod_failure_policy.as_ref();
    let counting = new_failed
        .iter()
        .filter(|p| match_pod_failure_policy(policy, p) != Verdict::Ignore)
        .count();
    let mut succeeded =
        status.succeeded.unwrap_or(0) + count(new_succeeded.len() + counted_ok.len());
    let failed = status.failed.unwrap_or(0) + count(counting + counted_failed.len());
    if status.start_time.is_none() && !suspended {
        status.start_time = Some(seconds(now));
    }
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
    let mut decision = Decision {
        active: count(active.len()),
        ready: count(active.iter().filter(|p| is_pod_ready(p)).count()),
        terminating: count(going),
        backoff: observed.backoff.after(
            new_succeeded.iter().map(|p| &***p),
            new_failed.iter().map(|p| &***p),
        ),
        expectations_met: observed.expectations_met,
        ..Decision::default()
    };
    job.status = Some(status);
    decision.finished = earlier_verdict(&job, now).or_else(|| {
        let failed = observed.pods.iter().filter(|p| is_failed(p, &spec));
        let message =
            failed
                .into_iter()
                .find_map(|p| match match_pod_failure_policy(policy, p) {
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
    });
    if decision.finished.is_none() {
        decision.finished = limits(
            &job,
            &spec,
            observed,
            failed,
            now,
            &mut decision.requeue_after,
        );
    }
    let mut failed_indexes = Indexes::new();
    let mut succeeded_indexes = Indexes::new();
    if is_indexed(&spec) {
        let total = completions.unwrap_or(0);
        let status = job.status.get_or_insert_default();
        decision.previous_succeeded = index::parse(
            status.completed_indexes.as_deref().unwrap_or_default(),
            total,
        );
        succeeded_indexes = decision.previous_succeeded.clone();
        let of = |pods: &mut dyn Iterator<Item = &Arc<Pod>>| -> Indexes {
            pods.filter_map(|p| completion_index(p))
                .filter(|i| *i < total)
                .collect()
        };
        succeeded_indexes.extend(of(&mut observed
            .pods
            .iter()
            .filter(|p| phase(p) == "Succeeded" && has_finalizer(p))));
        succeeded = count(succeeded_indexes.len());
        if let Some(limit) = spec.backoff_limit_per_index {
            failed_indexes =
                index::parse(status.failed_indexes.as_deref().unwrap_or_default(), total);
            let for_good = |p: &&Arc<Pod>| {
                has_finalizer(p)
                    && is_failed(p, &spec)
                    && match match_pod_failure_policy(policy, p) {
                        Verdict::FailIndex => true,
                        Verdict::Ignore => false,
                        _ => failures_of(p, INDEX_FAILURE_COUNT) >= limit,
                    }
            };
            failed_indexes.extend(of(&mut observed.pods.iter().filter(for_good)));
            status.failed_indexes = Some(index::format(&failed_indexes));
            let (bad, good) = (count(failed_indexes.len()), count(succeeded_indexes.len()));
            let target =
                |reason, message| Some(condition("FailureTarget", "True", reason, message, now));
            if decision.finished.is_none() && spec.max_failed_indexes.is_some_and(|max| bad > max) {
                decision.finished = target(
                    "MaxFailedIndexesExceeded",
                    "Job has exceeded the specified maximal number of failed indexes",
                );
            } else if decision.finished.is_none() && bad > 0 && bad + good >= total {
                decision.finished = target("FailedIndexes", "Job has failed indexes");
            }
            let running = of(&mut active.iter());
            for pod in new_failed {
                let Some(at) = completion_index(pod) else {
                    continue;
                };
                if running.contains(&at)
                    || failed_indexes.contains(&at)
                    || succeeded_indexes.contains(&at)
                {
                    continue;
                }
                let all = |p: &Pod| {
                    failures_of(p, INDEX_FAILURE_COUNT)
                        + failures_of(p, INDEX_IGNORED_FAILURE_COUNT)
                };
                if decision
                    .delayed
                    .get(&at)
                    .is_none_or(|last| all(last) <= all(pod))
                {
                    decision.delayed.insert(at, pod.clone());
                }
            }
        }
        if decision.finished.is_none() {
            decision.finished = match_success_policy(
                spec.success_policy.as_ref(),
                total,
                &succeeded_indexes,
            )
            .map(|message| condition("SuccessCriteriaMet", "True", "SuccessPolicy", message, now));
        }
    }
    decision.succeeded = succeeded;
    if decision.finished.is_some() {
        decision.delete = active;
    } else {
        let manage = observed.expectations_met && job.metadata.deletion_timestamp.is_none();
        if manage {
            let indexes = (&succeeded_indexes, &failed_indexes);
            manage_pods(&job, &spec, observed, &active, indexes, now, &mut decision);
        }
        decision.may_complete = completions.map_or(succeeded > 0, |wanted| succeeded >= wanted);
        if manage && !decision.may_complete {
            suspend_or_resume(&mut job, suspended, now, &mut decision);
        }
    }
    decision.job = job;
    decision
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
    let left = SignedDuration::from_secs(deadline) - now.duration_since(start);
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

fn manage_pods(
    job: &Job,
    spec: &JobSpec,
    observed: &Observed,
    active: &[Arc<Pod>],
    (succeeded_indexes, failed_indexes): (&Indexes, &Indexes),
    now: Timestamp,
    decision: &mut Decision,
) {
    let have = count(active.len());
    let suspended = spec.suspend == Some(true);
    let parallelism = spec.parallelism.unwrap_or(1);
    let want = match spec.completions {
        _ if suspended => 0,
        None if decision.succeeded > 0 => have,
        None => parallelism,
        Some(completions) => (completions - decision.succeeded).min(parallelism).max(0),
    };
    let excess = usize::try_from(have - want).unwrap_or(0);
    decision.remove = pods_for_removal(spec, active, excess, now);
    if !suspended {
        decision.remove.truncate(MAX_POD_CREATE_DELETE);
    }
    if suspended || !decision.remove.is_empty() {
        return;
    }
    let terminating = if only_replace_failed(spec) {
        decision.terminating
    } else {
        0
    };
    let missing = usize::try_from(want - terminating - have)
        .unwrap_or(0)
        .min(MAX_POD_CREATE_DELETE);
    if missing == 0 {
        return;
    }
    let per_index = spec.backoff_limit_per_index.is_some();
    let mut wait = if per_index {
        Duration::ZERO
    } else {
        decision.backoff.remaining(now)
    };
    if wait.is_zero() && is_indexed(spec) {
        let going = observed
            .pods
            .iter()
            .filter(|p| only_replace_failed(spec) && is_terminating(p) && !is_terminal(p));
        let taken: Indexes = active
            .iter()
            .chain(going)
            .filter_map(|p| completion_index(p))
            .collect();
        let free = |i: &i32| {
            !taken.contains(i) && !succeeded_indexes.contains(i) && !failed_indexes.contains(i)
        };
        let pending: Vec<i32> = (0..spec.completions.unwrap_or(0))
            .filter(free)
            .take(missing)
            .collect();
        let remaining = |index: &i32| {
            decision.delayed.get(index).map_or(Duration::ZERO, |last| {
                let failures = failures_of(last, INDEX_FAILURE_COUNT)
                    + failures_of(last, INDEX_IGNORED_FAILURE_COUNT)
                    + 1;
                Backoff {
                    failures: u32::try_from(failures).unwrap_or(1),
                    last_failure: finished_at(last),
                }
                .remaining(now)
            })
        };
        let due: Vec<_> = pending
            .iter()
            .copied()
            .filter(|i| remaining(i).is_zero())
            .collect();
        if due.is_empty() {
            wait = pending.iter().map(remaining).min().unwrap_or_default();
        }
        decision.create = due
            .into_iter()
            .map(|i| new_pod(job, spec, Some(i), decision.delayed.get(&i).map(|p| &**p)))
            .collect();
    } else if wait.is_zero() {
        decision.create = vec![new_pod(job, spec, None, None); missing];
    }
    if !wait.is_zero() {
        decision.requeue_after = Some(decision.requeue_after.map_or(wait, |other| other.min(wait)));
    }
}

/// Second pods of an index and those of no valid index always; then the usual ones up to `excess`.
fn pods_for_removal(
    spec: &JobSpec,
    active: &[Arc<Pod>],
    excess: usize,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    let mut ranked = pods_to_delete(active.to_vec(), &[], active.len(), now);
    if excess < active.len() {
        // Unranked when all go; here the order matters.
        ranked = pods_to_delete(active.to_vec(), &[], active.len().saturating_sub(1), now);
        let left = active
            .iter()
            .filter(|p| !ranked.iter().any(|r| uid(r) == uid(p)))
            .cloned()
            .collect::<Vec<_>>();
        ranked.extend(left);
    }
    let mut out = Vec::new();
    if is_indexed(spec) {
        let mut seen = Indexes::new();
        let completions = spec.completions.unwrap_or(0);
        let mut keep = Vec::new();
        // From the most worthy: the first of an index stays.
        for pod in ranked.into_iter().rev() {
            match completion_index(&pod) {
                Some(i) if i < completions && seen.insert(i) => keep.push(pod),
                _ => out.push(pod),
            }
        }
        keep.reverse();
        ranked = keep;
    }
    let more = excess.saturating_sub(out.len());
    out.extend(ranked.into_iter().take(more));
    out
}

fn new_pod(job: &Job, spec: &JobSpec, index: Option<i32>, replaced: Option<&Pod>) -> Pod {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let generate_name = match index {
        // The API server cuts it to fit, but must not cut the index.
        Some(i) => {
            let suffix = format!("-{i}-");
            let room = 63usize.saturating_sub(5 + suffix.len());
            format!("{}{suffix}", name.get(..room).unwrap_or(name))
        }
        None => format!("{name}-"),
    };
    let owner = new_controller_ref::<Job>(&job.metadata);
    let mut pod = pod_from_template(
        &spec.template,
        job.metadata.namespace.clone(),
        generate_name,
        owner,
    );
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|f| f == TRACKING_FINALIZER) {
        finalizers.push(TRACKING_FINALIZER.to_owned());
    }
    let Some(index) = index else { return pod };
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(COMPLETION_INDEX.to_owned(), index.to_string());
    if spec.backoff_limit_per_index.is_some() {
        let (mut failures, mut ignored) = (0, 0);
        if let Some(last) = replaced {
            failures = failures_of(last, INDEX_FAILURE_COUNT);
            ignored = failures_of(last, INDEX_IGNORED_FAILURE_COUNT);
            match match_pod_failure_policy(spec.pod_failure_policy.as_ref(), last) {
                Verdict::Ignore => ignored += 1,
                _ => failures += 1,
            }
        }
        annotations.insert(INDEX_FAILURE_COUNT.to_owned(), failures.to_string());
        if ignored > 0 {
            annotations.insert(INDEX_IGNORED_FAILURE_COUNT.to_owned(), ignored.to_string());
        }
    }
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(COMPLETION_INDEX.to_owned(), index.to_string());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(format!("{name}-{index}"));
    for container in spec
        .init_containers
        .iter_mut()
        .flatten()
        .chain(&mut spec.containers)
    {
        let env = container.env.get_or_insert_default();
        if env.iter().any(|e| e.name == "JOB_COMPLETION_INDEX") {
            continue;
        }
        let field = ObjectFieldSelector {
            field_path: format!("metadata.labels['{COMPLETION_INDEX}']"),
            ..ObjectFieldSelector::default()
        };
        env.push(EnvVar {
            name: "JOB_COMPLETION_INDEX".to_owned(),
            value_from: Some(EnvVarSource {
                field_ref: Some(field),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        });
    }
    pod
}

/// The status to write before finalizers are taken off, and from which pods.
#[derive(Clone, Debug, Default)]
pub struct Tracked {
    pub job: Job,
    /// Whether the status differs from what is stored.
    pub flush: bool,
    pub remove_finalizer: Vec<Arc<Pod>>,
    /// `Complete` or `Failed`, once everything is counted.
    pub finished: Option<JobCondition>,
    with_finalizer: HashSet<String>,
    capped: bool,
}

/// Counts the pods that ended. `stored`: the Job as it was read.
pub fn track(
    stored: &Job,
    mut decision: Decision,
    outcome: Outcome,
    pods: &[Arc<Pod>],
    removed: &HashSet<String>,
    now: Timestamp,
) -> Tracked {
    let spec = spec(&decision.job);
    let (deleted, created) = (count(outcome.deleted), count(outcome.created));
    let active = decision.active - deleted + created;
    if decision.finished.is_some() && (deleted != decision.active || !decision.expectations_met) {
        decision.finished = None;
    } else if decision.finished.is_none() && decision.may_complete && active == 0 {
        let message = "Reached expected number of succeeded pods";
        decision.finished = Some(condition(
            "SuccessCriteriaMet",
            "True",
            "CompletionsReached",
            message,
            now,
        ));
    }
    let mut job = decision.job.clone();
    let status = job.status.get_or_insert_default();
    status.active = Some(active).filter(|a| *a != 0);
    status.ready = Some(decision.ready - count(outcome.deleted_ready));
    status.terminating = Some(decision.terminating + deleted);
    let mut tracked = Tracked {
        with_finalizer: pods
            .iter()
            .filter(|p| has_finalizer(p) && !removed.contains(uid(p)))
            .map(|p| uid(p).to_owned())
            .collect(),
        ..Tracked::default()
    };
    let before = status.uncounted_terminated_pods.clone().unwrap_or_default();
    count_uncounted(status, &tracked.with_finalizer);
    let succeeding = decision
        .finished
        .as_ref()
        .is_some_and(|c| c.type_ == "SuccessCriteriaMet");
    let mut indexes = decision.previous_succeeded.clone();
    let mut ordered: Vec<_> = pods.iter().collect();
    ordered.sort_by_key(|p| completion_index(p));
    let (mut ok, mut bad) = {
        let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
        (
            uncounted.succeeded.unwrap_or_default(),
            uncounted.failed.unwrap_or_default(),
        )
    };
    let mut new_indexes = 0;
    for pod in ordered {
        let id = uid(pod).to_owned();
        if !tracked.with_finalizer.contains(&id) {
            continue;
        }
        let failed = is_failed(pod, &spec);
        let over = job.metadata.deletion_timestamp.is_some()
            || decision.finished.is_some()
            || phase(pod) == "Succeeded";
        let at = completion_index(pod).filter(|i| *i < spec.completions.unwrap_or(0));
        let awaited = at.is_some_and(|i| decision.delayed.get(&i).is_some_and(|p| uid(p) == id));
        if !over && (!failed || awaited) {
            continue;
        }
        tracked.remove_finalizer.push(pod.clone());
        if phase(pod) == "Succeeded" && !before.failed.iter().flatten().any(|u| *u == id) {
            if is_indexed(&spec) {
                new_indexes += usize::from(at.is_some_and(|i| indexes.insert(i)));
            } else if !ok.contains(&id) {
                ok.push(id);
            }
        } else if failed || (decision.finished.is_some() && !succeeding) {
            let counts = !is_indexed(&spec) || at.is_some();
            let ignored =
                match_pod_failure_policy(spec.pod_failure_policy.as_ref(), pod) == Verdict::Ignore;
            if counts && !ignored && !bad.contains(&id) {
                bad.push(id);
            }
        }
        if new_indexes + ok.len() + bad.len() >= MAX_UNCOUNTED_PODS {
            tracked.capped = true;
            break;
        }
    }
    let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
    uncounted.succeeded = (!ok.is_empty()).then_some(ok);
    uncounted.failed = (!bad.is_empty()).then_some(bad);
    if is_indexed(&spec) {
        status.succeeded = Some(count(indexes.len())).filter(|n| *n != 0);
        status.completed_indexes = Some(index::format(&indexes)).filter(|t| !t.is_empty());
    }
    if let Some(condition_) = decision.finished.take() {
        let last = match condition_.type_.as_str() {
            "FailureTarget" => "Failed",
            "SuccessCriteriaMet" => "Complete",
            other => other,
        }
        .to_owned();
        let reason = condition_.reason.clone().unwrap_or_default();
        let message = condition_.message.clone().unwrap_or_default();
        if last != condition_.type_ {
            ensure_condition(status, condition_);
        }
        tracked.finished = Some(condition(&last, "True", &reason, message, now));
    }
    tracked.flush = differs(stored, &job);
    tracked.job = job;
    tracked
}

/// No number and zero are the same to the API.
fn differs(stored: &Job, job: &Job) -> bool {
    let plain = |job: &Job| {
        let mut status = job.status.clone().unwrap_or_default();
        let numbers = [
            &mut status.active,
            &mut status.succeeded,
            &mut status.failed,
        ];
        numbers.into_iter().for_each(|n| *n = n.filter(|n| *n != 0));
        status.completed_indexes = status.completed_indexes.filter(|t| !t.is_empty());
        status.conditions = status.conditions.filter(|c| !c.is_empty());
        status.uncounted_terminated_pods.get_or_insert_default();
        status
    };
    plain(stored) != plain(job)
}

fn count_uncounted(status: &mut JobStatus, with_finalizer: &HashSet<String>) {
    let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
    for (list, total) in [
        (&mut uncounted.succeeded, &mut status.succeeded),
        (&mut uncounted.failed, &mut status.failed),
    ] {
        let before = list.as_ref().map_or(0, Vec::len);
        let left: Vec<_> = list
            .take()
            .into_iter()
            .flatten()
            .filter(|u| with_finalizer.contains(u))
            .collect();
        let sum = total.unwrap_or(0) + count(before - left.len());
        *total = Some(sum).filter(|n| *n != 0);
        *list = (!left.is_empty()).then_some(left);
    }
}

/// The last status, after the finalizers of the pods in `gone` are off. `None`: it is as it was written.
pub fn settle(
    tracked: &Tracked,
    written: &Job,
    gone: &HashSet<String>,
    now: Timestamp,
) -> Option<(Job, bool)> {
    let mut job = written.clone();
    let status = job.status.get_or_insert_default();
    let left = tracked.with_finalizer.difference(gone).cloned().collect();
    count_uncounted(status, &left);
    let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let all_counted = uncounted.succeeded.is_none() && uncounted.failed.is_none();
    let mut finished = false;
    if let Some(last) = &tracked.finished
        && all_counted
        && !tracked.capped
        && status.terminating.unwrap_or(0) == 0
    {
        finished = true;
        if last.type_ == "Complete" {
            status.completion_time = Some(seconds(now));
        }
        ensure_condition(status, last.clone());
    }
    differs(written, &job).then_some((job, finished))
}
