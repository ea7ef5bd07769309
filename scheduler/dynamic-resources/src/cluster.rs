//! [`Cluster`]: what all searches of one moment look at.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::classes::Classes;
use crate::counters::CounterSets;
use crate::device::PoolId;
use crate::features::Features;
use crate::pools::{Inventory, Pool};
use crate::selector::Selectors;
use crate::state::AllocatedState;

/// The cluster as it was when the allocator was made.
pub(crate) struct Cluster {
    pub(crate) features: Features,
    pub(crate) state: Arc<AllocatedState>,
    pub(crate) classes: Arc<Classes>,
    pub(crate) inventory: Arc<Inventory>,
    pub(crate) selectors: Arc<Selectors>,
    /// What allocated devices have left of the counters of pools; the same for all nodes.
    available: Mutex<HashMap<PoolId, Arc<CounterSets>>>,
}

impl Cluster {
    pub(crate) fn new(
        features: Features,
        state: Arc<AllocatedState>,
        classes: Arc<Classes>,
        inventory: Arc<Inventory>,
        selectors: Arc<Selectors>,
    ) -> Self {
        Cluster {
            features,
            state,
            classes,
            inventory,
            selectors,
            available: Mutex::default(),
        }
    }

    /// What allocated devices have left of a pool's counters, found out once.
    pub(crate) fn available(&self, pool: &Pool) -> Arc<CounterSets> {
        let mut known = self
            .available
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(&pool.id) {
            return Arc::clone(found);
        }
        let left = Arc::new(pool.available(&self.state));
        known.insert(pool.id.clone(), Arc::clone(&left));
        left
    }
}
