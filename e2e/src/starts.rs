//! How long pods take from creation to Ready, as a watch of the API sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::Cluster;

/// Longer than any pod takes that gets Ready at all.
const PATIENCE: Duration = Duration::from_secs(180);

/// One kubectl that prints a line a change; the time between a pod's first line and the one that says Ready is what is measured.
pub struct Starts {
    child: Child,
    lines: mpsc::Receiver<(Instant, String)>,
    created: BTreeMap<String, Instant>,
    ready: BTreeSet<String>,
    namespace: String,
    /// Where its pods run; wherever the scheduler says if `None`.
    node: Option<String>,
}

impl Starts {
    /// Watches the pods of `namespace`.
    ///
    /// # Errors
    /// kubectl cannot be started.
    pub fn watch(cluster: &Cluster, namespace: &str, node: Option<&str>) -> Result<Self> {
        let mut child = cluster
            .kubectl_command()
            .args(["-n", namespace, "get", "pods", "--watch", "-o"])
            .arg("jsonpath={.metadata.name} {.status.conditions[?(@.type==\"Ready\")].status}{\"\\n\"}")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    break;
                }
            }
        });
        // The first pod must not be created before the watch stands.
        std::thread::sleep(Duration::from_secs(2));
        Ok(Self {
            child,
            lines,
            created: BTreeMap::new(),
            ready: BTreeSet::new(),
            namespace: namespace.to_owned(),
            node: node.map(str::to_owned),
        })
    }

    /// Creates pods that only wait, at once.
    ///
    /// # Errors
    /// kubectl fails.
    pub fn create(&mut self, cluster: &Cluster, names: &[String]) -> Result<()> {
        let node = self.node.as_ref();
        let node = node.map_or(String::new(), |name| format!("  nodeName: {name}\n"));
        let manifest: Vec<String> = names
            .iter()
            .map(|name| {
                format!(
                    "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n{node}  \
                     containers:\n  - name: main\n    image: registry.k8s.io/e2e-test-images/agnhost:2.66.1\n    args: [pause]\n"
                )
            })
            .collect();
        let mut child = cluster
            .kubectl_command()
            .args(["-n", &self.namespace, "create", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        child
            .stdin
            .take()
            .context("stdin is piped")?
            .write_all(manifest.join("---\n").as_bytes())?;
        ensure!(child.wait()?.success(), "kubectl create failed");
        Ok(())
    }

    /// Seconds from creation to Ready of the next `count` pods.
    ///
    /// # Errors
    /// They are not Ready after three minutes.
    pub fn wait(&mut self, count: usize) -> Result<Vec<f64>> {
        let mut seconds = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while seconds.len() < count {
            let (at, line) = match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(next) => next,
                Err(err) => bail!("{} of {count} pods got Ready: {err}", seconds.len()),
            };
            let (name, state) = line.split_once(' ').unwrap_or((line.as_str(), ""));
            let created = *self.created.entry(name.to_owned()).or_insert(at);
            if state == "True" && self.ready.insert(name.to_owned()) {
                seconds.push((at - created).as_secs_f64());
            }
        }
        Ok(seconds)
    }
}

impl Drop for Starts {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
