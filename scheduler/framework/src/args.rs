//! The arguments of the plugins, as `pluginConfig` carries them (kubescheduler.config.k8s.io/v1), with upstream's defaults.
//!
//! Validation of what they mean is the plugin's. Upstream: kube-scheduler config/v1/types_pluginargs.go and its defaults.go, v1.36.

use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::handle::PluginError;

/// Decodes a plugin's arguments; `None` gives the defaults. Strict where the type is (`#[serde(deny_unknown_fields)]`).
///
/// `apiVersion` and `kind`, which a configuration may give, are left out before.
///
/// # Errors
/// For an unknown field or a wrong type; names the plugin and the field. The configuration has to change.
pub fn decode<T: DeserializeOwned + Default>(
    plugin: &'static str,
    args: Option<&serde_json::Value>,
) -> Result<T, PluginError> {
    let Some(args) = args else {
        return Ok(T::default());
    };
    let mut args = args.clone();
    if let Some(map) = args.as_object_mut() {
        map.remove("apiVersion");
        map.remove("kind");
    }
    serde_path_to_error::deserialize(args).map_err(|error| PluginError::Decode {
        plugin,
        message: match error.path().iter().next() {
            Some(_) => error.to_string(),
            None => error.into_inner().to_string(),
        },
    })
}

/// DefaultPreemption.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DefaultPreemptionArgs {
    /// At least this share of the nodes is tried (0–100).
    pub min_candidate_nodes_percentage: i32,
    /// At least this many nodes are tried.
    pub min_candidate_nodes_absolute: i32,
}

impl Default for DefaultPreemptionArgs {
    fn default() -> Self {
        DefaultPreemptionArgs {
            min_candidate_nodes_percentage: 10,
            min_candidate_nodes_absolute: 100,
        }
    }
}

/// InterPodAffinity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct InterPodAffinityArgs {
    /// The score of existing pods' required affinity terms that the pod matches (0–100).
    pub hard_pod_affinity_weight: i32,
    /// Look at existing pods' preferred terms only when the pod has some itself.
    pub ignore_preferred_terms_of_existing_pods: bool,
}

impl Default for InterPodAffinityArgs {
    fn default() -> Self {
        InterPodAffinityArgs {
            hard_pod_affinity_weight: 1,
            ignore_preferred_terms_of_existing_pods: false,
        }
    }
}

/// A resource and what it counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResourceSpec {
    /// Its name.
    pub name: String,
    /// Its weight, 1–100.
    #[serde(default = "one")]
    pub weight: i64,
}

fn one() -> i64 {
    1
}

fn cpu_and_memory() -> Vec<ResourceSpec> {
    ["cpu", "memory"]
        .map(|name| ResourceSpec {
            name: name.to_owned(),
            weight: 1,
        })
        .into()
}

/// A point of a utilization-to-score function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UtilizationShapePoint {
    /// Per cent, 0–100.
    pub utilization: i32,
    /// 0–10.
    pub score: i32,
}

/// How NodeResourcesFit scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum ScoringStrategyType {
    /// Spread: the emptiest node is best.
    #[default]
    LeastAllocated,
    /// Pack: the fullest node is best.
    MostAllocated,
    /// By the shape given.
    RequestedToCapacityRatio,
}

/// The shape of RequestedToCapacityRatio.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RequestedToCapacityRatioParam {
    /// Points in ascending utilization.
    pub shape: Vec<UtilizationShapePoint>,
}

/// NodeResourcesFit's scoring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ScoringStrategy {
    /// Which strategy.
    #[serde(rename = "type")]
    pub type_: ScoringStrategyType,
    /// Which resources count; CPU and memory alike by default.
    #[serde(deserialize_with = "non_empty_resources")]
    pub resources: Vec<ResourceSpec>,
    /// For RequestedToCapacityRatio.
    pub requested_to_capacity_ratio: Option<RequestedToCapacityRatioParam>,
}

fn non_empty_resources<'de, D: serde::Deserializer<'de>>(
    d: D,
) -> Result<Vec<ResourceSpec>, D::Error> {
    let list = Vec::<ResourceSpec>::deserialize(d)?;
    Ok(if list.is_empty() {
        cpu_and_memory()
    } else {
        list
    })
}

impl Default for ScoringStrategy {
    fn default() -> Self {
        ScoringStrategy {
            type_: ScoringStrategyType::LeastAllocated,
            resources: cpu_and_memory(),
            requested_to_capacity_ratio: None,
        }
    }
}

/// NodeResourcesFit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeResourcesFitArgs {
    /// Extended resources not to look at.
    pub ignored_resources: Vec<String>,
    /// Domains of extended resources not to look at.
    pub ignored_resource_groups: Vec<String>,
    /// How to score.
    pub scoring_strategy: ScoringStrategy,
}

/// NodeResourcesBalancedAllocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeResourcesBalancedAllocationArgs {
    /// Which resources to balance (weight 1 each).
    #[serde(deserialize_with = "non_empty_resources")]
    pub resources: Vec<ResourceSpec>,
}

impl Default for NodeResourcesBalancedAllocationArgs {
    fn default() -> Self {
        NodeResourcesBalancedAllocationArgs {
            resources: cpu_and_memory(),
        }
    }
}

/// NodeAffinity.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeAffinityArgs {
    /// Added to the affinity of every pod.
    #[schemars(with = "Option<serde_json::Value>")]
    pub added_affinity: Option<NodeAffinity>,
}

/// Where PodTopologySpread takes constraints from for pods that have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum PodTopologySpreadConstraintsDefaulting {
    /// Zone (skew 5) and hostname (skew 3), `ScheduleAnyway`.
    #[default]
    System,
    /// `defaultConstraints`.
    List,
}

/// PodTopologySpread.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PodTopologySpreadArgs {
    /// For [`PodTopologySpreadConstraintsDefaulting::List`]; without label selectors.
    #[schemars(with = "Vec<serde_json::Value>")]
    pub default_constraints: Vec<TopologySpreadConstraint>,
    /// Which defaults.
    pub defaulting_type: PodTopologySpreadConstraintsDefaulting,
}

/// VolumeBinding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct VolumeBindingArgs {
    /// How long a pod waits for its volumes to be bound, in seconds; 0: not at all.
    pub bind_timeout_seconds: i64,
    /// How storage capacity scores, which needs the gate `StorageCapacityScoring`.
    pub shape: Option<Vec<UtilizationShapePoint>>,
}

impl Default for VolumeBindingArgs {
    fn default() -> Self {
        VolumeBindingArgs {
            bind_timeout_seconds: 600,
            shape: None,
        }
    }
}

/// A duration as Go writes and reads it: `1h2m3.5s`, `300ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GoDuration(i64);

impl GoDuration {
    /// Whole seconds.
    pub const fn from_seconds(seconds: i64) -> Self {
        GoDuration(seconds * 1_000_000_000)
    }

    /// In nanoseconds; may be less than none.
    pub fn nanos(&self) -> i64 {
        self.0
    }

    fn parse(text: &str) -> Option<i64> {
        let (sign, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest == "0" {
            return Some(0);
        }
        let mut nanos = 0f64;
        if rest.is_empty() {
            return None;
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
            let number: f64 = rest[..digits].parse().ok()?;
            let unit = &rest[digits..];
            let end = unit
                .find(|c: char| c.is_ascii_digit() || c == '.')
                .unwrap_or(unit.len());
            nanos += number
                * match &unit[..end] {
                    "ns" => 1.0,
                    "us" | "µs" | "μs" => 1e3,
                    "ms" => 1e6,
                    "s" => 1e9,
                    "m" => 60e9,
                    "h" => 3600e9,
                    _ => return None,
                };
            rest = &unit[end..];
        }
        (nanos < i64::MAX as f64).then_some(sign * nanos as i64)
    }
}

impl std::fmt::Display for GoDuration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let seconds = self.0.unsigned_abs() as f64 / 1e9;
        let (minutes, rest) = ((seconds / 60.0).floor(), seconds % 60.0);
        let (hours, minutes) = ((minutes / 60.0).floor(), minutes % 60.0);
        match (hours > 0.0, minutes > 0.0) {
            (true, _) => write!(f, "{sign}{hours}h{minutes}m{rest}s"),
            (false, true) => write!(f, "{sign}{minutes}m{rest}s"),
            (false, false) => write!(f, "{sign}{rest}s"),
        }
    }
}

impl Serialize for GoDuration {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let nanos = GoDuration::parse(&text);
        let wrong = || serde::de::Error::custom(format!("time: invalid duration {text:?}"));
        nanos.map(GoDuration).ok_or_else(wrong)
    }
}

/// DynamicResources.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DynamicResourcesArgs {
    /// How long the search for devices on a node may take; 0: as long as it likes. 10 s where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub filter_timeout: Option<GoDuration>,
    /// How long devices may take to be made ready, at least 1 s. 10 min where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub binding_timeout: Option<GoDuration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, nanos, shown) in [
            ("10s", 10_000_000_000, "10s"),
            ("1h2m3.5s", 3_723_500_000_000, "1h2m3.5s"),
            ("300ms", 300_000_000, "0.3s"),
            ("600s", 600_000_000_000, "10m0s"),
            ("-1s", -1_000_000_000, "-1s"),
            ("0", 0, "0s"),
        ] {
            let parsed: GoDuration = serde_json::from_value(text.into()).expect(text);
            assert_eq!(
                (parsed.nanos(), &*parsed.to_string()),
                (nanos, shown),
                "{text}"
            );
        }
        for text in ["", "10", "s", "1d", "1.2.3s", "-"] {
            assert!(
                serde_json::from_value::<GoDuration>(text.into()).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn defaults_and_strictness() {
        let args: NodeResourcesFitArgs = decode("NodeResourcesFit", None).expect("defaults");
        assert_eq!(args.scoring_strategy.resources, cpu_and_memory());
        let text = serde_json::json!({"kind": "NodeResourcesFitArgs", "scoringStrategy": {"type": "MostAllocated", "resources": [{"name": "cpu"}]}});
        let args: NodeResourcesFitArgs = decode("NodeResourcesFit", Some(&text)).expect("valid");
        assert_eq!(
            args.scoring_strategy.type_,
            ScoringStrategyType::MostAllocated
        );
        assert_eq!(args.scoring_strategy.resources[0].weight, 1);
        let unknown = serde_json::json!({"nope": 1});
        let error = decode::<NodeResourcesFitArgs>("NodeResourcesFit", Some(&unknown))
            .expect_err("unknown field");
        assert!(error.to_string().contains("nope"), "{error}");
    }
}
