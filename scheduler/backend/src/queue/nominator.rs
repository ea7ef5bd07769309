//! [`Nominator`]: which pods are promised room on which node (after preemption), until they are scheduled or deleted.
//!
//! Upstream: pkg/scheduler/backend/queue/nominator.go, v1.36.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use framework::{NominatingInfo, PodInfo};

#[derive(Default)]
struct State {
    by_node: HashMap<String, Vec<Arc<PodInfo>>>,
    node_of: HashMap<Arc<str>, String>,
}

/// Nominated pods by node.
#[derive(Default)]
pub struct Nominator {
    state: Mutex<State>,
    count: AtomicUsize,
}

impl Nominator {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No pod is nominated anywhere (the usual case, answered without a lock).
    pub fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Nominates; `Noop` takes what the pod's status says, an empty override forgets.
    pub fn add(&self, pod: &Arc<PodInfo>, nominating: &NominatingInfo) {
        let node = match nominating {
            NominatingInfo::Override(node) => node.as_str(),
            NominatingInfo::Noop => pod.nominated_node_name(),
        };
        let mut state = self.lock();
        state.delete(&pod.uid);
        if !node.is_empty() {
            state.node_of.insert(Arc::clone(&pod.uid), node.to_owned());
            state
                .by_node
                .entry(node.to_owned())
                .or_default()
                .push(Arc::clone(pod));
        }
        self.count.store(state.node_of.len(), Ordering::Release);
    }

    /// A pending pod changed. A nomination that only this process knows of (its status write is under way) is kept.
    pub fn update(&self, old_nominated_node: &str, pod: &Arc<PodInfo>) {
        let kept = if old_nominated_node.is_empty() && pod.nominated_node_name().is_empty() {
            self.lock().node_of.get(&pod.uid).cloned()
        } else {
            None
        };
        self.add(
            pod,
            &kept.map_or(NominatingInfo::Noop, NominatingInfo::Override),
        );
    }

    /// Forgets the pod's nomination.
    pub fn delete(&self, uid: &str) {
        if self.is_empty() {
            return;
        }
        let mut state = self.lock();
        state.delete(uid);
        self.count.store(state.node_of.len(), Ordering::Release);
    }

    /// All nominated pods.
    pub fn pods(&self) -> Vec<Arc<PodInfo>> {
        if self.is_empty() {
            return Vec::new();
        }
        self.lock().by_node.values().flatten().cloned().collect()
    }

    /// The pods nominated to a node.
    pub fn pods_for_node(&self, node: &str) -> Vec<Arc<PodInfo>> {
        if self.is_empty() {
            return Vec::new();
        }
        self.lock().by_node.get(node).cloned().unwrap_or_default()
    }

    /// The node the pod is nominated to.
    pub fn node_of(&self, uid: &str) -> Option<String> {
        self.lock().node_of.get(uid).cloned()
    }

    /// Every node with nominated pods.
    pub fn nodes(&self) -> Vec<(String, Vec<Arc<PodInfo>>)> {
        if self.is_empty() {
            return Vec::new();
        }
        self.lock()
            .by_node
            .iter()
            .map(|(node, pods)| (node.clone(), pods.clone()))
            .collect()
    }
}

impl State {
    fn delete(&mut self, uid: &str) {
        let Some(node) = self.node_of.remove(uid) else {
            return;
        };
        if let Some(pods) = self.by_node.get_mut(&node) {
            pods.retain(|pod| *pod.uid != *uid);
            if pods.is_empty() {
                self.by_node.remove(&node);
            }
        }
    }
}
