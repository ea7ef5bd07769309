//! How long a failed pod stays on its node: the kubelet may reject the next one for the same reason, and the two would fight.
//!
//! One second at first, doubled each time, at most 15 minutes; forgotten after twice that without a failure.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

const FIRST: Duration = Duration::from_secs(1);
const MAX: Duration = Duration::from_secs(15 * 60);

/// UID and generation of a DaemonSet, and a node.
pub type Key = (String, i64, String);

/// The back-off of each DaemonSet on each node.
#[derive(Debug, Default)]
pub struct Backoff(Mutex<BTreeMap<Key, Entry>>);

#[derive(Clone, Copy, Debug)]
struct Entry {
    delay: Duration,
    since: Timestamp,
}

impl Entry {
    fn age(&self, now: Timestamp) -> Duration {
        Duration::try_from(now.duration_since(self.since)).unwrap_or_default()
    }
}

impl Backoff {
    /// How long failed pods there are to be left alone; `None`: they may go.
    pub fn remaining(&self, key: &Key, now: Timestamp) -> Option<Duration> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get(key)?;
        entry
            .delay
            .checked_sub(entry.age(now))
            .filter(|left| !left.is_zero())
    }

    /// A failed pod goes now, the next one later.
    pub fn next(&self, key: Key, now: Timestamp) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, entry| entry.age(now) <= MAX * 2);
        let delay = entries
            .get(&key)
            .map_or(FIRST, |entry| (entry.delay * 2).min(MAX));
        entries.insert(key, Entry { delay, since: now });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_and_is_forgotten() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let key = || ("d".to_owned(), 1, "a".to_owned());
        let backoff = Backoff::default();
        assert_eq!(backoff.remaining(&key(), start), None);
        let mut now = start;
        for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900] {
            backoff.next(key(), now);
            let delay = Duration::from_secs(seconds);
            assert_eq!(backoff.remaining(&key(), now), Some(delay));
            now += delay;
            assert_eq!(backoff.remaining(&key(), now), None);
        }
        now += Duration::from_secs(3600);
        backoff.next(key(), now);
        assert_eq!(backoff.remaining(&key(), now), Some(FIRST));
    }
}
