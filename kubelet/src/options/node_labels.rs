//! Which labels a node may give itself (`--node-labels`); pure.
//!
//! The API server lets no node set others in the namespaces of Kubernetes: a node with one of these would never register. Upstream:
//! `ValidateKubeletFlags` in `cmd/kubelet/app/options`, `k8s.io/kubelet/pkg/apis/well_known_labels.go`, v1.37.

use std::collections::BTreeMap;

use component_helpers::labels::{validate_label_key, validate_label_value};

/// Upstream: `kubeletLabels`.
const ALLOWED: &[&str] = &[
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
/// Upstream: `kubeletLabelNamespaces`.
const ALLOWED_NAMESPACES: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];
const OF_KUBERNETES: &[&str] = &["k8s.io", "kubernetes.io"];

fn is_in(namespace: &str, of: &[&str]) -> bool {
    of.iter().any(|parent| {
        let below = namespace.strip_suffix(parent);
        below.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

fn is_allowed(key: &str) -> bool {
    let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
    !is_in(namespace, OF_KUBERNETES)
        || ALLOWED.contains(&key)
        || is_in(namespace, ALLOWED_NAMESPACES)
}

/// # Errors
/// The label and what is wrong with it: the value of the flag, and the reason.
pub(super) fn validate(labels: &BTreeMap<String, String>) -> Result<(), (String, String)> {
    for (key, value) in labels {
        let label = format!("{key}={value}");
        if !is_allowed(key) {
            let reason = format!(
                "unknown 'kubernetes.io' or 'k8s.io' label {key:?}: labels in the 'kubernetes.io' namespace must begin with an \
                 allowed prefix ({}) or be in the specifically allowed set ({})",
                ALLOWED_NAMESPACES.join(", "),
                ALLOWED.join(", ")
            );
            return Err((label, reason));
        }
        if let Err(error) = validate_label_key(key) {
            return Err((label, error));
        }
        if let Err(error) = validate_label_value(value) {
            return Err((label, error));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_gives_itself_what_the_api_server_lets_it() {
        let check = |key: &str, value: &str, good: bool| {
            let labels = [(key.to_owned(), value.to_owned())].into();
            assert_eq!(validate(&labels).is_ok(), good, "{key}={value}");
        };
        check("tier", "a", true);
        check("example.com/tier", "", true);
        check("topology.kubernetes.io/zone", "z", true);
        check("node.kubernetes.io/anything", "x", true);
        check("my.kubelet.kubernetes.io/x", "x", true);
        check("notkubernetes.io/x", "x", true);
        check("node-role.kubernetes.io/worker", "", false);
        check("kubernetes.io/role", "x", false);
        check("example.k8s.io/x", "x", false);
        check("notnode.kubernetes.io/x", "x", false);
        check("a b", "x", false);
        check("tier", "not ok", false);
    }
}
