//! Probes: is a container alive, started, ready?
//!
//! Owns: one task a probe, their results, and the events about failures. Decides nothing about containers: results go to
//! the sync loop. Upstream: `pkg/kubelet/prober`, v1.36.
//!
//! ```text
//! add_pod -> worker per probe --(initial delay, period, thresholds)--> Results -> broadcast of changes
//! ```

pub mod grpc;
pub mod http;
mod observed;
pub mod results;
mod run;
mod worker;

use std::collections::{BTreeSet, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use component_base::tasks::message;
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodStatus, Probe};
use runtime::api::Runtime;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::events::KubeletRecorder;
use crate::pending::Pending;
use crate::pod;
use crate::pod_actions::{ProbeResult, ProbeResults};
use crate::status::generate::ReadinessResults;
use crate::status::manager::StatusManager;
use results::Results;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbeType {
    Liveness,
    Readiness,
    Startup,
}

impl ProbeType {
    /// As events and metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            ProbeType::Liveness => "Liveness",
            ProbeType::Readiness => "Readiness",
            ProbeType::Startup => "Startup",
        }
    }

    fn spec(self, container: &Container) -> Option<&Probe> {
        match self {
            ProbeType::Liveness => container.liveness_probe.as_ref(),
            ProbeType::Readiness => container.readiness_probe.as_ref(),
            ProbeType::Startup => container.startup_probe.as_ref(),
        }
    }

    /// What holds before the first answer.
    fn initial_value(self) -> ProbeResult {
        match self {
            ProbeType::Liveness => ProbeResult::Success,
            ProbeType::Readiness => ProbeResult::Failure,
            ProbeType::Startup => ProbeResult::Unknown,
        }
    }
}

/// The result of this probe changed; [`Results`] has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProbeUpdate {
    pub probe_type: ProbeType,
    pub pod_uid: String,
    pub container_id: String,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    pod_uid: String,
    container: String,
    probe_type: ProbeType,
}

struct Worker {
    stop: CancellationToken,
    /// Probe now: a startup probe has just passed.
    trigger: Arc<Notify>,
}

/// Shared; workers end with `shutdown` or with their pod.
pub struct ProbeManager {
    results: Arc<Results>,
    workers: Mutex<HashMap<Key, Worker>>,
    context: Arc<run::Context>,
    started: Instant,
    shutdown: CancellationToken,
}

impl ProbeManager {
    /// `updates`: every result that changed, for the sync loop.
    pub fn new(
        runtime: Arc<dyn Runtime>,
        status: Arc<StatusManager>,
        recorder: KubeletRecorder,
        updates: Arc<Pending<ProbeUpdate>>,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            results: Arc::new(Results::new(updates)),
            workers: Mutex::default(),
            context: Arc::new(run::Context {
                runtime,
                status,
                recorder,
            }),
            started: Instant::now(),
            shutdown,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Worker>> {
        self.workers.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Starts what is not running yet. Idempotent.
    pub fn add_pod(self: &Arc<Self>, pod: &Arc<Pod>) {
        let sidecars = pod::init_containers(pod)
            .iter()
            .filter(|c| pod::is_restartable_init(c));
        for container in sidecars.chain(pod::containers(pod)) {
            for probe_type in [
                ProbeType::Startup,
                ProbeType::Readiness,
                ProbeType::Liveness,
            ] {
                let Some(spec) = probe_type.spec(container) else {
                    continue;
                };
                let key = Key {
                    pod_uid: pod::uid(pod).to_owned(),
                    container: container.name.clone(),
                    probe_type,
                };
                let mut workers = self.lock();
                if workers.contains_key(&key) {
                    continue;
                }
                let worker = Worker {
                    stop: self.shutdown.child_token(),
                    trigger: Arc::default(),
                };
                let task = worker::Worker {
                    pod: pod.clone(),
                    container: container.clone(),
                    spec: spec.clone(),
                    probe_type,
                    results: self.results.clone(),
                    context: self.context.clone(),
                    trigger: worker.trigger.clone(),
                    stop: worker.stop.clone(),
                    kubelet_started: self.started,
                };
                workers.insert(key.clone(), worker);
                drop(workers);
                let (manager, pod) = (self.clone(), pod.clone());
                tokio::spawn(async move {
                    if let Err(panic) = AssertUnwindSafe(task.run()).catch_unwind().await {
                        // The pod's next round begins it anew.
                        let panic = message(panic.as_ref());
                        tracing::error!(pod = %pod::format(&pod), container = key.container, panic, "a probe's task panicked");
                    }
                    manager.lock().remove(&key);
                    observed::forget_probes(&pod, &key.container, key.probe_type);
                });
            }
        }
    }

    /// The pod is ending: it must not be restarted any more, but may still become unready.
    pub fn stop_liveness_and_startup(&self, pod: &Pod) {
        self.stop(pod::uid(pod), |t| t != ProbeType::Readiness);
    }

    pub fn remove_pod(&self, pod_uid: &str) {
        self.stop(pod_uid, |_| true);
    }

    fn stop(&self, pod_uid: &str, which: impl Fn(ProbeType) -> bool) {
        for (key, worker) in self.lock().iter() {
            if key.pod_uid == pod_uid && which(key.probe_type) {
                worker.stop.cancel();
            }
        }
    }

    /// Ends the probes of pods that are no longer wanted.
    pub fn cleanup_pods(&self, live: impl Fn(&str) -> bool) {
        let known: BTreeSet<String> = self.lock().keys().map(|key| key.pod_uid.clone()).collect();
        for uid in known.iter().filter(|uid| !live(uid)) {
            self.remove_pod(uid);
        }
    }

    /// A container has started for good: its other probes begin at once, not at their next turn.
    pub fn trigger_after_startup(&self, pod_uid: &str) {
        for (key, worker) in self.lock().iter() {
            if key.pod_uid == pod_uid && key.probe_type != ProbeType::Startup {
                worker.trigger.notify_one();
            }
        }
    }

    /// Containers that run and are not ready are asked at once, not at their next turn: one that has just started may be. `told`:
    /// what the workers go by from now on. Upstream: `UpdatePodStatus`, which asks before the status is set.
    pub fn trigger_unready(&self, pod_uid: &str, told: &PodStatus) {
        let is_unready = |status: &&ContainerStatus| {
            let runs = status.state.as_ref().is_some_and(|s| s.running.is_some());
            runs && status.started == Some(true) && !status.ready
        };
        let regular = told.container_statuses.iter().flatten();
        let all = regular.chain(told.init_container_statuses.iter().flatten());
        let workers = self.lock();
        for status in all.filter(is_unready) {
            let key = Key {
                pod_uid: pod_uid.to_owned(),
                container: status.name.clone(),
                probe_type: ProbeType::Readiness,
            };
            if let Some(worker) = workers.get(&key) {
                worker.trigger.notify_one();
            }
        }
    }

    pub fn results(&self) -> &Results {
        &self.results
    }
}

impl ProbeResults for ProbeManager {
    fn liveness(&self, container_id: &str) -> Option<ProbeResult> {
        self.results.get(ProbeType::Liveness, container_id)
    }
    fn startup(&self, container_id: &str) -> Option<ProbeResult> {
        self.results.get(ProbeType::Startup, container_id)
    }
}

impl ReadinessResults for ProbeManager {
    fn readiness(&self, container_id: &str) -> Option<ProbeResult> {
        self.results.get(ProbeType::Readiness, container_id)
    }
    fn startup(&self, container_id: &str) -> Option<ProbeResult> {
        self.results.get(ProbeType::Startup, container_id)
    }
}
