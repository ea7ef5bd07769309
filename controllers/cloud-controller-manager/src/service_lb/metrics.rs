//! Metrics of load balancers. Upstream: k8s.io/cloud-provider/controllers/service/metrics.go, v0.37.

use component_base::metrics::{exponential_buckets, make};
use prometheus::{Histogram, IntCounter};

component_base::metrics! {
    pub(super) struct Metrics {
        pub(super) syncs: IntCounter = make::counter(
            "service_controller_loadbalancer_sync_total",
            "A metric counting the amount of times any load balancer has been configured, as an effect of service/node changes on the cluster",
        ),
        pub(super) node_errors: IntCounter = make::counter(
            "service_controller_nodesync_error_total",
            "A metric counting the amount of times any load balancer has been configured and errored, as an effect of node changes on the cluster",
        ),
        pub(super) node_latency: Histogram = make::histogram(
            "service_controller_nodesync_latency_seconds",
            "A metric measuring the latency for nodesync which updates loadbalancer hosts on cluster node updates.",
            exponential_buckets(1.0, 2.0, 15),
        ),
        pub(super) host_latency: Histogram = make::histogram(
            "service_controller_update_loadbalancer_host_latency_seconds",
            "A metric measuring the latency for updating each load balancer hosts.",
            exponential_buckets(1.0, 2.0, 15),
        ),
    }
}
