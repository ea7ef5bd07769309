//! Metrics under upstream's names: those that every process has, in Prometheus' default registry, and how a component has its own.
//!
//! What may exist twice in a process is a struct of [`metrics!`](crate::metrics!) in a registry that is handed in; [`router_with`]
//! shows both. Upstream: `k8s.io/component-base/metrics`.

use std::sync::LazyLock;
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{
    Encoder, GaugeVec, HistogramVec, IntCounterVec, Opts, TextEncoder, register_gauge_vec,
};
pub use prometheus::{Error as RegisterError, Registry};
use prometheus::{histogram_opts, opts, register_histogram_vec, register_int_counter_vec};

/// What a scrape returns as content type.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const PROVEN: &str = "the name is registered only here";

static REQUESTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        opts!(
            "rest_client_requests_total",
            "Number of HTTP requests, partitioned by status code, method, and host."
        ),
        &["code", "method", "host"]
    )
    .expect(PROVEN)
});
static REQUEST_SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    register_histogram_vec!(
        histogram_opts!(
            "rest_client_request_duration_seconds",
            "Request latency in seconds. Broken down by verb, and host.",
            vec![
                0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0
            ]
        ),
        &["verb", "host"]
    )
    .expect(PROVEN)
});
static LEADER: LazyLock<GaugeVec> = LazyLock::new(|| {
    register_gauge_vec!(
        opts!(
            "leader_election_master_status",
            "Gauge of if the reporting system is master of the relevant lease, 0 indicates backup, 1 indicates master. 'name' is the string used to identify the lease. Please make sure to group by name."
        ),
        &["name"]
    )
    .expect(PROVEN)
});
static FEATURES: LazyLock<GaugeVec> = LazyLock::new(|| {
    register_gauge_vec!(
        opts!(
            "kubernetes_feature_enabled",
            "This metric records the data about the stage and enablement of a k8s feature."
        ),
        &["name", "stage"]
    )
    .expect(PROVEN)
});
static BUILD: LazyLock<GaugeVec> = LazyLock::new(|| {
    register_gauge_vec!(
        opts!(
            "kubernetes_build_info",
            "A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running."
        ),
        &["major", "minor", "git_version", "git_commit", "git_tree_state", "build_date", "go_version", "compiler", "platform"]
    )
    .expect(PROVEN)
});

/// Registers what every process reports. Idempotent.
pub fn init() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let platform = format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH);
        BUILD
            .with_label_values(&[
                "1",
                "36",
                crate::version::GIT_VERSION,
                "",
                "clean",
                "",
                "",
                "rustc",
                &platform,
            ])
            .set(1.0);
        // Refused only if a second one is registered; this runs once.
        let _ = prometheus::register(Box::new(ProcessCollector::new()));
        LazyLock::force(&REQUESTS);
        LazyLock::force(&REQUEST_SECONDS);
    });
}

/// All metrics of the process in Prometheus' text format.
pub fn text() -> String {
    render(prometheus::gather())
}

/// The same, and those of a component that has its own in `registry`.
pub fn text_with(registry: &Registry) -> String {
    let mut families = prometheus::gather();
    families.append(&mut registry.gather());
    families.sort_by(|a, b| a.name().cmp(b.name()));
    render(families)
}

fn render(families: Vec<MetricFamily>) -> String {
    let mut buffer = Vec::new();
    if let Err(error) = TextEncoder::new().encode(&families, &mut buffer) {
        tracing::error!(%error, "Metrics cannot be rendered");
    }
    String::from_utf8_lossy(&buffer).into_owned()
}

/// A router with `/metrics`.
pub fn router() -> axum::Router {
    router_with(Registry::new())
}

/// A router with `/metrics` of the process and of a component that has its own in `registry`.
pub fn router_with(registry: Registry) -> axum::Router {
    init();
    let page = move || async move {
        let content_type = [(http::header::CONTENT_TYPE, CONTENT_TYPE)];
        (content_type, text_with(&registry))
    };
    axum::Router::new().route("/metrics", axum::routing::get(page))
}

/// Upstream's `ExponentialBuckets`.
pub fn exponential_buckets(start: f64, factor: f64, count: usize) -> Vec<f64> {
    prometheus::exponential_buckets(start, factor, count)
        .expect("positive start, factor above one, at least one bucket")
}

/// Adds a metric to a registry and gives it back.
///
/// # Errors
/// Its name or labels are none, or the registry has it already.
pub fn add<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: Result<C, RegisterError>,
) -> Result<C, RegisterError> {
    let metric = metric?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// How a metric of [`metrics!`](crate::metrics!) is made: its name, what it says, its labels, the bounds of its buckets.
pub mod make {
    use prometheus::{
        Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
        IntGauge, IntGaugeVec, Opts,
    };

    use super::RegisterError;

    /// A number that grows.
    ///
    /// # Errors
    /// The name is none.
    pub fn counter(name: &str, help: &str) -> Result<IntCounter, RegisterError> {
        IntCounter::new(name, help)
    }

    /// Numbers that grow.
    ///
    /// # Errors
    /// The name or a label is none.
    pub fn counters(
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, RegisterError> {
        IntCounterVec::new(Opts::new(name, help), labels)
    }

    /// A number.
    ///
    /// # Errors
    /// The name is none.
    pub fn gauge(name: &str, help: &str) -> Result<Gauge, RegisterError> {
        Gauge::new(name, help)
    }

    /// Numbers.
    ///
    /// # Errors
    /// The name or a label is none.
    pub fn gauges(name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, RegisterError> {
        GaugeVec::new(Opts::new(name, help), labels)
    }

    /// A whole number.
    ///
    /// # Errors
    /// The name is none.
    pub fn int_gauge(name: &str, help: &str) -> Result<IntGauge, RegisterError> {
        IntGauge::new(name, help)
    }

    /// Whole numbers.
    ///
    /// # Errors
    /// The name or a label is none.
    pub fn int_gauges(
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, RegisterError> {
        IntGaugeVec::new(Opts::new(name, help), labels)
    }

    /// How often what was how large.
    ///
    /// # Errors
    /// The name is none, or the bounds do not grow.
    pub fn histogram(
        name: &str,
        help: &str,
        buckets: Vec<f64>,
    ) -> Result<Histogram, RegisterError> {
        Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))
    }

    /// The same by labels.
    ///
    /// # Errors
    /// The name or a label is none, or the bounds do not grow.
    pub fn histograms(
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: Vec<f64>,
    ) -> Result<HistogramVec, RegisterError> {
        HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels)
    }
}

/// Declares a struct of metrics, a value that may exist twice in a process: `register` makes it, in a registry of the caller's.
///
/// ```
/// use component_base::metrics::{Registry, make};
/// use prometheus::IntCounterVec;
///
/// component_base::metrics! {
///     /// What is counted.
///     pub struct Metrics {
///         /// By outcome.
///         pub attempts: IntCounterVec = make::counters("attempts_total", "Attempts.", &["outcome"]),
///     }
/// }
/// let registry = Registry::new();
/// let metrics = Metrics::register(&registry).unwrap();
/// metrics.attempts.with_label_values(&["success"]).inc();
/// assert_eq!(registry.gather()[0].name(), "attempts_total");
/// ```
#[macro_export]
macro_rules! metrics {
    (
        $(#[$of:meta])*
        $vis:vis struct $name:ident {
            $($(#[$doc:meta])* $field_vis:vis $field:ident: $type:ty = $made:expr),* $(,)?
        }
    ) => {
        $(#[$of])*
        $vis struct $name {
            $($(#[$doc])* $field_vis $field: $type,)*
        }

        impl $name {
            /// Makes every metric and adds it to the registry.
            ///
            /// # Errors
            /// The registry has one of them already.
            $vis fn register(
                registry: &$crate::metrics::Registry,
            ) -> Result<Self, $crate::metrics::RegisterError> {
                Ok(Self {
                    $($field: $crate::metrics::add(registry, $made)?,)*
                })
            }

            /// Those that nobody reads.
            #[allow(dead_code)]
            $vis fn unread() -> Self {
                Self::register(&$crate::metrics::Registry::new()).expect("the registry is empty")
            }
        }
    };
}

pub(crate) fn observe_rest_client(code: &str, method: &str, host: &str, took: Duration) {
    REQUESTS.with_label_values(&[code, method, host]).inc();
    REQUEST_SECONDS
        .with_label_values(&[method, host])
        .observe(took.as_secs_f64());
}

pub(crate) fn leader_status(name: &str, leading: bool) {
    LEADER
        .with_label_values(&[name])
        .set(f64::from(u8::from(leading)));
}

pub(crate) fn feature_enabled(name: &str, stage: &str, on: bool) {
    FEATURES
        .with_label_values(&[name, stage])
        .set(f64::from(u8::from(on)));
}

/// `process_*`, read from /proc when scraped.
struct ProcessCollector {
    descs: Vec<Desc>,
}

const PROCESS: &[(&str, &str, MetricType)] = &[
    (
        "process_cpu_seconds_total",
        "Total user and system CPU time spent in seconds.",
        MetricType::COUNTER,
    ),
    (
        "process_max_fds",
        "Maximum number of open file descriptors.",
        MetricType::GAUGE,
    ),
    (
        "process_open_fds",
        "Number of open file descriptors.",
        MetricType::GAUGE,
    ),
    (
        "process_resident_memory_bytes",
        "Resident memory size in bytes.",
        MetricType::GAUGE,
    ),
    (
        "process_start_time_seconds",
        "Start time of the process since unix epoch in seconds.",
        MetricType::GAUGE,
    ),
    (
        "process_virtual_memory_bytes",
        "Virtual memory size in bytes.",
        MetricType::GAUGE,
    ),
];

impl ProcessCollector {
    fn new() -> Self {
        let desc = |(name, help, _): &(&str, &str, MetricType)| {
            Opts::new(*name, *help)
                .variable_labels(Vec::new())
                .try_into_desc()
        };
        Self {
            descs: PROCESS.iter().filter_map(desc).collect(),
        }
    }

    fn read() -> Option<[f64; 6]> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // Fields after the name, which stands in parentheses and may hold anything.
        let fields: Vec<f64> = stat
            .rsplit_once(')')?
            .1
            .split_whitespace()
            .skip(1)
            .map(|f| f.parse().unwrap_or(0.0))
            .collect();
        const TICKS: f64 = 100.0; // USER_HZ, fixed in Linux' ABI
        const PAGE: f64 = 4096.0;
        let boot = std::fs::read_to_string("/proc/stat").ok()?;
        let boot: f64 = boot
            .lines()
            .find_map(|l| l.strip_prefix("btime "))?
            .trim()
            .parse()
            .ok()?;
        let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
        let max_fds = limits
            .lines()
            .find_map(|l| l.strip_prefix("Max open files"))
            .and_then(|l| l.split_whitespace().next()?.parse().ok())
            .unwrap_or(f64::INFINITY);
        let open_fds = std::fs::read_dir("/proc/self/fd")
            .map(Iterator::count)
            .unwrap_or(0) as f64;
        Some([
            (fields.get(10)? + fields.get(11)?) / TICKS,
            max_fds,
            open_fds,
            fields.get(20)? * PAGE,
            boot + fields.get(18)? / TICKS,
            *fields.get(19)?,
        ])
    }
}

trait TryIntoDesc {
    fn try_into_desc(self) -> Option<Desc>;
}
impl TryIntoDesc for Opts {
    fn try_into_desc(self) -> Option<Desc> {
        prometheus::core::Describer::describe(&self).ok()
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(values) = Self::read() else {
            return Vec::new();
        };
        let family = |((name, help, kind), value): (&(&str, &str, MetricType), f64)| {
            let mut metric = Metric::from_label(Vec::<LabelPair>::new());
            if *kind == MetricType::COUNTER {
                let mut counter = prometheus::proto::Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            } else {
                let mut gauge = prometheus::proto::Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
            let mut family = MetricFamily::default();
            family.set_name((*name).to_string());
            family.set_help((*help).to_string());
            family.set_field_type(*kind);
            family.set_metric(vec![metric]);
            family
        };
        PROCESS.iter().zip(values).map(family).collect()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn process_metrics_are_there() {
        super::init();
        let text = super::text();
        for name in [
            "process_resident_memory_bytes",
            "process_cpu_seconds_total",
            "kubernetes_build_info",
        ] {
            assert!(text.contains(name), "{name} in {text}");
        }
    }
}
