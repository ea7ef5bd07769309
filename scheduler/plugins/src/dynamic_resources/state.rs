//! [`State`]: what PreFilter leaves, and what later steps add to it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::dynamic_resources::Allocator;
use component_helpers::affinity::NodeSelectorTerms;
use framework::devices::DeviceState;
use framework::{DeviceCache, PodInfo, Status};
use k8s_openapi::api::core::v1::ContainerExtendedResourceRequest;
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim};

use super::claims::{self, allocation, requests, uid};
use super::extended;

/// What was chosen on a node.
#[derive(Debug, Clone, Default)]
pub(super) struct NodeAllocation {
    /// One for each claim that is to be allocated, in order.
    pub(super) results: Vec<AllocationResult>,
    /// The special claim with what it asks for on this node.
    pub(super) special: Option<Arc<ResourceClaim>>,
    /// Which container has which of its requests.
    pub(super) mappings: Vec<ContainerExtendedResourceRequest>,
}

/// What changes after PreFilter.
#[derive(Default)]
pub(super) struct Progress {
    /// The pod's own claims, then the special one; replaced by what is written.
    pub(super) claims: Vec<Arc<ResourceClaim>>,
    /// By node.
    pub(super) nodes: HashMap<String, NodeAllocation>,
    /// What Reserve chose, for each claim; `None` for those that have an allocation.
    pub(super) reserved: Vec<Option<AllocationResult>>,
    /// The UIDs of allocations that are under way because of this pod.
    pub(super) pending: Vec<String>,
    /// The claim that is being written, or was and nobody knows whether the API server took it.
    pub(super) uncertain: Option<usize>,
    /// How long the searches have taken, over all nodes.
    pub(super) searched: Duration,
}

/// See the module.
pub(super) struct State {
    /// How many of the claims the pod names itself; one more is the special claim for extended resources.
    pub(super) own: usize,
    /// Of each allocated claim: where it may be used, if not everywhere.
    pub(super) usable_on: Vec<Option<NodeSelectorTerms>>,
    /// Which claims are to be allocated.
    pub(super) unallocated: Vec<usize>,
    /// Gone once a node is chosen: it holds on to what was taken.
    allocator: Mutex<Option<Arc<Allocator>>>,
    progress: Mutex<Progress>,
}

impl State {
    /// For as long as the guard is kept: not across a wait.
    pub(super) fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All claims as they are now.
    pub(super) fn claims(&self) -> Vec<Arc<ResourceClaim>> {
        self.progress().claims.clone()
    }

    /// The allocator, when something is to be allocated.
    pub(super) fn allocator(&self) -> Option<Arc<Allocator>> {
        let allocator = self.allocator.lock();
        allocator.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn forget_allocator(&self) {
        let allocator = self.allocator.lock();
        *allocator.unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Is it the claim for extended resources?
    pub(super) fn is_special(&self, index: usize) -> bool {
        index >= self.own
    }
}

/// Looks at the pod's claims; `None` when it has none.
///
/// # Errors
/// Why it has to wait, or what is wrong.
pub(super) fn prepare(cache: &DeviceCache, pod: &PodInfo) -> Result<Option<State>, Status> {
    // Made outside of the lock below.
    let inventory = cache.inventory();
    let devices = cache.read();
    let own = claims::of_pod(&devices, &pod.pod);
    let mut all = own.map_err(|error| Status::unresolvable(error.to_string()))?;
    let count = all.len();
    all.extend(extended::special_claim(&devices, pod));
    if all.is_empty() {
        return Ok(None);
    }
    let (mut usable_on, mut unallocated) = (Vec::new(), Vec::new());
    for (index, claim) in all.iter().enumerate() {
        let Some(allocation) = allocation(claim) else {
            usable_on.push(None);
            unallocated.push(index);
            check_unallocated(&devices, claim, index >= count)?;
            continue;
        };
        let selector = allocation
            .node_selector
            .as_ref()
            .map(NodeSelectorTerms::new);
        if let Some(wrong) = selector.as_ref().and_then(|s| s.errors().first()) {
            return Err(Status::error(wrong));
        }
        usable_on.push(selector);
    }
    let allocator = (!unallocated.is_empty()).then(|| {
        Arc::new(Allocator::new(
            cache.features(),
            devices.allocated(),
            Arc::clone(devices.classes()),
            inventory,
            Arc::clone(cache.selectors()),
        ))
    });
    Ok(Some(State {
        own: count,
        usable_on,
        unallocated,
        allocator: Mutex::new(allocator),
        progress: Mutex::new(Progress {
            reserved: vec![None; all.len()],
            claims: all,
            ..Progress::default()
        }),
    }))
}

fn full_name(claim: &ResourceClaim) -> String {
    framework::devices::claim_key(claim)
}

fn check_unallocated(
    devices: &DeviceState,
    claim: &ResourceClaim,
    special: bool,
) -> Result<(), Status> {
    if devices.is_pending(uid(claim)) {
        return Err(Status::unresolvable(format!(
            "resource claim {} is in the process of being allocated",
            full_name(claim)
        )));
    }
    if special {
        return Ok(());
    }
    let check_class = |class: &str, request: &str| {
        if class.is_empty() {
            return Err(Status::error(format!(
                "request {request}: unsupported request type"
            )));
        }
        match devices.classes().get(class) {
            Some(_) => Ok(()),
            None => Err(Status::unresolvable(format!(
                "request {request}: device class {class} does not exist"
            ))),
        }
    };
    for request in requests(claim) {
        let alternatives = request.first_available.as_deref().unwrap_or_default();
        if let Some(exactly) = &request.exactly {
            check_class(&exactly.device_class_name, &request.name)?;
        } else if alternatives.is_empty() {
            return Err(Status::unresolvable(format!(
                "resource claim {}, request {}: unknown request type",
                full_name(claim),
                request.name
            )));
        }
        for alternative in alternatives {
            let name = format!("{}/{}", request.name, alternative.name);
            check_class(&alternative.device_class_name, &name)?;
        }
    }
    Ok(())
}
