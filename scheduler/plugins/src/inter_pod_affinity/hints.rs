//! Which changes may help a pod that was kept from, or for, others.

use std::sync::Arc;

use component_helpers::pod::{node_name, nominated_node_name};
use framework::{
    ActionType, AffinityTerm, ClusterEventWithHint, EnqueueExtensions, EventObject, EventResource,
    Listers, PodInfo, QueueingHint,
};
use k8s_openapi::api::core::v1::{Node, Pod};

use super::InterPodAffinity;

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
        let handle = Arc::clone(&self.handle);
        vec![
            ClusterEventWithHint::with_hint(EventResource::Pod, pods, move |pod, old, new| {
                hint(after_pod_change(handle.listers(), pod, old, new))
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

/// Whether a term matches the pod.
// DIFFERS: upstream has no labels of namespaces here, so its terms with a namespace selector match nothing, and their pods wait 5 min.
fn matched_by<'a>(
    listers: &dyn Listers,
    pod: &'a PodInfo,
) -> impl Fn(&AffinityTerm) -> bool + use<'a> {
    let namespace = listers.namespace_labels(pod.namespace());
    move |term| term.matches(&pod.pod, &namespace)
}

pub(super) fn after_pod_change(
    listers: &dyn Listers,
    pod: &Arc<Pod>,
    old: Object<'_>,
    new: Object<'_>,
) -> bool {
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
    // Company is one pod that all terms match; what any of the others matches is to be kept away from.
    let near = |other: &PodInfo| {
        let terms = &pod.required_affinity_terms;
        !terms.is_empty() && terms.iter().all(matched_by(listers, other))
    };
    let matches_any =
        |terms: &[AffinityTerm], other: &PodInfo| terms.iter().any(matched_by(listers, other));
    let far = |other: &PodInfo| matches_any(&pod.required_anti_affinity_terms, other);
    match (old.map(info), new.map(info)) {
        (Some(Some(old)), Some(Some(new))) => {
            (!near(&old) && near(&new)) || (far(&old) && !far(&new))
        }
        (None, Some(Some(new))) => near(&new),
        (Some(Some(old)), None) => {
            far(&old) || matches_any(&old.required_anti_affinity_terms, &pod)
        }
        _ => true,
    }
}

pub(super) fn after_node_change(pod: &Arc<Pod>, old: Object<'_>, new: Object<'_>) -> bool {
    let Some(new) = new.and_then(EventObject::node) else {
        return false;
    };
    let Some(pod) = info(pod) else { return true };
    let label = |node: &Node, key: &str| {
        let labels = node.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get(key)).cloned()
    };
    // A domain to go to that was not there, or not this one.
    let old = old.and_then(EventObject::node);
    let near = pod.required_affinity_terms.iter().any(|term| {
        let key = &term.topology_key;
        let after = label(new, key);
        after.is_some() && after != old.and_then(|old| label(old, key))
    });
    // A new node may be free of those to keep away from, and of those that keep the pod away; so may one that left a domain.
    // DIFFERS: upstream asks the pod's own terms alone; a pod that others keep away waits 5 min, on whatever node is added.
    let far = match old {
        None => {
            pod.required_affinity_terms.is_empty() || !pod.required_anti_affinity_terms.is_empty()
        }
        Some(old) => {
            let mut before = old.metadata.labels.iter().flatten();
            before.any(|(key, value)| label(new, key).as_ref() != Some(value))
        }
    };
    near || far
}
