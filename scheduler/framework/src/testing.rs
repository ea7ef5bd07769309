//! Builders of pods and nodes, and checks every plugin's forms must pass, for the tests of plugins (in tree and out of tree).

mod forms;
mod node;
mod pod;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::snapshot::Snapshot;

pub use forms::{assert_forms_agree, normalized, run_view};
pub use node::{NodeBuilder, make_node};
pub use pod::{PodBuilder, make_pod};

/// A map of labels or resources from pairs.
pub fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn quantities(pairs: &[(&str, &str)]) -> BTreeMap<String, Quantity> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), Quantity((*v).to_owned())))
        .collect()
}

/// A selector of equal labels.
pub fn selector(pairs: &[(&str, &str)]) -> LabelSelector {
    LabelSelector {
        match_labels: Some(labels(pairs)),
        ..LabelSelector::default()
    }
}

/// An object of storage from its JSON, told by its `kind`.
///
/// # Panics
/// For what is no such object.
pub fn storage_object(value: &serde_json::Value) -> crate::event::EventObject {
    use crate::event::EventObject;
    fn read<T: serde::de::DeserializeOwned>(value: &serde_json::Value) -> Arc<T> {
        let object = serde_json::from_value(value.clone());
        Arc::new(object.unwrap_or_else(|error| panic!("{error}: {value}")))
    }
    match value["kind"].as_str().unwrap_or_default() {
        "PersistentVolume" => EventObject::PersistentVolume(read(value)),
        "PersistentVolumeClaim" => EventObject::PersistentVolumeClaim(read(value)),
        "StorageClass" => EventObject::StorageClass(read(value)),
        "CSINode" => EventObject::CSINode(read(value)),
        "CSIDriver" => EventObject::CSIDriver(read(value)),
        "CSIStorageCapacity" => EventObject::CSIStorageCapacity(read(value)),
        "VolumeAttachment" => EventObject::VolumeAttachment(read(value)),
        "ResourceClaim" => EventObject::ResourceClaim(read(value)),
        "ResourceSlice" => EventObject::ResourceSlice(read(value)),
        "DeviceClass" => EventObject::DeviceClass(read(value)),
        "DeviceTaintRule" => EventObject::DeviceTaintRule(read(value)),
        kind => panic!("neither of storage nor of devices: {kind:?}"),
    }
}

/// A snapshot of these nodes, and of pods by their `spec.nodeName`.
pub fn snapshot(
    nodes: impl IntoIterator<Item = Arc<Node>>,
    pods: impl IntoIterator<Item = Arc<PodInfo>>,
) -> Snapshot {
    let mut infos: BTreeMap<String, NodeInfo> = BTreeMap::new();
    for node in nodes {
        infos.insert(
            node.metadata.name.clone().unwrap_or_default(),
            NodeInfo::new(node),
        );
    }
    for pod in pods {
        if let Some(info) = pod
            .spec()
            .node_name
            .as_ref()
            .and_then(|name| infos.get_mut(name))
        {
            info.add_pod(pod);
        }
    }
    let mut snapshot = Snapshot::new();
    for info in infos.into_values() {
        snapshot.set_node(Arc::new(info));
    }
    snapshot
}
