//! `KubeSchedulerConfiguration` (kubescheduler.config.k8s.io/v1): its shape, defaults and validation.
//!
//! Decoding is strict; validation returns every error with its field path. Upstream: kube-scheduler config/v1 and
//! pkg/scheduler/apis/config/{v1,validation}, v1.37.

use std::path::Path;

use component_base::config::{ConfigError, load_strict};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod complete;
mod extender;
#[cfg(test)]
mod tests;
mod validation;

pub use complete::completed;
pub use extender::{Extender, ExtenderManagedResource, ExtenderTlsConfig};
pub use validation::validate;

/// The `apiVersion` this program reads.
pub const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";
/// The `kind` this program reads.
pub const KIND: &str = "KubeSchedulerConfiguration";
/// The `schedulerName` of pods that name none.
pub const DEFAULT_SCHEDULER_NAME: &str = "default-scheduler";

/// How long an extender's answer may take where nothing is said.
pub const DEFAULT_EXTENDER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

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
    /// Once this share of the nodes was found feasible (and at least 100), no more are looked for. 0: all nodes are.
    pub percentage_of_nodes_to_score: i32,
    /// The first backoff of an unschedulable pod, in seconds.
    pub pod_initial_backoff_seconds: i64,
    /// The longest, in seconds.
    pub pod_max_backoff_seconds: i64,
    /// One for each `schedulerName`.
    pub profiles: Vec<KubeSchedulerProfile>,
    /// Programs outside of the scheduler that have a say, for all profiles.
    pub extenders: Vec<Extender>,
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
    /// See the configuration's, which this replaces.
    #[serde(skip_serializing_if = "Option::is_none")]
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

/// What upstream takes for a default though it is given: zeros and empty texts, and the profiles of [`default_profiles`].
pub fn set_defaults(config: &mut KubeSchedulerConfiguration) {
    default_profiles(config);
    let default = LeaderElectionConfiguration::default();
    let election = &mut config.leader_election;
    for (field, default) in [
        (&mut election.resource_lock, default.resource_lock),
        (&mut election.resource_name, default.resource_name),
        (&mut election.resource_namespace, default.resource_namespace),
    ] {
        if field.is_empty() {
            *field = default;
        }
    }
    for (field, default) in [
        (&mut election.lease_duration, default.lease_duration),
        (&mut election.renew_deadline, default.renew_deadline),
        (&mut election.retry_period, default.retry_period),
    ] {
        if component_base::duration::parse(field) == Ok(std::time::Duration::ZERO) {
            *field = default;
        }
    }
    let default = ClientConnectionConfiguration::default();
    let connection = &mut config.client_connection;
    if connection.content_type.is_empty() {
        connection.content_type = default.content_type;
    }
    if connection.qps == 0.0 {
        connection.qps = default.qps;
    }
    if connection.burst == 0 {
        connection.burst = default.burst;
    }
    for extender in &mut config.extenders {
        if extender.http_timeout.0.is_zero() {
            extender.http_timeout = DEFAULT_EXTENDER_TIMEOUT.into();
        }
    }
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
    note(config.delay_cache_until_active, "delayCacheUntilActive");
    note(!config.enable_profiling, "enableProfiling");
    note(
        !config.enable_contention_profiling,
        "enableContentionProfiling",
    );
    fields
}
