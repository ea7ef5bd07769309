//! What whole runs gave, kept in the repository: ours, upstream's own on the same kind of machine, and where they differ.
//!
//! **Invariant:** `CONFORMANCE.md` is written from the kept results alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::report::{Report, Spec, State};
use super::suite::{self, Suite};
use crate::cluster::Component;
use crate::programs::KUBERNETES_VERSION;

/// A whole run of a suite.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// Kubernetes' version.
    version: String,
    date: String,
    passed: Vec<String>,
    flaked: Vec<String>,
    /// With the first line of what went wrong.
    failed: BTreeMap<String, String>,
    not_run: BTreeMap<String, String>,
    /// What was found beside the specs.
    findings: Vec<String>,
}

/// Keeps a whole run. One with a part of upstream's components is nobody's result and is not kept.
///
/// # Errors
/// A file cannot be written.
pub fn keep(
    workspace: &Path,
    suite: &str,
    report: &Report,
    upstream: &BTreeSet<Component>,
) -> Result<()> {
    let file = match upstream.len() {
        0 => ours(workspace, suite),
        n if n == Component::ALL.len() => upstreams(workspace, suite),
        _ => return Ok(()),
    };
    fs::create_dir_all(file.parent().unwrap_or(workspace))?;
    let kept = Kept::new(report, KUBERNETES_VERSION, &today());
    fs::write(&file, serde_json::to_vec_pretty(&kept)?)
        .with_context(|| format!("write {}", file.display()))?;
    fs::write(workspace.join("e2e/CONFORMANCE.md"), markdown(workspace)?)?;
    Ok(())
}

/// Where ours and upstream's own result differ.
///
/// # Errors
/// A kept result cannot be read.
pub fn compare(workspace: &Path, name: &str, suite: &Suite) -> Result<String> {
    let (Some(ours), Some(upstream)) = (
        read(&ours(workspace, name))?,
        read(&upstreams(workspace, name))?,
    ) else {
        return Ok(format!("upstream's own result of suite {name} is not kept"));
    };
    let differences = differences(&ours, &upstream);
    let lines: Vec<String> = differences
        .iter()
        .map(|spec| {
            format!(
                "DIFFERS {spec}: {}",
                suite.cause(spec).unwrap_or("unexplained")
            )
        })
        .collect();
    Ok(match lines.is_empty() {
        true => "everything that upstream passes passes".to_owned(),
        false => lines.join("\n"),
    })
}

fn ours(workspace: &Path, suite: &str) -> PathBuf {
    workspace.join(format!("e2e/results/{suite}.json"))
}

fn upstreams(workspace: &Path, suite: &str) -> PathBuf {
    workspace.join(format!("e2e/upstream-results/{suite}.json"))
}

fn today() -> String {
    jiff::Zoned::now().strftime("%Y-%m-%d").to_string()
}

fn read(file: &Path) -> Result<Option<Kept>> {
    match fs::read(file) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .with_context(|| format!("read {}", file.display())),
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err).with_context(|| format!("read {}", file.display())),
    }
}

impl Kept {
    fn new(report: &Report, version: &str, date: &str) -> Self {
        let names = |state| {
            let mut names: Vec<String> = report
                .specs
                .iter()
                .filter(|spec| spec.state == state)
                .map(|spec| spec.name.clone())
                .collect();
            names.sort();
            names
        };
        let reasons = |state| {
            let chosen = report.specs.iter().filter(|spec| spec.state == state);
            chosen
                .map(|spec: &Spec| (spec.name.clone(), first_line(&spec.message)))
                .collect()
        };
        Self {
            version: version.to_owned(),
            date: date.to_owned(),
            passed: names(State::Passed),
            flaked: names(State::Flaked),
            failed: reasons(State::Failed),
            not_run: reasons(State::NotRun),
            findings: report
                .findings
                .iter()
                .map(|found| first_line(found))
                .collect(),
        }
    }

    fn by_sig(&self) -> BTreeMap<&str, [usize; 4]> {
        let mut rows: BTreeMap<&str, [usize; 4]> = BTreeMap::new();
        let all: [Vec<&String>; 4] = [
            self.passed.iter().collect(),
            self.flaked.iter().collect(),
            self.failed.keys().collect(),
            self.not_run.keys().collect(),
        ];
        for (column, names) in all.iter().enumerate() {
            for name in names {
                rows.entry(sig(name)).or_default()[column] += 1;
            }
        }
        rows
    }
}

/// `node` of `[sig-node] …`.
fn sig(name: &str) -> &str {
    name.split_once("[sig-")
        .and_then(|(_, rest)| rest.split_once(']'))
        .map_or("?", |(sig, _)| sig)
}

fn first_line(text: &str) -> String {
    let line = text.lines().find(|line| !line.trim().is_empty());
    line.unwrap_or_default().trim().chars().take(200).collect()
}

/// What upstream passes and ours does not.
fn differences<'a>(ours: &Kept, upstream: &'a Kept) -> Vec<&'a str> {
    let passed: BTreeSet<&String> = ours.passed.iter().collect();
    upstream
        .passed
        .iter()
        .filter(|name| !passed.contains(name))
        .map(String::as_str)
        .collect()
}

/// `e2e/CONFORMANCE.md`.
fn markdown(workspace: &Path) -> Result<String> {
    let mut text = "# Conformance\n\nUpstream's own suites (`e2e/suites.toml`) on a cluster of ours; written by `cargo e2e conformance`.\n".to_owned();
    for (name, suite) in suite::all(workspace)? {
        let ours = read(&ours(workspace, &name))?;
        let upstream = read(&upstreams(workspace, &name))?;
        text.push_str(&section(&name, &suite, ours.as_ref(), upstream.as_ref()));
    }
    Ok(text)
}

fn section(name: &str, suite: &Suite, ours: Option<&Kept>, upstream: Option<&Kept>) -> String {
    let mut text = format!("\n## {name}\n\n{}\n\n", suite.about);
    let Some(ours) = ours else {
        text.push_str("Not run as a whole yet.\n");
        return text;
    };
    text.push_str(&format!(
        "Kubernetes v{}, {}.\n\n| SIG | passed | flaked | failed | not run |\n|---|---|---|---|---|\n",
        ours.version, ours.date
    ));
    let rows = ours.by_sig();
    let all = rows.values().fold([0; 4], |mut all, row| {
        all.iter_mut().zip(row).for_each(|(all, n)| *all += n);
        all
    });
    for (sig, [passed, flaked, failed, not_run]) in rows.into_iter().chain([("all", all)]) {
        text.push_str(&format!(
            "| {sig} | {passed} | {flaked} | {failed} | {not_run} |\n"
        ));
    }
    match upstream {
        None => text.push_str("\nUpstream's own result is not kept yet.\n"),
        Some(upstream) => {
            let differences = differences(ours, upstream);
            text.push_str(&format!(
                "\nUpstream's components (v{}, {}) pass {} here; {} of them do not pass with ours.\n",
                upstream.version,
                upstream.date,
                upstream.passed.len(),
                differences.len()
            ));
            for spec in &differences {
                let cause = suite.cause(spec).unwrap_or("unexplained");
                text.push_str(&format!("- {spec}: {cause}\n"));
            }
        }
    }
    let reasons = |title: &str, specs: &BTreeMap<String, String>| {
        let mut text = String::new();
        if !specs.is_empty() {
            text.push_str(&format!("\n### {title}\n\n"));
        }
        for (spec, reason) in specs {
            let reason = suite.cause(spec).unwrap_or(reason);
            text.push_str(&format!("- {spec}: {reason}\n"));
        }
        text
    };
    text.push_str(&reasons("Failed", &ours.failed));
    text.push_str(&reasons("Not run", &ours.not_run));
    for (title, lines) in [
        ("Flaked", &ours.flaked),
        ("Found beside the specs", &ours.findings),
    ] {
        if !lines.is_empty() {
            text.push_str(&format!("\n### {title}\n\n"));
            lines
                .iter()
                .for_each(|line| text.push_str(&format!("- {line}\n")));
        }
    }
    if !suite.skip.is_empty() {
        text.push_str("\nLeft out:\n");
        for skip in &suite.skip {
            text.push_str(&format!("- `{}`: {}\n", skip.specs, skip.reason));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(specs: &[(&str, State)]) -> Report {
        let specs = specs.iter().map(|(name, state)| Spec {
            name: (*name).to_owned(),
            state: *state,
            seconds: 1.0,
            start: String::new(),
            end: String::new(),
            message: "\n it went wrong\nat line 3".to_owned(),
        });
        Report {
            dir: PathBuf::new(),
            specs: specs.collect(),
            findings: Vec::new(),
            upstream: Vec::new(),
        }
    }

    #[test]
    fn the_page_says_what_is_kept() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let page = fs::read_to_string(workspace.join("e2e/CONFORMANCE.md")).unwrap();
        assert_eq!(page, markdown(workspace).unwrap());
    }

    #[test]
    fn what_upstream_passes_and_ours_does_not_is_named_with_its_cause() {
        let (a, b, c) = ("[sig-node] a", "[sig-apps] b", "[sig-apps] c");
        let ours = Kept::new(
            &report(&[(a, State::Passed), (b, State::Flaked), (c, State::Failed)]),
            "1.2.3",
            "2026-01-02",
        );
        let upstream = Kept::new(
            &report(&[(a, State::Passed), (b, State::Passed), (c, State::Failed)]),
            "1.2.3",
            "2026-01-01",
        );
        assert_eq!(differences(&ours, &upstream), [b]);
        let suite: Suite = toml::from_str(
            "about = 'all'\nphases = [{name='a',labels='b'}]\ndiffers = [{specs='b',reason='not built'}]",
        )
        .unwrap();
        let text = section("x", &suite, Some(&ours), Some(&upstream));
        for line in [
            "Kubernetes v1.2.3, 2026-01-02.",
            "| apps | 0 | 1 | 1 | 0 |",
            "| all | 1 | 1 | 1 | 0 |",
            "pass 2 here; 1 of them do not pass with ours",
            "- [sig-apps] b: not built",
            "- [sig-apps] c: it went wrong",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
