//! What ResourceClaims use of device classes, and of the extended resources that stand for them. Pure.
//!
//! Upstream: pkg/quota/v1/evaluator/core/resource_claims.go, v1.37.

use std::collections::BTreeMap;
use std::sync::Arc;

use component_helpers::owner_ref::get_controller_of;
use component_helpers::pod;
use component_helpers::quantity::{Amount, Format};
use component_helpers::resource_claim::{EXTENDED_RESOURCE_CLAIM_ANNOTATION, extended_status};
use component_helpers::resources::{Amounts, add};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{DeviceClass, DeviceRequest, ResourceClaim};

/// What quotas call the devices of a class: the class, and this.
pub(super) const OF_CLASS: &str = ".deviceclass.resource.k8s.io/devices";
/// The resource of pods that stands for a class: this, and the class.
pub(super) const IMPLICIT: &str = "deviceclass.resource.kubernetes.io/";
/// What a request for all devices counts, as nobody knows how many that are. Upstream: `AllocationResultsMaxSize`.
const ALL: i64 = 32;

/// What the caches hold about a namespace's claims, and all classes.
#[derive(Clone, Debug, Default)]
pub struct Devices {
    pub claims: Vec<Arc<ResourceClaim>>,
    pub classes: Vec<Arc<DeviceClass>>,
}

impl Devices {
    /// The extended resources of the classes that have one, by class.
    fn extended(&self) -> BTreeMap<&str, &str> {
        let mut extended = BTreeMap::new();
        for class in &self.classes {
            let resource = class.spec.as_ref();
            let resource = resource.and_then(|spec| spec.extended_resource_name.as_deref());
            extended.extend(class.metadata.name.as_deref().zip(resource));
        }
        extended
    }

    /// Adds what the claims use, if a quota with these limits is about any of it. `of_pod` is what a pod is charged itself.
    pub(super) fn measure<'a>(
        &self,
        usage: &mut Amounts,
        mut hard: impl Iterator<Item = &'a String>,
        pods: &[Arc<Pod>],
        of_pod: impl Fn(&Pod) -> Amounts,
    ) {
        let extended = self.extended();
        let concerns = |name: &String| {
            let Some(resource) = name.strip_prefix("requests.") else {
                return name.ends_with(OF_CLASS) || name == "count/resourceclaims.resource.k8s.io";
            };
            match resource.strip_prefix(IMPLICIT) {
                Some(class) => extended.contains_key(class),
                None => extended.values().any(|known| *known == resource),
            }
        };
        if !hard.any(concerns) {
            return;
        }
        for claim in &self.claims {
            let devices = of_claim(claim);
            let charged = self.pod_of(claim, pods).map(&of_pod);
            let mut more = Amounts::default();
            for (class, count) in devices {
                let mut left = |resource: &str| {
                    let name = format!("requests.{resource}");
                    let of_pod = charged.as_ref().and_then(|amounts| amounts.get(&name));
                    let count = count - of_pod.map_or(0, Amount::value);
                    if count > 0 {
                        more.insert(name, Amount::new(count, Format::DecimalSI));
                    }
                };
                left(&format!("{IMPLICIT}{class}"));
                if let Some(resource) = extended.get(class) {
                    left(resource);
                }
                let count = Amount::new(count, Format::DecimalSI);
                more.insert(format!("{class}{OF_CLASS}"), count);
            }
            add(usage, &more);
        }
    }

    /// The pod whose extended resources a claim was made for: it is charged for them already.
    fn pod_of<'a>(&self, claim: &ResourceClaim, pods: &'a [Arc<Pod>]) -> Option<&'a Pod> {
        let uid = pod_uid(claim)?;
        let pod: &Pod = pods.iter().find(|pod| pod::uid(pod) == uid)?;
        let is_its = match extended_status(pod) {
            Some(status) => Some(&status.resource_claim_name) == claim.metadata.name.as_ref(),
            // Of several, the first counts.
            None => {
                let age = |claim: &ResourceClaim| {
                    let meta = &claim.metadata;
                    let created = meta.creation_timestamp.as_ref().map(|time| time.0);
                    (created, meta.name.clone())
                };
                let mut others = self.claims.iter().filter(|c| pod_uid(c) == Some(uid));
                !others.any(|other| age(other) < age(claim))
            }
        };
        is_its.then_some(pod)
    }
}

/// The UID of the pod that a claim says to be for.
fn pod_uid(claim: &ResourceClaim) -> Option<&str> {
    let annotations = claim.metadata.annotations.as_ref()?;
    if annotations.get(EXTENDED_RESOURCE_CLAIM_ANNOTATION)? != "true" {
        return None;
    }
    let owner = get_controller_of(&claim.metadata)?;
    (owner.kind == "Pod" && owner.api_version == "v1").then_some(&*owner.uid)
}

/// How many devices of each class a claim may get at most.
fn of_claim(claim: &ResourceClaim) -> BTreeMap<&str, i64> {
    let devices = claim.spec.as_ref().and_then(|spec| spec.devices.as_ref());
    let requests = devices.and_then(|devices| devices.requests.as_ref());
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    for request in requests.into_iter().flatten() {
        for (class, count) in of_request(request) {
            *counts.entry(class).or_default() += count;
        }
    }
    counts
}

fn of_request(request: &DeviceRequest) -> BTreeMap<&str, i64> {
    let count = |mode: Option<&str>, count: Option<i64>| match mode {
        None | Some("ExactCount") => count.unwrap_or(1),
        Some("All") => ALL,
        // Unknown: not from this version.
        Some(_) => 0,
    };
    let mut most: BTreeMap<&str, i64> = BTreeMap::new();
    for one in request.first_available.iter().flatten() {
        let count = count(one.allocation_mode.as_deref(), one.count);
        let entry = most.entry(&one.device_class_name).or_default();
        *entry = count.max(*entry);
    }
    if let Some(one) = &request.exactly
        && most.is_empty()
    {
        let count = count(one.allocation_mode.as_deref(), one.count);
        most.insert(&one.device_class_name, count);
    }
    most
}
