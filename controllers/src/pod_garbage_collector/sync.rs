//! The decision: which Pods go, and why. Pure.

use std::collections::HashSet;
use std::sync::Arc;

use component_helpers::{node as node_helpers, pod as pod_helpers};
use k8s_openapi::api::core::v1::{Node, Pod};

/// Why a Pod goes; also the label of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Reason {
    Terminated,
    TerminatingOutOfService,
    Orphaned,
    TerminatingUnscheduled,
}

impl Reason {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Terminated => "terminated",
            Self::TerminatingOutOfService => "out-of-service",
            Self::Orphaned => "orphaned",
            Self::TerminatingUnscheduled => "unscheduled",
        }
    }
}

const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Nodes that Pods name and the cache does not know.
pub(super) fn missing_nodes(pods: &[Arc<Pod>], nodes: &[Arc<Node>]) -> HashSet<String> {
    let known: HashSet<&str> = nodes
        .iter()
        .filter_map(|n| n.metadata.name.as_deref())
        .collect();
    let named = pods.iter().filter_map(|pod| pod_helpers::node_name(pod));
    named
        .filter(|name| !known.contains(name))
        .map(ToString::to_string)
        .collect()
}

/// The Pods to delete, each once. `gone` are Nodes that are known to be gone for good.
pub(super) fn sync(
    pods: &[Arc<Pod>],
    nodes: &[Arc<Node>],
    gone: &HashSet<String>,
    threshold: usize,
) -> Vec<(Arc<Pod>, Reason)> {
    let mut found: Vec<(Arc<Pod>, Reason)> = Vec::new();
    let mut seen: HashSet<&str> = HashSet::new();
    let out_of_service: HashSet<&str> = nodes
        .iter()
        .filter(|node| !node_helpers::is_node_ready(node) && has_out_of_service_taint(node))
        .filter_map(|node| node.metadata.name.as_deref())
        .collect();
    for pod in pods {
        let node = pod_helpers::node_name(pod);
        let reason = match node {
            Some(node) if gone.contains(node) => Reason::Orphaned,
            Some(node) if pod_helpers::is_terminating(pod) && out_of_service.contains(node) => {
                Reason::TerminatingOutOfService
            }
            None if pod_helpers::is_terminating(pod) => Reason::TerminatingUnscheduled,
            _ => continue,
        };
        seen.insert(pod_helpers::uid(pod));
        found.push((pod.clone(), reason));
    }
    if threshold > 0 {
        let mut terminated: Vec<&Arc<Pod>> = pods.iter().filter(|pod| is_terminated(pod)).collect();
        let excess = terminated.len().saturating_sub(threshold);
        if excess > 0 {
            // Evicted ones first, then the oldest.
            terminated.sort_by_key(|pod| {
                let evicted =
                    pod.status.as_ref().and_then(|s| s.reason.as_deref()) == Some("Evicted");
                let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
                (!evicted, created, pod_helpers::name(pod).to_string())
            });
            let rest = terminated
                .into_iter()
                .take(excess)
                .filter(|pod| !seen.contains(pod_helpers::uid(pod)));
            found.extend(rest.map(|pod| (pod.clone(), Reason::Terminated)));
        }
    }
    found
}

fn is_terminated(pod: &Pod) -> bool {
    !matches!(
        pod_helpers::phase(pod),
        "" | "Pending" | "Running" | "Unknown"
    )
}

fn has_out_of_service_taint(node: &Node) -> bool {
    let taints = node
        .spec
        .as_ref()
        .and_then(|s| s.taints.as_deref())
        .unwrap_or_default();
    taints.iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, node: &str, phase: &str, terminating: bool) -> Arc<Pod> {
        let deletion = terminating.then_some("2026-01-01T00:00:00Z");
        let value = json!({
            "metadata": { "name": name, "uid": name, "namespace": "ns", "deletionTimestamp": deletion,
                "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "nodeName": node, "containers": [] }, "status": { "phase": phase },
        });
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn node(name: &str, ready: &str, tainted: bool) -> Arc<Node> {
        let taints = if tainted {
            json!([{ "key": OUT_OF_SERVICE, "effect": "NoExecute" }])
        } else {
            json!([])
        };
        let value = json!({ "metadata": { "name": name }, "spec": { "taints": taints },
            "status": { "conditions": [{ "type": "Ready", "status": ready }] } });
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn check(
        pods: &[Arc<Pod>],
        nodes: &[Arc<Node>],
        gone: &[&str],
        threshold: usize,
        expect: &[(&str, Reason)],
    ) {
        let gone = gone.iter().map(ToString::to_string).collect();
        let found = sync(pods, nodes, &gone, threshold);
        let found: Vec<(&str, Reason)> = found
            .iter()
            .map(|(p, r)| (p.metadata.name.as_deref().unwrap(), *r))
            .collect();
        assert_eq!(found, expect);
    }

    #[test]
    fn who_goes() {
        let (ready, dead) = (node("n1", "True", true), node("n2", "Unknown", true));
        check(
            &[pod("a", "gone", "Running", false)],
            &[],
            &["gone"],
            0,
            &[("a", Reason::Orphaned)],
        );
        check(&[pod("a", "n1", "Running", true)], &[ready], &[], 0, &[]);
        check(
            &[pod("a", "n2", "Running", true)],
            &[dead.clone()],
            &[],
            0,
            &[("a", Reason::TerminatingOutOfService)],
        );
        check(&[pod("a", "n2", "Running", false)], &[dead], &[], 0, &[]);
        check(
            &[pod("a", "", "Pending", true)],
            &[],
            &[],
            0,
            &[("a", Reason::TerminatingUnscheduled)],
        );
        let done = [
            pod("b", "n1", "Succeeded", false),
            pod("a", "n1", "Failed", false),
            pod("c", "n1", "Running", false),
        ];
        check(&done, &[], &[], 1, &[("a", Reason::Terminated)]);
        check(&done, &[], &[], 0, &[]);
    }

    #[test]
    fn finds_missing_nodes() {
        let missing = missing_nodes(
            &[pod("a", "n1", "", false), pod("b", "x", "", false)],
            &[node("n1", "True", false)],
        );
        assert_eq!(missing, HashSet::from(["x".to_string()]));
    }
}
