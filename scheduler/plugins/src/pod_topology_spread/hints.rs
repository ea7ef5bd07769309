//! Which changes may help a pod that a constraint held back.

use std::collections::BTreeMap;
use std::sync::Arc;

use component_helpers::pod::{node_name, nominated_node_name, tolerations};
use framework::{
    ActionType, ClusterEventWithHint, EnqueueExtensions, EventObject, EventResource, PodInfo,
    QueueingHint,
};
use k8s_openapi::api::core::v1::{Node, Pod};

use super::PodTopologySpread;
use super::constraint::{Action, Constraint, Source};

type Object<'a> = Option<&'a EventObject>;

impl EnqueueExtensions for PodTopologySpread {
    fn events_to_register(&self) -> Vec<ClusterEventWithHint> {
        let (for_pods, for_nodes) = (Arc::clone(&self.source), Arc::clone(&self.source));
        let pods = ActionType::ADD
            | ActionType::UPDATE_POD_LABEL
            | ActionType::UPDATE_POD_TOLERATION
            | ActionType::DELETE;
        let nodes = ActionType::ADD
            | ActionType::DELETE
            | ActionType::UPDATE_NODE_LABEL
            | ActionType::UPDATE_NODE_TAINT;
        vec![
            ClusterEventWithHint::with_hint(EventResource::Pod, pods, move |pod, old, new| {
                hint(after_pod_change(&for_pods, pod, old, new))
            }),
            ClusterEventWithHint::with_hint(EventResource::Node, nodes, move |pod, old, new| {
                hint(after_node_change(&for_nodes, pod, old, new))
            }),
        ]
    }
}

fn hint(helps: bool) -> QueueingHint {
    if helps {
        QueueingHint::Queue
    } else {
        QueueingHint::QueueSkip
    }
}

/// The hard constraints; `None` when they cannot be told, and the pod had better try.
fn constraints(source: &Source, pod: &Arc<Pod>) -> Option<Vec<Constraint>> {
    let info = PodInfo::new(Arc::clone(pod)).ok()?;
    source.constraints(&info, Action::DoNotSchedule).ok()
}

/// Can the change of `other` matter to the spreading of `pod`?
fn involved(other: &Pod, pod: &Pod) -> bool {
    let placed = node_name(other).is_some() || nominated_node_name(other).is_some();
    other.metadata.uid == pod.metadata.uid
        || (placed && other.metadata.namespace == pod.metadata.namespace)
}

fn labels(pod: &Pod) -> &BTreeMap<String, String> {
    framework::pod_info::labels(pod)
}

pub(super) fn after_pod_change(
    source: &Source,
    pod: &Arc<Pod>,
    old: Object<'_>,
    new: Object<'_>,
) -> bool {
    let (old, new) = (
        old.and_then(EventObject::pod),
        new.and_then(EventObject::pod),
    );
    if old
        .into_iter()
        .chain(new)
        .any(|other| !involved(other, pod))
    {
        return false;
    }
    let Some(constraints) = constraints(source, pod) else {
        return true;
    };
    match (old, new) {
        (Some(old), Some(new)) => {
            let own = new.metadata.uid == pod.metadata.uid;
            if own
                && tolerations(new) != tolerations(old)
                && constraints.iter().any(|constraint| constraint.honor_taints)
            {
                return true;
            }
            constraints.iter().any(|constraint| {
                constraint.matches(labels(old)) != constraint.matches(labels(new))
            })
        }
        (Some(one), None) | (None, Some(one)) => constraints
            .iter()
            .any(|constraint| constraint.matches(labels(one))),
        (None, None) => true,
    }
}

pub(super) fn after_node_change(
    source: &Source,
    pod: &Arc<Pod>,
    old: Object<'_>,
    new: Object<'_>,
) -> bool {
    let Some(constraints) = constraints(source, pod) else {
        return true;
    };
    let (old, new) = (
        old.and_then(EventObject::node),
        new.and_then(EventObject::node),
    );
    let label = |node: &Node, key: &str| {
        node.metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(key))
            .cloned()
    };
    let in_domains = |node: &Arc<Node>| {
        constraints
            .iter()
            .all(|constraint| label(node, &constraint.topology_key).is_some())
    };
    let taints = |node: &Node| {
        node.spec
            .as_ref()
            .and_then(|spec| spec.taints.clone())
            .unwrap_or_default()
    };
    match (old, new) {
        (Some(old), Some(new)) => {
            let moved = || {
                constraints
                    .iter()
                    .any(|c| label(old, &c.topology_key) != label(new, &c.topology_key))
            };
            in_domains(old) != in_domains(new)
                || (in_domains(new) && (moved() || taints(old) != taints(new)))
        }
        (Some(one), None) | (None, Some(one)) => in_domains(one),
        (None, None) => true,
    }
}
