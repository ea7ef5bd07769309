//! Claims this process made and the cache does not have yet.
//!
//! A claim that was made is lost when writing the Pod's status fails and the retry is faster than the watch: another would be made.
//! Upstream: the `MutationCache` of k8s.io/client-go/tools/cache.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use component_base::clock::Clock;
use controller_runtime::ObjectKey;
use k8s_openapi::api::resource::v1::ResourceClaim;

/// How many are kept. Upstream: `claimMutationCacheSize`.
const MAX: usize = 1000;
/// A watch that is this late is not waited for; the server is asked instead.
const MAX_AGE: Duration = Duration::from_secs(60);

/// The claims, until the cache tells of them.
pub(super) struct Created {
    clock: Clock,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    claims: HashMap<ObjectKey, (Duration, Arc<ResourceClaim>)>,
    order: VecDeque<ObjectKey>,
}

impl Created {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            inner: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while the lock is held")
    }

    /// Remembers a claim.
    pub(super) fn add(&self, claim: ResourceClaim) {
        let (key, now) = (ObjectKey::of(&claim), self.clock.monotonic());
        let mut inner = self.lock();
        inner.order.push_back(key.clone());
        inner.claims.insert(key, (now, Arc::new(claim)));
        while inner.order.len() > MAX
            && let Some(oldest) = inner.order.pop_front()
        {
            inner.claims.remove(&oldest);
        }
    }

    /// The cache has told of the claim.
    pub(super) fn remove(&self, key: &ObjectKey) {
        let mut inner = self.lock();
        if inner.claims.remove(key).is_some() {
            inner.order.retain(|other| other != key);
        }
    }

    /// A claim of this name.
    pub(super) fn get(&self, key: &ObjectKey) -> Option<Arc<ResourceClaim>> {
        let inner = self.lock();
        let (since, claim) = inner.claims.get(key)?;
        self.is_fresh(*since).then(|| claim.clone())
    }

    /// A claim that is as wanted.
    pub(super) fn find(
        &self,
        is_wanted: impl Fn(&ResourceClaim) -> bool,
    ) -> Option<Arc<ResourceClaim>> {
        let inner = self.lock();
        let mut claims = inner.claims.values();
        let found = claims.find(|(since, claim)| self.is_fresh(*since) && is_wanted(claim));
        found.map(|(_, claim)| claim.clone())
    }

    fn is_fresh(&self, since: Duration) -> bool {
        self.clock.monotonic().saturating_sub(since) < MAX_AGE
    }
}
