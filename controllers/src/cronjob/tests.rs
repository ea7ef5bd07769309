use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use component_base::clock::FakeClock;
use component_base::events::Recorder;
use component_base::shutdown::Shutdown;
use controller_runtime::executor::Action;
use controller_runtime::testing::FakeApi;
use controller_runtime::transport::Verb;
use controller_runtime::{ApiError, Controller as _, ObjectKey, Queues};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use serde_json::{Value, json};

use super::controller::CronJobController;
use super::sync::{SCHEDULED_TIMESTAMP, decide, excess, take_in, until_next_schedule};
use crate::testing::{Feed, settle};

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn merged(mut base: Value, more: Value) -> Value {
    base.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    base
}

/// Made at 10:00, every hour; nothing has run.
fn cron_job(spec: Value, status: Value) -> CronJob {
    let template = json!({"metadata": {"labels": {"l": "v"}, "annotations": {"a": "v"}}, "spec": {"template": {}}});
    let spec = merged(
        json!({"schedule": "0 * * * *", "jobTemplate": template}),
        spec,
    );
    let meta = json!({"name": "c", "namespace": "n", "uid": "c", "creationTimestamp": "2026-01-01T10:00:00Z"});
    serde_json::from_value(json!({"metadata": meta, "spec": spec, "status": status})).unwrap()
}

fn job(name: &str, status: Value) -> Arc<Job> {
    let owner = json!({"apiVersion": "batch/v1", "kind": "CronJob", "name": "c", "uid": "c", "controller": true});
    let meta = json!({"name": name, "namespace": "n", "uid": name, "ownerReferences": [owner]});
    Arc::new(serde_json::from_value(json!({"metadata": meta, "status": status})).unwrap())
}

fn ended(name: &str, condition: &str, minute: u32) -> Arc<Job> {
    let at = |second: u32| format!("2026-01-01T10:{minute:02}:{second:02}Z");
    let condition = json!({"type": condition, "status": "True", "lastTransitionTime": at(30)});
    let mut status = json!({"startTime": at(0), "conditions": [condition]});
    if condition["type"] == "Complete" {
        status["completionTime"] = json!(at(30));
    }
    job(name, status)
}

fn holding(names: &[&str]) -> Value {
    let references: Vec<_> = names
        .iter()
        .map(|n| json!({"namespace": "n", "name": n, "uid": n}))
        .collect();
    json!({ "active": references })
}

fn reasons(events: &[Action]) -> Vec<&'static str> {
    events
        .iter()
        .map(|event| match event {
            Action::Event { reason, .. } => *reason,
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn decides() {
    let nothing = || json!({});
    let last = |at: &str| json!({"lastScheduleTime": at});
    // (spec, status, now, the time a Job starts for, reasons of events, milliseconds to the next look)
    let table: Vec<(Value, Value, &str, Option<&str>, &[&str], Option<u64>)> = vec![
        (nothing(), nothing(), "10:30:00", None, &[], Some(1_800_100)),
        (
            nothing(),
            nothing(),
            "11:00:00.1",
            Some("11:00:00"),
            &[],
            Some(3_600_000),
        ),
        (
            nothing(),
            last("2026-01-01T11:00:00Z"),
            "11:00:01",
            None,
            &[],
            Some(3_599_100),
        ),
        // The cache does not show yet that the Job is there.
        (
            nothing(),
            holding(&["c-29454420"]),
            "11:00:01",
            None,
            &[],
            Some(3_599_100),
        ),
        // Of several only the last.
        (
            nothing(),
            nothing(),
            "15:20:00",
            Some("15:00:00"),
            &[],
            Some(2_400_100),
        ),
        (
            json!({"schedule": "* * * * *"}),
            nothing(),
            "11:39:00",
            Some("11:39:00"),
            &[],
            Some(60_100),
        ),
        (
            json!({"schedule": "* * * * *"}),
            nothing(),
            "11:41:00",
            Some("11:41:00"),
            &["TooManyMissedTimes"],
            Some(60_100),
        ),
        (
            json!({"schedule": "* * * * *", "startingDeadlineSeconds": 200}),
            nothing(),
            "15:00:00",
            Some("15:00:00"),
            &[],
            Some(60_100),
        ),
        // Steps are counted from the last Job.
        (
            json!({"schedule": "@every 25m"}),
            last("2026-01-01T10:10:00Z"),
            "11:00:05",
            Some("11:00:00"),
            &[],
            Some(1_495_100),
        ),
        (
            json!({"schedule": "30 6-16/4 * * 1-5"}),
            nothing(),
            "15:00:00",
            Some("14:30:00"),
            &[],
            Some(55_800_100),
        ),
        (
            json!({"startingDeadlineSeconds": 10}),
            nothing(),
            "11:00:09",
            Some("11:00:00"),
            &[],
            Some(3_591_100),
        ),
        (
            json!({"startingDeadlineSeconds": 10}),
            nothing(),
            "11:00:11",
            None,
            &[],
            Some(3_589_100),
        ),
        (
            json!({"startingDeadlineSeconds": i64::MAX}),
            nothing(),
            "11:00:11",
            Some("11:00:00"),
            &[],
            Some(3_589_100),
        ),
        (
            json!({"suspend": true}),
            nothing(),
            "11:00:00",
            None,
            &[],
            None,
        ),
        (
            json!({"concurrencyPolicy": "Allow"}),
            holding(&["a"]),
            "11:00:00",
            Some("11:00:00"),
            &[],
            Some(3_600_100),
        ),
        (
            json!({"concurrencyPolicy": "Forbid"}),
            holding(&["a"]),
            "11:00:00",
            None,
            &["JobAlreadyActive"],
            Some(3_600_100),
        ),
        (
            json!({"concurrencyPolicy": "Forbid"}),
            nothing(),
            "11:00:00",
            Some("11:00:00"),
            &[],
            Some(3_600_100),
        ),
        (
            json!({"timeZone": "Asia/Kolkata"}),
            nothing(),
            "10:30:00",
            Some("10:30:00"),
            &[],
            Some(3_600_100),
        ),
        (
            json!({"timeZone": "Nowhere/City"}),
            nothing(),
            "11:00:00",
            None,
            &["UnknownTimeZone"],
            None,
        ),
        (
            json!({"schedule": "TZ=Asia/Kolkata 0 * * * *"}),
            nothing(),
            "10:30:00",
            Some("10:30:00"),
            &["UnsupportedSchedule"],
            Some(3_600_100),
        ),
        (
            json!({"schedule": "TZ=0"}),
            nothing(),
            "11:00:00",
            None,
            &["UnsupportedSchedule", "UnparseableSchedule"],
            None,
        ),
        (
            json!({"schedule": "61 * * * *"}),
            nothing(),
            "11:00:00",
            None,
            &["UnparseableSchedule"],
            None,
        ),
        (
            json!({"schedule": "59 23 31 2 *"}),
            nothing(),
            "11:00:00",
            None,
            &["InvalidSchedule"],
            None,
        ),
    ];
    for (spec, status, now, expected, events, wait) in table {
        let name = format!("{spec} {status} at {now}");
        let decision = decide(
            &cron_job(spec, status),
            time(&format!("2026-01-01T{now}Z")),
            &TimeZone::UTC,
        );
        let start = decision.start.as_ref();
        assert_eq!(
            start.map(|s| s.scheduled),
            expected.map(|at| time(&format!("2026-01-01T{at}Z"))),
            "{name}"
        );
        assert_eq!(reasons(&decision.events), events, "{name}");
        assert_eq!(
            decision.requeue_after,
            wait.map(Duration::from_millis),
            "{name}"
        );
    }
}

#[test]
fn the_job() {
    for (zone, scheduled) in [
        (None, "2026-01-01T11:00:00Z"),
        (Some("Asia/Tokyo"), "2026-01-01T20:00:00+09:00"),
    ] {
        let cron_job = cron_job(
            json!({"timeZone": zone, "concurrencyPolicy": "Replace"}),
            holding(&["a", "b"]),
        );
        let decision = decide(&cron_job, time("2026-01-01T11:00:05Z"), &TimeZone::UTC);
        let start = decision.start.unwrap();
        assert_eq!(start.replace.len(), 2);
        let meta = start.job.metadata;
        assert_eq!(meta.name.as_deref(), Some("c-29454420"));
        assert_eq!(meta.namespace.as_deref(), Some("n"));
        assert_eq!(meta.labels.unwrap()["l"], "v");
        let annotations = meta.annotations.unwrap();
        assert_eq!(annotations["a"], "v");
        assert_eq!(annotations[SCHEDULED_TIMESTAMP], scheduled);
        let owner = &meta.owner_references.unwrap()[0];
        assert_eq!(
            (owner.kind.as_str(), owner.controller),
            ("CronJob", Some(true))
        );
        assert!(start.job.spec.is_some());
    }
}

#[test]
fn takes_in() {
    let (running, complete, failed) = (
        job("running", json!({})),
        ended("complete", "Complete", 1),
        ended("failed", "Failed", 2),
    );
    let later = ended("later", "Complete", 3);
    let mut cron_job = cron_job(
        json!({}),
        holding(&["running", "complete", "failed", "gone", "slow"]),
    );
    let jobs = [running, complete, failed, later, job("stranger", json!({}))];
    let gone = HashSet::from(["gone".to_owned()]);
    let events = take_in(&mut cron_job, &jobs, &gone);
    assert_eq!(
        reasons(&events),
        [
            "SawCompletedJob",
            "SawCompletedJob",
            "UnexpectedJob",
            "MissingJob"
        ]
    );
    let status = cron_job.status.clone().unwrap();
    let left: Vec<_> = status
        .active
        .unwrap()
        .into_iter()
        .map(|r| r.name.unwrap())
        .collect();
    assert_eq!(left, ["running", "slow"]);
    assert_eq!(
        status.last_successful_time.unwrap().0,
        time("2026-01-01T10:03:30Z")
    );
    let before = cron_job.clone();
    let events = take_in(&mut cron_job, &jobs[..4], &HashSet::new());
    assert!(events.is_empty() && cron_job == before);
}

#[test]
fn history() {
    let jobs = [
        ended("c3", "Complete", 3),
        ended("c1", "Complete", 1),
        ended("c2", "Complete", 2),
        ended("f1", "Failed", 4),
        job("running", json!({})),
    ];
    for (succeeded, failed, expected) in [
        (Some(3), Some(1), vec![]),
        (Some(1), Some(1), vec!["c1", "c2"]),
        (Some(0), None, vec!["c1", "c2", "c3"]),
        (None, Some(0), vec!["f1"]),
    ] {
        let spec =
            json!({"successfulJobsHistoryLimit": succeeded, "failedJobsHistoryLimit": failed});
        let excess = excess(&cron_job(spec, json!({})), &jobs);
        let names: Vec<_> = excess
            .iter()
            .map(|j| j.metadata.name.as_deref().unwrap())
            .collect();
        assert_eq!(names, expected, "{succeeded:?} {failed:?}");
    }
}

#[test]
fn a_new_schedule_begins_with_its_next_time() {
    let cron_job = cron_job(json!({"schedule": "*/20 * * * *"}), json!({}));
    let wait = until_next_schedule(&cron_job, time("2026-01-01T10:50:00Z"), &TimeZone::UTC);
    assert_eq!(wait, Some(Duration::from_millis(600_100)));
}

#[tokio::test]
async fn makes_a_job_once() {
    let api = FakeApi::new();
    let (recorder, mut recorded) = Recorder::fake();
    let (cron_jobs, cron_job_informer) = Feed::<CronJob>::new();
    let (_jobs, job_informer) = Feed::<Job>::new();
    let clock = FakeClock::new(time("2026-01-01T11:00:00.1Z"));
    let shutdown = Shutdown::new();
    let (controller, _queue, _watches) = CronJobController::over(
        &Queues::unread(clock.clock()),
        cron_job_informer,
        job_informer,
        api.executor_with(recorder),
        super::controller::Metrics::unread(),
        clock.clock(),
        &shutdown,
    );
    let object = cron_job(
        json!({"timeZone": "UTC", "concurrencyPolicy": "Replace"}),
        holding(&["old"]),
    );
    api.insert(&object);
    api.insert(&*job("old", json!({})));
    cron_jobs.apply(object);
    settle().await;
    let key = ObjectKey::new("n", "c");

    // The Job is made, but nobody hears of it.
    api.fail(
        |request| request.verb == Verb::Update,
        ApiError::Unreachable("down".to_owned()),
    );
    assert!(controller.reconcile(&key).await.is_err());
    assert!(api.get::<Job>("n", "c-29454420").is_some());
    assert!(api.get::<Job>("n", "old").is_none());
    api.heal();

    // Tried again, it is found and put down.
    let next = controller.reconcile(&key).await.unwrap();
    assert_eq!(next, Some(Duration::from_secs(3600)));
    let status = api.get::<CronJob>("n", "c").unwrap().status.unwrap();
    let active = status.active.unwrap();
    assert_eq!(active.len(), 1);
    assert_eq!(active[0].name.as_deref(), Some("c-29454420"));
    assert_eq!(
        status.last_schedule_time.unwrap().0,
        time("2026-01-01T11:00:00Z")
    );
    assert_eq!(api.list::<Job>().len(), 1);
    let mut told = Vec::new();
    while let Ok(event) = recorded.try_recv() {
        told.push(event.reason);
    }
    assert_eq!(told, ["SuccessfulDelete", "SuccessfulCreate", "MissingJob"]);
}
