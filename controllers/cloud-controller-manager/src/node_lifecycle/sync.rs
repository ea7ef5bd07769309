//! The decisions about a Node. Pure.

use controller_runtime::Action;
use k8s_openapi::api::core::v1::{Node, Taint};
use serde_json::json;

/// On Nodes whose instances are shut down.
pub const SHUTDOWN: &str = "node.cloudprovider.kubernetes.io/shutdown";

/// Whether the Node says that it is ready; then the cloud need not be asked.
pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ready = conditions.and_then(|all| all.iter().find(|c| c.type_ == "Ready"));
    ready.is_some_and(|ready| ready.status == "True")
}

fn taints(node: &Node) -> &[Taint] {
    let spec = node.spec.as_ref();
    spec.and_then(|s| s.taints.as_deref()).unwrap_or_default()
}

/// Makes the Node's taint right; `None` when it is.
pub fn taint(node: &Node, shut_down: bool) -> Option<Action> {
    let has = |taint: &&Taint| taint.key == SHUTDOWN && taint.effect == "NoSchedule";
    if taints(node).iter().any(|taint| has(&taint)) == shut_down {
        return None;
    }
    let mut all: Vec<Taint> = taints(node).iter().filter(|t| !has(t)).cloned().collect();
    if shut_down {
        all.push(Taint {
            key: SHUTDOWN.to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        });
    }
    let name = node.metadata.name.as_deref().unwrap_or_default();
    // Taints are one list; the version keeps a taint that another adds meanwhile.
    let patch = json!({
        "metadata": { "resourceVersion": node.metadata.resource_version },
        "spec": { "taints": all },
    });
    Some(Action::merge_patch::<Node>("", name, patch))
}
