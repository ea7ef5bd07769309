//! One probe of one container, over and over.
//!
//! Owns: the rhythm, the thresholds, and when to hold still. Upstream: `pkg/kubelet/prober/worker.go`, v1.36.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::ProbeType;
use super::results::Results;
use super::run::{Context, Outcome};
use crate::pod;
use crate::pod_actions::ProbeResult;

/// A container older than this when the kubelet starts was there before it; upstream: `kubeletRestartGracePeriod`.
const RESTART_GRACE_PERIOD: Duration = Duration::from_secs(10);

pub(super) struct Worker {
    pub pod: Arc<Pod>,
    pub container: Container,
    pub spec: Probe,
    pub probe_type: ProbeType,
    pub results: Arc<Results>,
    pub context: Arc<Context>,
    pub trigger: Arc<Notify>,
    pub stop: CancellationToken,
    pub kubelet_started: Instant,
}

#[derive(Default)]
struct State {
    container_id: String,
    on_hold: bool,
    last: Option<ProbeResult>,
    run: i32,
}

impl Worker {
    pub async fn run(self) {
        let period = Duration::from_secs(
            u64::try_from(self.spec.period_seconds.unwrap_or(10))
                .unwrap_or(10)
                .max(1),
        );
        let mut state = State::default();
        // After a restart of the kubelet, not all at once.
        if period > self.kubelet_started.elapsed() {
            let wait = period.mul_f64(rand::random::<f64>());
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.trigger.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        let mut ticker = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let go_on = tokio::select! {
                () = self.stop.cancelled() => break,
                go_on = self.do_probe(&mut state) => go_on,
            };
            if !go_on {
                break;
            }
            tokio::select! {
                () = self.stop.cancelled() => break,
                _ = ticker.tick() => {}
                () = self.trigger.notified() => ticker.reset(),
            }
        }
        if !state.container_id.is_empty() {
            self.results.remove(self.probe_type, &state.container_id);
        }
    }

    fn set(&self, state: &State, result: ProbeResult) {
        self.results.set(
            self.probe_type,
            &state.container_id,
            result,
            pod::uid(&self.pod),
        );
    }

    /// Returns whether to go on.
    async fn do_probe(&self, state: &mut State) -> bool {
        let Some(status) = self.context.status.get_pod_status(pod::uid(&self.pod)) else {
            return true;
        };
        if pod::is_terminal_phase(status.phase.as_deref().unwrap_or_default()) {
            return false;
        }
        let found = [&status.container_statuses, &status.init_container_statuses]
            .into_iter()
            .flatten()
            .find_map(|list| pod::container_status(list, &self.container.name));
        let Some((container, id)) = found.and_then(|c| {
            let id = c.container_id.as_deref()?;
            Some((c, id.split_once("://").map_or(id, |(_, id)| id)))
        }) else {
            return true;
        };
        let running = container.state.as_ref().and_then(|s| s.running.as_ref());
        let running_for = running
            .and_then(|r| r.started_at.as_ref())
            .map_or(Duration::ZERO, |t| {
                Duration::try_from(jiff::Timestamp::now().duration_since(t.0))
                    .unwrap_or(Duration::ZERO)
            });

        if state.container_id != id {
            if !state.container_id.is_empty() {
                self.results.remove(self.probe_type, &state.container_id);
            }
            state.container_id = id.to_owned();
            // What a restarted kubelet finds running keeps the status it has until a probe says otherwise.
            let was_there = running.is_some()
                && running_for
                    > self
                        .kubelet_started
                        .elapsed()
                        .saturating_add(RESTART_GRACE_PERIOD);
            if self.probe_type == ProbeType::Startup && container.started == Some(true) {
                self.set(state, ProbeResult::Success);
            } else if !was_there {
                self.set(state, self.probe_type.initial_value());
            }
            state.on_hold = false;
        }
        if state.on_hold {
            return true;
        }
        if running.is_none() {
            self.set(state, ProbeResult::Failure);
            let ended = container.state.as_ref().and_then(|s| s.terminated.as_ref());
            return ended.is_none_or(|t| {
                pod::container_should_restart(&self.container, &self.pod, t.exit_code)
                    || crate::restart_all::should_restart(&self.pod, None, &status)
            });
        }
        let delay = u64::try_from(self.spec.initial_delay_seconds.unwrap_or(0)).unwrap_or(0);
        if running_for.as_secs() < delay {
            return true;
        }
        let started = container.started == Some(true);
        if started == (self.probe_type == ProbeType::Startup) {
            return true;
        }

        let begin = Instant::now();
        let pod_ip = status.pod_ip.as_deref().unwrap_or_default();
        let outcome = self
            .context
            .probe(
                self.probe_type,
                &self.spec,
                &self.pod,
                &self.container,
                id,
                pod_ip,
            )
            .await;
        let result = match outcome {
            Outcome::Success => ProbeResult::Success,
            Outcome::Failure => ProbeResult::Failure,
            // Nothing was learnt.
            Outcome::Error => return true,
        };
        super::observed::observe_probe(
            self.probe_type,
            &self.pod,
            &self.container.name,
            result,
            begin.elapsed(),
        );
        self.count(state, result);
        true
    }

    fn count(&self, state: &mut State, result: ProbeResult) {
        if state.last == Some(result) {
            state.run += 1;
        } else {
            state.last = Some(result);
            state.run = 1;
        }
        let threshold = match result {
            ProbeResult::Failure => self.spec.failure_threshold.unwrap_or(3),
            _ => self.spec.success_threshold.unwrap_or(1),
        };
        if state.run < threshold {
            return;
        }
        self.set(state, result);
        let failed_liveness =
            self.probe_type == ProbeType::Liveness && result == ProbeResult::Failure;
        if failed_liveness || self.probe_type == ProbeType::Startup {
            // Until there is another container.
            state.on_hold = true;
            state.run = 0;
        }
    }
}
