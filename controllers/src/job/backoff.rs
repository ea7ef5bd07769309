//! How long to wait after failures: 10 s, doubled with each failure since the last success, at most 10 minutes.

use std::time::Duration;

use component_helpers::pod::{condition, get_condition};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

/// Upstream's DefaultJobPodFailureBackOff.
const BASE: Duration = Duration::from_secs(10);
/// Upstream's MaxJobPodFailureBackOff.
const MAX: Duration = Duration::from_secs(600);

/// The failures of a Job since its last success.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    pub failures: u32,
    pub last_failure: Option<Timestamp>,
}

impl Backoff {
    /// After these pods have ended, too.
    pub fn after<'a>(
        self,
        succeeded: impl IntoIterator<Item = &'a Pod>,
        failed: impl IntoIterator<Item = &'a Pod>,
    ) -> Self {
        let last_success = succeeded.into_iter().filter_map(finished_at).max();
        let failed: Vec<_> = failed.into_iter().filter_map(finished_at).collect();
        match last_success {
            None if failed.is_empty() => self,
            None => Self {
                failures: self.failures + u32::try_from(failed.len()).unwrap_or(u32::MAX),
                last_failure: failed.into_iter().max(),
            },
            Some(success) => {
                let later: Vec<_> = failed.into_iter().filter(|at| *at > success).collect();
                Self {
                    failures: u32::try_from(later.len()).unwrap_or(u32::MAX),
                    last_failure: later.into_iter().max(),
                }
            }
        }
    }

    /// How long no pod may be created; zero: now.
    pub fn remaining(self, now: Timestamp) -> Duration {
        let (Some(last), 1..) = (self.last_failure, self.failures) else {
            return Duration::ZERO;
        };
        let wait = BASE
            .saturating_mul(1 << (self.failures - 1).min(20))
            .min(MAX);
        let passed = now.duration_since(last);
        SignedDuration::try_from(wait)
            .ok()
            .and_then(|wait| Duration::try_from(wait - passed).ok())
            .unwrap_or(Duration::ZERO)
    }
}

/// When a pod ended: by its containers, else by its readiness, its deletion, its creation.
pub fn finished_at(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|s| s.container_statuses.as_deref())
        .unwrap_or_default();
    let ends: Option<Vec<_>> = statuses
        .iter()
        .map(|c| {
            c.state
                .as_ref()?
                .terminated
                .as_ref()?
                .finished_at
                .as_ref()
                .map(|t| t.0)
        })
        .collect();
    let not_ready = || {
        get_condition(pod, condition::READY)
            .filter(|c| c.status == "False")
            .and_then(|c| c.last_transition_time.as_ref())
            .map(|t| t.0)
    };
    let deleted = || {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        Some(pod.metadata.deletion_timestamp.as_ref()?.0 - SignedDuration::from_secs(grace))
    };
    ends.and_then(|ends| ends.into_iter().max())
        .or_else(not_ready)
        .or_else(deleted)
        .or_else(|| pod.metadata.creation_timestamp.as_ref().map(|t| t.0))
}
