//! What is being done, and what failed a short while ago. Pure.
//!
//! A volume that may be at several nodes has an operation for each of them, others one in all. Upstream: nestedpendingoperations,
//! exponentialbackoff.

use std::collections::BTreeMap;
use std::time::Duration;

use super::desired::Place;
use super::volume::Volume;

/// Upstream: exponentialbackoff's `initialDurationBeforeRetry`.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Upstream: exponentialbackoff's `maxDurationBeforeRetry`.
const LONGEST_PAUSE: Duration = Duration::from_secs(122);

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Attach.
    Attach,
    /// Detach.
    Detach,
}

/// Whose operation: a volume's, or a volume's at a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    volume: String,
    /// Empty for a volume that is at one node at a time.
    node: String,
}

impl Key {
    /// The key of a volume at a place; one nobody knows anything of may be at several.
    pub fn of(place: &Place, volume: Option<&Volume>) -> Self {
        let several = volume.is_none_or(|volume| volume.multi_attach);
        Self {
            volume: place.volume.clone(),
            node: if several {
                place.node.clone()
            } else {
                String::new()
            },
        }
    }
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The write is on its way.
    Calling,
    /// The write is done; the driver is waited for.
    Waiting,
    /// It failed and is not tried again before this time.
    Paused { until: Duration, pause: Duration },
}

/// An operation.
#[derive(Clone, Debug)]
pub struct Operation {
    pub verb: Verb,
    pub place: Place,
    pub volume: Option<Volume>,
    /// When it began, in the clock's monotonic time.
    pub since: Duration,
    pub progress: Progress,
    /// How long the last pause was.
    last_pause: Option<Duration>,
}

/// All operations.
#[derive(Debug, Default)]
pub struct Operations {
    by_key: BTreeMap<Key, Operation>,
}

impl Operations {
    /// Whether something is being done with the volume, there or everywhere.
    pub fn is_pending(&self, key: &Key) -> bool {
        let first = Key {
            volume: key.volume.clone(),
            node: String::new(),
        };
        let of_volume = self.by_key.range(first..);
        of_volume
            .take_while(|(other, _)| other.volume == key.volume)
            .filter(|(other, _)| {
                other.node == key.node || other.node.is_empty() || key.node.is_empty()
            })
            .any(|(_, o)| !matches!(o.progress, Progress::Paused { .. }))
    }

    /// Until when this must not be tried again.
    pub fn paused_until(&self, key: &Key, verb: Verb, now: Duration) -> Option<Duration> {
        let operation = self.by_key.get(key).filter(|o| o.verb == verb)?;
        match operation.progress {
            Progress::Paused { until, .. } if until > now => Some(until),
            _ => None,
        }
    }

    /// Something begins.
    pub fn start(
        &mut self,
        key: Key,
        verb: Verb,
        place: Place,
        volume: Option<Volume>,
        now: Duration,
    ) {
        let before = self.by_key.get(&key).filter(|o| o.verb == verb);
        let last_pause = before.and_then(|o| match o.progress {
            Progress::Paused { pause, .. } => Some(pause),
            _ => None,
        });
        let operation = Operation {
            verb,
            place,
            volume,
            since: now,
            progress: Progress::Calling,
            last_pause,
        };
        self.by_key.insert(key, operation);
    }

    /// The write is done.
    pub fn called(&mut self, key: &Key) {
        if let Some(operation) = self.by_key.get_mut(key) {
            operation.progress = Progress::Waiting;
        }
    }

    /// It is done, or given up before it began.
    pub fn finish(&mut self, key: &Key) {
        self.by_key.remove(key);
    }

    /// It failed.
    pub fn fail(&mut self, key: &Key, now: Duration) {
        if let Some(operation) = self.by_key.get_mut(key) {
            let pause = operation
                .last_pause
                .map_or(FIRST_PAUSE, |last| (last * 2).min(LONGEST_PAUSE));
            let until = now + pause;
            operation.progress = Progress::Paused { until, pause };
        }
    }

    /// What is waited for.
    pub fn waiting(&self) -> Vec<(Key, Operation)> {
        let waiting = |(_, o): &(&Key, &Operation)| o.progress == Progress::Waiting;
        let found = self.by_key.iter().filter(waiting);
        found.map(|(k, o)| (k.clone(), o.clone())).collect()
    }

    /// The operation of a key.
    pub fn get(&self, key: &Key) -> Option<&Operation> {
        self.by_key.get(key)
    }

    /// Forgets failures that are long past, so that what never comes again leaves nothing behind.
    pub fn tidy(&mut self, now: Duration) {
        self.by_key.retain(|_, o| match o.progress {
            Progress::Paused { until, pause } => now < until + pause + LONGEST_PAUSE,
            _ => true,
        });
    }
}
