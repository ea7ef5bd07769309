//! [`Topology`]: what a node's report says, made ready: the kubelet's settings, and the NUMA nodes with what is free there.
//!
//! A report is written by an agent on the node; numbers are bounded. Upstream: pkg/noderesourcetopology (nodeconfig, pluginhelpers.go, numaresources.go).

use std::collections::{BTreeMap, BTreeSet};

use component_helpers::qos::QosClass;
use component_helpers::quantity::Amount;
use component_helpers::resources::{Amounts, is_native_resource};
use framework::Object;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::kinds::{Attribute, NodeResourceTopology};

/// A NUMA node's number is below this, as the kubelet's bit masks have it.
const MAX_NUMA_ID: usize = 64;
/// So many NUMA nodes a kubelet manages where its report does not say. Upstream: `DefaultMaxNUMANodes`.
const DEFAULT_MAX_NUMA_NODES: i64 = 8;
/// Upstream: `LimitNUMANodes`.
const LIMIT_NUMA_NODES: i64 = 1024;

/// What the kubelet aligns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManagerScope {
    /// Each container.
    Container,
    /// The pod as a whole.
    Pod,
}

/// The kubelet's settings that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopologyManager {
    /// The policy is `single-numa-node`: what does not fit on one is not admitted.
    pub single_numa_node: bool,
    /// What is aligned.
    pub scope: ManagerScope,
    /// How many NUMA nodes it manages at most.
    pub max_numa_nodes: i64,
}

impl TopologyManager {
    fn of(report: &NodeResourceTopology) -> Self {
        let mut manager = TopologyManager {
            single_numa_node: false,
            scope: ManagerScope::Container,
            max_numa_nodes: DEFAULT_MAX_NUMA_NODES,
        };
        // The old field; attributes go before it.
        let policy = report.topology_policies.first().map(String::as_str);
        match policy.unwrap_or_default() {
            "SingleNUMANodePodLevel" => {
                (manager.single_numa_node, manager.scope) = (true, ManagerScope::Pod);
            }
            "SingleNUMANodeContainerLevel" => manager.single_numa_node = true,
            "BestEffortPodLevel" | "RestrictedPodLevel" => manager.scope = ManagerScope::Pod,
            _ => {}
        }
        for Attribute { name, value } in &report.attributes {
            match (name.as_str(), value.as_str()) {
                ("topologyManagerScope", "pod") => manager.scope = ManagerScope::Pod,
                ("topologyManagerScope", "container") => manager.scope = ManagerScope::Container,
                ("topologyManagerPolicy", "single-numa-node") => manager.single_numa_node = true,
                ("topologyManagerPolicy", "none" | "best-effort" | "restricted") => {
                    manager.single_numa_node = false;
                }
                ("topologyManagerMaxNUMANodes", number) => {
                    if let Some(number) = number.parse().ok().filter(|number| *number > 1) {
                        manager.max_numa_nodes = LIMIT_NUMA_NODES.min(number);
                    }
                }
                _ => {}
            }
        }
        manager
    }
}

/// A NUMA node.
#[derive(Debug, Clone, PartialEq)]
pub struct NumaNode {
    /// Its number.
    pub id: usize,
    /// What is free.
    pub available: Amounts,
    /// The distance to others, by number.
    pub costs: BTreeMap<usize, i64>,
}

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub struct Topology {
    /// The kubelet's settings.
    pub manager: TopologyManager,
    /// The NUMA nodes, in the order of the report.
    pub numa_nodes: Vec<NumaNode>,
    /// The fingerprint of the pods it knows of; `None` where it has none.
    pub fingerprint: Option<String>,
    /// It says that only pods with exclusive resources are in the fingerprint.
    pub fingerprint_of_exclusive: bool,
    /// All resources of all zones.
    pub resources: BTreeSet<String>,
}

fn numa_id(name: &str) -> Option<usize> {
    let id: usize = name.strip_prefix("node-")?.parse().ok()?;
    (id < MAX_NUMA_ID).then_some(id)
}

impl Topology {
    /// What a report says.
    ///
    /// # Errors
    /// When it cannot be read; the node's next report may be.
    pub fn of(object: &Object) -> Result<Self, serde_json::Error> {
        let report: NodeResourceTopology = object.decode()?;
        let mut numa_nodes: Vec<NumaNode> = Vec::new();
        for zone in report.zones.iter().filter(|zone| zone.type_ == "Node") {
            let Some(id) = numa_id(&zone.name) else {
                continue;
            };
            if numa_nodes.iter().any(|known| known.id == id) {
                continue;
            }
            let available = |r: &crate::kinds::ZoneResource| {
                let amount = component_helpers::quantity::amount(&r.available);
                (r.name.clone(), amount)
            };
            numa_nodes.push(NumaNode {
                id,
                available: zone.resources.iter().map(available).collect(),
                costs: zone
                    .costs
                    .iter()
                    .filter_map(|cost| Some((numa_id(&cost.name)?, cost.value)))
                    .collect(),
            });
        }
        let attribute = |name: &str| {
            let mut found = report.attributes.iter().filter(|a| a.name == name);
            found.next().map(|a| a.value.clone())
        };
        let annotations = object.metadata.annotations.as_ref();
        let fingerprint = attribute("nodeTopologyPodsFingerprint");
        let method = attribute("nodeTopologyPodsFingerprintMethod");
        Ok(Topology {
            manager: TopologyManager::of(&report),
            numa_nodes,
            // Older agents annotate, and know one method only.
            fingerprint_of_exclusive: fingerprint.is_some()
                && method.as_deref() == Some("with-exclusive-resources"),
            fingerprint: fingerprint.or_else(|| {
                let old = annotations.and_then(|a| a.get("topology.node.k8s.io/fingerprint"));
                old.cloned()
            }),
            resources: report
                .zones
                .iter()
                .flat_map(|zone| zone.resources.iter().map(|r| r.name.clone()))
                .collect(),
        })
    }

    /// As if pods that ask for `taken` were on every NUMA node: which of them they are on is not known, and none is promised what may be taken.
    pub fn take_everywhere(&mut self, taken: &Amounts) {
        for numa in &mut self.numa_nodes {
            for (name, available) in &mut numa.available {
                if let Some(amount) = taken.get(name) {
                    let left = *available - *amount;
                    *available = if left.is_negative() {
                        Amount::ZERO
                    } else {
                        left
                    };
                }
            }
        }
    }
}

/// Resources that NUMA nodes always have: CPU, memory, huge pages.
pub fn is_numa_affine(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// Resources that a node may have without any NUMA node having them: storage, devices.
pub fn is_host_level(name: &str) -> bool {
    matches!(name, "ephemeral-storage" | "storage") || !is_native_resource(name)
}

/// Does so much fit where `available` is free? CPU and memory of pods that are not guaranteed are not tied to a NUMA node.
pub fn suits(qos: QosClass, name: &str, wanted: Amount, available: Amount) -> bool {
    (qos != QosClass::Guaranteed && is_numa_affine(name)) || available >= wanted
}

/// Does a container ask for a device or the like?
pub fn asks_for_non_native(pod: &Pod) -> bool {
    let containers = pod
        .spec
        .iter()
        .flat_map(component_helpers::pod::init_and_containers);
    let mut names = containers.flat_map(|container| requested(container).into_keys());
    names.any(|name| !is_native_resource(&name))
}

/// What a container asks for.
pub fn requested(container: &Container) -> Amounts {
    let requests = container
        .resources
        .as_ref()
        .and_then(|r| r.requests.as_ref());
    component_helpers::resources::amounts(requests)
}

/// Has the pod something for itself alone while it runs: whole CPUs or memory as a guaranteed one, or a device of a NUMA node?
pub fn has_exclusive_resources(pod: &Pod, resources: &BTreeSet<String>) -> bool {
    let guaranteed = component_helpers::qos::get_pod_qos(pod) == QosClass::Guaranteed;
    let spec = pod.spec.as_ref();
    let sidecars = spec.and_then(|spec| spec.init_containers.as_ref());
    let sidecars = sidecars.into_iter().flatten();
    let sidecars =
        sidecars.filter(|c| component_helpers::resources::is_restartable_init_container(c));
    let mut containers = sidecars.chain(spec.into_iter().flat_map(|spec| &spec.containers));
    containers.any(|container| {
        requested(container).iter().any(|(name, amount)| {
            if !is_native_resource(name) {
                return resources.contains(name);
            }
            let whole = amount.value() * 1000 == amount.milli_value();
            guaranteed
                && amount.value() > 0
                && match name.as_str() {
                    "cpu" => whole,
                    name => is_numa_affine(name),
                }
        })
    })
}
