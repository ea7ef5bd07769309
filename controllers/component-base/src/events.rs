//! Recording events: a bounded queue, correlation as upstream's, and a task that writes them.
//!
//! `core/v1` events (kubelet, controllers) are counted and combined by [`core_v1`]; `events.k8s.io/v1` events (scheduler) become
//! series by [`events_v1`]. An event is best effort: when the queue is full it is dropped and counted in the log.
//! Upstream: `k8s.io/client-go/tools/record`, `k8s.io/client-go/tools/events`.

mod core_v1;
mod events_v1;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Client, Resource};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::client::wire;
use crate::clock::Clock;
use crate::shutdown::Shutdown;

/// Events waiting to be written before new ones are dropped (upstream's broadcaster queue).
const MAX_QUEUED: usize = 1000;
/// Bytes of a message. It often says what somebody wrote into an object, which may be a megabyte; a thousand may wait.
///
/// DIFFERS: upstream has no bound.
const MAX_MESSAGE_BYTES: usize = 16 << 10;
/// Tries of one write (upstream's `maxTriesPerEvent`).
const MAX_TRIES: u32 = 12;
/// Pause between tries; up to a quarter is added at random.
const RETRY_PAUSE: Duration = Duration::from_secs(10);
/// How often events.k8s.io series are looked at.
const SERIES_PERIOD: Duration = Duration::from_secs(6 * 60);

/// `Normal` or `Warning`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// Information.
    Normal,
    /// Something a user should look at.
    Warning,
}

impl EventType {
    /// The word in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// One event as its recorder got it.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedEvent {
    /// What it is about.
    pub regarding: ObjectReference,
    /// A second object, if any (events.k8s.io only).
    pub related: Option<ObjectReference>,
    /// Normal or Warning.
    pub event_type: EventType,
    /// A CamelCase word.
    pub reason: String,
    /// What was done (events.k8s.io only).
    pub action: String,
    /// For people.
    pub message: String,
    /// Annotations of the event object.
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// Takes events and returns at once; clones share one queue.
#[derive(Clone, Debug)]
pub struct Recorder {
    sink: Sink,
    clock: Clock,
}

#[derive(Clone, Debug)]
enum Sink {
    Queue(mpsc::Sender<(Timestamp, RecordedEvent)>),
    Fake(mpsc::UnboundedSender<RecordedEvent>),
    Discard,
}

impl Recorder {
    /// Writes `core/v1` events as `component` (`kubelet`, `deployment-controller`) on `host` (empty but for per-node components).
    pub fn core_v1(client: Client, component: &str, host: &str, shutdown: &Shutdown) -> Self {
        Self::core_v1_by(&Clock::real(), client, component, host, shutdown)
    }

    /// The same by another clock than the machine's.
    pub fn core_v1_by(
        clock: &Clock,
        client: Client,
        component: &str,
        host: &str,
        shutdown: &Shutdown,
    ) -> Self {
        let (sender, mut receiver) = mpsc::channel(MAX_QUEUED);
        let (component, host, shutdown) =
            (component.to_string(), host.to_string(), shutdown.clone());
        let owner = shutdown.clone();
        owner.spawn_guarded("event recorder", async move {
            let mut correlator = core_v1::Correlator::default();
            let mut last = Timestamp::MIN;
            while let Some(Some((now, event))) = shutdown.run_until(receiver.recv()).await {
                let now = later(now, &mut last);
                let event = core_v1::make_event(event, &component, &host, now);
                if let Some(write) = correlator.correlate(event, now) {
                    shutdown
                        .run_until(with_retries(|| carry_out(&client, &write)))
                        .await;
                }
            }
        });
        Self {
            sink: Sink::Queue(sender),
            clock: clock.clone(),
        }
    }

    /// Writes `events.k8s.io/v1` events as `controller` (`default-scheduler`), instance `controller-hostname`.
    pub fn events_v1(client: Client, controller: &str, shutdown: &Shutdown) -> Self {
        Self::events_v1_by(&Clock::real(), client, controller, shutdown)
    }

    /// The same by another clock than the machine's.
    pub fn events_v1_by(
        clock: &Clock,
        client: Client,
        controller: &str,
        shutdown: &Shutdown,
    ) -> Self {
        let (sender, mut receiver) = mpsc::channel::<(Timestamp, RecordedEvent)>(MAX_QUEUED);
        let (controller, shutdown) = (controller.to_string(), shutdown.clone());
        let time = clock.clone();
        let instance = format!("{controller}-{}", hostname());
        let owner = shutdown.clone();
        owner.spawn_guarded("event recorder", async move {
            let mut series = events_v1::Series::default();
            let mut last = Timestamp::MIN;
            let mut tick = tokio::time::interval(SERIES_PERIOD);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                let writes = tokio::select! {
                    () = shutdown.triggered() => return,
                    received = receiver.recv() => match received {
                        Some((now, event)) => {
                            let now = later(now, &mut last);
                            series.record(events_v1::make_event(event, &controller, &instance, now), now)
                        }
                        None => return,
                    },
                    _ = tick.tick() => series.sweep(time.now()),
                };
                for write in writes {
                    shutdown
                        .run_until(with_retries(|| carry_out(&client, &write)))
                        .await;
                }
            }
        });
        Self {
            sink: Sink::Queue(sender),
            clock: clock.clone(),
        }
    }

    /// A recorder whose events a test reads.
    pub fn fake() -> (Self, mpsc::UnboundedReceiver<RecordedEvent>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (
            Self {
                sink: Sink::Fake(sender),
                clock: Clock::real(),
            },
            receiver,
        )
    }

    /// A recorder that drops everything.
    pub fn discard() -> Self {
        Self {
            sink: Sink::Discard,
            clock: Clock::real(),
        }
    }

    /// Records an event. `action` matters to events.k8s.io alone; pass the reason or an empty text otherwise.
    pub fn event(
        &self,
        regarding: &ObjectReference,
        event_type: EventType,
        reason: &str,
        action: &str,
        message: impl Into<String>,
    ) {
        self.record(RecordedEvent {
            regarding: regarding.clone(),
            related: None,
            event_type,
            reason: reason.to_string(),
            action: action.to_string(),
            message: message.into(),
            annotations: Default::default(),
        });
    }

    /// Records an event with everything an event may carry; the end of a message without one is cut off.
    pub fn record(&self, mut event: RecordedEvent) {
        if event.message.len() > MAX_MESSAGE_BYTES {
            let end = event.message.floor_char_boundary(MAX_MESSAGE_BYTES);
            // A new one: what is cut off is not kept.
            event.message = format!("{} ...", &event.message[..end]);
        }
        tracing::debug!(
            object = format!(
                "{}/{}",
                event.regarding.namespace.as_deref().unwrap_or(""),
                event.regarding.name.as_deref().unwrap_or("")
            ),
            kind = event.regarding.kind.as_deref().unwrap_or(""),
            event_type = event.event_type.as_str(),
            reason = event.reason,
            message = event.message,
            "Event occurred"
        );
        match &self.sink {
            Sink::Queue(sender) => {
                // Closed means that the process ends; nobody writes events then.
                if let Err(mpsc::error::TrySendError::Full(_)) =
                    sender.try_send((self.clock.now(), event))
                {
                    tracing::warn!("Unable to record event: too many queued events, dropped event");
                }
            }
            // A test that dropped its receiver does not look at events.
            Sink::Fake(sender) => drop(sender.send(event)),
            Sink::Discard => {}
        }
    }
}

/// A reference to an object, as events and owner lookups use it.
pub fn object_reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

/// This machine's host name.
pub fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|h| h.trim().to_string())
        .unwrap_or_default()
}

/// Events have their names from their times: of two at one moment the second would be taken for the first. It is said to be later by
/// the shortest time there is.
fn later(now: Timestamp, last: &mut Timestamp) -> Timestamp {
    let next = last.saturating_add(SignedDuration::from_nanos(1));
    *last = next.unwrap_or(now).max(now);
    *last
}

fn event_name(regarding: &ObjectReference, now: Timestamp) -> String {
    format!(
        "{}.{:x}",
        regarding.name.as_deref().unwrap_or_default(),
        now.as_nanosecond()
    )
}

fn event_namespace(regarding: &ObjectReference) -> String {
    regarding
        .namespace
        .clone()
        .filter(|n| !n.is_empty())
        .unwrap_or_else(|| "default".to_string())
}

/// What correlation decided: an event to create, or a change to one that is there.
struct Write<E> {
    event: E,
    namespace: String,
    name: String,
    patch: Option<serde_json::Value>,
}

async fn with_retries<F, Fut>(mut write: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<(), kube::Error>>,
{
    for attempt in 1..=MAX_TRIES {
        let Err(error) = write().await else { return };
        match crate::client::api_status(&error) {
            Some(status)
                if status.is_already_exists()
                    || crate::client::is_namespace_terminating(&error) =>
            {
                tracing::debug!(%error, "Server rejected event (will not retry!)");
                return;
            }
            Some(status) if status.code < 500 && status.code != 429 => {
                tracing::warn!(%error, "Server rejected event (will not retry!)");
                return;
            }
            _ if attempt == MAX_TRIES => {
                tracing::warn!(%error, "Unable to write event (retry limit exceeded!)")
            }
            _ => {
                tracing::debug!(%error, "Unable to write event (may retry after sleeping)");
                tokio::time::sleep(RETRY_PAUSE.mul_f64(1.0 + rand::random_range(0.0..0.25))).await;
            }
        }
    }
}

async fn carry_out<E>(client: &Client, write: &Write<E>) -> Result<(), kube::Error>
where
    E: Resource<DynamicType = ()> + Serialize,
{
    if let Some(patch) = &write.patch {
        match wire::patch::<E>(client, &write.namespace, &write.name, patch).await {
            Err(error) if crate::client::is_not_found(&error) => {}
            result => return result,
        }
    }
    wire::create(client, &write.namespace, &write.event).await
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Event;

    use super::*;
    use crate::testing::ApiServer;

    #[test]
    fn a_message_without_an_end_is_cut() {
        let (recorder, mut events) = Recorder::fake();
        let regarding = ObjectReference::default();
        for message in ["short".to_owned(), "\u{e4}".repeat(1 << 20)] {
            recorder.event(&regarding, EventType::Normal, "Failed", "", message);
        }
        assert_eq!(events.try_recv().unwrap().message, "short");
        let long = events.try_recv().unwrap().message;
        assert_eq!(long, format!("{} ...", "\u{e4}".repeat(8 << 10)));
    }

    #[tokio::test(start_paused = true)]
    async fn two_events_of_one_moment_are_two() {
        let clock = Clock::of_runtime(Timestamp::UNIX_EPOCH);
        let (api, shutdown) = (ApiServer::new(clock.clone()), Shutdown::new());
        let recorder = Recorder::core_v1_by(&clock, api.client(), "c", "", &shutdown);
        let pod = ObjectReference {
            name: Some("p".into()),
            namespace: Some("n".into()),
            ..ObjectReference::default()
        };
        for message in ["one", "two"] {
            recorder.event(&pod, EventType::Normal, "Created", "", message);
        }
        api.until(|api| api.list::<Event>().len() == 2).await;
        let refused = api
            .log()
            .into_iter()
            .filter(|noted| noted.refused.is_some());
        assert_eq!(refused.count(), 0);
        shutdown.trigger();
    }
}
