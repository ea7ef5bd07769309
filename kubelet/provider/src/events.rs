//! From the provider to the loops: the newest of each pod, never a queue that grows.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::{Condition, PodId, PodReport};

/// Events for people that wait to be written; further ones are dropped and counted.
const MAX_MESSAGES: usize = 1000;

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventLevel {
    /// Information.
    Normal,
    /// Something a user should look at.
    Warning,
}

/// What a provider tells.
#[derive(Clone, Debug, PartialEq)]
pub enum ProviderEvent {
    /// How a pod is.
    Report(PodId, PodReport),
    /// Nothing of the pod is left.
    Gone(PodId),
    /// Conditions of a node changed; those of other types stay.
    NodeConditions(String, Vec<Condition>),
    /// An event of the pod for people.
    Message {
        /// Which pod.
        pod: PodId,
        /// How much it matters.
        level: EventLevel,
        /// A CamelCase word.
        reason: String,
        /// A sentence.
        message: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Pod(Arc<str>),
    /// That nothing of the pod is left: apart, so that the report before it, which may say how it ended, is told first.
    End(Arc<str>),
    Node(String),
}

#[derive(Default)]
struct State {
    order: VecDeque<Key>,
    newest: HashMap<Key, ProviderEvent>,
    messages: VecDeque<ProviderEvent>,
    dropped: u64,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    ready: Notify,
}

/// Where a provider tells of its pods. Never waits, and may be called from anywhere; a report that was not read yet is replaced by
/// the next one of the same pod, so no state that lasts is lost. The last report is told before the end.
#[derive(Clone)]
pub struct PodEvents {
    shared: Arc<Shared>,
}

/// The loops' end of [`PodEvents`].
pub struct ProviderEvents {
    shared: Arc<Shared>,
}

impl PodEvents {
    /// Both ends.
    pub fn channel() -> (Self, ProviderEvents) {
        let shared = Arc::<Shared>::default();
        let events = ProviderEvents {
            shared: shared.clone(),
        };
        (Self { shared }, events)
    }

    /// How the pod is now.
    pub fn report(&self, pod: &PodId, report: PodReport) {
        let event = ProviderEvent::Report(pod.clone(), report);
        self.put(Key::Pod(pod.uid.clone()), event);
    }

    /// Nothing of the pod is left. Of a pod nobody asked to end, this means that it was lost: it fails.
    pub fn gone(&self, pod: &PodId) {
        self.put(Key::End(pod.uid.clone()), ProviderEvent::Gone(pod.clone()));
    }

    /// Conditions of a node changed; those of other types stay as they are.
    pub fn node_conditions(&self, node: &str, conditions: Vec<Condition>) {
        let event = ProviderEvent::NodeConditions(node.to_owned(), conditions);
        self.put(Key::Node(node.to_owned()), event);
    }

    /// An event of the pod, for people. Best effort.
    pub fn message(
        &self,
        pod: &PodId,
        level: EventLevel,
        reason: &str,
        message: impl Into<String>,
    ) {
        let mut state = self.shared.lock();
        if state.messages.len() >= MAX_MESSAGES {
            state.dropped += 1;
            return;
        }
        state.messages.push_back(ProviderEvent::Message {
            pod: pod.clone(),
            level,
            reason: reason.to_owned(),
            message: message.into(),
        });
        drop(state);
        self.shared.ready.notify_one();
    }

    fn put(&self, key: Key, event: ProviderEvent) {
        let mut state = self.shared.lock();
        let event = match (state.newest.remove(&key), event) {
            // What was told of other conditions and not read yet is told still.
            (
                Some(ProviderEvent::NodeConditions(_, before)),
                ProviderEvent::NodeConditions(node, mut conditions),
            ) => {
                let is_new = |c: &Condition| conditions.iter().all(|n| n.type_ != c.type_);
                let kept: Vec<_> = before.into_iter().filter(is_new).collect();
                conditions.extend(kept);
                state
                    .newest
                    .insert(key, ProviderEvent::NodeConditions(node, conditions));
                return;
            }
            (Some(_), event) => {
                state.newest.insert(key, event);
                return;
            }
            (None, event) => event,
        };
        state.order.push_back(key.clone());
        state.newest.insert(key, event);
        drop(state);
        self.shared.ready.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the lock is held")
    }
}

impl ProviderEvents {
    /// The next event; waits for one. Cancel-safe.
    pub async fn next(&mut self) -> ProviderEvent {
        loop {
            if let Some(event) = self.try_next() {
                return event;
            }
            self.shared.ready.notified().await;
        }
    }

    /// The next event, if there is one.
    pub fn try_next(&mut self) -> Option<ProviderEvent> {
        let mut state = self.shared.lock();
        if let Some(message) = state.messages.pop_front() {
            return Some(message);
        }
        let key = state.order.pop_front()?;
        state.newest.remove(&key)
    }

    /// How many events for people were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.shared.lock().dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str) -> PodId {
        PodId {
            uid: uid.into(),
            namespace: "ns".into(),
            name: uid.into(),
            node: "n".into(),
        }
    }

    fn condition(type_: &str, status: &str) -> Condition {
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: String::new(),
            message: String::new(),
        }
    }

    #[tokio::test]
    async fn the_newest_of_each_is_told_once() {
        let (sender, mut receiver) = PodEvents::channel();
        let report = |reason: &str| PodReport {
            reason: reason.to_owned(),
            ..PodReport::default()
        };
        sender.report(&pod("a"), report("1"));
        sender.report(&pod("b"), report("1"));
        sender.report(&pod("a"), report("2"));
        assert_eq!(
            receiver.next().await,
            ProviderEvent::Report(pod("a"), report("2"))
        );
        assert_eq!(
            receiver.next().await,
            ProviderEvent::Report(pod("b"), report("1"))
        );
        assert_eq!(receiver.try_next(), None);
        sender.report(&pod("a"), report("3"));
        sender.report(&pod("a"), report("4"));
        sender.gone(&pod("a"));
        sender.gone(&pod("a"));
        let last = ProviderEvent::Report(pod("a"), report("4"));
        assert_eq!(receiver.try_next(), Some(last), "how it ended");
        assert_eq!(receiver.try_next(), Some(ProviderEvent::Gone(pod("a"))));
        assert_eq!(receiver.try_next(), None);
    }

    #[test]
    fn conditions_of_other_types_stay() {
        let (sender, mut receiver) = PodEvents::channel();
        sender.node_conditions(
            "n",
            vec![condition("Ready", "False"), condition("X", "True")],
        );
        sender.node_conditions("n", vec![condition("Ready", "True")]);
        let Some(ProviderEvent::NodeConditions(_, conditions)) = receiver.try_next() else {
            panic!("conditions were told");
        };
        assert_eq!(
            conditions,
            [condition("Ready", "True"), condition("X", "True")]
        );
    }

    #[test]
    fn messages_are_bounded() {
        let (sender, receiver) = PodEvents::channel();
        for _ in 0..MAX_MESSAGES + 3 {
            sender.message(&pod("a"), EventLevel::Normal, "R", "m");
        }
        assert_eq!(receiver.dropped(), 3);
    }
}
