//! The shell: Nodes in, one patch of `spec.podCIDRs` out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use component_base::events::EventType;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use component_base::metrics::make;
use controller_runtime::{
    Action, ApiError, Controller, Executor, ObjectKey, Watches, run_controller,
};
use futures::FutureExt as _;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use prometheus::GaugeVec;
use serde_json::json;

use super::cidr_set::{CidrSet, CidrSetError};
use crate::context::{ControllerContext, Running, StartError};

/// Upstream's `cidrUpdateWorkers`.
const WORKERS: usize = 30;

/// Why a Node got no CIDR.
#[derive(Debug, thiserror::Error)]
pub enum NodeIpamError {
    #[error("failed to allocate cidr from cluster cidr at idx:{index}: {source}")]
    Allocate {
        index: usize,
        #[source]
        source: CidrSetError,
    },
    #[error("failed to mark cidr[{cidr}] at idx [{index}] as occupied for node: {node}: {source}")]
    Occupy {
        cidr: String,
        index: usize,
        node: String,
        #[source]
        source: CidrSetError,
    },
    #[error("failed to parse node {node}, CIDR {cidr}")]
    Parse { node: String, cidr: String },
    #[error(
        "node:{node} has an allocated cidr: {cidr} at index:{index} that does not exist in cluster cidrs configuration"
    )]
    NoSuchIndex {
        node: String,
        cidr: String,
        index: usize,
    },
    #[error(transparent)]
    Api(#[from] ApiError),
}

component_base::metrics! {
    struct Metrics {
        usage: GaugeVec = make::gauges(
            "node_ipam_controller_cidrset_usage_cidrs",
            "Gauge measuring percentage of allocated CIDRs.",
            &["clusterCIDR"],
        ),
        max: GaugeVec = make::gauges(
            "node_ipam_controller_cirdset_max_cidrs",
            "Maximum number of CIDRs that can be allocated.",
            &["clusterCIDR"],
        ),
    }
}

struct State {
    metrics: Metrics,
    sets: Vec<CidrSet>,
    /// What was taken for a Node (by UID) and is not yet seen in its spec.
    pending: HashMap<String, Vec<IpNet>>,
    /// Whether the CIDRs of all Nodes at start are marked.
    initialized: bool,
}

struct NodeIpam {
    nodes: Informer<Node>,
    state: Mutex<State>,
    executor: Executor,
}

/// Builds the controller; without `--allocate-node-cidrs` it does nothing.
///
/// # Errors
/// When the range cannot be divided, or no client be had.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let options = &context.options.node_ipam;
    if !options.allocate_node_cidrs {
        tracing::info!("Node CIDRs are not allocated: --allocate-node-cidrs is not set");
        return Ok(async move { context.shutdown.triggered().await }.boxed());
    }
    let metrics = Metrics::register(&context.metrics)?;
    let mut sets = Vec::new();
    for cidr in &options.cluster_cidrs {
        let mask_size = if cidr.addr().is_ipv4() {
            options.mask_size_ipv4
        } else {
            options.mask_size_ipv6
        };
        let mut set = CidrSet::new(*cidr, mask_size)
            .map_err(|e| StartError::Settings(format!("--cluster-cidr {cidr}: {e}")))?;
        for service in &options.service_cidrs {
            // Only what overlaps is taken; the rest is not in range.
            let _ = set.occupy(*service);
        }
        metrics
            .max
            .with_label_values(&[&cidr.to_string()])
            .set(set.max_cidrs() as f64);
        sets.push(set);
    }
    let nodes: Informer<Node> = context.informers.informer(InformerOptions::default());
    let executor = context.executor("node-controller", "cidrAllocator").await?;
    let state = Mutex::new(State {
        metrics,
        sets,
        pending: HashMap::new(),
        initialized: false,
    });
    let controller = Arc::new(NodeIpam {
        nodes: nodes.clone(),
        state,
        executor,
    });
    let queue = context.queues.queue("cidrallocator_node");
    let mut watches = Watches::new(context.shutdown.clone());
    let (add, handler) = (queue.clone(), controller.clone());
    watches.on(&nodes, move |event| match event {
        InformerEvent::Deleted(node) => handler.release(&node),
        InformerEvent::Added(node) | InformerEvent::Updated { new: node, .. } => {
            add.add(ObjectKey::of(&*node))
        }
    });
    Ok(run_controller(controller, queue, watches, WORKERS, context.shutdown).boxed())
}

fn name(node: &Node) -> String {
    node.metadata.name.clone().unwrap_or_default()
}
fn uid(node: &Node) -> &str {
    node.metadata.uid.as_deref().unwrap_or_default()
}
fn pod_cidrs(node: &Node) -> &[String] {
    node.spec
        .as_ref()
        .and_then(|s| s.pod_cidrs.as_deref())
        .unwrap_or_default()
}

impl State {
    fn occupy(&mut self, node: &Node) -> Result<(), NodeIpamError> {
        for (index, cidr) in pod_cidrs(node).iter().enumerate() {
            let parsed: IpNet = cidr.parse().map_err(|_| NodeIpamError::Parse {
                node: name(node),
                cidr: cidr.clone(),
            })?;
            let set = self
                .sets
                .get_mut(index)
                .ok_or_else(|| NodeIpamError::NoSuchIndex {
                    node: name(node),
                    cidr: cidr.clone(),
                    index,
                })?;
            set.occupy(parsed).map_err(|source| NodeIpamError::Occupy {
                cidr: cidr.clone(),
                index,
                node: name(node),
                source,
            })?;
        }
        Ok(())
    }

    /// The CIDRs of a Node that has none: what was taken for it before, or new ones.
    fn allocate(&mut self, node: &Node) -> Result<Vec<IpNet>, NodeIpamError> {
        if let Some(taken) = self.pending.get(uid(node)) {
            return Ok(taken.clone());
        }
        let mut taken = Vec::new();
        for index in 0..self.sets.len() {
            match self.sets[index].allocate_next() {
                Ok(cidr) => taken.push(cidr),
                Err(source) => {
                    self.free(&taken);
                    return Err(NodeIpamError::Allocate { index, source });
                }
            }
        }
        self.pending.insert(uid(node).to_string(), taken.clone());
        Ok(taken)
    }

    fn free(&mut self, cidrs: &[IpNet]) {
        for (set, cidr) in self.sets.iter_mut().zip(cidrs) {
            // It was taken out of this very set.
            let _ = set.release(*cidr);
        }
    }

    /// The Node has its CIDRs: marks them, and frees what was taken for it in vain.
    fn settle(&mut self, node: &Node) -> Result<(), NodeIpamError> {
        if let Some(taken) = self.pending.remove(uid(node)) {
            self.free(&taken);
        }
        self.occupy(node)
    }

    fn record_usage(&self) {
        for set in &self.sets {
            self.metrics
                .usage
                .with_label_values(&[&set.cluster().to_string()])
                .set(set.usage());
        }
    }
}

impl NodeIpam {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the lock is held")
    }

    fn release(&self, node: &Node) {
        let mut state = self.lock();
        if let Some(taken) = state.pending.remove(uid(node)) {
            state.free(&taken);
        }
        let cidrs: Vec<IpNet> = pod_cidrs(node)
            .iter()
            .filter_map(|c| c.parse().ok())
            .collect();
        state.free(&cidrs);
        state.record_usage();
    }

    /// The Node may have gone before anything was taken for it: its deletion, which was handled then, freed nothing.
    fn free_if_gone(&self, key: &ObjectKey, node: &Node) {
        let is_there = |found: &Arc<Node>| uid(found) == uid(node);
        if self.nodes.get_key(key).as_ref().is_some_and(is_there) {
            return;
        }
        let mut state = self.lock();
        if let Some(taken) = state.pending.remove(uid(node)) {
            state.free(&taken);
        }
    }

    /// Marks what all Nodes have, before the first allocation. A Node with a CIDR out of range is an error of that Node alone.
    fn initialize(&self) {
        let mut state = self.lock();
        if state.initialized {
            return;
        }
        for node in self.nodes.list() {
            if let Err(error) = state.occupy(&node) {
                tracing::error!(node = name(&node), %error, "The node's CIDRs cannot be marked");
            }
        }
        state.initialized = true;
    }
}

#[async_trait]
impl Controller for NodeIpam {
    type Key = ObjectKey;
    type Error = NodeIpamError;

    fn name(&self) -> &'static str {
        "node-ipam-controller"
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, NodeIpamError> {
        self.initialize();
        let Some(node) = self.nodes.get_key(key) else {
            return Ok(None);
        };
        if node.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        if !pod_cidrs(&node).is_empty() {
            let mut state = self.lock();
            let result = state.settle(&node);
            state.record_usage();
            return result.map(|()| None);
        }
        let status_event = |status: &'static str| {
            let message = format!("Node {} status is now: {status}", key.name);
            Action::event(&*node, EventType::Normal, status, message)
        };
        let allocated = self.lock().allocate(&node);
        let cidrs = match allocated {
            Ok(cidrs) => cidrs,
            Err(error) => {
                self.executor
                    .execute(&status_event("CIDRNotAvailable"))
                    .await?;
                return Err(error);
            }
        };
        let texts: Vec<String> = cidrs.iter().map(ToString::to_string).collect();
        let patch = json!({ "metadata": { "uid": uid(&node) }, "spec": { "podCIDR": texts.first(), "podCIDRs": texts } });
        let patch = Action::strategic_patch::<Node>("", &key.name, patch);
        let patched = self.executor.execute(&patch).await;
        if patched.is_err() {
            self.free_if_gone(key, &node);
        }
        match patched {
            Ok(_) => {
                tracing::info!(node = key.name, cidrs = texts.join(","), "Set node PodCIDR");
                self.lock().record_usage();
                Ok(None)
            }
            // The taken CIDRs stay with a Node that is there: the write may have happened. The next try, or its deletion, settles them.
            Err(ApiError::NotFound(_)) => Ok(None),
            Err(error) => {
                self.executor
                    .execute(&status_event("CIDRAssignmentFailed"))
                    .await?;
                Err(error.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::NodeSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    fn node(name: &str, cidrs: &[&str]) -> Node {
        Node {
            metadata: ObjectMeta {
                name: Some(name.into()),
                uid: Some(format!("uid-{name}")),
                ..Default::default()
            },
            spec: Some(NodeSpec {
                pod_cidrs: Some(cidrs.iter().map(ToString::to_string).collect()),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn a_node_that_went_before_its_cidr_was_taken_keeps_none() {
        let api = controller_runtime::testing::FakeApi::new();
        let (feed, nodes) = crate::testing::Feed::new();
        let set = CidrSet::new("10.0.0.0/24".parse().unwrap(), 24).unwrap();
        let controller = NodeIpam {
            nodes,
            state: Mutex::new(State {
                metrics: Metrics::unread(),
                sets: vec![set],
                pending: HashMap::new(),
                initialized: true,
            }),
            executor: api.executor(),
        };
        let (key, old) = (ObjectKey::new("", "a"), node("a", &[]));
        let mut new = old.clone();
        new.metadata.uid = Some("another".into());
        feed.apply(old.clone());
        crate::testing::settle().await;
        // A worker read the Node; then it goes, and a namesake comes.
        controller.release(&old);
        controller.lock().allocate(&old).unwrap();
        controller.free_if_gone(&key, &old);
        assert!(controller.lock().allocate(&new).is_err(), "it is there");
        feed.delete(old.clone());
        feed.apply(new.clone());
        crate::testing::settle().await;
        controller.free_if_gone(&key, &old);
        assert!(controller.lock().allocate(&new).is_ok());
    }

    #[test]
    fn a_stale_cache_takes_no_second_cidr() {
        let sets = vec![CidrSet::new("10.0.0.0/22".parse().unwrap(), 24).unwrap()];
        let mut state = State {
            metrics: Metrics::unread(),
            sets,
            pending: HashMap::new(),
            initialized: true,
        };
        let first = state.allocate(&node("a", &[])).unwrap();
        assert_eq!(state.allocate(&node("a", &[])).unwrap(), first);
        let second = state.allocate(&node("b", &[])).unwrap();
        assert_ne!(first, second);
        state.settle(&node("a", &["10.0.0.0/24"])).unwrap();
        // Another writer won: what was taken for b is free again, what it has is marked.
        state.settle(&node("b", &["10.0.3.0/24"])).unwrap();
        let left: Vec<_> = ["c", "d"]
            .iter()
            .map(|n| state.allocate(&node(n, &[])).unwrap()[0].to_string())
            .collect();
        assert_eq!(left, ["10.0.2.0/24", "10.0.1.0/24"]);
        assert!(state.allocate(&node("e", &[])).is_err());
    }
}
