//! Exponential back-off by key, as client-go's `flowcontrol.Backoff`.
//!
//! Owns: how long a key must wait. Time is an argument. A key that was quiet for twice the maximum starts again at the
//! beginning, and is forgotten. Upstream: `client-go/util/flowcontrol/backoff.go`, v1.36.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

struct Entry {
    backoff: Duration,
    last_update: Timestamp,
}

/// Shared by all workers.
pub struct Backoff {
    initial: Duration,
    max: Duration,
    entries: Mutex<HashMap<String, Entry>>,
}

fn since(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or(Duration::ZERO)
}

impl Backoff {
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self {
            initial,
            max,
            entries: Mutex::default(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The present wait of the key; zero for one never seen.
    pub fn get(&self, key: &str) -> Duration {
        self.lock().get(key).map_or(Duration::ZERO, |e| e.backoff)
    }

    /// Another failure: the wait doubles.
    pub fn next(&self, key: &str, now: Timestamp) {
        let mut entries = self.lock();
        let (initial, max) = (self.initial, self.max);
        entries
            .entry(key.to_owned())
            .and_modify(|e| {
                let expired = since(e.last_update, now) > max * 2;
                e.backoff = if expired {
                    initial
                } else {
                    (e.backoff * 2).min(max)
                };
                e.last_update = now;
            })
            .or_insert(Entry {
                backoff: initial.min(max),
                last_update: now,
            });
    }

    /// How long the key must still wait at `now`, counted from `event_time`. `None`: it may go on.
    pub fn remaining_since(
        &self,
        key: &str,
        event_time: Timestamp,
        now: Timestamp,
    ) -> Option<Duration> {
        let entries = self.lock();
        let entry = entries.get(key)?;
        if since(entry.last_update, event_time) > self.max * 2 {
            return None;
        }
        entry
            .backoff
            .checked_sub(since(event_time, now))
            .filter(|d| !d.is_zero())
    }

    /// As [`Self::remaining_since`], counted from the last failure.
    pub fn remaining_since_update(&self, key: &str, now: Timestamp) -> Option<Duration> {
        let last = self.lock().get(key)?.last_update;
        self.remaining_since(key, last, now)
    }

    pub fn reset(&self, key: &str) {
        self.lock().remove(key);
    }

    /// Forgets what was quiet for long.
    pub fn gc(&self, now: Timestamp) {
        let limit = self.max * 2;
        self.lock()
            .retain(|_, e| since(e.last_update, now) <= limit);
    }

    /// Forgets every key that starts so.
    pub fn forget_prefix(&self, prefix: &str) {
        self.lock().retain(|key, _| !key.starts_with(prefix));
    }
}

/// `timestamp + duration`, held at the end of time.
pub fn add(timestamp: Timestamp, duration: Duration) -> Timestamp {
    SignedDuration::try_from(duration)
        .ok()
        .and_then(|d| timestamp.checked_add(d).ok())
        .unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_and_expires() {
        let t = |s: i64| Timestamp::from_second(s).unwrap();
        let b = Backoff::new(Duration::from_secs(10), Duration::from_secs(300));
        assert_eq!(b.remaining_since("k", t(0), t(1)), None);
        b.next("k", t(0));
        assert_eq!(
            b.remaining_since("k", t(0), t(4)),
            Some(Duration::from_secs(6))
        );
        assert_eq!(b.remaining_since("k", t(0), t(10)), None);
        b.next("k", t(10));
        assert_eq!(b.get("k"), Duration::from_secs(20));
        for i in 0..9 {
            b.next("k", t(20 + i));
        }
        assert_eq!(b.get("k"), Duration::from_secs(300));
        assert_eq!(b.remaining_since("k", t(5000), t(5001)), None);
        b.next("k", t(5000));
        assert_eq!(b.get("k"), Duration::from_secs(10));
    }
}
