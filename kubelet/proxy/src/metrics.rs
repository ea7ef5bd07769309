//! kube-proxy's metrics, under upstream's names.
//!
//! Upstream: pkg/proxy/metrics/metrics.go.

use std::sync::LazyLock;

use component_base::clock::Clock;
use nftables::Family;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    register_gauge_vec, register_histogram_vec, register_int_counter, register_int_counter_vec,
    register_int_gauge,
};

const PROVEN: &str = "the name is registered only here";
const BY_FAMILY: &[&str] = &["ip_family"];

fn latency(name: &str, help: &str) -> HistogramVec {
    let buckets = component_base::metrics::exponential_buckets(0.001, 2.0, 15);
    register_histogram_vec!(HistogramOpts::new(name, help).buckets(buckets), BY_FAMILY)
        .expect(PROVEN)
}

fn counter_vec(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register_int_counter_vec!(Opts::new(name, help), labels).expect(PROVEN)
}

fn gauge_vec(name: &str, help: &str, labels: &[&str]) -> GaugeVec {
    register_gauge_vec!(Opts::new(name, help), labels).expect(PROVEN)
}

/// All of them.
pub struct Metrics {
    pub sync_proxy_rules_duration_seconds: HistogramVec,
    pub sync_full_proxy_rules_duration_seconds: HistogramVec,
    pub sync_partial_proxy_rules_duration_seconds: HistogramVec,
    pub sync_proxy_rules_last_timestamp_seconds: GaugeVec,
    pub sync_proxy_rules_last_queued_timestamp_seconds: GaugeVec,
    pub network_programming_duration_seconds: HistogramVec,
    pub endpoint_changes_pending: IntGauge,
    pub endpoint_changes_total: IntCounter,
    pub service_changes_pending: IntGauge,
    pub service_changes_total: IntCounter,
    pub nftables_sync_failures_total: IntCounterVec,
    pub nftables_cleanup_failures_total: IntCounterVec,
    pub proxy_healthz_total: IntCounterVec,
    pub proxy_livez_total: IntCounterVec,
    pub no_local_endpoints_total: GaugeVec,
    pub conntrack_sync_duration_seconds: HistogramVec,
    pub conntrack_deleted_entries_total: IntCounterVec,
}

/// The process's metrics; registered at first use.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    sync_proxy_rules_duration_seconds: latency(
        "kubeproxy_sync_proxy_rules_duration_seconds",
        "SyncProxyRules latency in seconds",
    ),
    sync_full_proxy_rules_duration_seconds: latency(
        "kubeproxy_sync_full_proxy_rules_duration_seconds",
        "SyncProxyRules latency in seconds for full resyncs",
    ),
    sync_partial_proxy_rules_duration_seconds: latency(
        "kubeproxy_sync_partial_proxy_rules_duration_seconds",
        "SyncProxyRules latency in seconds for partial resyncs",
    ),
    sync_proxy_rules_last_timestamp_seconds: gauge_vec(
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
        "The last time proxy rules were successfully synced",
        BY_FAMILY,
    ),
    sync_proxy_rules_last_queued_timestamp_seconds: gauge_vec(
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
        "The last time a sync of proxy rules was queued",
        BY_FAMILY,
    ),
    network_programming_duration_seconds: {
        // 0.25 to 0.5 s, 1 to 59 s, 60 to 115 s, 2 to 5 min, as upstream's.
        let steps = |start: f64, width: f64, count: u32| {
            (0..count).map(move |i| start + width * f64::from(i))
        };
        let buckets = steps(0.25, 0.25, 2)
            .chain(steps(1.0, 1.0, 59))
            .chain(steps(60.0, 5.0, 12))
            .chain(steps(120.0, 30.0, 7));
        let options = HistogramOpts::new(
            "kubeproxy_network_programming_duration_seconds",
            "In Cluster Network Programming Latency in seconds",
        );
        register_histogram_vec!(options.buckets(buckets.collect()), BY_FAMILY).expect(PROVEN)
    },
    endpoint_changes_pending: register_int_gauge!(
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
        "Pending proxy rules Endpoint changes"
    )
    .expect(PROVEN),
    endpoint_changes_total: register_int_counter!(
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
        "Cumulative proxy rules Endpoint changes"
    )
    .expect(PROVEN),
    service_changes_pending: register_int_gauge!(
        "kubeproxy_sync_proxy_rules_service_changes_pending",
        "Pending proxy rules Service changes"
    )
    .expect(PROVEN),
    service_changes_total: register_int_counter!(
        "kubeproxy_sync_proxy_rules_service_changes_total",
        "Cumulative proxy rules Service changes"
    )
    .expect(PROVEN),
    nftables_sync_failures_total: counter_vec(
        "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
        "Cumulative proxy nftables sync failures",
        BY_FAMILY,
    ),
    nftables_cleanup_failures_total: counter_vec(
        "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total",
        "Cumulative proxy nftables cleanup failures",
        BY_FAMILY,
    ),
    proxy_healthz_total: counter_vec(
        "kubeproxy_proxy_healthz_total",
        "Cumulative proxy healthz HTTP status",
        &["code"],
    ),
    proxy_livez_total: counter_vec(
        "kubeproxy_proxy_livez_total",
        "Cumulative proxy livez HTTP status",
        &["code"],
    ),
    no_local_endpoints_total: gauge_vec(
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
        "Number of services with a Local traffic policy and no endpoints",
        &["traffic_policy", "ip_family"],
    ),
    conntrack_sync_duration_seconds: latency(
        "kubeproxy_conntrack_reconciler_sync_duration_seconds",
        "ReconcileConntrackFlowsLatency latency in seconds",
    ),
    conntrack_deleted_entries_total: counter_vec(
        "kubeproxy_conntrack_reconciler_deleted_entries_total",
        "Cumulative conntrack flows deleted by conntrack reconciler",
        BY_FAMILY,
    ),
});

/// The value of label `ip_family`, as the API's IPFamily.
pub fn family_label(family: Family) -> &'static str {
    match family {
        Family::Ip => "IPv4",
        Family::Ip6 => "IPv6",
    }
}

/// Seconds since 1970, for timestamps.
pub fn now_seconds(clock: &Clock) -> f64 {
    clock.now().as_duration().as_secs_f64()
}
