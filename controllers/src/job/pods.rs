//! The pods of a Job: which of them count as failed, which are to go, and what new ones look like. Pure.

use std::sync::Arc;
use std::time::Duration;

use component_helpers::owner_ref::new_controller_ref;
use component_helpers::pod::{annotation, is_terminal, is_terminating, phase, uid};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};

use super::backoff::{Backoff, finished_at};
use super::decision::{Decision, Observed};
use super::index::{self, Indexes, completion_index};
use super::policy::{Verdict, match_pod_failure_policy};
use super::{
    COMPLETION_INDEX, INDEX_FAILURE_COUNT, INDEX_IGNORED_FAILURE_COUNT, TRACKING_FINALIZER, count,
};
use crate::pod_control::pod_from_template;
use crate::replicaset::ranking::pods_to_delete;

/// Upstream's MaxPodCreateDeletePerSync.
const MAX_POD_CREATE_DELETE: usize = 500;

/// Whether the pod is still to be counted.
pub fn has_finalizer(pod: &Pod) -> bool {
    pod.metadata
        .finalizers
        .iter()
        .flatten()
        .any(|f| f == TRACKING_FINALIZER)
}

pub fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

/// A terminating pod is waited for, not replaced at once.
pub fn only_replace_failed(spec: &JobSpec) -> bool {
    match &spec.pod_replacement_policy {
        Some(policy) => policy == "Failed",
        None => spec.pod_failure_policy.is_some(),
    }
}

pub fn is_failed(pod: &Pod, spec: &JobSpec) -> bool {
    phase(pod) == "Failed"
        || (!only_replace_failed(spec) && is_terminating(pod) && phase(pod) != "Succeeded")
}

/// A number of failures that the pod is annotated with.
pub fn failures_of(pod: &Pod, key: &str) -> i32 {
    annotation(pod, key)
        .and_then(|v| v.parse().ok())
        .unwrap_or(0)
}

/// How many pods there should be, and so which are to be created or removed.
pub fn manage_pods(
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
        let ended_or_taken = [&taken, succeeded_indexes, failed_indexes];
        let completions = spec.completions.unwrap_or(0);
        let pending = index::free(completions, missing, &ended_or_taken);
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
