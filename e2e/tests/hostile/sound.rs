//! That a node, its lease and its kubelet's memory stay sound while somebody tries something.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::cluster::Cluster;
use e2e::probe::wait_until;

/// A kubelet under attack keeps below this, in bytes.
const MEMORY_LIMIT: u64 = 200 << 20;
/// A lease is renewed every 10 s and counts as lost after 40: one round may be late, not two.
const LEASE_AGE: Duration = Duration::from_secs(25);

/// Looks at a node at the beginning, and again whenever it is asked.
pub struct Sound<'a> {
    cluster: &'a Cluster,
    node: &'a str,
    pid: u32,
}

impl<'a> Sound<'a> {
    /// # Errors
    /// The node is not sound to begin with.
    pub fn begin(cluster: &'a Cluster, node: &'a str) -> Result<Self> {
        let process = cluster.process(&format!("kubelet-{node}"))?;
        ensure!(process.is_running(), "the kubelet of {node} does not run");
        let sound = Self {
            cluster,
            node,
            pid: process.pid,
        };
        wait_until("a sound node", Duration::from_secs(60), || {
            sound.check().map(|()| true)
        })?;
        Ok(sound)
    }

    /// # Errors
    /// The node is not Ready, its lease is old, its kubelet is another process than before, or that uses too much memory.
    pub fn check(&self) -> Result<()> {
        let ready = self.cluster.kubectl(&[
            "get",
            "node",
            self.node,
            "-o",
            "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}",
        ])?;
        ensure!(ready == "True", "{} has Ready={ready}", self.node);
        let renewed = self.cluster.kubectl(&[
            "-n",
            "kube-node-lease",
            "get",
            "lease",
            self.node,
            "-o",
            "jsonpath={.spec.renewTime}",
        ])?;
        let renewed: jiff::Timestamp = renewed.parse().context("renewTime of the lease")?;
        let age = jiff::Timestamp::now().duration_since(renewed);
        ensure!(
            age.unsigned_abs() < LEASE_AGE,
            "the lease of {} is {age:?} old",
            self.node
        );
        let memory = self.resident()?;
        if memory > MEMORY_LIMIT {
            bail!("the kubelet of {} uses {} MiB", self.node, memory >> 20);
        }
        Ok(())
    }

    /// The kubelet's resident memory, in bytes.
    ///
    /// # Errors
    /// It ended.
    pub fn resident(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    /// What of it is no page of a file: without the program itself, which is large where it is not optimised. In bytes.
    ///
    /// # Errors
    /// It ended.
    pub fn anonymous(&self) -> Result<u64> {
        self.memory("RssAnon:")
    }

    fn memory(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))
            .with_context(|| format!("the kubelet of {} (pid {}) ended", self.node, self.pid))?;
        let kibibytes: u64 = status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .and_then(|rest| rest.trim().strip_suffix(" kB"))
            .with_context(|| field.to_owned())?
            .trim()
            .parse()?;
        Ok(kibibytes << 10)
    }
}
