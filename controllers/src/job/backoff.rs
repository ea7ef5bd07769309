//! How long to wait after failures: 10 s, doubled with each failure since the last success, at most 10 minutes.

use std::time::Duration;

use component_helpers::pod::{condition, get_condition};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

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
    let status = pod.status.as_ref();
    let regular = status.and_then(|s| s.container_statuses.as_deref());
    let init = status.and_then(|s| s.init_container_statuses.as_deref());
    // Sidecars end after the others; init containers that ended before are nobody's end.
    let sidecars: Vec<&ContainerStatus> = init
        .unwrap_or_default()
        .iter()
        .filter(|s| is_sidecar(pod, &s.name))
        .collect();
    let ends = latest_end(None, regular.unwrap_or_default());
    let ends = latest_end(ends, sidecars);
    let not_ready = || {
        get_condition(pod, condition::READY)
            .filter(|c| c.status == "False")
            .and_then(|c| c.last_transition_time.as_ref())
            .map(|t| t.0)
    };
    let deleted = || {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        // A grace period may be any number: then nobody knows when it was.
        let ends = pod.metadata.deletion_timestamp.as_ref()?.0;
        ends.checked_sub(SignedDuration::from_secs(grace)).ok()
    };
    ends.or_else(not_ready)
        .or_else(deleted)
        .or_else(|| pod.metadata.creation_timestamp.as_ref().map(|t| t.0))
}

fn is_sidecar(pod: &Pod, name: &str) -> bool {
    let init = pod.spec.as_ref().and_then(|s| s.init_containers.as_deref());
    init.unwrap_or_default()
        .iter()
        .any(|c| c.name == name && c.restart_policy.as_deref() == Some("Always"))
}

/// The last of `before` and the ends of all these; `None` once one of them has not ended. Upstream: `latestFinishTime`.
fn latest_end<'a>(
    before: Option<Timestamp>,
    statuses: impl IntoIterator<Item = &'a ContainerStatus>,
) -> Option<Timestamp> {
    let mut last = before;
    for status in statuses {
        let ended = status.state.as_ref()?.terminated.as_ref()?;
        last = last.max(Some(ended.finished_at.as_ref()?.0));
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_grace_period_may_be_any_number() {
        let check = |grace: i64, expect: &str| {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {
                    "creationTimestamp": "2026-01-01T00:00:00Z",
                    "deletionTimestamp": "2026-01-01T00:01:00Z",
                    "deletionGracePeriodSeconds": grace,
                },
                "spec": {"containers": []},
            }))
            .unwrap();
            assert_eq!(finished_at(&pod).unwrap().to_string(), expect, "{grace}");
        };
        check(30, "2026-01-01T00:00:30Z");
        check(i64::MAX, "2026-01-01T00:00:00Z");
        check(i64::MIN, "2026-01-01T00:00:00Z");
    }

    /// Seconds of the minute at which each container ended; `None`: it runs.
    #[test]
    fn sidecars_end_last() {
        let check = |regular: &[Option<u8>], sidecar: Option<Option<u8>>, expect: &str| {
            let state = |end: &Option<u8>| match end {
                Some(s) => {
                    json!({"terminated": {"exitCode": 1, "finishedAt": format!("2026-01-01T00:00:{s:02}Z")}})
                }
                None => json!({"running": {}}),
            };
            let status = |name: &str, end: &Option<u8>| json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state(end)});
            let mut init = vec![status("once", &Some(59))];
            init.extend(sidecar.iter().map(|end| status("sidecar", end)));
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {
                    "containers": [],
                    "initContainers": [
                        {"name": "once"},
                        {"name": "sidecar", "restartPolicy": "Always"},
                    ],
                },
                "status": {
                    "containerStatuses": regular.iter().map(|end| status("c", end)).collect::<Vec<_>>(),
                    "initContainerStatuses": init,
                    "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:50Z"}],
                },
            }))
            .unwrap();
            let got = finished_at(&pod).unwrap().to_string();
            assert_eq!(
                got,
                format!("2026-01-01T00:00:{expect}Z"),
                "{regular:?} {sidecar:?}"
            );
        };
        check(&[Some(1), Some(3)], None, "03");
        check(&[Some(1), Some(3)], Some(Some(7)), "07");
        check(&[Some(9)], Some(Some(7)), "09");
        // One of them has not ended: its readiness tells.
        check(&[Some(1), None], None, "50");
        check(&[Some(1)], Some(None), "50");
        // As upstream.
        check(&[None], Some(Some(7)), "07");
        check(&[], None, "50");
    }
}
