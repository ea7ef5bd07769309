//! [`Task`]: the search for the devices of all claims on one node.
//!
//! Claim by claim, request by request, device by device the next one that will do is taken, and given back when the rest does not work out. Devices of one
//! request are taken in the order of the pools alone: other orders are the same choice. The first choice that works is the answer.
//! Upstream: structured/internal/incubating/allocator_incubating.go (allocateOne, allocateDevice), v1.37.

use std::collections::HashMap;

use k8s_openapi::api::resource::v1::{DeviceSelector, ResourceClaim};

use crate::allocate_error::{AllocateError, claim_name, wrong, wrong_capacity};
use crate::capacity::{self, CapacityError, Consumed};
use crate::cluster::Cluster;
use crate::constraint::Constraint;
use crate::counters::{self, CounterSets};
use crate::device::{Device, DeviceId, NodeView, PoolId, Slice};
use crate::pools::{Candidate, Pool};
use crate::request::{Choice, MAX_DEVICES_PER_CLAIM, Mode, Wanted};

/// So many steps deep may a search be: devices, requests and claims together. DIFFERS: it recurses, and a thread's stack is finite; upstream's grows.
const MAX_DEPTH: usize = 400;
/// After so many steps the caller is asked whether to go on.
const STEPS_BETWEEN_CHECKS: u64 = 64;

/// What a search may be stopped by and needs beside the state of the cluster.
pub struct Search<'a> {
    /// Asked now and then; true ends the search.
    pub interrupted: &'a dyn Fn() -> bool,
    /// A new UUID for each share of a device.
    pub new_share_id: &'a dyn Fn() -> String,
}

/// Why the search goes back.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The claim would have more devices than fit its status; the alternatives before this one will not help.
    TooMany,
    /// It ends.
    Error(Box<AllocateError>),
}

impl From<AllocateError> for Stop {
    fn from(error: AllocateError) -> Self {
        Stop::Error(Box::new(error))
    }
}

/// What is to be found next.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    claim: usize,
    request: usize,
    /// The alternative that is being tried; `None` when none has been taken up yet.
    alternative: Option<usize>,
    device: usize,
}

/// A device found.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) candidate: Candidate,
    /// Where in the choices of its claim it belongs.
    pub(crate) request: usize,
    pub(crate) alternative: usize,
    pub(crate) share_id: Option<String>,
    pub(crate) consumed: Consumed,
}

/// What taking a device has changed, for giving it back.
#[derive(Default)]
struct Taken {
    drawn: bool,
    constraints: usize,
    marked: bool,
    /// With what it takes, and whether others took of the device in this search before.
    share: Option<(Consumed, bool)>,
}

/// See the module.
pub(crate) struct Task<'a> {
    pub(crate) cluster: &'a Cluster,
    node: &'a NodeView<'a>,
    pub(crate) claims: &'a [&'a ResourceClaim],
    pub(crate) pools: &'a [Pool],
    search: &'a Search<'a>,
    /// By claim.
    pub(crate) choices: Vec<Vec<Choice<'a>>>,
    /// By claim.
    pub(crate) constraints: Vec<Vec<Constraint>>,
    /// By claim, in the order in which they were taken.
    pub(crate) found: Vec<Vec<Found>>,
    keys: usize,
    matches: HashMap<(usize, *const Device), bool>,
    /// For which claims the device is being taken.
    taking: HashMap<DeviceId, Vec<usize>>,
    taking_shares: HashMap<DeviceId, Consumed>,
    drawn: HashMap<PoolId, CounterSets>,
    steps: u64,
    depth: usize,
}

impl<'a> Task<'a> {
    pub(crate) fn new(
        cluster: &'a Cluster,
        node: &'a NodeView<'a>,
        claims: &'a [&'a ResourceClaim],
        pools: &'a [Pool],
        search: &'a Search<'a>,
    ) -> Self {
        Task {
            cluster,
            node,
            claims,
            pools,
            search,
            choices: Vec::with_capacity(claims.len()),
            constraints: Vec::with_capacity(claims.len()),
            found: vec![Vec::new(); claims.len()],
            keys: 0,
            matches: HashMap::new(),
            taking: HashMap::new(),
            taking_shares: HashMap::new(),
            drawn: HashMap::new(),
            steps: 0,
            depth: 0,
        }
    }

    /// A number for a request.
    pub(crate) fn next_key(&mut self) -> usize {
        self.keys += 1;
        self.keys
    }

    /// Finds devices for all claims.
    ///
    /// # Errors
    /// See [`Stop`].
    pub(crate) fn run(&mut self) -> Result<bool, Stop> {
        self.one(Place::default(), Candidate::default())
    }

    pub(crate) fn slice(&self, candidate: Candidate) -> &'a Slice {
        &self.pools[candidate.pool].here[candidate.slice]
    }

    pub(crate) fn device(&self, candidate: Candidate) -> &'a Device {
        &self.slice(candidate).devices[candidate.device]
    }

    fn check_step(&mut self) -> Result<(), Stop> {
        if self.steps.is_multiple_of(STEPS_BETWEEN_CHECKS) && (self.search.interrupted)() {
            return Err(AllocateError::Interrupted.into());
        }
        self.steps += 1;
        if self.depth > MAX_DEPTH {
            return Err(AllocateError::TooDeep { limit: MAX_DEPTH }.into());
        }
        Ok(())
    }

    fn one(&mut self, at: Place, start: Candidate) -> Result<bool, Stop> {
        self.depth += 1;
        let done = self.check_step().and_then(|()| self.step(at, start));
        self.depth -= 1;
        done
    }

    fn step(&mut self, at: Place, start: Candidate) -> Result<bool, Stop> {
        if at.claim >= self.claims.len() {
            return Ok(true);
        }
        let Some(choice) = self.choices[at.claim].get(at.request) else {
            let next = Place {
                claim: at.claim + 1,
                ..Place::default()
            };
            return match self.one(next, Candidate::default()) {
                // Another choice for this claim may leave the next one with alternatives that need less.
                Err(Stop::TooMany) => Ok(false),
                done => done,
            };
        };
        if choice.prioritized && at.alternative.is_none() {
            return self.alternatives(at, choice.wanted.len());
        }
        let wanted = &choice.wanted[at.alternative.unwrap_or(0)];
        let (all, num_devices) = (wanted.request.mode == Mode::All, wanted.num_devices);
        if all && num_devices == 0 {
            return Ok(false);
        }
        if at.device >= num_devices {
            let next = Place {
                claim: at.claim,
                request: at.request + 1,
                ..Place::default()
            };
            return self.one(next, Candidate::default());
        }
        if num_devices - at.device > MAX_DEVICES_PER_CLAIM - self.found[at.claim].len() {
            return Err(Stop::TooMany);
        }
        if all {
            let candidate = wanted.all_devices[at.device];
            return self.with(at, candidate, Candidate::default(), true);
        }
        self.any(at, start)
    }

    /// The first alternative that works out.
    fn alternatives(&mut self, at: Place, count: usize) -> Result<bool, Stop> {
        let mut all_too_many = true;
        for alternative in 0..count {
            let place = Place {
                alternative: Some(alternative),
                ..at
            };
            match self.one(place, Candidate::default()) {
                Err(Stop::TooMany) => continue,
                Err(error) => return Err(error),
                Ok(true) => {
                    self.choices[at.claim][at.request].selected = alternative;
                    return Ok(true);
                }
                Ok(false) => all_too_many = false,
            }
        }
        if all_too_many {
            Err(Stop::TooMany)
        } else {
            Ok(false)
        }
    }

    /// One device after the other, from `start` on.
    fn any(&mut self, at: Place, start: Candidate) -> Result<bool, Stop> {
        let pools = self.pools;
        for (pool_index, pool) in pools.iter().enumerate().skip(start.pool) {
            if !pool.is_usable() {
                continue;
            }
            let same_pool = pool_index == start.pool;
            let first = if same_pool { start.slice } else { 0 };
            for (slice_index, slice) in pool.here.iter().enumerate().skip(first) {
                let same_slice = same_pool && slice_index == start.slice;
                let first = if same_slice { start.device } else { 0 };
                for (device_index, device) in slice.devices.iter().enumerate().skip(first) {
                    if !self.is_candidate(at, slice, device)? {
                        continue;
                    }
                    let candidate = Candidate {
                        pool: pool_index,
                        slice: slice_index,
                        device: device_index,
                    };
                    let next = Candidate {
                        device: device_index + 1,
                        ..candidate
                    };
                    if self.with(at, candidate, next, false)? {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }

    /// Takes the device if possible, goes on, and gives it back if that leads to nothing.
    fn with(
        &mut self,
        at: Place,
        candidate: Candidate,
        next: Candidate,
        must: bool,
    ) -> Result<bool, Stop> {
        let Some(taken) = self.take(at, candidate, must)? else {
            return Ok(false);
        };
        let place = Place {
            device: at.device + 1,
            ..at
        };
        let done = self.one(place, next);
        if !matches!(done, Ok(true)) {
            self.found[at.claim].pop();
            self.give_back(at, candidate, taken);
        }
        done
    }

    fn wanted(&self, at: Place) -> &Wanted<'a> {
        &self.choices[at.claim][at.request].wanted[at.alternative.unwrap_or(0)]
    }

    fn is_taken_for(&self, id: &DeviceId, claim: usize) -> bool {
        let claims = self.taking.get(id);
        claims.is_some_and(|claims| claims.contains(&claim))
    }

    fn is_in_use(&self, id: &DeviceId) -> bool {
        let taking = self.taking.get(id);
        self.cluster.state.is_taken(id) || taking.is_some_and(|claims| !claims.is_empty())
    }

    /// Is it free, matches it, and has it room?
    fn is_candidate(&mut self, at: Place, slice: &Slice, device: &Device) -> Result<bool, Stop> {
        let admin = self.wanted(at).request.admin_access;
        let busy = if admin {
            self.is_taken_for(&device.id, at.claim)
        } else {
            self.is_in_use(&device.id)
        };
        if busy {
            return Ok(false);
        }
        let claim = self.claims[at.claim];
        // The answer is kept in `self`, beside what is looked at.
        let choices = std::mem::take(&mut self.choices);
        let wanted = &choices[at.claim][at.request].wanted[at.alternative.unwrap_or(0)];
        let fits = self.is_selectable(claim, wanted, slice, device);
        let fits = match fits {
            Ok(true) => self
                .has_room(wanted, device)
                .map_err(|error| wrong_capacity(claim, wanted, &device.id, &error)),
            other => other,
        };
        self.choices = choices;
        Ok(fits?)
    }

    fn has_room(&self, wanted: &Wanted<'_>, device: &Device) -> Result<bool, CapacityError> {
        let features = self.cluster.features;
        if !features.consumable_capacity {
            return Ok(true);
        }
        let in_use = [
            self.cluster.state.consumed(&device.id),
            self.taking_shares.get(&device.id),
        ];
        let fractional = features.fractional_capacity_range;
        capacity::has_room(
            &wanted.request.capacity,
            &device.capacity,
            in_use,
            fractional,
        )
    }

    /// Would it have room if nobody else had any of it?
    pub(crate) fn has_static_room(
        &self,
        wanted: &Wanted<'_>,
        device: &Device,
    ) -> Result<bool, CapacityError> {
        let features = self.cluster.features;
        if !features.consumable_capacity {
            return Ok(true);
        }
        let fractional = features.fractional_capacity_range;
        capacity::has_room(
            &wanted.request.capacity,
            &device.capacity,
            [None, None],
            fractional,
        )
    }

    /// Do the selectors of class and request match the device, and is it on the node?
    pub(crate) fn is_selectable(
        &mut self,
        claim: &ResourceClaim,
        wanted: &Wanted<'_>,
        slice: &Slice,
        device: &Device,
    ) -> Result<bool, AllocateError> {
        if !self.cluster.features.device_binding_conditions && device.has_binding_conditions() {
            return Ok(false);
        }
        let key = (wanted.key, std::ptr::from_ref(device));
        if let Some(known) = self.matches.get(&key) {
            return Ok(*known);
        }
        // An expression may take a while, and there may be many devices: no step is taken meanwhile.
        if (self.search.interrupted)() {
            return Err(AllocateError::Interrupted);
        }
        let of_class = wanted
            .class
            .spec
            .as_ref()
            .and_then(|s| s.selectors.as_deref());
        let class = wanted.class.metadata.name.as_deref().unwrap_or_default();
        let matches = self.matching(
            || format!("class {class}"),
            of_class.unwrap_or_default(),
            device,
        )? && self.matching(
            || format!("claim {}", claim_name(claim)),
            wanted.request.selectors,
            device,
        )? && (!slice.per_device
            || device
                .placement
                .matches(self.node)
                .map_err(|reason| wrong(claim, wanted.request.name, &reason))?);
        self.matches.insert(key, matches);
        Ok(matches)
    }

    fn matching(
        &self,
        owner: impl Fn() -> String,
        selectors: &[DeviceSelector],
        device: &Device,
    ) -> Result<bool, AllocateError> {
        for (index, selector) in selectors.iter().enumerate() {
            let expression = selector.cel.as_ref().map_or("", |cel| &cel.expression);
            let failed = |on: Option<String>| {
                let owner = owner();
                move |source| AllocateError::Selector {
                    owner,
                    index,
                    on,
                    source,
                }
            };
            let compiled = self.cluster.selectors.compile(expression);
            let compiled = compiled.map_err(failed(None))?;
            let matches = compiled.matches(device.variable());
            if !matches.map_err(failed(Some(device.id.to_string())))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes a device that matches; `None` when it cannot be had. With `must` a constraint in the way is an error: nothing else can be tried.
    fn take(&mut self, at: Place, candidate: Candidate, must: bool) -> Result<Option<Taken>, Stop> {
        let (device, pool) = (self.device(candidate), &self.pools[candidate.pool]);
        let features = self.cluster.features;
        let shareable = features.consumable_capacity && device.shareable;
        let admin = self.wanted(at).request.admin_access;
        let busy = if admin {
            !shareable && self.is_taken_for(&device.id, at.claim)
        } else {
            self.is_in_use(&device.id)
        };
        let partition = !device.consumes.is_empty();
        if busy || partition && !features.partitionable_devices {
            return Ok(None);
        }
        let mut taken = Taken::default();
        // A further share draws no counters: the first one did.
        let shared =
            self.cluster.state.is_shared(&device.id) || self.taking_shares.contains_key(&device.id);
        if partition && !(shareable && shared) {
            let available = self.cluster.available(pool);
            let drawn = self.drawn.entry(pool.id.clone()).or_default();
            if !counters::draw(&available, drawn, device) {
                return Ok(None);
            }
            taken.drawn = true;
        }
        match self.take_rest(at, candidate, must, shareable, &mut taken) {
            Ok(Some(found)) => {
                self.found[at.claim].push(found);
                Ok(Some(taken))
            }
            Ok(None) => {
                self.give_back(at, candidate, taken);
                Ok(None)
            }
            Err(error) => {
                self.give_back(at, candidate, taken);
                Err(error)
            }
        }
    }

    fn take_rest(
        &mut self,
        at: Place,
        candidate: Candidate,
        must: bool,
        shareable: bool,
        taken: &mut Taken,
    ) -> Result<Option<Found>, Stop> {
        let (device, claim) = (self.device(candidate), self.claims[at.claim]);
        let features = self.cluster.features;
        let wanted = &self.choices[at.claim][at.request].wanted[at.alternative.unwrap_or(0)];
        if features.device_taints && wanted.request.is_kept_away(device) {
            return Ok(None);
        }
        let (request, sub_request) = wanted.request.names();
        for constraint in &mut self.constraints[at.claim] {
            if constraint.add(request, sub_request, device) {
                taken.constraints += 1;
                continue;
            }
            if must {
                let reason = format!(
                    "cannot add device {} because a claim constraint would not be satisfied",
                    device.id
                );
                return Err(wrong(claim, wanted.request.name, &reason).into());
            }
            return Ok(None);
        }
        if !shareable {
            let claims = self.taking.entry(device.id.clone()).or_default();
            claims.push(at.claim);
            taken.marked = true;
        }
        let mut found = Found {
            candidate,
            request: at.request,
            alternative: at.alternative.unwrap_or(0),
            share_id: None,
            consumed: Consumed::new(),
        };
        if features.consumable_capacity {
            let failed = |error: CapacityError| wrong_capacity(claim, wanted, &device.id, &error);
            if !self.has_room(wanted, device).map_err(failed)? {
                return Ok(None);
            }
            if shareable {
                let fractional = features.fractional_capacity_range;
                let consumed =
                    capacity::consumed(&wanted.request.capacity, &device.capacity, fractional)
                        .map_err(failed)?;
                let known = self.taking_shares.get_mut(&device.id);
                taken.share = Some((consumed.clone(), known.is_some()));
                match known {
                    Some(known) => capacity::add(known, &consumed),
                    None => {
                        self.taking_shares
                            .insert(device.id.clone(), consumed.clone());
                    }
                }
                found.share_id = Some((self.search.new_share_id)());
                found.consumed = consumed;
            }
        }
        Ok(Some(found))
    }

    fn give_back(&mut self, at: Place, candidate: Candidate, taken: Taken) {
        let device = self.device(candidate);
        if let Some((consumed, existed)) = taken.share {
            if !existed {
                self.taking_shares.remove(&device.id);
            } else if let Some(known) = self.taking_shares.get_mut(&device.id) {
                capacity::subtract(known, &consumed);
            }
        }
        if taken.marked
            && let Some(claims) = self.taking.get_mut(&device.id)
        {
            claims.retain(|claim| *claim != at.claim);
        }
        let (request, sub_request) = self.wanted(at).request.names();
        for constraint in self.constraints[at.claim][..taken.constraints]
            .iter_mut()
            .rev()
        {
            constraint.remove(request, sub_request);
        }
        let pool = &self.pools[candidate.pool];
        if taken.drawn
            && let Some(drawn) = self.drawn.get_mut(&pool.id)
        {
            counters::give_back(drawn, device);
        }
    }
}
