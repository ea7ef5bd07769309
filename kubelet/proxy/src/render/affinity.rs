//! Session affinity by client address.
//!
//! A chain per port that first asks each endpoint's set for the client, then takes one at random; a chain per endpoint
//! that notes (or renews) the client in the endpoint's set. The sets are filled by the kernel and age there; with an
//! endpoint goes its set, in the same transaction, so no client is sent to an endpoint that is gone.
//!
//! Upstream: writeServiceToEndpointJumps in pkg/proxy/nftables/proxier.go.

use std::time::Duration;

use nftables::{Field, Set, Statement, Table, Value, Verdict};

use super::Policy;
use crate::endpoint::Endpoint;
use crate::service::{NamespacedName, PortName, ServicePort};

/// Adds the port's chains and sets to the table; returns the name of the chain to go to.
pub fn chain(
    table: &mut Table,
    (service, name): (&NamespacedName, &PortName),
    port: &ServicePort,
    policy: Policy,
    endpoints: &[&Endpoint],
    timeout: Duration,
) -> String {
    let base = format!("{service}/{}/{}", port.protocol.as_str(), name.port);
    let kind = match policy {
        Policy::Cluster => "service",
        Policy::Local => "local",
    };
    let chain = format!("{kind}-{base}");
    table.chain(&chain);
    let mut random = Vec::with_capacity(endpoints.len());
    for (number, endpoint) in endpoints.iter().enumerate() {
        // Colons cannot stand in names.
        let at = format!("{base}__{}/{}", endpoint.address, endpoint.port).replace(':', ".");
        let (endpoint_chain, set) = (format!("endpoint-{at}"), format!("affinity-{at}"));
        let known = Statement::in_set(&[Field::SourceAddress], set.as_str());
        table.rule(&chain, [known, Statement::goto(endpoint_chain.as_str())]);
        random.push((
            u32::try_from(number).expect("endpoints are fewer than 2^32"),
            endpoint_chain.clone(),
        ));
        // Shared by both policies' chains.
        if !table.sets.contains_key(&set) {
            table.add_set(
                set.as_str(),
                Set::dynamic_set(&[table.family.address_type()], timeout),
            );
            let update = Statement::Update {
                set: set.as_str().into(),
                fields: vec![Field::SourceAddress],
            };
            table.rule(&endpoint_chain, [update]);
            let to = Statement::Dnat {
                address: endpoint.address,
                port: endpoint.port,
            };
            let of_protocol = Statement::is(Field::Protocol, [Value::Protocol(port.protocol)]);
            table.rule(&endpoint_chain, [of_protocol, to]);
        }
    }
    let verdicts = random
        .into_iter()
        .map(|(number, to)| (vec![Value::Number(number)], Verdict::goto(to)))
        .collect();
    let count = u32::try_from(endpoints.len()).expect("endpoints are fewer than 2^32");
    table.rule(
        &chain,
        [Statement::Verdicts {
            fields: vec![Field::Random(count)],
            verdicts,
        }],
    );
    chain
}
