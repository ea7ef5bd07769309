//! Which endpoints this node sends a Service's traffic to. Pure.
//!
//! Upstream: pkg/proxy/topology.go.

use crate::endpoint::Endpoint;
use crate::service::ServicePort;

/// The usable endpoints of a port. "Usable" is ready, or, where none is, serving and terminating.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Categorized<'e> {
    /// For traffic with policy Cluster, after topology; empty where the port has no such traffic.
    pub cluster: Vec<&'e Endpoint>,
    /// For traffic with policy Local; empty where the port has no such traffic.
    pub local: Vec<&'e Endpoint>,
    /// Somewhere in the cluster there is a usable endpoint, even if none can be reached from here.
    pub has_any: bool,
}

/// Where this node is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub node: String,
    /// Label topology.kubernetes.io/zone; empty: unknown.
    pub zone: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Any,
    SameNode,
    SameZone,
}

/// Sorts the endpoints of a port.
pub fn categorize_endpoints<'e>(
    endpoints: &'e [Endpoint],
    port: &ServicePort,
    place: &Place,
) -> Categorized<'e> {
    let mut result = Categorized::default();
    if port.uses_cluster_endpoints() {
        let mode = mode_from_hints(endpoints, place);
        let available = |e: &&Endpoint| match mode {
            Mode::Any => true,
            Mode::SameNode => e.node_hints.contains(&place.node),
            Mode::SameZone => e.zone_hints.contains(&place.zone),
        };
        result.cluster = endpoints
            .iter()
            .filter(|e| e.ready)
            .filter(available)
            .collect();
        if result.cluster.is_empty() {
            result.cluster = endpoints
                .iter()
                .filter(|e| e.serving && e.terminating)
                .collect();
        }
        result.has_any = !result.cluster.is_empty();
    }
    if port.uses_local_endpoints() {
        let leaving = |e: &Endpoint| !e.ready && e.serving && e.terminating;
        result.has_any |= endpoints.iter().any(|e| e.ready || leaving(e));
        let local: Vec<_> = endpoints.iter().filter(|e| e.is_local).collect();
        result.local = local.iter().copied().filter(|e| e.ready).collect();
        if result.local.is_empty() {
            result.local = local
                .into_iter()
                .filter(|e| e.serving && e.terminating)
                .collect();
        }
    }
    result
}

/// Hints count only if every ready endpoint has one and one of them is for us.
fn mode_from_hints(endpoints: &[Endpoint], place: &Place) -> Mode {
    let mut ready = endpoints.iter().filter(|e| e.ready).peekable();
    if ready.peek().is_none() {
        return Mode::Any;
    }
    let (mut all_nodes, mut all_zones, mut for_node, mut for_zone) = (true, true, false, false);
    for endpoint in ready {
        all_nodes &= !endpoint.node_hints.is_empty();
        all_zones &= !endpoint.zone_hints.is_empty();
        for_node |= endpoint.node_hints.contains(&place.node);
        for_zone |= endpoint.zone_hints.contains(&place.zone);
    }
    if all_nodes && for_node {
        Mode::SameNode
    } else if all_zones && for_zone {
        Mode::SameZone
    } else {
        Mode::Any
    }
}

#[cfg(test)]
mod tests;
