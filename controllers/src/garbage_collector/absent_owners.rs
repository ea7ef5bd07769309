//! Owners that are known not to exist: their other dependents need not ask again. Bounded; the oldest goes first.

use std::collections::{HashSet, VecDeque};

use super::graph::Identity;

/// Upstream's cache size.
const CAPACITY: usize = 500;

#[derive(Debug, Default)]
pub(super) struct AbsentOwners {
    known: HashSet<Identity>,
    order: VecDeque<Identity>,
}

impl AbsentOwners {
    pub fn add(&mut self, owner: Identity) {
        if self.known.insert(owner.clone()) {
            self.order.push_back(owner);
            if self.order.len() > CAPACITY
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
    }

    pub fn has(&self, owner: &Identity) -> bool {
        self.known.contains(owner)
    }
}
