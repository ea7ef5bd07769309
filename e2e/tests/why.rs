//! Promise: `kubectl gantry` says why a pod has no node and where pods would go if, writes nothing, and answers those alone who may ask.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::Cluster;
use e2e::probe::{Namespace, cluster, wait_until};
use e2e::step::output;
use serde_json::Value;

const PAUSE: &str = "registry.k8s.io/pause:3.10.2";

fn pod(name: &str, cpu: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
         containers: [{{name: main, image: '{PAUSE}', resources: {{requests: {{cpu: '{cpu}'}}}}}}]\n"
    )
}

/// The scheduler that leads: it alone can answer.
fn leader(cluster: &Cluster, kubeconfig: &str) -> Result<String> {
    let mut found = String::new();
    wait_until("a scheduler that leads", Duration::from_secs(30), || {
        for replica in 0..u16::from(cluster.state.options.replicas) {
            let address = format!("https://127.0.0.1:{}", 10259 + replica * 100);
            let mut command = gantry(cluster, &address, "why", kubeconfig);
            if output(command.arg("whatif")).is_ok() {
                found = address;
                return Ok(true);
            }
        }
        Ok(false)
    })?;
    Ok(found)
}

/// In the control plane's place, where the schedulers' ports are. Their certificates are their own.
fn gantry(cluster: &Cluster, scheduler: &str, namespace: &str, kubeconfig: &str) -> Command {
    let program = cluster.outputs.ours("kubectl-gantry");
    let mut command = cluster.control_plane().command(program);
    command.args([
        "--insecure-skip-tls-verify",
        "--scheduler",
        scheduler,
        "--kubeconfig",
        kubeconfig,
        "-n",
        namespace,
    ]);
    command
}

#[test]
fn the_scheduler_says_why_and_what_if() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "why")?;
    let admin = cluster
        .layout
        .kubeconfig("admin-inside")
        .display()
        .to_string();
    let leader = leader(&cluster, &admin)?;
    ns.apply(&pod("large", "1000"))?;
    wait_until("the pod was tried", Duration::from_secs(30), || {
        Ok(ns.kubectl(&["get", "events"])?.contains("FailedScheduling"))
    })?;

    let why = output(gantry(&cluster, &leader, &ns.name, &admin).args(["why", "pod", "large"]))?;
    for words in [
        "fits on none of",
        "NodeResourcesFit: Insufficient cpu",
        "cpu asks for 1000000m",
    ] {
        ensure!(why.contains(words), "no {words:?} in: {why}");
    }
    let json = output(gantry(&cluster, &leader, &ns.name, &admin).args([
        "-o",
        "json",
        "why",
        "pod/large",
    ]))?;
    let why: Value = serde_json::from_str(&json)?;
    ensure!(why["groups"][0]["plugin"] == "NodeResourcesFit", "{why}");

    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), pod("small", "10m"))?;
    let path = file.path().display().to_string();
    let answer = output(
        gantry(&cluster, &leader, &ns.name, &admin).args(["whatif", "-f", &path, "-o", "json"]),
    )?;
    let answer: Value = serde_json::from_str(&answer)?;
    let pods = answer["pods"].as_array().context("pods of the answer")?;
    let small = pods.iter().find(|pod| pod["name"] == "small");
    let node = small
        .and_then(|pod| pod["node"].as_str())
        .unwrap_or_default();
    ensure!(node.starts_with("node-"), "{answer}");
    let there = ns.kubectl(&["get", "pods", "-o", "name"])?;
    ensure!(there.trim() == "pod/large", "nothing is made: {there}");

    // Whoever may not ask is told so, and nothing else.
    let token = ns.kubectl(&["create", "token", "default"])?;
    let text = ns.kubectl(&[
        "config",
        "view",
        "--raw",
        "-o",
        "json",
        "--kubeconfig",
        &admin,
    ])?;
    let mut config: Value = serde_json::from_str(&text)?;
    config["users"][0]["user"] = serde_json::json!({ "token": token.trim() });
    std::fs::write(file.path(), config.to_string())?;
    for question in [["why", "pod", "large"].as_slice(), &["whatif"]] {
        let refused = gantry(&cluster, &leader, &ns.name, &path)
            .args(question)
            .output()?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        let shown = String::from_utf8_lossy(&refused.stdout).into_owned();
        ensure!(
            !refused.status.success() && shown.is_empty(),
            "{question:?}: {shown}"
        );
        ensure!(
            said.to_lowercase().contains("forbidden"),
            "{question:?}: {said}"
        );
    }
    ns.delete()
}
