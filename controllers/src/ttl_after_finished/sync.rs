//! The decision: how long a Job stays. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;

/// What is left of a finished Job's time; zero: it is over. `None`: it has no end.
pub fn time_left(job: &Job, now: Timestamp) -> Option<Duration> {
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let left = signed_time_left(job, now)?;
    Some(Duration::try_from(left).unwrap_or(Duration::ZERO))
}

/// How long a finished Job's time is over.
pub fn overdue(job: &Job, now: Timestamp) -> Option<Duration> {
    Duration::try_from(-signed_time_left(job, now)?).ok()
}

fn signed_time_left(job: &Job, now: Timestamp) -> Option<SignedDuration> {
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    let ended = |c: &&k8s_openapi::api::batch::v1::JobCondition| {
        matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True"
    };
    let finished = conditions
        .iter()
        .find(ended)?
        .last_transition_time
        .as_ref()?
        .0;
    Some(SignedDuration::from_secs(i64::from(ttl)) - now.duration_since(finished))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn table() {
        for (ttl, type_, left, late) in [
            (Some(90), "Complete", Some(30), None),
            (Some(10), "Failed", Some(0), Some(50)),
            (None, "Complete", None, None),
            (Some(10), "Suspended", None, None),
        ] {
            let job: Job = serde_json::from_value(json!({"spec": {"ttlSecondsAfterFinished": ttl, "template": {}},
                "status": {"conditions": [{"type": type_, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}))
            .unwrap();
            let now = "2026-01-01T00:01:00Z".parse().unwrap();
            assert_eq!(
                time_left(&job, now),
                left.map(Duration::from_secs),
                "{ttl:?} {type_}"
            );
            let late = late.map(Duration::from_secs);
            assert_eq!(overdue(&job, now), late, "{ttl:?} {type_}");
        }
    }
}
