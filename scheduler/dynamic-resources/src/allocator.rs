//! [`Allocator`]: the question as the scheduler asks it, for one pod and one node after the other.
//!
//! Upstream: structured/internal/incubating/allocator_incubating.go (Allocate, validateDeviceRequest), v1.37.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use k8s_openapi::api::resource::v1::{AllocationResult, DeviceRequest, ResourceClaim};

use crate::capacity::CapacityError;
use crate::classes::Classes;
use crate::constraint::Constraint;
use crate::counters::CounterSets;
use crate::device::{NodeView, PoolId};
use crate::features::Features;
use crate::outcome;
use crate::pools::{Inventory, PlaceError, Pool, gather};
use crate::request::{Choice, Mode, Request, Wanted};
use crate::search::{Candidate, Stop, Task};
use crate::selector::{SelectorError, Selectors};
use crate::state::AllocatedState;

/// Devices of a claim. Upstream: `AllocationResultsMaxSize`.
pub const MAX_DEVICES_PER_CLAIM: usize = 32;

/// Why claims cannot be allocated at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// Not on this node; others may do.
    #[error("invalid resource pools were encountered")]
    InvalidPools,
    /// The search was interrupted; a retry may help.
    #[error("filter operation aborted")]
    Interrupted,
    /// The claims together want more devices than are looked for at once. A retry does not help.
    #[error(
        "the claims of the pod ask for more devices and alternatives than {limit} steps of a search"
    )]
    TooDeep {
        /// How many steps deep a search may be.
        limit: usize,
    },
    /// A slice says a place that cannot be read.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A request that makes no sense, or asks for what is not there. A retry helps when its class changes.
    #[error("claim {claim}, request {request}: {reason}")]
    Request {
        /// `namespace/name`.
        claim: String,
        /// The request's name.
        request: String,
        /// What is wrong.
        reason: String,
    },
    /// A constraint of an unknown kind.
    #[error("claim {claim}, constraint #{index}: empty constraint (unsupported constraint type?)")]
    Constraint {
        /// `namespace/name`.
        claim: String,
        /// Its number, from 0.
        index: usize,
    },
    /// A selector of a class or claim that cannot be asked.
    #[error("{owner}: selector #{index}{}: {source}", on.as_ref().map(|d| format!(" on device {d}")).unwrap_or_default())]
    Selector {
        /// `class NAME` or `claim NAMESPACE/NAME`.
        owner: String,
        /// Its number, from 0.
        index: usize,
        /// The device, when it went wrong there.
        on: Option<String>,
        /// What went wrong.
        #[source]
        source: SelectorError,
    },
    /// Node selectors of slices that cannot be put together.
    #[error(
        "create NodeSelector for claim {claim}: unsupported ResourceSlice.NodeSelector with {terms} terms"
    )]
    NodeSelector {
        /// The claim's name.
        claim: String,
        /// How many terms there are.
        terms: usize,
    },
}

/// What a search may be stopped by and needs beside the state of the cluster.
pub struct Search<'a> {
    /// Asked now and then; true ends the search.
    pub interrupted: &'a dyn Fn() -> bool,
    /// A new UUID for each share of a device.
    pub new_share_id: &'a dyn Fn() -> String,
}

/// Allocates the claims of one pod. Can be asked about many nodes.
pub struct Allocator {
    pub(crate) features: Features,
    pub(crate) state: Arc<AllocatedState>,
    pub(crate) classes: Arc<Classes>,
    pub(crate) inventory: Arc<Inventory>,
    pub(crate) selectors: Arc<Selectors>,
    /// What allocated devices have left of the counters of pools; the same for all nodes.
    pub(crate) available: Mutex<HashMap<PoolId, Arc<CounterSets>>>,
}

/// `namespace/name`.
pub(crate) fn claim_name(claim: &ResourceClaim) -> String {
    let meta = &claim.metadata;
    format!(
        "{}/{}",
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default()
    )
}

/// The requests of a claim.
pub(crate) fn requests(claim: &ResourceClaim) -> &[DeviceRequest] {
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
            features,
            state,
            classes,
            inventory,
            selectors,
            available: Mutex::default(),
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
        let pools = gather(&self.inventory, node, self.features)?;
        let mut task = Task::new(self, node, claims, &pools, search);
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
        if request.asks_capacity && !self.features.consumable_capacity {
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
        let Some(class) = self.classes.get(request.class_name) else {
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

pub(crate) fn wrong(claim: &ResourceClaim, request: &str, reason: &str) -> AllocateError {
    AllocateError::Request {
        claim: claim_name(claim),
        request: request.to_owned(),
        reason: reason.to_owned(),
    }
}

pub(crate) fn wrong_capacity(
    claim: &ResourceClaim,
    wanted: &Wanted<'_>,
    device: &dyn std::fmt::Display,
    error: &CapacityError,
) -> AllocateError {
    let reason = format!("checking capacity for device {device}: {error}");
    wrong(claim, wanted.request.name, &reason)
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
