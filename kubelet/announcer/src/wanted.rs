//! Which addresses there are to announce, and which of them this node may announce. Pure.
//!
//! A node may announce an address when it has a link for it, its Node is not taken out, and, with
//! `externalTrafficPolicy: Local`, it has a ready endpoint: what comes to another node would be dropped there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use cloud_provider::gantry::pools::{Pool, Pools};
use cloud_provider::gantry::service::{is_ours, key, status_addresses};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::link::Link;

/// On Nodes that take no traffic of load balancers. Upstream: `LabelNodeExcludeBalancers`.
const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// The cluster autoscaler is about to delete the Node.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
/// On a slice: the Service it is of.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// An address to announce.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The Service it is of.
    pub service: Arc<Service>,
    /// The links this node would announce it on; empty where it must not.
    pub links: BTreeSet<u32>,
}

/// What the decision is made of.
pub struct Observed<'a> {
    /// What may be announced at all.
    pub pools: &'a Pools,
    /// All Services, or those of type LoadBalancer.
    pub services: &'a [Arc<Service>],
    /// Slices by the `NAMESPACE/NAME` of their Service.
    pub slices: &'a dyn Fn(&str) -> Vec<Arc<EndpointSlice>>,
    /// This node's name.
    pub node_name: &'a str,
    /// This node's Node; `None` while it is not there.
    pub node: Option<&'a Node>,
    /// This node's links.
    pub links: &'a [Link],
}

/// Whether only nodes with endpoints may announce the Service's addresses.
pub fn is_local(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|s| s.external_traffic_policy.as_deref()) == Some("Local")
}

/// Every address to announce. An address of no pool is none, whoever wrote it into a status; of two Services with one address the
/// older has it.
pub fn wanted(observed: &Observed<'_>) -> BTreeMap<IpAddr, Wanted> {
    let mut services: Vec<_> = observed.services.iter().filter(|s| is_served(s)).collect();
    let age = |s: &Service| s.metadata.creation_timestamp.as_ref().map(|t| t.0);
    services.sort_by(|a, b| (age(a), &a.metadata.uid).cmp(&(age(b), &b.metadata.uid)));
    let takes_traffic = observed.node.is_some_and(takes_traffic);
    let mut all = BTreeMap::new();
    for service in services {
        for address in status_addresses(service) {
            let Some(pool) = observed.pools.of(address) else {
                continue;
            };
            let may = takes_traffic
                && is_chosen(pool, observed.node)
                && (!is_local(service) || has_endpoint(observed, service, address));
            let links = match may {
                true => links(pool, address, observed.links),
                false => BTreeSet::new(),
            };
            let entry = all.entry(address);
            entry.or_insert_with(|| Wanted {
                service: service.clone(),
                links,
            });
        }
    }
    all
}

fn is_served(service: &Service) -> bool {
    is_ours(service) && service.metadata.deletion_timestamp.is_none()
}

fn takes_traffic(node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    // What is no boolean excludes, too.
    let excluded = labels
        .and_then(|labels| labels.get(EXCLUDE))
        .is_some_and(|value| {
            !matches!(
                value.as_str(),
                "false" | "False" | "FALSE" | "f" | "F" | "0"
            )
        });
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    let doomed = taints.is_some_and(|taints| taints.iter().any(|t| t.key == TO_BE_DELETED));
    node.metadata.deletion_timestamp.is_none() && !excluded && !doomed
}

fn is_chosen(pool: &Pool, node: Option<&Node>) -> bool {
    let labels = node.and_then(|node| node.metadata.labels.as_ref());
    let has = |key: &String, value: &String| labels.and_then(|l| l.get(key)) == Some(value);
    pool.nodes.iter().all(|(key, value)| has(key, value))
}

fn has_endpoint(observed: &Observed<'_>, service: &Service, address: IpAddr) -> bool {
    let family = match address.is_ipv4() {
        true => "IPv4",
        false => "IPv6",
    };
    let slices = (observed.slices)(&key(service));
    let slices = slices.iter().filter(|slice| slice.address_type == family);
    slices.into_iter().any(|slice| {
        slice.endpoints.iter().flatten().any(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            // Unknown is ready. Upstream: EndpointConditions.
            let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            ready && endpoint.node_name.as_deref() == Some(observed.node_name)
        })
    })
}

/// The links an address is announced on: those the pool names, else those in whose subnet it is.
fn links(pool: &Pool, address: IpAddr, links: &[Link]) -> BTreeSet<u32> {
    let fits = |link: &&Link| match pool.interfaces.is_empty() {
        true => link.reaches(address),
        false => pool.interfaces.contains(&link.name),
    };
    let running = links.iter().filter(|link| link.running);
    running.filter(fits).map(|link| link.index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Mac;
    use serde_json::{Value, from_value, json};

    const POOLS: &str = "pools:
- {name: lan, addresses: [192.0.2.0/24, 'fd00::/64']}
- {name: far, addresses: [198.51.100.0/24], interfaces: [eth1], nodes: {row: a}}
";

    fn service(name: &str, ips: &[&str], change: &[(&str, Value)]) -> Arc<Service> {
        let ingress: Vec<_> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
        let mut object = json!({ "metadata": { "namespace": "ns", "name": name, "uid": name },
            "spec": { "type": "LoadBalancer" }, "status": { "loadBalancer": { "ingress": ingress } } });
        for (path, value) in change {
            let (parent, last) = path.rsplit_once('/').unwrap();
            object.pointer_mut(parent).unwrap()[last] = value.clone();
        }
        Arc::new(from_value(object).unwrap())
    }

    fn node(labels: Value) -> Node {
        from_value(json!({ "metadata": { "name": "n", "labels": labels } })).unwrap()
    }

    fn link(index: u32, subnets: &[&str]) -> Link {
        Link {
            index,
            name: format!("eth{}", index - 1),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            running: true,
            addresses: subnets.iter().map(|s| s.parse().unwrap()).collect(),
        }
    }

    struct Case {
        services: Vec<Arc<Service>>,
        slices: Vec<Arc<EndpointSlice>>,
        node: Option<Node>,
        links: Vec<Link>,
    }

    impl Case {
        fn new(services: Vec<Arc<Service>>) -> Self {
            Self {
                services,
                slices: Vec::new(),
                node: Some(node(json!({}))),
                links: vec![
                    link(1, &["192.0.2.11/24", "fd00::11/64"]),
                    link(2, &["10.0.0.1/8"]),
                ],
            }
        }

        /// `ADDRESS on LINKS`.
        fn check(&self, expect: &[&str]) {
            let all = wanted(&Observed {
                pools: &Pools::parse(POOLS).unwrap(),
                services: &self.services,
                slices: &|_| self.slices.clone(),
                node_name: "n",
                node: self.node.as_ref(),
                links: &self.links,
            });
            let text = |(address, wanted): (&IpAddr, &Wanted)| {
                let links: Vec<_> = wanted.links.iter().map(ToString::to_string).collect();
                format!("{address} on {}", links.join(","))
            };
            assert_eq!(all.iter().map(text).collect::<Vec<_>>(), expect);
        }
    }

    #[test]
    fn addresses_of_pools_on_links_that_reach_them() {
        let mut case = Case::new(vec![service(
            "a",
            &["192.0.2.1", "fd00::1", "203.0.113.1"],
            &[],
        )]);
        case.check(&["192.0.2.1 on 1", "fd00::1 on 1"]);
        case.links[0].running = false;
        case.check(&["192.0.2.1 on ", "fd00::1 on "]);
        // A pool names links and Nodes.
        let mut case = Case::new(vec![service("a", &["198.51.100.1"], &[])]);
        case.check(&["198.51.100.1 on "]);
        case.node = Some(node(json!({ "row": "a" })));
        case.check(&["198.51.100.1 on 2"]);
    }

    #[test]
    fn services_that_are_not_ours_or_on_their_way_out() {
        for change in [
            ("/spec/type", json!("NodePort")),
            ("/spec/loadBalancerClass", json!("example.com/x")),
            ("/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z")),
            ("/status/loadBalancer/ingress/0/ipMode", json!("Proxy")),
        ] {
            Case::new(vec![service("a", &["192.0.2.1"], &[change])]).check(&[]);
        }
    }

    #[test]
    fn nodes_that_are_taken_out() {
        for (change, expect) in [
            (
                json!({ "metadata": { "labels": { EXCLUDE: "" } } }),
                "192.0.2.1 on ",
            ),
            (
                json!({ "metadata": { "labels": { EXCLUDE: "false" } } }),
                "192.0.2.1 on 1",
            ),
            (
                json!({ "spec": { "taints": [{ "key": TO_BE_DELETED, "effect": "NoSchedule" }] } }),
                "192.0.2.1 on ",
            ),
            (
                json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }),
                "192.0.2.1 on ",
            ),
        ] {
            let mut case = Case::new(vec![service("a", &["192.0.2.1"], &[])]);
            case.node = Some(from_value(change).unwrap());
            case.check(&[expect]);
        }
        let mut case = Case::new(vec![service("a", &["192.0.2.1"], &[])]);
        case.node = None;
        case.check(&["192.0.2.1 on "]);
    }

    #[test]
    fn with_a_local_policy_a_ready_endpoint_of_the_family_is_needed() {
        let local = ("/spec/externalTrafficPolicy", json!("Local"));
        let mut case = Case::new(vec![service("a", &["192.0.2.1", "fd00::1"], &[local])]);
        case.check(&["192.0.2.1 on ", "fd00::1 on "]);
        for (endpoint, expect) in [
            (
                json!({ "addresses": ["10.1.0.1"], "nodeName": "n", "conditions": { "ready": true } }),
                "192.0.2.1 on 1",
            ),
            (
                json!({ "addresses": ["10.1.0.1"], "nodeName": "n" }),
                "192.0.2.1 on 1",
            ),
            (
                json!({ "addresses": ["10.1.0.1"], "nodeName": "m" }),
                "192.0.2.1 on ",
            ),
            (
                json!({ "addresses": ["10.1.0.1"], "nodeName": "n", "conditions": { "ready": false, "serving": true, "terminating": true } }),
                "192.0.2.1 on ",
            ),
        ] {
            let slice = json!({ "metadata": { "name": "x" }, "addressType": "IPv4", "endpoints": [endpoint] });
            case.slices = vec![Arc::new(from_value(slice).unwrap())];
            case.check(&[expect, "fd00::1 on "]);
        }
    }
}
