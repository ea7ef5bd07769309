//! Feature gates: a list of known names with defaults, and `--feature-gates`.
//!
//! Upstream: `k8s.io/component-base/featuregate`.

use std::collections::BTreeMap;

/// How far a feature has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Off by default, may go.
    Alpha,
    /// On or off by default.
    Beta,
    /// Here to stay; locked in most cases.
    Ga,
    /// Going; off by default.
    Deprecated,
}

/// One known feature.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    /// Upstream's name.
    pub name: &'static str,
    /// Whether it is on when nobody says anything.
    pub default: bool,
    /// Its stage.
    pub stage: Stage,
    /// Whether it can only be what it is by default. Upstream: `LockToDefault`.
    pub locked: bool,
}

impl Feature {
    /// An alpha feature: off by default.
    pub const fn alpha(name: &'static str) -> Self {
        Self {
            name,
            default: false,
            stage: Stage::Alpha,
            locked: false,
        }
    }

    /// A beta feature that is on by default.
    pub const fn beta(name: &'static str) -> Self {
        Self {
            name,
            default: true,
            stage: Stage::Beta,
            locked: false,
        }
    }

    /// A GA feature that can still be switched off.
    pub const fn ga(name: &'static str) -> Self {
        Self {
            name,
            default: true,
            stage: Stage::Ga,
            locked: false,
        }
    }

    /// A GA feature that is on for good.
    pub const fn locked(name: &'static str) -> Self {
        Self {
            name,
            default: true,
            stage: Stage::Ga,
            locked: true,
        }
    }

    /// A feature that always was, is going, and is on until it is gone.
    pub const fn going(name: &'static str) -> Self {
        Self {
            name,
            default: true,
            stage: Stage::Deprecated,
            locked: false,
        }
    }
}

/// Why a feature setting was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FeatureError {
    /// The value is not a boolean.
    #[error(
        "invalid value of {name}={value}, err: strconv.ParseBool: parsing {value:?}: invalid syntax"
    )]
    NotBoolean {
        /// The feature.
        name: String,
        /// What was given.
        value: String,
    },
    /// The feature is what it is for good.
    #[error("cannot set feature gate {name} to {value}, feature is locked to {locked}")]
    Locked {
        /// The feature.
        name: String,
        /// What was given.
        value: bool,
        /// What it is.
        locked: bool,
    },
}

/// The gates of one process.
#[derive(Clone, Debug)]
pub struct FeatureGates {
    known: &'static [Feature],
    set: BTreeMap<String, bool>,
}

impl FeatureGates {
    /// Gates that know `known` and stand at their defaults.
    pub fn new(known: &'static [Feature]) -> Self {
        Self {
            known,
            set: BTreeMap::new(),
        }
    }

    /// Applies `--feature-gates` or a file's `featureGates`. `AllAlpha` and `AllBeta` are understood.
    ///
    /// DIFFERS: a name this build does not know is warned about and ignored, because upstream has some two hundred gates
    /// and a cluster tool passes one list to every component.
    ///
    /// # Errors
    /// A value that is no boolean, or a locked feature.
    pub fn set(&mut self, settings: &BTreeMap<String, String>) -> Result<(), FeatureError> {
        for (name, value) in settings {
            // Component prefix of emulation versions, `kube:Name=true`.
            let name = &name.strip_prefix("kube:").unwrap_or(name).to_string();
            let on = crate::flags::parse_bool(value).ok_or_else(|| FeatureError::NotBoolean {
                name: name.clone(),
                value: value.clone(),
            })?;
            match name.as_str() {
                "AllAlpha" => self.set_stage(Stage::Alpha, on, settings),
                "AllBeta" => self.set_stage(Stage::Beta, on, settings),
                _ => match self.known.iter().find(|f| f.name == name) {
                    Some(f) if f.locked && on != f.default => {
                        return Err(FeatureError::Locked {
                            name: name.clone(),
                            value: on,
                            locked: f.default,
                        });
                    }
                    Some(_) => {
                        self.set.insert(name.clone(), on);
                    }
                    None => {
                        tracing::warn!(feature = name, value = on, "Unknown feature gate, ignored")
                    }
                },
            }
        }
        Ok(())
    }

    fn set_stage(&mut self, stage: Stage, on: bool, explicit: &BTreeMap<String, String>) {
        for feature in self
            .known
            .iter()
            .filter(|f| f.stage == stage && !explicit.contains_key(f.name))
        {
            self.set.insert(feature.name.to_string(), on);
        }
    }

    /// Whether a feature is on. An unknown name is off.
    pub fn enabled(&self, name: &str) -> bool {
        self.set
            .get(name)
            .copied()
            .unwrap_or_else(|| self.known.iter().any(|f| f.name == name && f.default))
    }

    /// Sets `kubernetes_feature_enabled{name,stage}` for every known feature.
    pub fn record_metrics(&self) {
        for feature in self.known {
            let stage = match feature.stage {
                Stage::Alpha => "ALPHA",
                Stage::Beta => "BETA",
                Stage::Ga => "",
                Stage::Deprecated => "DEPRECATED",
            };
            crate::metrics::feature_enabled(feature.name, stage, self.enabled(feature.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[Feature] = &[
        Feature::alpha("New"),
        Feature::locked("Old"),
        Feature::ga("Young"),
        Feature::going("Going"),
    ];

    #[test]
    fn gates() {
        let mut gates = FeatureGates::new(KNOWN);
        assert!(!gates.enabled("New") && gates.enabled("Old") && !gates.enabled("Nobody"));
        gates.set(&[("New".into(), "true".into())].into()).unwrap();
        assert!(gates.enabled("New"));
        assert_eq!(
            gates.set(&[("Old".into(), "false".into())].into()),
            Err(FeatureError::Locked {
                name: "Old".into(),
                value: false,
                locked: true
            })
        );
        gates.set(&[("Old".into(), "true".into())].into()).unwrap();
        assert!(gates.enabled("Young") && gates.enabled("Going"));
        let off = [
            ("Young".into(), "false".into()),
            ("Going".into(), "false".into()),
        ];
        gates.set(&off.into()).unwrap();
        assert!(!gates.enabled("Young") && !gates.enabled("Going"));
        assert!(gates.set(&[("New".into(), "maybe".into())].into()).is_err());
        gates
            .set(&[("Unheard".into(), "true".into())].into())
            .unwrap();
    }
}
