//! What of the Node others say, and the kubelet takes over; pure.
//!
//! Owns: addresses that a cloud's controller sets, and extended resources that an administrator adds to the capacity. Upstream:
//! `NodeAddress` and `MachineInfo` in `pkg/kubelet/nodestatus/setters.go`, `GetNodeHostIPs`, v1.37.

use std::net::IpAddr;

use component_helpers::resources::{ResourceList, is_extended_resource_name};
use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeStatus};

use crate::cm::machine::MachineInfo;

/// The node's own word: its addresses, and its name.
pub fn own_addresses(addresses: &[IpAddr], hostname: &str) -> Vec<NodeAddress> {
    let internal = addresses.iter().map(|ip| NodeAddress {
        type_: "InternalIP".to_owned(),
        address: ip.to_string(),
    });
    let name = NodeAddress {
        type_: "Hostname".to_owned(),
        address: hostname.to_owned(),
    };
    internal.chain([name]).collect()
}

/// Addresses that somebody else set: with an external cloud provider they are not the kubelet's to change.
pub fn set_addresses(node: Option<&Node>) -> Option<Vec<NodeAddress>> {
    let addresses = node?.status.as_ref()?.addresses.clone()?;
    (!addresses.is_empty()).then_some(addresses)
}

/// Where the node is reached: the first address, and the first one of the other family. Internal ones come before external ones.
pub fn host_ips(node: &Node) -> Vec<String> {
    let addresses = || {
        let status = node.status.iter();
        status.flat_map(|s| s.addresses.iter().flatten())
    };
    let of = |kind: &'static str| addresses().filter(move |a| a.type_ == kind);
    let all: Vec<IpAddr> = of("InternalIP")
        .chain(of("ExternalIP"))
        .filter_map(|a| a.address.parse().ok())
        .collect();
    let first = all.first();
    let second = first.and_then(|first| all.iter().find(|ip| ip.is_ipv4() != first.is_ipv4()));
    first
        .into_iter()
        .chain(second)
        .map(ToString::to_string)
        .collect()
}

/// Extended resources of the Node's capacity that the kubelet knows nothing of: an administrator added them, and all of them may be
/// asked for.
pub fn extended_resources(capacity: Option<&ResourceList>, own: &ResourceList) -> ResourceList {
    capacity
        .into_iter()
        .flatten()
        .filter(|(name, _)| !own.contains_key(*name) && is_extended_resource_name(name))
        .map(|(name, amount)| (name.clone(), amount.clone()))
        .collect()
}

/// The Node was written by a kubelet of another machine, whose name this one has now. Upstream: `reconcileExtendedResource`.
///
/// DIFFERS: upstream asks whether it has a checkpoint of devices, and takes what an administrator added to the Node away at every start
/// until a plugin comes.
pub fn is_of_another_machine(status: Option<&NodeStatus>, machine: &MachineInfo) -> bool {
    let Some(info) = status.and_then(|s| s.node_info.as_ref()) else {
        return false;
    };
    let differs = |theirs: &str, ours: &str| {
        let known = !theirs.is_empty() && !ours.is_empty();
        known && !theirs.eq_ignore_ascii_case(ours)
    };
    // A machine that tells no UUID has its ID in the place of it.
    let tells_uuid = machine.system_uuid != machine.machine_id;
    differs(&info.machine_id, &machine.machine_id)
        || tells_uuid && differs(&info.system_uuid, &machine.system_uuid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(addresses: serde_json::Value) -> Node {
        serde_json::from_value(json!({"status": {"addresses": addresses}})).unwrap()
    }

    #[test]
    fn the_first_of_each_family_is_where_the_node_is() {
        let check = |addresses: serde_json::Value, expect: &[&str]| {
            assert_eq!(host_ips(&node(addresses)), expect);
        };
        check(json!([]), &[]);
        check(json!([{"type": "Hostname", "address": "n"}]), &[]);
        check(
            json!([{"type": "ExternalIP", "address": "198.51.100.1"}, {"type": "InternalIP", "address": "10.0.0.1"}]),
            &["10.0.0.1"],
        );
        check(
            json!([{"type": "InternalIP", "address": "fd00::1"}, {"type": "InternalIP", "address": "fd00::2"},
                   {"type": "ExternalIP", "address": "198.51.100.1"}]),
            &["fd00::1", "198.51.100.1"],
        );
    }

    #[test]
    fn only_what_an_administrator_added_is_taken_over() {
        let list = |value| serde_json::from_value::<ResourceList>(value).unwrap();
        let own = list(json!({"cpu": "4", "example.com/known": "1"}));
        let theirs = list(json!({
            "cpu": "8", "pods": "1", "hugepages-2Mi": "0", "example.com/known": "2", "example.com/dongle": "3",
            "attachable-volumes-x": "5", "kubernetes.io/x": "1",
        }));
        let found = extended_resources(Some(&theirs), &own);
        assert_eq!(found, list(json!({"example.com/dongle": "3"})));
        assert!(extended_resources(None, &own).is_empty());
    }

    #[test]
    fn a_node_is_another_machines_if_it_says_so() {
        let ours = MachineInfo {
            machine_id: "m".to_owned(),
            system_uuid: "u".to_owned(),
            ..MachineInfo::default()
        };
        let check = |machine: &str, uuid: &str, expect: bool| {
            let mut status = NodeStatus::default();
            let info = status.node_info.get_or_insert_default();
            (info.machine_id, info.system_uuid) = (machine.to_owned(), uuid.to_owned());
            let is = is_of_another_machine(Some(&status), &ours);
            assert_eq!(is, expect, "{machine} {uuid}");
        };
        // The first start of a version that keeps a record of devices is none of another machine.
        check("m", "u", false);
        check("m", "U", false);
        check("", "", false);
        check("other", "u", true);
        check("m", "other", true);
        assert!(!is_of_another_machine(None, &ours));
        assert!(!is_of_another_machine(Some(&NodeStatus::default()), &ours));
    }
}
