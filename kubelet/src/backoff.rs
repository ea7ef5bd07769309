//! Exponential back-off by key, as client-go's `flowcontrol.Backoff`.
//!
//! Owns: how long a key must wait. Time is an argument. A key that was quiet for long (twice the maximum, if nothing else
//! is said) starts again at the beginning, and is forgotten. Upstream: `client-go/util/flowcontrol/backoff.go`, v1.36.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Upstream: `initialCrashLoopBackOff`, `MaxContainerBackOff`, the reduced ones, and `HasExpiredFunc` in `NewMainKubelet`.
const INITIAL_CRASH_LOOP: Duration = Duration::from_secs(10);
const MAX_CRASH_LOOP: Duration = Duration::from_secs(300);
const REDUCED_INITIAL_CRASH_LOOP: Duration = Duration::from_secs(1);
const REDUCED_MAX_CRASH_LOOP: Duration = Duration::from_secs(60);
const CRASH_LOOP_EXPIRY: Duration = Duration::from_secs(600);

struct Entry {
    backoff: Duration,
    last_update: Timestamp,
}

/// Shared by all workers.
pub struct Backoff {
    initial: Duration,
    max: Duration,
    /// An event that comes so long after the last update finds a key at its beginning.
    expiry: Duration,
    entries: Mutex<HashMap<String, Entry>>,
}

fn since(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or(Duration::ZERO)
}

impl Backoff {
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self {
            initial: initial.min(max),
            max,
            expiry: max * 2,
            entries: Mutex::default(),
        }
    }

    /// Of restarting containers. `reduced`: gate ReduceDefaultCrashLoopBackOffDecay; `configured`: what gate
    /// KubeletCrashLoopBackOffMax lets the configuration say, `None` if it is off. Upstream: `newCrashLoopBackOff`.
    pub fn of_crash_loops(reduced: bool, configured: Option<Duration>) -> Self {
        let (initial, max) = match reduced {
            true => (REDUCED_INITIAL_CRASH_LOOP, REDUCED_MAX_CRASH_LOOP),
            false => (INITIAL_CRASH_LOOP, MAX_CRASH_LOOP),
        };
        Self {
            expiry: CRASH_LOOP_EXPIRY,
            ..Self::new(initial, configured.unwrap_or(max))
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The present wait of the key; zero for one never seen.
    pub fn get(&self, key: &str) -> Duration {
        self.lock().get(key).map_or(Duration::ZERO, |e| e.backoff)
    }

    /// Another failure at `event_time`, acted upon at `now`: the wait doubles, or begins anew if the last one is long ago.
    pub fn next(&self, key: &str, event_time: Timestamp, now: Timestamp) {
        let mut entries = self.lock();
        let backoff = match entries.get(key) {
            Some(e) if since(e.last_update, event_time) <= self.expiry => {
                (e.backoff * 2).min(self.max)
            }
            _ => self.initial,
        };
        let last_update = now;
        entries.insert(
            key.to_owned(),
            Entry {
                backoff,
                last_update,
            },
        );
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
        if since(entry.last_update, event_time) > self.expiry {
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
        let limit = self.expiry;
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

    fn t(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn doubles_and_expires() {
        let b = Backoff::new(Duration::from_secs(10), Duration::from_secs(300));
        assert_eq!(b.remaining_since("k", t(0), t(1)), None);
        b.next("k", t(0), t(0));
        assert_eq!(
            b.remaining_since("k", t(0), t(4)),
            Some(Duration::from_secs(6))
        );
        assert_eq!(b.remaining_since("k", t(0), t(10)), None);
        b.next("k", t(10), t(10));
        assert_eq!(b.get("k"), Duration::from_secs(20));
        for i in 0..9 {
            b.next("k", t(20 + i), t(20 + i));
        }
        assert_eq!(b.get("k"), Duration::from_secs(300));
        assert_eq!(b.remaining_since("k", t(5000), t(5001)), None);
        b.next("k", t(5000), t(5000));
        assert_eq!(b.get("k"), Duration::from_secs(10));
    }

    /// A container that ran for long begins anew ten minutes after its restart, however long it had waited before that.
    #[test]
    fn crash_loops_begin_anew_600_seconds_after_the_restart() {
        let seconds = Duration::from_secs;
        for max in [1, 60, 300] {
            let b = Backoff::of_crash_loops(false, Some(seconds(max)));
            b.next("k", t(0), t(0));
            let first = b.get("k");
            assert_eq!(first, seconds(max.min(10)));
            // Ended at 0, started again at 300: the restart counts.
            b.next("k", t(0), t(300));
            assert_eq!(b.get("k"), (first * 2).min(seconds(max)));
            b.next("k", t(900), t(900));
            assert_eq!(b.get("k"), (first * 4).min(seconds(max)), "{max}");
            assert_eq!(b.remaining_since("k", t(1501), t(1501)), None);
            b.next("k", t(1501), t(1501));
            assert_eq!(b.get("k"), first, "{max}");
        }
    }

    #[test]
    fn periods_by_gates() {
        let check = |reduced, configured: Option<u64>, initial, max| {
            let b = Backoff::of_crash_loops(reduced, configured.map(Duration::from_secs));
            assert_eq!((b.initial.as_secs(), b.max.as_secs()), (initial, max));
        };
        check(false, None, 10, 300);
        check(false, Some(300), 10, 300);
        check(false, Some(2), 2, 2);
        check(true, None, 1, 60);
        check(true, Some(300), 1, 300);
    }
}
