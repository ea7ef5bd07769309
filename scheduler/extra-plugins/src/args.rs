//! The arguments of these plugins (`kubescheduler.config.k8s.io/v1`, `CoschedulingArgs` and so on), with upstream's defaults.
//!
//! Validation of what they mean is the plugin's. Upstream: apis/config/v1 (types.go, defaults.go). PreemptionToleration takes the arguments of DefaultPreemption.

use std::collections::BTreeMap;

use framework::PluginError;
use framework::args::{ResourceSpec, decode};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Arguments with their defaults, as JSON with `apiVersion` and `kind`.
pub(crate) fn completed<T: DeserializeOwned + Default + Serialize>(
    name: &'static str,
    args: Option<&Value>,
) -> Result<Value, PluginError> {
    let args: T = decode(name, args)?;
    let mut value = serde_json::to_value(args).expect("arguments serialise into memory");
    if let Some(object) = value.as_object_mut() {
        let version = "kubescheduler.config.k8s.io/v1";
        object.insert("apiVersion".to_owned(), version.into());
        object.insert("kind".to_owned(), format!("{name}Args").into());
    }
    Ok(value)
}

/// Coscheduling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CoschedulingArgs {
    /// How long a pod waits for the others of its group, in seconds, where the group does not say; 0: 60 s.
    pub permit_waiting_time_seconds: i64,
    /// For so many seconds a group is not tried after one of its pods found no node; 0: no such time.
    pub pod_group_backoff_seconds: i64,
    /// A group is not given up while at most this share of `minMember` (0–100) is missing.
    pub pod_group_reject_percentage: i32,
}

impl Default for CoschedulingArgs {
    fn default() -> Self {
        CoschedulingArgs {
            permit_waiting_time_seconds: 60,
            pod_group_backoff_seconds: 0,
            pod_group_reject_percentage: 10,
        }
    }
}

/// Which nodes NodeResourcesAllocatable prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum ModeType {
    /// Those that have the least.
    #[default]
    Least,
    /// Those that have the most.
    Most,
}

/// NodeResourcesAllocatable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeResourcesAllocatableArgs {
    /// What counts, and what a unit of it (a thousandth of a CPU, a byte) weighs: by default a millicore as much as a MiB.
    #[serde(deserialize_with = "or_millicore_per_mebibyte")]
    pub resources: Vec<ResourceSpec>,
    /// Which nodes are preferred.
    pub mode: ModeType,
}

fn millicore_per_mebibyte() -> Vec<ResourceSpec> {
    [("cpu", 1 << 20), ("memory", 1)]
        .map(|(name, weight)| ResourceSpec {
            name: name.to_owned(),
            weight,
        })
        .into()
}

fn or_millicore_per_mebibyte<'de, D: serde::Deserializer<'de>>(
    d: D,
) -> Result<Vec<ResourceSpec>, D::Error> {
    let list = Vec::<ResourceSpec>::deserialize(d)?;
    Ok(match list.is_empty() {
        true => millicore_per_mebibyte(),
        false => list,
    })
}

impl Default for NodeResourcesAllocatableArgs {
    fn default() -> Self {
        NodeResourcesAllocatableArgs {
            resources: millicore_per_mebibyte(),
            mode: ModeType::Least,
        }
    }
}

/// Who measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MetricProviderType {
    /// metrics.k8s.io, by the API server.
    KubernetesMetricsServer,
    /// A Prometheus server.
    Prometheus,
    /// Splunk's; known, and not built.
    SignalFx,
}

/// Where measurements come from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MetricProviderSpec {
    /// The kind; metrics.k8s.io where neither it nor a watcher's address is given.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<MetricProviderType>,
    /// Prometheus' URL; `http://prometheus-k8s:9090` where none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// A bearer token for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Takes its certificate unseen; true where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub insecure_skip_verify: Option<bool>,
}

/// TargetLoadPacking.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TargetLoadPackingArgs {
    /// Where measurements come from.
    pub metric_provider: MetricProviderSpec,
    /// A load-watcher to ask instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watcher_address: Option<String>,
    /// What a container without requests and limits is thought to use.
    #[schemars(with = "BTreeMap<String, String>")]
    pub default_requests: BTreeMap<String, Quantity>,
    /// How much more than it requests a container without limits is thought to use.
    pub default_requests_multiplier: String,
    /// The CPU load (per cent) nodes are packed to.
    #[serde(deserialize_with = "positive_or_40")]
    pub target_utilization: i64,
}

fn positive_or_40<'de, D: serde::Deserializer<'de>>(d: D) -> Result<i64, D::Error> {
    let given = i64::deserialize(d)?;
    Ok(if given <= 0 { 40 } else { given })
}

impl Default for TargetLoadPackingArgs {
    fn default() -> Self {
        TargetLoadPackingArgs {
            metric_provider: MetricProviderSpec::default(),
            watcher_address: None,
            default_requests: [("cpu".to_owned(), Quantity("1000m".to_owned()))].into(),
            default_requests_multiplier: "1.5".to_owned(),
            target_utilization: 40,
        }
    }
}

/// LoadVariationRiskBalancing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LoadVariationRiskBalancingArgs {
    /// Where measurements come from.
    pub metric_provider: MetricProviderSpec,
    /// A load-watcher to ask instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watcher_address: Option<String>,
    /// How much the deviation counts.
    #[serde(deserialize_with = "not_negative_or_1")]
    pub safe_variance_margin: f64,
    /// Which root of it.
    #[serde(deserialize_with = "not_negative_or_1")]
    pub safe_variance_sensitivity: f64,
}

fn not_negative_or_1<'de, D: serde::Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
    let given = f64::deserialize(d)?;
    Ok(if given < 0.0 { 1.0 } else { given })
}

impl Default for LoadVariationRiskBalancingArgs {
    fn default() -> Self {
        LoadVariationRiskBalancingArgs {
            metric_provider: MetricProviderSpec::default(),
            watcher_address: None,
            safe_variance_margin: 1.0,
            safe_variance_sensitivity: 1.0,
        }
    }
}

/// LowRiskOverCommitment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LowRiskOverCommitmentArgs {
    /// Where measurements come from.
    pub metric_provider: MetricProviderSpec,
    /// A load-watcher to ask instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watcher_address: Option<String>,
    /// Over how many windows the measurements are smoothed.
    #[serde(deserialize_with = "positive_or_5")]
    pub smoothing_window_size: i64,
    /// How much of a resource's risk is that of limits, 0–1; the rest is that of load.
    #[serde(deserialize_with = "weights")]
    pub risk_limit_weights: BTreeMap<String, f64>,
}

fn positive_or_5<'de, D: serde::Deserializer<'de>>(d: D) -> Result<i64, D::Error> {
    let given = i64::deserialize(d)?;
    Ok(if given <= 0 { 5 } else { given })
}

/// The weight of a resource that has none of its own, or one that makes no sense.
const RISK_LIMIT_WEIGHT: f64 = 0.5;

fn even_weights() -> BTreeMap<String, f64> {
    ["cpu", "memory"]
        .map(|name| (name.to_owned(), RISK_LIMIT_WEIGHT))
        .into()
}

fn weights<'de, D: serde::Deserializer<'de>>(d: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let given = BTreeMap::<String, f64>::deserialize(d)?;
    let mut weights = even_weights();
    for (name, weight) in given {
        let sensible = (0.0..=1.0).contains(&weight);
        weights.insert(name, if sensible { weight } else { RISK_LIMIT_WEIGHT });
    }
    Ok(weights)
}

impl Default for LowRiskOverCommitmentArgs {
    fn default() -> Self {
        LowRiskOverCommitmentArgs {
            metric_provider: MetricProviderSpec::default(),
            watcher_address: None,
            smoothing_window_size: 5,
            risk_limit_weights: even_weights(),
        }
    }
}

/// How NodeResourceTopologyMatch scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum TopologyScoringStrategyType {
    /// The fuller NUMA node is better.
    MostAllocated,
    /// Even use of its resources is better.
    BalancedAllocation,
    /// The emptier NUMA node is better.
    #[default]
    LeastAllocated,
    /// The fewer NUMA nodes are needed the better.
    LeastNUMANodes,
}

/// NodeResourceTopologyMatch's scoring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TopologyScoringStrategy {
    /// Which strategy.
    #[serde(rename = "type")]
    pub type_: TopologyScoringStrategyType,
    /// Weights; a resource that is not listed has the weight 1.
    #[serde(deserialize_with = "or_cpu_and_memory")]
    pub resources: Vec<ResourceSpec>,
}

fn cpu_and_memory() -> Vec<ResourceSpec> {
    ["cpu", "memory"]
        .map(|name| ResourceSpec {
            name: name.to_owned(),
            weight: 1,
        })
        .into()
}

fn or_cpu_and_memory<'de, D: serde::Deserializer<'de>>(
    d: D,
) -> Result<Vec<ResourceSpec>, D::Error> {
    let mut list = Vec::<ResourceSpec>::deserialize(d)?;
    if list.is_empty() {
        list = cpu_and_memory();
    }
    for resource in list.iter_mut().filter(|resource| resource.weight == 0) {
        resource.weight = 1;
    }
    Ok(list)
}

impl Default for TopologyScoringStrategy {
    fn default() -> Self {
        TopologyScoringStrategy {
            type_: TopologyScoringStrategyType::LeastAllocated,
            resources: cpu_and_memory(),
        }
    }
}

/// Which pods that others scheduled make a node's topology stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum ForeignPodsDetectMode {
    /// None.
    None,
    /// All.
    #[default]
    All,
    /// Those that have resources for themselves alone.
    OnlyExclusiveResources,
}

/// Which pods are in a node's fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum CacheResyncMethod {
    /// As the node's agent says; all where it does not.
    #[default]
    Autodetect,
    /// All.
    All,
    /// Those that have resources for themselves alone.
    OnlyExclusiveResources,
}

/// Upstream: where its cache hears of pods from. Accepted; pods are heard of one way here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum CacheInformerMode {
    /// Shared with the scheduler.
    Shared,
    /// Of its own.
    #[default]
    Dedicated,
}

/// Which changes of a node's topology are taken over at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum CacheResyncScope {
    /// Those of the kubelet's settings, too.
    #[default]
    All,
    /// None: all changes wait until the node's pods are known to match.
    OnlyResources,
}

/// What is known between two reports of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeResourceTopologyCache {
    /// Pods that others scheduled.
    pub foreign_pods_detect: ForeignPodsDetectMode,
    /// How a report is matched with the node's pods.
    pub resync_method: CacheResyncMethod,
    /// Accepted; has no effect.
    pub informer_mode: CacheInformerMode,
    /// What is taken over at once.
    pub resync_scope: CacheResyncScope,
}

/// Whether preemption is tried out on a node's topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum PreemptionMode {
    /// No.
    #[default]
    Disabled,
    /// Yes; known, and not built.
    Enabled,
}

/// NodeResourceTopologyMatch.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeResourceTopologyMatchArgs {
    /// How nodes are scored.
    pub scoring_strategy: TopologyScoringStrategy,
    /// Above zero, what was placed since a node's last report counts against all its NUMA nodes, and reports are matched this often (seconds).
    pub cache_resync_period_seconds: i64,
    /// Passes over a node while a pod is on its way there; goes before `cacheResyncPeriodSeconds`.
    pub discard_reserved_nodes: bool,
    /// Details of what is known between two reports.
    pub cache: NodeResourceTopologyCache,
    /// Preemption.
    pub preemption_mode: PreemptionMode,
}
