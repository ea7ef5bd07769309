//! [`Registry`]: the plugins that an author brings to the scheduler, and how they come together with those in tree.
//!
//! Owns: what may be brought. Never knows which plugins are in tree. Upstream: `app.WithPlugin` (cmd/kube-scheduler/app) and `Registry.Merge`
//! (pkg/scheduler/framework/runtime/registry.go), v1.37.

use crate::handle::{PluginFactory, Registration};
use crate::objects::ObjectKind;

/// Why plugins cannot be brought together. The program has to change; a retry does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// Two plugins have one name: in tree, or both of them brought.
    #[error("a plugin named {plugin:?} already exists")]
    Repeated {
        /// The name.
        plugin: &'static str,
    },
    /// The plugin has no name that a configuration could say.
    #[error("plugin {plugin:?}: name: Invalid value: {plugin:?}: {problem}")]
    Name {
        /// The name.
        plugin: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Its weight in scores cannot be.
    #[error(
        "plugin {plugin:?}: default_weight: Invalid value: {weight}: must be from 0 to 2147483647"
    )]
    Weight {
        /// The plugin.
        plugin: &'static str,
        /// The weight.
        weight: i64,
    },
}

/// The plugins of an author, in order, and the kinds of objects they watch.
///
/// ```
/// use framework::Registry;
/// # fn new(_: Option<&serde_json::Value>, _: std::sync::Arc<dyn framework::Handle>)
/// #     -> Result<std::sync::Arc<dyn framework::Plugin>, framework::PluginError> { unimplemented!() }
/// let registry = Registry::new().with_plugin("Greenest", new);
/// // In `main`: kube_scheduler::run(registry)
/// # assert_eq!(registry.lines().len(), 1);
/// ```
#[derive(Clone, Default)]
pub struct Registry {
    lines: Vec<Registration>,
    kinds: Vec<ObjectKind>,
}

impl Registry {
    /// No plugin, yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a plugin that works in the profiles which name it, as upstream's `WithPlugin`. Its scores weigh 1 where a profile does not say.
    pub fn with_plugin(self, name: &'static str, factory: PluginFactory) -> Self {
        self.with(Registration {
            name,
            default_weight: 0,
            default_enabled: false,
            factory,
        })
    }

    /// Adds a plugin with a say in the default profile, after those in tree.
    pub fn with(mut self, line: Registration) -> Self {
        self.lines.push(line);
        self
    }

    /// Names kinds of objects that the plugins watch ([`crate::Observer::kinds`]), so that a recorded trace that has such objects can be replayed.
    pub fn with_kinds(mut self, kinds: &[ObjectKind]) -> Self {
        let new = kinds.iter().filter(|kind| !self.kinds.contains(kind));
        let new: Vec<ObjectKind> = new.copied().collect();
        self.kinds.extend(new);
        self
    }

    /// The plugins.
    pub fn lines(&self) -> &[Registration] {
        &self.lines
    }

    /// The kinds of objects they watch.
    pub fn kinds(&self) -> &[ObjectKind] {
        &self.kinds
    }

    /// `in_tree`, and after them these.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn merged(&self, in_tree: Vec<Registration>) -> Result<Vec<Registration>, RegistryError> {
        let mut all = in_tree;
        for line in &self.lines {
            let plugin = line.name;
            check_name(plugin)?;
            if !(0..=i64::from(i32::MAX)).contains(&line.default_weight) {
                let weight = line.default_weight;
                return Err(RegistryError::Weight { plugin, weight });
            }
            if all.iter().any(|known| known.name == plugin) {
                return Err(RegistryError::Repeated { plugin });
            }
            all.push(line.clone());
        }
        Ok(all)
    }
}

/// A name is a word: it is a label of metrics, stands in events, and `*` means all plugins in a configuration.
fn check_name(plugin: &'static str) -> Result<(), RegistryError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    let problem = match plugin {
        "" => "must not be empty",
        name if !name.chars().all(allowed) => {
            "only letters, digits and the characters - _ . / are possible"
        }
        _ => return Ok(()),
    };
    Err(RegistryError::Name { plugin, problem })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::handle::{Handle, PluginError};
    use crate::plugin::Plugin;

    fn never(
        _: Option<&serde_json::Value>,
        _: Arc<dyn Handle>,
    ) -> Result<Arc<dyn Plugin>, PluginError> {
        panic!("no plugin is made here")
    }

    fn in_tree() -> Vec<Registration> {
        let line = |name| Registration {
            name,
            default_weight: 1,
            default_enabled: true,
            factory: never,
        };
        vec![line("NodeName"), line("ImageLocality")]
    }

    fn error(registry: &Registry) -> String {
        let merged = registry.merged(in_tree());
        merged.err().expect("refused").to_string()
    }

    #[test]
    fn plugins_come_after_those_in_tree_and_are_off_until_they_are_named() {
        let registry = Registry::new().with_plugin("B", never).with(Registration {
            name: "A",
            default_weight: 5,
            default_enabled: true,
            factory: never,
        });
        let merged = registry.merged(in_tree()).expect("four names");
        let lines = merged
            .iter()
            .map(|line| (line.name, line.default_enabled, line.default_weight));
        assert_eq!(
            lines.collect::<Vec<_>>(),
            [
                ("NodeName", true, 1),
                ("ImageLocality", true, 1),
                ("B", false, 0),
                ("A", true, 5)
            ]
        );
    }

    #[test]
    fn a_name_is_had_once() {
        let registry = Registry::new().with_plugin("ImageLocality", never);
        assert_eq!(
            error(&registry),
            "a plugin named \"ImageLocality\" already exists"
        );
        let registry = Registry::new()
            .with_plugin("Mine", never)
            .with_plugin("Mine", never);
        assert_eq!(error(&registry), "a plugin named \"Mine\" already exists");
    }

    #[test]
    fn what_no_configuration_could_say_is_refused() {
        for (name, words) in [
            ("", "must not be empty"),
            ("*", "only letters"),
            ("two words", "only letters"),
        ] {
            let error = error(&Registry::new().with_plugin(name, never));
            assert!(error.contains(words), "{error}");
            assert!(error.contains(&format!("plugin {name:?}: name")), "{error}");
        }
        let heavy = Registration {
            name: "Heavy",
            default_weight: -1,
            default_enabled: false,
            factory: never,
        };
        assert_eq!(
            error(&Registry::new().with(heavy)),
            "plugin \"Heavy\": default_weight: Invalid value: -1: must be from 0 to 2147483647"
        );
    }

    #[test]
    fn a_kind_is_named_once() {
        let kind = crate::object_kind!("example.com", "v1", "Thing", "things");
        let registry = Registry::new().with_kinds(&[kind]).with_kinds(&[kind]);
        assert_eq!(registry.kinds(), [kind]);
    }
}
