//! The pass over all Nodes: health, conditions, Pods of dead Nodes, zones. One task owns its state.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use component_base::clock::Clock;
use component_base::events::EventType;
use component_base::informer::Informer;
use component_base::metrics::make;
use component_helpers::node::get_zone_key;
use component_helpers::pod as pod_helpers;
use controller_runtime::{Action, ApiError, Executor};
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod};
use prometheus::{GaugeVec, IntCounterVec};
use serde_json::json;
use tokio::sync::Notify;

use super::evictor::Evictor;
use super::health::{Checked, Grace, NodeHealth, check, has_moved};
use super::taints::{Swap, has_opposite, is_tainted, no_execute};
use super::zone::{Rates, ZoneState, handle_disruption};

/// Nodes looked at at once (upstream's `nodeUpdateWorkerSize`).
const PARALLEL: usize = 8;
/// Tries of one write in a pass.
const RETRIES: usize = 5;
/// The index of Pods by Node.
pub(super) const BY_NODE: &str = "spec.nodeName";
/// Where kubelets' leases are.
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Nodes with this label do not count for disruption.
const EXCLUDE_DISRUPTION: &str = "node.kubernetes.io/exclude-disruption";

component_base::metrics! {
    pub(super) struct Metrics {
        evictions: IntCounterVec = make::counters(
            "node_collector_evictions_total",
            "Number of Node evictions that happened since current instance of NodeController started.",
            &["zone"],
        ),
        zone_size: GaugeVec = make::gauges(
            "node_collector_zone_size",
            "Gauge measuring number of registered Nodes per zones.",
            &["zone"],
        ),
        zone_health: GaugeVec = make::gauges(
            "node_collector_zone_health",
            "Gauge measuring percentage of healthy nodes per zone.",
            &["zone"],
        ),
        unhealthy: GaugeVec = make::gauges(
            "node_collector_unhealthy_nodes_in_zone",
            "Gauge measuring number of not Ready Nodes per zones.",
            &["zone"],
        ),
    }
}

/// What the pass and the tainting task share.
#[derive(Default)]
pub(super) struct Shared {
    /// The evictor of each zone.
    evictors: HashMap<String, Evictor>,
    /// Status of Ready of each Node, as of the last pass.
    pub(super) ready: HashMap<String, Option<String>>,
}

/// Reads, writes and settings of the controller; cheap to clone.
#[derive(Clone)]
pub(super) struct Shell {
    pub(super) nodes: Informer<Node>,
    pub(super) pods: Informer<Pod>,
    pub(super) leases: Informer<Lease>,
    /// Gate NodeControllerLeaseCircuitBreaker.
    pub(super) lease_circuit_breaker: bool,
    pub(super) executor: Executor,
    pub(super) grace: Grace,
    pub(super) rates: Rates,
    pub(super) clock: Clock,
    pub(super) metrics: Arc<Metrics>,
    pub(super) shared: Arc<Mutex<Shared>>,
    /// The queue of an evictor changed.
    pub(super) changed: Arc<Notify>,
}

/// What one pass leaves to the next.
#[derive(Default)]
pub(super) struct Monitor {
    known: HashMap<String, ObjectReference>,
    health: HashMap<String, NodeHealth>,
    zones: HashMap<String, ZoneState>,
    /// Nodes whose Pods could not all be marked.
    retry: HashSet<String>,
}

fn name(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap_or_default()
}

fn reference(node: &Node) -> ObjectReference {
    ObjectReference {
        uid: node.metadata.uid.clone(),
        ..node_reference(name(node))
    }
}

fn node_reference(name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(name.to_string()),
        ..ObjectReference::default()
    }
}

impl Monitor {
    /// Gives every Node its grace period anew: while the API server was away, none could be heard. Upstream's leader ends
    /// then, and begins with nothing remembered.
    pub(super) fn forget_silence(&mut self, now: Timestamp) {
        self.health
            .values_mut()
            .for_each(|health| health.probe = now);
    }

    /// One pass over all Nodes.
    pub(super) async fn monitor_node_health(&mut self, shell: &Shell) {
        let nodes = shell.nodes.list();
        self.classify(shell, &nodes).await;
        let now = shell.clock.now();
        // Owned, not borrowed: each look is a future of its own.
        let mut looks = Vec::with_capacity(nodes.len());
        for node in &nodes {
            let saved = self.health.get(name(node)).cloned();
            let retry = self.retry.contains(name(node));
            looks.push(shell.clone().look(node.clone(), saved, now, retry));
        }
        let looks: Vec<(Arc<Node>, Option<Look>)> = futures::stream::iter(looks)
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        let mut ready: HashMap<String, Vec<Option<String>>> = HashMap::new();
        for (node, look) in looks {
            let Some(look) = look else { continue };
            let node_name = name(&node).to_string();
            if !node
                .metadata
                .labels
                .as_ref()
                .is_some_and(|l| l.contains_key(EXCLUDE_DISRUPTION))
            {
                ready
                    .entry(get_zone_key(&node))
                    .or_default()
                    .push(look.checked.current.clone());
            }
            shell
                .lock()
                .ready
                .insert(node_name.clone(), look.checked.current.clone());
            self.health.insert(node_name.clone(), look.checked.health);
            if look.pods_marked {
                self.retry.remove(&node_name)
            } else {
                self.retry.insert(node_name)
            };
        }
        self.disrupt(shell, &nodes, &ready).await;
        shell.changed.notify_one();
    }

    /// Welcomes new Nodes and forgets those that are gone.
    async fn classify(&mut self, shell: &Shell, nodes: &[Arc<Node>]) {
        {
            let mut shared = shell.lock();
            for node in nodes {
                shared
                    .evictors
                    .entry(get_zone_key(node))
                    .or_insert_with(|| Evictor::new(shell.rates.primary));
            }
        }
        for node in nodes
            .iter()
            .filter(|node| !self.known.contains_key(name(node)))
        {
            let text = format!(
                "Node {0} event: Registered Node {0} in Controller",
                name(node)
            );
            shell.executor.recorder().event(
                &reference(node),
                EventType::Normal,
                "RegisteredNode",
                "",
                text,
            );
            shell.mark_reachable(node).await;
        }
        let names: HashSet<&str> = nodes.iter().map(|node| name(node)).collect();
        let gone: Vec<String> = self
            .known
            .keys()
            .filter(|known| !names.contains(known.as_str()))
            .cloned()
            .collect();
        for node in gone {
            let text = format!("Node {node} event: Removing Node {node} from Controller");
            if let Some(reference) = self.known.remove(&node) {
                shell.executor.recorder().event(
                    &reference,
                    EventType::Normal,
                    "RemovingNode",
                    "",
                    text,
                );
            }
            self.health.remove(&node);
            self.retry.remove(&node);
            let mut shared = shell.lock();
            shared.ready.remove(&node);
            for evictor in shared.evictors.values_mut() {
                evictor.remove(&node);
            }
        }
        self.known.extend(
            nodes
                .iter()
                .map(|node| (name(node).to_string(), reference(node))),
        );
    }

    async fn disrupt(
        &mut self,
        shell: &Shell,
        nodes: &[Arc<Node>],
        ready: &HashMap<String, Vec<Option<String>>>,
    ) {
        let threshold = shell.rates.unhealthy_zone_threshold;
        record_zones(&shell.metrics, &self.zones, ready, threshold);
        let change = handle_disruption(&mut self.zones, ready, shell.rates);
        if change.all_went_down {
            tracing::info!(
                "Controller detected that all Nodes are not-Ready. Entering master disruption mode"
            );
            for node in nodes {
                shell.mark_reachable(node).await;
            }
        }
        if change.some_came_back {
            tracing::info!(
                "Controller detected that some Nodes are Ready. Exiting master disruption mode"
            );
            self.forget_silence(shell.clock.now());
        }
        let now = shell.clock.monotonic();
        let mut shared = shell.lock();
        for (zone, rate) in change.rates {
            tracing::info!(
                zone,
                rate,
                "Controller detected that zone is now in new state"
            );
            if let Some(evictor) = shared.evictors.get_mut(&zone) {
                evictor.set_rate(rate, now);
            }
        }
    }
}

/// What the zones are like, at `/metrics`; one of those `known` before that has no Node left is empty, and well.
fn record_zones(
    metrics: &Metrics,
    known: &HashMap<String, ZoneState>,
    ready: &HashMap<String, Vec<Option<String>>>,
    unhealthy_threshold: f64,
) {
    let gone = known.keys().filter(|zone| !ready.contains_key(*zone));
    let gone = gone.map(|zone| (zone, (0.0, 0.0, 100.0)));
    let there = ready.iter().map(|(zone, statuses)| {
        let (not_ready, _) = super::zone::compute_zone_state(statuses, unhealthy_threshold);
        let (size, not_ready) = (statuses.len() as f64, not_ready as f64);
        (zone, (size, not_ready, 100.0 * (size - not_ready) / size))
    });
    for (zone, (size, unhealthy, health)) in gone.chain(there) {
        metrics.zone_size.with_label_values(&[zone]).set(size);
        metrics.unhealthy.with_label_values(&[zone]).set(unhealthy);
        metrics.zone_health.with_label_values(&[zone]).set(health);
    }
}

/// The result of looking at one Node.
struct Look {
    checked: Checked,
    /// `false`: its Pods must be marked in the next pass.
    pods_marked: bool,
}

impl Shell {
    pub(super) fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("no panic while the lock is held")
    }

    /// `None` when the Node's state could not be written: nothing is decided about it in this pass.
    async fn look(
        self,
        node: Arc<Node>,
        saved: Option<NodeHealth>,
        now: Timestamp,
        retry: bool,
    ) -> (Arc<Node>, Option<Look>) {
        let look = self.try_look(&node, saved.as_ref(), now, retry).await;
        (node, look)
    }

    async fn try_look(
        &self,
        node: &Node,
        saved: Option<&NodeHealth>,
        now: Timestamp,
        retry: bool,
    ) -> Option<Look> {
        let mut node = node.clone();
        let lease = self.leases.get(LEASE_NAMESPACE, name(&node));
        let mut checked = check(&node, lease.as_deref(), saved, now, self.grace);
        if checked.update.is_some()
            && self.lease_circuit_breaker
            && self.lease_moved(name(&node), lease.as_deref()).await
        {
            return None;
        }
        for attempt in 1.. {
            let Some(conditions) = &checked.update else {
                break;
            };
            let patch = json!({ "metadata": { "resourceVersion": node.metadata.resource_version }, "status": { "conditions": conditions } });
            let error = match self
                .executor
                .execute(&Action::status_patch::<Node>("", name(&node), patch))
                .await
            {
                Ok(_) => break,
                Err(error) => error,
            };
            let again = match error {
                ApiError::Conflict(_) if attempt < RETRIES => {
                    self.executor.get::<Node>("", name(&node)).await
                }
                error => Err(error),
            };
            match again {
                Ok(Some(live)) => node = live,
                Ok(None) => return None,
                Err(error) => {
                    tracing::warn!(node = name(&node), %error, "Updating the node's health failed, no pods will be evicted");
                    return None;
                }
            }
            checked = check(&node, lease.as_deref(), saved, now, self.grace);
        }
        let mut pods_marked = true;
        if let Some(current) = checked.current.clone() {
            self.process_taint_based_eviction(&node, &current).await;
            let went_down = current != "True" && checked.observed == "True";
            if went_down {
                let text = format!("Node {} status is now: NodeNotReady", name(&node));
                self.executor.recorder().event(
                    &reference(&node),
                    EventType::Normal,
                    "NodeNotReady",
                    "",
                    text,
                );
            }
            if went_down || (retry && checked.observed != "True") {
                pods_marked = self.mark_pods_not_ready(name(&node)).await;
            }
        }
        Some(Look {
            checked,
            pods_marked,
        })
    }

    /// Whether the lease is another one than the cache has: then it is the cache that is silent, not the Node.
    async fn lease_moved(&self, node: &str, cached: Option<&Lease>) -> bool {
        match self.executor.get::<Lease>(LEASE_NAMESPACE, node).await {
            Ok(live) => {
                let moved = has_moved(live.as_ref(), cached);
                if moved {
                    tracing::warn!(
                        node,
                        "The cache of leases is behind, nothing is decided about the node"
                    );
                }
                moved
            }
            // An API server before v1.37 lets this account only watch them.
            Err(ApiError::NotFound(_) | ApiError::Forbidden(_)) => false,
            Err(error) => {
                tracing::warn!(node, %error, "error looking up lease to verify node");
                true
            }
        }
    }

    async fn process_taint_based_eviction(&self, node: &Node, ready: &str) {
        match ready {
            "True" => self.mark_reachable(node).await,
            _ if has_opposite(node, ready) => drop(self.swap(node, &no_execute(ready)).await),
            _ => {
                let mut shared = self.lock();
                let Some(evictor) = shared.evictors.get_mut(&get_zone_key(node)) else {
                    return;
                };
                if !is_tainted(node, ready) {
                    // Somebody took the taint away, or it was never written: the Node may be queued again.
                    if !evictor.is_waiting(name(node)) {
                        evictor.remove(name(node));
                    }
                    if evictor.add(name(node)) {
                        tracing::info!(
                            node = name(node),
                            ready,
                            "Node is not ready, adding it to the taint queue"
                        );
                    }
                }
            }
        }
    }

    /// Takes both `NoExecute` taints away, and the Node out of the queue.
    async fn mark_reachable(&self, node: &Node) {
        self.swap(node, &no_execute("True")).await;
        if let Some(evictor) = self.lock().evictors.get_mut(&get_zone_key(node)) {
            evictor.remove(name(node));
        }
    }

    /// Carries a swap out, reading the Node again after a conflict; whether the Node has what it should.
    pub(super) async fn swap(&self, node: &Node, swap: &Swap) -> bool {
        let mut live;
        let mut node = node;
        for _ in 0..RETRIES {
            let Some(taints) = swap.apply(node, self.clock.now()) else {
                return true;
            };
            let patch = json!({ "metadata": { "resourceVersion": node.metadata.resource_version }, "spec": { "taints": taints } });
            match self
                .executor
                .execute(&Action::merge_patch::<Node>("", name(node), patch))
                .await
            {
                Ok(_) | Err(ApiError::NotFound(_)) => return true,
                Err(ApiError::Conflict(_)) => {}
                Err(error) => {
                    tracing::warn!(node = name(node), %error, "Unable to swap the node's taints");
                    return false;
                }
            }
            match self.executor.get::<Node>("", name(node)).await {
                Ok(Some(found)) => live = found,
                Ok(None) => return true,
                Err(_) => return false,
            }
            node = &live;
        }
        false
    }

    /// Whether all Pods of the Node say that they are not ready.
    pub(super) async fn mark_pods_not_ready(&self, node: &str) -> bool {
        let mut all = true;
        for pod in self.pods.by_index(BY_NODE, node) {
            all &= self.mark_pod_not_ready(&pod).await;
        }
        all
    }

    pub(super) async fn mark_pod_not_ready(&self, pod: &Pod) -> bool {
        if !pod_helpers::is_pod_ready(pod) {
            return true;
        }
        let (namespace, name) = (pod_helpers::namespace(pod), pod_helpers::name(pod));
        let condition = json!({ "type": "Ready", "status": "False", "lastTransitionTime": self.clock.now().round(jiff::Unit::Second).unwrap_or_default() });
        let patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "conditions": [condition] } });
        match self
            .executor
            .execute(&Action::status_patch::<Pod>(namespace, name, patch))
            .await
        {
            Ok(_) => {
                let regarding = component_base::events::object_reference(pod);
                self.executor.recorder().event(
                    &regarding,
                    EventType::Warning,
                    "NodeNotReady",
                    "",
                    "Node is not ready",
                );
                true
            }
            // Gone, or a namesake.
            Err(ApiError::NotFound(_) | ApiError::Conflict(_)) => true,
            Err(error) => {
                tracing::warn!(pod = pod_helpers::key(pod), %error, "Failed to mark the pod not ready");
                false
            }
        }
    }

    /// Taints what the evictors let through; returns when to ask again.
    pub(super) async fn do_no_execute_tainting_pass(&self) -> Option<Duration> {
        let now = self.clock.monotonic();
        let due: Vec<(String, String)> = {
            let mut shared = self.lock();
            let take = |(zone, evictor): (&String, &mut Evictor)| {
                evictor.take(now).map(|node| (zone.clone(), node))
            };
            shared.evictors.iter_mut().filter_map(take).collect()
        };
        for (zone, node_name) in due {
            let Some(node) = self.nodes.get("", &node_name) else {
                continue;
            };
            let ready = self.lock().ready.get(&node_name).cloned().flatten();
            let done = match ready.as_deref() {
                Some(status @ ("False" | "Unknown")) => {
                    let done = self.swap(&node, &no_execute(status)).await;
                    if done {
                        self.metrics.evictions.with_label_values(&[&zone]).inc();
                    }
                    done
                }
                // It is ready again.
                _ => true,
            };
            if !done && let Some(evictor) = self.lock().evictors.get_mut(&zone) {
                evictor.put_back(node_name);
            }
        }
        self.lock()
            .evictors
            .values()
            .filter_map(Evictor::next_at)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_without_nodes_is_empty_and_well() {
        let (zone, metrics) = ("a".to_string(), Metrics::unread());
        let shown = || {
            let of = |gauge: &GaugeVec| gauge.with_label_values(&[&zone]).get();
            (
                of(&metrics.zone_size),
                of(&metrics.unhealthy),
                of(&metrics.zone_health),
            )
        };
        let ready = HashMap::from([(zone.clone(), vec![Some("True".to_string()), None])]);
        record_zones(&metrics, &HashMap::new(), &ready, 0.55);
        assert_eq!(shown(), (2.0, 1.0, 50.0));
        let known = HashMap::from([(zone.clone(), ZoneState::Normal)]);
        record_zones(&metrics, &known, &HashMap::new(), 0.55);
        assert_eq!(shown(), (0.0, 0.0, 100.0));
    }
}
