use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::condition::is_finished;
use super::decide::decide;
use super::decision::{Decision, Observed};
use super::index;
use super::tracking::{Outcome, Tracked, settle, track};
use super::{COMPLETION_INDEX, INDEX_FAILURE_COUNT, TRACKING_FINALIZER};

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

fn job(spec: Value, status: Value) -> Job {
    let mut full = json!({"parallelism": 1, "completions": 1, "backoffLimit": 6, "selector": {"matchLabels": {"j": "j"}},
        "template": {"metadata": {"labels": {"j": "j"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}}});
    full.as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    serde_json::from_value(json!({"metadata": {"name": "j", "namespace": "n", "uid": "j"}, "spec": full, "status": status})).unwrap()
}

fn pod(name: &str, phase: &str, more: Value) -> Arc<Pod> {
    let mut meta = json!({"name": name, "namespace": "n", "uid": name, "labels": {"j": "j"}, "finalizers": [TRACKING_FINALIZER],
        "creationTimestamp": "2026-01-01T00:00:00Z"});
    meta.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let code = i32::from(phase == "Failed") * 42;
    let statuses = match phase {
        "Failed" | "Succeeded" => {
            json!([{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": code, "finishedAt": "2026-01-01T00:10:00Z"}}}])
        }
        _ => json!([]),
    };
    Arc::new(
        serde_json::from_value(
            json!({"metadata": meta, "status": {"phase": phase, "containerStatuses": statuses}}),
        )
        .unwrap(),
    )
}

fn at(name: &str, phase: &str, index: i32, failures: i32) -> Arc<Pod> {
    let annotations =
        json!({COMPLETION_INDEX: index.to_string(), INDEX_FAILURE_COUNT: failures.to_string()});
    pod(name, phase, json!({"annotations": annotations}))
}

/// One whole pass in which every write succeeds.
fn pass(job: &Job, pods: &[Arc<Pod>]) -> (Decision, Tracked, Job) {
    let observed = Observed {
        pods: pods.to_vec(),
        expectations_met: true,
        ..Observed::default()
    };
    let decision = decide(job, &observed, now());
    let outcome = Outcome {
        created: decision.create.len(),
        deleted: decision.delete.len() + decision.remove.len(),
        deleted_ready: 0,
    };
    let tracked = track(job, decision.clone(), outcome, pods, &HashSet::new(), now());
    let gone = tracked
        .remove_finalizer
        .iter()
        .map(|p| p.metadata.uid.clone().unwrap())
        .collect();
    let last =
        settle(&tracked, &tracked.job, &gone, now()).map_or(tracked.job.clone(), |(job, _)| job);
    (decision, tracked, last)
}

fn conditions(job: &Job) -> Vec<String> {
    let all = job.status.as_ref().unwrap().conditions.iter().flatten();
    all.map(|c| {
        format!(
            "{}={} {}",
            c.type_,
            c.status,
            c.reason.as_deref().unwrap_or_default()
        )
    })
    .collect()
}

#[test]
fn texts_of_indexes() {
    for (text, back) in [
        ("", ""),
        ("1", "1"),
        ("1,2", "1,2"),
        ("0-2,5", "0-2,5"),
        ("3-9", "3-7"),
        ("x,1", "1"),
    ] {
        assert_eq!(index::format(&index::parse(text, 8)), back, "{text}");
    }
}

#[test]
fn runs_and_completes() {
    let job = job(json!({"parallelism": 2, "completions": 3}), json!({}));
    let (decision, tracked, last) = pass(&job, &[]);
    assert_eq!(
        (decision.create.len(), last.status.as_ref().unwrap().active),
        (2, Some(2))
    );
    assert!(tracked.flush && last.status.unwrap().start_time.is_some());
    let pods = [
        pod("a", "Succeeded", json!({})),
        pod("b", "Running", json!({})),
    ];
    let (decision, tracked, last) = pass(&job, &pods);
    assert_eq!(decision.create.len(), 1);
    assert_eq!(
        tracked
            .job
            .status
            .unwrap()
            .uncounted_terminated_pods
            .unwrap()
            .succeeded
            .unwrap(),
        ["a"]
    );
    assert_eq!(last.status.as_ref().unwrap().succeeded, Some(1));
    let pods = ["a", "b", "c"].map(|n| pod(n, "Succeeded", json!({})));
    let (_, tracked, last) = pass(&job, &pods);
    assert_eq!(
        conditions(&tracked.job),
        ["SuccessCriteriaMet=True CompletionsReached"]
    );
    assert!(is_finished(&last) && last.status.as_ref().unwrap().completion_time.is_some());
    assert_eq!(last.status.as_ref().unwrap().succeeded, Some(3));
}

#[test]
fn ends_in_failure() {
    let running = || pod("r", "Running", json!({}));
    let failed = || pod("f", "Failed", json!({}));
    let policy = |action: &str| {
        json!({"backoffLimit": 0, "podReplacementPolicy": "Failed", "podFailurePolicy": {"rules": [
        {"action": action, "onExitCodes": {"operator": "In", "values": [42]}}]}})
    };
    let started = json!({"startTime": "2026-01-01T00:00:00Z"});
    for (spec, pods, reason) in [
        (
            json!({"backoffLimit": 0}),
            vec![failed()],
            "BackoffLimitExceeded",
        ),
        (
            json!({"activeDeadlineSeconds": 60}),
            vec![],
            "DeadlineExceeded",
        ),
        (policy("FailJob"), vec![failed()], "PodFailurePolicy"),
        (policy("Ignore"), vec![failed()], ""),
        (json!({}), vec![failed()], ""),
    ] {
        let (_, _, last) = pass(&job(spec.clone(), started.clone()), &pods);
        assert_eq!(is_finished(&last), !reason.is_empty(), "{spec}");
        if !reason.is_empty() {
            assert_eq!(
                conditions(&last),
                [
                    format!("FailureTarget=True {reason}"),
                    format!("Failed=True {reason}")
                ]
            );
        }
    }
    // What still runs is ended first, and counted as failed when it is gone.
    let job = job(
        json!({"backoffLimit": 0, "parallelism": 2, "completions": 2}),
        started,
    );
    let (decision, tracked, last) = pass(&job, &[failed(), running()]);
    assert_eq!(
        (decision.delete.len(), tracked.remove_finalizer.len()),
        (1, 2)
    );
    assert!(!is_finished(&last), "one is still terminating");
    assert_eq!(last.status.unwrap().failed, Some(2));
}

#[test]
fn waits_after_failures() {
    let job = job(json!({}), json!({}));
    let mut recent = (*pod("f", "Failed", json!({}))).clone();
    let state = json!({"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:59:55Z"}});
    recent
        .status
        .as_mut()
        .unwrap()
        .container_statuses
        .as_mut()
        .unwrap()[0]
        .state = Some(serde_json::from_value(state).unwrap());
    let (decision, _, _) = pass(&job, &[Arc::new(recent)]);
    assert_eq!(
        (
            decision.create.len(),
            decision.requeue_after.unwrap().as_secs()
        ),
        (0, 5)
    );
}

#[test]
fn indexed() {
    let spec = json!({"completionMode": "Indexed", "parallelism": 3, "completions": 4, "backoffLimitPerIndex": 1, "backoffLimit": 99});
    let job_ = job(spec.clone(), json!({"completedIndexes": "0"}));
    let pods = [
        at("one", "Succeeded", 1, 0),
        at("two", "Running", 2, 0),
        at("again", "Pending", 2, 0),
        at("out", "Running", 9, 0),
    ];
    let (decision, _, last) = pass(&job_, &pods);
    assert_eq!(
        decision.remove.len(),
        2,
        "the second of an index and one beyond"
    );
    assert_eq!(
        last.status.unwrap().completed_indexes.as_deref(),
        Some("0,1")
    );
    // A failed pod stays until its successor has taken over its count.
    let failed = at("three", "Failed", 3, 0);
    let (decision, tracked, _) = pass(&job_, &[failed.clone()]);
    let indexes: Vec<_> = decision
        .create
        .iter()
        .map(|p| p.metadata.labels.as_ref().unwrap()[COMPLETION_INDEX].clone())
        .collect();
    assert_eq!(indexes, ["1", "2", "3"]);
    assert_eq!(
        decision.create[2].metadata.annotations.as_ref().unwrap()[INDEX_FAILURE_COUNT],
        "1"
    );
    assert!(tracked.remove_finalizer.is_empty());
    let done = job(spec, json!({"completedIndexes": "0-2"}));
    let (_, _, last) = pass(&done, &[at("three", "Failed", 3, 1)]);
    assert_eq!(
        conditions(&last),
        [
            "FailureTarget=True FailedIndexes",
            "Failed=True FailedIndexes"
        ]
    );
    assert_eq!(last.status.unwrap().failed_indexes.as_deref(), Some("3"));
    let lenient = job(
        json!({"completionMode": "Indexed", "completions": 4, "successPolicy": {"rules": [{"succeededIndexes": "0,1"}]}}),
        json!({"completedIndexes": "0,1"}),
    );
    let (_, _, last) = pass(&lenient, &[]);
    assert_eq!(
        conditions(&last),
        [
            "SuccessCriteriaMet=True SuccessPolicy",
            "Complete=True SuccessPolicy"
        ]
    );
}

#[test]
fn suspends_and_resumes() {
    let suspended = job(
        json!({"suspend": true}),
        json!({"startTime": "2026-01-01T00:00:00Z"}),
    );
    let (decision, _, last) = pass(&suspended, &[pod("a", "Running", json!({}))]);
    assert_eq!(
        (decision.remove.len(), decision.suspension),
        (1, Some(true))
    );
    assert_eq!(conditions(&last), ["Suspended=True JobSuspended"]);
    let resumed = job(
        json!({"suspend": false}),
        serde_json::to_value(last.status).unwrap(),
    );
    let (decision, _, last) = pass(&resumed, &[]);
    assert_eq!(
        (decision.create.len(), conditions(&last)),
        (1, vec!["Suspended=False JobResumed".to_owned()])
    );
}
