//! Who writes the events: one recorder for each profile.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use component_base::clock::Clock;
use component_base::events::{EventType, RecordedEvent, Recorder, object_reference};
use component_base::shutdown::Shutdown;
use framework::EventRecord;
use kube::Client;

use crate::config::{DEFAULT_SCHEDULER_NAME, KubeSchedulerConfiguration};
use crate::runtime::RecordFn;

/// One recorder for each profile: events are in its name.
pub(super) struct Recorders {
    client: Client,
    clock: Clock,
    shutdown: Shutdown,
    by_profile: ArcSwap<HashMap<String, Recorder>>,
}

impl Recorders {
    pub(super) fn new(client: Client, clock: Clock, shutdown: &Shutdown) -> Self {
        Recorders {
            client,
            clock,
            shutdown: shutdown.clone(),
            by_profile: ArcSwap::default(),
        }
    }

    /// Adds those of profiles that are new; the others go on, since a pod may still be on its way.
    pub(super) fn add(&self, config: &KubeSchedulerConfiguration) {
        let mut all = HashMap::clone(&self.by_profile.load());
        let names = config.profiles.iter();
        for name in names.filter_map(|profile| profile.scheduler_name.as_ref()) {
            all.entry(name.clone())
                .or_insert_with(|| self.recorder(name));
        }
        self.by_profile.store(Arc::new(all));
    }

    /// For events that are about no pod.
    pub(super) fn own(&self) -> Recorder {
        self.recorder(DEFAULT_SCHEDULER_NAME)
    }

    fn recorder(&self, name: &str) -> Recorder {
        Recorder::events_v1_by(&self.clock, self.client.clone(), name, &self.shutdown)
    }

    /// Records in the name of the pod's profile.
    pub(super) fn record_fn(self: &Arc<Self>) -> RecordFn {
        let recorders = Arc::clone(self);
        Arc::new(move |event: EventRecord| {
            let name = framework::pod_info::spec(&event.regarding)
                .scheduler_name
                .as_deref()
                .unwrap_or(DEFAULT_SCHEDULER_NAME);
            let all = recorders.by_profile.load();
            let Some(recorder) = all.get(name) else {
                return;
            };
            recorder.record(RecordedEvent {
                regarding: object_reference(&*event.regarding),
                related: event.related.as_deref().map(object_reference),
                event_type: if event.warning {
                    EventType::Warning
                } else {
                    EventType::Normal
                },
                reason: event.reason.to_owned(),
                action: event.action.to_owned(),
                message: event.note,
                annotations: Default::default(),
            });
        })
    }
}
