//! What pods and claims say, in the words of the crate `dra`; pure.
//!
//! Upstream: pkg/kubelet/cm/dra/{manager,claiminfo}.go, `GetDynamicResources` in pkg/kubelet/cm, v1.37.

use std::collections::BTreeMap;

use ::devices::pod_resources::v1;
use ::dra::{ClaimInfo, ClaimKey, ClaimRequest, DriverRequest};
use component_helpers::resource_claim::{
    NameError, NotForPod, allocated_devices, claim_name, entries, extended_status, is_allocated,
    is_for_pod, is_reserved_for_pod,
};
use component_helpers::resources::is_extended_resource_name;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::api::resource::v1::{DeviceRequestAllocationResult, ResourceClaim};

use crate::pod;

/// What the name of an extended resource begins with that stands for a class of devices. Upstream: `ResourceDeviceClassPrefix`.
const DEVICE_CLASS_PREFIX: &str = "deviceclass.resource.kubernetes.io/";
/// All of them. Upstream: `SkipNodeOperationAll`.
const ALL_OPERATIONS: &str = "*";

/// Why the pod may not use a claim as it is now. Another look at it may say otherwise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimProblem {
    #[error(transparent)]
    NotForPod(#[from] NotForPod),
    #[error("pod {pod} ({pod_uid}) is not allowed to use ResourceClaim {claim} ({claim_uid})")]
    NotReserved {
        pod: String,
        pod_uid: String,
        claim: String,
        claim_uid: String,
    },
    #[error("ResourceClaim {0}: not allocated")]
    NotAllocated(String),
    /// The gate of this name is off.
    #[error("ResourceClaim {0}: DRAOptionalNodeOperations feature gate is disabled on kubelet")]
    OptionalNodeOperations(String),
}

/// A claim that the pod uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodClaim<'a> {
    pub name: &'a str,
    /// It was made for the pod.
    pub must_be_owned: bool,
}

/// The claims of the pod, the one for extended resources last.
///
/// # Errors
/// One is not made yet.
pub fn claims_of(pod: &Pod) -> Result<Vec<PodClaim<'_>>, NameError> {
    let mut all = Vec::new();
    for entry in entries(pod) {
        // It may have turned out that none is needed.
        if let Some(name) = claim_name(pod, entry)? {
            all.push(PodClaim {
                name: name.name,
                must_be_owned: name.must_be_owned,
            });
        }
    }
    let extended = extended_status(pod).map(|status| PodClaim {
        name: &status.resource_claim_name,
        // As upstream: the scheduler made it and wrote its name down.
        must_be_owned: false,
    });
    all.extend(extended);
    Ok(all)
}

/// The claim as drivers are asked for it. `optional`: it may say that they need not be.
///
/// # Errors
/// The pod may not use it.
pub fn request(
    pod: &Pod,
    of_pod: &PodClaim<'_>,
    claim: &ResourceClaim,
    optional: bool,
) -> Result<ClaimRequest, ClaimProblem> {
    let uid = claim.metadata.uid.clone().unwrap_or_default();
    let name = || of_pod.name.to_owned();
    if of_pod.must_be_owned {
        is_for_pod(pod, claim)?;
    }
    if !is_reserved_for_pod(pod, claim) {
        return Err(ClaimProblem::NotReserved {
            pod: pod::name(pod).to_owned(),
            pod_uid: pod::uid(pod).to_owned(),
            claim: name(),
            claim_uid: uid,
        });
    }
    if !is_allocated(claim) {
        return Err(ClaimProblem::NotAllocated(name()));
    }
    let drivers = drivers(allocated_devices(claim));
    if !optional && drivers.values().any(|driver| !driver.skipped.is_empty()) {
        return Err(ClaimProblem::OptionalNodeOperations(name()));
    }
    Ok(ClaimRequest {
        key: key(pod, of_pod.name),
        uid,
        drivers,
    })
}

/// A driver needs not be called if it needs not be for any of its devices. Upstream: `computeDriverStates`.
fn drivers(results: &[DeviceRequestAllocationResult]) -> BTreeMap<String, DriverRequest> {
    let mut by_driver: BTreeMap<&str, Vec<&[String]>> = BTreeMap::new();
    for result in results {
        let skipped = result.skip_node_operations.as_deref().unwrap_or_default();
        by_driver.entry(&result.driver).or_default().push(skipped);
    }
    let of_driver = |(driver, devices): (&str, Vec<&[String]>)| {
        let is_skipped = |call: &String| {
            let mut devices = devices.iter();
            devices.all(|skipped| {
                skipped.contains(call) || skipped.iter().any(|s| s == ALL_OPERATIONS)
            })
        };
        let all = ALL_OPERATIONS.to_owned();
        let mut skipped: Vec<String> = match is_skipped(&all) {
            true => vec![all],
            false => devices
                .iter()
                .copied()
                .flatten()
                .filter(|s| **s != all && is_skipped(s))
                .cloned()
                .collect(),
        };
        skipped.sort();
        skipped.dedup();
        (driver.to_owned(), DriverRequest { skipped })
    };
    by_driver.into_iter().map(of_driver).collect()
}

fn key(pod: &Pod, name: &str) -> ClaimKey {
    ClaimKey {
        namespace: pod::namespace(pod).to_owned(),
        name: name.to_owned(),
    }
}

/// The claim of an entry of `spec.resourceClaims`; `None`: there is none, or no such entry.
pub(super) fn key_of_entry(pod: &Pod, entry: &str) -> Result<Option<ClaimKey>, NameError> {
    let Some(entry) = entries(pod).iter().find(|one| one.name == entry) else {
        return Ok(None);
    };
    let name = claim_name(pod, entry)?;
    Ok(name.map(|name| key(pod, name.name)))
}

/// The claims that the container uses, and which request of each; `None`: all of the claim.
pub(super) fn container_requests(
    pod: &Pod,
    container: &Container,
) -> Result<Vec<(ClaimKey, Option<String>)>, NameError> {
    let mut all = Vec::new();
    for claim in container
        .resources
        .iter()
        .flat_map(|r| r.claims.iter().flatten())
    {
        if let Some(key) = key_of_entry(pod, &claim.name)? {
            let request = claim.request.clone().filter(|request| !request.is_empty());
            all.push((key, request));
        }
    }
    let Some(extended) = extended_status(pod) else {
        return Ok(all);
    };
    let requested = |resource: &str| {
        let requests = container
            .resources
            .as_ref()
            .and_then(|r| r.requests.as_ref());
        let quantity = requests.and_then(|requests| requests.get(resource));
        let is_wanted = quantity.is_some_and(|q| component_helpers::quantity::value(q) > 0);
        is_wanted
            && (is_extended_resource_name(resource) || resource.starts_with(DEVICE_CLASS_PREFIX))
    };
    for mapping in &extended.request_mappings {
        if mapping.container_name == container.name && requested(&mapping.resource_name) {
            let key = key(pod, &extended.resource_claim_name);
            all.push((key, Some(mapping.request_name.clone())));
        }
    }
    Ok(all)
}

/// Drivers are told of requests, not of the alternatives below one. Upstream: `BaseRequestRef`.
pub(super) fn base_request(request: &str) -> &str {
    request.split('/').next().unwrap_or(request)
}

/// DIFFERS: a device has its own CDI devices; upstream's has those of the devices before it, too.
pub(super) fn dynamic_resource(key: ClaimKey, info: ClaimInfo) -> v1::DynamicResource {
    let of_driver = |(driver, state): (String, ::dra::DriverState)| {
        let devices = state.devices.into_iter();
        devices.map(move |device| v1::ClaimResource {
            cdi_devices: device
                .cdi_device_ids
                .into_iter()
                .map(|name| v1::CdiDevice { name })
                .collect(),
            driver_name: driver.clone(),
            pool_name: device.pool_name,
            device_name: device.device_name,
            share_id: device.share_id,
        })
    };
    v1::DynamicResource {
        claim_name: key.name,
        claim_namespace: key.namespace,
        claim_resources: info.drivers.into_iter().flat_map(of_driver).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn test_pod() -> Pod {
        let object = json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {
                "containers": [
                    {"name": "c", "resources": {
                        "claims": [{"name": "own"}, {"name": "made", "request": "r"}, {"name": "none"}],
                        "requests": {"example.com/gpu": "2", "cpu": "1"},
                    }},
                    {"name": "d", "resources": {"requests": {"example.com/gpu": "0", "deviceclass.resource.kubernetes.io/x": "1"}}},
                ],
                "resourceClaims": [
                    {"name": "own", "resourceClaimName": "given"},
                    {"name": "made", "resourceClaimTemplateName": "t"},
                    {"name": "none", "resourceClaimTemplateName": "t"},
                ],
            },
            "status": {
                "resourceClaimStatuses": [{"name": "made", "resourceClaimName": "p-made-x"}, {"name": "none"}],
                "extendedResourceClaimStatus": {"resourceClaimName": "ext", "requestMappings": [
                    {"containerName": "c", "resourceName": "example.com/gpu", "requestName": "q0"},
                    {"containerName": "c", "resourceName": "example.com/gpu", "requestName": "q1"},
                    {"containerName": "c", "resourceName": "example.com/nic", "requestName": "q2"},
                    {"containerName": "d", "resourceName": "example.com/gpu", "requestName": "q3"},
                    {"containerName": "d", "resourceName": "deviceclass.resource.kubernetes.io/x", "requestName": "q4"},
                ]},
            },
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_pod_uses_what_it_names_and_what_was_made_for_it() {
        let pod = test_pod();
        let all = claims_of(&pod).unwrap();
        let names: Vec<_> = all.iter().map(|c| (c.name, c.must_be_owned)).collect();
        assert_eq!(
            names,
            [("given", false), ("p-made-x", true), ("ext", false)]
        );
        let mut waits = pod;
        waits.status = None;
        let told = claims_of(&waits).unwrap_err().to_string();
        assert!(told.ends_with("ResourceClaim not created yet"), "{told}");
    }

    #[test]
    fn a_container_gets_the_requests_that_it_names() {
        let pod = test_pod();
        let of = |name: &str| -> Vec<String> {
            let container = pod::containers(&pod).iter().find(|c| c.name == name);
            let all = container_requests(&pod, container.unwrap()).unwrap();
            all.iter()
                .map(|(key, request)| format!("{} {}", key.name, request.as_deref().unwrap_or("*")))
                .collect()
        };
        assert_eq!(of("c"), ["given *", "p-made-x r", "ext q0", "ext q1"]);
        assert_eq!(of("d"), ["ext q4"]);
        assert_eq!(base_request("gpu/large"), "gpu");
        assert_eq!(base_request("gpu"), "gpu");
    }

    fn claim(change: impl FnOnce(&mut Value)) -> ResourceClaim {
        let mut object = json!({
            "metadata": {"name": "given", "namespace": "ns", "uid": "cu", "ownerReferences": [
                {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true},
            ]},
            "spec": {},
            "status": {
                "reservedFor": [{"resource": "pods", "name": "p", "uid": "u"}],
                "allocation": {"devices": {"results": [
                    {"request": "r", "driver": "a", "pool": "p", "device": "1"},
                    {"request": "r", "driver": "b", "pool": "p", "device": "1", "skipNodeOperations": ["*"]},
                ]}},
            },
        });
        change(&mut object);
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_claim_is_for_whom_it_is_reserved() {
        let pod = test_pod();
        let check = |change: fn(&mut Value), must_be_owned, expect: Result<&str, &str>| {
            let of_pod = PodClaim {
                name: "given",
                must_be_owned,
            };
            let said = request(&pod, &of_pod, &claim(change), true).map(|request| {
                let drivers = request.drivers.iter();
                let drivers: Vec<_> = drivers
                    .map(|(name, d)| format!("{name}{:?}", d.skipped))
                    .collect();
                format!("{} {} {}", request.key, request.uid, drivers.join(" "))
            });
            let said = said.map_err(|error| error.to_string());
            assert_eq!(said, expect.map(str::to_owned).map_err(str::to_owned));
        };
        let good = Ok("ns/given cu a[] b[\"*\"]");
        check(|_| {}, true, good);
        check(
            |c| c["metadata"]["ownerReferences"] = json!([]),
            true,
            Err("ResourceClaim ns/given was not created for Pod ns/p (Pod is not owner)"),
        );
        check(
            |c| c["metadata"]["ownerReferences"] = json!([]),
            false,
            good,
        );
        check(
            |c| c["status"]["reservedFor"][0]["uid"] = json!("other"),
            false,
            Err("pod p (u) is not allowed to use ResourceClaim given (cu)"),
        );
        check(
            |c| c["status"]["allocation"] = Value::Null,
            false,
            Err("ResourceClaim given: not allocated"),
        );
        // Of several devices of a driver all must agree.
        check(
            |c| {
                let results = &mut c["status"]["allocation"]["devices"]["results"];
                results[0]["driver"] = json!("b");
                results[0]["skipNodeOperations"] = json!(["NodePrepareResources"]);
            },
            false,
            Ok("ns/given cu b[\"NodePrepareResources\"]"),
        );
        check(
            |c| c["status"]["allocation"]["devices"]["results"][0]["driver"] = json!("b"),
            false,
            Ok("ns/given cu b[]"),
        );
        let of_pod = PodClaim {
            name: "given",
            must_be_owned: false,
        };
        let told = request(&pod, &of_pod, &claim(|_| {}), false).unwrap_err();
        assert_eq!(
            told,
            ClaimProblem::OptionalNodeOperations("given".to_owned())
        );
    }
}
