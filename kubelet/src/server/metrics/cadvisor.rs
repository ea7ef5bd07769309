//! `/metrics/cadvisor`: what dashboards and alerts know by cadvisor's names.
//!
//! Every cgroup that holds pods has a row: the node, the classes of pods, each pod, each container; the labels tell which.
//! A metric is one line of a table here: its name, kind and help, and the value it takes from a row.
//!
//! Upstream: cadvisor's `metrics/prometheus.go` and `prometheus_machine.go`, v0.56, with the sets that the kubelet turns on
//! (`pkg/kubelet/server/server.go`, v1.36).

use super::super::stats::{ContainerSnapshot, Detail, DeviceIo, PodSnapshot, Snapshot, Usage};
use super::exposition::Page;
use crate::pod;

mod machine;
mod rows;
mod table;

use rows::{Row, rows};

/// Renders the page. `details` has what only this page tells, by the name of the cgroup.
pub(super) fn render(
    snapshot: &Snapshot,
    details: &std::collections::HashMap<String, Detail>,
) -> String {
    let mut page = Page::default();
    let rows = rows(snapshot, details);
    machine::version(&mut page);
    table::render(&mut page, snapshot, &rows);
    networks(&mut page, snapshot, &rows);
    machine::render(&mut page, snapshot);
    page.family(
        "container_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
    )
    .sample(&[], 0.0, None);
    page.finish()
}

/// A pod's network is its sandbox's, so it is told once a pod; the node has its own interfaces.
fn networks(page: &mut Page, snapshot: &Snapshot, rows: &[Row<'_>]) {
    type Value = fn(&runtime::api::InterfaceStats) -> u64;
    let metrics: [(&'static str, &str, Value); 8] = [
        (
            "container_network_receive_bytes_total",
            "Cumulative count of bytes received",
            |s| s.rx_bytes,
        ),
        (
            "container_network_receive_packets_total",
            "Cumulative count of packets received",
            |s| s.rx_packets,
        ),
        (
            "container_network_receive_packets_dropped_total",
            "Cumulative count of packets dropped while receiving",
            |s| s.rx_dropped,
        ),
        (
            "container_network_receive_errors_total",
            "Cumulative count of errors encountered while receiving",
            |s| s.rx_errors,
        ),
        (
            "container_network_transmit_bytes_total",
            "Cumulative count of bytes transmitted",
            |s| s.tx_bytes,
        ),
        (
            "container_network_transmit_packets_total",
            "Cumulative count of packets transmitted",
            |s| s.tx_packets,
        ),
        (
            "container_network_transmit_packets_dropped_total",
            "Cumulative count of packets dropped while transmitting",
            |s| s.tx_dropped,
        ),
        (
            "container_network_transmit_errors_total",
            "Cumulative count of errors encountered while transmitting",
            |s| s.tx_errors,
        ),
    ];
    for (name, help, value) in metrics {
        let mut family = page.family(name, "counter", help);
        for row in rows {
            for interface in row.interfaces(snapshot) {
                family.sample(
                    &row.labels(&[("interface", &interface.name)]),
                    value(interface) as f64,
                    Some(snapshot.time),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests;
