//! The decisions: what the Jobs of a CronJob say about it, which are too old to keep, and whether one is to start. Pure.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use component_base::events::EventType;
use component_helpers::owner_ref::new_controller_ref;
use controller_runtime::executor::Action;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::schedule::{Schedule, find_zone};

/// The time a Job was made for; an annotation.
pub const SCHEDULED_TIMESTAMP: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// How long after its time a Job is made: clocks differ.
const NEXT_SCHEDULE_DELTA: SignedDuration = SignedDuration::from_millis(100);
/// From here on people hear how many times were missed.
const MANY_MISSED: i64 = 100;

/// A decision about what is to come.
#[derive(Debug, Default)]
pub struct Decision {
    /// What people hear.
    pub events: Vec<Action>,
    /// What starts now.
    pub start: Option<Box<Start>>,
    /// When to look again; `None`: when something changes.
    pub requeue_after: Option<Duration>,
}

/// A Job that is to start.
#[derive(Debug)]
pub struct Start {
    /// The Job.
    pub job: Job,
    /// The time it is made for.
    pub scheduled: Timestamp,
    /// What has to go before.
    pub replace: Vec<ObjectReference>,
}

/// The schedule has times that never come, or come all at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("time difference between two schedules is less than 1 second")]
pub struct InvalidSchedule;

/// What `status.active` holds.
pub fn active(cron_job: &CronJob) -> &[ObjectReference] {
    let status = cron_job.status.as_ref();
    status.and_then(|s| s.active.as_deref()).unwrap_or_default()
}

/// Whether the Job with this UID is among them.
pub fn is_active(cron_job: &CronJob, uid: Option<&str>) -> bool {
    active(cron_job).iter().any(|r| r.uid.as_deref() == uid)
}

/// Takes a Job from `status.active`.
pub fn forget(cron_job: &mut CronJob, uid: Option<&str>) {
    if let Some(status) = &mut cron_job.status {
        if let Some(active) = &mut status.active {
            active.retain(|r| r.uid.as_deref() != uid);
        }
        // As the server answers.
        status.active.take_if(|active| active.is_empty());
    }
}

/// Puts a Job that was made for `scheduled` into the status.
pub fn started(cron_job: &mut CronJob, job: ObjectReference, scheduled: Timestamp) {
    let status = cron_job.status.get_or_insert_default();
    status.active.get_or_insert_default().push(job);
    status.last_schedule_time = Some(Time(scheduled));
}

/// Whether a Job runs that the status does not know; the status may be older than the Job.
pub fn has_stranger(cron_job: &CronJob, jobs: &[Arc<Job>]) -> bool {
    jobs.iter()
        .any(|job| finished(job).is_none() && !is_active(cron_job, job.metadata.uid.as_deref()))
}

/// Jobs that the status holds and `jobs` does not.
pub fn unseen(cron_job: &CronJob, jobs: &[Arc<Job>]) -> Vec<ObjectReference> {
    let seen = |r: &&ObjectReference| !jobs.iter().any(|job| job.metadata.uid == r.uid);
    active(cron_job).iter().filter(seen).cloned().collect()
}

/// Puts what became of the Jobs into the status, and returns what people hear. `gone`: UIDs of the active ones that are no more.
pub fn take_in(cron_job: &mut CronJob, jobs: &[Arc<Job>], gone: &HashSet<String>) -> Vec<Action> {
    let mut events = Vec::new();
    for job in jobs {
        let (name, uid) = (
            job.metadata.name.as_deref().unwrap_or_default(),
            job.metadata.uid.as_deref(),
        );
        let known = is_active(cron_job, uid);
        let Some(condition) = finished(job) else {
            if !known {
                let message =
                    format!("Saw a job that the controller did not create or forgot: {name}");
                events.push(warning(cron_job, "UnexpectedJob", message));
            }
            continue;
        };
        if known {
            forget(cron_job, uid);
            let message = format!("Saw completed job: {name}, condition: {condition}");
            events.push(normal(cron_job, "SawCompletedJob", message));
        }
        let completed = job.status.as_ref().and_then(|s| s.completion_time.clone());
        if let Some(time) = completed.filter(|_| condition == "Complete") {
            let status = cron_job.status.get_or_insert_default();
            if status
                .last_successful_time
                .as_ref()
                .is_none_or(|last| last.0 < time.0)
            {
                status.last_successful_time = Some(time);
            }
        }
    }
    for reference in unseen(cron_job, jobs) {
        if reference.uid.as_ref().is_some_and(|uid| gone.contains(uid)) {
            forget(cron_job, reference.uid.as_deref());
            let name = reference.name.unwrap_or_default();
            let message = format!("Active job went missing: {name}");
            events.push(normal(cron_job, "MissingJob", message));
        }
    }
    events
}

/// The finished Jobs beyond what is to be kept, the oldest first.
pub fn excess(cron_job: &CronJob, jobs: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let spec = &cron_job.spec;
    let mut excess = Vec::new();
    for (condition, limit) in [
        ("Complete", spec.successful_jobs_history_limit),
        ("Failed", spec.failed_jobs_history_limit),
    ] {
        let Some(limit) = limit.and_then(|l| usize::try_from(l).ok()) else {
            continue;
        };
        let mut ended: Vec<_> = jobs
            .iter()
            .filter(|job| finished(job) == Some(condition))
            .cloned()
            .collect();
        ended.sort_by_key(|job| {
            let start = job.status.as_ref().and_then(|s| s.start_time.as_ref());
            let start = start.map(|t| t.0);
            (start.is_none(), start, job.metadata.name.clone())
        });
        ended.truncate(ended.len().saturating_sub(limit));
        excess.append(&mut ended);
    }
    excess
}

/// Whether a Job is to start now, and when to look again. `local`: the zone of schedules that name none.
pub fn decide(cron_job: &CronJob, now: Timestamp, local: &TimeZone) -> Decision {
    let mut decision = Decision::default();
    let spec = &cron_job.spec;
    if cron_job.metadata.deletion_timestamp.is_some() {
        return decision;
    }
    let Some(schedule) = schedule(cron_job, local, &mut decision.events) else {
        return decision;
    };
    let Ok(missed) = recent_schedule(cron_job, &schedule, now, true) else {
        let message = format!("invalid schedule: {} : {InvalidSchedule}", spec.schedule);
        decision
            .events
            .push(warning(cron_job, "InvalidSchedule", message));
        return decision;
    };
    decision.requeue_after = until_next(cron_job, &schedule, now);
    if missed.latest.is_some() && missed.count > MANY_MISSED {
        let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        decision
            .events
            .push(warning(cron_job, "TooManyMissedTimes", message));
    }
    if let Some(scheduled) = missed.latest {
        let start = start(cron_job, scheduled, now, local, &mut decision.events);
        if start.is_some() {
            // Steps of a time are counted from the one that starts now.
            decision.requeue_after = after(&schedule, scheduled, now);
        }
        decision.start = start.map(Box::new);
    }
    decision
}

/// When Jobs are made. `None`: never, as things are; `events` say why, where somebody is to hear it.
fn schedule(cron_job: &CronJob, local: &TimeZone, events: &mut Vec<Action>) -> Option<Schedule> {
    let spec = &cron_job.spec;
    if let Some(name) = spec.time_zone.as_deref()
        && find_zone(name, local).is_none()
    {
        let message = format!("invalid timeZone: {name:?}: unknown time zone {name}");
        events.push(warning(cron_job, "UnknownTimeZone", message));
        return None;
    }
    if spec.suspend == Some(true) {
        return None;
    }
    if spec.schedule.contains("TZ") {
        let message = format!(
            "CRON_TZ or TZ used in schedule {:?} is not officially supported, see \
             https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details",
            spec.schedule
        );
        events.push(warning(cron_job, "UnsupportedSchedule", message));
    }
    match Schedule::parse(&spec.schedule, &zone(spec, local)) {
        Ok(schedule) => Some(schedule),
        Err(error) => {
            let message = format!("unparseable schedule: {:?} : {error}", spec.schedule);
            events.push(warning(cron_job, "UnparseableSchedule", message));
            None
        }
    }
}

/// The Job for a time that has come. `None`: it came too late, has started, or must wait for another.
fn start(
    cron_job: &CronJob,
    scheduled: Timestamp,
    now: Timestamp,
    local: &TimeZone,
    events: &mut Vec<Action>,
) -> Option<Start> {
    let spec = &cron_job.spec;
    let late = now.duration_since(scheduled);
    let deadline = spec.starting_deadline_seconds;
    if deadline.is_some_and(|seconds| late > SignedDuration::from_secs(seconds)) {
        let time = scheduled.strftime("%a, %d %b %Y %H:%M:%S +0000");
        let message = format!("Missed scheduled time to start a job: {time}");
        events.push(warning(cron_job, "MissSchedule", message));
        return None;
    }
    let name = job_name(cron_job, scheduled);
    let status = cron_job.status.as_ref();
    let last = status.and_then(|s| s.last_schedule_time.as_ref());
    let is_made = |r: &ObjectReference| r.name.as_ref() == Some(&name);
    if last.is_some_and(|last| last.0 == scheduled) || active(cron_job).iter().any(is_made) {
        return None;
    }
    let policy = spec.concurrency_policy.as_deref().unwrap_or_default();
    if policy == "Forbid" && !active(cron_job).is_empty() {
        let message =
            "Not starting job because prior execution is running and concurrency policy is Forbid";
        events.push(normal(cron_job, "JobAlreadyActive", message));
        return None;
    }
    let replace = match policy {
        "Replace" => active(cron_job).to_vec(),
        _ => Vec::new(),
    };
    Some(Start {
        job: job(cron_job, spec, name, scheduled, local),
        scheduled,
        replace,
    })
}

/// How long until the next time; `None`: it never comes, or the schedule is none.
pub fn until_next_schedule(
    cron_job: &CronJob,
    now: Timestamp,
    local: &TimeZone,
) -> Option<Duration> {
    let spec = &cron_job.spec;
    let schedule = Schedule::parse(&spec.schedule, &zone(spec, local)).ok()?;
    until_next(cron_job, &schedule, now)
}

fn zone(spec: &CronJobSpec, local: &TimeZone) -> TimeZone {
    let named = spec.time_zone.as_deref().and_then(|n| find_zone(n, local));
    named.unwrap_or_else(|| local.clone())
}

fn until_next(cron_job: &CronJob, schedule: &Schedule, now: Timestamp) -> Option<Duration> {
    let from = match recent_schedule(cron_job, schedule, now, false) {
        Ok(Missed {
            latest: Some(latest),
            ..
        }) => latest,
        Ok(Missed {
            count: 0, earliest, ..
        }) => earliest,
        _ => now,
    };
    after(schedule, from, now)
}

fn after(schedule: &Schedule, from: Timestamp, now: Timestamp) -> Option<Duration> {
    let left = schedule.next(from)?.duration_since(now) + NEXT_SCHEDULE_DELTA;
    Some(Duration::try_from(left).unwrap_or(Duration::ZERO))
}

/// Times that came and brought no Job.
#[derive(Debug, PartialEq, Eq)]
struct Missed {
    /// Times before this one do not count.
    earliest: Timestamp,
    /// The last of them.
    latest: Option<Timestamp>,
    /// How many they are, roughly; 0: at most one.
    count: i64,
}

/// Counts by the distance of the first two: schedules are most often regular, and there may be millions.
fn recent_schedule(
    cron_job: &CronJob,
    schedule: &Schedule,
    now: Timestamp,
    heed_deadline: bool,
) -> Result<Missed, InvalidSchedule> {
    let status = cron_job.status.as_ref();
    let last = status.and_then(|s| s.last_schedule_time.as_ref());
    let mut earliest = last
        .or(cron_job.metadata.creation_timestamp.as_ref())
        .map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    if let Some(seconds) = cron_job.spec.starting_deadline_seconds
        && heed_deadline
    {
        let deadline = now.checked_sub(SignedDuration::from_secs(seconds));
        earliest = earliest.max(deadline.unwrap_or(Timestamp::MIN));
    }
    let missed = |latest, count| Missed {
        earliest,
        latest,
        count,
    };
    let first = schedule.next(earliest).ok_or(InvalidSchedule)?;
    if now < first {
        return Ok(missed(None, 0));
    }
    let second = match schedule.next(first) {
        Some(second) if second <= now => second,
        _ => return Ok(missed(Some(first), 0)),
    };
    let step = second.as_second() - first.as_second();
    if step < 1 {
        return Err(InvalidSchedule);
    }
    let count = (now.as_second() - first.as_second()) / step + 1;
    // One step back from where the last should be: the steps may differ, as those of `30 6-16/4 * * 1-5` do.
    let from = first.as_second() + (count - 2) * step;
    let from = Timestamp::from_second(from).map_err(|_| InvalidSchedule)?;
    let due = std::iter::successors(schedule.next(from), |time| schedule.next(*time));
    Ok(missed(due.take_while(|time| *time <= now).last(), count))
}

fn job_name(cron_job: &CronJob, scheduled: Timestamp) -> String {
    let name = cron_job.metadata.name.as_deref().unwrap_or_default();
    format!("{name}-{}", scheduled.as_second() / 60)
}

fn job(
    cron_job: &CronJob,
    spec: &CronJobSpec,
    name: String,
    scheduled: Timestamp,
    local: &TimeZone,
) -> Job {
    let template = spec.job_template.metadata.clone().unwrap_or_default();
    let named = spec.time_zone.as_deref().unwrap_or_default();
    let time = scheduled.to_zoned(find_zone(named, local).unwrap_or(TimeZone::UTC));
    let form = match time.offset().seconds() == 0 {
        true => "%Y-%m-%dT%H:%M:%SZ",
        false => "%Y-%m-%dT%H:%M:%S%:z",
    };
    let mut annotations = template.annotations.unwrap_or_default();
    annotations.insert(
        SCHEDULED_TIMESTAMP.to_owned(),
        time.strftime(form).to_string(),
    );
    Job {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: cron_job.metadata.namespace.clone(),
            labels: template.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![new_controller_ref::<CronJob>(&cron_job.metadata)]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    }
}

/// The condition a Job ended with.
fn finished(job: &Job) -> Option<&str> {
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    conditions
        .iter()
        .find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")
        .map(|c| c.type_.as_str())
}

fn normal(cron_job: &CronJob, reason: &'static str, message: impl Into<String>) -> Action {
    Action::event(cron_job, EventType::Normal, reason, message)
}

fn warning(cron_job: &CronJob, reason: &'static str, message: impl Into<String>) -> Action {
    Action::event(cron_job, EventType::Warning, reason, message)
}
