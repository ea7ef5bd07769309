//! Which Services want a load balancer, when it is to be looked at again, and which Nodes it leads to. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use component_base::flags::parse_bool;
use controller_runtime::Action;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Node, Service};
use serde_json::json;

/// Keeps a Service until its load balancer is gone.
pub const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// On Nodes that are no targets.
const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// The cluster autoscaler is about to delete the Node.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Whether the Service wants a load balancer of the cloud's. One with a class other than `class`, the cloud's own, wants another's.
pub fn wants_load_balancer(service: &Service, class: Option<&str>) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        let of = spec.load_balancer_class.as_deref();
        spec.type_.as_deref() == Some("LoadBalancer") && (of.is_none() || of == class)
    })
}

/// Whether the Service has no address of a load balancer.
pub fn has_no_address(service: &Service) -> bool {
    let status = service.status.as_ref();
    let status = status.and_then(|s| s.load_balancer.as_ref());
    status.is_none_or(|status| ingress(status).is_empty())
}

/// Whether the finalizer is there.
pub fn has_finalizer(service: &Service) -> bool {
    let finalizers = service.metadata.finalizers.as_ref();
    finalizers.is_some_and(|all| all.iter().any(|f| f == FINALIZER))
}

/// Whether the Service has a load balancer that must go.
pub fn needs_cleanup(service: &Service) -> bool {
    let is_balanced = service
        .spec
        .as_ref()
        .is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer"));
    has_finalizer(service) && (service.metadata.deletion_timestamp.is_some() || !is_balanced)
}

/// Whether something changed that a load balancer could be made of.
pub fn needs_update(old: &Service, new: &Service, class: Option<&str>) -> bool {
    let wants = wants_load_balancer(new, class);
    if wants_load_balancer(old, class) != wants {
        return true;
    }
    if !wants {
        return false;
    }
    let (Some(a), Some(b)) = (&old.spec, &new.spec) else {
        return true;
    };
    a.load_balancer_source_ranges != b.load_balancer_source_ranges
        || a.ports != b.ports
        || a.session_affinity != b.session_affinity
        || a.session_affinity_config != b.session_affinity_config
        || a.load_balancer_ip != b.load_balancer_ip
        || a.external_ips != b.external_ips
        || a.external_traffic_policy != b.external_traffic_policy
        || a.health_check_node_port != b.health_check_node_port
        || a.ip_families != b.ip_families
        || a.ip_family_policy != b.ip_family_policy
        || old.metadata.annotations != new.metadata.annotations
        || old.metadata.uid != new.metadata.uid
}

fn is_included(node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    match labels.and_then(|labels| labels.get(EXCLUDE)) {
        None => true,
        // What is no boolean excludes, too.
        Some(value) => parse_bool(value) == Some(false),
    }
}

/// Whether load balancers lead to a Node.
pub fn is_target(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    let doomed = taints.is_some_and(|taints| taints.iter().any(|t| t.key == TO_BE_DELETED));
    node.metadata.deletion_timestamp.is_none() && is_included(node) && !doomed
}

fn provider_id(node: &Node) -> &str {
    let spec = node.spec.as_ref();
    spec.and_then(|s| s.provider_id.as_deref())
        .unwrap_or_default()
}

/// Whether a Node's change is worth looking at all load balancers. That it is about to be deleted is not: its connections are to drain.
pub fn should_sync_node(old: &Node, new: &Node) -> bool {
    is_included(old) != is_included(new) || provider_id(old) != provider_id(new)
}

/// What of the Nodes a load balancer was last told: names and provider ids.
pub type Told = BTreeMap<String, String>;

/// What of the Nodes matters to a load balancer.
pub fn told(nodes: &[Arc<Node>]) -> Told {
    let name = |node: &Node| node.metadata.name.clone().unwrap_or_default();
    nodes
        .iter()
        .map(|node| (name(node), provider_id(node).to_owned()))
        .collect()
}

/// The finalizer is put on or taken off; `None` when it is as wanted.
pub fn finalizer(service: &Service, wanted: bool) -> Option<Action> {
    if has_finalizer(service) == wanted {
        return None;
    }
    let meta = &service.metadata;
    let mut all = meta.finalizers.clone().unwrap_or_default();
    all.retain(|finalizer| finalizer != FINALIZER);
    if wanted {
        all.push(FINALIZER.to_owned());
    }
    // The whole list goes; the version keeps one that another adds meanwhile.
    let patch =
        json!({ "metadata": { "resourceVersion": meta.resource_version, "finalizers": all } });
    let (namespace, name) = key(service);
    Some(Action::Patch {
        target: controller_runtime::executor::Target::of::<Service>(namespace, name)
            .subresource("status"),
        kind: controller_runtime::PatchKind::Merge,
        patch,
    })
}

/// Namespace and name.
pub fn key(service: &Service) -> (&str, &str) {
    let meta = &service.metadata;
    (
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

fn ingress(status: &LoadBalancerStatus) -> &[LoadBalancerIngress] {
    status.ingress.as_deref().unwrap_or_default()
}

/// The load balancer's status is written; `None` when it is there.
pub fn status(service: &Service, wanted: &LoadBalancerStatus) -> Option<Action> {
    let current = service
        .status
        .as_ref()
        .and_then(|s| s.load_balancer.clone());
    if ingress(&current.unwrap_or_default()) == ingress(wanted) {
        return None;
    }
    let (namespace, name) = key(service);
    let uid = &service.metadata.uid;
    let ingress = Some(ingress(wanted)).filter(|all| !all.is_empty());
    let patch =
        json!({ "metadata": { "uid": uid }, "status": { "loadBalancer": { "ingress": ingress } } });
    Some(Action::Patch {
        target: controller_runtime::executor::Target::of::<Service>(namespace, name)
            .subresource("status"),
        kind: controller_runtime::PatchKind::Merge,
        patch,
    })
}
