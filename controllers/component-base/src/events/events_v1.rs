//! Series of `events.k8s.io/v1` events: the second equal event starts a series; later ones are counted and written now and then. Pure.
//!
//! Upstream: `eventBroadcasterImpl` in `k8s.io/client-go/tools/events/event_broadcaster.go`.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use serde_json::json;

use super::{RecordedEvent, Write, event_name, event_namespace};

/// A series that was silent for so long is over (upstream's `finishTime`).
const FINISH_SECONDS: i64 = 6 * 60;
/// A living series is written this often (upstream's `refreshTime`).
const REFRESH_SECONDS: i64 = 30 * 60;
/// Series held at once; further events are written one by one.
const MAX_SERIES: usize = 8192;

pub(super) fn make_event(
    event: RecordedEvent,
    controller: &str,
    instance: &str,
    now: Timestamp,
) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(event_name(&event.regarding, now)),
            namespace: Some(event_namespace(&event.regarding)),
            annotations: Some(event.annotations).filter(|a| !a.is_empty()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(controller.to_string()),
        reporting_instance: Some(instance.to_string()),
        action: Some(event.action),
        reason: Some(event.reason),
        regarding: Some(event.regarding),
        related: event.related,
        note: Some(event.message),
        type_: Some(event.event_type.as_str().to_string()),
        ..Event::default()
    }
}

type Key = (
    Option<String>,
    Option<String>,
    Option<String>,
    String,
    String,
);

fn key(event: &Event) -> Key {
    let text = |reference: &Option<ObjectReference>| {
        reference
            .as_ref()
            .map(|r| {
                format!(
                    "{:?}",
                    (&r.kind, &r.namespace, &r.name, &r.uid, &r.field_path)
                )
            })
            .unwrap_or_default()
    };
    (
        event.type_.clone(),
        event.action.clone(),
        event.reason.clone(),
        text(&event.regarding),
        text(&event.related),
    )
}

struct Entry {
    event: Event,
    started: Timestamp,
    /// `None` before the second event.
    series: Option<(i32, Timestamp)>,
    written: Timestamp,
}

#[derive(Default)]
pub(super) struct Series {
    entries: HashMap<Key, Entry>,
}

impl Series {
    pub(super) fn record(&mut self, event: Event, now: Timestamp) -> Vec<Write<Event>> {
        let key = key(&event);
        if let Some(entry) = self.entries.get_mut(&key) {
            let first = entry.series.is_none();
            let count = entry.series.map_or(2, |(count, _)| count + 1);
            entry.series = Some((count, now));
            if !first {
                return Vec::new();
            }
            entry.written = now;
            return vec![entry.write()];
        }
        let entry = Entry {
            event,
            started: now,
            series: None,
            written: now,
        };
        let write = entry.write();
        if self.entries.len() < MAX_SERIES {
            self.entries.insert(key, entry);
        }
        vec![write]
    }

    /// Ends silent series (writing their last count) and refreshes the others.
    pub(super) fn sweep(&mut self, now: Timestamp) -> Vec<Write<Event>> {
        let mut writes = Vec::new();
        let age = |since: Timestamp| now.as_second() - since.as_second();
        self.entries.retain(|_, entry| match entry.series {
            None => age(entry.started) <= FINISH_SECONDS,
            Some((_, last)) if age(last) > FINISH_SECONDS => {
                writes.push(entry.write());
                false
            }
            Some(_) => {
                if age(entry.written) >= REFRESH_SECONDS {
                    entry.written = now;
                    writes.push(entry.write());
                }
                true
            }
        });
        writes
    }
}

impl Entry {
    fn write(&self) -> Write<Event> {
        let mut event = self.event.clone();
        let patch = self.series.map(|(count, last)| {
            let series = EventSeries {
                count,
                last_observed_time: MicroTime(last),
            };
            event.series = Some(series.clone());
            json!({ "series": series })
        });
        Write {
            namespace: event.metadata.namespace.clone().unwrap_or_default(),
            name: event.metadata.name.clone().unwrap_or_default(),
            event,
            patch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::EventType;

    #[test]
    fn a_series_is_written_at_its_start_and_end() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let make = |second| {
            let recorded = RecordedEvent {
                regarding: ObjectReference {
                    name: Some("pod".into()),
                    ..Default::default()
                },
                related: None,
                event_type: EventType::Warning,
                reason: "FailedScheduling".into(),
                action: "Scheduling".into(),
                message: "no".into(),
                annotations: Default::default(),
            };
            make_event(
                recorded,
                "default-scheduler",
                "default-scheduler-host",
                at(second),
            )
        };
        let mut series = Series::default();
        assert!(series.record(make(0), at(0))[0].patch.is_none());
        let second = series.record(make(1), at(1));
        assert_eq!(second[0].patch.as_ref().unwrap()["series"]["count"], 2);
        assert!(series.record(make(2), at(2)).is_empty());
        assert!(series.sweep(at(100)).is_empty());
        let last = series.sweep(at(1000));
        assert_eq!(last[0].patch.as_ref().unwrap()["series"]["count"], 3);
        assert!(series.record(make(1001), at(1001))[0].patch.is_none());
    }
}
