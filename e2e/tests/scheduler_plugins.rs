//! Promise: with the plugins that people install scheduler-plugins for, a group of pods gets nodes as a whole or not at all, and a namespace's quota holds.
//!
//! The nodes are objects alone: what is looked at is where pods are placed. The scheduler is one of the test's own, beside the cluster's.

use std::fs;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::Cluster;
use e2e::probe::{Namespace, cluster, wait_until};
use serde_json::Value;

const PAUSE: &str = "registry.k8s.io/pause:3.10.2";
const SCHEDULER: &str = "with-extra-plugins";
const WAIT: Duration = Duration::from_secs(60);

/// Ends with its drop, and takes the nodes of the test along.
struct Scheduler<'a> {
    cluster: &'a Cluster,
    process: Child,
    nodes: Vec<String>,
    _config: tempfile::TempDir,
}

impl<'a> Scheduler<'a> {
    fn start(cluster: &'a Cluster, plugins: &str, port: u16) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("config.yaml");
        let kubeconfig = cluster.layout.kubeconfig("admin-inside");
        let kubeconfig = kubeconfig.display();
        let config = format!(
            "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n\
             leaderElection: {{leaderElect: false}}\nclientConnection: {{kubeconfig: '{kubeconfig}'}}\n\
             profiles:\n- schedulerName: {SCHEDULER}-{port}\n{plugins}"
        );
        fs::write(&path, config)?;
        let program = cluster.outputs.ours("kube-scheduler");
        let mut command = cluster.control_plane().command(program);
        command.arg(format!("--config={}", path.display()));
        command.args(["--bind-address=127.0.0.1", &format!("--secure-port={port}")]);
        let process = command.spawn().context("starting kube-scheduler")?;
        Ok(Scheduler {
            cluster,
            process,
            nodes: Vec::new(),
            _config: directory,
        })
    }

    /// A node that has so many CPUs, for the pods of this test alone.
    fn node(&mut self, name: &str, cpu: u32) -> Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        let manifest = format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{only-for: {name}}}}}\n\
             spec: {{taints: [{{key: only-for, value: {name}, effect: NoSchedule}}]}}\n"
        );
        fs::write(file.path(), manifest)?;
        let path = file.path().to_string_lossy().into_owned();
        self.cluster.kubectl(&["apply", "-f", &path])?;
        self.nodes.push(name.to_owned());
        self.resize(name, cpu)
    }

    fn resize(&self, node: &str, cpu: u32) -> Result<()> {
        let room = format!("{{\"cpu\":\"{cpu}\",\"memory\":\"4Gi\",\"pods\":\"20\"}}");
        let patch = format!("{{\"status\":{{\"capacity\":{room},\"allocatable\":{room}}}}}");
        let patch = [
            "patch",
            "node",
            node,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ];
        self.cluster.kubectl(&patch).map(drop)
    }
}

impl Drop for Scheduler<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        for node in &self.nodes {
            let _ = self
                .cluster
                .kubectl(&["delete", "node", node, "--wait=false"]);
        }
    }
}

fn pod(name: &str, group: &str, node: &str, cpu: &str, port: u16) -> String {
    let labels = match group {
        "" => String::new(),
        group => format!(", labels: {{scheduling.x-k8s.io/pod-group: {group}}}"),
    };
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}{labels}}}\nspec:\n  \
         schedulerName: {SCHEDULER}-{port}\n  nodeSelector: {{only-for: {node}}}\n  \
         tolerations: [{{operator: Exists}}]\n  terminationGracePeriodSeconds: 0\n  \
         containers: [{{name: main, image: '{PAUSE}', resources: {{requests: {{cpu: '{cpu}'}}}}}}]\n"
    )
}

/// Installs the definition of a kind, as the chart has it.
fn define(cluster: &Cluster, plural: &str, group: &str) -> Result<()> {
    let files = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../charts/gantry-scheduler/files"
    );
    cluster.kubectl(&["apply", "-f", &format!("{files}/{plural}.yaml")])?;
    let name = format!("crd/{plural}.{group}");
    let wait = [
        "wait",
        "--for=condition=Established",
        &name,
        "--timeout=60s",
    ];
    cluster.kubectl(&wait).map(drop)
}

/// How many pods there are, have a node, and were found unschedulable.
fn counts(ns: &Namespace<'_>) -> Result<(usize, usize, usize)> {
    let pods = ns.json(&["get", "pods"])?;
    let pods = pods["items"].as_array().cloned().unwrap_or_default();
    let placed = |pod: &&Value| pod["spec"]["nodeName"].is_string();
    let refused = |pod: &&Value| {
        let conditions = pod["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|c| c["type"] == "PodScheduled" && c["reason"] == "Unschedulable")
    };
    let count = |of: &dyn Fn(&&Value) -> bool| pods.iter().filter(of).count();
    Ok((pods.len(), count(&placed), count(&refused)))
}

/// No kubelet will tell that they ended.
fn clear(ns: &Namespace<'_>) -> Result<()> {
    let delete = ["delete", "pods", "--all", "--force", "--grace-period=0"];
    ns.kubectl(&delete).map(drop)
}

#[test]
fn a_group_is_scheduled_as_a_whole() -> Result<()> {
    let cluster = cluster()?;
    define(&cluster, "podgroups", "scheduling.x-k8s.io")?;
    let ns = Namespace::create(&cluster, "gang")?;
    let plugins = "  plugins:\n    multiPoint: {enabled: [{name: Coscheduling}]}\n    \
                   queueSort: {enabled: [{name: Coscheduling}], disabled: [{name: '*'}]}\n  \
                   pluginConfig: [{name: Coscheduling, args: {permitWaitingTimeSeconds: 20}}]\n";
    let mut scheduler = Scheduler::start(&cluster, plugins, 11259)?;
    scheduler.node("gang-node", 2)?;
    let mut manifest = "apiVersion: scheduling.x-k8s.io/v1alpha1\nkind: PodGroup\n\
                        metadata: {name: trio}\nspec: {minMember: 3}\n"
        .to_owned();
    for name in ["a", "b", "c"] {
        manifest += &pod(name, "trio", "gang-node", "1", 11259);
    }
    ns.apply(&manifest)?;
    // Two would fit: all three are refused.
    wait_until("all of the group are refused", WAIT, || {
        let (all, placed, refused) = counts(&ns)?;
        ensure!(
            placed == 0,
            "{placed} pods of a group that cannot run have a node"
        );
        Ok((all, refused) == (3, 3))
    })?;
    scheduler.resize("gang-node", 3)?;
    wait_until("all of the group have a node", WAIT, || {
        Ok(counts(&ns)?.1 == 3)
    })?;
    clear(&ns)
}

#[test]
fn a_quota_refuses_what_is_beyond_its_max() -> Result<()> {
    let cluster = cluster()?;
    define(&cluster, "elasticquotas", "scheduling.x-k8s.io")?;
    let ns = Namespace::create(&cluster, "elastic")?;
    ns.apply(
        "apiVersion: scheduling.x-k8s.io/v1alpha1\nkind: ElasticQuota\nmetadata: {name: elastic}\n\
         spec: {min: {cpu: 4}, max: {cpu: 2}}\n",
    )?;
    let plugins = "  plugins:\n    multiPoint: {enabled: [{name: CapacityScheduling}]}\n    \
                   postFilter: {disabled: [{name: DefaultPreemption}]}\n";
    let mut scheduler = Scheduler::start(&cluster, plugins, 11359)?;
    scheduler.node("elastic-node", 8)?;
    ns.apply(&pod("first", "", "elastic-node", "2", 11359))?;
    wait_until("the first has a node", WAIT, || Ok(counts(&ns)?.1 == 1))?;
    ns.apply(&pod("second", "", "elastic-node", "1", 11359))?;
    wait_until("the second is refused", WAIT, || Ok(counts(&ns)?.2 == 1))?;
    let described = ns.kubectl(&["describe", "pod", "second"])?;
    ensure!(described.contains("is more than Max"), "{described}");
    ensure!(counts(&ns)?.1 == 1, "the second has a node");
    // What the first gives back the second gets.
    ns.kubectl(&["delete", "pod", "first", "--force", "--grace-period=0"])?;
    wait_until("the second has a node", WAIT, || {
        let pod = ns.json(&["get", "pod", "second"])?;
        Ok(pod["spec"]["nodeName"] == "elastic-node")
    })?;
    clear(&ns)
}
