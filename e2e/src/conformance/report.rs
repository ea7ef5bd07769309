//! What a run gave: specs and their states, counted, kept on disk, written as text.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Passed,
    /// It failed, and passed when it was run again.
    Flaked,
    Failed,
    NotRun,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    pub name: String,
    pub state: State,
    pub seconds: f64,
    pub start: String,
    pub end: String,
    /// Empty unless it failed.
    pub message: String,
}

impl Spec {
    /// `node` of `[sig-node] …`.
    pub fn sig(&self) -> &str {
        self.name
            .split_once("[sig-")
            .and_then(|(_, rest)| rest.split_once(']'))
            .map_or("?", |(sig, _)| sig)
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    pub dir: PathBuf,
    pub specs: Vec<Spec>,
    /// What the watch found: panics, unexpected errors, leftovers, restarts.
    pub findings: Vec<String>,
    pub upstream: Vec<String>,
}

impl Report {
    /// The newest run below `runs`.
    ///
    /// # Errors
    /// There is none.
    pub fn load_last(runs: &Path) -> Result<Self> {
        let mut dirs: Vec<PathBuf> = fs::read_dir(runs)
            .with_context(|| format!("no earlier run in {}", runs.display()))?
            .flatten()
            .map(|entry| entry.path().join("results.json"))
            .filter(|file| file.exists())
            .collect();
        dirs.sort();
        let file = dirs
            .last()
            .with_context(|| format!("no earlier run in {}", runs.display()))?;
        serde_json::from_slice(&fs::read(file)?).with_context(|| format!("read {}", file.display()))
    }

    pub fn failed(&self) -> impl Iterator<Item = &Spec> {
        self.specs.iter().filter(|spec| spec.state == State::Failed)
    }

    pub fn count(&self, state: State) -> usize {
        self.specs.iter().filter(|spec| spec.state == state).count()
    }

    /// Passed, failed or flaked, not run and seconds by SIG.
    fn by_sig(&self) -> BTreeMap<&str, (usize, usize, usize, f64)> {
        let mut rows: BTreeMap<&str, (usize, usize, usize, f64)> = BTreeMap::new();
        for spec in &self.specs {
            let row = rows.entry(spec.sig()).or_default();
            match spec.state {
                State::Passed => row.0 += 1,
                State::Failed | State::Flaked => row.1 += 1,
                State::NotRun => row.2 += 1,
            }
            row.3 += spec.seconds;
        }
        rows
    }

    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<20} {:>7} {:>7} {:>8} {:>9}\n",
            "SIG", "passed", "failed", "not run", "seconds"
        );
        for (sig, (passed, failed, not_run, seconds)) in self.by_sig() {
            text.push_str(&format!(
                "{sig:<20} {passed:>7} {failed:>7} {not_run:>8} {seconds:>9.0}\n"
            ));
        }
        let total: f64 = self.specs.iter().map(|spec| spec.seconds).sum();
        text.push_str(&format!(
            "{:<20} {:>7} {:>7} {:>8} {total:>9.0}\n",
            "all",
            self.count(State::Passed),
            self.count(State::Failed) + self.count(State::Flaked),
            self.count(State::NotRun)
        ));
        text
    }

    /// Writes results.json, and a folder a failure with its message and the logs of its time.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn keep(&self, cluster: &Cluster) -> Result<()> {
        fs::write(
            self.dir.join("results.json"),
            serde_json::to_vec_pretty(self)?,
        )?;
        let bad = |spec: &&Spec| matches!(spec.state, State::Failed | State::Flaked);
        for (index, spec) in self.specs.iter().filter(bad).enumerate() {
            let dir = self.dir.join(format!("failed-{index:03}"));
            fs::create_dir_all(&dir)?;
            fs::write(
                dir.join("message.txt"),
                format!(
                    "{}\n{} to {}\n\n{}\n",
                    spec.name, spec.start, spec.end, spec.message
                ),
            )?;
            for name in cluster.state.processes.keys() {
                let log = fs::read(cluster.layout.log(name)).unwrap_or_default();
                let log = String::from_utf8_lossy(&log);
                let lines: Vec<&str> = log
                    .lines()
                    .filter(|line| within(line, &spec.start, &spec.end))
                    .collect();
                if !lines.is_empty() {
                    fs::write(dir.join(format!("{name}.log")), lines.join("\n"))?;
                }
            }
        }
        Ok(())
    }
}

/// Whether a log line was written between two RFC 3339 times; lines start with such a time, or klog's.
fn within(line: &str, start: &str, end: &str) -> bool {
    let (Ok(start), Ok(end)) = (
        start.parse::<jiff::Timestamp>(),
        end.parse::<jiff::Timestamp>(),
    ) else {
        return false;
    };
    let first = line.split(' ').next().unwrap_or_default();
    let at = first
        .parse::<jiff::Timestamp>()
        .ok()
        .or_else(|| klog_time(line, start));
    at.is_some_and(|at| at >= start && at <= end)
}

/// `I1121 10:16:00.123456 …`: no year, and the time in UTC on our nodes.
fn klog_time(line: &str, near: jiff::Timestamp) -> Option<jiff::Timestamp> {
    let (day, rest) = (line.get(1..5)?, line.get(6..21)?);
    let year = near.to_zoned(jiff::tz::TimeZone::UTC).year();
    format!("{year}-{}-{}T{rest}Z", &day[..2], &day[2..])
        .parse()
        .ok()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GinkgoSuite {
    spec_reports: Option<Vec<GinkgoSpec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GinkgoSpec {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    #[serde(default)]
    container_hierarchy_labels: Option<Vec<Option<Vec<String>>>>,
    #[serde(default)]
    leaf_node_labels: Option<Vec<String>>,
    leaf_node_type: String,
    #[serde(default)]
    leaf_node_text: String,
    state: String,
    #[serde(default)]
    start_time: String,
    #[serde(default)]
    end_time: String,
    /// Nanoseconds.
    #[serde(default)]
    run_time: u64,
    #[serde(default)]
    failure: Option<GinkgoFailure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GinkgoFailure {
    #[serde(default)]
    message: String,
}

/// The selected specs of a ginkgo JSON report. Specs that the selection skipped are left out; a
/// spec that skipped itself counts as not run.
///
/// # Errors
/// The file is missing or not a report.
pub fn read_ginkgo(path: &Path) -> Result<Vec<Spec>> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let suites: Vec<GinkgoSuite> =
        serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?;
    Ok(suites
        .into_iter()
        .flat_map(|suite| suite.spec_reports.unwrap_or_default())
        .filter_map(GinkgoSpec::into_spec)
        .collect())
}

impl GinkgoSpec {
    fn into_spec(self) -> Option<Spec> {
        if self.leaf_node_type != "It" {
            return None;
        }
        let message = self
            .failure
            .map(|failure| failure.message)
            .unwrap_or_default();
        let state = match self.state.as_str() {
            "passed" => State::Passed,
            // Without a message the selection skipped it.
            "skipped" | "pending" if message.is_empty() => return None,
            "skipped" | "pending" => State::NotRun,
            _ => State::Failed,
        };
        let mut words = self.container_hierarchy_texts.unwrap_or_default();
        words.push(self.leaf_node_text);
        let mut name = words.join(" ");
        let labels = self
            .container_hierarchy_labels
            .unwrap_or_default()
            .into_iter()
            .flatten()
            .flatten();
        for label in labels.chain(self.leaf_node_labels.unwrap_or_default()) {
            let tag = format!("[{label}]");
            if !name.contains(&tag) && label == "Conformance" {
                name = format!("{name} {tag}");
            }
        }
        Some(Spec {
            name,
            state,
            seconds: self.run_time as f64 / 1e9,
            start: self.start_time,
            end: self.end_time,
            message,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_fall_into_their_window() {
        let check = |line: &str, expect| {
            assert_eq!(
                within(line, "2026-11-21T10:00:00Z", "2026-11-21T10:00:10Z"),
                expect,
                "{line}"
            );
        };
        check("2026-11-21T10:00:05.5Z INFO kubelet: started", true);
        check("2026-11-21T10:00:11Z INFO kubelet: started", false);
        check("I1121 10:00:03.123456    1234 kubelet.go:1] started", true);
        check("I1121 10:00:30.123456    1234 kubelet.go:1] started", false);
        check("no time", false);
    }
}
