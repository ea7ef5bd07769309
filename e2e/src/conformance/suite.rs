//! The suites of `e2e/suites.toml`: which of upstream's specs are asked, and why others are not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::csi::Storage;

/// The suite that is run where none is named.
pub const DEFAULT: &str = "conformance";

/// A choice of upstream's specs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// What it asks, in a sentence.
    pub about: String,
    pub phases: Vec<Phase>,
    /// Storage of the cluster that it runs on.
    #[serde(default)]
    pub with_csi: BTreeSet<Storage>,
    /// Sets of images.toml that its specs need.
    #[serde(default)]
    pub images: BTreeSet<String>,
    /// Specs that are never run here.
    #[serde(default)]
    pub skip: Vec<Reason>,
    /// Why ours differs from upstream's own result.
    #[serde(default)]
    pub differs: Vec<Reason>,
}

/// One run of ginkgo.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    pub name: String,
    /// ginkgo's filter of labels.
    pub labels: String,
    /// Only specs whose name matches this regular expression.
    #[serde(default)]
    pub focus: Option<String>,
    /// One at a time, whatever the command line says.
    #[serde(default)]
    pub serial: bool,
}

/// Specs and what there is to say of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// A part of their names, as it stands there.
    pub specs: String,
    pub reason: String,
}

/// All suites.
///
/// # Errors
/// The file is missing or not of this shape.
pub fn all(workspace: &Path) -> Result<BTreeMap<String, Suite>> {
    let path = workspace.join("e2e/suites.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("read {}", path.display()))
}

/// The suite of this name.
///
/// # Errors
/// There is none, or the file cannot be read.
pub fn find(workspace: &Path, name: &str) -> Result<Suite> {
    let mut suites = all(workspace)?;
    match suites.remove(name) {
        Some(suite) => Ok(suite),
        None => bail!(
            "--suite {name}: there is no such suite, only {}",
            suites.into_keys().collect::<Vec<_>>().join(", ")
        ),
    }
}

impl Suite {
    /// The regular expression of what is skipped.
    pub fn skipped(&self) -> Option<String> {
        let names: Vec<String> = self
            .skip
            .iter()
            .map(|skip| super::escape(&skip.specs))
            .collect();
        (!names.is_empty()).then(|| names.join("|"))
    }

    /// Why ours does not do with a spec what upstream does.
    pub fn cause(&self, spec: &str) -> Option<&str> {
        self.differs
            .iter()
            .find(|known| spec.contains(&known.specs))
            .map(|known| known.reason.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_can_be_read_and_says_what_it_is() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let suites = all(workspace).unwrap();
        assert!(suites.contains_key(DEFAULT));
        let sets = crate::images::sets().unwrap();
        for (name, suite) in &suites {
            assert!(!suite.about.is_empty(), "{name}");
            assert!(!suite.phases.is_empty(), "{name}");
            let unknown = suite.images.difference(&sets).collect::<Vec<_>>();
            assert!(
                unknown.is_empty(),
                "{name}: images.toml has no set {unknown:?}"
            );
            for reason in suite.skip.iter().chain(&suite.differs) {
                assert!(
                    !reason.specs.is_empty() && !reason.reason.is_empty(),
                    "{name}: {reason:?}"
                );
            }
        }
        let unknown = find(workspace, "none").unwrap_err().to_string();
        assert!(unknown.contains("only conformance"), "{unknown}");
    }

    #[test]
    fn what_is_skipped_and_why_ours_differs_go_by_parts_of_names() {
        let suite: Suite = toml::from_str(
            r#"
            about = "x"
            phases = [{ name = "all", labels = "A" }]
            skip = [{ specs = "[Driver: pd]", reason = "no cloud" }, { specs = "a.b", reason = "no image" }]
            differs = [{ specs = "HPA", reason = "not built" }]
            "#,
        )
        .unwrap();
        assert_eq!(suite.skipped().unwrap(), "\\[Driver: pd\\]|a\\.b");
        assert_eq!(
            suite.cause("[sig-autoscaling] HPA scales"),
            Some("not built")
        );
        assert_eq!(suite.cause("[sig-node] Pods"), None);
    }
}
