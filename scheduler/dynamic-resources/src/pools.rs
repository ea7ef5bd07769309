//! [`Inventory`]: the slices of the cluster; and the pools of a node gathered from them.
//!
//! Of a pool only the newest generation counts. A pool of which slices are missing is incomplete: nothing is allocated from it, and a request for all
//! devices fails. Pools go by driver and name, their slices by name, those with binding conditions last: drivers steer the choice by names.
//! Upstream: structured/internal/incubating/pools_incubating.go, v1.37.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::counters::{self, CounterSets};
use crate::device::{Counters, NodeView, PoolId, Slice};
use crate::features::Features;
use crate::state::AllocatedState;

/// All slices, by where they are looked for.
#[derive(Debug, Default)]
pub struct Inventory {
    on_node: HashMap<String, Vec<Arc<Slice>>>,
    shared: Vec<Arc<Slice>>,
    by_pool: HashMap<PoolId, Vec<Arc<Slice>>>,
}

impl Inventory {
    /// Of these slices.
    pub fn new(slices: impl IntoIterator<Item = Arc<Slice>>) -> Self {
        let mut inventory = Inventory::default();
        for slice in slices {
            let of_pool = inventory.by_pool.entry(slice.pool.clone()).or_default();
            of_pool.push(Arc::clone(&slice));
            match slice.node_name() {
                Some(node) => {
                    let of_node = inventory.on_node.entry(node.to_owned()).or_default();
                    of_node.push(slice);
                }
                None => inventory.shared.push(slice),
            }
        }
        inventory
    }

    fn of_node(&self, name: &str) -> impl Iterator<Item = &Arc<Slice>> {
        let own = self.on_node.get(name).into_iter().flatten();
        own.chain(&self.shared)
    }
}

/// A pool as a node sees it.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) id: PoolId,
    pub(crate) incomplete: bool,
    /// Why nothing may be allocated from it.
    pub(crate) invalid: Option<String>,
    /// Slices with devices for the node.
    pub(crate) here: Vec<Arc<Slice>>,
    /// Its other slices; their devices draw from the same counters.
    pub(crate) elsewhere: Vec<Arc<Slice>>,
    pub(crate) counter_sets: CounterSets,
}

impl Pool {
    pub(crate) fn is_usable(&self) -> bool {
        !self.incomplete && self.invalid.is_none()
    }

    fn empty(id: PoolId) -> Self {
        Pool {
            id,
            incomplete: false,
            invalid: None,
            here: Vec::new(),
            elsewhere: Vec::new(),
            counter_sets: CounterSets::new(),
        }
    }

    /// What allocated devices have left of its counters; may be less than nothing.
    pub(crate) fn available(&self, state: &AllocatedState) -> CounterSets {
        let slices = self.here.iter().chain(&self.elsewhere);
        let allocated = slices
            .flat_map(|slice| &slice.devices)
            .filter(|device| state.is_allocated(&device.id));
        counters::left(&self.counter_sets, allocated)
    }

    fn has_binding_conditions(&self) -> bool {
        let mut devices = self.here.iter().flat_map(|slice| &slice.devices);
        devices.any(|device| device.api.binding_conditions.is_some())
    }
}

/// A device, by its place in the pools. Ordered as the search goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Candidate {
    pub(crate) pool: usize,
    pub(crate) slice: usize,
    pub(crate) device: usize,
}

/// A slice, or a device of it, whose place cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("gather pool information: failed to perform node selection for {what}: {reason}")]
pub struct PlaceError {
    what: String,
    reason: String,
}

/// Has the slice anything for the node?
fn concerns(slice: &Slice, node: &NodeView<'_>) -> Result<bool, PlaceError> {
    use crate::device::Placement;
    if slice.placement != Placement::Unknown {
        return slice.placement.matches(node).map_err(|reason| PlaceError {
            what: format!("slice {}", slice.name),
            reason,
        });
    }
    if !slice.per_device {
        // Something newer than this.
        return Ok(false);
    }
    for device in &slice.devices {
        let found = device
            .placement
            .matches(node)
            .map_err(|reason| PlaceError {
                what: format!("device {} in slice {}", device.id.device, slice.name),
                reason,
            })?;
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The pools with devices for a node, in the order they are searched.
///
/// # Errors
/// See [`PlaceError`].
pub(crate) fn gather(
    inventory: &Inventory,
    node: &NodeView<'_>,
    features: Features,
) -> Result<Vec<Pool>, PlaceError> {
    let mut found: BTreeMap<&PoolId, Vec<Arc<Slice>>> = BTreeMap::new();
    for slice in inventory.of_node(node.name) {
        let partitions = slice.says_per_device || !slice.shared_counters.is_empty();
        if partitions && !features.partitionable_devices || slice.has_compatibility_groups {
            continue;
        }
        if !concerns(slice, node)? {
            continue;
        }
        let known = found.entry(&slice.pool).or_default();
        match known.first().map(|first| first.generation) {
            Some(generation) if slice.generation < generation => continue,
            Some(generation) if slice.generation > generation => known.clear(),
            _ => {}
        }
        known.push(Arc::clone(slice));
    }
    let (mut pools, mut conditional) = (Vec::new(), Vec::new());
    for (id, slices) in found {
        let Some(pool) = complete(inventory, id, slices, features) else {
            continue;
        };
        if pool.has_binding_conditions() {
            conditional.push(pool);
        } else {
            pools.push(pool);
        }
    }
    pools.append(&mut conditional);
    Ok(pools)
}

/// The pool of these slices of the node; `None` when a newer generation is on its way, without anything for the node.
fn complete(
    inventory: &Inventory,
    id: &PoolId,
    here: Vec<Arc<Slice>>,
    features: Features,
) -> Option<Pool> {
    let (generation, count) = (here[0].generation, here[0].slice_count);
    if i64::try_from(here.len()) == Ok(count) {
        return Some(build(id, here, Vec::new(), features));
    }
    let all = inventory.by_pool.get(id).map_or(&[][..], Vec::as_slice);
    if all.iter().any(|slice| slice.generation > generation) {
        return None;
    }
    let current = all
        .iter()
        .filter(|slice| slice.generation == generation && !slice.has_compatibility_groups);
    if i64::try_from(current.clone().count()) != Ok(count) {
        return Some(Pool {
            incomplete: true,
            ..Pool::empty(id.clone())
        });
    }
    let names: BTreeSet<&str> = here.iter().map(|slice| slice.name.as_str()).collect();
    let elsewhere = current.filter(|slice| !names.contains(slice.name.as_str()));
    let elsewhere = elsewhere.cloned().collect();
    Some(build(id, here, elsewhere, features))
}

fn build(
    id: &PoolId,
    mut here: Vec<Arc<Slice>>,
    mut elsewhere: Vec<Arc<Slice>>,
    features: Features,
) -> Pool {
    here.sort_by(|a, b| a.name.cmp(&b.name));
    let mut pool = Pool::empty(id.clone());
    let mut counting = Vec::new();
    if features.partitionable_devices {
        for slices in [&mut here, &mut elsewhere] {
            let counts = |slice: &mut Arc<Slice>| !slice.shared_counters.is_empty();
            counting.extend(slices.extract_if(.., counts));
        }
    }
    pool.invalid = check_names(&here).err();
    if pool.invalid.is_none() && features.partitionable_devices {
        match counter_sets(&counting) {
            Ok(sets) => {
                pool.invalid = [&here, &elsewhere]
                    .into_iter()
                    .find_map(|slices| check_consumption(&sets, slices).err());
                pool.counter_sets = sets;
            }
            Err(reason) => pool.invalid = Some(reason),
        }
    }
    if pool.invalid.is_none() {
        pool.here = here;
        pool.elsewhere = elsewhere;
    }
    pool
}

fn check_names(slices: &[Arc<Slice>]) -> Result<(), String> {
    let mut names = BTreeSet::new();
    for device in slices.iter().flat_map(|slice| &slice.devices) {
        if !names.insert(&*device.id.device) {
            return Err(format!("duplicate device name {}", device.id.device));
        }
    }
    Ok(())
}

fn counter_sets(slices: &[Arc<Slice>]) -> Result<CounterSets, String> {
    let mut sets: BTreeMap<String, Counters> = BTreeMap::new();
    for (name, counters) in slices.iter().flat_map(|slice| &slice.shared_counters) {
        if sets.insert(name.clone(), counters.clone()).is_some() {
            return Err(format!("duplicate counter set name {name}"));
        }
    }
    Ok(sets)
}

fn check_consumption(sets: &CounterSets, slices: &[Arc<Slice>]) -> Result<(), String> {
    let devices = slices.iter().flat_map(|slice| &slice.devices);
    for (set, counters) in devices.flat_map(|device| &device.consumes) {
        let Some(known) = sets.get(set) else {
            return Err(format!("counter set {set} not found"));
        };
        if let Some(name) = counters.keys().find(|name| !known.contains_key(*name)) {
            return Err(format!("counter {name} not found in counter set {set}"));
        }
    }
    Ok(())
}
