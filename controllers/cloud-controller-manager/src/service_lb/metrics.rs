//! Metrics of load balancers. Upstream: k8s.io/cloud-provider/controllers/service/metrics.go, v0.37.

use std::sync::LazyLock;

use component_base::metrics::exponential_buckets;
use prometheus::{Histogram, IntCounter, histogram_opts, register_histogram, register_int_counter};

pub(super) static SYNCS: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!(
        "service_controller_loadbalancer_sync_total",
        "A metric counting the amount of times any load balancer has been configured, as an effect of service/node changes on the cluster"
    )
    .expect("the name is registered only here")
});
pub(super) static NODE_ERRORS: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!(
        "service_controller_nodesync_error_total",
        "A metric counting the amount of times any load balancer has been configured and errored, as an effect of node changes on the cluster"
    )
    .expect("the name is registered only here")
});
pub(super) static NODE_LATENCY: LazyLock<Histogram> = LazyLock::new(|| {
    register_histogram!(histogram_opts!(
        "service_controller_nodesync_latency_seconds",
        "A metric measuring the latency for nodesync which updates loadbalancer hosts on cluster node updates.",
        exponential_buckets(1.0, 2.0, 15)
    ))
    .expect("the name is registered only here")
});
pub(super) static HOST_LATENCY: LazyLock<Histogram> = LazyLock::new(|| {
    register_histogram!(histogram_opts!(
        "service_controller_update_loadbalancer_host_latency_seconds",
        "A metric measuring the latency for updating each load balancer hosts.",
        exponential_buckets(1.0, 2.0, 15)
    ))
    .expect("the name is registered only here")
});

/// Shows them before there is anything to count.
pub(super) fn register() {
    LazyLock::force(&SYNCS);
    LazyLock::force(&NODE_ERRORS);
    LazyLock::force(&NODE_LATENCY);
    LazyLock::force(&HOST_LATENCY);
}
