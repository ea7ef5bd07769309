//! A subscriber's queue: events in order, merged while unread, so its length is bounded by what changed and not by how often.
//!
//! `Added` + `Updated` is `Added` of the newer state, `Updated` + `Updated` keeps the first old and the last new state, `Updated` +
//! `Deleted` is `Deleted`. `Added` + `Deleted` stays two events, since expectations count both; only past [`MAX_PENDING`] such
//! pairs are dropped. An object that went and came back is `Deleted` and `Added`, never `Updated`.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use super::Object;
use super::store::{Hashed, Place};

/// Unread events of one subscriber before pairs of `Added` and `Deleted` are dropped.
const MAX_PENDING: usize = 131_072;
/// A queue that held more gives the room back when it is empty.
const LARGE: usize = 256;

/// What happened to an object.
#[derive(Clone, Debug)]
pub enum InformerEvent<K> {
    /// It is new to the subscriber.
    Added(Arc<K>),
    /// It changed, or the cache was rebuilt and found it changed.
    Updated {
        /// What the subscriber saw last.
        old: Arc<K>,
        /// What it is now.
        new: Arc<K>,
    },
    /// It is gone; this is its last known state.
    Deleted(Arc<K>),
}

impl<K> InformerEvent<K> {
    /// The newest state the event carries.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Self::Added(object) | Self::Deleted(object) | Self::Updated { new: object, .. } => {
                object
            }
        }
    }
}

struct Inner<K> {
    /// Number of the first slot.
    base: u64,
    slots: VecDeque<Option<(Place, InformerEvent<K>)>>,
    /// The last unread slot of each place. A place that was given to another object had its `Deleted` last, and that merges with nothing.
    last: HashMap<Place, u64, Hashed>,
    closed: bool,
}

pub(super) struct Queue<K> {
    inner: Mutex<Inner<K>>,
    notify: Notify,
}

impl<K: Object> Queue<K> {
    pub(super) fn new() -> Self {
        let inner = Inner {
            base: 0,
            slots: VecDeque::new(),
            last: HashMap::default(),
            closed: false,
        };
        Self {
            inner: Mutex::new(inner),
            notify: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<K>> {
        self.inner.lock().expect("no panic while the lock is held")
    }

    pub(super) fn push(&self, place: Place, event: InformerEvent<K>) {
        {
            let mut inner = self.lock();
            inner.push(place, event);
            if inner.slots.len() > MAX_PENDING {
                inner.compact();
            }
        }
        self.notify.notify_one();
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.notify.notify_one();
    }

    fn pop(&self) -> Result<InformerEvent<K>, bool> {
        let mut inner = self.lock();
        inner.pop().ok_or(inner.closed)
    }
}

impl<K: Object> Inner<K> {
    fn push(&mut self, place: Place, event: InformerEvent<K>) {
        if let Some(number) = self.last.get(&place) {
            let index = usize::try_from(number - self.base).expect("slots fit in memory");
            if let Some((_, pending)) = self.slots[index].as_mut() {
                let merged = match (&*pending, &event) {
                    (InformerEvent::Added(_), InformerEvent::Updated { new, .. }) => {
                        Some(InformerEvent::Added(new.clone()))
                    }
                    (InformerEvent::Updated { old, .. }, InformerEvent::Updated { new, .. }) => {
                        Some(InformerEvent::Updated {
                            old: old.clone(),
                            new: new.clone(),
                        })
                    }
                    (InformerEvent::Updated { .. }, InformerEvent::Deleted(last)) => {
                        Some(InformerEvent::Deleted(last.clone()))
                    }
                    _ => None,
                };
                if let Some(merged) = merged {
                    *pending = merged;
                    return;
                }
            }
        }
        self.last.insert(place, self.base + self.slots.len() as u64);
        self.slots.push_back(Some((place, event)));
    }

    fn pop(&mut self) -> Option<InformerEvent<K>> {
        while let Some(slot) = self.slots.pop_front() {
            let number = self.base;
            self.base += 1;
            if let Some((place, event)) = slot {
                if self.last.get(&place) == Some(&number) {
                    self.last.remove(&place);
                }
                if self.slots.is_empty() && self.slots.capacity() > LARGE {
                    // What a burst took.
                    self.slots = VecDeque::new();
                    self.last = HashMap::default();
                }
                return Some(event);
            }
        }
        None
    }

    /// Drops an `Added` that a later `Deleted` of the same object follows, both of them.
    fn compact(&mut self) {
        let mut added: HashMap<Place, usize> = HashMap::new();
        for index in 0..self.slots.len() {
            let Some((place, event)) = &self.slots[index] else {
                continue;
            };
            match event {
                InformerEvent::Added(_) => {
                    added.insert(*place, index);
                }
                InformerEvent::Deleted(_) => {
                    if let Some(first) = added.remove(place) {
                        self.slots[first] = None;
                        self.slots[index] = None;
                    }
                }
                InformerEvent::Updated { .. } => {}
            }
        }
        let slots = std::mem::take(&mut self.slots);
        self.last.clear();
        self.slots = slots.into_iter().filter(Option::is_some).collect();
        for (index, slot) in self.slots.iter().enumerate() {
            if let Some((place, _)) = slot {
                self.last.insert(*place, self.base + index as u64);
            }
        }
    }
}

/// The reading end of a subscription. Dropping it ends the subscription.
pub struct Receiver<K> {
    pub(super) queue: Arc<Queue<K>>,
}

impl<K: Object> Receiver<K> {
    /// The next event; `None` when the informer ended. Cancel-safe.
    pub async fn recv(&mut self) -> Option<InformerEvent<K>> {
        loop {
            match self.queue.pop() {
                Ok(event) => return Some(event),
                Err(true) => return None,
                Err(false) => self.queue.notify.notified().await,
            }
        }
    }

    /// The next event if there is one now.
    pub fn try_recv(&mut self) -> Option<InformerEvent<K>> {
        self.queue.pop().ok()
    }

    /// The events as a stream.
    pub fn into_stream(self) -> impl futures::Stream<Item = InformerEvent<K>> {
        futures::stream::unfold(self, |mut receiver| async move {
            receiver.recv().await.map(|event| (event, receiver))
        })
    }
}
