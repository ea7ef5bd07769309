//! [`validate`]: every problem of a configuration, each with its field path, in upstream's words.
//!
//! What a plugin's arguments mean is checked by the plugin when it is made. Upstream: pkg/scheduler/apis/config/validation and
//! component-base/config/validation, v1.37.

use std::collections::BTreeSet;

use component_base::config::FieldError;
use component_base::duration;
use component_helpers::labels::validate_label_key;
use component_helpers::resources::is_extended_resource_name;

use super::{
    API_VERSION, ClientConnectionConfiguration, Extender, KubeSchedulerConfiguration,
    KubeSchedulerProfile, LeaderElectionConfiguration, PluginSet, Plugins,
};

/// Plugins that earlier versions of the API knew.
const REMOVED: &[&str] = &[
    "AzureDiskLimits",
    "CinderLimits",
    "EBSLimits",
    "GCEPDLimits",
];
/// The extension point of preemption for groups of pods: known, and no plugin can be asked for there yet.
const OF_GROUPS: &[&str] = &["podGroupPostFilter"];

type Errors = Vec<FieldError>;

/// Every problem, with its field path. To be called after the defaults are set.
pub fn validate(config: &KubeSchedulerConfiguration) -> Vec<FieldError> {
    let mut errors = Vec::new();
    client_connection(&config.client_connection, &mut errors);
    leader_election(&config.leader_election, &mut errors);
    if config.parallelism <= 0 {
        errors.push(FieldError::invalid(
            "parallelism",
            config.parallelism,
            "should be an integer value greater than zero",
        ));
    }
    profiles(&config.profiles, &mut errors);
    let percentage_of_all = Some(config.percentage_of_nodes_to_score);
    percentage("percentageOfNodesToScore", percentage_of_all, &mut errors);
    let (initial, max) = (
        config.pod_initial_backoff_seconds,
        config.pod_max_backoff_seconds,
    );
    if initial <= 0 {
        errors.push(FieldError::invalid(
            "podInitialBackoffSeconds",
            initial,
            "must be greater than 0",
        ));
    }
    if max < initial {
        errors.push(FieldError::invalid(
            "podMaxBackoffSeconds",
            max,
            "must be greater than or equal to PodInitialBackoffSeconds",
        ));
    }
    extenders(&config.extenders, &mut errors);
    errors
}

fn client_connection(config: &ClientConnectionConfiguration, errors: &mut Errors) {
    if config.burst < 0 {
        let field = "clientConnection.burst";
        errors.push(FieldError::invalid(
            field,
            config.burst,
            "must be non-negative",
        ));
    }
}

fn leader_election(config: &LeaderElectionConfiguration, errors: &mut Errors) {
    if !config.leader_elect {
        return;
    }
    let field = |name: &str| format!("leaderElection.{name}");
    let mut times = Vec::new();
    for (name, text) in [
        ("leaseDuration", &config.lease_duration),
        ("renewDeadline", &config.renew_deadline),
        ("retryPeriod", &config.retry_period),
    ] {
        match duration::parse(text) {
            Ok(time) if time.is_zero() => {
                let detail = "must be greater than zero";
                errors.push(FieldError::invalid(field(name), text, detail));
            }
            Ok(time) => times.push(time),
            Err(duration::DurationError::Negative(_)) => {
                let detail = "must be greater than zero";
                errors.push(FieldError::invalid(field(name), text, detail));
            }
            Err(error) => errors.push(FieldError::invalid(field(name), text, error.to_string())),
        }
    }
    if let [lease, renew, _] = times[..]
        && lease <= renew
    {
        errors.push(FieldError::invalid(
            field("leaseDuration"),
            &config.renew_deadline,
            "must be greater than `RenewDeadline`",
        ));
    }
    for (name, text) in [
        ("resourceLock", &config.resource_lock),
        ("resourceNamespace", &config.resource_namespace),
        ("resourceName", &config.resource_name),
    ] {
        if text.is_empty() {
            errors.push(FieldError::required(field(name), ""));
        }
    }
    if config.resource_lock != "leases" {
        errors.push(FieldError::invalid(
            field("resourceLock"),
            &config.resource_lock,
            "resourceLock value must be \"leases\"",
        ));
    }
}

fn percentage(field: &str, value: Option<i32>, errors: &mut Errors) {
    if let Some(value) = value.filter(|p| !(0..=100).contains(p)) {
        errors.push(FieldError::invalid(
            field,
            value,
            "not in valid range [0-100]",
        ));
    }
}

fn profiles(profiles: &[KubeSchedulerProfile], errors: &mut Errors) {
    if profiles.is_empty() {
        errors.push(FieldError::required("profiles", ""));
    }
    let mut names: Vec<&str> = Vec::new();
    for (i, profile) in profiles.iter().enumerate() {
        let path = format!("profiles[{i}]");
        let name = profile.scheduler_name.as_deref().unwrap_or_default();
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.schedulerName"), ""));
        }
        if let Some(first) = names.iter().position(|known| *known == name) {
            errors.push(FieldError::invalid(
                format!("{path}.schedulerName"),
                format!("profiles[{first}].schedulerName"),
                "Duplicate value",
            ));
        }
        names.push(name);
        let field = format!("{path}.percentageOfNodesToScore");
        percentage(&field, profile.percentage_of_nodes_to_score, errors);
        plugins(&path, profile, errors);
        plugin_config(&path, profile, errors);
    }
    common_queue_sort(profiles, errors);
}

fn removed() -> String {
    format!(
        "was invalid in version {API_VERSION:?} (KubeSchedulerConfiguration is version {API_VERSION:?})"
    )
}

fn plugins(path: &str, profile: &KubeSchedulerProfile, errors: &mut Errors) {
    for (set_name, set) in profile.plugins.iter().flat_map(Plugins::sets) {
        for (j, plugin) in set.enabled.iter().enumerate() {
            let field = format!("{path}.plugins.{set_name}.enabled[{j}]");
            if REMOVED.contains(&plugin.name.as_str()) {
                errors.push(FieldError::invalid(field, &plugin.name, removed()));
            } else if OF_GROUPS.contains(&set_name) {
                let detail = "preemption for pod groups is not supported yet";
                errors.push(FieldError::forbidden(field, detail));
            }
        }
    }
}

fn plugin_config(path: &str, profile: &KubeSchedulerProfile, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (j, config) in profile.plugin_config.iter().enumerate() {
        let field = format!("{path}.pluginConfig[{j}]");
        if !seen.insert(&config.name) {
            errors.push(FieldError::invalid(&field, &config.name, "Duplicate value"));
        }
        if REMOVED.contains(&config.name.as_str()) {
            errors.push(FieldError::invalid(&field, &config.name, removed()));
        }
        let is_wasm = wasm_plugins::is_wasm(&config.args);
        if !is_wasm && is_strangers(&config.name) {
            continue;
        }
        let expect = match is_wasm {
            true => wasm_plugins::KIND.to_owned(),
            false => format!("{}Args", config.name),
        };
        for (name, expect) in [("kind", expect.as_str()), ("apiVersion", API_VERSION)] {
            let found = config.args.get(name).and_then(|value| value.as_str());
            if let Some(found) = found.filter(|found| *found != expect) {
                errors.push(FieldError::invalid(
                    format!("{field}.args.{name}"),
                    found,
                    format!("has to match plugin args: should be {expect:?}"),
                ));
            }
        }
    }
}

/// Not one of this program: what its arguments call themselves is for their author to say. Upstream: `IsNotRegisteredError` in `decodeNestedObjects`.
fn is_strangers(plugin: &str) -> bool {
    let mut own = plugins::registry::in_tree();
    own.extend(extra_plugins::registry::out_of_tree());
    own.iter().all(|line| line.name != plugin)
}

/// The queue is one for all profiles, and sorted in one way.
fn common_queue_sort(profiles: &[KubeSchedulerProfile], errors: &mut Errors) {
    let set = |profile: &KubeSchedulerProfile| -> PluginSet {
        let plugins = profile.plugins.as_ref();
        plugins.map(|p| p.queue_sort.clone()).unwrap_or_default()
    };
    let Some(first) = profiles.first() else {
        return;
    };
    let canon = set(first);
    if canon.enabled.len() > 1 {
        errors.push(FieldError::invalid(
            "profiles[0].plugins.queueSort.enabled",
            canon.enabled.len(),
            "only one queue sort plugin can be enabled",
        ));
    }
    let name = canon.enabled.first().map(|plugin| plugin.name.as_str());
    let args = |profile: &KubeSchedulerProfile| {
        let mut configs = profile.plugin_config.iter();
        let config = configs.find(|config| Some(config.name.as_str()) == name);
        config.map(|config| config.args.clone())
    };
    for (i, profile) in profiles.iter().enumerate().skip(1) {
        let found = set(profile);
        if found != canon {
            errors.push(FieldError::invalid(
                format!("profiles[{i}].plugins.queueSort"),
                found,
                "must be the same for all profiles",
            ));
        }
        if let Some(found) = args(profile).filter(|found| Some(found) != args(first).as_ref()) {
            errors.push(FieldError::invalid(
                format!("profiles[{i}].pluginConfig.args"),
                found,
                "queueSort must be the same for all profiles",
            ));
        }
    }
}

fn extenders(extenders: &[Extender], errors: &mut Errors) {
    let mut managed = BTreeSet::new();
    for (i, extender) in extenders.iter().enumerate() {
        let path = format!("extenders[{i}]");
        // Upstream finds out at the first request.
        if !is_http_url(&extender.url_prefix) {
            errors.push(FieldError::invalid(
                format!("{path}.urlPrefix"),
                &extender.url_prefix,
                "must be an http or https URL",
            ));
        }
        if !extender.prioritize_verb.is_empty() && extender.weight <= 0 {
            errors.push(FieldError::invalid(
                format!("{path}.weight"),
                extender.weight,
                "must have a positive weight applied to it",
            ));
        }
        for (j, resource) in extender.managed_resources.iter().enumerate() {
            let (field, name) = (format!("{path}.managedResources[{j}].name"), &resource.name);
            if let Err(error) = validate_label_key(name) {
                errors.push(FieldError::invalid(&field, name, error.to_string()));
            } else if !is_extended_resource_name(name) {
                let detail = "is an invalid extended resource name";
                errors.push(FieldError::invalid(&field, name, detail));
            }
            if !managed.insert(name) {
                let detail = "duplicate extender managed resource name";
                errors.push(FieldError::invalid(field, name, detail));
            }
        }
    }
    let binders = extenders.iter().filter(|e| !e.bind_verb.is_empty()).count();
    if binders > 1 {
        errors.push(FieldError::invalid(
            "extenders",
            format!("found {binders} extenders implementing bind"),
            "only one extender can implement bind",
        ));
    }
}

fn is_http_url(text: &str) -> bool {
    text.parse::<http::Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
    })
}
