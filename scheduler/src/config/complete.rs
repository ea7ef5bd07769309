//! [`completed`]: a configuration with all that it leaves to defaults written out, as `--write-config-to` and `/configz` show it.
//!
//! What is written, read again, means the same. Upstream: pkg/scheduler/apis/config/v1 (setDefaults_KubeSchedulerProfile, mergePlugins), v1.37.

use std::collections::BTreeSet;

use framework::args::{
    DefaultPreemptionArgs, DynamicResourcesArgs, InterPodAffinityArgs, NodeAffinityArgs,
    NodeResourcesBalancedAllocationArgs, NodeResourcesFitArgs, PodTopologySpreadArgs,
    VolumeBindingArgs, decode,
};
use framework::{PluginError, Registration};
use plugins::names;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    API_VERSION, KIND, KubeSchedulerConfiguration, KubeSchedulerProfile, PluginConfig, PluginRef,
    PluginSet, Plugins,
};

/// The configuration as JSON, `apiVersion` and `kind` included.
pub fn completed(config: &KubeSchedulerConfiguration, registry: &[Registration]) -> Value {
    let mut config = config.clone();
    for profile in &mut config.profiles {
        complete(profile, registry);
    }
    let mut value = serde_json::to_value(&config).expect("its types serialise into memory");
    if let Some(object) = value.as_object_mut() {
        object.insert("apiVersion".to_owned(), API_VERSION.into());
        object.insert("kind".to_owned(), KIND.into());
    }
    without_nulls(&mut value);
    value
}

fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|_, value| !value.is_null());
            object.values_mut().for_each(without_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

fn complete(profile: &mut KubeSchedulerProfile, registry: &[Registration]) {
    let plugins = profile.plugins.get_or_insert_default();
    plugins.multi_point = merged(&plugins.multi_point, registry);
    let mut with_args: BTreeSet<String> = enabled(plugins);
    for config in &mut profile.plugin_config {
        with_args.remove(&config.name);
        if let Some(Ok(args)) = args_of(&config.name, Some(&config.args)) {
            config.args = args;
        }
    }
    for name in with_args {
        if let Some(Ok(args)) = args_of(&name, None) {
            profile.plugin_config.push(PluginConfig { name, args });
        }
    }
}

fn enabled(plugins: &Plugins) -> BTreeSet<String> {
    let sets = plugins.sets();
    let all = sets.iter().flat_map(|(_, set)| &set.enabled);
    all.map(|plugin| plugin.name.clone()).collect()
}

/// The defaults in their order, as `set` changes them, then what else it enables.
fn merged(set: &PluginSet, registry: &[Registration]) -> PluginSet {
    let disabled = |name: &str| set.disabled.iter().any(|d| d.name == name || d.name == "*");
    let default = |line: &Registration| PluginRef {
        name: line.name.to_owned(),
        weight: i32::try_from(line.default_weight).ok().filter(|w| *w != 0),
    };
    let mut all: Vec<PluginRef> = Vec::new();
    for line in registry {
        if !line.default_enabled || disabled(line.name) {
            continue;
        }
        let custom = set.enabled.iter().find(|plugin| plugin.name == line.name);
        all.push(custom.cloned().unwrap_or_else(|| default(line)));
    }
    for plugin in &set.enabled {
        if all.iter().all(|known| known.name != plugin.name) {
            all.push(plugin.clone());
        }
    }
    PluginSet {
        enabled: all,
        disabled: set.disabled.clone(),
    }
}

/// The arguments of a plugin with their defaults; `None` for a plugin that has none.
fn args_of(name: &str, args: Option<&Value>) -> Option<Result<Value, PluginError>> {
    let args = args.filter(|args| !args.is_null());
    if let Some(args) = args.filter(|args| wasm_plugins::is_wasm(args)) {
        return Some(wasm_plugins::completed(name, args));
    }
    Some(match name {
        names::DEFAULT_PREEMPTION => of::<DefaultPreemptionArgs>(names::DEFAULT_PREEMPTION, args),
        names::DYNAMIC_RESOURCES => of::<DynamicResourcesArgs>(names::DYNAMIC_RESOURCES, args),
        names::INTER_POD_AFFINITY => of::<InterPodAffinityArgs>(names::INTER_POD_AFFINITY, args),
        names::NODE_AFFINITY => of::<NodeAffinityArgs>(names::NODE_AFFINITY, args),
        names::NODE_RESOURCES_BALANCED_ALLOCATION => of::<NodeResourcesBalancedAllocationArgs>(
            names::NODE_RESOURCES_BALANCED_ALLOCATION,
            args,
        ),
        names::NODE_RESOURCES_FIT => of::<NodeResourcesFitArgs>(names::NODE_RESOURCES_FIT, args),
        names::POD_TOPOLOGY_SPREAD => of::<PodTopologySpreadArgs>(names::POD_TOPOLOGY_SPREAD, args),
        names::VOLUME_BINDING => of::<VolumeBindingArgs>(names::VOLUME_BINDING, args),
        _ => return extra_plugins::registry::args_of(name, args),
    })
}

fn of<T: DeserializeOwned + Default + Serialize>(
    name: &'static str,
    args: Option<&Value>,
) -> Result<Value, PluginError> {
    let args: T = decode(name, args)?;
    let mut value = serde_json::to_value(args).expect("arguments serialise into memory");
    if let Some(object) = value.as_object_mut() {
        object.insert("apiVersion".to_owned(), API_VERSION.into());
        object.insert("kind".to_owned(), format!("{name}Args").into());
    }
    Ok(value)
}
