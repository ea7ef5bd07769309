//! Hints by `spec.trafficDistribution`: which zone or node an endpoint is best for. Upstream: k8s.io/endpointslice/trafficdist.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, EndpointSlice, ForNode, ForZone};

use super::plan::Plan;

/// Gives every ready endpoint its hint; slices that only lack hints join the plan.
pub(super) fn reconcile_hints(plan: &mut Plan, service: &Service, existing: &[Arc<EndpointSlice>]) {
    let distribution = Distribution::of(service);
    let stale: Vec<EndpointSlice> = plan
        .unchanged(existing)
        .into_iter()
        .filter(|slice| {
            slice
                .endpoints
                .iter()
                .flatten()
                .any(|e| distribution.is_stale(e))
        })
        .map(|slice| (**slice).clone())
        .collect();
    plan.update.extend(stale);
    for slice in plan.create.iter_mut().chain(&mut plan.update) {
        for endpoint in slice.endpoints.iter_mut().flatten() {
            distribution.update(endpoint);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distribution {
    Anywhere,
    SameZone,
    SameNode,
}

impl Distribution {
    fn of(service: &Service) -> Self {
        match service
            .spec
            .as_ref()
            .and_then(|s| s.traffic_distribution.as_deref())
        {
            Some("PreferClose" | "PreferSameZone") => Self::SameZone,
            Some("PreferSameNode") => Self::SameNode,
            _ => Self::Anywhere,
        }
    }

    fn hints(self, endpoint: &Endpoint) -> Option<EndpointHints> {
        if self == Self::Anywhere {
            return None;
        }
        let for_zones = endpoint.zone.clone().map(|name| vec![ForZone { name }]);
        let node = endpoint
            .node_name
            .clone()
            .filter(|_| self == Self::SameNode);
        let for_nodes = node.map(|name| vec![ForNode { name }]);
        (for_zones.is_some() || for_nodes.is_some()).then_some(EndpointHints {
            for_nodes,
            for_zones,
        })
    }

    /// With a preference, what is not ready keeps the hints it has: nobody reads them.
    fn concerns(self, endpoint: &Endpoint) -> bool {
        self == Self::Anywhere
            || endpoint
                .conditions
                .as_ref()
                .and_then(|c| c.ready)
                .unwrap_or(false)
    }

    fn is_stale(self, endpoint: &Endpoint) -> bool {
        self.concerns(endpoint) && endpoint.hints != self.hints(endpoint)
    }

    fn update(self, endpoint: &mut Endpoint) {
        if self.concerns(endpoint) {
            endpoint.hints = self.hints(endpoint);
        }
    }
}
