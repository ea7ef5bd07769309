//! Which routes are wanted, which are in the way, and what a Node's condition says of it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use cloud_provider::Route;
use controller_runtime::Action;
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

/// A route that is wanted and not there.
#[derive(Clone, Debug, PartialEq)]
pub struct Missing {
    /// The Node it leads to.
    pub node: Arc<Node>,
    /// The route.
    pub route: Route,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Routes that are in the way.
    pub delete: Vec<Route>,
    /// Routes that are not there.
    pub create: Vec<Missing>,
    /// Nodes that have no range, but a route: they are not reachable.
    pub without_range: BTreeSet<String>,
    /// Nodes with ranges.
    pub with_range: BTreeSet<String>,
}

fn name(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap_or_default()
}

fn ranges(node: &Node) -> &[String] {
    let spec = node.spec.as_ref();
    spec.and_then(|s| s.pod_cidrs.as_deref())
        .unwrap_or_default()
}

fn addresses(node: &Node) -> &[NodeAddress] {
    let status = node.status.as_ref();
    status
        .and_then(|s| s.addresses.as_deref())
        .unwrap_or_default()
}

/// Whether a change of a Node may change its routes.
pub fn matters(old: &Node, new: &Node) -> bool {
    ranges(old) != ranges(new) || addresses(old) != addresses(new)
}

fn same_addresses(a: &[NodeAddress], b: &[NodeAddress]) -> bool {
    a.len() == b.len() && a.iter().all(|address| b.contains(address))
}

/// Whether a route is the cluster's: its range is in one of the cluster's.
fn is_ours(route: &Route, cluster: &[IpNet]) -> bool {
    let Ok(range) = route.destination_cidr.parse::<IpNet>() else {
        tracing::error!(
            route = route.name,
            range = route.destination_cidr,
            "Ignoring route, unparsable CIDR"
        );
        return false;
    };
    let ends: [IpAddr; 2] = [range.network(), range.broadcast()];
    cluster
        .iter()
        .any(|ours| ends.iter().any(|ip| ours.contains(ip)))
}

fn leads_to(route: &Route, node: &Node, range: &str) -> bool {
    route.destination_cidr == range
        && !route.blackhole
        && (!route.enable_node_addresses
            || same_addresses(addresses(node), &route.target_node_addresses))
}

/// What is to be done about all routes.
///
/// DIFFERS: a route that leads nowhere (`blackhole`) is made anew in the same round; upstream deletes it and makes it in the next.
pub fn plan(nodes: &[Arc<Node>], routes: &[Route], cluster: &[IpNet]) -> Plan {
    let mut plan = Plan::default();
    let by_name: BTreeMap<&str, &Arc<Node>> = nodes.iter().map(|node| (name(node), node)).collect();
    for route in routes.iter().filter(|route| is_ours(route, cluster)) {
        let node = by_name.get(&*route.target_node);
        let stays = node.is_some_and(|node| {
            ranges(node)
                .iter()
                .any(|range| leads_to(route, node, range))
        });
        if !stays {
            plan.delete.push(route.clone());
        }
    }
    for node in nodes {
        let of_node = || {
            routes
                .iter()
                .filter(move |route| route.target_node == name(node))
        };
        if ranges(node).is_empty() {
            if of_node().next().is_some() {
                plan.without_range.insert(name(node).to_owned());
            }
            continue;
        }
        plan.with_range.insert(name(node).to_owned());
        for range in ranges(node) {
            if of_node().any(|route| leads_to(route, node, range)) {
                continue;
            }
            let route = Route {
                target_node: name(node).to_owned(),
                target_node_addresses: addresses(node).to_vec(),
                destination_cidr: range.clone(),
                ..Route::default()
            };
            let node = node.clone();
            plan.create.push(Missing { node, route });
        }
    }
    plan
}

/// Makes the Node's condition `NetworkUnavailable` right; `None` when it is.
pub fn condition(node: &Node, reachable: bool, now: Timestamp) -> Option<Action> {
    let (status, reason, message) = match reachable {
        true => ("False", "RouteCreated", "RouteController created a route"),
        false => (
            "True",
            "NoRouteCreated",
            "RouteController failed to create a route",
        ),
    };
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    let current = conditions.find(|c| c.type_ == "NetworkUnavailable");
    if current.is_some_and(|c| c.status == status && c.reason.as_deref() == Some(reason)) {
        return None;
    }
    let condition = NodeCondition {
        type_: "NetworkUnavailable".into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_heartbeat_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    let patch = json!({ "metadata": { "uid": node.metadata.uid }, "status": { "conditions": [condition] } });
    Some(Action::status_patch::<Node>("", name(node), patch))
}
