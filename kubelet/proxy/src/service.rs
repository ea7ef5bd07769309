//! A port of a Service, as far as one address family is concerned.
//!
//! Upstream: pkg/proxy/serviceport.go.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort as ApiPort};
use nftables::{Family, Protocol};

/// Upstream: v1.DefaultClientIPServiceAffinitySeconds.
const DEFAULT_AFFINITY_SECONDS: u64 = 10_800;

/// Namespace and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespacedName {
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What names a port: its name and protocol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortName {
    /// Empty for the only port of a Service.
    pub port: String,
    pub protocol: Protocol,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub cluster_ip: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
    /// 0: none.
    pub node_port: u16,
    pub external_ips: Vec<IpAddr>,
    /// Addresses of the load balancer that reach the node as they are (`ipMode: VIP`).
    pub load_balancer_vips: Vec<IpAddr>,
    /// Who may use the load balancer. Empty: everybody.
    pub load_balancer_source_ranges: Vec<IpNet>,
    /// Session affinity by client address, and how long it lasts without use.
    pub affinity: Option<Duration>,
    pub external_policy_local: bool,
    pub internal_policy_local: bool,
    pub health_check_node_port: Option<u16>,
}

impl ServicePort {
    /// It can be reached by more than its cluster address.
    pub fn externally_accessible(&self) -> bool {
        self.node_port != 0 || !self.load_balancer_vips.is_empty() || !self.external_ips.is_empty()
    }

    /// With an external policy of Local too: traffic from within the cluster takes a short cut to all endpoints.
    pub fn uses_cluster_endpoints(&self) -> bool {
        !self.internal_policy_local || self.externally_accessible()
    }

    pub fn uses_local_endpoints(&self) -> bool {
        self.internal_policy_local || (self.external_policy_local && self.externally_accessible())
    }
}

/// All ports of a Service in one family; none for headless Services, external names and other families.
pub fn service_ports(service: &Service, family: Family) -> BTreeMap<PortName, ServicePort> {
    let Some(spec) = &service.spec else {
        return BTreeMap::new();
    };
    if spec.type_.as_deref() == Some("ExternalName") {
        return BTreeMap::new();
    }
    let single = spec.cluster_ip.iter();
    let all = spec.cluster_ips.iter().flatten();
    let Some(cluster_ip) = addresses(single.chain(all), family).next() else {
        return BTreeMap::new();
    };
    let ports = spec.ports.iter().flatten();
    ports
        .filter_map(|port| {
            Some((
                port_name(port)?,
                service_port(service, port, cluster_ip, family)?,
            ))
        })
        .collect()
}

fn port_name(port: &ApiPort) -> Option<PortName> {
    Some(PortName {
        port: port.name.clone().unwrap_or_default(),
        protocol: protocol(port.protocol.as_deref())?,
    })
}

/// `None` for a protocol that is not TCP, UDP or SCTP.
pub(crate) fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

fn service_port(
    service: &Service,
    port: &ApiPort,
    cluster_ip: IpAddr,
    family: Family,
) -> Option<ServicePort> {
    let spec = service.spec.as_ref()?;
    let external = matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"))
        || spec
            .external_ips
            .as_ref()
            .is_some_and(|ips| !ips.is_empty());
    let external_policy_local =
        external && spec.external_traffic_policy.as_deref() == Some("Local");
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let client_ip = spec
            .session_affinity_config
            .as_ref()
            .and_then(|config| config.client_ip.as_ref());
        let seconds = client_ip
            .and_then(|c| c.timeout_seconds)
            .and_then(|s| u64::try_from(s).ok());
        Duration::from_secs(
            seconds
                .filter(|s| *s > 0)
                .unwrap_or(DEFAULT_AFFINITY_SECONDS),
        )
    });
    let ingress = service
        .status
        .iter()
        .flat_map(|s| &s.load_balancer)
        .flat_map(|l| l.ingress.iter().flatten());
    let vips = ingress
        .filter(|i| i.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|i| i.ip.as_ref());
    let needs_health_check = spec.type_.as_deref() == Some("LoadBalancer") && external_policy_local;
    let health_check = spec
        .health_check_node_port
        .filter(|_| needs_health_check)
        .and_then(|p| u16::try_from(p).ok());
    Some(ServicePort {
        cluster_ip,
        port: u16::try_from(port.port).ok()?,
        protocol: protocol(port.protocol.as_deref())?,
        node_port: port
            .node_port
            .and_then(|p| u16::try_from(p).ok())
            .unwrap_or(0),
        external_ips: addresses(spec.external_ips.iter().flatten(), family).collect(),
        load_balancer_vips: addresses(vips, family).collect(),
        load_balancer_source_ranges: source_ranges(
            spec.load_balancer_source_ranges.iter().flatten(),
            family,
        ),
        affinity,
        external_policy_local,
        internal_policy_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        health_check_node_port: health_check.filter(|port| *port != 0),
    })
}

fn addresses<'a>(
    texts: impl Iterator<Item = &'a String>,
    family: Family,
) -> impl Iterator<Item = IpAddr> {
    texts
        .filter_map(move |text| text.parse().ok())
        .filter(move |address| Family::of(address) == family)
}

/// A range of everything allows everybody, as none does. Validation lets white space pass.
fn source_ranges<'a>(texts: impl Iterator<Item = &'a String>, family: Family) -> Vec<IpNet> {
    let parse = |text: &String| text.trim().parse::<IpNet>().ok();
    let ranges: Vec<_> = texts
        .filter_map(parse)
        .filter(|range| Family::of(&range.addr()) == family)
        .collect();
    if ranges.iter().any(|range| range.prefix_len() == 0) {
        Vec::new()
    } else {
        ranges
    }
}
