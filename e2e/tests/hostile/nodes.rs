//! What somebody who may make a Node (a bootstrap token may, of its own) can do to the traffic of the others' pods.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::cluster::{Cluster, layout};
use e2e::probe::{cluster, wait_until};
use e2e::step::output;

/// A Node with these ranges for its pods, at an address of the nodes' network.
fn node(cluster: &Cluster, name: &str, host: u8, ranges: &[&str]) -> Result<()> {
    let ranges = format!("\"{}\"", ranges.join("\", \""));
    cluster.apply(&format!(
        "{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}, spec: {{unschedulable: true, podCIDR: {}, podCIDRs: [{ranges}]}}}}",
        ranges.split(',').next().unwrap_or_default(),
    ))?;
    let address = layout::node_ip(host);
    let status = format!(
        "{{\"status\": {{\"addresses\": [{{\"type\": \"InternalIP\", \"address\": \"{address}\"}}]}}}}"
    );
    let patch = ["patch", "node", name, "--subresource=status", "-p", &status];
    cluster.kubectl(&patch).map(drop)
}

fn routes(cluster: &Cluster) -> Result<String> {
    let mut ip = cluster.node_place("node-1").command("ip");
    output(ip.args(["route", "show", "proto", "71"]))
}

#[test]
fn a_node_draws_no_traffic_by_the_ranges_it_claims() -> Result<()> {
    let cluster = cluster()?;
    let own = cluster.kubectl(&["get", "node", "node-1", "-o", "jsonpath={.spec.podCIDR}"])?;
    let own = own.trim();
    let half = own.replace("/24", "/25");
    ensure!(half != own, "node-1 has {own}");
    let claims = [
        ("a-part-of-node-1s", half.as_str()),
        ("the-cluster", "10.244.0.0/16"),
        ("the-internet", "64.0.0.0/3"),
        ("everything", "0.0.0.0/0"),
        ("the-nodes", "172.30.0.0/24"),
        ("metadata", "169.254.169.254/32"),
    ];
    let (sound, honest) = ("10.244.250.0/24", "honest");
    let names = claims.iter().map(|(name, _)| *name).chain([honest]);
    let names: Vec<String> = names.map(|name| format!("claims-{name}")).collect();
    let outcome = (|| {
        for (host, (_, range)) in (100..).zip(&claims) {
            node(&cluster, &names[usize::from(host - 100)], host, &[range])?;
        }
        let last = names.last().expect("there are some");
        node(&cluster, last, 120, &[sound])?;
        let what = format!("a route to {sound}");
        wait_until(&what, Duration::from_secs(60), || {
            Ok(routes(&cluster)?.contains(sound))
        })?;
        let routes = routes(&cluster)?;
        for (_, range) in claims {
            let shown = range.strip_suffix("/32").unwrap_or(range);
            let begins = |line: &str| line.split(' ').next() == Some(shown);
            ensure!(!routes.lines().any(begins), "{range} has a route: {routes}");
        }
        ensure!(
            !routes.lines().any(|line| line.starts_with("default")),
            "{routes}"
        );
        for host in 100..106 {
            let via = layout::node_ip(host).to_string();
            ensure!(
                !routes.contains(&via),
                "there are routes by {via}: {routes}"
            );
        }
        Ok(())
    })();
    let mut delete = vec!["delete", "node", "--ignore-not-found"];
    delete.extend(names.iter().map(String::as_str));
    cluster.kubectl(&delete)?;
    outcome
}
