//! The decision: an Endpoints object and its mirrored slices -> which slices to create, update and delete. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use component_helpers::owner_ref::new_controller_ref;
use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::CONTROLLER_NAME;
use super::repack::repack_subsets;
use crate::endpointslice::endpoint::{
    AddressType, EndpointKey, PortKey, endpoint_key, equal_beyond_key, port_map_key,
};
use crate::endpointslice::{TRIGGER_TIME, label};

/// Set to `true` by whoever makes slices of an Endpoints object himself.
const LABEL_SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
/// A lock of leader election, not a Service's addresses.
const LEADER_ELECTION: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Carried out in this order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Without a name.
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<Arc<EndpointSlice>>,
    /// Addresses that are no IPs.
    pub invalid: usize,
    /// Addresses left out: invalid ones and those beyond the maximum of a subset.
    pub skipped: usize,
}

/// Whether an Endpoints object is to be mirrored, its Service aside.
pub fn should_mirror(endpoints: &Endpoints) -> bool {
    let meta = &endpoints.metadata;
    let skip = meta.labels.as_ref().and_then(|l| l.get(LABEL_SKIP_MIRROR));
    let annotations = meta.annotations.as_ref();
    skip.is_none_or(|value| value != "true")
        && !annotations.is_some_and(|a| a.contains_key(LEADER_ELECTION))
}

/// Whether the Service has a selector: then its slices are the endpointslice controller's.
pub fn has_selector(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|s| s.selector.is_some())
}

/// Whether a slice is one of ours.
pub fn is_managed(slice: &EndpointSlice) -> bool {
    let labels = slice.metadata.labels.as_ref();
    labels
        .and_then(|l| l.get(label::MANAGED_BY))
        .is_some_and(|by| by == CONTROLLER_NAME)
}

/// What only slices of one kind share.
type SliceKey = (AddressType, Vec<PortKey>);
type EndpointSet = BTreeMap<EndpointKey, Endpoint>;

/// Decides one pass. `existing`: the slices of this name that are ours. `max_endpoints`: of a subset.
pub fn sync(endpoints: &Endpoints, existing: &[Arc<EndpointSlice>], max_endpoints: usize) -> Plan {
    let mut plan = Plan::default();
    let mut desired: BTreeMap<SliceKey, (Vec<EndpointPort>, EndpointSet)> = BTreeMap::new();
    for subset in repack_subsets(endpoints.subsets.as_deref().unwrap_or_default()) {
        let ports: Vec<EndpointPort> = subset.ports.into_iter().map(slice_port).collect();
        let mut added = 0;
        for (address, ready) in &subset.addresses {
            if added >= max_endpoints {
                break;
            }
            let Some((address_type, endpoint)) = address_to_endpoint(address, *ready) else {
                plan.invalid += 1;
                continue;
            };
            let key = (address_type, port_map_key(&ports));
            let (_, set) = desired
                .entry(key)
                .or_insert_with(|| (ports.clone(), EndpointSet::new()));
            set.insert(endpoint_key(&endpoint), endpoint);
            added += 1;
        }
        plan.skipped += subset.addresses.len() - added;
    }
    let mut by_key: BTreeMap<SliceKey, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    let mut existing = existing.to_vec();
    existing.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    for slice in existing {
        let of_type = |t: &AddressType| t.as_str() == slice.address_type;
        match AddressType::ALL.into_iter().find(of_type) {
            Some(address_type) => by_key
                .entry((
                    address_type,
                    port_map_key(slice.ports.as_deref().unwrap_or_default()),
                ))
                .or_default()
                .push(slice),
            None => plan.delete.push(slice),
        }
    }
    for ((address_type, ports_key), (ports, set)) in desired {
        let slices = by_key
            .remove(&(address_type, ports_key))
            .unwrap_or_default();
        reconcile_by_port_mapping(&mut plan, endpoints, &slices, set, ports, address_type);
    }
    plan.delete.extend(by_key.into_values().flatten());
    recycle_slices(&mut plan);
    // While the Endpoints object goes, new slices would race with the garbage collector.
    if endpoints.metadata.deletion_timestamp.is_some() {
        plan.create.clear();
    }
    plan
}

/// One slice for one set of ports and one family: the first there is, or a new one.
fn reconcile_by_port_mapping(
    plan: &mut Plan,
    endpoints: &Endpoints,
    existing: &[Arc<EndpointSlice>],
    desired: EndpointSet,
    ports: Vec<EndpointPort>,
    address_type: AddressType,
) {
    let mut slice = new_endpoint_slice(endpoints, ports, address_type);
    let Some((first, rest)) = existing.split_first() else {
        slice.endpoints = Some(desired.into_values().collect());
        plan.create.push(slice);
        return;
    };
    plan.delete.extend(rest.iter().cloned());
    let up_to_date = has_endpoints(first, &desired)
        && first.metadata.labels == slice.metadata.labels
        && first.metadata.annotations.clone().unwrap_or_default()
            == slice.metadata.annotations.clone().unwrap_or_default()
        && !is_of_earlier_namesake(first, endpoints);
    if !up_to_date {
        slice.endpoints = Some(desired.into_values().collect());
        plan.update.push(in_place_of(slice, first));
    }
}

/// `slice` under the name of `old`; the version guards the update.
fn in_place_of(mut slice: EndpointSlice, old: &EndpointSlice) -> EndpointSlice {
    slice.metadata.generate_name = None;
    slice.metadata.name = old.metadata.name.clone();
    slice.metadata.uid = old.metadata.uid.clone();
    slice.metadata.resource_version = old.metadata.resource_version.clone();
    slice
}

fn has_endpoints(slice: &EndpointSlice, desired: &EndpointSet) -> bool {
    let found = slice.endpoints.as_deref().unwrap_or_default();
    let wanted = |e: &Endpoint| {
        desired
            .get(&endpoint_key(e))
            .is_some_and(|wanted| equal_beyond_key(wanted, e))
    };
    found.len() == desired.len() && found.iter().all(wanted)
}

fn is_of_earlier_namesake(slice: &EndpointSlice, endpoints: &Endpoints) -> bool {
    slice.metadata.owner_references.iter().flatten().any(|o| {
        o.kind == "Endpoints"
            && Some(&o.name) == endpoints.metadata.name.as_ref()
            && Some(&o.uid) != endpoints.metadata.uid.as_ref()
    })
}

/// A slice to create and one of its family to delete make one to update.
fn recycle_slices(plan: &mut Plan) {
    let mut create = Vec::new();
    for slice in std::mem::take(&mut plan.create) {
        let same_type = |old: &Arc<EndpointSlice>| old.address_type == slice.address_type;
        match plan.delete.iter().position(same_type) {
            Some(index) => {
                let old = plan.delete.remove(index);
                plan.update.push(in_place_of(slice, &old));
            }
            None => create.push(slice),
        }
    }
    plan.create = create;
}

/// `None`: the address is no IP.
fn address_to_endpoint(address: &EndpointAddress, ready: bool) -> Option<(AddressType, Endpoint)> {
    let ip = parse_ip(&address.ip)?;
    let endpoint = Endpoint {
        // Written anew: the Endpoints' may be in an irregular form.
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        target_ref: address.target_ref.clone(),
        node_name: address.node_name.clone(),
        hostname: address.hostname.clone().filter(|h| !h.is_empty()),
        ..Endpoint::default()
    };
    Some((AddressType::of(&ip), endpoint))
}

/// Takes what older API servers took: leading zeros (decimal), and IPv4 in IPv6, which counts as IPv4.
fn parse_ip(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(ip.to_canonical());
    }
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<u8> = text
        .split('.')
        .filter(is_number)
        .filter_map(|part| part.parse().ok())
        .collect();
    let octets: [u8; 4] = parts.try_into().ok()?;
    (text.split('.').count() == 4).then(|| Ipv4Addr::from(octets).into())
}

fn slice_port(port: k8s_openapi::api::core::v1::EndpointPort) -> EndpointPort {
    EndpointPort {
        name: port.name,
        port: Some(port.port),
        protocol: port.protocol,
        app_protocol: port.app_protocol,
    }
}

/// A slice without a name and endpoints, with what it takes over from the Endpoints object.
fn new_endpoint_slice(
    endpoints: &Endpoints,
    ports: Vec<EndpointPort>,
    address_type: AddressType,
) -> EndpointSlice {
    let meta = &endpoints.metadata;
    let name = meta.name.clone().unwrap_or_default();
    let mut labels = meta.labels.clone().unwrap_or_default();
    labels.insert(label::SERVICE_NAME.to_owned(), name.clone());
    labels.insert(label::MANAGED_BY.to_owned(), CONTROLLER_NAME.to_owned());
    let mut annotations = meta.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| ![TRIGGER_TIME, LAST_APPLIED].contains(&key.as_str()));
    EndpointSlice {
        address_type: address_type.as_str().to_owned(),
        endpoints: Some(Vec::new()),
        metadata: ObjectMeta {
            generate_name: Some(if name.len() < 253 {
                format!("{name}-")
            } else {
                name
            }),
            namespace: meta.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![new_controller_ref::<Endpoints>(meta)]),
            ..ObjectMeta::default()
        },
        ports: Some(ports),
    }
}
