//! The decision: the Endpoints of a Service. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use component_helpers::pod::{is_pod_ready, is_terminal, is_terminating, node_name, pod_ips};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{CONTROLLER_NAME, IS_HEADLESS, MANAGED_BY, OVER_CAPACITY};
use crate::endpointslice::TRIGGER_TIME;
use crate::endpointslice::endpoint::{find_port, hostname};

/// Upstream's `maxCapacity`.
pub const MAX_CAPACITY: usize = 1000;

/// What is to be written.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// There is none yet.
    Create(Box<Endpoints>),
    /// There is one, and it is not right.
    Update(Box<Endpoints>),
}

/// Decides one pass; `pods` are those that the Service selects. `None`: all is right as it is.
pub fn sync(
    service: &Service,
    pods: &[Arc<Pod>],
    current: Option<&Endpoints>,
    trigger_time: Option<Timestamp>,
) -> Option<Write> {
    let (subsets, truncated) = truncate(subsets(service, pods));
    let labels = labels(service);
    let of_current =
        |key: &str| -> Option<String> { current?.metadata.annotations.as_ref()?.get(key).cloned() };
    if let Some(current) = current {
        let same = repack(current.subsets.clone().unwrap_or_default())
            == without_versions(&subsets)
            && current.metadata.labels.clone().unwrap_or_default() == labels
            && of_current(OVER_CAPACITY).is_some() == truncated;
        if same {
            return None;
        }
    }
    let mut endpoints = current.cloned().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
        ..Endpoints::default()
    });
    let mut annotations = endpoints.metadata.annotations.take().unwrap_or_default();
    match trigger_time {
        Some(time) => annotations.insert(TRIGGER_TIME.to_owned(), time.to_string()),
        None => annotations.remove(TRIGGER_TIME),
    };
    match truncated {
        true => annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned()),
        false => annotations.remove(OVER_CAPACITY),
    };
    endpoints.metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    endpoints.metadata.labels = Some(labels);
    endpoints.subsets = (!subsets.is_empty()).then_some(subsets);
    Some(match current {
        Some(_) => Write::Update(Box::new(endpoints)),
        None => Write::Create(Box::new(endpoints)),
    })
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    let cluster_ip = service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref());
    match cluster_ip.unwrap_or_default() {
        "" | "None" => labels.insert(IS_HEADLESS.to_owned(), String::new()),
        _ => labels.remove(IS_HEADLESS),
    };
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER_NAME.to_owned());
    labels
}

type Ports = BTreeSet<(String, i32, String, Option<String>)>;

/// Addresses with the same ports stand together.
#[derive(Default)]
struct Packed(BTreeMap<Ports, BTreeMap<(String, String), (bool, EndpointAddress)>>);

fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let spec = service.spec.clone().unwrap_or_default();
    let publish = spec.publish_not_ready_addresses.unwrap_or(false);
    let ports = spec.ports.unwrap_or_default();
    let headless = spec.cluster_ip.as_deref() == Some("None");
    let mut packed = Packed::default();
    for pod in pods {
        if is_terminal(pod) || (is_terminating(pod) && !publish) {
            continue;
        }
        let Some(address) = address(service, pod) else {
            continue;
        };
        let found: Ports = ports
            .iter()
            .filter_map(|port| {
                Some((
                    port.name.clone().unwrap_or_default(),
                    find_port(pod, port)?,
                    port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                    port.app_protocol.clone(),
                ))
            })
            .collect();
        if found.is_empty() && !(ports.is_empty() && headless) {
            continue;
        }
        packed.add(found, publish || is_pod_ready(pod), address);
    }
    packed.subsets()
}

impl Packed {
    fn add(&mut self, ports: Ports, ready: bool, address: EndpointAddress) {
        let uid = address.target_ref.as_ref().and_then(|t| t.uid.clone());
        let key = (address.ip.clone(), uid.unwrap_or_default());
        self.0
            .entry(ports)
            .or_default()
            .insert(key, (ready, address));
    }

    fn subsets(self) -> Vec<EndpointSubset> {
        let subset = |(ports, addresses): (Ports, BTreeMap<_, (bool, EndpointAddress)>)| {
            let (ready, not_ready): (Vec<_>, Vec<_>) =
                addresses.into_values().partition(|(ready, _)| *ready);
            let list = |of: Vec<(bool, EndpointAddress)>| {
                (!of.is_empty()).then(|| of.into_iter().map(|(_, a)| a).collect())
            };
            let ports = ports
                .into_iter()
                .map(|(name, port, protocol, app)| EndpointPort {
                    name: Some(name).filter(|n| !n.is_empty()),
                    port,
                    protocol: Some(protocol),
                    app_protocol: app,
                });
            let ports: Vec<_> = ports.collect();
            EndpointSubset {
                addresses: list(ready),
                not_ready_addresses: list(not_ready),
                ports: (!ports.is_empty()).then_some(ports),
            }
        };
        self.0.into_iter().map(subset).collect()
    }
}

/// In our own order, whoever wrote it, and without versions of pods.
fn repack(subsets: Vec<EndpointSubset>) -> Vec<EndpointSubset> {
    let mut packed = Packed::default();
    for subset in subsets {
        let ports: Ports = subset
            .ports
            .into_iter()
            .flatten()
            .map(|p| {
                (
                    p.name.unwrap_or_default(),
                    p.port,
                    p.protocol.unwrap_or_else(|| "TCP".to_owned()),
                    p.app_protocol,
                )
            })
            .collect();
        for (ready, list) in [
            (true, subset.addresses),
            (false, subset.not_ready_addresses),
        ] {
            for address in list.into_iter().flatten() {
                packed.add(ports.clone(), ready, address);
            }
        }
    }
    without_versions(&packed.subsets())
}

fn without_versions(subsets: &[EndpointSubset]) -> Vec<EndpointSubset> {
    let mut subsets = subsets.to_vec();
    for subset in &mut subsets {
        let lists = [&mut subset.addresses, &mut subset.not_ready_addresses];
        for address in lists.into_iter().flatten().flatten() {
            if let Some(target) = &mut address.target_ref {
                target.resource_version = None;
            }
        }
    }
    subsets
}

/// The pod's address of the Service's first family.
fn address(service: &Service, pod: &Pod) -> Option<EndpointAddress> {
    let spec = service.spec.as_ref()?;
    let family = spec.ip_families.as_ref().and_then(|f| f.first().cloned());
    let cluster_ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let ips = pod_ips(pod);
    let ipv6 = match (family, cluster_ip.parse::<IpAddr>()) {
        (Some(family), _) => family == "IPv6",
        (None, Ok(ip)) => ip.is_ipv6(),
        // Headless, from before dual stack: as the pod has it.
        (None, Err(_)) => ips.first()?.parse::<IpAddr>().ok()?.is_ipv6(),
    };
    let ip = ips
        .iter()
        .find(|ip| ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6() == ipv6))?;
    Some(EndpointAddress {
        hostname: hostname(pod, service),
        ip: (*ip).to_owned(),
        node_name: node_name(pod).map(str::to_owned),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
    })
}

/// Ready addresses first; what is beyond the capacity is left out.
// DIFFERS: upstream takes a share of each subset; ours fills the first ones. Both keep 1000.
fn truncate(mut subsets: Vec<EndpointSubset>) -> (Vec<EndpointSubset>, bool) {
    let mut left = MAX_CAPACITY;
    let mut truncated = false;
    let mut cut = |list: &mut Option<Vec<EndpointAddress>>| {
        let Some(addresses) = list else { return };
        if addresses.len() > left {
            addresses.truncate(left);
            truncated = true;
        }
        left -= addresses.len();
        if addresses.is_empty() {
            *list = None;
        }
    };
    subsets.iter_mut().for_each(|s| cut(&mut s.addresses));
    subsets
        .iter_mut()
        .for_each(|s| cut(&mut s.not_ready_addresses));
    subsets.retain(|s| s.addresses.is_some() || s.not_ready_addresses.is_some());
    (subsets, truncated)
}
