//! How long a change of a Service's pods waits for others of its like.
//!
//! DIFFERS: upstream writes EndpointSlices and Endpoints as often as its queue comes round, which is as often as it is slow: who is
//! faster writes more. Here the first change is written at once, and what follows within [`PERIOD`] of a write together; the API
//! server and every node have less to do, and a rollout does not take longer.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use component_base::clock::Clock;
use controller_runtime::ObjectKey;

/// A Service's endpoints are written this often at most because of its pods. Nodes take a change in once a second
/// (`--iptables-min-sync-period`, `nftables.minSyncPeriod`).
pub(crate) const PERIOD: Duration = Duration::from_millis(100);

/// When the endpoints of each Service were written last. Bounded by the Services there are: [`Gathering::forget`].
pub(crate) struct Gathering {
    clock: Clock,
    written: Mutex<HashMap<ObjectKey, Duration>>,
}

impl Gathering {
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            written: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectKey, Duration>> {
        self.written
            .lock()
            .expect("no panic while the lock is held")
    }

    /// The Service's endpoints were just written.
    pub fn written(&self, service: &ObjectKey) {
        self.lock().insert(service.clone(), self.clock.monotonic());
    }

    /// How long a change of a pod waits; zero when nothing was written of late.
    pub fn wait(&self, service: &ObjectKey) -> Duration {
        let mut written = self.lock();
        let Some(at) = written.get(service) else {
            return Duration::ZERO;
        };
        let left = (*at + PERIOD).saturating_sub(self.clock.monotonic());
        if left.is_zero() {
            written.remove(service);
        }
        left
    }

    /// The Service is gone.
    pub fn forget(&self, service: &ObjectKey) {
        self.lock().remove(service);
    }
}

#[cfg(test)]
mod tests {
    use component_base::clock::FakeClock;
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn the_first_change_waits_for_nothing_and_later_ones_for_the_period() {
        let clock = FakeClock::new(Timestamp::UNIX_EPOCH);
        let gathering = Gathering::new(clock.clock());
        let (one, other) = (ObjectKey::new("n", "one"), ObjectKey::new("n", "other"));
        assert_eq!(gathering.wait(&one), Duration::ZERO);
        gathering.written(&one);
        assert_eq!(gathering.wait(&one), PERIOD);
        assert_eq!(gathering.wait(&other), Duration::ZERO);
        clock.advance(PERIOD / 4);
        assert_eq!(gathering.wait(&one), PERIOD * 3 / 4);
        clock.advance(PERIOD);
        assert_eq!(gathering.wait(&one), Duration::ZERO);
        assert!(gathering.lock().is_empty());
        gathering.written(&one);
        gathering.forget(&one);
        assert_eq!(gathering.wait(&one), Duration::ZERO);
    }
}
