//! Watches the components beside the specs: panics, unexpected errors, leftovers, restarts.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::Result;

use crate::cluster::{Cluster, Component};
use crate::probe::{Holdings, assert_nothing_left};

/// Errors that a component of ours may log under the suite, and why.
const EXPECTED: &[&str] = &[
    // The suite deletes objects under every component's hands.
    "not found",
    "the object has been modified",
    "AlreadyExists",
    "NotFound",
    // A pod of a namespace that the suite is just deleting cannot be bound.
    "because it is being terminated",
    // A pod waits for its certificate, and for a bundle that a spec makes later.
    "credential bundle is not issued yet",
    "combination of signerName and labelSelector matched zero ClusterTrustBundles",
];

/// What there was before the run.
pub struct Watch {
    log_sizes: BTreeMap<String, u64>,
    holdings: BTreeMap<String, Holdings>,
    pids: BTreeMap<String, u32>,
}

impl Watch {
    /// # Errors
    /// A node cannot be entered.
    pub fn begin(cluster: &Cluster) -> Result<Self> {
        let mut watch = Self {
            log_sizes: BTreeMap::new(),
            holdings: BTreeMap::new(),
            pids: BTreeMap::new(),
        };
        for (name, process) in &cluster.state.processes {
            watch.log_sizes.insert(
                name.clone(),
                fs::metadata(cluster.layout.log(name)).map_or(0, |file| file.len()),
            );
            if process.is_running() {
                watch.pids.insert(name.clone(), process.pid);
            }
        }
        // A pod that is there may become an endpoint only now.
        let pods = cluster.kubectl(&[
            "get",
            "pods",
            "--all-namespaces",
            "--output=jsonpath={.items[*].status.podIP}",
        ])?;
        for node in cluster.nodes() {
            let mut holdings = Holdings::of(cluster, &node)?;
            holdings
                .nft
                .extend(pods.split_whitespace().map(str::to_owned));
            watch.holdings.insert(node, holdings);
        }
        Ok(watch)
    }

    /// Everything found, a line (or more) each.
    ///
    /// # Errors
    /// A log cannot be read.
    pub fn end(self, cluster: &Cluster) -> Result<Vec<String>> {
        let mut findings = Vec::new();
        for (name, size) in &self.log_sizes {
            if self.pids.contains_key(name)
                && cluster
                    .process(name)
                    .is_ok_and(|process| !process.is_running())
            {
                findings.push(format!("{name} ended during the run"));
            }
            if !is_ours(cluster, name) {
                continue;
            }
            let log = fs::read(cluster.layout.log(name)).unwrap_or_default();
            let log = String::from_utf8_lossy(&log[usize::try_from(*size)?.min(log.len())..])
                .into_owned();
            findings.extend(
                log.lines()
                    .filter(|line| line.contains("panicked at"))
                    .map(|line| format!("{name} panicked: {line}")),
            );
            let mut kinds: BTreeMap<String, (usize, String)> = BTreeMap::new();
            for line in log.lines().filter(|line| {
                line.contains(" ERROR ") && !EXPECTED.iter().any(|words| line.contains(words))
            }) {
                // Numbers and ids differ from line to line of one kind.
                let kind: String = line
                    .split(" ERROR ")
                    .nth(1)
                    .unwrap_or(line)
                    .chars()
                    .filter(|c| !c.is_ascii_digit())
                    .take(60)
                    .collect();
                kinds.entry(kind).or_insert_with(|| (0, line.to_owned())).0 += 1;
            }
            findings.extend(
                kinds
                    .into_values()
                    .map(|(count, line)| format!("{name} logged {count} times: {line}")),
            );
        }
        // What upstream's kubelet leaves on a node is not ours.
        let ours = !cluster
            .state
            .options
            .with_upstream
            .contains(&Component::Kubelet);
        for (node, before) in self.holdings.iter().filter(|_| ours) {
            if let Err(err) = assert_nothing_left(cluster, node, before, Duration::from_secs(60)) {
                findings.push(format!("{err:#}"));
            }
        }
        Ok(findings)
    }
}

fn is_ours(cluster: &Cluster, process: &str) -> bool {
    Component::ALL.iter().any(|component| {
        process.starts_with(component.name())
            && !cluster.state.options.with_upstream.contains(component)
    })
}
