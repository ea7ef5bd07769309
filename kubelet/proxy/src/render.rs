//! From Services and endpoints to the nft table. Pure.
//!
//! ```text
//! services:  daddr . proto . dport ─ @service-ips ─────► endpoints-N            (cluster addresses)
//!                                                └─────► external               (external and load balancer addresses)
//!            proto . dport ────────── @service-nodeports ► nodeport-external    (node ports)
//! endpoints-N:  dnat to  daddr . proto . dport . random mod N  map @service-endpoints-N
//! external:     mark for masquerade, then @external-ips-cluster ► endpoints-N
//! external-local: pods and this node: as above; others: @external-ips-local ► external-local-endpoints-N
//! ```
//!
//! A Service without usable endpoints is in `@no-endpoint-services`, looked at in the filter chains: reject where there
//! is none at all, drop where only the policy Local leaves none.
//! A Service with session affinity has chains of its own, as upstream's: see [`affinity`].
//!
//! Upstream: syncProxyRules and setupNFTables in pkg/proxy/nftables/proxier.go.

mod affinity;
mod skeleton;
mod slots;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use nftables::{Family, Key, Table, Value, Verdict};

use crate::LocalDetector;
use crate::endpoint::Endpoint;
use crate::service::{NamespacedName, PortName, ServicePort};
use crate::topology::{Place, categorize_endpoints};
pub use slots::Slots;

/// Upstream's name for the table, the same in both families.
pub const TABLE: &str = "kube-proxy";

/// What the rules depend on besides Services and endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderOptions {
    pub family: Family,
    /// Masquerade all traffic to cluster addresses.
    pub masquerade_all: bool,
    /// The bit of the packet's mark that means "masquerade".
    pub masquerade_mark: u32,
    pub local_detector: LocalDetector,
    /// The node's addresses that accept node ports. `None`: all but loopback.
    pub node_port_addresses: Option<Vec<IpAddr>>,
    /// Ranges of cluster addresses: what is not in use there is dropped.
    pub service_cidrs: Vec<IpNet>,
    pub place: Place,
    /// This node's own address, for load balancer source ranges.
    pub node_ip: Option<IpAddr>,
}

/// One Service with its ports and their endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    pub ports: BTreeMap<PortName, ServicePort>,
    pub endpoints: BTreeMap<PortName, Vec<Endpoint>>,
}

/// What came out.
#[derive(Debug)]
pub struct Rendered {
    pub table: Table,
    /// Ports whose internal (external) policy is Local and that have no endpoint here. For the metrics.
    pub no_local_endpoints_internal: usize,
    pub no_local_endpoints_external: usize,
}

/// Renders the whole table. `slots` keeps endpoints at their place from one call to the next.
pub fn render(
    options: &RenderOptions,
    services: &BTreeMap<NamespacedName, ServiceEntry>,
    slots: &mut Slots,
) -> Rendered {
    let mut rendered = Rendered {
        table: skeleton::table(options),
        no_local_endpoints_internal: 0,
        no_local_endpoints_external: 0,
    };
    let mut renderer = Renderer {
        options,
        slots,
        rendered: &mut rendered,
    };
    for (name, entry) in services {
        for (port_name, port) in &entry.ports {
            let endpoints = entry
                .endpoints
                .get(port_name)
                .map(Vec::as_slice)
                .unwrap_or_default();
            renderer.port(name, port_name, port, endpoints);
        }
    }
    slots.end_of_round();
    rendered
}

/// The list of endpoints that a chain leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Policy {
    Cluster,
    Local,
}

/// By what a packet is known to be for a port.
#[derive(Clone, Copy)]
enum Front {
    /// This address and the port.
    Address(IpAddr),
    /// The node port, at whatever address.
    NodePort,
}

struct Renderer<'a> {
    options: &'a RenderOptions,
    slots: &'a mut Slots,
    rendered: &'a mut Rendered,
}

impl Renderer<'_> {
    fn port(
        &mut self,
        service: &NamespacedName,
        name: &PortName,
        port: &ServicePort,
        endpoints: &[Endpoint],
    ) {
        let found = categorize_endpoints(endpoints, port, &self.options.place);
        let has_internal = found.has_any && !(port.internal_policy_local && found.local.is_empty());
        let has_external = found.has_any && !(port.external_policy_local && found.local.is_empty());

        for endpoint in found
            .cluster
            .iter()
            .chain(&found.local)
            .filter(|e| e.is_local)
        {
            let address = Value::Address(endpoint.address);
            let key = vec![
                address.clone(),
                address,
                port.protocol.into(),
                Value::Port(endpoint.port),
            ];
            self.set(skeleton::HAIRPIN_CONNECTIONS).insert(key);
        }

        let id = (service, name);
        let cluster = self.target(id, port, Policy::Cluster, &found.cluster);
        let local = self.target(id, port, Policy::Local, &found.local);

        // The cluster address.
        self.set(skeleton::CLUSTER_IPS)
            .insert(vec![port.cluster_ip.into()]);
        let front = Front::Address(port.cluster_ip);
        if has_internal {
            let target = if port.internal_policy_local {
                &local
            } else {
                &cluster
            };
            self.lead(front, port, target, Way::Direct);
        } else {
            self.rendered.no_local_endpoints_internal += usize::from(found.has_any);
            self.refuse(front, port, found.has_any);
        }

        // Everything external.
        if found.has_any && !has_external && port.externally_accessible() {
            self.rendered.no_local_endpoints_external += 1;
        }
        let node_port = (port.node_port != 0).then_some(Front::NodePort);
        let addresses = port
            .external_ips
            .iter()
            .chain(&port.load_balancer_vips)
            .map(|ip| Front::Address(*ip));
        for front in addresses.chain(node_port) {
            if found.has_any {
                self.lead(
                    front,
                    port,
                    &cluster,
                    Way::External {
                        local: port.external_policy_local,
                    },
                );
                if port.external_policy_local && has_external {
                    self.lead(front, port, &local, Way::ExternalLocal);
                }
            }
            if !has_external {
                self.refuse(front, port, found.has_any);
            }
        }
        self.firewall(port);
    }

    /// Sends what is for this front to the target.
    fn lead(&mut self, front: Front, port: &ServicePort, target: &Target, way: Way) {
        let key = front_key(front, port);
        let names = skeleton::names(front_is_node_port(front));
        if let Way::External { local } = way {
            let chain = if local {
                names.external_local_chain
            } else {
                names.external_chain
            };
            self.set(names.dispatch)
                .insert_verdict(key.clone(), Verdict::goto(chain));
        }
        let (verdicts, endpoints, prefix) = match way {
            Way::Direct => (names.dispatch, names.endpoints, names.endpoints_chain),
            Way::External { .. } => (
                names.external_cluster,
                names.endpoints,
                names.endpoints_chain,
            ),
            Way::ExternalLocal => (
                names.external_local,
                names.local_endpoints,
                names.local_endpoints_chain,
            ),
        };
        let chain = match target {
            Target::None => return,
            Target::Chain(chain) => chain.clone(),
            Target::List(list) => {
                let table = &mut self.rendered.table;
                let (chain, map) =
                    skeleton::pick_chain(table, prefix, &names, endpoints, list.len());
                for (slot, (address, endpoint_port)) in list.iter().enumerate() {
                    let mut slot_key = key.clone();
                    slot_key.push(Value::Number(
                        u32::try_from(slot).expect("endpoints are fewer than 2^32"),
                    ));
                    let to = vec![Value::Address(*address), Value::Port(*endpoint_port)];
                    self.set(&map).insert_values(slot_key, to);
                }
                chain
            }
        };
        self.set(verdicts).insert_verdict(key, Verdict::goto(chain));
    }

    /// Says no to what is for this front and was not sent anywhere: silently where there are endpoints elsewhere.
    fn refuse(&mut self, front: Front, port: &ServicePort, has_any: bool) {
        let verdict = if has_any {
            Verdict::Drop
        } else {
            Verdict::goto(skeleton::REJECT_CHAIN)
        };
        let map = skeleton::names(front_is_node_port(front)).no_endpoints;
        self.set(map)
            .insert_verdict(front_key(front, port), verdict);
    }

    fn target(
        &mut self,
        id: (&NamespacedName, &PortName),
        port: &ServicePort,
        policy: Policy,
        endpoints: &[&Endpoint],
    ) -> Target {
        if endpoints.is_empty() {
            return Target::None;
        }
        if let Some(timeout) = port.affinity {
            return Target::Chain(affinity::chain(
                &mut self.rendered.table,
                id,
                port,
                policy,
                endpoints,
                timeout,
            ));
        }
        let wanted = endpoints.iter().map(|e| (e.address, e.port)).collect();
        Target::List(self.slots.assign(id, policy, wanted))
    }

    fn firewall(&mut self, port: &ServicePort) {
        if port.load_balancer_source_ranges.is_empty() {
            return;
        }
        let mut ranges = port.load_balancer_source_ranges.clone();
        // Where the balancer's address is local, the node's own requests come back with that address as source.
        if self
            .options
            .node_ip
            .is_some_and(|ip| ranges.iter().any(|range| range.contains(&ip)))
        {
            ranges.extend(port.load_balancer_vips.iter().map(|vip| IpNet::from(*vip)));
        }
        let ranges = IpNet::aggregate(&ranges);
        for vip in &port.load_balancer_vips {
            let key = front_key(Front::Address(*vip), port);
            // Two Services with one front: the later has it, as in every map. Their ranges together might overlap, and nft
            // would refuse the whole table for that.
            if self.set(skeleton::FIREWALL_IPS).elements.contains_key(&key) {
                self.set(skeleton::FIREWALL_ALLOWED)
                    .elements
                    .retain(|allowed, _| !allowed.starts_with(&key));
            }
            self.set(skeleton::FIREWALL_IPS).insert(key.clone());
            for range in &ranges {
                let mut allowed = key.clone();
                allowed.push(Value::net(*range));
                self.set(skeleton::FIREWALL_ALLOWED).insert(allowed);
            }
        }
    }

    fn set(&mut self, name: &str) -> &mut nftables::Set {
        self.rendered
            .table
            .sets
            .get_mut(name)
            .expect("made by the skeleton or with its chain")
    }
}

/// Where a front leads to.
enum Target {
    None,
    /// A chain of the port's own.
    Chain(String),
    /// Endpoints in their slots, by a chain that is shared.
    List(Vec<(IpAddr, u16)>),
}

#[derive(Clone, Copy)]
enum Way {
    Direct,
    External { local: bool },
    ExternalLocal,
}

fn front_is_node_port(front: Front) -> bool {
    matches!(front, Front::NodePort)
}

fn front_key(front: Front, port: &ServicePort) -> Key {
    match front {
        Front::Address(address) => {
            vec![address.into(), port.protocol.into(), Value::Port(port.port)]
        }
        Front::NodePort => vec![port.protocol.into(), Value::Port(port.node_port)],
    }
}

#[cfg(test)]
mod tests;
