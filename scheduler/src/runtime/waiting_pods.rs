//! [`WaitingPods`]: pods that Permit plugins made wait.
//!
//! Upstream: pkg/scheduler/framework/runtime/waiting_pods_map.go, v1.36.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use component_base::clock::Clock;
use framework::{Code, PodInfo, Status, WaitingPod};
use tokio::sync::Notify;

struct State {
    pending: HashMap<&'static str, (Instant, Duration)>,
    decided: Option<Status>,
}

/// One waiting pod.
pub struct Waiting {
    pod: Arc<PodInfo>,
    state: Mutex<State>,
    changed: Notify,
    clock: Clock,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn decide(&self, status: Status) -> bool {
        let mut state = self.lock();
        let first = state.decided.is_none();
        if first {
            state.decided = Some(status);
            self.changed.notify_one();
        }
        first
    }

    async fn decided(&self) -> Status {
        loop {
            let next = {
                let state = self.lock();
                if let Some(status) = &state.decided {
                    return status.clone();
                }
                state
                    .pending
                    .iter()
                    .map(|(plugin, (deadline, timeout))| (*deadline, *timeout, *plugin))
                    .min()
            };
            let Some((deadline, timeout, plugin)) = next else {
                return Status::success();
            };
            let left = deadline.saturating_duration_since(self.clock.instant());
            tokio::select! {
                () = self.changed.notified() => {}
                () = self.clock.sleep(left) => {
                    let waited = component_base::duration::format(timeout);
                    self.reject(plugin, &format!("rejected due to timeout after waiting {waited} at plugin {plugin}"));
                }
            }
        }
    }
}

impl WaitingPod for Waiting {
    fn pod(&self) -> &Arc<PodInfo> {
        &self.pod
    }
    fn pending_plugins(&self) -> Vec<&'static str> {
        self.lock().pending.keys().copied().collect()
    }
    fn allow(&self, plugin: &'static str) {
        let all = {
            let mut state = self.lock();
            state.pending.remove(plugin);
            state.pending.is_empty()
        };
        if all {
            self.decide(Status::success());
        }
    }
    fn reject(&self, plugin: &'static str, message: &str) -> bool {
        self.decide(Status::unschedulable(message).by(plugin))
    }
    fn preempt(&self, plugin: &'static str, message: &str) -> bool {
        self.decide(Status::new(Code::Error, message).by(plugin))
    }
}

/// All of them, by UID.
pub struct WaitingPods {
    clock: Clock,
    pods: Mutex<BTreeMap<Arc<str>, Arc<Waiting>>>,
}

impl WaitingPods {
    /// None yet; how long pods wait is measured by this clock.
    pub fn new(clock: Clock) -> Self {
        WaitingPods {
            clock,
            pods: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Arc<Waiting>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod waits for these plugins, for these times at most.
    pub fn add(&self, pod: Arc<PodInfo>, waits: Vec<(&'static str, Duration)>) {
        let now = self.clock.instant();
        let pending = waits
            .into_iter()
            .map(|(plugin, timeout)| (plugin, (now + timeout, timeout)))
            .collect();
        let uid = Arc::clone(&pod.uid);
        let waiting = Waiting {
            pod,
            state: Mutex::new(State {
                pending,
                decided: None,
            }),
            changed: Notify::new(),
            clock: self.clock.clone(),
        };
        self.lock().insert(uid, Arc::new(waiting));
    }

    /// One by UID.
    pub fn get(&self, uid: &str) -> Option<Arc<Waiting>> {
        self.lock().get(uid).cloned()
    }

    /// Every one, in the order of their UIDs.
    pub fn list(&self) -> Vec<Arc<Waiting>> {
        self.lock().values().cloned().collect()
    }

    /// Waits for the decision on a pod; `None` when it does not wait.
    pub async fn wait(&self, uid: &str) -> Option<Status> {
        let waiting = self.get(uid)?;
        let status = waiting.decided().await;
        self.lock().remove(uid);
        Some(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_must_allow_one_may_reject_and_time_runs_out() {
        let pods = WaitingPods::new(Clock::real());
        let add = |name: &str| {
            let pod = framework::testing::make_pod(name).uid(name).info();
            pods.add(
                pod,
                vec![
                    ("A", Duration::from_secs(90)),
                    ("B", Duration::from_secs(99)),
                ],
            );
            pods.get(name).expect("added")
        };
        let pod = add("allowed");
        pod.allow("A");
        assert_eq!(pod.pending_plugins(), ["B"]);
        pod.allow("B");
        assert!(!pod.reject("A", "too late"));
        assert_eq!(pods.wait("allowed").await, Some(Status::success()));
        add("rejected").reject("B", "no");
        assert_eq!(
            pods.wait("rejected").await,
            Some(Status::unschedulable("no").by("B"))
        );
        add("late");
        let status = pods.wait("late").await.expect("waits");
        assert_eq!((status.code(), status.plugin()), (Code::Unschedulable, "A"));
        let message = "rejected due to timeout after waiting 1m30s at plugin A";
        assert_eq!(status.message(), message);
        assert!(pods.wait("late").await.is_none());
    }
}
