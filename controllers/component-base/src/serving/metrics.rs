//! What asking the API server about tokens and users came to. Upstream: `k8s.io/apiserver/pkg/{authentication/authenticatorfactory,
//! authorization/authorizerfactory,authentication/token/cache}`.

use std::sync::LazyLock;
use std::time::Duration;

use prometheus::{
    HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, histogram_opts, opts,
    register_histogram_vec, register_int_counter_vec, register_int_gauge_vec,
};

const PROVEN: &str = "the name is registered only here";
const BUCKETS: [f64; 8] = [0.25, 0.5, 0.7, 1.0, 1.5, 3.0, 5.0, 10.0];
/// The code of a question that got no HTTP answer.
const NO_CODE: &str = "<error>";

/// Questions of one kind.
pub(super) struct Asked {
    total: IntCounterVec,
    seconds: HistogramVec,
}

impl Asked {
    fn register(which: &str) -> Self {
        let total = format!("apiserver_delegated_{which}_request_total");
        let seconds = format!("apiserver_delegated_{which}_request_duration_seconds");
        let label = &["code"];
        Self {
            total: register_int_counter_vec!(
                opts!(total, "Number of HTTP requests partitioned by status code."),
                label
            )
            .expect(PROVEN),
            seconds: register_histogram_vec!(
                histogram_opts!(
                    seconds,
                    "Request latency in seconds. Broken down by status code.",
                    BUCKETS.to_vec()
                ),
                label
            )
            .expect(PROVEN),
        }
    }

    /// A question was answered with an HTTP status, or with none.
    pub(super) fn record(&self, code: Option<u16>, took: Duration) {
        let code = code.map_or_else(|| NO_CODE.to_owned(), |code| code.to_string());
        self.total.with_label_values(&[&code]).inc();
        self.seconds
            .with_label_values(&[&code])
            .observe(took.as_secs_f64());
    }
}

pub(super) static AUTHENTICATION: LazyLock<Asked> = LazyLock::new(|| Asked::register("authn"));
pub(super) static AUTHORIZATION: LazyLock<Asked> = LazyLock::new(|| Asked::register("authz"));
/// The cache of tokens. None of upstream's has a help text.
pub(super) static TOKENS: LazyLock<TokenCache> = LazyLock::new(TokenCache::register);

pub(super) struct TokenCache {
    seconds: HistogramVec,
    requests: IntCounterVec,
    fetched: IntCounterVec,
    active: IntGaugeVec,
}

impl TokenCache {
    fn register() -> Self {
        let label = &["status"];
        Self {
            seconds: register_histogram_vec!(
                histogram_opts!("authentication_token_cache_request_duration_seconds", " "),
                label
            )
            .expect(PROVEN),
            requests: register_int_counter_vec!(
                opts!("authentication_token_cache_request_total", " "),
                label
            )
            .expect(PROVEN),
            fetched: register_int_counter_vec!(
                opts!("authentication_token_cache_fetch_total", " "),
                label
            )
            .expect(PROVEN),
            active: register_int_gauge_vec!(
                opts!("authentication_token_cache_active_fetch_count", " "),
                label
            )
            .expect(PROVEN),
        }
    }

    /// A token was looked up.
    pub(super) fn looked_up(&self, hit: bool, took: Duration) {
        let status = if hit { "hit" } else { "miss" };
        self.requests.with_label_values(&[status]).inc();
        self.seconds
            .with_label_values(&[status])
            .observe(took.as_secs_f64());
    }

    /// The API server told of a token, or did not.
    pub(super) fn fetched(&self, told: bool) {
        let status = if told { "ok" } else { "error" };
        self.fetched.with_label_values(&[status]).inc();
    }

    /// A request waits for an answer, until what is returned is dropped.
    pub(super) fn blocked(&self) -> Active {
        Active::begin(self.active.with_label_values(&["blocked"]))
    }

    /// The API server is being asked, until what is returned is dropped.
    pub(super) fn in_flight(&self) -> Active {
        Active::begin(self.active.with_label_values(&["in_flight"]))
    }
}

/// Counts for as long as it lives.
pub(super) struct Active(IntGauge);

impl Active {
    fn begin(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_names_and_labels() {
        AUTHENTICATION.record(Some(201), Duration::from_millis(3));
        AUTHORIZATION.record(None, Duration::from_millis(3));
        TOKENS.looked_up(true, Duration::from_millis(1));
        TOKENS.fetched(true);
        {
            let _blocked = TOKENS.blocked();
            let _flight = TOKENS.in_flight();
            let text = crate::metrics::text();
            for line in [
                "apiserver_delegated_authn_request_total{code=\"201\"} ",
                "apiserver_delegated_authn_request_duration_seconds_bucket{code=\"201\",le=\"0.25\"} ",
                "apiserver_delegated_authz_request_total{code=\"<error>\"} ",
                "apiserver_delegated_authz_request_duration_seconds_count{code=\"<error>\"} ",
                "authentication_token_cache_request_total{status=\"hit\"} ",
                "authentication_token_cache_request_duration_seconds_count{status=\"hit\"} ",
                "authentication_token_cache_fetch_total{status=\"ok\"} ",
                "authentication_token_cache_active_fetch_count{status=\"blocked\"} ",
                "authentication_token_cache_active_fetch_count{status=\"in_flight\"} ",
            ] {
                assert!(text.contains(line), "{line}\n{text}");
            }
        }
    }
}
