//! The Endpoints that were written last, for as long as the cache is behind: a pass that comes before its own write comes back compares
//! with what it wrote, and neither creates it again nor meets a conflict with itself.
//!
//! Upstream: `staleEndpointsTracker` of pkg/controller/endpoint, which knows of updates and waits for the cache.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use component_base::clock::Clock;
use controller_runtime::ObjectKey;
use k8s_openapi::api::core::v1::Endpoints;

/// A cache that is later than this is believed again: what was written may have been deleted unseen.
const MAX_AGE: Duration = Duration::from_secs(10);

/// By Service. Bounded by the writes of [`MAX_AGE`], and by the Services there are: [`Written::remove`].
pub(super) struct Written {
    clock: Clock,
    last: Mutex<HashMap<ObjectKey, (Duration, Arc<Endpoints>)>>,
}

impl Written {
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            last: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectKey, (Duration, Arc<Endpoints>)>> {
        self.last.lock().expect("no panic while the lock is held")
    }

    /// What the server answered a write with. `cached`: what the cache has now.
    pub fn add(&self, key: &ObjectKey, answer: Endpoints, cached: Option<&Endpoints>) {
        let mut last = self.lock();
        match is_newer(&answer, cached) {
            true => drop(last.insert(key.clone(), (self.clock.monotonic(), Arc::new(answer)))),
            // The watch was faster than the answer.
            false => drop(last.remove(key)),
        }
    }

    /// The newest that is known: what was written, or what the cache has.
    pub fn newest(
        &self,
        key: &ObjectKey,
        cached: Option<Arc<Endpoints>>,
    ) -> Option<Arc<Endpoints>> {
        let mut last = self.lock();
        let Some((at, own)) = last.get(key) else {
            return cached;
        };
        let is_late = self.clock.monotonic().saturating_sub(*at) > MAX_AGE;
        if !is_late && is_newer(own, cached.as_deref()) {
            return Some(own.clone());
        }
        last.remove(key);
        cached
    }

    /// The cache told of Endpoints: what it has by now needs not be held here.
    pub fn seen(&self, key: &ObjectKey, seen: &Endpoints) {
        let mut last = self.lock();
        if last
            .get(key)
            .is_some_and(|(_, own)| !is_newer(own, Some(seen)))
        {
            last.remove(key);
        }
    }

    /// What was written is not there any more, or not as it was.
    pub fn remove(&self, key: &ObjectKey) {
        self.lock().remove(key);
    }
}

/// Whether `own` came after what the cache has. Versions of one resource can be compared (KEP-5504).
fn is_newer(own: &Endpoints, cached: Option<&Endpoints>) -> bool {
    let Some(cached) = cached else { return true };
    let version = |of: &Endpoints| -> Option<u64> {
        let version = of.metadata.resource_version.as_ref();
        version.and_then(|version| version.parse().ok())
    };
    version(own) > version(cached)
}

#[cfg(test)]
mod tests {
    use component_base::clock::FakeClock;
    use jiff::Timestamp;

    use super::*;

    fn of(version: &str) -> Endpoints {
        let mut endpoints = Endpoints::default();
        endpoints.metadata.resource_version = Some(version.to_owned());
        endpoints
    }

    #[test]
    fn what_was_written_counts_until_the_cache_has_it() {
        let clock = FakeClock::new(Timestamp::UNIX_EPOCH);
        let written = Written::new(clock.clock());
        let key = ObjectKey::new("n", "s");
        let newest = |cached: Option<&str>| {
            let newest = written.newest(&key, cached.map(|version| Arc::new(of(version))));
            newest.and_then(|found| found.metadata.resource_version.clone())
        };
        let version = |text: &str| Some(text.to_owned());
        assert_eq!(newest(None), None);
        written.add(&key, of("5"), None);
        assert_eq!(newest(None), version("5"));
        // Ten is after nine, whatever their letters say.
        written.add(&key, of("10"), Some(&of("5")));
        assert_eq!(newest(Some("9")), version("10"));
        assert_eq!(newest(Some("11")), version("11"));
        assert_eq!(newest(Some("9")), version("9"));

        written.add(&key, of("20"), Some(&of("21")));
        assert_eq!(newest(Some("19")), version("19"));

        written.add(&key, of("30"), None);
        written.seen(&key, &of("29"));
        assert_eq!(newest(None), version("30"));
        written.seen(&key, &of("30"));
        assert_eq!(newest(None), None);

        written.add(&key, of("40"), None);
        clock.advance(MAX_AGE * 2);
        assert_eq!(newest(None), None);

        written.add(&key, of("50"), None);
        written.remove(&key);
        assert_eq!(newest(None), None);
    }
}
