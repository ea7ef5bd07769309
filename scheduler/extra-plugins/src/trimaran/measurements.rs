//! [`Measurements`]: the load of nodes in per cent, and where it is measured ([`Source`]). What answers mean is pure; asking is the scheduler's.
//!
//! Upstream: github.com/paypal/load-watcher (pkg/watcher, its providers k8s and prometheus).

use std::collections::HashMap;
use std::time::Duration;

use framework::{Fetch, FetchFrom, Handle};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Deserialize;
use serde_json::Value;

use crate::args::{MetricProviderSpec, MetricProviderType};

/// How long an answer may take. Upstream: load-watcher's queries.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Where Prometheus is where nothing is said.
const PROMETHEUS: &str = "http://prometheus-k8s:9090";
/// Over what time Prometheus takes mean and deviation.
const ROLLUP: &str = "15m";

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// CPU.
    Cpu,
    /// Memory.
    Memory,
}

/// How a value came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// The mean over some time.
    Average,
    /// The standard deviation over it.
    Std,
    /// What was measured last.
    Latest,
    /// Nothing is said.
    Unsaid,
}

/// One value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    /// Of what.
    pub kind: Kind,
    /// How it came to be.
    pub operator: Operator,
    /// Per cent of the node's capacity.
    pub value: f64,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measurements {
    /// By node.
    pub nodes: HashMap<String, Vec<Metric>>,
    /// Up to when was measured, in seconds since 1970.
    pub window_end: i64,
}

impl Measurements {
    /// Mean and deviation of the node's load. Where no mean was measured, the last value stands for it. `None`: nothing was measured of it.
    pub fn load(&self, node: &str, kind: Kind) -> Option<(f64, f64)> {
        let metrics = self.nodes.get(node)?;
        let metrics = || metrics.iter().filter(|metric| metric.kind == kind);
        metrics().next()?;
        let last = |wanted: &dyn Fn(Operator) -> bool| {
            let mut found = metrics().filter(|metric| wanted(metric.operator));
            found.next_back().map(|metric| metric.value)
        };
        let mean = last(&|operator| operator == Operator::Average);
        let mean = mean
            .or_else(|| last(&|operator| matches!(operator, Operator::Latest | Operator::Unsaid)));
        let deviation = last(&|operator| operator == Operator::Std);
        Some((mean.unwrap_or(0.0), deviation.unwrap_or(0.0)))
    }

    /// The node's CPU load: its mean, or its last value, whichever was told last. `None`: neither was measured.
    pub fn cpu(&self, node: &str) -> Option<f64> {
        let metrics = self.nodes.get(node)?.iter();
        let mut cpu = metrics.filter(|metric| {
            metric.kind == Kind::Cpu
                && matches!(metric.operator, Operator::Average | Operator::Latest)
        });
        cpu.next_back().map(|metric| metric.value)
    }

    fn push(&mut self, node: &str, kind: Kind, operator: Operator, value: f64) {
        if value.is_finite() {
            let metrics = self.nodes.entry(node.to_owned()).or_default();
            metrics.push(Metric {
                kind,
                operator,
                value,
            });
        }
    }
}

/// Who measures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// metrics.k8s.io, by the API server.
    MetricsServer,
    /// A Prometheus server.
    Prometheus {
        /// Its URL, without a slash at the end.
        address: String,
        /// A bearer token; empty for none.
        token: String,
        /// Takes its certificate unseen.
        insecure_skip_verify: bool,
    },
    /// A load-watcher's URL, without a slash at the end.
    Watcher(String),
}

impl Source {
    /// As the arguments say.
    ///
    /// # Errors
    /// What cannot be used, with its field.
    pub fn new(
        provider: &MetricProviderSpec,
        watcher_address: Option<&str>,
    ) -> Result<Self, String> {
        let url = |field: &str, url: &str| {
            if url.starts_with("http://") || url.starts_with("https://") {
                Ok(url.trim_end_matches('/').to_owned())
            } else {
                Err(format!(
                    "{field}: Invalid value: {url:?}: must be an http or https URL"
                ))
            }
        };
        if let Some(address) = watcher_address.filter(|address| !address.is_empty()) {
            return Ok(Source::Watcher(url("watcherAddress", address)?));
        }
        let default = MetricProviderType::KubernetesMetricsServer;
        match provider.type_.unwrap_or(default) {
            MetricProviderType::KubernetesMetricsServer => Ok(Source::MetricsServer),
            MetricProviderType::Prometheus => {
                let address = provider.address.as_deref().filter(|a| !a.is_empty());
                Ok(Source::Prometheus {
                    address: url("metricProvider.address", address.unwrap_or(PROMETHEUS))?,
                    token: provider.token.clone().unwrap_or_default(),
                    insecure_skip_verify: provider.insecure_skip_verify.unwrap_or(true),
                })
            }
            MetricProviderType::SignalFx => Err(
                "metricProvider.type: Unsupported value: \"SignalFx\": supported values: \"KubernetesMetricsServer\", \"Prometheus\"".to_owned(),
            ),
        }
    }

    /// Measures.
    ///
    /// # Errors
    /// When an answer does not come, or is none. The next time may be another.
    pub(super) async fn measure(
        &self,
        handle: &dyn Handle,
        now: Timestamp,
    ) -> Result<Measurements, String> {
        let ask = |from: FetchFrom| async move {
            let question = Fetch {
                from,
                timeout: TIMEOUT,
            };
            let answer = handle.fetch(question).await;
            answer.map_err(|error| error.to_string())
        };
        let mut measured = Measurements {
            window_end: now.as_second(),
            ..Measurements::default()
        };
        match self {
            Source::MetricsServer => {
                let path = "/apis/metrics.k8s.io/v1beta1/nodes".to_owned();
                let answer = ask(FetchFrom::ApiServer(path)).await?;
                let capacity = |node: &str| {
                    let node = handle.listers().node(node)?;
                    let capacity = node.status.as_ref()?.capacity.as_ref()?;
                    let of = |name: &str| capacity.get(name);
                    let cpu = component_helpers::quantity::milli_value(of("cpu")?);
                    Some((cpu, component_helpers::quantity::value(of("memory")?)))
                };
                of_metrics_server(&answer, capacity, &mut measured)?;
            }
            Source::Prometheus {
                address,
                token,
                insecure_skip_verify,
            } => {
                for (function, operator) in [
                    ("avg_over_time", Operator::Average),
                    ("stddev_over_time", Operator::Std),
                ] {
                    for (metric, kind) in [
                        ("instance:node_cpu:ratio", Kind::Cpu),
                        ("instance:node_memory_utilisation:ratio", Kind::Memory),
                    ] {
                        let query = format!("{function}({metric}%5B{ROLLUP}%5D)");
                        let answer = ask(FetchFrom::Url {
                            url: format!("{address}/api/v1/query?query={query}"),
                            token: token.clone(),
                            insecure_skip_verify: *insecure_skip_verify,
                        });
                        of_prometheus(&answer.await?, kind, operator, &mut measured)?;
                    }
                }
            }
            Source::Watcher(address) => {
                let answer = ask(FetchFrom::Url {
                    url: format!("{address}/watcher"),
                    token: String::new(),
                    insecure_skip_verify: false,
                });
                measured = of_watcher(&answer.await?)?;
            }
        }
        Ok(measured)
    }
}

/// What a NodeMetricsList says; `capacity` tells a node's millicores and bytes.
fn of_metrics_server(
    answer: &Value,
    capacity: impl Fn(&str) -> Option<(i64, i64)>,
    measured: &mut Measurements,
) -> Result<(), String> {
    #[derive(Deserialize)]
    struct List {
        items: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        metadata: Metadata,
        usage: HashMap<String, Quantity>,
    }
    #[derive(Deserialize)]
    struct Metadata {
        name: String,
    }
    let list = List::deserialize(answer).map_err(|error| format!("no NodeMetricsList: {error}"))?;
    for item in list.items {
        let name = &item.metadata.name;
        let Some((milli_cpu, memory)) = capacity(name) else {
            tracing::debug!(node = name, "metrics of a node that is not known");
            continue;
        };
        let usage = |name: &str| item.usage.get(name);
        let per_cent = |used: i64, of: i64| 100.0 * used as f64 / of as f64;
        if let Some(cpu) = usage("cpu") {
            let used = component_helpers::quantity::milli_value(cpu);
            measured.push(name, Kind::Cpu, Operator::Latest, per_cent(used, milli_cpu));
        }
        if let Some(bytes) = usage("memory") {
            let used = component_helpers::quantity::value(bytes);
            measured.push(name, Kind::Memory, Operator::Latest, per_cent(used, memory));
        }
    }
    Ok(())
}

/// What the answer to an instant query says; the label `instance` is the node's name.
fn of_prometheus(
    answer: &Value,
    kind: Kind,
    operator: Operator,
    measured: &mut Measurements,
) -> Result<(), String> {
    let data = &answer["data"];
    if answer["status"] != "success" || data["resultType"] != "vector" {
        let (status, error) = (&answer["status"], &answer["error"]);
        return Err(format!(
            "Prometheus answers no vector: status {status}, error {error}"
        ));
    }
    for result in data["result"].as_array().into_iter().flatten() {
        let node = result["metric"]["instance"].as_str();
        let value = result["value"][1].as_str().map(str::parse::<f64>);
        if let (Some(node), Some(Ok(share))) = (node, value) {
            measured.push(node, kind, operator, share * 100.0);
        }
    }
    Ok(())
}

/// What a load-watcher says.
fn of_watcher(answer: &Value) -> Result<Measurements, String> {
    #[derive(Deserialize)]
    struct Watched {
        window: Window,
        data: Data,
    }
    #[derive(Deserialize)]
    struct Window {
        end: i64,
    }
    #[derive(Deserialize)]
    struct Data {
        #[serde(rename = "NodeMetricsMap")]
        nodes: HashMap<String, Node>,
    }
    #[derive(Deserialize)]
    struct Node {
        #[serde(default)]
        metrics: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(rename = "type")]
        type_: String,
        #[serde(default)]
        operator: String,
        value: f64,
    }
    let watched = Watched::deserialize(answer);
    let watched = watched.map_err(|error| format!("no metrics of a load-watcher: {error}"))?;
    let mut measured = Measurements {
        window_end: watched.window.end,
        ..Measurements::default()
    };
    for (name, node) in watched.data.nodes {
        for one in node.metrics {
            let kind = match one.type_.as_str() {
                "CPU" => Kind::Cpu,
                "Memory" => Kind::Memory,
                _ => continue,
            };
            let operator = match one.operator.as_str() {
                "AVG" => Operator::Average,
                "STD" => Operator::Std,
                "Latest" => Operator::Latest,
                "" => Operator::Unsaid,
                _ => continue,
            };
            measured.push(&name, kind, operator, one.value);
        }
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn usage_is_a_share_of_the_capacity() {
        let answer = json!({"kind": "NodeMetricsList", "items": [
            {"metadata": {"name": "a"}, "usage": {"cpu": "500m", "memory": "1Gi"}},
            {"metadata": {"name": "gone"}, "usage": {"cpu": "1", "memory": "1Gi"}},
            {"metadata": {"name": "empty"}, "usage": {"cpu": "1"}},
        ]});
        let mut measured = Measurements::default();
        let capacity = |node: &str| match node {
            "a" => Some((2000, 4 << 30)),
            "empty" => Some((0, 0)),
            _ => None,
        };
        of_metrics_server(&answer, capacity, &mut measured).expect("a list");
        assert_eq!(measured.load("a", Kind::Cpu), Some((25.0, 0.0)));
        assert_eq!(measured.load("a", Kind::Memory), Some((25.0, 0.0)));
        assert_eq!(measured.cpu("a"), Some(25.0));
        // No share of nothing.
        assert_eq!((measured.cpu("empty"), measured.cpu("gone")), (None, None));
        assert!(of_metrics_server(&json!({}), capacity, &mut measured).is_err());
    }

    #[test]
    fn prometheus_answers_shares() {
        let vector = |value: &str| {
            json!({"status": "success", "data": {"resultType": "vector", "result": [
                {"metric": {"instance": "a"}, "value": [1, value]},
                {"metric": {"other": "b"}, "value": [1, "0.5"]},
            ]}})
        };
        let mut measured = Measurements::default();
        for (value, operator) in [
            ("0.4", Operator::Average),
            ("0.1", Operator::Std),
            ("NaN", Operator::Average),
        ] {
            of_prometheus(&vector(value), Kind::Cpu, operator, &mut measured).expect("a vector");
        }
        assert_eq!(measured.load("a", Kind::Cpu), Some((40.0, 10.0)));
        assert_eq!(measured.load("a", Kind::Memory), None);
        assert_eq!(measured.nodes.len(), 1);
        let error = json!({"status": "error", "error": "bad query"});
        let error = of_prometheus(&error, Kind::Cpu, Operator::Std, &mut measured);
        assert!(error.expect_err("no vector").contains("bad query"));
    }

    #[test]
    fn a_watcher_tells_all_at_once() {
        let answer = json!({"timestamp": 9, "window": {"duration": "15m", "start": 1, "end": 7}, "source": "x",
            "data": {"NodeMetricsMap": {"a": {"metrics": [
                {"name": "m", "type": "CPU", "operator": "AVG", "rollup": "15m", "value": 30},
                {"name": "m", "type": "CPU", "operator": "STD", "value": 5},
                {"name": "m", "type": "Memory", "operator": "", "value": 60},
                {"name": "m", "type": "Energy", "operator": "AVG", "value": 60}]},
                "b": {}}}});
        let measured = of_watcher(&answer).expect("metrics");
        assert_eq!(measured.window_end, 7);
        assert_eq!(measured.load("a", Kind::Cpu), Some((30.0, 5.0)));
        assert_eq!(measured.load("a", Kind::Memory), Some((60.0, 0.0)));
        assert_eq!((measured.cpu("a"), measured.cpu("b")), (Some(30.0), None));
        assert!(of_watcher(&json!({"data": {}})).is_err());
    }

    #[test]
    fn a_mean_goes_before_the_last_value() {
        let mut measured = Measurements::default();
        measured.push("a", Kind::Cpu, Operator::Average, 1.0);
        measured.push("a", Kind::Cpu, Operator::Latest, 2.0);
        assert_eq!(measured.load("a", Kind::Cpu), Some((1.0, 0.0)));
        assert_eq!(measured.cpu("a"), Some(2.0));
    }

    #[test]
    fn sources() {
        let check = |spec: Value, watcher: Option<&str>| {
            let spec: MetricProviderSpec = serde_json::from_value(spec).expect("decodes");
            Source::new(&spec, watcher)
        };
        assert_eq!(check(json!({}), None), Ok(Source::MetricsServer));
        assert_eq!(
            check(json!({}), Some("http://w/")),
            Ok(Source::Watcher("http://w".into()))
        );
        assert_eq!(
            check(json!({"type": "Prometheus", "token": "t"}), None),
            Ok(Source::Prometheus {
                address: PROMETHEUS.into(),
                token: "t".into(),
                insecure_skip_verify: true
            })
        );
        for (spec, watcher, words) in [
            (
                json!({"type": "SignalFx"}),
                None,
                "metricProvider.type: Unsupported value: \"SignalFx\"",
            ),
            (
                json!({"type": "Prometheus", "address": "h:9090"}),
                None,
                "metricProvider.address: Invalid value: \"h:9090\"",
            ),
            (
                json!({}),
                Some("file:///etc"),
                "watcherAddress: Invalid value",
            ),
        ] {
            let error = check(spec, watcher).expect_err("refused");
            assert!(error.contains(words), "{error}");
        }
    }
}
