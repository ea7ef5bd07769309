//! Which changes may help a pod that was kept from, or for, others.

use std::sync::Arc;

use component_helpers::pod::{node_name, nominated_node_name};
use framework::{
    ActionType, ClusterEventWithHint, EnqueueExtensions, EventObject, EventResource, PodInfo,
    QueueingHint,
};
use k8s_openapi::api::core::v1::{Node, Pod};

use super::InterPodAffinity;
use super::terms::matches_all;

type Object<'a> = Option<&'a EventObject>;

impl EnqueueExtensions for InterPodAffinity {
    fn events_to_register(&self) -> Vec<ClusterEventWithHint> {
        let hint = |helps| {
            if helps {
                QueueingHint::Queue
            } else {
                QueueingHint::QueueSkip
            }
        };
        let pods = ActionType::ADD | ActionType::UPDATE_POD_LABEL | ActionType::DELETE;
        let nodes = ActionType::ADD | ActionType::UPDATE_NODE_LABEL;
        vec![
            ClusterEventWithHint::with_hint(EventResource::Pod, pods, move |pod, old, new| {
                hint(after_pod_change(pod, old, new))
            }),
            ClusterEventWithHint::with_hint(EventResource::Node, nodes, move |pod, old, new| {
                hint(after_node_change(pod, old, new))
            }),
        ]
    }
}

fn info(pod: &Arc<Pod>) -> Option<PodInfo> {
    PodInfo::new(Arc::clone(pod)).ok()
}

pub(super) fn after_pod_change(pod: &Arc<Pod>, old: Object<'_>, new: Object<'_>) -> bool {
    let (old, new) = (
        old.and_then(EventObject::pod),
        new.and_then(EventObject::pod),
    );
    if let (Some(_), Some(new)) = (old, new)
        && new.metadata.uid == pod.metadata.uid
    {
        return true;
    }
    let placed =
        |other: &Arc<Pod>| node_name(other).is_some() || nominated_node_name(other).is_some();
    if old.into_iter().chain(new).any(|other| !placed(other)) {
        return false;
    }
    let Some(pod) = info(pod) else { return true };
    let near = |other: &PodInfo| matches_all(&pod.required_affinity_terms, other);
    let far = |other: &PodInfo| matches_all(&pod.required_anti_affinity_terms, other);
    match (old.map(info), new.map(info)) {
        (Some(Some(old)), Some(Some(new))) => {
            (!near(&old) && near(&new)) || (far(&old) && !far(&new))
        }
        (None, Some(Some(new))) => near(&new),
        (Some(Some(old)), None) => {
            far(&old) || matches_all(&old.required_anti_affinity_terms, &pod)
        }
        _ => true,
    }
}

pub(super) fn after_node_change(pod: &Arc<Pod>, old: Object<'_>, new: Object<'_>) -> bool {
    let Some(new) = new.and_then(EventObject::node) else {
        return false;
    };
    let old = old.and_then(EventObject::node);
    let Some(pod) = info(pod) else { return true };
    let label = |node: &Node, key: &str| {
        node.metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(key))
            .cloned()
    };
    let near = pod.required_affinity_terms.iter().any(|term| {
        let (before, after) = (
            old.and_then(|old| label(old, &term.topology_key)),
            label(new, &term.topology_key),
        );
        // A domain to go to that was not there, or not this one.
        after.is_some() && before != after
    });
    // A new node may be free of those to keep away from; so may one that moved to another domain, or out of all.
    let far = pod
        .required_anti_affinity_terms
        .iter()
        .any(|term| match old {
            None => true,
            Some(old) => {
                let before = label(old, &term.topology_key);
                before.is_some() && before != label(new, &term.topology_key)
            }
        });
    near || far
}
