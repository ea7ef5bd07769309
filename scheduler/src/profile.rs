//! A profile of the configuration becomes a [`Framework`]: which plugins are enabled where, in which order, with which weight.
//!
//! Rules as upstream: a plugin of `multiPoint` is enabled at every point it implements; naming it at a point replaces that and, for the order, comes first in
//! its list only if it was not a default there. `disabled: [{name: "*"}]` drops all defaults. Upstream:
//! pkg/scheduler/apis/config/v1/default_plugins.go (merge) and framework/runtime (expandMultiPointPlugins), v1.36.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use framework::{Handle, Plugin, PluginError, Registration};

use crate::config::{KubeSchedulerProfile, PluginSet, Plugins};
use crate::extender::ExtenderError;
use crate::runtime::{Beside, Framework, FrameworkHandle, Points, Shared};

#[cfg(test)]
mod tests;

/// Why a profile cannot work.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Nobody knows the plugin.
    #[error("initializing profile {profile:?}: plugin {plugin:?} does not exist")]
    UnknownPlugin {
        /// The profile.
        profile: String,
        /// The plugin.
        plugin: String,
    },
    /// The plugin calls itself by another name than the registry does.
    #[error("initializing profile {profile:?}: plugin {plugin:?} calls itself {name:?}")]
    Misnamed {
        /// The profile.
        profile: String,
        /// The plugin.
        plugin: String,
        /// What it calls itself.
        name: &'static str,
    },
    /// The plugin is enabled at a point it does not implement.
    #[error("initializing profile {profile:?}: plugin {plugin:?} does not extend {point} plugin")]
    NotAtPoint {
        /// The profile.
        profile: String,
        /// The plugin.
        plugin: String,
        /// The extension point.
        point: &'static str,
    },
    /// The same plugin twice at a point.
    #[error("initializing profile {profile:?}: plugin {plugin:?} already registered as {point}")]
    Repeated {
        /// The profile.
        profile: String,
        /// The plugin.
        plugin: String,
        /// The extension point.
        point: &'static str,
    },
    /// Not exactly one queue sort plugin.
    #[error(
        "initializing profile {profile:?}: exactly one queue sort plugin required, got {count}"
    )]
    QueueSort {
        /// The profile.
        profile: String,
        /// How many there are.
        count: usize,
    },
    /// Profiles sort the queue differently.
    #[error("different queue sort plugins for profile {profile:?}: {found:?}, first: {first:?}")]
    DifferentQueueSort {
        /// The profile.
        profile: String,
        /// Its plugin.
        found: &'static str,
        /// The first profile's.
        first: &'static str,
    },
    /// More than one makes placements.
    #[error("at most one placement generate plugin is allowed for profile {profile:?}")]
    PlacementGenerate {
        /// The profile.
        profile: String,
    },
    /// No bind plugin.
    #[error("initializing profile {profile:?}: at least one bind plugin is needed")]
    NoBind {
        /// The profile.
        profile: String,
    },
    /// A weight is below zero, or so large that the total may overflow.
    #[error(
        "initializing profile {profile:?}: score plugin {plugin:?} has an invalid weight {weight}"
    )]
    Weight {
        /// The profile.
        profile: String,
        /// The plugin.
        plugin: String,
        /// The weight.
        weight: i64,
    },
    /// An extender's settings cannot be used.
    #[error(transparent)]
    Extender(#[from] ExtenderError),
    /// A plugin refused its arguments.
    #[error("initializing profile {profile:?}")]
    Plugin {
        /// The profile.
        profile: String,
        /// Why.
        #[source]
        source: PluginError,
    },
}

/// A plugin and its weight in scoring.
type Weighted = (Arc<dyn Plugin>, i64);

struct Builder<'a> {
    profile: &'a str,
    registry: &'a [Registration],
    args: BTreeMap<&'a str, &'a serde_json::Value>,
    handle: Arc<FrameworkHandle>,
    made: HashMap<String, Arc<dyn Plugin>>,
}

/// Makes the framework of `profile` from the plugins of `registry`.
///
/// # Errors
/// See [`ProfileError`]; the configuration has to change.
pub fn new_framework(
    profile: &KubeSchedulerProfile,
    registry: &[Registration],
    shared: Arc<Shared>,
    beside: Beside,
) -> Result<Arc<Framework>, ProfileError> {
    let name = profile.scheduler_name.as_deref().unwrap_or_default();
    let handle = FrameworkHandle::new(name, Arc::clone(&shared));
    let args = profile
        .plugin_config
        .iter()
        .map(|c| (c.name.as_str(), &c.args))
        .collect();
    let mut builder = Builder {
        profile: name,
        registry,
        args,
        handle: Arc::clone(&handle),
        made: HashMap::new(),
    };
    let points = builder.points(profile.plugins.as_ref().unwrap_or(&Plugins::default()))?;
    if points.queue_sort.len() != 1 {
        return Err(ProfileError::QueueSort {
            profile: name.to_owned(),
            count: points.queue_sort.len(),
        });
    }
    if points.bind.is_empty() {
        return Err(ProfileError::NoBind {
            profile: name.to_owned(),
        });
    }
    if points.placement_generate.len() > 1 {
        return Err(ProfileError::PlacementGenerate {
            profile: name.to_owned(),
        });
    }
    Ok(Framework::new(name, points, shared, &handle, beside))
}

impl Builder<'_> {
    fn points(&mut self, plugins: &Plugins) -> Result<Points, ProfileError> {
        let multi_point = self.multi_point(&plugins.multi_point)?;
        let mut list =
            |point: &'static str, set: &PluginSet, implements: fn(&dyn Plugin) -> bool| {
                Ok::<_, ProfileError>(
                    self.point(point, set, &multi_point, implements)?
                        .into_iter()
                        .map(|(plugin, _)| plugin)
                        .collect(),
                )
            };
        let mut points = Points {
            pre_enqueue: list("PreEnqueue", &plugins.pre_enqueue, |p| {
                p.as_pre_enqueue().is_some()
            })?,
            queue_sort: list("QueueSort", &plugins.queue_sort, |p| {
                p.as_queue_sort().is_some()
            })?,
            pre_filter: list("PreFilter", &plugins.pre_filter, |p| {
                p.as_pre_filter().is_some()
            })?,
            filter: list("Filter", &plugins.filter, |p| p.as_filter().is_some())?,
            post_filter: list("PostFilter", &plugins.post_filter, |p| {
                p.as_post_filter().is_some()
            })?,
            pre_score: list("PreScore", &plugins.pre_score, |p| {
                p.as_pre_score().is_some()
            })?,
            reserve: list("Reserve", &plugins.reserve, |p| p.as_reserve().is_some())?,
            permit: list("Permit", &plugins.permit, |p| p.as_permit().is_some())?,
            pre_bind: list("PreBind", &plugins.pre_bind, |p| p.as_pre_bind().is_some())?,
            bind: list("Bind", &plugins.bind, |p| p.as_bind().is_some())?,
            post_bind: list("PostBind", &plugins.post_bind, |p| {
                p.as_post_bind().is_some()
            })?,
            placement_feasible: list("PlacementFeasible", &PluginSet::default(), |p| {
                p.as_placement_feasible().is_some()
            })?,
            placement_generate: list("PlacementGenerate", &plugins.placement_generate, |p| {
                p.as_placement_generate().is_some()
            })?,
            score: Vec::new(),
            placement_score: Vec::new(),
        };
        points.score = self.scores("Score", &plugins.score, &multi_point, |p| {
            p.as_score().is_some()
        })?;
        let set = &plugins.placement_score;
        points.placement_score = self.scores("PlacementScore", set, &multi_point, |p| {
            p.as_placement_score().is_some()
        })?;
        Ok(points)
    }

    /// The same with weights, all of which must be good.
    fn scores(
        &mut self,
        point: &'static str,
        set: &PluginSet,
        multi_point: &[Weighted],
        implements: fn(&dyn Plugin) -> bool,
    ) -> Result<Vec<Weighted>, ProfileError> {
        let scores = self.point(point, set, multi_point, implements)?;
        for (plugin, weight) in &scores {
            if !(1..=i64::from(i32::MAX)).contains(weight) {
                return Err(ProfileError::Weight {
                    profile: self.profile.to_owned(),
                    plugin: plugin.name().to_owned(),
                    weight: *weight,
                });
            }
        }
        Ok(scores)
    }

    /// The defaults as changed by the profile's `multiPoint`: a default that is named again keeps its place and takes the new weight.
    fn multi_point(&mut self, set: &PluginSet) -> Result<Vec<Weighted>, ProfileError> {
        let disabled = |name: &str| set.disabled.iter().any(|d| d.name == name || d.name == "*");
        let mut wanted: Vec<(String, i64)> = Vec::new();
        for line in self
            .registry
            .iter()
            .filter(|line| line.default_enabled && !disabled(line.name))
        {
            let custom = set
                .enabled
                .iter()
                .find(|p| p.name == line.name)
                .and_then(|p| p.weight)
                .filter(|w| *w != 0);
            wanted.push((
                line.name.to_owned(),
                custom.map_or(line.default_weight, i64::from),
            ));
        }
        for plugin in &set.enabled {
            if wanted.iter().any(|(name, _)| *name == plugin.name) {
                continue;
            }
            let default = self
                .registry
                .iter()
                .find(|line| line.name == plugin.name)
                .map_or(0, |line| line.default_weight);
            wanted.push((
                plugin.name.clone(),
                plugin.weight.filter(|w| *w != 0).map_or(default, i64::from),
            ));
        }
        wanted
            .into_iter()
            .map(|(name, weight)| Ok((self.plugin(&name)?, weight)))
            .collect()
    }

    /// The plugins at one point: those named there that override or precede, then the rest of `multiPoint`, then others named there.
    fn point(
        &mut self,
        point: &'static str,
        set: &PluginSet,
        multi_point: &[Weighted],
        implements: fn(&dyn Plugin) -> bool,
    ) -> Result<Vec<Weighted>, ProfileError> {
        let disabled = |name: &str| set.disabled.iter().any(|d| d.name == name || d.name == "*");
        let mut named: Vec<Weighted> = Vec::new();
        for plugin in &set.enabled {
            let made = self.plugin(&plugin.name)?;
            let (profile, name) = (self.profile.to_owned(), plugin.name.clone());
            if !implements(&*made) {
                return Err(ProfileError::NotAtPoint {
                    profile,
                    plugin: name,
                    point,
                });
            }
            if named.iter().any(|(p, _)| p.name() == made.name()) {
                return Err(ProfileError::Repeated {
                    profile,
                    plugin: name,
                    point,
                });
            }
            let default = self
                .registry
                .iter()
                .find(|line| line.name == plugin.name)
                .map_or(1, |line| line.default_weight.max(1));
            named.push((
                made,
                plugin.weight.filter(|w| *w != 0).map_or(default, i64::from),
            ));
        }
        let is_multi = |name: &str| multi_point.iter().any(|(p, _)| p.name() == name);
        let (mut result, others): (Vec<_>, Vec<_>) =
            named.iter().cloned().partition(|(p, _)| is_multi(p.name()));
        for (plugin, weight) in multi_point {
            let name = plugin.name();
            if implements(&**plugin)
                && !disabled(name)
                && !named.iter().any(|(p, _)| p.name() == name)
            {
                result.push((Arc::clone(plugin), if *weight == 0 { 1 } else { *weight }));
            }
        }
        result.extend(others);
        Ok(result)
    }

    fn plugin(&mut self, name: &str) -> Result<Arc<dyn Plugin>, ProfileError> {
        if let Some(plugin) = self.made.get(name) {
            return Ok(Arc::clone(plugin));
        }
        let args = self.args.get(name).copied().filter(|args| !args.is_null());
        let line = self.registry.iter().find(|line| line.name == name);
        let wasm = args.filter(|args| wasm_plugins::is_wasm(args));
        let made = match (line, wasm) {
            (Some(line), None) => (line.factory)(args, self.handle.clone() as Arc<dyn Handle>),
            (Some(line), Some(_)) => Err(taken(line.name)),
            (None, Some(args)) => wasm_plugins::new(name, Some(args)),
            (None, None) => {
                return Err(ProfileError::UnknownPlugin {
                    profile: self.profile.to_owned(),
                    plugin: name.to_owned(),
                });
            }
        };
        let plugin = made.map_err(|source| ProfileError::Plugin {
            profile: self.profile.to_owned(),
            source,
        })?;
        if plugin.name() != name {
            return Err(ProfileError::Misnamed {
                profile: self.profile.to_owned(),
                plugin: name.to_owned(),
                name: plugin.name(),
            });
        }
        self.made.insert(name.to_owned(), Arc::clone(&plugin));
        Ok(plugin)
    }
}

/// A component cannot stand for a plugin that is part of this program.
fn taken(plugin: &'static str) -> PluginError {
    let kind = wasm_plugins::KIND;
    let problem = format!("kind: Invalid value: {kind:?}: {plugin} is a plugin of this program");
    PluginError::Invalid {
        plugin,
        problems: vec![problem],
    }
}
