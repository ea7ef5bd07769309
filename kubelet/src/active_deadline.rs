//! `activeDeadlineSeconds`: how long a pod may be active on the node, whatever it is doing.
//!
//! Owns: when the time is over; pure. It is counted from `status.startTime`, and runs while the pod waits for volumes or
//! images and in init containers, too. Never ends a pod itself: a status generated past the deadline is `Failed`, and
//! the worker sees to the rest. Upstream: `pkg/kubelet/active_deadline.go`, v1.36.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};

/// `status.reason` of a pod past its deadline, and the reason of its event.
pub const REASON: &str = "DeadlineExceeded";
/// `status.message`, and the text of the event.
pub const MESSAGE: &str = "Pod was active on the node longer than the specified deadline";

/// What is left of the pod's time; zero when it is over. `None`: the pod may run for ever, or has not started.
pub fn remaining(pod: &Pod, start: Option<Timestamp>, now: Timestamp) -> Option<Duration> {
    let deadline = pod.spec.as_ref()?.active_deadline_seconds?;
    let ran = now.duration_since(start?).as_secs_f64();
    // A time that no Duration holds is as good as none.
    Some(Duration::try_from_secs_f64((deadline as f64 - ran).max(0.0)).unwrap_or(Duration::MAX))
}

/// Whether the pod's time is over, and that is what it failed of. `old`: what was said of the pod before; a pod that had ended by then stays as
/// it ended.
pub fn exceeded(pod: &Pod, old: &PodStatus, start: Option<Timestamp>, now: Timestamp) -> bool {
    if remaining(pod, start, now).is_none_or(|left| left > Duration::ZERO) {
        return false;
    }
    let ended = crate::pod::is_terminal_phase(old.phase.as_deref().unwrap_or_default());
    !ended || old.reason.as_deref() == Some(REASON)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::PodSpec;

    #[test]
    fn the_time_runs_from_the_start() {
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let pod = |deadline: Option<i64>| Pod {
            spec: Some(PodSpec {
                active_deadline_seconds: deadline,
                ..Default::default()
            }),
            ..Default::default()
        };
        let secs = |s| Some(Duration::from_secs(s));
        for (deadline, start, now, left) in [
            (None, Some(at(100)), at(1_000_000), None),
            (Some(10), None, at(100), None),
            (Some(10), Some(at(100)), at(100), secs(10)),
            (Some(10), Some(at(100)), at(107), secs(3)),
            (Some(10), Some(at(100)), at(110), secs(0)),
            (Some(10), Some(at(100)), at(1_000), secs(0)),
            // The node's clock was set back.
            (Some(10), Some(at(100)), at(90), secs(20)),
            (Some(30), Some(at(100)), at(120), secs(10)),
        ] {
            assert_eq!(
                remaining(&pod(deadline), start, now),
                left,
                "{deadline:?} {start:?} {now}"
            );
            let over = exceeded(&pod(deadline), &PodStatus::default(), start, now);
            assert_eq!(over, left == secs(0));
        }
    }

    #[test]
    fn what_ended_before_stays_as_it_ended() {
        let pod = Pod {
            spec: Some(PodSpec {
                active_deadline_seconds: Some(1),
                ..Default::default()
            }),
            ..Default::default()
        };
        let check = |phase: &str, reason: Option<&str>, expect: bool| {
            let old = PodStatus {
                phase: Some(phase.into()),
                reason: reason.map(str::to_owned),
                ..Default::default()
            };
            let (start, now) = (Timestamp::UNIX_EPOCH, Timestamp::from_second(60).unwrap());
            let got = exceeded(&pod, &old, Some(start), now);
            assert_eq!(got, expect, "{phase} {reason:?}");
        };
        check("Pending", None, true);
        check("Running", None, true);
        check("Succeeded", None, false);
        check("Failed", Some("Evicted"), false);
        check("Failed", Some(REASON), true);
    }
}
