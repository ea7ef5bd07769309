//! What the black-box tests share: a namespace of their own, waiting, looking into nodes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cluster::cgroup;
use crate::cluster::{Cluster, TEST_CLUSTER};
use crate::step::output;

/// The cluster under test: the one `cargo e2e test` made, or `$GANTRY_E2E_CLUSTER`.
///
/// # Errors
/// It is not up.
pub fn cluster() -> Result<Cluster> {
    let name = std::env::var("GANTRY_E2E_CLUSTER").unwrap_or_else(|_| TEST_CLUSTER.to_owned());
    let cluster = Cluster::open(&name)?;
    if !cluster.is_running() {
        bail!("cluster {name:?} is not running");
    }
    Ok(cluster)
}

/// A namespace that is deleted with all it holds when the test ends, passed or not.
pub struct Namespace<'a> {
    cluster: &'a Cluster,
    pub name: String,
}

impl<'a> Namespace<'a> {
    /// # Errors
    /// It cannot be made, or its service account does not appear.
    pub fn create(cluster: &'a Cluster, name: &str) -> Result<Self> {
        let _ = cluster.kubectl(&[
            "delete",
            "namespace",
            name,
            "--ignore-not-found",
            "--wait=true",
            "--timeout=120s",
        ]);
        cluster.kubectl(&["create", "namespace", name])?;
        let namespace = Self {
            cluster,
            name: name.to_owned(),
        };
        wait_until(
            "the default service account",
            Duration::from_secs(30),
            || {
                Ok(namespace
                    .kubectl(&["get", "serviceaccount", "default"])
                    .is_ok())
            },
        )?;
        Ok(namespace)
    }

    /// # Errors
    /// kubectl fails: the error holds what it said.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        output(self.command().args(args))
    }

    pub fn command(&self) -> Command {
        let mut command = self.cluster.kubectl_command();
        command.args(["-n", &self.name]);
        command
    }

    /// # Errors
    /// kubectl fails: the error holds what it said.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), manifest)?;
        self.kubectl(&["apply", "-f", &file.path().to_string_lossy()])
            .map(drop)
    }

    /// # Errors
    /// kubectl fails, or prints no JSON.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut args = args.to_vec();
        args.extend(["-o", "json"]);
        Ok(serde_json::from_str(&self.kubectl(&args)?)?)
    }

    /// # Errors
    /// The pod is not Ready in time; the error holds its description.
    pub fn wait_ready(&self, what: &str, seconds: u32) -> Result<()> {
        let timeout = format!("--timeout={seconds}s");
        self.kubectl(&["wait", "--for=condition=Ready", what, &timeout])
            .map(drop)
            .with_context(|| self.kubectl(&["describe", what]).unwrap_or_default())
    }

    /// # Errors
    /// The deployment is not rolled out in time; the error holds its pods.
    pub fn wait_rollout(&self, deployment: &str, seconds: u32) -> Result<()> {
        let timeout = format!("--timeout={seconds}s");
        self.kubectl(&["rollout", "status", deployment, &timeout])
            .map(drop)
            .with_context(|| self.kubectl(&["describe", "pods"]).unwrap_or_default())
    }

    /// Deletes it and waits until all it held is gone.
    ///
    /// # Errors
    /// It is not gone after two minutes.
    pub fn delete(self) -> Result<()> {
        self.cluster
            .kubectl(&[
                "delete",
                "namespace",
                &self.name,
                "--wait=true",
                "--timeout=120s",
            ])
            .map(drop)
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        let _ = self.cluster.kubectl(&[
            "delete",
            "namespace",
            &self.name,
            "--ignore-not-found",
            "--wait=false",
        ]);
    }
}

/// Asks every 100 ms whether `done`; for what kubectl cannot wait for.
///
/// # Errors
/// Not done in time, or `done` fails for good.
pub fn wait_until(
    what: &str,
    timeout: Duration,
    mut done: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        match done() {
            Ok(true) => return Ok(()),
            Err(err) if Instant::now() > deadline => {
                return Err(err.context(format!("waited {timeout:?} for {what}")));
            }
            Ok(false) if Instant::now() > deadline => bail!("waited {timeout:?} for {what}"),
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// A pod that runs `script` in busybox on `node`.
pub fn busybox_pod(name: &str, node: &str, script: &str) -> String {
    let script = serde_json::to_string(script).expect("a string is JSON");
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  nodeName: {node}\n  \
         terminationGracePeriodSeconds: 1\n  restartPolicy: Never\n  containers:\n  - name: main\n    \
         image: registry.k8s.io/e2e-test-images/busybox:1.37.0-2\n    command: [sh, -c, {script}]\n"
    )
}

/// What the kernel holds of a node: to be compared before and after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    pub mounts: BTreeSet<String>,
    pub links: BTreeSet<String>,
    pub cgroups: BTreeSet<PathBuf>,
    /// Processes in the node's pods.
    pub pids: BTreeSet<u32>,
    /// Addresses of pods: routes to them, and what the pod network's records hold.
    pub addresses: BTreeSet<String>,
    /// Addresses that nftables rules, sets and maps speak of.
    pub nft: BTreeSet<String>,
}

impl Holdings {
    /// # Errors
    /// The node cannot be entered.
    pub fn of(cluster: &Cluster, node: &str) -> Result<Self> {
        let place = cluster.node_place(node);
        let mounts = output(place.command("cat").arg("/proc/self/mountinfo"))?;
        let links = output(place.command("ip").args(["-o", "link", "show"]))?;
        let group = cluster.layout.node_cgroup(node);
        let mut cgroups = BTreeSet::new();
        for hierarchy in cgroup::hierarchies()? {
            cgroups.extend(cgroup::below(&hierarchy.join(&group)));
        }
        let mut addresses =
            words_with_addresses(&output(place.command("ip").args(["-o", "route", "show"]))?);
        // Nothing is there when another pod network is in use.
        let records = output(place.command("sh").args([
            "-c",
            "cat /var/lib/gantry/network/sandboxes/*.json 2>/dev/null || true",
        ]))?;
        addresses.extend(words_with_addresses(&records));
        let ruleset = output(place.command("nft").args(["list", "ruleset"]))?;
        Ok(Self {
            addresses,
            nft: words_with_addresses(&ruleset),
            mounts: mounts
                .lines()
                .filter_map(|line| line.split(' ').nth(4))
                .map(str::to_owned)
                .collect(),
            links: links
                .lines()
                .filter_map(|line| line.split(": ").nth(1))
                .map(str::to_owned)
                .collect(),
            cgroups,
            pids: cgroup::processes(&group)?.into_iter().collect(),
        })
    }

    /// What is here and was not in `before`.
    pub fn beyond(&self, before: &Self) -> Self {
        Self {
            mounts: self.mounts.difference(&before.mounts).cloned().collect(),
            links: self.links.difference(&before.links).cloned().collect(),
            cgroups: self.cgroups.difference(&before.cgroups).cloned().collect(),
            pids: self.pids.difference(&before.pids).copied().collect(),
            addresses: self
                .addresses
                .difference(&before.addresses)
                .cloned()
                .collect(),
            nft: self.nft.difference(&before.nft).cloned().collect(),
        }
    }

    /// Counts, and a few of each kind.
    pub fn summary(&self) -> String {
        fn few<T: std::fmt::Debug>(kind: &str, set: &BTreeSet<T>) -> String {
            let shown: Vec<&T> = set.iter().take(3).collect();
            format!("{} {kind} {shown:?}", set.len())
        }
        [
            few("mounts", &self.mounts),
            few("links", &self.links),
            few("cgroups", &self.cgroups),
            few("processes", &self.pids),
            few("addresses", &self.addresses),
            few("addresses in nftables", &self.nft),
        ]
        .join(", ")
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Every IPv4 address in a text.
fn words_with_addresses(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_digit() && c != '.')
        .filter(|word| word.parse::<std::net::Ipv4Addr>().is_ok())
        .map(str::to_owned)
        .collect()
}

/// Waits until a node holds nothing beyond `before`.
///
/// # Errors
/// Something is left; the error lists it.
pub fn assert_nothing_left(
    cluster: &Cluster,
    node: &str,
    before: &Holdings,
    timeout: Duration,
) -> Result<()> {
    wait_until(
        &format!("{node} to hold nothing more than before"),
        timeout,
        || {
            let left = Holdings::of(cluster, node)?.beyond(before);
            if left.is_empty() {
                Ok(true)
            } else {
                bail!("left on {node}: {}", left.summary())
            }
        },
    )
}

/// PIDs of processes on this machine whose command line holds `words`.
pub fn pids_of(words: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| {
            fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).is_ok_and(|line| {
                String::from_utf8_lossy(&line)
                    .replace('\0', " ")
                    .contains(words)
            })
        })
        .collect()
}
