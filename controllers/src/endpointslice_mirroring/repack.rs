//! The canonical form of an Endpoints object's subsets: every address once, under all the ports it has. Pure.
//!
//! Upstream: `RepackSubsets` of pkg/api/v1/endpoints/util.go.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset};

/// Name, number, protocol, application protocol.
type Port = (String, i32, String, Option<String>);
/// IP and the target's UID: two pods may share an address.
type AddressKey = (String, String);
/// Whether each address is ready.
type AddressSet = BTreeMap<AddressKey, bool>;

/// One set of ports and the addresses that have all of them, in a fixed order.
#[derive(Clone, Debug, PartialEq)]
pub struct Repacked {
    /// Sorted; empty for addresses without ports.
    pub ports: Vec<EndpointPort>,
    /// Ready ones first.
    pub addresses: Vec<(EndpointAddress, bool)>,
}

/// Expands the subsets to (port, address) pairs and joins the ports of equal sets of addresses. Not ready trumps ready.
pub fn repack_subsets(subsets: &[EndpointSubset]) -> Vec<Repacked> {
    let mut addresses: BTreeMap<AddressKey, &EndpointAddress> = BTreeMap::new();
    // `None` stands for the addresses of a subset without ports.
    let mut by_port: BTreeMap<Option<Port>, AddressSet> = BTreeMap::new();
    for subset in subsets {
        let ports = subset.ports.as_deref().unwrap_or_default();
        let mut keys: Vec<Option<Port>> = ports.iter().map(|p| Some(port_key(p))).collect();
        if keys.is_empty() {
            keys.push(None);
        }
        let lists = [
            (true, &subset.addresses),
            (false, &subset.not_ready_addresses),
        ];
        for (ready, list) in lists {
            for address in list.iter().flatten() {
                let uid = address.target_ref.as_ref().and_then(|t| t.uid.clone());
                let key = (address.ip.clone(), uid.unwrap_or_default());
                addresses.entry(key.clone()).or_insert(address);
                for port in &keys {
                    let set = by_port.entry(port.clone()).or_default();
                    let state = set.entry(key.clone()).or_insert(ready);
                    *state &= ready;
                }
            }
        }
    }
    let mut ports_of: BTreeMap<AddressSet, Vec<Port>> = BTreeMap::new();
    for (port, set) in by_port {
        ports_of.entry(set).or_default().extend(port);
    }
    let repacked = |(set, ports): (AddressSet, Vec<Port>)| {
        let list = |wanted: bool| {
            let keys = set.iter().filter(move |(_, ready)| **ready == wanted);
            keys.filter_map(|(key, ready)| Some(((*addresses.get(key)?).clone(), *ready)))
        };
        Repacked {
            addresses: list(true).chain(list(false)).collect(),
            ports: ports.into_iter().map(port_of).collect(),
        }
    };
    ports_of.into_iter().map(repacked).collect()
}

fn port_key(port: &EndpointPort) -> Port {
    (
        port.name.clone().unwrap_or_default(),
        port.port,
        port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        port.app_protocol.clone(),
    )
}

fn port_of((name, port, protocol, app_protocol): Port) -> EndpointPort {
    EndpointPort {
        name: Some(name),
        port,
        protocol: Some(protocol),
        app_protocol,
    }
}
