//! TopologyPlacementGenerator: a group of pods that names a topology goes to nodes of one domain.
//!
//! Each value of the label is a placement. A group that has pods on nodes already stays in their domain. Upstream: plugins/topologyaware, v1.37
//! (CompositePodGroup off).

use std::collections::BTreeMap;
use std::sync::Arc;

use framework::pod_groups::{PodGroupCache, topology_key};
use framework::{
    Handle, NodeSet, Placement, PlacementGeneratePlugin, Plugin, PluginError, Snapshot, Status,
};
use k8s_openapi::api::scheduling::v1beta1::PodGroup;

use crate::names;

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod tests_support;

struct TopologyPlacement {
    handle: Arc<dyn Handle>,
}

/// What plugins of placements say where nobody would ever ask them.
pub(crate) fn needs_gate(handle: &dyn Handle, plugin: &'static str) -> Result<(), PluginError> {
    if handle.listers().pod_groups().topology_aware() {
        return Ok(());
    }
    Err(PluginError::Invalid {
        plugin,
        problems: vec!["the feature gate TopologyAwareWorkloadScheduling is off".to_owned()],
    })
}

/// Namespace and name of a group.
pub(crate) fn of(group: &PodGroup) -> (&str, &str) {
    let meta = &group.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    (namespace, meta.name.as_deref().unwrap_or_default())
}

/// Makes the plugin.
///
/// # Errors
/// With the feature gate `TopologyAwareWorkloadScheduling` off.
pub fn new(
    _args: Option<&serde_json::Value>,
    handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    needs_gate(&*handle, names::TOPOLOGY_PLACEMENT_GENERATOR)?;
    Ok(Arc::new(TopologyPlacement { handle }))
}

// No events are named: a group without any placement, or whose pods are where they should not be, may be helped by whatever changes, as upstream.
impl Plugin for TopologyPlacement {
    fn name(&self) -> &'static str {
        names::TOPOLOGY_PLACEMENT_GENERATOR
    }
    fn as_placement_generate(&self) -> Option<&dyn PlacementGeneratePlugin> {
        Some(self)
    }
}

impl PlacementGeneratePlugin for TopologyPlacement {
    fn generate_placements(
        &self,
        group: &PodGroup,
        snapshot: &Snapshot,
        parent: Placement,
    ) -> Result<Vec<Placement>, Status> {
        let Some(key) = topology_key(group) else {
            return Ok(vec![parent]);
        };
        let groups = self.handle.listers().pod_groups();
        let required = scheduled_domain(groups, group, key, snapshot).map_err(|why| {
            Status::error(format!(
                "cannot determine domain for already scheduled pods: {why}"
            ))
        })?;
        let column = snapshot.label_column(key);
        let mut domains: BTreeMap<&str, NodeSet> = BTreeMap::new();
        for node in parent.nodes.iter() {
            // An id of zero: the node has no such label.
            let id = column.ids.get(node as usize).copied().unwrap_or(0);
            let domain = column.values.get(id as usize).filter(|_| id != 0);
            let Some(domain) = domain else { continue };
            if required.as_ref().is_none_or(|it| *it == **domain) {
                let nodes = domains.entry(domain).or_default();
                nodes.insert(node);
            }
        }
        let placement = |(domain, nodes): (&str, NodeSet)| Placement {
            name: domain.to_owned(),
            nodes,
        };
        Ok(domains.into_iter().map(placement).collect())
    }
}

/// Where the pods of the group that have a node are; `None` when there are none.
///
/// # Errors
/// They are nowhere, or in more than one domain; in upstream's words.
fn scheduled_domain(
    groups: &PodGroupCache,
    group: &PodGroup,
    key: &str,
    snapshot: &Snapshot,
) -> Result<Option<String>, String> {
    let mut found: Option<String> = None;
    for (pod, node) in groups.scheduled_on(of(group)) {
        let pod = || {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            format!("{namespace}/{}", component_helpers::pod::name(&pod))
        };
        let info = snapshot.get(&node).ok_or_else(|| {
            format!(
                "getting node for pod {}: nodeinfo not found for node name {node:?}",
                pod()
            )
        })?;
        let labels = info.node().metadata.labels.as_ref();
        let domain = labels.and_then(|labels| labels.get(key));
        let domain = domain.ok_or_else(|| format!("no topology domain found for pod {}", pod()))?;
        match &found {
            Some(other) if other != domain => {
                return Err(format!(
                    "more than 1 domain found for pod group: {other}, {domain}"
                ));
            }
            _ => found = Some(domain.clone()),
        }
    }
    Ok(found)
}
