//! Does a pod fit on one NUMA node (or each of its containers on one)? What the kubelet's topology manager would say by the policy `single-numa-node`. Pure.
//!
//! Upstream: pkg/noderesourcetopology/filter.go.

use std::sync::Arc;

use component_helpers::qos::{QosClass, get_pod_qos};
use component_helpers::resources::{
    Amounts, PodResourcesOptions, is_restartable_init_container, pod_requests,
};
use framework::{NodeInfo, PodInfo, Resource};
use k8s_openapi::api::core::v1::Container;

use super::topology::{
    ManagerScope, NumaNode, Topology, asks_for_non_native, is_host_level, is_numa_affine,
    requested, suits,
};

/// What is read of a pod. Pods of equal shape get equal answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// Its class of service.
    pub qos: QosClass,
    /// NUMA nodes do not matter to it: it asks for nothing that could be tied to one.
    pub free: bool,
    /// Its init containers.
    pub init: Vec<(InitKind, Amounts)>,
    /// Its containers.
    pub containers: Vec<Amounts>,
    /// All it asks for.
    pub pod: Amounts,
}

/// A kind of init container, as reasons name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitKind {
    /// It ends before the next begins.
    Init,
    /// It goes on.
    Sidecar,
}

impl Shape {
    /// Of a pod.
    pub fn of(pod: &PodInfo) -> Arc<Self> {
        let (qos, spec) = (get_pod_qos(&pod.pod), pod.spec());
        let init = |container: &Container| {
            let kind = match is_restartable_init_container(container) {
                true => InitKind::Sidecar,
                false => InitKind::Init,
            };
            (kind, requested(container))
        };
        Arc::new(Shape {
            qos,
            free: qos == QosClass::BestEffort && !asks_for_non_native(&pod.pod),
            init: spec.init_containers.iter().flatten().map(init).collect(),
            containers: spec.containers.iter().map(requested).collect(),
            pod: pod_requests(&pod.pod, &PodResourcesOptions::default()),
        })
    }

    /// The exact bytes of it.
    pub fn encode(&self, key: &mut Vec<u8>) {
        let mut amounts = |kind: u8, amounts: &Amounts| {
            key.push(kind);
            key.extend((amounts.len() as u32).to_le_bytes());
            for (name, amount) in amounts {
                key.extend((name.len() as u32).to_le_bytes());
                key.extend(name.as_bytes());
                key.extend(amount.nano_value().to_le_bytes());
            }
        };
        if self.free {
            return;
        }
        amounts(self.qos as u8, &self.pod);
        for (kind, init) in &self.init {
            amounts(3 + *kind as u8, init);
        }
        for container in &self.containers {
            amounts(5, container);
        }
    }
}

/// Does the pod fit by the kubelet's rules? Nodes with another policy take it.
///
/// # Errors
/// Why not, in upstream's words.
pub fn fits(shape: &Shape, node: &NodeInfo, topology: &Topology) -> Result<(), &'static str> {
    if !topology.manager.single_numa_node {
        return Ok(());
    }
    let allocatable = node.allocatable();
    match topology.manager.scope {
        ManagerScope::Pod => {
            let numa = place(shape.qos, &shape.pod, allocatable, &topology.numa_nodes);
            numa.map(|_| ()).ok_or("cannot align pod")
        }
        ManagerScope::Container => containers_fit(shape, allocatable, topology),
    }
}

fn containers_fit(
    shape: &Shape,
    allocatable: &Resource,
    topology: &Topology,
) -> Result<(), &'static str> {
    // Init containers run one after the other, before the others: each has the node for itself.
    for (kind, init) in &shape.init {
        if place(shape.qos, init, allocatable, &topology.numa_nodes).is_none() {
            return Err(match kind {
                InitKind::Init => "cannot align init container",
                InitKind::Sidecar => "cannot align sidecar container",
            });
        }
    }
    let mut numa_nodes = topology.numa_nodes.clone();
    for container in &shape.containers {
        let Some(id) = place(shape.qos, container, allocatable, &numa_nodes) else {
            return Err("cannot align container");
        };
        if let Some(numa) = numa_nodes.iter_mut().find(|numa| numa.id == id) {
            take(shape.qos, container, numa);
        }
    }
    Ok(())
}

/// The NUMA node the kubelet would take: the first on which all fits. `None`: there is none.
fn place(
    qos: QosClass,
    wanted: &Amounts,
    allocatable: &Resource,
    numa_nodes: &[NumaNode],
) -> Option<usize> {
    let mut possible = u64::MAX;
    for (name, &amount) in wanted.iter().filter(|(_, amount)| !amount.is_zero()) {
        // What the node has not at all no part of it has. Native resources every node reports.
        let on_node = match name.as_str() {
            "cpu" | "memory" | "ephemeral-storage" | "pods" => true,
            name => allocatable.scalar.contains_key(name),
        };
        if !on_node {
            return None;
        }
        let (mut somewhere, mut fitting) = (false, 0u64);
        for numa in numa_nodes {
            if let Some(&available) = numa.available.get(name) {
                somewhere = true;
                if suits(qos, name, amount, available) {
                    fitting |= 1 << numa.id;
                }
            }
        }
        if !somewhere && is_host_level(name) {
            continue;
        }
        possible &= fitting;
        if possible == 0 {
            return None;
        }
    }
    Some(possible.trailing_zeros() as usize)
}

fn take(qos: QosClass, taken: &Amounts, numa: &mut NumaNode) {
    for (name, amount) in taken {
        if qos != QosClass::Guaranteed && is_numa_affine(name) {
            continue;
        }
        if let Some(available) = numa.available.get_mut(name) {
            // `place` has looked: it is there.
            *available -= *amount;
        }
    }
}
