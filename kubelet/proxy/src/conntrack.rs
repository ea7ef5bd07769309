//! Conntrack entries of UDP Services that lead to endpoints that are gone.
//!
//! A UDP "connection" lives for as long as packets come, so a client would talk to a dead endpoint for ever.
//! Upstream: pkg/proxy/conntrack/cleanup.go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use nftables::{Family, Protocol};

use crate::metrics::{METRICS, family_label};
use crate::render::ServiceEntry;
use crate::service::NamespacedName;
use nftables::conntrack::{self, Entry};

type Endpoints = BTreeSet<(IpAddr, u16)>;

/// Where the entries of UDP Services may lead.
#[derive(Debug, Default, PartialEq, Eq)]
struct Expected {
    by_address: BTreeMap<(IpAddr, u16), Endpoints>,
    by_node_port: BTreeMap<u16, Endpoints>,
}

/// Policies, topology and termination do not matter here: a change of these leaves existing flows alone, as TCP's.
/// A Service without any endpoint expects none: its clients are to hear the refusal, not to wait for an address that
/// nobody, or somebody else, has by now. Upstream: so from 1.37 on.
fn expected(services: &BTreeMap<NamespacedName, ServiceEntry>) -> Expected {
    let mut expected = Expected::default();
    for entry in services.values() {
        for (name, port) in entry
            .ports
            .iter()
            .filter(|(_, port)| port.protocol == Protocol::Udp)
        {
            let all = entry.endpoints.get(name).into_iter().flatten();
            let endpoints: Endpoints = all
                .filter(|e| e.serving)
                .map(|e| (e.address, e.port))
                .collect();
            let addresses = [&port.cluster_ip]
                .into_iter()
                .chain(&port.load_balancer_vips)
                .chain(&port.external_ips);
            for address in addresses {
                expected
                    .by_address
                    .insert((*address, port.port), endpoints.clone());
            }
            if port.node_port != 0 {
                expected.by_node_port.insert(port.node_port, endpoints);
            }
        }
    }
    expected
}

fn is_stale(entry: &Entry, expected: &Expected) -> bool {
    let leads_to = (entry.reply_source, entry.reply_source_port);
    let by_address = expected
        .by_address
        .get(&(entry.destination, entry.destination_port));
    let by_node_port = expected.by_node_port.get(&entry.destination_port);
    // Without an endpoint, what was never translated is in nobody's way (and on a node port perhaps not even ours).
    let translated = entry.reply_source != entry.destination;
    let misleads = |endpoints: &Endpoints| {
        !endpoints.contains(&leads_to) && (translated || !endpoints.is_empty())
    };
    by_address.is_some_and(misleads) || by_node_port.is_some_and(misleads)
}

/// Lists the kernel's entries and deletes those that are stale. What fails is told and left for the next change.
pub async fn clean_stale_entries(
    family: Family,
    services: &BTreeMap<NamespacedName, ServiceEntry>,
) {
    let expected = expected(services);
    if expected == Expected::default() {
        return;
    }
    let label = family_label(family);
    let timer = METRICS
        .conntrack_sync_duration_seconds
        .with_label_values(&[label])
        .start_timer();
    let work = move || conntrack::delete_matching(family, |entry| is_stale(entry, &expected));
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(deleted)) => {
            METRICS
                .conntrack_deleted_entries_total
                .with_label_values(&[label])
                .inc_by(deleted);
            tracing::debug!(
                family = label,
                deleted,
                "Finished reconciling conntrack entries"
            );
        }
        Ok(Err(error)) => {
            tracing::error!(family = label, %error, "Failed to clear stale conntrack entries")
        }
        Err(error) => {
            tracing::error!(family = label, %error, "Reconciling conntrack entries ended early")
        }
    }
    timer.observe_duration();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Endpoint;
    use crate::service::{PortName, ServicePort};

    #[test]
    fn only_flows_to_endpoints_that_are_gone() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let port = |cluster_ip: &str, node_port| ServicePort {
            cluster_ip: ip(cluster_ip),
            port: 53,
            protocol: Protocol::Udp,
            node_port,
            external_ips: vec![],
            load_balancer_vips: vec![],
            load_balancer_source_ranges: vec![],
            affinity: None,
            external_policy_local: false,
            internal_policy_local: false,
            health_check_node_port: None,
        };
        let name = PortName {
            port: "dns".into(),
            protocol: Protocol::Udp,
        };
        let endpoint = |address: &str| Endpoint {
            address: ip(address),
            port: 5353,
            is_local: false,
            ready: false,
            serving: true,
            terminating: true,
            zone_hints: Default::default(),
            node_hints: Default::default(),
        };
        let service = |name: &str| NamespacedName {
            namespace: "a".into(),
            name: name.into(),
        };
        let with = ServiceEntry {
            ports: [(name.clone(), port("10.96.0.10", 30053))].into(),
            endpoints: [(name.clone(), vec![endpoint("10.244.0.2")])].into(),
        };
        let without = ServiceEntry {
            ports: [(name, port("10.96.0.11", 30054))].into(),
            ..Default::default()
        };
        let expected = expected(&[(service("with"), with), (service("without"), without)].into());
        let check = |to: &str, to_port, reply: &str, stale| {
            let entry = Entry::sample(ip(to), to_port, ip(reply), 5353);
            assert_eq!(
                is_stale(&entry, &expected),
                stale,
                "{to}:{to_port} -> {reply}"
            );
        };
        check("10.96.0.10", 53, "10.244.0.2", false);
        check("10.96.0.10", 53, "10.244.0.3", true);
        check("10.96.0.10", 53, "10.96.0.10", true);
        check("10.96.0.10", 54, "10.244.0.3", false);
        check("10.96.0.11", 53, "10.244.0.3", true);
        check("10.96.0.11", 53, "10.96.0.11", false);
        check("192.168.0.1", 30054, "10.244.0.3", true);
        check("192.168.0.1", 30054, "192.168.0.1", false);
        check("10.96.0.12", 53, "10.244.0.3", false);
        check("192.168.0.1", 30053, "10.244.0.3", true);
        check("192.168.0.1", 30053, "10.244.0.2", false);
    }
}
