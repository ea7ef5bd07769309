//! A subscriber's queue: events in order, merged while unread, so its length is bounded by what changed and not by how often.
//!
//! `Added` + `Updated` is `Added` of the newer state, `Updated` + `Updated` keeps the first old and the last new state, `Updated` +
//! `Deleted` is `Deleted`. `Added` + `Deleted` stays two events, since expectations count both; only past [`MAX_PENDING`] such
//! pairs are dropped. So do an `Added` and the `Updated` by which the object is to be deleted, or has other owners: whoever made it waits
//! for it as he made it. An object that went and came back is `Deleted` and `Added`, never `Updated`.
//!
//! A mark stands between events: what came before it merges with nothing that came after.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
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

/// What a queue holds.
pub(super) enum Item<K, M> {
    Event(Place, InformerEvent<K>),
    Mark(M),
}

struct Inner<K, M> {
    /// Number of the first slot.
    base: u64,
    slots: VecDeque<Option<Item<K, M>>>,
    /// The last unread slot of each place. A place that was given to another object had its `Deleted` last, and that merges with nothing.
    last: HashMap<Place, u64, Hashed>,
    closed: bool,
}

/// `M`: what marks are; nothing in a queue without any.
pub(super) struct Queue<K, M = Infallible> {
    inner: Mutex<Inner<K, M>>,
    notify: Notify,
}

impl<K: Object, M> Queue<K, M> {
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

    fn lock(&self) -> MutexGuard<'_, Inner<K, M>> {
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

    pub(super) fn mark(&self, mark: M) {
        let mut inner = self.lock();
        inner.last.clear();
        inner.slots.push_back(Some(Item::Mark(mark)));
        drop(inner);
        self.notify.notify_one();
    }

    /// Wakes the reader though nothing came.
    pub(super) fn wake(&self) {
        self.notify.notify_one();
    }

    pub(super) async fn woken(&self) {
        self.notify.notified().await;
    }

    /// The next ones, at most `most`; `false`: none will ever come.
    pub(super) fn take(&self, into: &mut Vec<Item<K, M>>, most: usize) -> bool {
        let mut inner = self.lock();
        let before = into.len();
        while into.len() - before < most
            && let Some(item) = inner.pop()
        {
            into.push(item);
        }
        into.len() > before || !inner.closed
    }

    fn pop(&self) -> Result<Item<K, M>, bool> {
        let mut inner = self.lock();
        inner.pop().ok_or(inner.closed)
    }
}

/// Whether what an object is to its owner changed: it is on its way out, or has others.
fn is_other_to_its_owner(old: &ObjectMeta, new: &ObjectMeta) -> bool {
    old.deletion_timestamp.is_some() != new.deletion_timestamp.is_some()
        || old.owner_references != new.owner_references
}

impl<K: Object, M> Inner<K, M> {
    fn push(&mut self, place: Place, event: InformerEvent<K>) {
        if let Some(number) = self.last.get(&place) {
            let index = usize::try_from(number - self.base).expect("slots fit in memory");
            if let Some(Item::Event(_, pending)) = self.slots[index].as_mut() {
                let merged = match (&*pending, &event) {
                    (InformerEvent::Added(first), InformerEvent::Updated { new, .. })
                        if !is_other_to_its_owner(first.meta(), new.meta()) =>
                    {
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
        self.slots.push_back(Some(Item::Event(place, event)));
    }

    fn pop(&mut self) -> Option<Item<K, M>> {
        while let Some(slot) = self.slots.pop_front() {
            let number = self.base;
            self.base += 1;
            let Some(item) = slot else { continue };
            if let Item::Event(place, _) = &item
                && self.last.get(place) == Some(&number)
            {
                self.last.remove(place);
            }
            if self.slots.is_empty() && self.slots.capacity() > LARGE {
                // What a burst took.
                self.slots = VecDeque::new();
                self.last = HashMap::default();
            }
            return Some(item);
        }
        None
    }

    /// Drops an `Added` that a later `Deleted` of the same object follows, both of them.
    fn compact(&mut self) {
        let mut added: HashMap<Place, usize> = HashMap::new();
        for index in 0..self.slots.len() {
            let (place, event) = match &self.slots[index] {
                None => continue,
                Some(Item::Event(place, event)) => (place, event),
                Some(Item::Mark(_)) => {
                    added.clear();
                    continue;
                }
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
            match slot {
                Some(Item::Event(place, _)) => {
                    self.last.insert(*place, self.base + index as u64);
                }
                Some(Item::Mark(_)) => self.last.clear(),
                None => {}
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
                Ok(item) => return Some(event(item)),
                Err(true) => return None,
                Err(false) => self.queue.notify.notified().await,
            }
        }
    }

    /// The next event if there is one now.
    pub fn try_recv(&mut self) -> Option<InformerEvent<K>> {
        self.queue.pop().ok().map(event)
    }

    /// The events as a stream.
    pub fn into_stream(self) -> impl futures::Stream<Item = InformerEvent<K>> {
        futures::stream::unfold(self, |mut receiver| async move {
            receiver.recv().await.map(|event| (event, receiver))
        })
    }
}

/// What is in a queue without marks.
fn event<K>(item: Item<K, Infallible>) -> InformerEvent<K> {
    match item {
        Item::Event(_, event) => event,
        Item::Mark(never) => match never {},
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    #[test]
    fn pairs_are_dropped_but_not_across_a_mark() {
        let queue: Queue<ConfigMap, char> = Queue::new();
        let object = Arc::new(ConfigMap::default());
        let added = || InformerEvent::Added(object.clone());
        let deleted = || InformerEvent::Deleted(object.clone());
        queue.push(0, added());
        queue.push(1, added());
        queue.push(1, deleted());
        queue.mark('m');
        queue.push(0, deleted());
        queue.push(2, added());
        queue.push(2, deleted());
        queue.push(3, added());
        queue.lock().compact();
        // Merges with what is unread, at its new place.
        let (old, new) = (object.clone(), object.clone());
        queue.push(3, InformerEvent::Updated { old, new });
        let mut items = Vec::new();
        assert!(queue.take(&mut items, 100));
        let text = |item: &Item<ConfigMap, char>| match item {
            Item::Event(place, InformerEvent::Added(_)) => format!("+{place}"),
            Item::Event(place, InformerEvent::Updated { .. }) => format!("~{place}"),
            Item::Event(place, InformerEvent::Deleted(_)) => format!("-{place}"),
            Item::Mark(mark) => mark.to_string(),
        };
        let texts: Vec<_> = items.iter().map(text).collect();
        assert_eq!(texts, ["+0", "m", "-0", "+3"]);
        assert!(queue.take(&mut items, 100), "more may come");
        queue.close();
        assert!(!queue.take(&mut items, 100));
    }
}
