//! The task of one pod: takes updates in order, works, waits.
//!
//! Owns: when the next round is due. Upstream: `podWorkerLoop`, `completeWork`, v1.36.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use component_base::tasks::message;
use futures::FutureExt as _;
use tokio::time::Instant;

use super::{PodSyncer, PodWorkers, Shared, SyncError, WorkState};
use crate::pod;
use crate::status::generate::ForcedFailure;

/// After a failed round; upstream: `backOffPeriod` with `workerBackOffPeriodJitterFactor`.
const BACK_OFF_PERIOD: Duration = Duration::from_secs(10);
/// After a failed end or clean-up: first so long, then doubled up to [`BACK_OFF_PERIOD`].
const FIRST_TERMINATION_RETRY: Duration = Duration::from_millis(500);

pub(super) struct Task {
    pub uid: String,
    pub shared: Arc<Shared>,
    pub workers: Arc<PodWorkers>,
    pub syncer: Arc<dyn PodSyncer>,
}

fn jitter(period: Duration, factor: f64) -> Duration {
    period.mul_f64(1.0 + rand::random::<f64>() * factor)
}

impl Task {
    pub async fn run(self) {
        let shutdown = self.workers.shutdown.clone();
        let mut due: Option<Instant> = None;
        let mut retry = FIRST_TERMINATION_RETRY;
        loop {
            let timer = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.shared.notify.notified() => {}
                () = timer => self.shared.lock().pending = true,
            }
            if !self.take_pending() {
                continue;
            }
            if !self.may_start() {
                // Woken when the pod before it is finished.
                self.shared.lock().pending = true;
                due = Some(Instant::now() + BACK_OFF_PERIOD);
                continue;
            }
            let state = self.shared.lock().status.state;
            let wait = match state {
                WorkState::Syncing => self.sync().await,
                WorkState::Terminating => match self.terminate().await {
                    Ok(()) => {
                        let mut state = self.shared.lock();
                        state.status.state = WorkState::Terminated;
                        retry = FIRST_TERMINATION_RETRY;
                        Duration::ZERO
                    }
                    Err(error) => {
                        tracing::error!(uid = self.uid, %error, "error terminating pod, will retry");
                        next_retry(&mut retry)
                    }
                },
                WorkState::Terminated => match self.clean_up().await {
                    Ok(()) => {
                        self.shared.lock().status.finished = true;
                        self.workers.finished();
                        self.syncer.pod_finished(&self.uid);
                        return;
                    }
                    Err(error) => {
                        tracing::warn!(uid = self.uid, %error, "error cleaning up terminated pod, will retry");
                        next_retry(&mut retry)
                    }
                },
            };
            due = Some(Instant::now() + wait);
        }
    }

    fn take_pending(&self) -> bool {
        let mut state = self.shared.lock();
        let pending = std::mem::take(&mut state.pending);
        if pending && state.cancel.is_cancelled() {
            state.cancel = self.workers.shutdown.child_token();
        }
        pending
    }

    fn may_start(&self) -> bool {
        let (pod, state) = {
            let state = self.shared.lock();
            (state.pod.clone(), state.status.state)
        };
        match pod {
            Some(pod) if state == WorkState::Syncing && pod::is_static(&pod) => self
                .workers
                .former_selves(&self.uid, &pod::full_name(&pod))
                .is_empty(),
            _ => true,
        }
    }

    /// Returns when to look again.
    async fn sync(&self) -> Duration {
        let (pod, cancel) = {
            let state = self.shared.lock();
            (state.pod.clone(), state.cancel.clone())
        };
        let Some(pod) = pod else {
            return BACK_OFF_PERIOD;
        };
        let work = self.syncer.sync_pod(&pod, &cancel);
        let Some(outcome) = caught(&self.uid, work).await else {
            return jitter(BACK_OFF_PERIOD, 0.5);
        };
        let mut state = self.shared.lock();
        if state.status.state != WorkState::Syncing || state.pending {
            return Duration::ZERO;
        }
        if outcome.terminal {
            let grace = pod
                .spec
                .as_ref()
                .and_then(|s| s.termination_grace_period_seconds)
                .unwrap_or(30);
            state
                .status
                .grace_period_seconds
                .get_or_insert(grace.max(1));
            state.status.state = WorkState::Terminating;
            return Duration::ZERO;
        }
        let usual = if outcome.failed {
            jitter(BACK_OFF_PERIOD, 0.5)
        } else {
            jitter(self.workers.resync, 0.5)
        };
        // A moment later than asked for, so that the back-off is over for sure.
        outcome
            .retry_after
            .map_or(usual, |wait| usual.min(wait + Duration::from_millis(50)))
    }

    async fn terminate(&self) -> Result<(), SyncError> {
        let mut grace_changed = self.shared.grace.subscribe();
        loop {
            let (pod, runtime_pod, forced, grace): (_, _, Option<ForcedFailure>, i64) = {
                let state = self.shared.lock();
                let status = &state.status;
                grace_changed.mark_unchanged();
                let grace = status.grace_period_seconds.unwrap_or(30);
                (
                    state.pod.clone(),
                    state.runtime_pod.clone(),
                    status.forced.clone(),
                    grace,
                )
            };
            let work = async {
                match (&pod, &runtime_pod) {
                    (Some(pod), _) => {
                        self.syncer
                            .sync_terminating_pod(pod, forced.as_ref(), grace)
                            .await
                    }
                    (None, Some(pod)) => self.syncer.sync_terminating_runtime_pod(pod).await,
                    (None, None) => Ok(()),
                }
            };
            tokio::select! {
                result = caught(&self.uid, work) => return result.unwrap_or_else(panicked),
                // Somebody is in more of a hurry.
                Ok(()) = grace_changed.changed() => {}
            }
        }
    }

    async fn clean_up(&self) -> Result<(), SyncError> {
        let pod = self.shared.lock().pod.clone();
        match pod {
            Some(pod) => caught(&self.uid, self.syncer.sync_terminated_pod(&pod))
                .await
                .unwrap_or_else(panicked),
            None => Ok(()),
        }
    }
}

/// A panic in a round of one pod costs that round, not the pod's worker, and not the other pods. `None`: it panicked.
async fn caught<T>(uid: &str, work: impl Future<Output = T>) -> Option<T> {
    let outcome = AssertUnwindSafe(work).catch_unwind().await;
    outcome
        .inspect_err(|panic| {
            let panic = message(panic.as_ref());
            tracing::error!(
                uid,
                panic,
                "a round of the pod's worker panicked, will retry"
            );
        })
        .ok()
}

fn panicked() -> Result<(), SyncError> {
    Err(SyncError("the round panicked".to_owned()))
}

fn next_retry(retry: &mut Duration) -> Duration {
    let now = *retry;
    *retry = (now * 2).min(BACK_OFF_PERIOD);
    jitter(now, 0.5)
}
