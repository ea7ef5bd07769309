//! [`Volume`] and [`Capacity`]: objects with what matching asks of them, parsed once.

use std::collections::BTreeMap;
use std::sync::Arc;

use component_helpers::affinity::NodeSelectorTerms;
use component_helpers::csi_migration::InTreePlugin;
use component_helpers::labels::Selector;
use component_helpers::persistent_volume::{claim_ref, volume_class};
use component_helpers::quantity::amount;
use k8s_openapi::api::core::v1::{PersistentVolume, VolumeNodeAffinity};
use k8s_openapi::api::storage::v1::{CSINode, CSIStorageCapacity};

/// A PersistentVolume.
#[derive(Debug)]
pub struct Volume {
    /// As the API server gave it, or as it is assumed to be.
    pub object: Arc<PersistentVolume>,
    affinity: Option<NodeSelectorTerms>,
    in_tree: Option<InTree>,
    nodes_key: Box<[u8]>,
}

#[derive(Debug)]
struct InTree {
    plugin: InTreePlugin,
    affinity: Option<NodeSelectorTerms>,
    handle: Option<String>,
}

fn parsed(affinity: Option<&VolumeNodeAffinity>) -> Option<NodeSelectorTerms> {
    Some(NodeSelectorTerms::new(affinity?.required.as_ref()?))
}

impl Volume {
    /// Parses what matching reads.
    pub fn new(object: Arc<PersistentVolume>) -> Self {
        let affinity = object.spec.as_ref().and_then(|s| s.node_affinity.as_ref());
        let translated = InTreePlugin::of_volume(&object)
            .filter(|plugin| plugin.is_scheduled_as_csi())
            .map(|plugin| (plugin, plugin.node_affinity(&object)));
        let key = (
            affinity,
            translated.as_ref().map(|(plugin, a)| (plugin.name(), a)),
        );
        let nodes_key = serde_json::to_vec(&key).expect("API types serialise into memory");
        Volume {
            affinity: parsed(affinity),
            in_tree: translated.map(|(plugin, affinity)| InTree {
                plugin,
                affinity: parsed(affinity.as_ref()),
                handle: plugin.handle(&object),
            }),
            nodes_key: nodes_key.into(),
            object,
        }
    }

    /// The volume's name.
    pub fn name(&self) -> &str {
        self.object.metadata.name.as_deref().unwrap_or_default()
    }

    /// Its class; empty for none.
    pub fn class(&self) -> &str {
        volume_class(&self.object)
    }

    /// `namespace/name` of the claim it names.
    pub fn claim_key(&self) -> Option<String> {
        let claim = claim_ref(&self.object)?;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        Some(super::key(&text(&claim.namespace), &text(&claim.name)))
    }

    /// On which nodes it may be used; `None`: on all. An in-tree volume follows its driver's topology where the node's kubelet serves it by CSI.
    pub fn affinity_on(&self, csi_node: Option<&CSINode>) -> Option<&NodeSelectorTerms> {
        match &self.in_tree {
            Some(in_tree) if in_tree.plugin.is_migrated_on(csi_node) => in_tree.affinity.as_ref(),
            _ => self.affinity.as_ref(),
        }
    }

    /// May it be used on a node with these labels?
    pub fn allows(&self, labels: &BTreeMap<String, String>, csi_node: Option<&CSINode>) -> bool {
        let terms = self.affinity_on(csi_node);
        terms.is_none_or(|terms| terms.matches("", labels))
    }

    /// Do its nodes depend on their CSINode objects, too?
    pub fn depends_on_csi_node(&self) -> bool {
        self.in_tree.is_some()
    }

    /// Volumes with equal bytes may be used on the same nodes.
    pub fn nodes_key(&self) -> &[u8] {
        &self.nodes_key
    }

    /// The CSI driver and handle, of an in-tree volume those it has with its driver; `None` where no driver attaches it.
    pub fn csi_source(&self) -> Option<(&str, &str)> {
        if let Some(csi) = self.object.spec.as_ref().and_then(|s| s.csi.as_ref()) {
            return Some((&csi.driver, &csi.volume_handle));
        }
        let in_tree = self.in_tree.as_ref()?;
        Some((in_tree.plugin.driver(), in_tree.handle.as_deref()?))
    }
}

/// A CSIStorageCapacity.
#[derive(Debug)]
pub struct Capacity {
    /// As the API server gave it.
    pub object: Arc<CSIStorageCapacity>,
    selector: Option<Selector>,
    limit: Option<i64>,
}

/// The largest volume that can be made, in bytes: `maximumVolumeSize`, else `capacity`.
pub fn volume_limit(capacity: &CSIStorageCapacity) -> Option<i64> {
    let limit = capacity.maximum_volume_size.as_ref();
    limit
        .or(capacity.capacity.as_ref())
        .map(|limit| amount(limit).value())
}

impl Capacity {
    /// Parses what matching reads. A selector that is wrong selects no node.
    pub fn new(object: Arc<CSIStorageCapacity>) -> Self {
        let topology = object.node_topology.as_ref();
        Capacity {
            selector: topology.and_then(|topology| Selector::new(topology).ok()),
            limit: volume_limit(&object),
            object,
        }
    }

    /// Is there room for a volume of `bytes`?
    pub fn has_room(&self, bytes: i64) -> bool {
        self.limit.is_some_and(|limit| limit >= bytes)
    }

    /// Can a node with these labels use it?
    pub fn reaches(&self, labels: &BTreeMap<String, String>) -> bool {
        let selector = self.selector.as_ref();
        selector.is_some_and(|selector| selector.matches(labels))
    }
}
