//! The last decisive answer of every probe.
//!
//! Owns: results by container id; tells of every change once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::{ProbeType, ProbeUpdate};
use crate::pending::Pending;
use crate::pod_actions::ProbeResult;

/// Shared by the probe workers.
pub struct Results {
    map: Mutex<HashMap<(ProbeType, String), ProbeResult>>,
    updates: Arc<Pending<ProbeUpdate>>,
}

impl Results {
    pub fn new(updates: Arc<Pending<ProbeUpdate>>) -> Self {
        Self {
            map: Mutex::default(),
            updates,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(ProbeType, String), ProbeResult>> {
        self.map.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn get(&self, probe_type: ProbeType, container_id: &str) -> Option<ProbeResult> {
        self.lock()
            .get(&(probe_type, container_id.to_owned()))
            .copied()
    }

    /// Keeps the result; a change goes to the sync loop.
    pub fn set(
        &self,
        probe_type: ProbeType,
        container_id: &str,
        result: ProbeResult,
        pod_uid: &str,
    ) {
        let before = self
            .lock()
            .insert((probe_type, container_id.to_owned()), result);
        if before != Some(result) {
            self.updates.add(ProbeUpdate {
                probe_type,
                pod_uid: pod_uid.to_owned(),
                container_id: container_id.to_owned(),
            });
        }
    }

    pub fn remove(&self, probe_type: ProbeType, container_id: &str) {
        self.lock().remove(&(probe_type, container_id.to_owned()));
    }
}
