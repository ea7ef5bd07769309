//! The generations of the slices as we wrote them: a cache that shows older ones is not acted on.
//! Upstream: k8s.io/endpointslice/util/endpointslice_tracker.go.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use controller_runtime::ObjectKey;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::label;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Generation(i64),
    Deletion,
}

/// By Service, then by the slice's UID. Bounded by the Services there are: [`Tracker::delete_service`].
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    services: Mutex<HashMap<ObjectKey, HashMap<String, Expected>>>,
    /// Services whose sync waits for the cache.
    deferred: Mutex<HashSet<ObjectKey>>,
}

fn uid(slice: &EndpointSlice) -> &str {
    slice.metadata.uid.as_deref().unwrap_or_default()
}

fn generation(slice: &EndpointSlice) -> i64 {
    slice.metadata.generation.unwrap_or(0)
}

/// The Service a slice is labelled with.
pub(crate) fn service_key(slice: &EndpointSlice) -> Option<ObjectKey> {
    let service = slice
        .metadata
        .labels
        .as_ref()?
        .get(label::SERVICE_NAME)
        .filter(|n| !n.is_empty())?;
    Some(ObjectKey::new(
        slice.metadata.namespace.as_deref().unwrap_or_default(),
        service.as_str(),
    ))
}

impl Tracker {
    /// Whether the slice is new to us or newer than what we wrote.
    pub fn should_sync(&self, slice: &EndpointSlice) -> bool {
        match self.expected(slice) {
            Some(Expected::Generation(known)) => generation(slice) > known,
            Some(Expected::Deletion) => true,
            None => true,
        }
    }

    /// Whether the cache lags: it has older slices than we wrote, lacks some, or still has some that we deleted.
    pub fn is_stale<'a>(
        &self,
        service: &ObjectKey,
        slices: impl Iterator<Item = &'a EndpointSlice>,
    ) -> bool {
        let services = self.lock();
        let Some(expected) = services.get(service) else {
            return false;
        };
        let mut seen = 0;
        for slice in slices {
            match expected.get(uid(slice)) {
                Some(Expected::Deletion) => return true,
                Some(Expected::Generation(known)) if *known > generation(slice) => return true,
                Some(Expected::Generation(_)) => seen += 1,
                None => {}
            }
        }
        expected
            .values()
            .filter(|e| matches!(e, Expected::Generation(_)))
            .count()
            > seen
    }

    pub fn written(&self, slice: &EndpointSlice) {
        self.set(slice, Expected::Generation(generation(slice)));
    }

    pub fn expect_deletion(&self, slice: &EndpointSlice) {
        self.set(slice, Expected::Deletion);
    }

    /// Whether this deletion is news: the slice was ours and we did not delete it.
    pub fn is_unexpected_deletion(&self, slice: &EndpointSlice) -> bool {
        let Some(key) = service_key(slice) else {
            return false;
        };
        let gone = self.lock().get_mut(&key).and_then(|s| s.remove(uid(slice)));
        matches!(gone, Some(Expected::Generation(_)))
    }

    /// The sync of this Service waits for the next event of one of its slices.
    pub fn defer(&self, key: &ObjectKey) {
        self.deferred().insert(key.clone());
    }

    /// Whether a sync of this Service waits; it does no longer.
    pub fn take_deferred(&self, key: &ObjectKey) -> bool {
        self.deferred().remove(key)
    }

    fn deferred(&self) -> MutexGuard<'_, HashSet<ObjectKey>> {
        self.deferred.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn delete_service(&self, key: &ObjectKey) {
        self.take_deferred(key);
        self.lock().remove(key);
    }

    fn expected(&self, slice: &EndpointSlice) -> Option<Expected> {
        self.lock()
            .get(&service_key(slice)?)?
            .get(uid(slice))
            .copied()
    }

    fn set(&self, slice: &EndpointSlice, expected: Expected) {
        if let Some(key) = service_key(slice) {
            self.lock()
                .entry(key)
                .or_default()
                .insert(uid(slice).to_owned(), expected);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectKey, HashMap<String, Expected>>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
