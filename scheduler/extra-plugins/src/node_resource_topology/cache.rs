//! [`Cache`]: what is held to be free on a node's NUMA nodes between two of its reports. No clock, no scheduler.
//!
//! Three ways, as upstream's: take the last report as it is; pass over nodes a pod is on its way to; or count what was placed since against every NUMA node until a
//! report is about the very pods that are known here (its fingerprint says so). Upstream: pkg/noderesourcetopology/cache. DIFFERS: a report is matched when it or
//! a pod of its node changes, not each period; a pod that changes on its node without beginning or ending to run is no news; pods that have ended do not count, as
//! kubelets report none since 1.34.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use component_helpers::pod::{key, node_name, phase, uid};
use component_helpers::resources::{Amounts, PodResourcesOptions, pod_requests};
use framework::Object;
use k8s_openapi::api::core::v1::Pod;

use super::fingerprint;
use super::topology::{Topology, has_exclusive_resources};
use crate::args::{
    CacheResyncMethod, CacheResyncScope, ForeignPodsDetectMode, NodeResourceTopologyCache,
};

/// Which of the ways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// The last report counts.
    Passthrough,
    /// A node that a pod is on its way to is passed over.
    DiscardReserved,
    /// What was placed since counts everywhere.
    OverReserve {
        /// Details.
        settings: NodeResourceTopologyCache,
        /// Pods of this `schedulerName` are placed here; all others are foreign.
        scheduler_name: String,
    },
}

/// What is known of a node now.
#[derive(Debug, Clone, PartialEq)]
pub enum Known {
    /// It makes no reports: NUMA nodes do not matter.
    Nothing,
    /// What is known is stale: no pod goes there.
    Stale,
    /// This is free.
    Topology(Arc<Topology>),
}

#[derive(Default)]
struct Node {
    /// What counts.
    accepted: Option<Arc<Topology>>,
    /// The last report, where it does not count yet.
    pending: Option<Arc<Topology>>,
    /// What pods on their way ask for, or placed since the accepted report; by UID.
    reserved: BTreeMap<Arc<str>, Amounts>,
    /// Pods with this node that run, by UID: those a report knows of.
    running: HashMap<String, Arc<Pod>>,
    /// A pod did not fit here: what is known may be too little.
    maybe_over_reserved: bool,
    foreign: bool,
}

/// See the module.
pub struct Cache {
    mode: Mode,
    nodes: HashMap<String, Node>,
}

impl Cache {
    /// An empty one.
    pub fn new(mode: Mode) -> Self {
        Cache {
            mode,
            nodes: HashMap::new(),
        }
    }

    /// Does it want to hear of pods?
    pub fn hears_pods(&self) -> bool {
        matches!(self.mode, Mode::OverReserve { .. })
    }

    /// A node made a report. True when what is known of the node changed.
    pub fn report(&mut self, object: &Object) -> bool {
        let topology = match Topology::of(object) {
            Ok(topology) => Arc::new(topology),
            Err(error) => {
                let node = object.name();
                tracing::error!(node, %error, "a NodeResourceTopology cannot be read");
                return false;
            }
        };
        let node = self.nodes.entry(object.name().to_owned()).or_default();
        let Mode::OverReserve { settings, .. } = &self.mode else {
            let changed = node.accepted.as_ref() != Some(&topology);
            node.accepted = Some(topology);
            return changed;
        };
        let settings_changed = node
            .accepted
            .as_ref()
            .is_some_and(|known| known.manager != topology.manager);
        let at_once = settings_changed && settings.resync_scope == CacheResyncScope::All;
        if node.accepted.is_none() || at_once {
            node.accept(topology);
            return true;
        }
        node.pending = Some(topology);
        self.resync(object.name())
    }

    /// A node makes no reports any more.
    pub fn forget(&mut self, name: &str) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.accepted = None;
            node.pending = None;
            node.foreign = false;
        }
        self.drop_if_empty(name);
    }

    fn drop_if_empty(&mut self, name: &str) {
        let empty = |node: &Node| {
            node.accepted.is_none() && node.reserved.is_empty() && node.running.is_empty()
        };
        if self.nodes.get(name).is_some_and(empty) {
            self.nodes.remove(name);
        }
    }

    /// A pod before and after. The node of which something changed, if any.
    pub fn pod(&mut self, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>) -> Option<String> {
        let Mode::OverReserve {
            settings,
            scheduler_name,
        } = &self.mode
        else {
            return None;
        };
        let (detect, scheduler_name) = (settings.foreign_pods_detect, scheduler_name.clone());
        let pod = new.or(old)?;
        let name = node_name(pod)?.to_owned();
        let node = self.nodes.entry(name.clone()).or_default();
        let was_running = node.running.contains_key(uid(pod));
        let runs = new.is_some() && !matches!(phase(pod), "" | "Pending");
        if runs {
            node.running.insert(uid(pod).to_owned(), Arc::clone(pod));
        } else {
            node.running.remove(uid(pod));
        }
        if new.is_none() {
            node.reserved.remove(uid(pod));
        }
        let had_node = |pod: &Arc<Pod>| node_name(pod).is_some();
        let news = was_running != runs || new.is_none() || !old.is_some_and(had_node);
        if !news {
            return None;
        }
        let by_others = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.scheduler_name.as_deref())
            .is_some_and(|by| by != scheduler_name);
        if by_others && let Some(accepted) = &node.accepted {
            let exclusive = || has_exclusive_resources(pod, &accepted.resources);
            node.foreign |= match detect {
                ForeignPodsDetectMode::None => false,
                ForeignPodsDetectMode::All => true,
                ForeignPodsDetectMode::OnlyExclusiveResources => exclusive(),
            };
        }
        self.resync(&name);
        self.drop_if_empty(&name);
        Some(name)
    }

    /// What is known of a node.
    pub fn known(&self, name: &str) -> Known {
        let Some(node) = self.nodes.get(name) else {
            return Known::Nothing;
        };
        if self.mode == Mode::DiscardReserved && !node.reserved.is_empty() {
            return Known::Stale;
        }
        let Some(accepted) = &node.accepted else {
            return Known::Nothing;
        };
        if node.foreign {
            return Known::Stale;
        }
        if !self.hears_pods() || node.reserved.is_empty() {
            return Known::Topology(Arc::clone(accepted));
        }
        let mut topology = Topology::clone(accepted);
        node.reserved
            .values()
            .for_each(|taken| topology.take_everywhere(taken));
        Known::Topology(Arc::new(topology))
    }

    /// A pod did not fit on the node's NUMA nodes. True when a newer report counts from now on.
    pub fn did_not_fit(&mut self, name: &str) -> bool {
        match self.nodes.get_mut(name) {
            Some(node) if !node.maybe_over_reserved && !node.reserved.is_empty() => {
                node.maybe_over_reserved = true;
                self.resync(name)
            }
            _ => false,
        }
    }

    /// A pod is on its way to the node.
    pub fn reserve(&mut self, name: &str, pod: &Pod, pod_uid: &Arc<str>) {
        let node = match self.mode {
            Mode::Passthrough => return,
            Mode::DiscardReserved => self.nodes.entry(name.to_owned()).or_default(),
            Mode::OverReserve { .. } => {
                let known = self.nodes.get_mut(name);
                match known.filter(|node| node.accepted.is_some()) {
                    Some(node) => node,
                    None => return,
                }
            }
        };
        let requests = pod_requests(pod, &PodResourcesOptions::default());
        node.reserved.insert(Arc::clone(pod_uid), requests);
    }

    /// It does not come. True when something changed.
    pub fn unreserve(&mut self, name: &str, pod_uid: &str) -> bool {
        let node = self.nodes.get_mut(name);
        let removed = node.is_some_and(|node| node.reserved.remove(pod_uid).is_some());
        self.drop_if_empty(name);
        removed
    }

    /// It is bound. True when something changed.
    pub fn bound(&mut self, name: &str, pod_uid: &str) -> bool {
        self.mode == Mode::DiscardReserved && self.unreserve(name, pod_uid)
    }

    /// Takes the pending report over if it is about the pods that are known here, and if it is needed. True when it was.
    fn resync(&mut self, name: &str) -> bool {
        let Mode::OverReserve { settings, .. } = &self.mode else {
            return false;
        };
        let Some(node) = self.nodes.get_mut(name) else {
            return false;
        };
        let Some(pending) = node.pending.clone() else {
            return false;
        };
        let Some(expected) = &pending.fingerprint else {
            return false;
        };
        let exclusive_only = match settings.resync_method {
            CacheResyncMethod::All => false,
            CacheResyncMethod::OnlyExclusiveResources => true,
            CacheResyncMethod::Autodetect => pending.fingerprint_of_exclusive,
        };
        let counts =
            |pod: &&Arc<Pod>| !exclusive_only || has_exclusive_resources(pod, &pending.resources);
        let pods: BTreeSet<String> = node
            .running
            .values()
            .filter(counts)
            .map(|p| key(p))
            .collect();
        let names = pods.iter().filter_map(|key| key.split_once('/'));
        if fingerprint::sign(names) != *expected {
            return false;
        }
        node.accept(pending);
        true
    }
}

impl Node {
    /// Forgets what was held beside reports: the report knows it all.
    fn accept(&mut self, topology: Arc<Topology>) {
        self.accepted = Some(topology);
        self.pending = None;
        // One on its way is in no report yet.
        let running = &self.running;
        self.reserved.retain(|uid, _| !running.contains_key(&**uid));
        self.maybe_over_reserved = false;
        self.foreign = false;
    }
}
