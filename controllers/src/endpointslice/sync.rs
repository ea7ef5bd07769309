//! The decision: a Service, its pods and its slices -> which slices to create, update and delete. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use component_helpers::pod::node_name;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};

use super::endpoint::*;
use super::plan::Plan;
use super::traffic;

/// What the caches hold about one Service.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Selected by the Service.
    pub pods: Vec<Arc<Pod>>,
    /// Labelled with the Service and managed by us; not being deleted.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// The zone label of the nodes that exist, of those the pods are on.
    pub zones: BTreeMap<String, Option<String>>,
}

/// Decides one pass. `max_endpoints`: of a slice.
pub fn sync(service: &Service, observed: &Observed, max_endpoints: usize) -> Plan {
    let mut plan = Plan::default();
    let types = address_types(service);
    let mut by_type: BTreeMap<&str, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in &observed.slices {
        match types.iter().find(|t| t.as_str() == slice.address_type) {
            Some(address_type) => by_type
                .entry(address_type.as_str())
                .or_default()
                .push(slice.clone()),
            None => plan.delete.push(slice.clone()),
        }
    }
    for address_type in types {
        let mut existing = by_type.remove(address_type.as_str()).unwrap_or_default();
        existing.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        let part =
            reconcile_by_address_type(service, observed, &existing, address_type, max_endpoints);
        plan.create.extend(part.create);
        plan.update.extend(part.update);
        plan.delete.extend(part.delete);
        for pod in part.skipped {
            if !plan.skipped.contains(&pod) {
                plan.skipped.push(pod);
            }
        }
    }
    // While the Service goes, new slices would race with the garbage collector.
    if service.metadata.deletion_timestamp.is_some() {
        plan.create.clear();
    }
    plan
}

type PortMap = Vec<PortKey>;
type EndpointSet = BTreeMap<EndpointKey, Endpoint>;

fn reconcile_by_address_type(
    service: &Service,
    observed: &Observed,
    existing: &[Arc<EndpointSlice>],
    address_type: AddressType,
    max_endpoints: usize,
) -> Plan {
    let mut plan = Plan::default();
    let mut by_ports: BTreeMap<PortMap, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in existing {
        if owned_by(slice, service) {
            by_ports
                .entry(port_map_key(slice.ports.as_deref().unwrap_or_default()))
                .or_default()
                .push(slice.clone());
        } else {
            plan.delete.push(slice.clone());
        }
    }
    let mut desired: BTreeMap<PortMap, (Vec<EndpointPort>, EndpointSet)> = BTreeMap::new();
    for pod in observed
        .pods
        .iter()
        .filter(|p| should_pod_be_in_endpoints(p))
    {
        let ports = endpoint_ports(service, pod);
        let (_, set) = desired
            .entry(port_map_key(&ports))
            .or_insert_with(|| (ports, EndpointSet::new()));
        let Some(zone) = zone(service, observed, pod) else {
            plan.skipped
                .push(pod.metadata.name.clone().unwrap_or_default());
            continue;
        };
        let endpoint = pod_to_endpoint(pod, zone, service, address_type);
        if !endpoint.addresses.is_empty() {
            set.insert(endpoint_key(&endpoint), endpoint);
        }
    }
    for (key, (ports, set)) in desired {
        let slices = by_ports.remove(&key).unwrap_or_default();
        reconcile_by_port_mapping(
            &mut plan,
            service,
            &slices,
            set,
            &ports,
            address_type,
            max_endpoints,
        );
    }
    // No pod has these ports any more.
    plan.delete.extend(by_ports.into_values().flatten());
    add_placeholder(&mut plan, service, existing, address_type);
    reuse_deleted(&mut plan, service);
    traffic::reconcile_hints(&mut plan, service, existing);
    plan
}

/// The zone of the pod's node; `None` if there is no such node and that matters.
fn zone(service: &Service, observed: &Observed, pod: &Pod) -> Option<Option<String>> {
    match observed.zones.get(node_name(pod).unwrap_or_default()) {
        Some(zone) => Some(zone.clone()),
        // The user wants the address published, whatever its state.
        None if service
            .spec
            .as_ref()
            .and_then(|s| s.publish_not_ready_addresses)
            .unwrap_or(false) =>
        {
            Some(None)
        }
        None => None,
    }
}

fn endpoints(slice: &EndpointSlice) -> &[Endpoint] {
    slice.endpoints.as_deref().unwrap_or_default()
}

/// The packing of endpoints with the same ports:
/// 1. take out of each slice what is not wanted, and bring up to date what is;
/// 2. fill the slices that change anyway, the fullest first;
/// 3. the rest goes into the one unchanged slice that it fills best, or into new ones.
fn reconcile_by_port_mapping(
    plan: &mut Plan,
    service: &Service,
    existing: &[Arc<EndpointSlice>],
    mut wanted: EndpointSet,
    ports: &[EndpointPort],
    address_type: AddressType,
    max_endpoints: usize,
) {
    let labels = slice_labels(service);
    let mut update: Vec<EndpointSlice> = Vec::new();
    let mut unchanged: Vec<Arc<EndpointSlice>> = Vec::new();
    for slice in existing {
        let mut kept = Vec::new();
        let mut updated = false;
        for endpoint in endpoints(slice) {
            // Once placed it needs no other place.
            if let Some(wanted) = wanted.remove(&endpoint_key(endpoint)) {
                updated |= !equal_beyond_key(&wanted, endpoint);
                kept.push(wanted);
            }
        }
        let changed = updated || kept.len() != endpoints(slice).len();
        if changed && kept.is_empty() {
            plan.delete.push(slice.clone());
        } else if changed || labels_changed(slice, service) {
            let mut copy = (**slice).clone();
            if changed {
                copy.endpoints = Some(kept);
            }
            copy.metadata.labels = Some(labels.clone());
            update.push(copy);
        } else {
            unchanged.push(slice.clone());
        }
    }
    update.sort_by_key(|s| std::cmp::Reverse(endpoints(s).len()));
    for slice in &mut update {
        fill(slice, &mut wanted, max_endpoints);
    }
    while !wanted.is_empty() {
        let best = (wanted.len() < max_endpoints)
            .then(|| slice_to_fill(&unchanged, wanted.len(), max_endpoints))
            .flatten();
        match best {
            Some(index) => {
                let mut slice = (*unchanged.remove(index)).clone();
                fill(&mut slice, &mut wanted, max_endpoints);
                update.push(slice);
            }
            None => {
                let mut slice = new_endpoint_slice(service, ports, address_type);
                fill(&mut slice, &mut wanted, max_endpoints);
                plan.create.push(slice);
            }
        }
    }
    plan.update.extend(update);
}

fn fill(slice: &mut EndpointSlice, wanted: &mut EndpointSet, max_endpoints: usize) {
    let endpoints = slice.endpoints.get_or_insert_default();
    while endpoints.len() < max_endpoints {
        let Some((_, endpoint)) = wanted.pop_first() else {
            return;
        };
        endpoints.push(endpoint);
    }
}

/// The slice that comes nearest to full with `count` more.
fn slice_to_fill(
    slices: &[Arc<EndpointSlice>],
    count: usize,
    max_endpoints: usize,
) -> Option<usize> {
    let room = |slice: &EndpointSlice| max_endpoints.checked_sub(endpoints(slice).len() + count);
    let fitting = slices
        .iter()
        .enumerate()
        .filter_map(|(index, slice)| Some((room(slice)?, index)));
    fitting
        .filter(|(room, _)| *room < max_endpoints)
        .min()
        .map(|(_, index)| index)
}

/// A Service without endpoints has one empty slice, so that everyone can see it was looked at.
fn add_placeholder(
    plan: &mut Plan,
    service: &Service,
    existing: &[Arc<EndpointSlice>],
    address_type: AddressType,
) {
    if existing.len() != plan.delete.len() || !plan.create.is_empty() {
        return;
    }
    let placeholder = new_endpoint_slice(service, &[], address_type);
    let is_placeholder = |slice: &EndpointSlice| {
        slice.metadata.labels == placeholder.metadata.labels
            && slice.metadata.owner_references == placeholder.metadata.owner_references
            && endpoints(slice).is_empty()
            && slice.ports.as_deref().unwrap_or_default().is_empty()
    };
    match &plan.delete[..] {
        [only] if is_placeholder(only) => plan.delete.clear(),
        _ => plan.create.push(placeholder),
    }
}

/// A slice to create and one to delete make one to update: fewer writes, fewer events for every node.
fn reuse_deleted(plan: &mut Plan, service: &Service) {
    let mut delete = Vec::new();
    for slice in std::mem::take(&mut plan.delete) {
        if plan.create.is_empty() || !owned_by(&slice, service) {
            delete.push(slice);
            continue;
        }
        if let Some(mut new) = plan.create.pop() {
            new.metadata.name = slice.metadata.name.clone();
            new.metadata.resource_version = slice.metadata.resource_version.clone();
            new.metadata.uid = slice.metadata.uid.clone();
            plan.update.push(new);
        }
    }
    plan.delete = delete;
}
