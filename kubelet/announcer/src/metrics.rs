//! The announcer's metrics.

use std::sync::LazyLock;

use prometheus::{
    Gauge, IntCounter, IntCounterVec, IntGauge, Opts, register_gauge, register_int_counter,
    register_int_counter_vec, register_int_gauge,
};

const PROVEN: &str = "the name is registered only here";

/// All of them.
pub struct Metrics {
    /// Addresses this node announces.
    pub announced: IntGauge,
    /// Addresses taken, vacant or of a node that was gone.
    pub taken: IntCounter,
    /// Renewals by their result.
    pub renewals: IntCounterVec,
    /// When the watch last told of a Lease: while any node holds addresses, it does so all the time.
    pub last_news: Gauge,
    /// Frames sent, by why.
    pub frames: IntCounterVec,
}

/// The process's metrics; registered at first use.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    announced: register_int_gauge!(
        "gantry_announcer_addresses",
        "Addresses of load balancers that this node announces"
    )
    .expect(PROVEN),
    taken: register_int_counter!(
        "gantry_announcer_taken_total",
        "Addresses that this node became the holder of"
    )
    .expect(PROVEN),
    renewals: register_int_counter_vec!(
        Opts::new(
            "gantry_announcer_renewals_total",
            "Renewals of this node's Lease, by their result"
        ),
        &["result"]
    )
    .expect(PROVEN),
    last_news: register_gauge!(
        "gantry_announcer_last_lease_news_timestamp_seconds",
        "When the watch last told of a Lease; nodes that hold addresses renew theirs all the time"
    )
    .expect(PROVEN),
    frames: register_int_counter_vec!(
        Opts::new(
            "gantry_announcer_frames_total",
            "Frames of ARP and neighbour discovery sent: answers, and what was said unasked"
        ),
        &["reason"]
    )
    .expect(PROVEN),
});
