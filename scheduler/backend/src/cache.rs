//! [`Cache`]: the nodes and the pods on them, those assumed (decided, but not yet confirmed by the API server) included.
//!
//! ```text
//!             assume                    add (the API server confirms)
//!   (unknown) ------> Assumed ---------------------------------> Added -- remove --> (unknown)
//!       ^                |            update: Added -> Added
//!       +----- forget ---+            add without assume: (unknown) -> Added
//! ```
//!
//! Owns the arithmetic of what is where, and the list of nodes that changed since the last snapshot. Never decides anything. Upstream:
//! pkg/scheduler/backend/cache, v1.36 (which does not expire assumed pods either: they go when confirmed, forgotten or deleted).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use framework::{NodeInfo, PodInfo, Snapshot};
use k8s_openapi::api::core::v1::Node;

#[cfg(test)]
mod tests;

/// What contradicts the cache. Not retried: the caller logs it and goes on.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CacheError {
    /// The pod is there already.
    #[error("pod {pod}({uid}) is in the cache, so can't be assumed")]
    AlreadyPresent {
        /// namespace/name
        pod: String,
        /// Its UID.
        uid: String,
    },
    /// The pod was not assumed, or its assumption was confirmed.
    #[error("pod {pod}({uid}) wasn't assumed so cannot be forgotten")]
    NotAssumed {
        /// namespace/name
        pod: String,
        /// Its UID.
        uid: String,
    },
    /// The pod is unknown.
    #[error("pod {uid} is not found in scheduler cache, so cannot be updated or removed from it")]
    UnknownPod {
        /// Its UID.
        uid: String,
    },
    /// The node is unknown.
    #[error("node {node} is not found")]
    UnknownNode {
        /// Its name.
        node: String,
    },
}

struct PodState {
    pod: Arc<PodInfo>,
    node: Arc<str>,
    assumed: bool,
}

#[derive(Default)]
struct State {
    nodes: HashMap<Arc<str>, Arc<NodeInfo>>,
    pods: HashMap<Arc<str>, PodState>,
    num_assumed: usize,
    changed: Vec<Arc<str>>,
    is_changed: HashSet<Arc<str>>,
    generation: u64,
}

/// Nodes and pods, shared by the event handlers, the scheduling loop and the binding tasks.
#[derive(Default)]
pub struct Cache {
    state: Mutex<State>,
}

/// How much there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheCounts {
    /// Nodes the API server told of.
    pub nodes: usize,
    /// Pods with a node, assumed ones included.
    pub pods: usize,
    /// Assumed pods.
    pub assumed_pods: usize,
}

impl Cache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings `snapshot` up to date; costs what changed since the last call. One snapshot per cache.
    pub fn update_snapshot(&self, snapshot: &mut Snapshot) {
        let mut state = self.lock();
        let changed = std::mem::take(&mut state.changed);
        state.is_changed.clear();
        for name in &changed {
            match state.nodes.get(name) {
                Some(node) => snapshot.set_node(Arc::clone(node)),
                None => snapshot.remove_node(name),
            }
        }
        // Keeps the room of the list for the next round.
        state.changed = changed;
        state.changed.clear();
    }

    /// Counts a decided pod as being on `node`, though the API server does not know yet.
    ///
    /// # Errors
    /// When the pod is in the cache already.
    pub fn assume_pod(&self, pod: Arc<PodInfo>, node: &str) -> Result<(), CacheError> {
        let mut state = self.lock();
        if state.pods.contains_key(&pod.uid) {
            return Err(CacheError::AlreadyPresent {
                pod: key(&pod),
                uid: pod.uid.to_string(),
            });
        }
        state.num_assumed += 1;
        state.put_pod(pod, node, true);
        Ok(())
    }

    /// Takes an assumption back.
    ///
    /// # Errors
    /// When the pod is not assumed.
    pub fn forget_pod(&self, pod: &PodInfo) -> Result<(), CacheError> {
        let mut state = self.lock();
        if !state.pods.get(&pod.uid).is_some_and(|p| p.assumed) {
            return Err(CacheError::NotAssumed {
                pod: key(pod),
                uid: pod.uid.to_string(),
            });
        }
        state.take_pod(&pod.uid);
        Ok(())
    }

    /// The API server says the pod is on its `spec.nodeName`; confirms an assumption, or corrects it.
    pub fn add_pod(&self, pod: Arc<PodInfo>) {
        let mut state = self.lock();
        if let Some(known) = state.pods.get(&pod.uid) {
            let node = node_name(&pod);
            if known.assumed && *known.node != *node {
                tracing::info!(
                    pod = key(&pod),
                    assumed = &*known.node,
                    node,
                    "Pod was added to a different node than it was assumed"
                );
            }
            state.take_pod(&Arc::clone(&pod.uid));
        }
        let node = node_name(&pod).to_owned();
        state.put_pod(pod, &node, false);
    }

    /// A pod that is on a node changed.
    ///
    /// # Errors
    /// When the pod is unknown or only assumed.
    pub fn update_pod(&self, pod: Arc<PodInfo>) -> Result<(), CacheError> {
        let mut state = self.lock();
        let Some(known) = state.pods.get(&pod.uid).filter(|p| !p.assumed) else {
            return Err(CacheError::UnknownPod {
                uid: pod.uid.to_string(),
            });
        };
        let node = node_name(&pod).to_owned();
        if *known.node != *node {
            tracing::error!(
                pod = key(&pod),
                old = &*known.node,
                new = node,
                "Pod updated on a different node than previously added to"
            );
        }
        state.take_pod(&Arc::clone(&pod.uid));
        state.put_pod(pod, &node, false);
        Ok(())
    }

    /// A pod is gone, assumed or not.
    ///
    /// # Errors
    /// When the pod is unknown.
    pub fn remove_pod(&self, uid: &str) -> Result<(), CacheError> {
        let mut state = self.lock();
        state
            .take_pod(uid)
            .map(|_| ())
            .ok_or_else(|| CacheError::UnknownPod {
                uid: uid.to_owned(),
            })
    }

    /// The pod as the cache has it.
    pub fn get_pod(&self, uid: &str) -> Option<Arc<PodInfo>> {
        self.lock().pods.get(uid).map(|p| Arc::clone(&p.pod))
    }

    /// The pod as the cache has it, and the node it counts on.
    pub fn get_placed_pod(&self, uid: &str) -> Option<(Arc<PodInfo>, Arc<str>)> {
        let state = self.lock();
        let known = state.pods.get(uid)?;
        Some((Arc::clone(&known.pod), Arc::clone(&known.node)))
    }

    /// Is the pod assumed (and not confirmed)?
    pub fn is_assumed_pod(&self, uid: &str) -> bool {
        self.lock().pods.get(uid).is_some_and(|p| p.assumed)
    }

    /// A node appeared; pods that came before it are on it already.
    pub fn add_node(&self, node: Arc<Node>) {
        let mut state = self.lock();
        let name: Arc<str> = node.metadata.name.as_deref().unwrap_or_default().into();
        state.change(&name, |info| info.set_node(node));
    }

    /// A node changed.
    pub fn update_node(&self, node: Arc<Node>) {
        self.add_node(node);
    }

    /// A node is gone. Its pods stay (as on an imaginary node) until their own events come, and return to view when it does.
    ///
    /// # Errors
    /// When the node is unknown.
    pub fn remove_node(&self, name: &str) -> Result<(), CacheError> {
        let mut state = self.lock();
        let Some((name, info)) = state
            .nodes
            .get_key_value(name)
            .filter(|(_, n)| n.exists())
            .map(|(k, n)| (Arc::clone(k), Arc::clone(n)))
        else {
            return Err(CacheError::UnknownNode {
                node: name.to_owned(),
            });
        };
        if info.pods().is_empty() {
            state.nodes.remove(&name);
            state.mark(&name);
        } else {
            drop(info);
            state.change(&name, NodeInfo::remove_node);
        }
        Ok(())
    }

    /// How much there is.
    pub fn counts(&self) -> CacheCounts {
        let state = self.lock();
        CacheCounts {
            nodes: state.nodes.values().filter(|n| n.exists()).count(),
            pods: state.pods.len(),
            assumed_pods: state.num_assumed,
        }
    }

    /// Every node with its pods, and the UIDs of assumed pods, for comparison with the API server's.
    pub fn dump(&self) -> (Vec<Arc<NodeInfo>>, Vec<Arc<str>>) {
        let state = self.lock();
        let assumed = state
            .pods
            .iter()
            .filter(|(_, p)| p.assumed)
            .map(|(uid, _)| Arc::clone(uid))
            .collect();
        (state.nodes.values().cloned().collect(), assumed)
    }
}

impl State {
    fn put_pod(&mut self, pod: Arc<PodInfo>, node: &str, assumed: bool) {
        let name = match self.nodes.get_key_value(node) {
            Some((name, _)) => Arc::clone(name),
            None => node.into(),
        };
        self.pods.insert(
            Arc::clone(&pod.uid),
            PodState {
                pod: Arc::clone(&pod),
                node: Arc::clone(&name),
                assumed,
            },
        );
        self.change(&name, |info| info.add_pod(pod));
    }

    fn take_pod(&mut self, uid: &str) -> Option<PodState> {
        let known = self.pods.remove(uid)?;
        self.num_assumed -= usize::from(known.assumed);
        self.change(&Arc::clone(&known.node), |info| {
            if let Err(error) = info.remove_pod(uid) {
                tracing::error!(%error, "the cache and its node disagree");
            }
        });
        if self
            .nodes
            .get(&known.node)
            .is_some_and(|n| !n.exists() && n.pods().is_empty())
        {
            self.nodes.remove(&known.node);
        }
        Some(known)
    }

    fn change(&mut self, name: &Arc<str>, change: impl FnOnce(&mut NodeInfo)) {
        self.generation += 1;
        let node = self
            .nodes
            .entry(Arc::clone(name))
            .or_insert_with(|| Arc::new(NodeInfo::imaginary(Arc::clone(name))));
        let info = Arc::make_mut(node);
        change(info);
        info.set_generation(self.generation);
        self.mark(name);
    }

    fn mark(&mut self, name: &Arc<str>) {
        if self.is_changed.insert(Arc::clone(name)) {
            self.changed.push(Arc::clone(name));
        }
    }
}

fn node_name(pod: &PodInfo) -> &str {
    pod.spec().node_name.as_deref().unwrap_or_default()
}

fn key(pod: &PodInfo) -> String {
    format!("{}/{}", pod.namespace(), pod.name())
}
