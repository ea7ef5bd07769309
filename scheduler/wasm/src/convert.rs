//! The scheduler's pods and nodes as a component sees them: only what it said it reads.

use framework::{Fragments, NodeInfo, PodInfo, Resource};

use crate::bindings::{
    Node, NodeFields, Pod, PodFields, Resources, Taint, TaintEffect, Toleration,
};

/// Which pods are alike for a component that reads these fields; `None`: no two are.
pub(crate) fn fragments(fields: PodFields) -> Option<Fragments> {
    if fields.intersects(PodFields::NAME | PodFields::MANIFEST) {
        return None;
    }
    let parts = [
        (PodFields::NAMESPACE, Fragments::NAMESPACE),
        (PodFields::LABELS, Fragments::LABELS),
        // They are in no fragment: the plugin writes them into the key itself.
        (PodFields::ANNOTATIONS, Fragments::MORE),
        (PodFields::REQUESTS, Fragments::REQUESTS),
        (PodFields::PRIORITY, Fragments::PRIORITY),
        (PodFields::TOLERATIONS, Fragments::TOLERATIONS),
        (PodFields::NODE_SELECTOR, Fragments::NODE_AFFINITY),
        (PodFields::IMAGES, Fragments::IMAGES),
        (PodFields::OWNER, Fragments::OWNER),
    ];
    let mut all = Fragments::NONE;
    for (field, fragment) in parts {
        if fields.contains(field) {
            all |= fragment;
        }
    }
    Some(all)
}

/// The pod, of which only `fields` are told.
pub(crate) fn pod(pod: &PodInfo, fields: PodFields) -> Pod {
    let has = |field| fields.contains(field);
    let text = |field, text: Option<&str>| match has(field) {
        true => text.unwrap_or_default().to_owned(),
        false => String::new(),
    };
    let pairs = |field, map: Option<&_>| match has(field) {
        true => pairs(map),
        false => Vec::new(),
    };
    let (metadata, spec) = (&pod.pod.metadata, pod.spec());
    let mut owners = metadata.owner_references.iter().flatten();
    let owner = owners.find(|owner| owner.controller == Some(true));
    let tolerations = spec.tolerations.iter().flatten();
    let containers = spec.init_containers.iter().flatten();
    let images = containers
        .chain(&spec.containers)
        .filter_map(|container| container.image.clone());
    Pod {
        name: text(PodFields::NAME, metadata.name.as_deref()),
        uid: text(PodFields::NAME, metadata.uid.as_deref()),
        namespace: text(PodFields::NAMESPACE, metadata.namespace.as_deref()),
        labels: pairs(PodFields::LABELS, metadata.labels.as_ref()),
        annotations: pairs(PodFields::ANNOTATIONS, metadata.annotations.as_ref()),
        requests: match has(PodFields::REQUESTS) {
            true => resources(&pod.requests.resource, 0, true),
            false => resources(&Resource::default(), 0, false),
        },
        priority: if has(PodFields::PRIORITY) {
            pod.priority
        } else {
            0
        },
        tolerations: match has(PodFields::TOLERATIONS) {
            true => tolerations.map(toleration).collect(),
            false => Vec::new(),
        },
        node_selector: pairs(PodFields::NODE_SELECTOR, spec.node_selector.as_ref()),
        images: match has(PodFields::IMAGES) {
            true => images.collect(),
            false => Vec::new(),
        },
        owner_uid: text(PodFields::OWNER, owner.map(|owner| owner.uid.as_str())),
        manifest: match has(PodFields::MANIFEST) {
            true => serde_json::to_string(&*pod.pod).expect("API types serialise into memory"),
            false => String::new(),
        },
    }
}

/// The node in `slot`, of which only `fields` are told.
pub(crate) fn node(slot: u32, node: &NodeInfo, fields: NodeFields) -> Node {
    let has = |field| fields.contains(field);
    let scalars = has(NodeFields::SCALARS);
    let taints = node.taints().iter().filter_map(|taint| {
        Some(Taint {
            key: taint.key.clone(),
            value: taint.value.clone().unwrap_or_default(),
            effect: effect(&taint.effect)?,
        })
    });
    Node {
        slot,
        name: node.name().to_string(),
        unschedulable: node.unschedulable(),
        allocatable: resources(
            node.allocatable(),
            node.allocatable().allowed_pod_number,
            scalars,
        ),
        requested: resources(
            node.requested(),
            i64::try_from(node.pods().len()).unwrap_or(i64::MAX),
            scalars,
        ),
        labels: match has(NodeFields::LABELS) {
            true => pairs(Some(node.labels())),
            false => Vec::new(),
        },
        annotations: match has(NodeFields::ANNOTATIONS) {
            true => pairs(node.node().metadata.annotations.as_ref()),
            false => Vec::new(),
        },
        taints: match has(NodeFields::TAINTS) {
            true => taints.collect(),
            false => Vec::new(),
        },
        images: match has(NodeFields::IMAGES) {
            // In an order of their own: answers must not depend on a hash.
            true => sorted(
                node.images()
                    .iter()
                    .map(|(name, size)| (name.clone(), *size)),
            ),
            false => Vec::new(),
        },
    }
}

fn sorted(items: impl Iterator<Item = (String, i64)>) -> Vec<(String, i64)> {
    let mut items: Vec<_> = items.collect();
    items.sort_unstable();
    items
}

fn pairs(map: Option<&std::collections::BTreeMap<String, String>>) -> Vec<(String, String)> {
    let all = map.into_iter().flatten();
    all.map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn resources(of: &Resource, pods: i64, scalars: bool) -> Resources {
    let all = of.scalar.iter().filter(|_| scalars);
    Resources {
        milli_cpu: of.milli_cpu,
        memory: of.memory,
        ephemeral_storage: of.ephemeral_storage,
        pods,
        scalars: all.map(|(name, amount)| (name.clone(), *amount)).collect(),
    }
}

/// The API server takes no other.
fn effect(effect: &str) -> Option<TaintEffect> {
    match effect {
        "NoSchedule" => Some(TaintEffect::NoSchedule),
        "PreferNoSchedule" => Some(TaintEffect::PreferNoSchedule),
        "NoExecute" => Some(TaintEffect::NoExecute),
        _ => None,
    }
}

fn toleration(toleration: &k8s_openapi::api::core::v1::Toleration) -> Toleration {
    Toleration {
        key: toleration.key.clone().unwrap_or_default(),
        operator: toleration
            .operator
            .clone()
            .filter(|operator| !operator.is_empty())
            .unwrap_or_else(|| "Equal".to_owned()),
        value: toleration.value.clone().unwrap_or_default(),
        effect: toleration.effect.as_deref().and_then(effect),
    }
}
