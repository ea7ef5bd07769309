//! One worker a pod UID.
//!
//! Owns: the state of every pod's work, and its task. Does no work itself: see [`PodSyncer`]. Upstream:
//! `pkg/kubelet/pod_workers.go`, v1.36.
//!
//! ```text
//! Syncing --(deleted, evicted, terminal phase)--> Terminating --(nothing runs)--> Terminated --(cleaned up)--> finished
//! ```
//!
//! **Invariant:** the arrows go one way; a UID that terminated never starts again. A static pod that comes back has a new worker.

mod task;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use component_base::tasks::spawn_vital;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::pod;
use crate::pod_status::PodStatus;
use crate::status::generate::ForcedFailure;
use crate::status::manager::PodDeletionSafety;

/// Where the work on a pod stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkState {
    Syncing,
    Terminating,
    Terminated,
}

/// What a worker is told.
#[derive(Clone, Debug)]
pub enum Update {
    /// The pod as its source now has it.
    Pod(Arc<Pod>),
    /// End the pod, for the reason given if any.
    Kill {
        pod: Arc<Pod>,
        grace_period_seconds: Option<i64>,
        forced: Option<ForcedFailure>,
    },
    /// End a pod that only the runtime knows.
    KillRuntimePod(PodStatus),
    /// Look again.
    Wake,
}

/// The state of one pod's work. Pure data; [`transition`] is the only writer.
#[derive(Clone, Debug, PartialEq)]
pub struct PodSyncStatus {
    pub state: WorkState,
    /// All is done; the task is gone.
    pub finished: bool,
    /// Of the end under way.
    pub grace_period_seconds: Option<i64>,
    pub forced: Option<ForcedFailure>,
    /// A static pod came back under the same UID while its former self was ending.
    pub restart_requested: bool,
    /// No source knows the pod.
    pub runtime_only: bool,
}

impl Default for PodSyncStatus {
    fn default() -> Self {
        Self {
            state: WorkState::Syncing,
            finished: false,
            grace_period_seconds: None,
            forced: None,
            restart_requested: false,
            runtime_only: false,
        }
    }
}

/// What the task must do about an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Nothing,
    Work,
    /// What is under way is no longer wanted.
    CancelAndWork,
    /// The end under way must go faster.
    ShortenGrace,
}

/// The shortest that anybody asked for: the end under way, the API server, whoever in the kubelet is in a hurry. Upstream:
/// `calculateEffectiveGracePeriod`.
fn effective_grace_period(status: &PodSyncStatus, pod: &Pod, wanted: Option<i64>) -> i64 {
    let own = if pod::is_deleted(pod) {
        pod.metadata.deletion_grace_period_seconds
    } else {
        None
    };
    let asked = [status.grace_period_seconds, own, wanted];
    let shortest = asked.into_iter().flatten().min();
    let of_spec = || pod.spec.as_ref()?.termination_grace_period_seconds;
    // Zero would let nothing end by itself.
    shortest.or_else(of_spec).unwrap_or(30).max(1)
}

/// A source named the pod anew, under the UID of one that it had taken back. Whether it is to begin anew when its former self is through.
fn comes_back(status: &mut PodSyncStatus, pod: &Pod) -> bool {
    let runs = status.state == WorkState::Syncing;
    // UIDs of the API server never come back.
    if runs || !pod::is_static(pod) || pod::is_deleted(pod) {
        return false;
    }
    status.restart_requested = true;
    true
}

/// The one place where a pod's state of work changes by an update.
pub fn transition(status: &mut PodSyncStatus, update: &Update) -> Effect {
    if status.finished {
        return Effect::Nothing;
    }
    let (pod, wanted, kill) = match update {
        Update::Wake => {
            return if status.state == WorkState::Syncing {
                Effect::Work
            } else {
                Effect::Nothing
            };
        }
        Update::KillRuntimePod(_) => {
            if status.state == WorkState::Syncing {
                status.state = WorkState::Terminating;
                status.runtime_only = true;
                return Effect::CancelAndWork;
            }
            return Effect::Nothing;
        }
        Update::Pod(pod) => (
            pod,
            None,
            pod::is_deleted(pod) || pod::is_terminal_phase(pod::phase(pod)),
        ),
        Update::Kill {
            pod,
            grace_period_seconds,
            forced,
        } => {
            if status.forced.is_none() {
                status.forced = forced.clone();
            }
            (pod, *grace_period_seconds, true)
        }
    };
    match status.state {
        WorkState::Terminated => Effect::Nothing,
        WorkState::Syncing if kill => {
            status.grace_period_seconds = Some(effective_grace_period(status, pod, wanted));
            status.state = WorkState::Terminating;
            Effect::CancelAndWork
        }
        WorkState::Syncing => Effect::Work,
        WorkState::Terminating => {
            let before = status.grace_period_seconds;
            let now = effective_grace_period(status, pod, wanted);
            if before.is_none_or(|b| now < b) {
                status.grace_period_seconds = Some(now);
                return Effect::ShortenGrace;
            }
            Effect::Nothing
        }
    }
}

/// What one round of work came to.
#[derive(Clone, Debug, Default)]
pub struct SyncOutcome {
    /// The pod has ended by itself: go on to terminating.
    pub terminal: bool,
    pub failed: bool,
    /// When to look again, if earlier than usual.
    pub retry_after: Option<Duration>,
}

/// Why a round must be repeated.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SyncError(pub String);

/// The work itself; the kubelet does it, a test pretends to.
#[async_trait]
pub trait PodSyncer: Send + Sync + 'static {
    async fn sync_pod(&self, pod: &Arc<Pod>, cancel: &CancellationToken) -> SyncOutcome;
    async fn sync_terminating_pod(
        &self,
        pod: &Arc<Pod>,
        forced: Option<&ForcedFailure>,
        grace_period_seconds: i64,
    ) -> Result<(), SyncError>;
    async fn sync_terminating_runtime_pod(&self, pod: &PodStatus) -> Result<(), SyncError>;
    async fn sync_terminated_pod(&self, pod: &Arc<Pod>) -> Result<(), SyncError>;
    /// The task ended: its traces may be cleaned up.
    fn pod_finished(&self, uid: &str);
}

pub(crate) struct Shared {
    state: Mutex<State>,
    notify: Notify,
    grace: watch::Sender<Option<i64>>,
}

struct State {
    status: PodSyncStatus,
    pod: Option<Arc<Pod>>,
    runtime_pod: Option<PodStatus>,
    pending: bool,
    cancel: CancellationToken,
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// All workers of the kubelet.
pub struct PodWorkers {
    workers: Mutex<HashMap<String, Arc<Shared>>>,
    syncer: OnceLock<Arc<dyn PodSyncer>>,
    resync: Duration,
    shutdown: CancellationToken,
    /// Counts the workers that are through.
    ended: watch::Sender<u64>,
}

impl PodWorkers {
    /// `resync`: how often a pod is looked at without a cause.
    pub fn new(resync: Duration, shutdown: CancellationToken) -> Self {
        Self {
            workers: Mutex::default(),
            syncer: OnceLock::new(),
            resync,
            shutdown,
            ended: watch::Sender::new(0),
        }
    }

    /// Once, before the first update.
    pub fn set_syncer(&self, syncer: Arc<dyn PodSyncer>) {
        // The second one is a bug of the wiring; the first stays.
        let _ = self.syncer.set(syncer);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Shared>>> {
        self.workers.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn get(&self, uid: &str) -> Option<Arc<Shared>> {
        self.lock().get(uid).cloned()
    }

    /// Hands the update to the pod's worker; starts one for a pod not known yet.
    pub fn update_pod(self: &Arc<Self>, uid: &str, update: Update) {
        let Some(syncer) = self.syncer.get() else {
            return;
        };
        let (shared, is_new) = {
            let mut workers = self.lock();
            match workers.get(uid) {
                Some(shared) => (shared.clone(), false),
                None if matches!(update, Update::Wake) => return,
                None => {
                    let shared = Arc::new(Shared {
                        state: Mutex::new(State {
                            status: PodSyncStatus::default(),
                            pod: None,
                            runtime_pod: None,
                            pending: false,
                            cancel: self.shutdown.child_token(),
                        }),
                        notify: Notify::new(),
                        grace: watch::Sender::new(None),
                    });
                    workers.insert(uid.to_owned(), shared.clone());
                    (shared, true)
                }
            }
        };
        {
            let mut state = shared.lock();
            match &update {
                Update::Pod(pod) | Update::Kill { pod, .. } => state.pod = Some(pod.clone()),
                Update::KillRuntimePod(pod) => state.runtime_pod = Some(pod.clone()),
                Update::Wake => {}
            }
            match transition(&mut state.status, &update) {
                Effect::Nothing => {}
                Effect::Work => state.pending = true,
                Effect::CancelAndWork => {
                    state.pending = true;
                    state.cancel.cancel();
                }
                Effect::ShortenGrace => {
                    shared.grace.send_replace(state.status.grace_period_seconds);
                }
            }
        }
        shared.notify.notify_one();
        if is_new {
            let task = task::Task {
                uid: uid.to_owned(),
                shared,
                workers: self.clone(),
                syncer: syncer.clone(),
            };
            spawn_vital("pod worker", task.run());
        }
    }

    /// A source named a static pod whose former self may be ending still: it begins anew then. Whether the former self is through already.
    /// Upstream: `restartRequested`.
    pub fn request_restart(&self, pod: &Pod) -> bool {
        let Some(shared) = self.get(pod::uid(pod)) else {
            return false;
        };
        let mut state = shared.lock();
        comes_back(&mut state.status, pod) && state.status.finished
    }

    pub fn wake(self: &Arc<Self>, uid: &str) {
        self.update_pod(uid, Update::Wake);
    }

    /// The state of the pod's work; `None` for one never heard of.
    pub fn status(&self, uid: &str) -> Option<PodSyncStatus> {
        self.get(uid).map(|s| s.lock().status.clone())
    }

    /// Every pod with a worker, finished ones included.
    pub fn statuses(&self) -> HashMap<String, PodSyncStatus> {
        self.lock()
            .iter()
            .map(|(uid, s)| (uid.clone(), s.lock().status.clone()))
            .collect()
    }

    pub fn is_termination_requested(&self, uid: &str) -> bool {
        self.status(uid)
            .is_some_and(|s| s.state != WorkState::Syncing)
    }

    /// Must the pod's containers and sandboxes go, now that nothing runs?
    pub fn is_finished(&self, uid: &str) -> bool {
        self.status(uid).is_some_and(|s| s.finished)
    }

    /// Resolves once nothing of the pod is left to be done, or if nothing is known of it; cancel-safe.
    pub async fn until_finished(&self, uid: &str) {
        let mut ended = self.ended.subscribe();
        let finished = |_: &u64| self.status(uid).is_none_or(|s| s.finished);
        // The sender is ours.
        let _ = ended.wait_for(finished).await;
    }

    /// Forgets a finished pod, and what was asked of it since.
    pub fn forget(&self, uid: &str) {
        let mut workers = self.lock();
        if workers.get(uid).is_some_and(|s| s.lock().status.finished) {
            workers.remove(uid);
        }
    }

    /// UIDs of other static pods of the same name that are ending: the pod's former selves, before its manifest was changed.
    pub fn former_selves(&self, uid: &str, full_name: &str) -> BTreeSet<String> {
        let workers = self.lock();
        let ending = workers.iter().filter(|(other, shared)| {
            let state = shared.lock();
            *other != uid
                && !state.status.finished
                && state.status.state != WorkState::Syncing
                && state
                    .pod
                    .as_ref()
                    .is_some_and(|p| pod::is_static(p) && pod::full_name(p) == full_name)
        });
        ending.map(|(other, _)| other.clone()).collect()
    }

    fn finished(&self) {
        // A static pod may have waited for the name.
        for shared in self.lock().values() {
            shared.notify.notify_one();
        }
        // Not under the lock: who waits looks at a worker.
        self.ended.send_modify(|n| *n = n.wrapping_add(1));
    }
}

impl PodDeletionSafety for PodWorkers {
    fn pod_could_have_running_containers(&self, uid: &str) -> bool {
        self.status(uid)
            .is_some_and(|s| s.state != WorkState::Terminated)
    }
}
