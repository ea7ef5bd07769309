//! What kube-proxy needs of its own Node and of this machine's addresses.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use nftables::Family;

/// The label that tells a node's zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Set by cluster autoscalers on a node that they are about to delete. Upstream: healthcheck.ToBeDeletedTaint.
const TO_BE_DELETED_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// The Node's addresses of one family, InternalIP before ExternalIP. Upstream: utilnode.GetNodeHostIPs.
pub fn node_ip(node: &Node, family: Family) -> Option<IpAddr> {
    let addresses = || {
        node.status
            .iter()
            .flat_map(|status| status.addresses.iter().flatten())
    };
    ["InternalIP", "ExternalIP"].iter().find_map(|kind| {
        let of_kind = addresses().filter(|address| address.type_ == *kind);
        of_kind
            .filter_map(|address| address.address.parse().ok())
            .find(|ip| Family::of(ip) == family)
    })
}

/// The node's ranges of pods.
pub fn pod_cidrs(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else {
        return Vec::new();
    };
    let all = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    let mut ranges: Vec<IpNet> = all.filter_map(|text| text.parse().ok()).collect();
    ranges.dedup();
    ranges
}

pub fn zone(node: &Node) -> String {
    let labels = node.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(ZONE_LABEL))
        .cloned()
        .unwrap_or_default()
}

/// A load balancer may send traffic here. Upstream: ProxyHealthServer.NodeEligible.
pub fn is_eligible(node: Option<&Node>) -> bool {
    node.is_some_and(|node| {
        let taints = node
            .spec
            .iter()
            .flat_map(|spec| spec.taints.iter().flatten());
        node.metadata.deletion_timestamp.is_none()
            && taints
                .into_iter()
                .all(|taint| taint.key != TO_BE_DELETED_TAINT)
    })
}

/// Addresses of this machine that lie in one of the ranges.
///
/// # Errors
/// The kernel's list cannot be read.
pub fn local_addresses(ranges: &[IpNet]) -> std::io::Result<Vec<IpAddr>> {
    let mut found = Vec::new();
    for interface in nix::ifaddrs::getifaddrs()? {
        let Some(address) = interface.address else {
            continue;
        };
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        let v6 = address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip()));
        found.extend(
            v4.or(v6)
                .filter(|ip| ranges.iter().any(|range| range.contains(ip))),
        );
    }
    Ok(found)
}
