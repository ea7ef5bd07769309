//! The uids of the last objects something happened to, so that a cache that does not have an object any more need not ask the server.
//!
//! Upstream: pkg/controller/{resourceclaim,devicetainteviction}/uid_cache.go, v1.37.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard};

/// How many are remembered. Upstream: `maxUIDCacheEntries`.
const MAX: usize = 500;

/// Remembers the last uids that were added.
#[derive(Default)]
pub struct UidCache {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    order: VecDeque<String>,
    uids: HashSet<String>,
}

impl UidCache {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while the lock is held")
    }

    /// Remembers a uid; the oldest is forgotten when there are too many.
    pub fn add(&self, uid: &str) {
        let mut inner = self.lock();
        if !inner.uids.insert(uid.to_owned()) {
            return;
        }
        inner.order.push_back(uid.to_owned());
        if inner.order.len() > MAX
            && let Some(oldest) = inner.order.pop_front()
        {
            inner.uids.remove(&oldest);
        }
    }

    /// Whether the uid is among the last.
    pub fn has(&self, uid: &str) -> bool {
        self.lock().uids.contains(uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten() {
        let cache = UidCache::default();
        (0..=MAX).for_each(|i| cache.add(&i.to_string()));
        cache.add("1");
        assert!(!cache.has("0") && cache.has("1") && cache.has(&MAX.to_string()));
    }
}
