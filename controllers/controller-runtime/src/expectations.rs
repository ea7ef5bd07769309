//! What a controller did and has not yet seen come back: it does not act again before it has.
//!
//! Caches lag behind writes; without this a controller that made three Pods and sees none yet would make three more. An expectation
//! that is never met is dropped after five minutes. Upstream: `ControllerExpectations` and `UIDTrackingControllerExpectations` in
//! `pkg/controller/controller_utils.go`.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use component_base::clock::Clock;
use component_base::informer::ObjectKey;

/// When an unmet expectation is dropped.
pub const EXPECTATIONS_TIMEOUT: Duration = Duration::from_secs(5 * 60);

#[derive(Clone, Debug, Default)]
struct Expectation {
    creations: i64,
    deletions: i64,
    /// UIDs whose deletion was asked for and not seen.
    deleted_uids: HashSet<String>,
    since: Duration,
}

/// The expectations of one controller, a set for each key.
#[derive(Debug, Default)]
pub struct Expectations {
    entries: Mutex<HashMap<ObjectKey, Expectation>>,
    clock: Clock,
}

impl Expectations {
    /// None yet.
    pub fn new(clock: Clock) -> Self {
        Self {
            entries: Mutex::default(),
            clock,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectKey, Expectation>> {
        self.entries
            .lock()
            .expect("no panic while the lock is held")
    }

    /// Expects creations and nothing else of this key; set before the writes.
    pub fn expect_creations(&self, key: &ObjectKey, count: usize) {
        let creations = i64::try_from(count).unwrap_or(i64::MAX);
        self.lock().insert(
            key.clone(),
            Expectation {
                creations,
                since: self.clock.monotonic(),
                ..Expectation::default()
            },
        );
    }

    /// Expects deletions that are counted, not told apart.
    pub fn expect_deletions(&self, key: &ObjectKey, count: usize) {
        let deletions = i64::try_from(count).unwrap_or(i64::MAX);
        self.lock().insert(
            key.clone(),
            Expectation {
                deletions,
                since: self.clock.monotonic(),
                ..Expectation::default()
            },
        );
    }

    /// Expects the deletion of these objects; an object that is updated twice while it goes is counted once.
    pub fn expect_deleted_uids(&self, key: &ObjectKey, uids: impl IntoIterator<Item = String>) {
        let deleted_uids = uids.into_iter().collect();
        self.lock().insert(
            key.clone(),
            Expectation {
                deleted_uids,
                since: self.clock.monotonic(),
                ..Expectation::default()
            },
        );
    }

    /// A creation was seen, or will never come because its write failed.
    pub fn creation_observed(&self, key: &ObjectKey) {
        if let Some(expectation) = self.lock().get_mut(key) {
            expectation.creations -= 1;
        }
    }

    /// A deletion was seen, or its write failed.
    pub fn deletion_observed(&self, key: &ObjectKey) {
        if let Some(expectation) = self.lock().get_mut(key) {
            expectation.deletions -= 1;
        }
    }

    /// The deletion of an object was seen (it is going or gone), or its write failed.
    pub fn deleted_uid_observed(&self, key: &ObjectKey, uid: &str) {
        if let Some(expectation) = self.lock().get_mut(key) {
            expectation.deleted_uids.remove(uid);
        }
    }

    /// The UIDs whose deletion is expected.
    pub fn deleted_uids(&self, key: &ObjectKey) -> HashSet<String> {
        self.lock()
            .get(key)
            .map(|e| e.deleted_uids.clone())
            .unwrap_or_default()
    }

    /// Whether the controller may act on this key: all was seen, or nothing is expected, or it was too long ago.
    pub fn satisfied(&self, key: &ObjectKey) -> bool {
        let now = self.clock.monotonic();
        self.lock().get(key).is_none_or(|e| {
            let fulfilled = e.creations <= 0 && e.deletions <= 0 && e.deleted_uids.is_empty();
            fulfilled || now.saturating_sub(e.since) > EXPECTATIONS_TIMEOUT
        })
    }

    /// Forgets a key whose object is gone.
    pub fn delete(&self, key: &ObjectKey) {
        self.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use component_base::clock::FakeClock;

    #[test]
    fn met_unmet_and_expired() {
        let clock = FakeClock::new(jiff::Timestamp::UNIX_EPOCH);
        let expectations = Expectations::new(clock.clock());
        let key = ObjectKey::new("ns", "rs");
        assert!(expectations.satisfied(&key));
        expectations.expect_creations(&key, 2);
        expectations.creation_observed(&key);
        assert!(!expectations.satisfied(&key));
        expectations.creation_observed(&key);
        assert!(expectations.satisfied(&key));
        expectations.expect_deleted_uids(&key, ["a".into(), "b".into()]);
        expectations.deleted_uid_observed(&key, "a");
        expectations.deleted_uid_observed(&key, "a");
        assert!(!expectations.satisfied(&key));
        clock.advance(EXPECTATIONS_TIMEOUT + Duration::from_secs(1));
        assert!(expectations.satisfied(&key));
        expectations.delete(&key);
        assert!(expectations.deleted_uids(&key).is_empty());
    }
}
