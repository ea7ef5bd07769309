//! Promise: an image runs however it was built: merged bases, no base, every packing and dialect, a hundred layers, lists of
//! platforms; what is no image for this node, or holds nothing to run, is refused with a reason that says so.
//!
//! `cargo e2e test images` runs the long form too: an image of a gigabyte.

#[path = "images/shapes.rs"]
mod shapes;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::probe::{Namespace, cluster, wait_until};
use e2e::registry::Registry;
use serde_json::{Value, json};
use shapes::{Expect, Shape};

const NODE: &str = "node-1";

fn pod(registry: &Registry, shape: &Shape) -> Value {
    let mut container =
        json!({"name": "c", "image": format!("{}/x:{}", registry.address, shape.name)});
    if let Some(command) = &shape.command {
        container["command"] = json!(command);
    }
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": shape.name},
        "spec": {"nodeName": NODE, "restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container]},
    })
}

/// What a container's state says: its reason and message, or that it is not there yet.
fn told(pod: &Value) -> (String, String) {
    let state = &pod["status"]["containerStatuses"][0]["state"];
    for kind in ["waiting", "terminated"] {
        if let Some(state) = state.get(kind) {
            let text = |field: &str| state[field].as_str().unwrap_or_default().to_owned();
            return (text("reason"), text("message"));
        }
    }
    (String::new(), String::new())
}

fn check(ns: &Namespace<'_>, shape: &Shape, deadline: Instant) -> Result<()> {
    let mut last = String::new();
    let left = deadline.saturating_duration_since(Instant::now());
    wait_until(shape.name, left, || {
        let pod = ns.json(&["get", "pod", shape.name])?;
        let (reason, message) = told(&pod);
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        last = format!("{phase} {reason} {message}");
        match &shape.expect {
            Expect::Says(words) => match phase {
                "Succeeded" => {
                    let log = ns.kubectl(&["logs", shape.name])?;
                    ensure!(log.contains(words), "said {log:?}, not {words:?}");
                    Ok(true)
                }
                _ => Ok(false),
            },
            Expect::Refused(reasons, words) => {
                Ok(reasons.contains(&reason.as_str()) && message.contains(words))
            }
        }
    })
    .with_context(|| format!("{}: {last}", shape.name))
}

#[test]
fn every_shape_of_image_runs_or_says_why_not() -> Result<()> {
    let cluster = cluster()?;
    let registry = Registry::start(&cluster, NODE)?;
    let busybox = std::fs::read(cluster.outputs.images().join("built/busybox"))
        .context("the images are not built")?;
    let long = std::env::var_os("GANTRY_E2E_LONG").is_some();
    let shapes = shapes::all(&registry, &busybox, long);
    ensure!(shapes.len() >= 26, "{} shapes", shapes.len());
    let ns = Namespace::create(&cluster, "images")?;
    let pods: Vec<Value> = shapes.iter().map(|shape| pod(&registry, shape)).collect();
    ns.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string())?;
    let deadline = Instant::now() + Duration::from_secs(if long { 300 } else { 110 });
    let mut wrong = Vec::new();
    for shape in &shapes {
        if let Err(error) = check(&ns, shape, deadline) {
            wrong.push(format!("{error:#}"));
        }
    }
    if !wrong.is_empty() {
        bail!(
            "{} of {} shapes are wrong:\n{}",
            wrong.len(),
            shapes.len(),
            wrong.join("\n")
        );
    }
    ns.delete()
}
