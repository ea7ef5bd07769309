//! [`Allocator`]: the question as the scheduler asks it, for one pod and one node after the other.
//!
//! Upstream: structured/internal/incubating/allocator_incubating.go (Allocate, validateDeviceRequest), v1.37.

use std::sync::Arc;

use k8s_openapi::api::resource::v1::{AllocationResult, DeviceRequest, ResourceClaim};

use crate::allocate_error::{AllocateError, claim_name, wrong, wrong_capacity};
use crate::classes::Classes;
use crate::cluster::Cluster;
use crate::constraint::Constraint;
use crate::device::NodeView;
use crate::features::Features;
use crate::outcome;
use crate::pools::{Candidate, Inventory, Pool, gather};
use crate::request::{Choice, MAX_DEVICES_PER_CLAIM, Mode, Request, Wanted};
use crate::search::{Search, Stop, Task};
use crate::selector::Selectors;
use crate::state::AllocatedState;

/// Allocates the claims of one pod. Can be asked about many nodes.
pub struct Allocator {
    cluster: Cluster,
}

/// The requests of a claim.
fn requests(claim: &ResourceClaim) -> &[DeviceRequest] {
    let devices = claim.spec.as_ref().and_then(|s| s.devices.as_ref());
    devices
        .and_then(|d| d.requests.as_deref())
        .unwrap_or_default()
}

impl Allocator {
    /// With the cluster as it is now.
    pub fn new(
        features: Features,
        state: Arc<AllocatedState>,
        classes: Arc<Classes>,
        inventory: Arc<Inventory>,
        selectors: Arc<Selectors>,
    ) -> Self {
        Allocator {
            cluster: Cluster::new(features, state, classes, inventory, selectors),
        }
    }

    /// The first choice of devices for all `claims` on a node; one result each, in order. `None`: they cannot be allocated there now.
    ///
    /// # Errors
    /// See [`AllocateError`]; all but [`AllocateError::InvalidPools`] hold for any node.
    pub fn allocate(
        &self,
        node: &NodeView<'_>,
        claims: &[&ResourceClaim],
        search: &Search<'_>,
    ) -> Result<Option<Vec<AllocationResult>>, AllocateError> {
        let pools = gather(&self.cluster.inventory, node, self.cluster.features)?;
        let mut task = Task::new(&self.cluster, node, claims, &pools, search);
        for (index, claim) in claims.iter().enumerate() {
            self.prepare(&mut task, index, claim)?;
        }
        match task.run() {
            Ok(true) => {}
            Ok(false) | Err(Stop::TooMany) if pools.iter().any(|p| p.invalid.is_some()) => {
                return Err(AllocateError::InvalidPools);
            }
            Ok(false) | Err(Stop::TooMany) => return Ok(None),
            Err(Stop::Error(error)) => return Err(*error),
        }
        outcome::results(&task, node).map(Some)
    }

    /// Checks a claim and finds how many devices it needs at least.
    fn prepare<'a>(
        &self,
        task: &mut Task<'a>,
        index: usize,
        claim: &'a ResourceClaim,
    ) -> Result<(), AllocateError> {
        let (mut choices, mut least) = (Vec::new(), 0usize);
        for request in requests(claim) {
            let wrong = |reason: &str| wrong(claim, &request.name, reason);
            let alternatives = request.first_available.as_deref().unwrap_or_default();
            let prioritized = !alternatives.is_empty();
            let ways: Vec<Request<'_>> = if prioritized {
                let alternative = |sub| Request::alternative(&request.name, sub);
                alternatives.iter().map(alternative).collect()
            } else {
                let exactly = Request::exactly(request);
                vec![exactly.ok_or_else(|| wrong("unknown request type"))?]
            };
            let mut wanted = Vec::with_capacity(ways.len());
            for way in ways {
                wanted.push(self.prepare_request(task, claim, way)?);
            }
            let fewest = wanted.iter().map(|w| w.num_devices).min().unwrap_or(0);
            if fewest > MAX_DEVICES_PER_CLAIM - least {
                let reason = format!(
                    "adding {fewest} devices exceeds the claim limit of {MAX_DEVICES_PER_CLAIM}, with {least} already accounted for"
                );
                return Err(wrong(&reason));
            }
            least += fewest;
            choices.push(Choice {
                wanted,
                prioritized,
                selected: 0,
            });
        }
        task.choices.push(choices);
        let devices = claim.spec.as_ref().and_then(|s| s.devices.as_ref());
        let constraints = devices.and_then(|d| d.constraints.as_deref());
        let mut ready = Vec::new();
        for (number, constraint) in constraints.unwrap_or_default().iter().enumerate() {
            ready.push(
                Constraint::new(constraint).ok_or_else(|| AllocateError::Constraint {
                    claim: claim_name(claim),
                    index: number,
                })?,
            );
        }
        debug_assert_eq!(task.constraints.len(), index);
        task.constraints.push(ready);
        Ok(())
    }

    fn prepare_request<'a>(
        &self,
        task: &mut Task<'a>,
        claim: &'a ResourceClaim,
        request: Request<'a>,
    ) -> Result<Wanted<'a>, AllocateError> {
        let wrong = |reason: String| wrong(claim, request.name, &reason);
        if request.asks_capacity && !self.cluster.features.consumable_capacity {
            return Err(wrong(
                "has capacity requests, but the DRAConsumableCapacity feature is disabled".into(),
            ));
        }
        if request.derives_attributes {
            return Err(wrong(
                "cannot handle request with derived attributes, the feature is disabled".into(),
            ));
        }
        if let Some(index) = request.selectors.iter().position(|s| s.cel.is_none()) {
            let reason =
                format!("selector #{index}: CEL expression empty (unsupported selector type?)");
            return Err(wrong(reason));
        }
        if request.class_name.is_empty() {
            return Err(wrong(
                "missing device class name (unsupported request type?)".into(),
            ));
        }
        let Some(class) = self.cluster.classes.get(request.class_name) else {
            let reason = format!(
                "could not retrieve device class {name}: deviceclass.resource.k8s.io {name:?} not found",
                name = request.class_name
            );
            return Err(wrong(reason));
        };
        let num_devices = match request.mode {
            Mode::Exactly(count) => usize::try_from(count).unwrap_or(0),
            Mode::All => 0,
            Mode::Unknown(mode) => return Err(wrong(format!("unsupported count mode {mode}"))),
        };
        let mut wanted = Wanted {
            class: Arc::clone(class),
            num_devices,
            all_devices: Vec::new(),
            key: task.next_key(),
            request,
        };
        if wanted.request.mode == Mode::All {
            wanted.all_devices = all_devices(task, claim, &wanted)?;
            wanted.num_devices = wanted.all_devices.len();
        }
        Ok(wanted)
    }
}

/// All devices a request matches. What others have taken of them is looked at later, so that a request for all fails when one is taken.
fn all_devices(
    task: &mut Task<'_>,
    claim: &ResourceClaim,
    wanted: &Wanted<'_>,
) -> Result<Vec<Candidate>, AllocateError> {
    let mut found = Vec::new();
    let pools: &[Pool] = task.pools;
    for (pool_index, pool) in pools.iter().enumerate() {
        let state = match (pool.incomplete, &pool.invalid) {
            (true, _) => Some("being updated"),
            (false, Some(_)) => Some("invalid"),
            (false, None) => None,
        };
        if let Some(state) = state {
            let reason = format!(
                "asks for all devices, but resource pool {} is currently {state}",
                pool.id
            );
            return Err(wrong(claim, wanted.request.name, &reason));
        }
        for (slice_index, slice) in pool.here.iter().enumerate() {
            for (device_index, device) in slice.devices.iter().enumerate() {
                let candidate = Candidate {
                    pool: pool_index,
                    slice: slice_index,
                    device: device_index,
                };
                if !task.is_selectable(claim, wanted, slice, device)? {
                    continue;
                }
                let room = task.has_static_room(wanted, device);
                if room.map_err(|e| wrong_capacity(claim, wanted, &device.id.device, &e))? {
                    found.push(candidate);
                }
            }
        }
    }
    Ok(found)
}
