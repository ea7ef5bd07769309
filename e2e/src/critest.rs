//! `cargo e2e critest`: cri-tools' suite against `gantry-cri` alone, on a machine made of namespaces, with a registry of its own.
//!
//! What is kept: how many specs passed, and the names of those that did not (the log has the rest).

mod machine;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::debian;
use crate::images;
use crate::programs::{self, Outputs, Profile};
use crate::step::Steps;

pub use machine::Machine;

/// The images of images.toml that the suite pulls.
pub const SET: &str = "critest";

/// Specs that cannot pass here, by what their names contain, and why.
const IMPOSSIBLE: &[(&str, &str)] = &[(
    "public image with digest",
    "it pulls an image by the digest of upstream's own build, which an image built here cannot have",
)];

#[derive(Args)]
pub struct CritestOptions {
    /// How our programs are built.
    #[arg(long, value_enum, default_value = "dev")]
    profile: Profile,
    /// Only the specs whose names match.
    #[arg(long)]
    focus: Option<String>,
    /// Not the specs whose names match.
    #[arg(long)]
    skip: Option<String>,
    /// Streams over WebSocket instead of SPDY.
    #[arg(long)]
    websocket: bool,
}

/// Runs the suite and prints a summary.
///
/// # Errors
/// A spec failed that can pass here, or the suite could not be run.
pub fn run(options: &CritestOptions) -> Result<()> {
    debian::require_root("run containers")?;
    let outputs = Outputs::find().with_profile(options.profile);
    let steps = Steps::new(outputs.logs())?;
    programs::build_upstream(&steps, &outputs, &["critest", "crictl", "crane"])?;
    programs::build_ours(&steps, &outputs, &["cri", "shim"])?;
    images::build_set(&steps, &outputs, SET)?;
    let machine = Machine::start(&outputs, &steps)?;

    let step = steps.start("critest", None)?;
    let log = outputs.logs().join("critest.log");
    let report = machine.directory().join("report.json");
    let mut suite = machine.command(outputs.upstream("critest"));
    suite
        .arg(format!("-runtime-endpoint=unix://{}", machine::SOCKET))
        .arg(format!("-ginkgo.json-report={}", report.display()))
        .args(["-ginkgo.no-color", "-ginkgo.v"]);
    if let Some(focus) = &options.focus {
        suite.arg(format!("-ginkgo.focus={focus}"));
    }
    if let Some(skip) = &options.skip {
        suite.arg(format!("-ginkgo.skip={skip}"));
    }
    if options.websocket {
        suite.args([
            "-websocket-exec",
            "-websocket-attach",
            "-websocket-portforward",
        ]);
    }
    let file = fs::File::create(&log)?;
    let status = suite
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .context("start critest")?;
    step.done();
    fs::copy(machine.log(), outputs.logs().join("critest-gantry-cri.log"))?;
    let text = fs::read_to_string(&report).with_context(|| {
        format!(
            "critest ended with {status} and no report; its output: {}",
            log.display()
        )
    })?;
    let summary = Summary::read(&text)?;
    print!("{}", summary.text());
    println!("its output: {}", log.display());
    if summary.has_failed() {
        bail!("specs failed");
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Option<Vec<Spec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
}

/// How each spec ended, by its whole name.
#[derive(Debug, Default)]
struct Summary {
    states: BTreeMap<String, String>,
}

impl Summary {
    fn read(report: &str) -> Result<Self> {
        let suites: Vec<Suite> = serde_json::from_str(report).context("read the report")?;
        let mut states = BTreeMap::new();
        for spec in suites
            .into_iter()
            .flat_map(|s| s.spec_reports.unwrap_or_default())
        {
            // What runs before and after the whole suite is a spec too, if it fails.
            if spec.leaf_node_type != "It" && spec.state == "passed" {
                continue;
            }
            let mut name = spec.container_hierarchy_texts.unwrap_or_default();
            name.push(if spec.leaf_node_type == "It" {
                spec.leaf_node_text
            } else {
                spec.leaf_node_type
            });
            states.insert(name.join(" "), spec.state);
        }
        Ok(Self { states })
    }

    fn of<'a>(&'a self, state: &'a str) -> impl Iterator<Item = &'a str> {
        self.states
            .iter()
            .filter(move |(_, is)| *is == state)
            .map(|(name, _)| name.as_str())
    }

    /// Neither passed nor left out.
    fn failed(&self) -> impl Iterator<Item = &str> {
        let over = ["passed", "skipped", "pending"];
        self.states
            .iter()
            .filter(move |(_, state)| !over.contains(&state.as_str()))
            .map(|(name, _)| name.as_str())
    }

    fn has_failed(&self) -> bool {
        self.failed().any(|name| impossible(name).is_none())
    }

    fn text(&self) -> String {
        let mut text = format!(
            "critest: {} passed, {} failed, {} skipped\n",
            self.of("passed").count(),
            self.failed().count(),
            self.of("skipped").count()
        );
        for name in self.failed() {
            text += &match impossible(name) {
                Some(why) => format!("  cannot pass here: {name} ({why})\n"),
                None => format!("  failed: {name}\n"),
            };
        }
        text
    }
}

fn impossible(name: &str) -> Option<&'static str> {
    IMPOSSIBLE
        .iter()
        .find(|(part, _)| name.contains(part))
        .map(|(_, why)| *why)
}

/// A program that must end well.
pub(crate) fn must(command: &mut Command) -> Result<String> {
    crate::step::output(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_names_what_failed() {
        let report = r#"[{"SpecReports":[
            {"ContainerHierarchyTexts":null,"LeafNodeType":"BeforeSuite","LeafNodeText":"","State":"passed"},
            {"ContainerHierarchyTexts":["[k8s.io] A","b"],"LeafNodeType":"It","LeafNodeText":"c","State":"passed"},
            {"ContainerHierarchyTexts":["[k8s.io] A"],"LeafNodeType":"It","LeafNodeText":"d","State":"timedout"},
            {"ContainerHierarchyTexts":["[k8s.io] I"],"LeafNodeType":"It","LeafNodeText":"public image with digest [Conformance]","State":"failed"},
            {"ContainerHierarchyTexts":["[k8s.io] A"],"LeafNodeType":"It","LeafNodeText":"e","State":"skipped"}]}]"#;
        let mut summary = Summary::read(report).unwrap();
        let text = summary.text();
        assert!(text.starts_with("critest: 1 passed, 2 failed, 1 skipped\n"));
        assert!(text.contains("  failed: [k8s.io] A d\n"), "{text}");
        assert!(
            text.contains("  cannot pass here: [k8s.io] I public"),
            "{text}"
        );
        assert!(summary.has_failed());
        summary.states.remove("[k8s.io] A d");
        assert!(!summary.has_failed());
    }
}
