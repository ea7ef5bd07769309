//! When the change happened that a sync is about: the earliest of the pods' and the Service's changes since the last one.
//! Upstream: k8s.io/endpointslice/util/trigger_time_tracker.go.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use component_helpers::pod::{condition, get_condition, name};
use controller_runtime::ObjectKey;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    service: Option<Timestamp>,
    pods: BTreeMap<String, Timestamp>,
}

/// What the last sync of each Service saw. Bounded by the Services there are: [`TriggerTimes::delete_service`].
#[derive(Debug, Default)]
pub(crate) struct TriggerTimes {
    states: Mutex<HashMap<ObjectKey, State>>,
}

impl TriggerTimes {
    /// `None`: nothing that carries a time has changed.
    pub fn compute(
        &self,
        key: &ObjectKey,
        service: &Service,
        pods: &[Arc<Pod>],
    ) -> Option<Timestamp> {
        let new = State {
            service: service.metadata.creation_timestamp.as_ref().map(|t| t.0),
            pods: pods
                .iter()
                .filter_map(|p| Some((name(p).to_owned(), pod_trigger_time(p)?)))
                .collect(),
        };
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(old) = states.insert(key.clone(), new.clone()) else {
            return new.service;
        };
        let changed_pods = new
            .pods
            .iter()
            .filter(|(name, time)| old.pods.get(*name).is_none_or(|last| *time > last))
            .map(|(_, t)| *t);
        let changed_service = new
            .service
            .filter(|time| old.service.is_none_or(|last| *time > last));
        changed_pods.chain(changed_service).min()
    }

    pub fn delete_service(&self, key: &ObjectKey) {
        self.states
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key);
    }
}

fn pod_trigger_time(pod: &Pod) -> Option<Timestamp> {
    get_condition(pod, condition::READY)?
        .last_transition_time
        .as_ref()
        .map(|t| t.0)
}
