//! Correlation of `core/v1` events: equal ones are counted, similar ones combined, and chatty objects held back. Pure.
//!
//! Upstream: `EventCorrelator` in `k8s.io/client-go/tools/record/events_cache.go`; the constants are its defaults.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher as _;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::json;

use super::{RecordedEvent, Write, event_name, event_namespace};

const MAX_ENTRIES: usize = 4096;
const AGGREGATE_MAX_EVENTS: usize = 10;
const AGGREGATE_INTERVAL_SECONDS: i64 = 600;
const SPAM_BURST: f64 = 25.0;
const SPAM_QPS: f64 = 1.0 / 300.0;

pub(super) fn make_event(
    event: RecordedEvent,
    component: &str,
    host: &str,
    now: Timestamp,
) -> Event {
    let optional = |text: &str| Some(text.to_string()).filter(|t| !t.is_empty());
    Event {
        metadata: ObjectMeta {
            name: Some(event_name(&event.regarding, now)),
            namespace: Some(event_namespace(&event.regarding)),
            annotations: Some(event.annotations).filter(|a| !a.is_empty()),
            ..ObjectMeta::default()
        },
        involved_object: event.regarding,
        reason: Some(event.reason),
        message: Some(event.message),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        type_: Some(event.event_type.as_str().to_string()),
        source: Some(EventSource {
            component: optional(component),
            host: optional(host),
        }),
        reporting_component: optional(component),
        reporting_instance: optional(host),
        ..Event::default()
    }
}

/// Stands for a message: thousands are remembered, and each may have kilobytes.
type MessageHash = u64;

/// Everything but the message.
#[derive(Clone, PartialEq, Eq, Hash)]
struct AggregateKey {
    object: Vec<Option<String>>,
    event_type: Option<String>,
    reason: Option<String>,
}

struct Aggregate {
    messages: HashSet<MessageHash>,
    last: Timestamp,
}

#[derive(Clone)]
struct Observation {
    name: String,
    first: Option<Time>,
    count: i32,
}

/// A map that forgets what was used least recently.
struct Lru<K, V> {
    entries: HashMap<K, (u64, V)>,
    tick: u64,
}

impl<K, V> Default for Lru<K, V> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            tick: 0,
        }
    }
}

impl<K: Clone + Eq + std::hash::Hash, V> Lru<K, V> {
    fn entry(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        self.tick += 1;
        if self.entries.len() >= MAX_ENTRIES && !self.entries.contains_key(&key) {
            let oldest = self
                .entries
                .iter()
                .min_by_key(|(_, (tick, _))| *tick)
                .map(|(key, _)| key.clone());
            oldest.map(|key| self.entries.remove(&key));
        }
        let entry = self.entries.entry(key).or_insert_with(|| (0, make()));
        entry.0 = self.tick;
        &mut entry.1
    }
}

#[derive(Default)]
pub(super) struct Correlator {
    aggregates: Lru<AggregateKey, Aggregate>,
    /// The message is `None` for a combined event.
    observations: Lru<(AggregateKey, Option<MessageHash>), Option<Observation>>,
    hasher: RandomState,
    spam: Lru<Vec<Option<String>>, (f64, Timestamp)>,
}

fn object_key(object: &ObjectReference) -> Vec<Option<String>> {
    vec![
        object.kind.clone(),
        object.namespace.clone(),
        object.name.clone(),
        object.uid.clone(),
        object.api_version.clone(),
        object.field_path.clone(),
    ]
}

impl Correlator {
    /// What to write, or nothing when the object is too chatty.
    pub(super) fn correlate(&mut self, mut event: Event, now: Timestamp) -> Option<Write<Event>> {
        let key = AggregateKey {
            object: object_key(&event.involved_object),
            event_type: event.type_.clone(),
            reason: event.reason.clone(),
        };
        let message = event.message.clone().unwrap_or_default();
        let hash = self.hasher.hash_one(&message);
        let aggregate = self.aggregates.entry(key.clone(), || Aggregate {
            messages: HashSet::new(),
            last: now,
        });
        if now.as_second() - aggregate.last.as_second() > AGGREGATE_INTERVAL_SECONDS {
            aggregate.messages.clear();
        }
        aggregate.last = now;
        aggregate.messages.insert(hash);
        let combined = aggregate.messages.len() >= AGGREGATE_MAX_EVENTS;
        if combined {
            // Any one goes, so that the set stays bounded.
            let any = aggregate.messages.iter().next().copied();
            any.map(|any| aggregate.messages.remove(&any));
            event.message = Some(format!("(combined from similar events): {message}"));
        }

        let observation = self
            .observations
            .entry((key, (!combined).then_some(hash)), || None);
        let mut patch = None;
        if let Some(seen) = observation.as_mut() {
            seen.count += 1;
            event.metadata.name = Some(seen.name.clone());
            event.first_timestamp = seen.first.clone();
            event.count = Some(seen.count);
            patch = Some(json!({
                "count": event.count, "lastTimestamp": event.last_timestamp, "message": event.message,
            }));
        } else {
            *observation = Some(Observation {
                name: event.metadata.name.clone().unwrap_or_default(),
                first: event.first_timestamp.clone(),
                count: 1,
            });
        }

        let (tokens, last) = self
            .spam
            .entry(object_key(&event.involved_object), || (SPAM_BURST, now));
        let passed = now.duration_since(*last).as_secs_f64().max(0.0);
        *tokens = (*tokens + passed * SPAM_QPS).min(SPAM_BURST);
        *last = now;
        if *tokens < 1.0 {
            return None;
        }
        *tokens -= 1.0;
        Some(Write {
            namespace: event.metadata.namespace.clone().unwrap_or_default(),
            name: event.metadata.name.clone().unwrap_or_default(),
            event,
            patch,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::EventType;

    fn event(name: &str, message: &str, now: Timestamp) -> Event {
        let recorded = RecordedEvent {
            regarding: ObjectReference {
                name: Some(name.into()),
                namespace: Some("ns".into()),
                ..Default::default()
            },
            related: None,
            event_type: EventType::Normal,
            reason: "Test".into(),
            action: String::new(),
            message: message.into(),
            annotations: Default::default(),
        };
        make_event(recorded, "tester", "", now)
    }

    #[test]
    fn counts_combines_and_holds_back() {
        let mut correlator = Correlator::default();
        let now = Timestamp::from_second(1_000).unwrap();
        let first = correlator.correlate(event("a", "same", now), now).unwrap();
        assert!(first.patch.is_none());
        let second = correlator.correlate(event("a", "same", now), now).unwrap();
        assert_eq!(second.patch.unwrap()["count"], 2);
        assert_eq!(second.name, first.name);

        let mut combined = 0;
        for index in 0..12 {
            let write = correlator
                .correlate(event("b", &format!("message {index}"), now), now)
                .unwrap();
            combined += u32::from(
                write
                    .event
                    .message
                    .unwrap()
                    .starts_with("(combined from similar events)"),
            );
        }
        assert_eq!(combined, 3);

        let written = (0..40)
            .filter(|_| correlator.correlate(event("c", "x", now), now).is_some())
            .count();
        assert_eq!(written, 25);
        let later = Timestamp::from_second(1_000 + 301).unwrap();
        assert!(
            correlator
                .correlate(event("c", "x", later), later)
                .is_some()
        );
    }
}
