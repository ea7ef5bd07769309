//! What is known of Services and endpoints, kept up to date by events. Pure.
//!
//! Only the Services that an event named are computed anew. Upstream: servicechangetracker.go, endpointschangetracker.go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use nftables::{Family, Protocol};

use crate::endpoint::endpoints_by_port;
use crate::render::ServiceEntry;
use crate::service::{NamespacedName, service_ports};

/// Upstream: discovery.LabelServiceName.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Upstream: v1.EndpointsLastChangeTriggerTime.
const TRIGGER_TIME_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// The Services of one address family.
#[derive(Debug)]
pub struct State {
    family: Family,
    node_name: String,
    /// Whether `spec.externalIPs` count. Upstream: gate AllowServiceExternalIPs.
    external_ips: bool,
    services: BTreeMap<NamespacedName, ServiceEntry>,
    slices: BTreeMap<NamespacedName, BTreeMap<String, Arc<EndpointSlice>>>,
    changes: Changes,
}

/// What happened since the last sync.
#[derive(Debug, Default)]
pub struct Changes {
    /// Services whose endpoints must be computed anew.
    stale_endpoints: BTreeSet<NamespacedName>,
    /// Ports, endpoints or topology changed.
    pub any: bool,
    /// Something changed for UDP, so old conntrack entries may lead nowhere.
    pub udp: bool,
    /// When the pods behind the changed slices changed, as the slices say.
    pub trigger_times: Vec<Timestamp>,
    pub services: usize,
    pub endpoints: usize,
}

impl State {
    pub fn new(family: Family, node_name: &str, external_ips: bool) -> Self {
        Self {
            family,
            node_name: node_name.to_owned(),
            external_ips,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            changes: Changes::default(),
        }
    }

    /// A Service is new or changed. True: this matters to the rules.
    pub fn apply_service(&mut self, service: &Service) -> bool {
        let name = name_of(&service.metadata);
        let mut ports = service_ports(service, self.family);
        if !self.external_ips {
            ports
                .values_mut()
                .for_each(|port| port.external_ips.clear());
        }
        let before = self.services.get(&name).map(|entry| &entry.ports);
        if before.is_none_or(BTreeMap::is_empty) && ports.is_empty() || before == Some(&ports) {
            return false;
        }
        let udp = |p: &crate::service::PortName| p.protocol == Protocol::Udp;
        self.changes.udp |= ports.keys().any(udp) || before.is_some_and(|b| b.keys().any(udp));
        if ports.is_empty() {
            self.services.remove(&name);
        } else {
            // Endpoints may have come before the Service.
            if !self.services.contains_key(&name) {
                self.changes.stale_endpoints.insert(name.clone());
            }
            self.services.entry(name).or_default().ports = ports;
        }
        self.changes.services += 1;
        self.changes.any = true;
        true
    }

    /// A Service is gone. True: this matters to the rules.
    pub fn remove_service(&mut self, service: &Service) -> bool {
        let Some(entry) = self.services.remove(&name_of(&service.metadata)) else {
            return false;
        };
        self.changes.udp |= entry
            .ports
            .keys()
            .any(|port| port.protocol == Protocol::Udp);
        self.changes.services += 1;
        self.changes.any = true;
        true
    }

    /// A slice is new or changed. True: this matters to the rules.
    pub fn apply_slice(&mut self, slice: &Arc<EndpointSlice>) -> bool {
        let (Some(service), Some(name)) = (service_of(slice), slice.metadata.name.clone()) else {
            return false;
        };
        if !self.is_ours(slice) {
            return false;
        }
        let slices = self.slices.entry(service.clone()).or_default();
        let same =
            |old: &Arc<EndpointSlice>| old.endpoints == slice.endpoints && old.ports == slice.ports;
        if slices.get(&name).is_some_and(same) {
            slices.insert(name, slice.clone());
            return false;
        }
        slices.insert(name, slice.clone());
        let trigger = slice
            .metadata
            .annotations
            .as_ref()
            .and_then(|a| a.get(TRIGGER_TIME_ANNOTATION));
        self.changes
            .trigger_times
            .extend(trigger.and_then(|text| text.parse::<Timestamp>().ok()));
        self.slices_changed(service)
    }

    /// A slice is gone. True: this matters to the rules.
    pub fn remove_slice(&mut self, slice: &EndpointSlice) -> bool {
        let (Some(service), Some(name)) = (service_of(slice), slice.metadata.name.as_ref()) else {
            return false;
        };
        let Some(slices) = self.slices.get_mut(&service) else {
            return false;
        };
        if slices.remove(name).is_none() {
            return false;
        }
        if slices.is_empty() {
            self.slices.remove(&service);
        }
        self.slices_changed(service)
    }

    /// The rules depend on something else that changed (topology, Service ranges).
    pub fn touch(&mut self) {
        self.changes.any = true;
    }

    fn slices_changed(&mut self, service: NamespacedName) -> bool {
        self.changes.endpoints += 1;
        self.changes.stale_endpoints.insert(service);
        self.changes.any = true;
        true
    }

    fn is_ours(&self, slice: &EndpointSlice) -> bool {
        match self.family {
            Family::Ip => slice.address_type == "IPv4",
            Family::Ip6 => slice.address_type == "IPv6",
        }
    }

    /// True: something waits for a sync.
    pub fn is_changed(&self) -> bool {
        self.changes.any
    }

    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Computes what is stale and hands out what changed.
    pub fn take_changes(&mut self) -> Changes {
        let mut changes = std::mem::take(&mut self.changes);
        for name in std::mem::take(&mut changes.stale_endpoints) {
            let Some(entry) = self.services.get_mut(&name) else {
                continue;
            };
            let slices = self
                .slices
                .get(&name)
                .into_iter()
                .flat_map(|slices| slices.values().map(Arc::as_ref));
            entry.endpoints = endpoints_by_port(slices, self.family, &self.node_name);
            changes.udp |= entry
                .ports
                .keys()
                .any(|port| port.protocol == Protocol::Udp);
        }
        changes
    }

    /// All Services, as of the last [`State::take_changes`].
    pub fn services(&self) -> &BTreeMap<NamespacedName, ServiceEntry> {
        &self.services
    }
}

fn name_of(
    metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> NamespacedName {
    NamespacedName {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
    }
}

fn service_of(slice: &EndpointSlice) -> Option<NamespacedName> {
    let name = slice
        .metadata
        .labels
        .as_ref()?
        .get(SERVICE_NAME_LABEL)
        .filter(|name| !name.is_empty())?;
    Some(NamespacedName {
        namespace: slice.metadata.namespace.clone()?,
        name: name.clone(),
    })
}

#[cfg(test)]
mod tests;
