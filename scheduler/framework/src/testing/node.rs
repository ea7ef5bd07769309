//! A builder of nodes.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ContainerImage, Node, NodeCondition, NodeSpec, NodeStatus, Taint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{labels, quantities};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

/// Builds a [`Node`].
#[derive(Debug, Clone)]
#[must_use]
pub struct NodeBuilder(Node);

/// Starts a node with the label `kubernetes.io/hostname` and room for 110 pods.
pub fn make_node(name: &str) -> NodeBuilder {
    NodeBuilder(Node {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            uid: Some(format!("uid-{name}")),
            labels: Some(labels(&[("kubernetes.io/hostname", name)])),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec::default()),
        status: Some(NodeStatus {
            allocatable: Some(quantities(&[("pods", "110")])),
            ..NodeStatus::default()
        }),
    })
}

impl NodeBuilder {
    /// Any change.
    pub fn with(mut self, f: impl FnOnce(&mut Node)) -> Self {
        f(&mut self.0);
        self
    }
    /// Adds capacity and allocatable.
    pub fn capacity(self, resources: &[(&str, &str)]) -> Self {
        self.with(|node| {
            let status = node.status.get_or_insert_default();
            status
                .capacity
                .get_or_insert_default()
                .extend(quantities(resources));
            status
                .allocatable
                .get_or_insert_default()
                .extend(quantities(resources));
        })
    }
    /// Adds a label.
    pub fn label(self, key: &str, value: &str) -> Self {
        self.with(|node| {
            node.metadata
                .labels
                .get_or_insert_default()
                .insert(key.to_owned(), value.to_owned());
        })
    }
    /// The zone label.
    pub fn zone(self, zone: &str) -> Self {
        self.label("topology.kubernetes.io/zone", zone)
    }
    /// Adds a taint.
    pub fn taint(self, key: &str, value: &str, effect: &str) -> Self {
        self.with(|node| {
            let taint = Taint {
                key: key.to_owned(),
                value: (!value.is_empty()).then(|| value.to_owned()),
                effect: effect.to_owned(),
                time_added: None,
            };
            node.spec
                .get_or_insert_default()
                .taints
                .get_or_insert_default()
                .push(taint);
        })
    }
    /// `spec.unschedulable`.
    pub fn unschedulable(self, unschedulable: bool) -> Self {
        self.with(|node| node.spec.get_or_insert_default().unschedulable = Some(unschedulable))
    }
    /// Adds a condition.
    pub fn condition(self, type_: &str, status: &str) -> Self {
        self.with(|node| {
            let condition = NodeCondition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                ..NodeCondition::default()
            };
            node.status
                .get_or_insert_default()
                .conditions
                .get_or_insert_default()
                .push(condition);
        })
    }
    /// Adds an image.
    pub fn image(self, name: &str, size_bytes: i64) -> Self {
        self.with(|node| {
            let image = ContainerImage {
                names: Some(vec![name.to_owned()]),
                size_bytes: Some(size_bytes),
            };
            node.status
                .get_or_insert_default()
                .images
                .get_or_insert_default()
                .push(image);
        })
    }
    /// The node.
    pub fn build(self) -> Arc<Node> {
        Arc::new(self.0)
    }
    /// The node with these pods on it.
    pub fn info(self, pods: impl IntoIterator<Item = Arc<PodInfo>>) -> NodeInfo {
        let mut info = NodeInfo::new(self.build());
        pods.into_iter().for_each(|pod| info.add_pod(pod));
        info
    }
}
