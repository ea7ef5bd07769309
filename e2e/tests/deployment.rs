//! Promise: a Deployment runs, from kubectl to processes on two nodes, and is reached by every name it has.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::probe::{Namespace, busybox_pod, cluster, wait_until};

const IMAGE: &str = "registry.k8s.io/e2e-test-images/nginx:1.28.0-2";

#[test]
fn is_reached_by_every_name_from_the_other_node() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "deployment-reached")?;
    ns.kubectl(&[
        "create",
        "deployment",
        "web",
        &format!("--image={IMAGE}"),
        "--replicas=6",
    ])?;
    ns.kubectl(&[
        "expose",
        "deployment",
        "web",
        "--port=80",
        "--type=NodePort",
    ])?;
    ns.wait_rollout("deployment/web", 120)?;

    let pods = ns.json(&["get", "pods", "-l", "app=web"])?;
    let pods = pods["items"].as_array().context("no pods")?.clone();
    let nodes: std::collections::BTreeSet<&str> = pods
        .iter()
        .filter_map(|pod| pod["spec"]["nodeName"].as_str())
        .collect();
    ensure!(
        nodes.len() == 2,
        "six pods are spread over both nodes, not over {nodes:?}"
    );

    let service = ns.json(&["get", "service", "web"])?;
    let cluster_ip = service["spec"]["clusterIP"]
        .as_str()
        .context("no clusterIP")?;
    let node_port = service["spec"]["ports"][0]["nodePort"]
        .as_u64()
        .context("no nodePort")?;
    for (client, other) in [("node-1", "node-2"), ("node-2", "node-1")] {
        let name = format!("client-{client}");
        ns.apply(&busybox_pod(&name, client, "sleep 3600"))?;
        ns.wait_ready(&format!("pod/{name}"), 60)?;
        let pod_ip = pods
            .iter()
            .find(|pod| pod["spec"]["nodeName"] == other)
            .and_then(|pod| pod["status"]["podIP"].as_str())
            .context("no pod on the other node")?;
        let other_ip = format!("172.30.0.1{}", &other[5..]);
        for target in [
            "web".to_owned(),
            format!("web.{}.svc.cluster.local", ns.name),
            cluster_ip.to_owned(),
            pod_ip.to_owned(),
            format!("{other_ip}:{node_port}"),
        ] {
            // Readiness has reached the API; the other node's rules follow a moment later.
            wait_until(
                &format!("{client} to reach {target}"),
                Duration::from_secs(10),
                || {
                    let page = ns.kubectl(&[
                        "exec",
                        &name,
                        "--",
                        "wget",
                        "-q",
                        "-T",
                        "3",
                        "-O",
                        "-",
                        &format!("http://{target}/"),
                    ])?;
                    ensure!(page.contains("Welcome to nginx!"), "{target} gave {page:?}");
                    Ok(true)
                },
            )?;
        }
    }
    ns.delete()
}

#[test]
fn rolls_out_restarts_undoes_and_scales() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "deployment-rolls")?;
    ns.kubectl(&[
        "create",
        "deployment",
        "web",
        &format!("--image={IMAGE}"),
        "--replicas=3",
    ])?;
    ns.wait_rollout("deployment/web", 120)?;

    ns.kubectl(&["rollout", "restart", "deployment/web"])?;
    ns.wait_rollout("deployment/web", 120)?;
    let sets = ns.json(&["get", "replicasets", "-l", "app=web"])?;
    ensure!(
        sets["items"].as_array().is_some_and(|sets| sets.len() == 2),
        "a restart makes a second ReplicaSet"
    );

    ns.kubectl(&[
        "set",
        "image",
        "deployment/web",
        "nginx=registry.k8s.io/e2e-test-images/agnhost:2.66.1",
    ])?;
    ns.wait_rollout("deployment/web", 120)?;
    let history = ns.kubectl(&["rollout", "history", "deployment/web"])?;
    ensure!(
        history
            .lines()
            .filter(|line| line.starts_with(|c: char| c.is_ascii_digit()))
            .count()
            == 3,
        "{history}"
    );

    ns.kubectl(&["rollout", "undo", "deployment/web"])?;
    ns.wait_rollout("deployment/web", 120)?;
    let image = ns.kubectl(&[
        "get",
        "deployment",
        "web",
        "-o",
        "jsonpath={.spec.template.spec.containers[0].image}",
    ])?;
    ensure!(image == IMAGE, "undo went back to {image}");

    ns.kubectl(&["scale", "deployment/web", "--replicas=5"])?;
    ns.wait_rollout("deployment/web", 120)?;
    ns.kubectl(&["scale", "deployment/web", "--replicas=0"])?;
    ns.kubectl(&[
        "wait",
        "--for=delete",
        "pod",
        "-l",
        "app=web",
        "--timeout=90s",
    ])?;

    let description = ns.kubectl(&["describe", "deployment", "web"])?;
    for part in ["ScalingReplicaSet", "Available", "Progressing", "0 desired"] {
        ensure!(
            description.contains(part),
            "describe lacks {part:?}:\n{description}"
        );
    }
    ns.kubectl(&["delete", "deployment", "web"])?;
    wait_until(
        "its ReplicaSets to be collected",
        Duration::from_secs(60),
        || {
            Ok(ns
                .kubectl(&["get", "replicasets", "-o", "name"])?
                .trim()
                .is_empty())
        },
    )?;
    ns.delete()
}

#[test]
fn moves_off_a_drained_node() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "deployment-drained")?;
    ns.kubectl(&[
        "create",
        "deployment",
        "web",
        &format!("--image={IMAGE}"),
        "--replicas=4",
    ])?;
    ns.wait_rollout("deployment/web", 120)?;
    let drained = cluster.kubectl(&[
        "drain",
        "node-2",
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--timeout=120s",
    ]);
    let moved = drained.and_then(|_| {
        ns.wait_rollout("deployment/web", 120)?;
        ns.kubectl(&[
            "get",
            "pods",
            "-l",
            "app=web",
            "--field-selector=spec.nodeName=node-2",
            "-o",
            "name",
        ])
    });
    cluster.kubectl(&["uncordon", "node-2"])?;
    ensure!(
        moved?.trim().is_empty(),
        "pods are left on the drained node"
    );
    cluster.kubectl(&[
        "-n",
        "kube-system",
        "rollout",
        "status",
        "deployment/coredns",
        "--timeout=120s",
    ])?;
    ns.delete()
}
