//! Counters that devices of a pool draw from together (partitionable devices).
//!
//! Upstream: structured/internal/incubating/allocator_incubating.go (checkAvailableCounters), v1.37.

use std::collections::BTreeMap;

use component_helpers::quantity::Amount;

use crate::device::{Counters, Device};

/// The counters of a pool, by set.
pub(crate) type CounterSets = BTreeMap<String, Counters>;

/// What these devices leave of the counters of their pool; may be less than nothing.
pub(crate) fn left<'a>(
    sets: &CounterSets,
    devices: impl Iterator<Item = &'a Device>,
) -> CounterSets {
    let mut left = sets.clone();
    for (set, counters) in devices.flat_map(|device| &device.consumes) {
        let Some(left) = left.get_mut(set) else {
            continue;
        };
        for (name, amount) in counters {
            if let Some(left) = left.get_mut(name) {
                *left -= *amount;
            }
        }
    }
    left
}

/// Takes what the device draws, unless some counter of the pool would be overdrawn.
pub(crate) fn draw(available: &CounterSets, drawn: &mut CounterSets, device: &Device) -> bool {
    for (set, counters) in &device.consumes {
        let drawn = drawn.entry(set.clone()).or_default();
        for (name, amount) in counters {
            *drawn.entry(name.clone()).or_insert(Amount::ZERO) += *amount;
        }
    }
    let none = Counters::new();
    let enough = available.iter().all(|(set, left)| {
        let drawn = drawn.get(set).unwrap_or(&none);
        left.iter()
            .all(|(name, left)| *left >= drawn.get(name).copied().unwrap_or(Amount::ZERO))
    });
    if !enough {
        give_back(drawn, device);
    }
    enough
}

/// The opposite of [`draw`].
pub(crate) fn give_back(drawn: &mut CounterSets, device: &Device) {
    for (set, counters) in &device.consumes {
        let Some(drawn) = drawn.get_mut(set) else {
            continue;
        };
        for (name, amount) in counters {
            if let Some(drawn) = drawn.get_mut(name) {
                *drawn -= *amount;
            }
        }
    }
}
