//! Nodes: conditions, addresses, zones.
//!
//! Upstream: pkg/util/node, k8s.io/component-helpers/node, v1.36.

use crate::conditions;
use k8s_openapi::api::core::v1::{Node, NodeCondition};

/// Well-known labels.
pub mod labels {
    /// The node's own name as its operating system knows it.
    pub const HOSTNAME: &str = "kubernetes.io/hostname";
    /// The failure zone.
    pub const ZONE: &str = "topology.kubernetes.io/zone";
    /// The region.
    pub const REGION: &str = "topology.kubernetes.io/region";
    /// The failure zone's former name.
    pub const ZONE_BETA: &str = "failure-domain.beta.kubernetes.io/zone";
    /// The region's former name.
    pub const REGION_BETA: &str = "failure-domain.beta.kubernetes.io/region";
    /// The operating system.
    pub const OS: &str = "kubernetes.io/os";
    /// The architecture, in Go's words.
    pub const ARCH: &str = "kubernetes.io/arch";
    /// The machine type.
    pub const INSTANCE_TYPE: &str = "node.kubernetes.io/instance-type";
    /// Load balancers leave this node out.
    pub const EXCLUDE_FROM_LOAD_BALANCERS: &str =
        "node.kubernetes.io/exclude-from-external-load-balancers";
}

/// Condition types of nodes.
pub mod condition {
    /// The kubelet is healthy and takes pods.
    pub const READY: &str = "Ready";
    /// Memory is short.
    pub const MEMORY_PRESSURE: &str = "MemoryPressure";
    /// Disk is short.
    pub const DISK_PRESSURE: &str = "DiskPressure";
    /// Process ids are short.
    pub const PID_PRESSURE: &str = "PIDPressure";
    /// The network is not set up.
    pub const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";
}

/// The node's condition of this type.
pub fn get_node_condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    conditions::find(
        node.status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten()),
        type_,
    )
}

/// Whether the node says that it is ready.
pub fn is_node_ready(node: &Node) -> bool {
    get_node_condition(node, condition::READY).is_some_and(|condition| condition.status == "True")
}

/// Whether the node is cordoned.
pub fn is_unschedulable(node: &Node) -> bool {
    node.spec
        .as_ref()
        .and_then(|spec| spec.unschedulable)
        .unwrap_or(false)
}

/// The node's addresses of this type (`InternalIP`, `ExternalIP`, `Hostname`, …), in order.
pub fn addresses<'a>(node: &'a Node, type_: &'a str) -> impl Iterator<Item = &'a str> {
    let all = node
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten());
    all.filter(move |address| address.type_ == type_)
        .map(|address| address.address.as_str())
}

/// The address by which the node is reached: its internal IP, else its external IP.
pub fn get_node_host_ip(node: &Node) -> Option<std::net::IpAddr> {
    ["InternalIP", "ExternalIP"]
        .iter()
        .find_map(|type_| addresses(node, type_).find_map(|address| address.parse().ok()))
}

/// The address by which the API server would call the kubelet, in the order of `preference`.
pub fn get_preferred_node_address<'a>(
    node: &'a Node,
    preference: &'a [&'a str],
) -> Option<&'a str> {
    preference
        .iter()
        .find_map(|type_| addresses(node, type_).next())
}

/// The value of one of the node's labels.
pub fn label<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(key))
        .map(String::as_str)
}

/// Region and zone in one word that tells zones apart; empty where the node has neither.
pub fn get_zone_key(node: &Node) -> String {
    let zone = label(node, labels::ZONE_BETA)
        .filter(|zone| !zone.is_empty())
        .or(label(node, labels::ZONE))
        .unwrap_or_default();
    let region = label(node, labels::REGION_BETA)
        .filter(|region| !region.is_empty())
        .or(label(node, labels::REGION))
        .unwrap_or_default();
    if zone.is_empty() && region.is_empty() {
        return String::new();
    }
    // NUL is allowed in neither, so that region "a" with zone "bc" differs from region "ab" with zone "c".
    format!("{region}:\0:{zone}")
}

/// The pod ranges given to the node.
pub fn pod_cidrs(node: &Node) -> Vec<&str> {
    let Some(spec) = &node.spec else {
        return Vec::new();
    };
    match spec.pod_cidrs.as_deref() {
        Some(all) if !all.is_empty() => all.iter().map(String::as_str).collect(),
        _ => spec
            .pod_cidr
            .as_deref()
            .filter(|cidr| !cidr.is_empty())
            .into_iter()
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{NodeAddress, NodeSpec, NodeStatus};

    #[test]
    fn reads() {
        let address = |type_: &str, address: &str| NodeAddress {
            type_: type_.into(),
            address: address.into(),
        };
        let mut node = Node {
            spec: Some(NodeSpec {
                unschedulable: Some(true),
                pod_cidr: Some("10.0.0.0/24".into()),
                ..Default::default()
            }),
            status: Some(NodeStatus {
                addresses: Some(vec![
                    address("Hostname", "n"),
                    address("ExternalIP", "8.8.8.8"),
                    address("InternalIP", "10.0.0.1"),
                ]),
                conditions: Some(vec![NodeCondition {
                    type_: "Ready".into(),
                    status: "True".into(),
                    ..Default::default()
                }]),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert!(is_node_ready(&node) && is_unschedulable(&node));
        assert_eq!(get_node_host_ip(&node), Some([10, 0, 0, 1].into()));
        assert_eq!(
            get_preferred_node_address(&node, &["ExternalIP", "Hostname"]),
            Some("8.8.8.8")
        );
        assert_eq!(pod_cidrs(&node), ["10.0.0.0/24"]);
        assert_eq!(get_zone_key(&node), "");
        node.metadata.labels = Some([(labels::ZONE.to_string(), "z".to_string())].into());
        assert_eq!(get_zone_key(&node), ":\0:z");
    }
}
