//! The Node object and its Lease, from a description. Pure.
//!
//! Upstream: `pkg/kubelet/kubelet_node_status.go`; the label `type` and the taint as `virtual-kubelet/virtual-kubelet` has them.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, Node, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use kubelet_provider::{Condition, NodeDescription};

/// Where leases of nodes are.
pub const LEASE_NAMESPACE: &str = "kube-node-lease";

/// Labels that say what the node is: an existing node gets them again, as from the kubelet.
pub const OWN_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "type",
];

/// Provider and port, the same for all nodes.
#[derive(Clone, Debug)]
pub struct Process {
    pub provider: String,
    pub version: String,
    /// 0: nothing is served.
    pub port: i32,
}

/// Conditions with their times, as far as they are known.
pub fn conditions(
    wanted: &[Condition],
    old: &[NodeCondition],
    now: Timestamp,
) -> Vec<NodeCondition> {
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let one = |condition: &Condition| {
        let before = old.iter().find(|o| o.type_ == condition.type_);
        let since = before
            .filter(|o| o.status == condition.status)
            .and_then(|o| o.last_transition_time.clone());
        NodeCondition {
            type_: condition.type_.clone(),
            status: condition.status.clone(),
            reason: Some(condition.reason.clone()),
            message: Some(condition.message.clone()),
            last_heartbeat_time: Some(now.clone()),
            last_transition_time: Some(since.unwrap_or_else(|| now.clone())),
        }
    };
    wanted.iter().map(one).collect()
}

/// The whole status.
pub fn status(
    node: &NodeDescription,
    process: &Process,
    conditions: Vec<NodeCondition>,
) -> NodeStatus {
    let allocatable = match node.allocatable.is_empty() {
        true => &node.capacity,
        false => &node.allocatable,
    };
    NodeStatus {
        capacity: Some(node.capacity.clone()),
        allocatable: Some(allocatable.clone()),
        addresses: Some(node.addresses.clone()),
        conditions: Some(conditions),
        daemon_endpoints: (process.port > 0).then(|| NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: process.port }),
        }),
        node_info: Some(NodeSystemInfo {
            architecture: node.architecture.clone(),
            operating_system: node.operating_system.clone(),
            os_image: node.os_image.clone(),
            kernel_version: node.kernel_version.clone(),
            kubelet_version: component_base::version::GIT_VERSION.to_owned(),
            container_runtime_version: format!("{}://{}", process.provider, process.version),
            ..NodeSystemInfo::default()
        }),
        ..NodeStatus::default()
    }
}

/// The object of a node that is new.
pub fn node(description: &NodeDescription, status: NodeStatus) -> Node {
    let taints = description.taints.clone();
    Node {
        metadata: ObjectMeta {
            name: Some(description.name.clone()),
            labels: Some(description.labels.clone()),
            annotations: (!description.annotations.is_empty())
                .then(|| description.annotations.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: (!taints.is_empty()).then_some(taints),
            provider_id: (!description.provider_id.is_empty())
                .then(|| description.provider_id.clone()),
            ..NodeSpec::default()
        }),
        status: Some(status),
    }
}

/// The lease, renewed. Without `base`: a new one, which goes when the node goes.
pub fn lease(
    base: Option<&Lease>,
    node: &str,
    node_uid: &str,
    seconds: i32,
    now: Timestamp,
) -> Lease {
    let mut lease = base.cloned().unwrap_or_else(|| Lease {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            namespace: Some(LEASE_NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        spec: None,
    });
    let owners = lease.metadata.owner_references.get_or_insert_default();
    let is_ours = |o: &&mut OwnerReference| o.kind == "Node" && o.name == node;
    match owners.iter_mut().find(is_ours) {
        // The node was deleted and made anew: the old owner would take the lease with it.
        Some(owner) => owner.uid = node_uid.to_owned(),
        None => owners.push(OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node.to_owned(),
            uid: node_uid.to_owned(),
            ..OwnerReference::default()
        }),
    }
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.holder_identity = Some(node.to_owned());
    spec.lease_duration_seconds = Some(seconds);
    spec.renew_time = Some(MicroTime(now));
    lease
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(status: &str) -> Condition {
        Condition {
            type_: "Ready".into(),
            status: status.into(),
            reason: "R".into(),
            message: String::new(),
        }
    }

    #[test]
    fn a_condition_keeps_its_time_while_its_status_stays() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let first = conditions(&[condition("True")], &[], at(10));
        let second = conditions(&[condition("True")], &first, at(20));
        assert_eq!(second[0].last_transition_time, Some(Time(at(10))));
        assert_eq!(second[0].last_heartbeat_time, Some(Time(at(20))));
        let third = conditions(&[condition("False")], &second, at(30));
        assert_eq!(third[0].last_transition_time, Some(Time(at(30))));
    }

    #[test]
    fn a_lease_belongs_to_the_node_there_is() {
        let now = Timestamp::from_second(5).unwrap();
        let old = lease(None, "n", "uid-1", 40, now);
        let new = lease(Some(&old), "n", "uid-2", 40, now);
        let owners = new.metadata.owner_references.unwrap();
        assert_eq!(owners.len(), 1);
        assert_eq!(owners[0].uid, "uid-2");
        assert_eq!(new.spec.unwrap().lease_duration_seconds, Some(40));
    }
}
