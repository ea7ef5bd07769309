//! Extended resources that a DeviceClass stands for: a pod that asks for them gets a claim of its own, made by the scheduler.
//!
//! PreFilter has the claim in memory (or finds the one of an attempt before, which is then given up). Filter gives it requests for what the node's device plugins do not have.
//! PreBind makes it in the API and tells the pod which container has which request. Upstream: plugins/dynamicresources/extendeddynamicresources.go, v1.37.
//!
//! DIFFERS: where device plugins have all of it, there is no claim, though the pod has others; upstream makes an empty one and fails.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ::dynamic_resources::IMPLICIT_RESOURCE_PREFIX;
use component_helpers::quantity::amount;
use component_helpers::resource_claim::EXTENDED_RESOURCE_CLAIM_ANNOTATION;
use component_helpers::resources::{is_extended_resource_name, is_restartable_init_container};
use framework::devices::DeviceState;
use framework::{NodeInfo, PodInfo};
use k8s_openapi::api::core::v1::{Container, ContainerExtendedResourceRequest};
use k8s_openapi::api::resource::v1::{
    DeviceClaim, DeviceRequest, ExactDeviceRequest, ResourceClaim, ResourceClaimSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// The name of the special claim until it is made; no claim of the API can have it.
const IN_MEMORY: &str = "<extended-resources>";

/// Is it the special claim, and not made yet?
pub(super) fn is_in_memory(claim: &ResourceClaim) -> bool {
    claim.metadata.name.as_deref() == Some(IN_MEMORY)
}

/// May devices stand for this resource?
fn is_candidate(resource: &str) -> bool {
    is_extended_resource_name(resource) || resource.starts_with(IMPLICIT_RESOURCE_PREFIX)
}

/// What a pod asks for of resources that devices may stand for.
fn asked(pod: &PodInfo) -> impl Iterator<Item = (&String, i64)> {
    let scalars = pod.requests.resource.scalar.iter();
    let some = scalars.filter(|(name, amount)| **amount != 0 && is_candidate(name));
    some.map(|(name, amount)| (name, *amount))
}

/// Does the pod ask for a resource that devices stand for?
pub(super) fn is_asked_for(devices: &DeviceState, pod: &PodInfo) -> bool {
    asked(pod).any(|(name, _)| devices.is_extended_resource(name))
}

/// The special claim of a pod that needs one.
pub(super) fn special_claim(devices: &DeviceState, pod: &PodInfo) -> Option<Arc<ResourceClaim>> {
    if !is_asked_for(devices, pod) {
        return None;
    }
    if let Some(made) = devices.extended_claim(pod.name(), &pod.uid) {
        return Some(Arc::clone(made));
    }
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Pod".into(),
        name: pod.name().to_owned(),
        uid: pod.uid.to_string(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    let annotation = (
        EXTENDED_RESOURCE_CLAIM_ANNOTATION.to_owned(),
        "true".to_owned(),
    );
    Some(Arc::new(ResourceClaim {
        metadata: ObjectMeta {
            namespace: Some(pod.namespace().to_owned()),
            name: Some(IN_MEMORY.into()),
            // Stands for the claim while its allocation is under way; no UID of the API.
            uid: Some(format!("{IN_MEMORY} of {}", pod.uid)),
            generate_name: Some(format!("{}-extended-resources-", pod.name())),
            owner_references: Some(vec![owner]),
            annotations: Some(BTreeMap::from([annotation])),
            ..ObjectMeta::default()
        },
        ..ResourceClaim::default()
    }))
}

/// What becomes of the special claim on a node.
pub(super) enum OnNode {
    /// Device plugins have all that is asked for.
    NotNeeded,
    /// It asks for this.
    Needed(Arc<ResourceClaim>, Vec<ContainerExtendedResourceRequest>),
    /// The node has none of a resource.
    Unfit,
    /// It was made by an attempt before.
    Stale,
}

/// The special claim as it would be on the node.
pub(super) fn on_node(
    devices: &DeviceState,
    special: &Arc<ResourceClaim>,
    pod: &PodInfo,
    node: &NodeInfo,
) -> OnNode {
    if !super::claims::requests(special).is_empty() || !is_in_memory(special) {
        return OnNode::Stale;
    }
    let mut wanted = BTreeMap::new();
    for (name, _) in asked(pod) {
        let has = node.allocatable().scalar.get(name);
        let class = devices.classes().of_resource(name);
        match class {
            Some(class) if has.is_none_or(|has| *has == 0) => {
                let class = class.metadata.name.clone().unwrap_or_default();
                wanted.insert(name.as_str(), class);
            }
            _ if has.is_none() => return OnNode::Unfit,
            _ => {}
        }
    }
    if wanted.is_empty() {
        return OnNode::NotNeeded;
    }
    let (requests, mappings) = requests_and_mappings(pod, &wanted);
    let mut claim = (**special).clone();
    claim.spec = Some(ResourceClaimSpec {
        devices: Some(DeviceClaim {
            requests: Some(requests),
            ..DeviceClaim::default()
        }),
    });
    OnNode::Needed(Arc::new(claim), mappings)
}

/// What a container asks for of a resource, beside `reusable` requests of containers that run later; and what it then has.
fn of_container(
    index: usize,
    container: &Container,
    resource: &str,
    class: &str,
    reusable: &[Option<DeviceRequest>],
) -> (Option<DeviceRequest>, Vec<ContainerExtendedResourceRequest>) {
    let requests = container
        .resources
        .as_ref()
        .and_then(|r| r.requests.as_ref());
    let wanted = requests
        .and_then(|requests| requests.get(resource))
        .map(|q| amount(q).value());
    let (Some(requests), Some(wanted)) = (requests, wanted.filter(|wanted| *wanted != 0)) else {
        return (None, Vec::new());
    };
    let mapping = |request: &str| ContainerExtendedResourceRequest {
        container_name: container.name.clone(),
        resource_name: resource.to_owned(),
        request_name: request.to_owned(),
    };
    let (mut mappings, mut sum) = (Vec::new(), 0);
    for request in reusable.iter().flatten() {
        sum += count(request);
        mappings.push(mapping(&request.name));
        if sum >= wanted {
            return (None, mappings);
        }
    }
    // The keys of the map are in order.
    let number = requests.keys().position(|key| key == resource).unwrap_or(0);
    let name = format!("container-{index}-request-{number}");
    mappings.push(mapping(&name));
    let request = DeviceRequest {
        name,
        exactly: Some(ExactDeviceRequest {
            device_class_name: class.to_owned(),
            allocation_mode: Some("ExactCount".into()),
            count: Some(wanted - sum),
            ..ExactDeviceRequest::default()
        }),
        first_available: None,
    };
    (Some(request), mappings)
}

fn count(request: &DeviceRequest) -> i64 {
    request.exactly.as_ref().and_then(|e| e.count).unwrap_or(0)
}

/// The requests of the special claim for these resources (with their classes), and which container has which.
fn requests_and_mappings(
    pod: &PodInfo,
    wanted: &BTreeMap<&str, String>,
) -> (Vec<DeviceRequest>, Vec<ContainerExtendedResourceRequest>) {
    let spec = pod.spec();
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let containers: Vec<&Container> = init.iter().chain(&spec.containers).collect();
    // Init containers that end before the rest begins; what they use others may use after them.
    let ends =
        |index: usize| index < init.len() && !is_restartable_init_container(containers[index]);
    let (mut requests, mut mappings) = (Vec::new(), Vec::new());
    for (resource, class) in wanted {
        let mut lasting: Vec<Option<DeviceRequest>> = vec![None; containers.len()];
        for index in (0..containers.len()).filter(|index| !ends(*index)) {
            let (request, mapped) = of_container(index, containers[index], resource, class, &[]);
            lasting[index] = request;
            mappings.extend(mapped);
        }
        let (mut largest, mut passing): (Option<DeviceRequest>, Vec<_>) = (None, Vec::new());
        let mut names = BTreeSet::new();
        for index in (0..containers.len()).filter(|index| ends(*index)) {
            let (request, mapped) =
                of_container(index, containers[index], resource, class, &lasting[index..]);
            if let Some(request) = request {
                names.insert(request.name.clone());
                if largest
                    .as_ref()
                    .is_none_or(|known| count(known) < count(&request))
                {
                    largest = Some(request);
                }
            }
            passing.extend(mapped);
        }
        // They run one after the other: the largest request serves all.
        if let Some(largest) = &largest {
            for mapped in passing
                .iter_mut()
                .filter(|m| names.contains(&m.request_name))
            {
                mapped.request_name.clone_from(&largest.name);
            }
        }
        requests.extend(largest);
        requests.extend(lasting.into_iter().flatten());
        mappings.append(&mut passing);
    }
    requests.sort_by(|a: &DeviceRequest, b| a.name.cmp(&b.name));
    (requests, mappings)
}
