//! [`NodeInfo`]: a node with the sums over its pods.
//!
//! Owns the arithmetic of adding and removing pods. Cloning is cheap: what derives from the node object alone is shared. Upstream:
//! pkg/scheduler/framework/types.go (NodeInfo), v1.36.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};

use crate::pod_info::{HostPort, PodInfo};
use crate::resource::Resource;

/// The host ports in use on a node, with how many pods use each (two pods may, while one of them is being replaced).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostPortInfo(BTreeMap<HostPort, u32>);

impl HostPortInfo {
    /// The address that stands for all.
    pub const ANY: &'static str = "0.0.0.0";

    /// Marks a port used.
    pub fn add(&mut self, port: &HostPort) {
        *self.0.entry(port.clone()).or_default() += 1;
    }

    /// Releases a port.
    pub fn remove(&mut self, port: &HostPort) {
        if let Some(count) = self.0.get_mut(port) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(port);
            }
        }
    }

    /// Would `port` clash with one in use? `0.0.0.0` clashes with every address.
    pub fn conflicts(&self, port: &HostPort) -> bool {
        self.0.keys().any(|used| {
            used.port == port.port
                && used.protocol == port.protocol
                && (used.ip == port.ip || used.ip == Self::ANY || port.ip == Self::ANY)
        })
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ports in use.
    pub fn iter(&self) -> impl Iterator<Item = &HostPort> {
        self.0.keys()
    }
}

/// No such pod on the node.
#[derive(Debug, thiserror::Error)]
#[error("no corresponding pod {pod} in pods of node {node}")]
pub struct NoSuchPodError {
    /// The pod's UID.
    pub pod: String,
    /// The node's name.
    pub node: String,
}

/// A node and the sums over the pods on it, those assumed included.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    name: Arc<str>,
    node: Arc<Node>,
    exists: bool,
    pods: Vec<Arc<PodInfo>>,
    requested: Resource,
    non_zero_milli_cpu: i64,
    non_zero_memory: i64,
    used_ports: HostPortInfo,
    pvc_ref_counts: BTreeMap<String, u32>,
    lowest_priority: i32,
    pods_with_affinity: u32,
    pods_with_required_anti_affinity: u32,
    allocatable: Arc<Resource>,
    images: Arc<HashMap<String, i64>>,
    generation: u64,
}

impl NodeInfo {
    /// A node the API server has not told of, by the name its pods carry ("imaginary").
    pub fn imaginary(name: impl Into<Arc<str>>) -> Self {
        NodeInfo {
            name: name.into(),
            node: Arc::default(),
            exists: false,
            pods: Vec::new(),
            requested: Resource::default(),
            non_zero_milli_cpu: 0,
            non_zero_memory: 0,
            used_ports: HostPortInfo::default(),
            pvc_ref_counts: BTreeMap::new(),
            lowest_priority: i32::MAX,
            pods_with_affinity: 0,
            pods_with_required_anti_affinity: 0,
            allocatable: Arc::default(),
            images: Arc::default(),
            generation: 0,
        }
    }

    /// A node without pods.
    pub fn new(node: Arc<Node>) -> Self {
        let mut info = Self::imaginary(node.metadata.name.as_deref().unwrap_or_default());
        info.set_node(node);
        info
    }

    /// Replaces the node object.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let status = node.status.as_ref();
        if let Some(allocatable) = status.and_then(|s| s.allocatable.as_ref()) {
            let allocatable = Resource::from_list(allocatable);
            if *self.allocatable != allocatable {
                self.allocatable = Arc::new(allocatable);
            }
        } else {
            self.allocatable = Arc::default();
        }
        if !self.exists || self.node.status.as_ref().map(|s| &s.images) != status.map(|s| &s.images)
        {
            let images = status.and_then(|s| s.images.as_ref()).into_iter().flatten();
            self.images = Arc::new(
                images
                    .flat_map(|image| {
                        let size = image.size_bytes.unwrap_or(0);
                        image
                            .names
                            .iter()
                            .flatten()
                            .map(move |name| (name.clone(), size))
                    })
                    .collect(),
            );
        }
        self.node = node;
        self.exists = true;
    }

    /// Forgets the node object and keeps the pods: their delete events are still to come.
    pub fn remove_node(&mut self) {
        self.node = Arc::default();
        self.exists = false;
        self.allocatable = Arc::default();
        self.images = Arc::default();
    }

    /// Adds a pod.
    pub fn add_pod(&mut self, pod: Arc<PodInfo>) {
        self.update(&pod, 1);
        self.lowest_priority = self.lowest_priority.min(pod.priority);
        self.pods.push(pod);
    }

    /// Removes the pod with `pod`'s UID, subtracting what was added for it.
    ///
    /// # Errors
    /// When no such pod is on the node.
    pub fn remove_pod(&mut self, uid: &str) -> Result<Arc<PodInfo>, NoSuchPodError> {
        let Some(at) = self.pods.iter().rposition(|p| *p.uid == *uid) else {
            return Err(NoSuchPodError {
                pod: uid.to_owned(),
                node: self.name.to_string(),
            });
        };
        let pod = self.pods.swap_remove(at);
        let full = self.is_full();
        self.update(&pod, -1);
        if full {
            self.sum_up();
        }
        if pod.priority == self.lowest_priority {
            let priorities = self.pods.iter().map(|pod| pod.priority);
            self.lowest_priority = priorities.min().unwrap_or(i32::MAX);
        }
        Ok(pod)
    }

    /// Do its pods ask for more of something than a number holds?
    fn is_full(&self) -> bool {
        let floors = [self.non_zero_milli_cpu, self.non_zero_memory];
        self.requested.is_full() || floors.contains(&i64::MAX)
    }

    /// What the pods ask for, anew: of a sum that was full nothing can be taken.
    fn sum_up(&mut self) {
        self.requested = Resource::default();
        (self.non_zero_milli_cpu, self.non_zero_memory) = (0, 0);
        let pods = std::mem::take(&mut self.pods);
        pods.iter().for_each(|pod| self.request(pod, 1));
        self.pods = pods;
    }

    fn request(&mut self, pod: &PodInfo, sign: i64) {
        let of = &pod.requests;
        self.requested.add(&of.resource, sign);
        let floors = [
            (&mut self.non_zero_milli_cpu, of.non_zero_milli_cpu),
            (&mut self.non_zero_memory, of.non_zero_memory),
        ];
        for (sum, amount) in floors {
            *sum = sum.saturating_add(sign * amount);
        }
    }

    fn update(&mut self, pod: &PodInfo, sign: i64) {
        self.request(pod, sign);
        let count = |n: &mut u32, counts: bool| {
            *n = if sign > 0 {
                *n + u32::from(counts)
            } else {
                *n - u32::from(counts)
            };
        };
        count(&mut self.pods_with_affinity, pod.has_affinity());
        count(
            &mut self.pods_with_required_anti_affinity,
            !pod.required_anti_affinity_terms.is_empty(),
        );
        for port in &pod.host_ports {
            if sign > 0 {
                self.used_ports.add(port)
            } else {
                self.used_ports.remove(port)
            }
        }
        for claim in &pod.claims {
            let n = self.pvc_ref_counts.entry(claim.key.clone()).or_default();
            *n = if sign > 0 {
                *n + 1
            } else {
                n.saturating_sub(1)
            };
            if *n == 0 {
                self.pvc_ref_counts.remove(&claim.key);
            }
        }
    }

    /// The node's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The node object; an empty one for an imaginary node (which no snapshot contains).
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Has the API server told of the node?
    pub fn exists(&self) -> bool {
        self.exists
    }

    /// The node's labels.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        static EMPTY: BTreeMap<String, String> = BTreeMap::new();
        self.node.metadata.labels.as_ref().unwrap_or(&EMPTY)
    }

    /// The node's taints.
    pub fn taints(&self) -> &[Taint] {
        self.node
            .spec
            .as_ref()
            .and_then(|s| s.taints.as_deref())
            .unwrap_or_default()
    }

    /// `spec.unschedulable`.
    pub fn unschedulable(&self) -> bool {
        self.node
            .spec
            .as_ref()
            .and_then(|s| s.unschedulable)
            .unwrap_or(false)
    }

    /// The pods, assumed ones included, in no particular order.
    pub fn pods(&self) -> &[Arc<PodInfo>] {
        &self.pods
    }

    /// The lowest priority of its pods; the largest number there is without pods.
    pub fn lowest_priority(&self) -> i32 {
        self.lowest_priority
    }

    /// Those with any inter-pod affinity.
    pub fn pods_with_affinity(&self) -> impl Iterator<Item = &Arc<PodInfo>> {
        let none = self.pods_with_affinity == 0;
        self.pods.iter().filter(move |p| !none && p.has_affinity())
    }

    /// How many pods have any inter-pod affinity.
    pub fn num_pods_with_affinity(&self) -> usize {
        self.pods_with_affinity as usize
    }

    /// Those with required anti-affinity.
    pub fn pods_with_required_anti_affinity(&self) -> impl Iterator<Item = &Arc<PodInfo>> {
        let none = self.pods_with_required_anti_affinity == 0;
        self.pods
            .iter()
            .filter(move |p| !none && !p.required_anti_affinity_terms.is_empty())
    }

    /// How many pods have required anti-affinity.
    pub fn num_pods_with_required_anti_affinity(&self) -> usize {
        self.pods_with_required_anti_affinity as usize
    }

    /// Sum of the pods' requests.
    pub fn requested(&self) -> &Resource {
        &self.requested
    }

    /// Sum of the pods' CPU requests in thousandths, with a floor of 100m a container.
    pub fn non_zero_milli_cpu(&self) -> i64 {
        self.non_zero_milli_cpu
    }

    /// Sum of the pods' memory requests in bytes, with a floor of 200Mi a container.
    pub fn non_zero_memory(&self) -> i64 {
        self.non_zero_memory
    }

    /// `status.allocatable`.
    pub fn allocatable(&self) -> &Resource {
        &self.allocatable
    }

    /// Host ports in use.
    pub fn used_ports(&self) -> &HostPortInfo {
        &self.used_ports
    }

    /// Bytes of each image on the node, by every name it has.
    pub fn images(&self) -> &Arc<HashMap<String, i64>> {
        &self.images
    }

    /// How many volumes of its pods use each claim, by `namespace/name`; those of ephemeral volumes included.
    pub fn pvc_ref_counts(&self) -> &BTreeMap<String, u32> {
        &self.pvc_ref_counts
    }

    /// Grows with each change; set by the cache. Zero for a node outside a cache.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Marks a change (for the cache).
    pub fn set_generation(&mut self, generation: u64) {
        self.generation = generation;
    }
}
