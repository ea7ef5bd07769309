//! One pod as an endpoint of one Service: addresses, ports, conditions.

use std::net::IpAddr;

use component_helpers::owner_ref::new_controller_ref;
use component_helpers::pod::{is_pod_ready, is_terminal, is_terminating, node_name, pod_ips};
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{CONTROLLER_NAME, label};

/// `addressType` of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressType {
    IPv4,
    IPv6,
}

impl AddressType {
    pub const ALL: [AddressType; 2] = [AddressType::IPv4, AddressType::IPv6];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::IPv4 => "IPv4",
            Self::IPv6 => "IPv6",
        }
    }

    pub fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() {
            Self::IPv4
        } else {
            Self::IPv6
        }
    }
}

/// The families of a Service. A server from before dual stack gives none: then that of its address, or both if headless.
pub fn address_types(service: &Service) -> Vec<AddressType> {
    let spec = service.spec.clone().unwrap_or_default();
    let families = spec.ip_families.unwrap_or_default();
    let found: Vec<_> = AddressType::ALL
        .into_iter()
        .filter(|t| families.iter().any(|f| f == t.as_str()))
        .collect();
    if !found.is_empty() {
        return found;
    }
    match spec
        .cluster_ip
        .as_deref()
        .unwrap_or_default()
        .parse::<IpAddr>()
    {
        Ok(address) => vec![AddressType::of(&address)],
        Err(_) => AddressType::ALL.to_vec(),
    }
}

/// Whether a pod has an address that a Service could send to.
pub fn should_pod_be_in_endpoints(pod: &Pod) -> bool {
    !is_terminal(pod) && !pod_ips(pod).is_empty()
}

/// `zone`: that of the pod's node.
pub fn pod_to_endpoint(
    pod: &Pod,
    zone: Option<String>,
    service: &Service,
    address_type: AddressType,
) -> Endpoint {
    let serving = is_pod_ready(pod);
    let terminating = is_terminating(pod);
    let publish = service
        .spec
        .as_ref()
        .and_then(|s| s.publish_not_ready_addresses)
        .unwrap_or(false);
    let parse = |ip: &&str| ip.parse::<IpAddr>().ok();
    let mut addresses: Vec<String> = pod_ips(pod)
        .iter()
        .filter_map(parse)
        .filter(|ip| AddressType::of(ip) == address_type)
        .map(|ip| ip.to_string())
        .collect();
    addresses.sort();
    Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            ready: Some(publish || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        deprecated_topology: None,
        hints: None,
        hostname: hostname(pod, service),
        node_name: node_name(pod).map(str::to_owned),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        zone: zone.filter(|z| !z.is_empty()),
    }
}

/// A pod of this subdomain has a DNS name of its own.
pub fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.clone().filter(|h| !h.is_empty())?;
    (spec.subdomain == service.metadata.name
        && pod.metadata.namespace == service.metadata.namespace)
        .then_some(hostname)
}

/// The pod's numbers for the Service's ports; a named port that the pod does not have is left out.
pub fn endpoint_ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service
        .spec
        .as_ref()
        .and_then(|s| s.ports.as_deref())
        .unwrap_or_default();
    let mut found: Vec<_> = ports
        .iter()
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(find_port(pod, port)?),
                protocol: Some(protocol(port.protocol.as_deref()).to_owned()),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    found.sort_by_cached_key(port_key);
    found
}

fn protocol(protocol: Option<&str>) -> &str {
    protocol.unwrap_or("TCP")
}

/// The pod's number for a Service's port; `None`: it has no port of that name.
pub fn find_port(pod: &Pod, service_port: &ServicePort) -> Option<i32> {
    let name = match &service_port.target_port {
        Some(IntOrString::Int(number)) => return Some(*number),
        // The API server defaults it to the port.
        None => return Some(service_port.port),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    let sidecar = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten().filter(sidecar));
    containers
        .flat_map(|c| c.ports.iter().flatten())
        .find(|p| {
            p.name.as_ref() == Some(name)
                && protocol(p.protocol.as_deref()) == protocol(service_port.protocol.as_deref())
        })
        .map(|p| p.container_port)
}

/// What tells one port from another.
pub type PortKey = (String, String, Option<i32>, Option<String>);

fn port_key(port: &EndpointPort) -> PortKey {
    let name = port.name.clone().unwrap_or_default();
    (
        name,
        protocol(port.protocol.as_deref()).to_owned(),
        port.port,
        port.app_protocol.clone(),
    )
}

/// What tells one set of ports from another: only endpoints with the same ports share a slice.
pub fn port_map_key(ports: &[EndpointPort]) -> Vec<PortKey> {
    let mut keys: Vec<_> = ports.iter().map(port_key).collect();
    keys.sort();
    keys
}

/// What tells one endpoint from another; the rest may change in place.
pub type EndpointKey = (Vec<String>, String, String, String);

pub fn endpoint_key(endpoint: &Endpoint) -> EndpointKey {
    let mut addresses = endpoint.addresses.clone();
    addresses.sort();
    let target = endpoint.target_ref.as_ref();
    let text = |s: Option<&String>| s.cloned().unwrap_or_default();
    (
        addresses,
        text(endpoint.hostname.as_ref()),
        text(target.and_then(|t| t.namespace.as_ref())),
        text(target.and_then(|t| t.name.as_ref())),
    )
}

/// Equal in all that the key leaves out, but for hints, which come after.
pub fn equal_beyond_key(a: &Endpoint, b: &Endpoint) -> bool {
    let target = |e: &Endpoint| {
        e.target_ref.clone().map(|t| ObjectReference {
            resource_version: None,
            ..t
        })
    };
    let conditions = |e: &Endpoint| e.conditions.clone().unwrap_or_default();
    a.node_name == b.node_name
        && a.zone == b.zone
        && conditions(a) == conditions(b)
        && target(a) == target(b)
}

/// An empty slice without a name: the API server generates one.
pub fn new_endpoint_slice(
    service: &Service,
    ports: &[EndpointPort],
    address_type: AddressType,
) -> EndpointSlice {
    let name = service.metadata.name.as_deref().unwrap_or_default();
    EndpointSlice {
        address_type: address_type.as_str().to_owned(),
        endpoints: Some(Vec::new()),
        metadata: ObjectMeta {
            generate_name: Some(if name.len() < 253 {
                format!("{name}-")
            } else {
                name.to_owned()
            }),
            namespace: service.metadata.namespace.clone(),
            labels: Some(slice_labels(service)),
            owner_references: Some(vec![owner(service)]),
            ..ObjectMeta::default()
        },
        ports: Some(ports.to_vec()),
    }
}

fn owner(service: &Service) -> OwnerReference {
    new_controller_ref::<Service>(&service.metadata)
}

/// Not so: it belongs to an earlier Service of this name, and the garbage collector is after it.
pub fn owned_by(slice: &EndpointSlice, service: &Service) -> bool {
    let owners = slice.metadata.owner_references.iter().flatten();
    owners.clone().any(|o| {
        Some(&o.uid) == service.metadata.uid.as_ref()
            && o.kind == "Service"
            && o.api_version == "v1"
    })
}

fn is_reserved(key: &str) -> bool {
    [label::SERVICE_NAME, label::MANAGED_BY, label::IS_HEADLESS].contains(&key)
}

/// The Service's labels and our own.
pub fn slice_labels(service: &Service) -> std::collections::BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.retain(|key, _| !is_reserved(key));
    let cluster_ip = service
        .spec
        .as_ref()
        .and_then(|s| s.cluster_ip.as_deref())
        .unwrap_or_default();
    if matches!(cluster_ip, "" | "None") {
        labels.insert(label::IS_HEADLESS.to_owned(), String::new());
    }
    labels.insert(
        label::SERVICE_NAME.to_owned(),
        service.metadata.name.clone().unwrap_or_default(),
    );
    labels.insert(label::MANAGED_BY.to_owned(), CONTROLLER_NAME.to_owned());
    labels
}

/// Whether the labels of the Service, reserved ones aside, are those of the slice.
pub fn labels_changed(slice: &EndpointSlice, service: &Service) -> bool {
    let plain = |meta: &ObjectMeta| {
        let mut labels = meta.labels.clone().unwrap_or_default();
        labels.retain(|key, _| !is_reserved(key));
        labels
    };
    plain(&slice.metadata) != plain(&service.metadata)
}
