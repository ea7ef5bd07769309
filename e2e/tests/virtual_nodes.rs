//! Promise: `virtual-kubelet` makes nodes that need no machine: pods are scheduled to them, run, say what they have to say, and go; a
//! provider in Python does the same.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::Cluster;
use e2e::probe::{Namespace, cluster, wait_until};
use e2e::step::Steps;
use serde_json::Value;

/// Where the control plane is; its node authorizer and its pods have nothing to do with this process.
const ADDRESS: Ipv4Addr = e2e::cluster::layout::CONTROL_PLANE_IP;

/// Programs of this test, ended with it, and their nodes.
struct Programs<'a> {
    cluster: &'a Cluster,
    children: Vec<Child>,
    prefix: &'static str,
    directory: PathBuf,
}

impl<'a> Programs<'a> {
    fn new(cluster: &'a Cluster, prefix: &'static str) -> Result<Self> {
        // No other test needs it: a cluster is up without.
        e2e::programs::build_ours(
            &Steps::new(cluster.outputs.logs())?,
            &cluster.outputs,
            &["virtual-kubelet"],
        )?;
        let directory = cluster.layout.dir().join(prefix);
        fs::create_dir_all(&directory)?;
        Ok(Self {
            cluster,
            children: Vec::new(),
            prefix,
            directory,
        })
    }

    fn start(&mut self, name: &str, mut command: Command) -> Result<()> {
        let log = fs::File::create(self.directory.join(format!("{name}.log")))?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.children
            .push(command.spawn().with_context(|| format!("start {name}"))?);
        Ok(())
    }

    fn kubelet(&mut self, port: u16, nodes: u32, provider: &str, config: &str) -> Result<()> {
        let file = self.directory.join("config.yaml");
        let head =
            "apiVersion: virtualkubelet.gantry/v1alpha1\nkind: VirtualKubeletConfiguration\n";
        fs::write(&file, format!("{head}{config}"))?;
        let program = self.cluster.outputs.ours("virtual-kubelet");
        let mut command = self.cluster.control_plane().command(program);
        command.args([
            format!(
                "--kubeconfig={}",
                self.cluster.layout.kubeconfig("admin-inside").display()
            ),
            format!("--provider={provider}"),
            format!("--provider-config={}", file.display()),
            format!("--nodes={nodes}"),
            format!("--node-name-prefix={}", self.prefix),
            format!("--node-ip={ADDRESS}"),
            format!("--port={port}"),
            "--healthz-port=0".to_owned(),
            format!("--cert-dir={}", self.directory.display()),
            format!(
                "--client-ca-file={}",
                self.cluster.layout.pki("ca.crt").display()
            ),
        ]);
        self.start("virtual-kubelet", command)
    }

    fn wait_nodes(&self, count: usize) -> Result<()> {
        wait_until(
            "the virtual nodes are ready",
            Duration::from_secs(60),
            || {
                let nodes = self.cluster.kubectl(&[
                    "get",
                    "nodes",
                    "-l",
                    "type=virtual-kubelet",
                    "-o",
                    "json",
                ])?;
                let nodes: Value = serde_json::from_str(&nodes)?;
                let ready = nodes["items"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|node| {
                        let ours = node["metadata"]["name"]
                            .as_str()
                            .unwrap_or_default()
                            .starts_with(self.prefix);
                        let conditions = node["status"]["conditions"].as_array();
                        ours && conditions
                            .into_iter()
                            .flatten()
                            .any(|c| c["type"] == "Ready" && c["status"] == "True")
                    });
                Ok(ready.count() == count)
            },
        )
    }
}

impl Drop for Programs<'_> {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        for number in 0..3 {
            let name = format!("{}-{number}", self.prefix);
            let _ = self
                .cluster
                .kubectl(&["delete", "node", &name, "--ignore-not-found"]);
        }
    }
}

fn pod(name: &str, prefix: &str, container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  \
         tolerations: [{{key: virtual-kubelet.io/provider, operator: Exists}}]\n  \
         affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: [{{matchExpressions: \
         [{{key: fleet, operator: In, values: [{prefix}]}}]}}]}}}}}}\n  containers: [{{name: main, image: none, {container}}}]\n"
    )
}

#[test]
fn pods_of_simulated_nodes_run_log_and_go() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "virtual-simulated")?;
    let mut programs = Programs::new(&cluster, "sim")?;
    let config =
        "node: {labels: {fleet: sim}}\nsimulated: {startDelay: 200ms, logs: [first, second]}\n";
    programs.kubelet(10350, 3, "simulated", config)?;
    programs.wait_nodes(3)?;

    ns.apply(&pod("a", "sim", "command: [x]"))?;
    ns.wait_ready("pod/a", 60)?;
    let log = ns.kubectl(&["logs", "a", "--tail=1"])?;
    ensure!(log == "second\n", "{log:?}");
    let refused = ns.command().args(["exec", "a", "--", "ls"]).output()?;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        !refused.status.success() && text.contains("this provider does not support exec"),
        "{text}"
    );
    ns.kubectl(&["delete", "pod", "a", "--timeout=30s"])?;

    let lease = cluster.kubectl(&[
        "get",
        "lease",
        "-n",
        "kube-node-lease",
        "sim-2",
        "-o",
        "json",
    ])?;
    let lease: Value = serde_json::from_str(&lease)?;
    ensure!(lease["spec"]["holderIdentity"] == "sim-2", "{lease}");
    ns.delete()
}

#[test]
fn a_provider_in_python_runs_logs_and_deletes() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "virtual-python")?;
    let mut programs = Programs::new(&cluster, "py")?;
    let socket = programs.directory.join("p.sock");
    let _ = fs::remove_file(&socket);
    let folder = Path::new(&cluster.outputs.workspace).join("kubelet/virtual");
    let python = e2e::python::with(
        &Steps::new(cluster.outputs.logs())?,
        &cluster.outputs,
        &folder.join("examples/python/requirements.txt"),
    )?;
    let mut provider = Command::new(python);
    provider
        .arg(folder.join("examples/python/provider.py"))
        .arg(&socket)
        .arg(folder.join("proto"));
    programs.start("provider", provider)?;
    let config = format!(
        "node: {{labels: {{fleet: py}}}}\nremote: {{endpoint: 'unix://{}'}}\n",
        socket.display()
    );
    programs.kubelet(10351, 1, "remote", &config)?;
    programs.wait_nodes(1)?;

    ns.apply(&pod(
        "a",
        "py",
        "command: [sh, -c, 'echo hello; exec sleep 1000']",
    ))?;
    ns.wait_ready("pod/a", 60)?;
    let log = ns.kubectl(&["logs", "a"])?;
    ensure!(log == "hello\n", "{log:?}");
    ns.kubectl(&["delete", "pod", "a", "--timeout=30s"])?;

    ns.apply(&pod(
        "b",
        "py",
        "livenessProbe: {exec: {command: [x]}}, command: [x]",
    ))?;
    wait_until(
        "the pod is refused by name",
        Duration::from_secs(30),
        || {
            Ok(ns
                .kubectl(&["get", "events"])?
                .contains("spec.containers[0].livenessProbe"))
        },
    )?;
    ns.delete()
}
