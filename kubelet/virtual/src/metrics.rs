//! What the process counts. Names are the kubelet's where it has such a thing.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use prometheus::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, histogram_opts, opts,
    register_histogram, register_histogram_vec, register_int_counter, register_int_counter_vec,
    register_int_gauge,
};

const PROVEN: &str = "the name is registered only here";

macro_rules! gauge {
    ($name:ident, $text:literal, $help:literal) => {
        static $name: LazyLock<IntGauge> =
            LazyLock::new(|| register_int_gauge!(opts!($text, $help)).expect(PROVEN));
    };
}

macro_rules! counter {
    ($name:ident, $text:literal, $help:literal) => {
        static $name: LazyLock<IntCounter> =
            LazyLock::new(|| register_int_counter!(opts!($text, $help)).expect(PROVEN));
    };
}

gauge!(
    RUNNING_PODS,
    "kubelet_running_pods",
    "Number of pods that have a running pod sandbox"
);
gauge!(
    KNOWN_PODS,
    "virtual_kubelet_pods",
    "Number of pods bound to the nodes of this process."
);
gauge!(
    NODES,
    "virtual_kubelet_nodes",
    "Number of nodes of this process that are registered."
);
counter!(
    LEASE_RENEWALS,
    "virtual_kubelet_lease_renewals_total",
    "Number of leases that were renewed."
);
counter!(
    LEASE_ERRORS,
    "virtual_kubelet_lease_errors_total",
    "Number of tries to renew a lease that failed."
);
counter!(
    LEASE_MISSES,
    "virtual_kubelet_lease_misses_total",
    "Number of leases that were renewed only after they had expired."
);
counter!(
    STATUS_WRITES,
    "virtual_kubelet_node_status_writes_total",
    "Number of node statuses that were written."
);

static LEASE_DELAY: LazyLock<Histogram> = LazyLock::new(|| {
    register_histogram!(histogram_opts!(
        "virtual_kubelet_lease_delay_seconds",
        "Time from when a lease was to be renewed until it was.",
        vec![0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0]
    ))
    .expect(PROVEN)
});
static CALLS: LazyLock<HistogramVec> = LazyLock::new(|| {
    register_histogram_vec!(
        histogram_opts!(
            "virtual_kubelet_provider_call_duration_seconds",
            "Time the provider took for a call.",
            vec![0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 60.0]
        ),
        &["call", "outcome"]
    )
    .expect(PROVEN)
});
static POD_WRITES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        opts!(
            "virtual_kubelet_pod_writes_total",
            "Number of writes to pods' objects."
        ),
        &["write", "outcome"]
    )
    .expect(PROVEN)
});

fn outcome(ok: bool) -> &'static str {
    if ok { "success" } else { "error" }
}

pub(crate) fn called(call: &str, began: Instant, ok: bool) {
    let took = began.elapsed().as_secs_f64();
    CALLS.with_label_values(&[call, outcome(ok)]).observe(took);
}

pub(crate) fn pod_write(write: &str, ok: bool) {
    POD_WRITES.with_label_values(&[write, outcome(ok)]).inc();
}

/// What is counted when somebody asks.
pub(crate) fn scraped(nodes: usize, known: usize, running: usize) {
    NODES.set(i64::try_from(nodes).unwrap_or(i64::MAX));
    KNOWN_PODS.set(i64::try_from(known).unwrap_or(i64::MAX));
    RUNNING_PODS.set(i64::try_from(running).unwrap_or(i64::MAX));
}

pub(crate) fn status_written() {
    STATUS_WRITES.inc();
}

pub(crate) fn lease_renewed(delay: Duration, expired: bool) {
    LEASE_RENEWALS.inc();
    LEASE_DELAY.observe(delay.as_secs_f64());
    if expired {
        LEASE_MISSES.inc();
    }
}

pub(crate) fn lease_failed() {
    LEASE_ERRORS.inc();
}

/// Registers what is counted only later, so that the first scrape has it.
pub(crate) fn init() {
    component_base::metrics::init();
    for counter in [
        &LEASE_RENEWALS,
        &LEASE_ERRORS,
        &LEASE_MISSES,
        &STATUS_WRITES,
    ] {
        LazyLock::force(counter);
    }
    for gauge in [&RUNNING_PODS, &KNOWN_PODS, &NODES] {
        LazyLock::force(gauge);
    }
    LazyLock::force(&LEASE_DELAY);
}
