//! What the kernel remembers of senders to a pod that has gone.

use std::collections::BTreeSet;

use nftables::{Family, conntrack};

use crate::store::SandboxRecord;
use crate::{PortMapping, Protocol};

/// Senders to a UDP host port of a pod that is gone would stay with it for ever. A failure costs only that.
/// Upstream: the CNI portmap plugin, deletePortmapStaleConnections.
pub async fn forget_udp_flows(record: &SandboxRecord) {
    let (ports, addresses) = (record.port_mappings.clone(), record.addresses.clone());
    let is_stale = move |entry: &conntrack::Entry| {
        let to_port =
            |m: &PortMapping| m.protocol == Protocol::Udp && m.host_port == entry.destination_port;
        let at = |m: &PortMapping| {
            m.host_ip
                .is_none_or(|ip| ip.is_unspecified() || ip == entry.destination)
        };
        ports.iter().any(|m| to_port(m) && at(m)) && !addresses.contains(&entry.reply_source)
    };
    if !record
        .port_mappings
        .iter()
        .any(|m| m.protocol == Protocol::Udp)
    {
        return;
    }
    for family in record
        .addresses
        .iter()
        .map(Family::of)
        .collect::<BTreeSet<_>>()
    {
        let is_stale = is_stale.clone();
        match tokio::task::spawn_blocking(move || conntrack::delete_matching(family, is_stale))
            .await
        {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(sandbox = %record.sandbox_id, %error, "cannot delete stale UDP flows")
            }
            Err(error) => {
                tracing::warn!(sandbox = %record.sandbox_id, %error, "deleting stale UDP flows ended early")
            }
        }
    }
}
