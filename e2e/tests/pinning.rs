//! Promise: under the CPU manager's policy static a Guaranteed pod with whole CPUs has them for itself, everybody else has the rest, and
//! when it is gone everything is everybody's again: `cargo e2e test pinning`, on a machine of two CPUs or more.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::Cluster;
use e2e::probe::{Namespace, cluster, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);
const IMAGE: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-2";
const NODE: &str = "node-2";
const KUBELET: &str = "kubelet-node-2";
const STATIC: &str = "cpuManagerPolicy: static\nreservedSystemCPUs: \"0\"\n";

/// A node whose kubelet has another configuration until this ends.
struct Configured {
    cluster: Cluster,
    path: PathBuf,
    before: String,
}

impl Configured {
    fn with(more: &str) -> Result<Self> {
        let cluster = cluster()?;
        let path = cluster
            .layout
            .node_dir(NODE)
            .join("lib/kubelet/config.yaml");
        let before =
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let mut node = Self {
            cluster,
            path,
            before,
        };
        node.start(&format!("{}{more}", node.before))?;
        Ok(node)
    }

    /// As an administrator does it: stopped, another policy, no file of the one before, started.
    fn start(&mut self, config: &str) -> Result<()> {
        let process = self.cluster.process(KUBELET)?.clone();
        process.signal(Signal::SIGTERM)?;
        ensure!(
            process.wait_gone(Duration::from_secs(30)),
            "{KUBELET} does not end"
        );
        fs::write(&self.path, config)?;
        let state = self.path.with_file_name("cpu_manager_state");
        if state.exists() {
            fs::remove_file(state)?;
        }
        self.cluster.restart(KUBELET)?;
        wait_until("the kubelet to answer", SOON, || {
            let healthz = format!("/api/v1/nodes/{NODE}/proxy/healthz");
            Ok(self.cluster.kubectl(&["get", "--raw", &healthz]).is_ok())
        })
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        let before = self.before.clone();
        if let Err(error) = self.start(&before) {
            eprintln!("{NODE} keeps its configuration of the test: {error:#}");
        }
        let _ = self.cluster.kubectl(&["uncordon", NODE]);
    }
}

/// Whatever asks for CPUs there goes elsewhere: one CPU is all the node has to give.
fn make_room(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["cordon", NODE])?;
    let on_node = format!("spec.nodeName={NODE}");
    let pods = cluster.kubectl(&[
        "get",
        "pods",
        "-A",
        "--field-selector",
        &on_node,
        "-o",
        "json",
    ])?;
    let pods: Value = serde_json::from_str(&pods)?;
    for pod in pods["items"].as_array().context("a list of pods")? {
        let owners = pod["metadata"]["ownerReferences"].as_array();
        let of_replica_set =
            owners.is_some_and(|all| all.iter().any(|o| o["kind"] == "ReplicaSet"));
        let containers = pod["spec"]["containers"].as_array();
        let asks = containers.is_some_and(|all| {
            all.iter()
                .any(|c| !c["resources"]["requests"]["cpu"].is_null())
        });
        if let (true, true, Some(name), Some(namespace)) = (
            of_replica_set,
            asks,
            pod["metadata"]["name"].as_str(),
            pod["metadata"]["namespace"].as_str(),
        ) {
            cluster.kubectl(&["delete", "pod", "-n", namespace, name, "--timeout=60s"])?;
        }
    }
    Ok(())
}

fn pod(name: &str, resources: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: {NODE}, terminationGracePeriodSeconds: 1, \
         containers: [{{name: c, image: '{IMAGE}', command: [sleep, '3600'], resources: {resources}}}]}}}}"
    )
}

/// Where the pod's first process may run, as the kernel says.
fn runs_on(ns: &Namespace<'_>, pod: &str) -> Result<String> {
    let status = ns.kubectl(&[
        "exec",
        pod,
        "--",
        "grep",
        "Cpus_allowed_list",
        "/proc/1/status",
    ])?;
    let list = status.split_whitespace().last();
    Ok(list.unwrap_or_default().to_owned())
}

fn until_on(ns: &Namespace<'_>, pod: &str, cpus: &str) -> Result<()> {
    let mut last = String::new();
    let seen = wait_until(&format!("{pod} to run on {cpus}"), SOON, || {
        last = runs_on(ns, pod)?;
        Ok(last == cpus)
    });
    seen.with_context(|| format!("{pod} runs on {last:?}"))
}

/// `0`, `0-1`, `0,2-3`
fn list(cpus: impl IntoIterator<Item = usize>) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for cpu in cpus {
        match ranges.last_mut() {
            Some((_, end)) if *end + 1 == cpu => *end = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let texts = ranges.into_iter().map(|(a, b)| match a == b {
        true => a.to_string(),
        false => format!("{a}-{b}"),
    });
    texts.collect::<Vec<_>>().join(",")
}

#[test]
#[ignore = "changes how a node is configured: `cargo e2e test pinning` runs it"]
fn a_guaranteed_pod_has_its_cpu_for_itself_and_gives_it_back() -> Result<()> {
    let node = Configured::with(STATIC)?;
    make_room(&node.cluster)?;
    let ns = Namespace::create(&node.cluster, "pinning")?;
    let capacity = ns.kubectl(&["get", "node", NODE, "-o", "jsonpath={.status.capacity.cpu}"])?;
    let cpus: usize = capacity.parse()?;
    ensure!(cpus >= 2, "a machine of {cpus} CPU has none to give");

    ns.apply(&pod("burstable", "{requests: {memory: 16Mi}}"))?;
    ns.wait_ready("pod/burstable", 60)?;
    until_on(&ns, "burstable", &list(0..cpus))?;

    let own = "{cpu: '1', memory: 32Mi}";
    ns.apply(&pod("own", &format!("{{requests: {own}, limits: {own}}}")))?;
    ns.wait_ready("pod/own", 60)?;
    let its = runs_on(&ns, "own")?;
    let its: usize = its
        .parse()
        .with_context(|| format!("own runs on {its:?}"))?;
    ensure!(its != 0, "it has the reserved CPU");
    if cpus == 2 {
        ensure!(its == 1, "it has {its}");
    }
    until_on(&ns, "burstable", &list((0..cpus).filter(|cpu| *cpu != its)))?;

    ns.kubectl(&["delete", "pod", "own", "--wait=true", "--timeout=60s"])?;
    until_on(&ns, "burstable", &list(0..cpus))?;
    ns.delete()
}
