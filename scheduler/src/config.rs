//! `KubeSchedulerConfiguration` (kubescheduler.config.k8s.io/v1): its shape, defaults and validation.
//!
//! Decoding is strict; validation returns every error with its field path. Upstream: kube-scheduler config/v1 and
//! pkg/scheduler/apis/config/{v1,validation}, v1.36.

use std::collections::BTreeSet;
use std::path::Path;

use component_base::config::{ConfigError, FieldError, load_strict};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The `apiVersion` this program reads.
pub const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";
/// The `kind` this program reads.
pub const KIND: &str = "KubeSchedulerConfiguration";
/// The `schedulerName` of pods that name none.
pub const DEFAULT_SCHEDULER_NAME: &str = "default-scheduler";

/// Plugins upstream has that are not built here: naming one explicitly is an error.
pub const NOT_BUILT: &[&str] = &[
    "DynamicResources",
    "GangScheduling",
    "TopologyPlacementGenerator",
    "PodGroupPodsCount",
];

/// The configuration file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeSchedulerConfiguration {
    /// How many threads upstream uses; one is enough here, the value is checked and otherwise unused.
    pub parallelism: i32,
    /// Who schedules when several replicas run.
    pub leader_election: LeaderElectionConfiguration,
    /// How to reach the API server.
    pub client_connection: ClientConnectionConfiguration,
    /// Accepted, not acted on.
    pub enable_profiling: bool,
    /// Accepted, not acted on.
    pub enable_contention_profiling: bool,
    /// Upstream samples nodes; every node is scored here. The value is checked and otherwise unused.
    pub percentage_of_nodes_to_score: i32,
    /// The first backoff of an unschedulable pod, in seconds.
    pub pod_initial_backoff_seconds: i64,
    /// The longest, in seconds.
    pub pod_max_backoff_seconds: i64,
    /// One for each `schedulerName`.
    pub profiles: Vec<KubeSchedulerProfile>,
    /// Not built: naming one is an error.
    #[schemars(with = "Vec<serde_json::Value>")]
    pub extenders: Vec<serde_json::Value>,
    /// Fill the caches only once leading.
    pub delay_cache_until_active: bool,
}

impl Default for KubeSchedulerConfiguration {
    fn default() -> Self {
        KubeSchedulerConfiguration {
            parallelism: 16,
            leader_election: LeaderElectionConfiguration::default(),
            client_connection: ClientConnectionConfiguration::default(),
            enable_profiling: true,
            enable_contention_profiling: true,
            percentage_of_nodes_to_score: 0,
            pod_initial_backoff_seconds: 1,
            pod_max_backoff_seconds: 10,
            profiles: Vec::new(),
            extenders: Vec::new(),
            delay_cache_until_active: false,
        }
    }
}

/// `leaderElection`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LeaderElectionConfiguration {
    /// Is there an election?
    pub leader_elect: bool,
    /// Go's duration text.
    pub lease_duration: String,
    /// Go's duration text.
    pub renew_deadline: String,
    /// Go's duration text.
    pub retry_period: String,
    /// `leases`.
    pub resource_lock: String,
    /// The lease's name.
    pub resource_name: String,
    /// The lease's namespace.
    pub resource_namespace: String,
}

impl Default for LeaderElectionConfiguration {
    fn default() -> Self {
        LeaderElectionConfiguration {
            leader_elect: true,
            lease_duration: "15s".into(),
            renew_deadline: "10s".into(),
            retry_period: "2s".into(),
            resource_lock: "leases".into(),
            resource_name: "kube-scheduler".into(),
            resource_namespace: "kube-system".into(),
        }
    }
}

/// `clientConnection`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientConnectionConfiguration {
    /// Empty: in-cluster.
    pub kubeconfig: String,
    /// JSON is spoken whatever stands here.
    pub accept_content_types: String,
    /// JSON is spoken whatever stands here.
    pub content_type: String,
    /// Requests a second.
    pub qps: f32,
    /// Requests at once.
    pub burst: i32,
}

impl Default for ClientConnectionConfiguration {
    fn default() -> Self {
        ClientConnectionConfiguration {
            kubeconfig: String::new(),
            accept_content_types: String::new(),
            content_type: "application/vnd.kubernetes.protobuf".into(),
            qps: 50.0,
            burst: 100,
        }
    }
}

/// A profile.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeSchedulerProfile {
    /// Which pods are its.
    pub scheduler_name: Option<String>,
    /// See the configuration's.
    pub percentage_of_nodes_to_score: Option<i32>,
    /// Changes to the default plugins.
    pub plugins: Option<Plugins>,
    /// Arguments of plugins.
    pub plugin_config: Vec<PluginConfig>,
}

/// Changes to the default plugins, by extension point.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the extension points'")]
pub struct Plugins {
    pub pre_enqueue: PluginSet,
    pub queue_sort: PluginSet,
    pub pre_filter: PluginSet,
    pub filter: PluginSet,
    pub post_filter: PluginSet,
    pub pre_score: PluginSet,
    pub score: PluginSet,
    pub reserve: PluginSet,
    pub permit: PluginSet,
    pub pre_bind: PluginSet,
    pub bind: PluginSet,
    pub post_bind: PluginSet,
    pub placement_generate: PluginSet,
    pub placement_score: PluginSet,
    pub pod_group_post_filter: PluginSet,
    pub multi_point: PluginSet,
}

impl Plugins {
    /// The sets by their field names, `multiPoint` last.
    pub fn sets(&self) -> [(&'static str, &PluginSet); 16] {
        [
            ("preEnqueue", &self.pre_enqueue),
            ("queueSort", &self.queue_sort),
            ("preFilter", &self.pre_filter),
            ("filter", &self.filter),
            ("postFilter", &self.post_filter),
            ("preScore", &self.pre_score),
            ("score", &self.score),
            ("reserve", &self.reserve),
            ("permit", &self.permit),
            ("preBind", &self.pre_bind),
            ("bind", &self.bind),
            ("postBind", &self.post_bind),
            ("placementGenerate", &self.placement_generate),
            ("placementScore", &self.placement_score),
            ("podGroupPostFilter", &self.pod_group_post_filter),
            ("multiPoint", &self.multi_point),
        ]
    }
}

/// What is enabled beyond the defaults, and what of them is not.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PluginSet {
    /// In order.
    pub enabled: Vec<PluginRef>,
    /// `*` means all defaults.
    pub disabled: Vec<PluginRef>,
}

/// A plugin by name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PluginRef {
    /// Its name.
    pub name: String,
    /// For Score; absent or zero: the plugin's default, or 1.
    pub weight: Option<i32>,
}

/// The arguments of one plugin.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PluginConfig {
    /// Its name.
    pub name: String,
    /// Decoded by the plugin, strictly.
    pub args: serde_json::Value,
}

/// Reads a configuration file; [`default_profiles`] and [`validate`] come after the flags are laid over it.
///
/// # Errors
/// When the file cannot be read or has unknown fields.
pub fn load(path: &Path) -> Result<KubeSchedulerConfiguration, ConfigError> {
    load_strict(path, API_VERSION, KIND)
}

/// One default profile where none is given, and the default name where one profile has none.
pub fn default_profiles(config: &mut KubeSchedulerConfiguration) {
    if config.profiles.is_empty() {
        config.profiles.push(KubeSchedulerProfile::default());
    }
    if let [profile] = &mut config.profiles[..] {
        profile
            .scheduler_name
            .get_or_insert_with(|| DEFAULT_SCHEDULER_NAME.to_owned());
    }
}

/// Every problem, with its field path.
pub fn validate(config: &KubeSchedulerConfiguration) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut invalid = |path: &str, value: serde_json::Value, detail: &str| {
        errors.push(FieldError::invalid(path, value, detail))
    };
    if config.parallelism <= 0 {
        invalid(
            "parallelism",
            config.parallelism.into(),
            "should be an integer value greater than zero",
        );
    }
    if !(0..=100).contains(&config.percentage_of_nodes_to_score) {
        invalid(
            "percentageOfNodesToScore",
            config.percentage_of_nodes_to_score.into(),
            "not in valid range [0-100]",
        );
    }
    if config.pod_initial_backoff_seconds <= 0 {
        invalid(
            "podInitialBackoffSeconds",
            config.pod_initial_backoff_seconds.into(),
            "must be greater than 0",
        );
    }
    if config.pod_max_backoff_seconds < config.pod_initial_backoff_seconds {
        invalid(
            "podMaxBackoffSeconds",
            config.pod_max_backoff_seconds.into(),
            "must be greater than or equal to PodInitialBackoffSeconds",
        );
    }
    if config.leader_election.leader_elect && config.leader_election.resource_lock != "leases" {
        invalid(
            "leaderElection.resourceLock",
            config.leader_election.resource_lock.clone().into(),
            "resourceLock value must be \"leases\"",
        );
    }
    if !config.extenders.is_empty() {
        errors.push(FieldError::forbidden(
            "extenders",
            "extenders are not supported yet",
        ));
    }
    let mut names = BTreeSet::new();
    for (i, profile) in config.profiles.iter().enumerate() {
        let path = format!("profiles[{i}]");
        match profile.scheduler_name.as_deref() {
            None | Some("") => {
                errors.push(FieldError::required(format!("{path}.schedulerName"), ""))
            }
            Some(name) if !names.insert(name) => errors.push(FieldError::invalid(
                format!("{path}.schedulerName"),
                name,
                "Duplicate value",
            )),
            Some(_) => {}
        }
        if let Some(percentage) = profile
            .percentage_of_nodes_to_score
            .filter(|p| !(0..=100).contains(p))
        {
            errors.push(FieldError::invalid(
                format!("{path}.percentageOfNodesToScore"),
                percentage,
                "not in valid range [0-100]",
            ));
        }
        validate_profile(&path, profile, &mut errors);
    }
    errors
}

/// Extension points of pod groups (gate GenericWorkload, off by default): known, and no plugin can be asked for there yet.
const OF_GROUPS: &[&str] = &["placementGenerate", "placementScore", "podGroupPostFilter"];

fn validate_profile(path: &str, profile: &KubeSchedulerProfile, errors: &mut Vec<FieldError>) {
    for (set_name, set) in profile.plugins.iter().flat_map(Plugins::sets) {
        for (j, plugin) in set.enabled.iter().enumerate() {
            if OF_GROUPS.contains(&set_name) {
                errors.push(FieldError::forbidden(
                    format!("{path}.plugins.{set_name}.enabled[{j}]"),
                    "pod groups are not supported yet",
                ));
            } else if NOT_BUILT.contains(&plugin.name.as_str()) {
                let field = format!("{path}.plugins.{set_name}.enabled[{j}]");
                errors.push(FieldError::forbidden(
                    field,
                    format!("plugin {:?} is not supported yet", plugin.name),
                ));
            }
        }
    }
    let mut seen = BTreeSet::new();
    for (j, config) in profile.plugin_config.iter().enumerate() {
        let field = format!("{path}.pluginConfig[{j}]");
        if !seen.insert(&config.name) {
            errors.push(FieldError::invalid(
                &field,
                &config.name,
                format!("repeated config for plugin {}", config.name),
            ));
        }
        let args = &config.args;
        let expect = format!("{}Args", config.name);
        if let Some(kind) = args
            .get("kind")
            .and_then(|k| k.as_str())
            .filter(|kind| *kind != expect)
        {
            errors.push(FieldError::invalid(
                format!("{field}.args.kind"),
                kind,
                format!("should be {expect:?}"),
            ));
        }
        if let Some(version) = args
            .get("apiVersion")
            .and_then(|v| v.as_str())
            .filter(|version| *version != API_VERSION)
        {
            errors.push(FieldError::invalid(
                format!("{field}.args.apiVersion"),
                version,
                format!("should be {API_VERSION:?}"),
            ));
        }
    }
}

/// Settings that upstream acts on and this program does not, where they differ from the defaults.
pub fn not_acted_on(config: &KubeSchedulerConfiguration) -> Vec<String> {
    let default = KubeSchedulerConfiguration::default();
    let mut fields = Vec::new();
    let mut note = |differs: bool, field: &str| {
        if differs {
            fields.push(field.to_owned());
        }
    };
    note(config.parallelism != default.parallelism, "parallelism");
    note(
        config.percentage_of_nodes_to_score != 0,
        "percentageOfNodesToScore",
    );
    note(config.delay_cache_until_active, "delayCacheUntilActive");
    note(!config.enable_profiling, "enableProfiling");
    note(
        !config.enable_contention_profiling,
        "enableContentionProfiling",
    );
    for (i, profile) in config.profiles.iter().enumerate() {
        let percentage = profile.percentage_of_nodes_to_score.unwrap_or(0);
        note(
            percentage != 0,
            &format!("profiles[{i}].percentageOfNodesToScore"),
        );
        for (j, plugin) in profile.plugin_config.iter().enumerate() {
            let absent = NOT_BUILT.contains(&plugin.name.as_str());
            note(
                absent,
                &format!("profiles[{i}].pluginConfig[{j}] ({})", plugin.name),
            );
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use component_base::config::decode_strict;

    use super::*;

    fn decode(text: &str) -> Result<KubeSchedulerConfiguration, ConfigError> {
        let text = format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{text}");
        let mut config = decode_strict(Path::new("scheduler.yaml"), &text, API_VERSION, KIND)?;
        default_profiles(&mut config);
        Ok(config)
    }

    #[test]
    fn defaults() {
        let config = decode("clientConnection: {kubeconfig: /etc/kubernetes/scheduler.conf}\nleaderElection: {leaderElect: false}").expect("valid");
        assert_eq!(
            config.profiles[0].scheduler_name.as_deref(),
            Some("default-scheduler")
        );
        assert!(
            !config.leader_election.leader_elect
                && config.leader_election.resource_name == "kube-scheduler"
        );
        assert_eq!(config.client_connection.qps, 50.0);
        assert!(validate(&config).is_empty());
    }

    #[test]
    fn what_is_unknown_or_wrong_is_named() {
        let error = decode("profiels: [{schedulerName: a}]")
            .expect_err("unknown")
            .to_string();
        assert!(error.contains("profiels"), "{error}");
        let error = decode("profiles: [{plugins: {score: {enabeld: [{name: x}]}}}]")
            .expect_err("unknown")
            .to_string();
        assert!(error.contains("enabeld"), "{error}");
        let config = decode(
            "parallelism: 0\npodMaxBackoffSeconds: 0\nextenders: [{urlPrefix: x}]\nprofiles: [{schedulerName: a}, {schedulerName: a}, {plugins: {filter: {enabled: [{name: DynamicResources}]}, podGroupPostFilter: {enabled: [{name: DefaultPreemption}], disabled: [{name: X}]}}}]",
        )
        .expect("decodes");
        let errors: Vec<String> = validate(&config).iter().map(ToString::to_string).collect();
        for field in [
            "parallelism",
            "podMaxBackoffSeconds",
            "extenders",
            "profiles[1].schedulerName",
            "profiles[2].schedulerName",
            "profiles[2].plugins.filter.enabled[0]",
            "profiles[2].plugins.podGroupPostFilter.enabled[0]",
        ] {
            assert!(
                errors.iter().any(|e| e.starts_with(&format!("{field}:"))),
                "{field}: {errors:?}"
            );
        }
    }
}
