//! [`AllocatedState`]: which devices are taken, and how much of those that are shared.

use std::collections::HashMap;

use component_helpers::quantity::amount;
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceRequestAllocationResult};

use crate::capacity::{Consumed, add, subtract};
use crate::device::DeviceId;

/// What allocations have taken. Allocations are counted, so that one of two that (against the rules) have the same device may go without the device
/// becoming free.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AllocatedState {
    devices: HashMap<DeviceId, u32>,
    /// How many shares there are, and what they take.
    shares: HashMap<DeviceId, (u32, Consumed)>,
}

/// How an allocated device counts.
enum Use {
    Whole,
    Share(Consumed),
}

fn uses(
    allocation: &AllocationResult,
    consumable_capacity: bool,
) -> impl Iterator<Item = (DeviceId, Use)> {
    let results = allocation
        .devices
        .iter()
        .flat_map(|d| d.results.iter().flatten());
    // A device an administrator looks at is free for others.
    let counted = results.filter(|result| result.admin_access != Some(true));
    counted.map(move |result: &DeviceRequestAllocationResult| {
        let id = DeviceId::new(&result.driver, &result.pool, &result.device);
        if !consumable_capacity || result.share_id.is_none() {
            return (id, Use::Whole);
        }
        let consumed = result.consumed_capacity.iter().flatten();
        let consumed = consumed.map(|(name, quantity)| (name.clone(), amount(quantity)));
        (id, Use::Share(consumed.collect()))
    })
}

impl AllocatedState {
    /// Takes the devices of an allocation. Without `consumable_capacity` a share takes the whole device.
    pub fn add(&mut self, allocation: &AllocationResult, consumable_capacity: bool) {
        for (id, used) in uses(allocation, consumable_capacity) {
            match used {
                Use::Whole => *self.devices.entry(id).or_default() += 1,
                Use::Share(consumed) => {
                    let (shares, sum) = self.shares.entry(id).or_default();
                    *shares += 1;
                    add(sum, &consumed);
                }
            }
        }
    }

    /// Gives them back; to be called with what was added.
    pub fn remove(&mut self, allocation: &AllocationResult, consumable_capacity: bool) {
        for (id, used) in uses(allocation, consumable_capacity) {
            match used {
                Use::Whole => {
                    if let Some(count) = self.devices.get_mut(&id) {
                        *count -= 1;
                        if *count == 0 {
                            self.devices.remove(&id);
                        }
                    }
                }
                Use::Share(consumed) => {
                    if let Some((shares, sum)) = self.shares.get_mut(&id) {
                        *shares -= 1;
                        subtract(sum, &consumed);
                        if *shares == 0 {
                            self.shares.remove(&id);
                        }
                    }
                }
            }
        }
    }

    /// Is the whole device taken?
    pub(crate) fn is_taken(&self, id: &DeviceId) -> bool {
        self.devices.contains_key(id)
    }

    /// Is some of the device taken?
    pub(crate) fn is_shared(&self, id: &DeviceId) -> bool {
        self.shares.contains_key(id)
    }

    /// Is all or some of it taken?
    pub(crate) fn is_allocated(&self, id: &DeviceId) -> bool {
        self.is_taken(id) || self.is_shared(id)
    }

    /// What shares take of the device.
    pub(crate) fn consumed(&self, id: &DeviceId) -> Option<&Consumed> {
        self.shares.get(id).map(|(_, consumed)| consumed)
    }

    /// How many devices are taken, or in part.
    pub fn len(&self) -> usize {
        self.devices.len() + self.shares.len()
    }

    /// Is nothing taken?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
