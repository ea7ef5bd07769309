//! The second and third step: counting pods that ended, exactly once each. Pure.

use std::collections::HashSet;
use std::sync::Arc;

use component_helpers::pod::{phase, uid};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;

use super::condition::{condition, ensure_condition, seconds};
use super::count;
use super::decision::Decision;
use super::index::{self, Indexes, completion_index};
use super::pods::{has_finalizer, is_failed, is_indexed};
use super::policy::{Verdict, match_pod_failure_policy};

/// Upstream's MaxUncountedPods.
const MAX_UNCOUNTED_PODS: usize = 500;

/// What came of the creations and deletions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    pub created: usize,
    pub deleted: usize,
    pub deleted_ready: usize,
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
    let spec = decision.job.spec.clone().unwrap_or_default();
    let (deleted, created) = (count(outcome.deleted), count(outcome.created));
    let active = decision.active - deleted + created;
    conclude(&mut decision, deleted, active, now);
    let mut job = decision.job.clone();
    let is_deleted = job.metadata.deletion_timestamp.is_some();
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
    let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let mut counted = Counted {
        indexes: decision.previous_succeeded.clone(),
        new_indexes: 0,
        ok: uncounted.succeeded.unwrap_or_default(),
        bad: uncounted.failed.unwrap_or_default(),
    };
    counted.add(&spec, &decision, is_deleted, &before, pods, &mut tracked);
    let Counted {
        indexes, ok, bad, ..
    } = counted;
    let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
    uncounted.succeeded = (!ok.is_empty()).then_some(ok);
    uncounted.failed = (!bad.is_empty()).then_some(bad);
    if is_indexed(&spec) {
        status.succeeded = Some(count(indexes.len())).filter(|n| *n != 0);
        status.completed_indexes = Some(index::format(&indexes)).filter(|t| !t.is_empty());
    }
    if let Some(finished) = decision.finished.take() {
        tracked.finished = Some(last_condition(status, finished, now));
    }
    tracked.flush = differs(stored, &job);
    tracked.job = job;
    tracked
}

/// Whether the Job is at its end: not while pods of it are still to go, and by itself once it needs no more.
fn conclude(decision: &mut Decision, deleted: i32, active: i32, now: Timestamp) {
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
}

/// Says why the Job ends where it is not said yet, and gives the condition of its last status.
fn last_condition(status: &mut JobStatus, why: JobCondition, now: Timestamp) -> JobCondition {
    let last = match why.type_.as_str() {
        "FailureTarget" => "Failed",
        "SuccessCriteriaMet" => "Complete",
        other => other,
    }
    .to_owned();
    let reason = why.reason.clone().unwrap_or_default();
    let message = why.message.clone().unwrap_or_default();
    if last != why.type_ {
        ensure_condition(status, why);
    }
    condition(&last, "True", &reason, &message, now)
}

/// What ended so far, counted or about to be.
struct Counted {
    indexes: Indexes,
    new_indexes: usize,
    /// UIDs of pods that succeeded, of a Job without indexes.
    ok: Vec<String>,
    /// UIDs of pods that failed.
    bad: Vec<String>,
}

impl Counted {
    /// Counts pods that are done with, in the order of their indexes, as many as a status can hold.
    fn add(
        &mut self,
        spec: &JobSpec,
        decision: &Decision,
        is_deleted: bool,
        before: &UncountedTerminatedPods,
        pods: &[Arc<Pod>],
        tracked: &mut Tracked,
    ) {
        let succeeding = decision
            .finished
            .as_ref()
            .is_some_and(|c| c.type_ == "SuccessCriteriaMet");
        let mut ordered: Vec<_> = pods.iter().collect();
        ordered.sort_by_key(|p| completion_index(p));
        for pod in ordered {
            let id = uid(pod).to_owned();
            if !tracked.with_finalizer.contains(&id) {
                continue;
            }
            let failed = is_failed(pod, spec);
            let over = is_deleted || decision.finished.is_some() || phase(pod) == "Succeeded";
            let at = completion_index(pod).filter(|i| *i < spec.completions.unwrap_or(0));
            let awaited =
                at.is_some_and(|i| decision.delayed.get(&i).is_some_and(|p| uid(p) == id));
            if !over && (!failed || awaited) {
                continue;
            }
            tracked.remove_finalizer.push(pod.clone());
            if phase(pod) == "Succeeded" && !before.failed.iter().flatten().any(|u| *u == id) {
                if is_indexed(spec) {
                    self.new_indexes += usize::from(at.is_some_and(|i| self.indexes.insert(i)));
                } else if !self.ok.contains(&id) {
                    self.ok.push(id);
                }
            } else if failed || (decision.finished.is_some() && !succeeding) {
                let counts = !is_indexed(spec) || at.is_some();
                let verdict = match_pod_failure_policy(spec.pod_failure_policy.as_ref(), pod);
                if counts && verdict != Verdict::Ignore && !self.bad.contains(&id) {
                    self.bad.push(id);
                }
            }
            if self.new_indexes + self.ok.len() + self.bad.len() >= MAX_UNCOUNTED_PODS {
                tracked.capped = true;
                break;
            }
        }
    }
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
