//! Endpoints of a Service's port, from its EndpointSlices.
//!
//! Upstream: pkg/proxy/endpoint.go, endpointslicecache.go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use nftables::Family;

use crate::service::{PortName, protocol};

/// One address and port behind a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: IpAddr,
    pub port: u16,
    /// On this node.
    pub is_local: bool,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub zone_hints: BTreeSet<String>,
    pub node_hints: BTreeSet<String>,
}

/// The endpoints of each port, sorted by address, from all slices of one Service in one family.
pub fn endpoints_by_port<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    family: Family,
    node_name: &str,
) -> BTreeMap<PortName, Vec<Endpoint>> {
    let mut found: BTreeMap<PortName, BTreeMap<(IpAddr, u16), Endpoint>> = BTreeMap::new();
    for slice in slices
        .into_iter()
        .filter(|slice| slice_family(slice) == Some(family))
    {
        for port in slice.ports.iter().flatten() {
            let number = port
                .port
                .and_then(|number| u16::try_from(number).ok())
                .filter(|number| *number != 0);
            let (Some(number), Some(protocol)) = (number, protocol(port.protocol.as_deref()))
            else {
                continue;
            };
            let name = PortName {
                port: port.name.clone().unwrap_or_default(),
                protocol,
            };
            let endpoints = found.entry(name).or_default();
            for endpoint in slice.endpoints.iter().flatten() {
                let Some(endpoint) = convert(endpoint, number, node_name) else {
                    continue;
                };
                let key = (endpoint.address, endpoint.port);
                // In two slices at once (it moves), or two pods with one address: the one that is not terminating counts.
                if !endpoint.terminating || !endpoints.contains_key(&key) {
                    endpoints.insert(key, endpoint);
                }
            }
        }
    }
    found
        .into_iter()
        .map(|(name, endpoints)| (name, endpoints.into_values().collect()))
        .collect()
}

fn slice_family(slice: &EndpointSlice) -> Option<Family> {
    match slice.address_type.as_str() {
        "IPv4" => Some(Family::Ip),
        "IPv6" => Some(Family::Ip6),
        _ => None,
    }
}

fn convert(
    endpoint: &k8s_openapi::api::discovery::v1::Endpoint,
    port: u16,
    node_name: &str,
) -> Option<Endpoint> {
    let conditions = endpoint.conditions.as_ref();
    let hints = endpoint.hints.as_ref();
    Some(Endpoint {
        // Upstream takes the first address; there is never a second.
        address: endpoint.addresses.first()?.parse().ok()?,
        port,
        is_local: !node_name.is_empty() && endpoint.node_name.as_deref() == Some(node_name),
        ready: conditions.and_then(|c| c.ready).unwrap_or(true),
        serving: conditions.and_then(|c| c.serving).unwrap_or(true),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        zone_hints: hints
            .into_iter()
            .flat_map(|h| h.for_zones.iter().flatten())
            .map(|z| z.name.clone())
            .collect(),
        node_hints: hints
            .into_iter()
            .flat_map(|h| h.for_nodes.iter().flatten())
            .map(|n| n.name.clone())
            .collect(),
    })
}
