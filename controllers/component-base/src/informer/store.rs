//! The objects of an informer, their indexes, and the fan-out to subscribers. All of it changes under one lock, so that a
//! subscriber's queue and the store never disagree about the order.
//!
//! An object has a place (a number) for as long as it is here; indexes and queues hold places, and no copies of names.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use kube::Resource;
use kube::runtime::watcher::Event;

use super::dispatch::{Dispatcher, Handler, Subscription};
use super::queue::Queue;
use super::{InformerEvent, Object, Receiver};

type IndexFn<K> = Box<dyn Fn(&K) -> Vec<String> + Send + Sync>;

/// The number of an object; free for another once it is gone.
pub(super) type Place = u32;

struct Index<K> {
    keys: IndexFn<K>,
    entries: HashMap<Box<str>, BTreeSet<Place>>,
}

/// Places by name. The names are the objects' own.
struct Names {
    hasher: RandomState,
    /// Which bits of a hash count; all but in tests.
    mask: u64,
    /// The first place whose name has this hash; others follow in [`Slot::next`].
    first: HashMap<u64, Place, Hashed>,
}

impl Names {
    fn hash(&self, name: (&str, &str)) -> u64 {
        self.hasher.hash_one(name) & self.mask
    }
}

/// What is hashed already, or a place, which nobody chooses.
#[derive(Clone, Default)]
pub(super) struct Hashed(u64);

impl std::hash::Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only numbers are keys");
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
    fn write_u32(&mut self, place: u32) {
        // Spreads numbers in a row over all bits. Knuth, The Art of Computer Programming, 6.4.
        self.0 = u64::from(place).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl BuildHasher for Hashed {
    type Hasher = Self;
    fn build_hasher(&self) -> Self {
        Self(0)
    }
}

struct Slot<K> {
    /// `None`: the place is free.
    object: Option<Arc<K>>,
    next: Option<Place>,
    /// Which relist saw it last.
    seen: u32,
}

struct Inner<K: Object> {
    slots: Vec<Slot<K>>,
    free: Vec<Place>,
    names: Names,
    /// Not of cluster objects.
    namespaces: HashMap<Box<str>, BTreeSet<Place>>,
    indexes: HashMap<&'static str, Index<K>>,
    subscribers: Vec<Weak<Queue<K>>>,
    /// Of all handlers together; `None` before the first.
    dispatcher: Option<Dispatcher<K>>,
    /// A relist is under way.
    relisting: bool,
    relists: u32,
    closed: bool,
}

pub(super) struct Store<K: Object> {
    inner: RwLock<Inner<K>>,
}

fn name_of<K: Resource>(object: &K) -> (&str, &str) {
    let meta = object.meta();
    (
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

impl<K: Object> Store<K> {
    pub(super) fn new() -> Self {
        Self {
            inner: RwLock::new(Inner {
                slots: Vec::new(),
                free: Vec::new(),
                names: Names {
                    hasher: RandomState::new(),
                    mask: u64::MAX,
                    first: HashMap::default(),
                },
                namespaces: HashMap::new(),
                indexes: HashMap::new(),
                subscribers: Vec::new(),
                dispatcher: None,
                relisting: false,
                relists: 0,
                closed: false,
            }),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner<K>> {
        self.inner.read().expect("no panic while the lock is held")
    }
    fn write(&self) -> RwLockWriteGuard<'_, Inner<K>> {
        self.inner.write().expect("no panic while the lock is held")
    }

    /// Takes a watcher's event in; `true` when a list was completed.
    pub(super) fn apply(&self, event: Event<K>) -> bool {
        let mut inner = self.write();
        match event {
            Event::Init => {
                inner.relisting = true;
                inner.relists = inner.relists.wrapping_add(1);
            }
            Event::InitApply(object) | Event::Apply(object) => inner.upsert(object),
            Event::InitDone => {
                if std::mem::take(&mut inner.relisting) {
                    inner.remove_unseen();
                }
                return true;
            }
            Event::Delete(object) => {
                if let Some(place) = inner.find(name_of(&object)) {
                    inner.remove(place, Some(object));
                }
            }
        }
        false
    }

    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let inner = self.read();
        let place = inner.find((namespace, name))?;
        inner.object(place).cloned()
    }
    pub(super) fn list(&self) -> Vec<Arc<K>> {
        let inner = self.read();
        let mut all = Vec::with_capacity(inner.len());
        all.extend(inner.slots.iter().filter_map(|s| s.object.clone()));
        all
    }
    pub(super) fn len(&self) -> usize {
        self.read().len()
    }
    pub(super) fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let inner = self.read();
        inner.objects(inner.namespaces.get(namespace))
    }
    pub(super) fn count_namespace(&self, namespace: &str) -> usize {
        let inner = self.read();
        inner.namespaces.get(namespace).map_or(0, BTreeSet::len)
    }

    pub(super) fn add_index(&self, name: &'static str, keys: IndexFn<K>) {
        let mut guard = self.write();
        let inner = &mut *guard;
        if inner.indexes.contains_key(name) {
            return;
        }
        let mut index = Index {
            keys,
            entries: HashMap::new(),
        };
        for (place, slot) in (0..).zip(&inner.slots) {
            if let Some(object) = &slot.object {
                let keys = (index.keys)(object);
                index.add(place, keys);
            }
        }
        inner.indexes.insert(name, index);
    }
    pub(super) fn by_index(&self, name: &str, value: &str) -> Vec<Arc<K>> {
        let inner = self.read();
        let index = inner.indexes.get(name);
        inner.objects(index.and_then(|index| index.entries.get(value)))
    }

    pub(super) fn count_by_index(&self, name: &str, value: &str) -> usize {
        let inner = self.read();
        let index = inner.indexes.get(name);
        let places = index.and_then(|index| index.entries.get(value));
        places.map_or(0, BTreeSet::len)
    }

    pub(super) fn subscribe(&self) -> Receiver<K> {
        let mut inner = self.write();
        let queue = Arc::new(Queue::new());
        for (place, slot) in (0..).zip(&inner.slots) {
            if let Some(object) = &slot.object {
                queue.push(place, InformerEvent::Added(object.clone()));
            }
        }
        if inner.closed {
            queue.close();
        }
        inner.subscribers.push(Arc::downgrade(&queue));
        Receiver { queue }
    }

    /// Takes a handler in, which gets an `Added` for everything stored first. A dispatcher that is given is to be run.
    pub(super) fn add_handler(&self, handler: Handler<K>) -> (Subscription, Option<Dispatcher<K>>) {
        let mut guard = self.write();
        let inner = &mut *guard;
        let stored = inner.slots.iter().filter_map(|slot| slot.object.clone());
        let stored = stored.collect();
        if inner.closed {
            // The dispatcher may have ended already.
            let dispatcher = Dispatcher::default();
            let subscription = dispatcher.add(handler, stored);
            dispatcher.close();
            return (subscription, Some(dispatcher));
        }
        let first = inner.dispatcher.is_none();
        let dispatcher = inner.dispatcher.get_or_insert_with(Dispatcher::default);
        let subscription = dispatcher.add(handler, stored);
        (subscription, first.then(|| dispatcher.clone()))
    }

    /// Ends all subscriptions once they have read what is left.
    pub(super) fn close(&self) {
        let mut inner = self.write();
        inner.closed = true;
        inner
            .subscribers
            .iter()
            .filter_map(Weak::upgrade)
            .for_each(|queue| queue.close());
        if let Some(dispatcher) = &inner.dispatcher {
            dispatcher.close();
        }
    }
}

impl<K> Index<K> {
    fn add(&mut self, place: Place, keys: Vec<String>) {
        for value in keys {
            let value = value.into_boxed_str();
            self.entries.entry(value).or_default().insert(place);
        }
    }

    fn remove(&mut self, place: Place, keys: &[String]) {
        for value in keys {
            if let Some(places) = self.entries.get_mut(value.as_str()) {
                places.remove(&place);
                if places.is_empty() {
                    self.entries.remove(value.as_str());
                }
            }
        }
    }
}

impl<K: Object> Inner<K> {
    fn object(&self, place: Place) -> Option<&Arc<K>> {
        self.slots.get(place as usize)?.object.as_ref()
    }

    fn objects(&self, places: Option<&BTreeSet<Place>>) -> Vec<Arc<K>> {
        let places = places.into_iter().flatten();
        places
            .filter_map(|place| self.object(*place).cloned())
            .collect()
    }

    fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn find(&self, name: (&str, &str)) -> Option<Place> {
        let mut next = self.names.first.get(&self.names.hash(name)).copied();
        while let Some(place) = next {
            let slot = &self.slots[place as usize];
            if slot.object.as_deref().is_some_and(|o| name_of(o) == name) {
                return Some(place);
            }
            next = slot.next;
        }
        None
    }

    /// Puts a new object into a place of its own.
    fn settle(&mut self, object: Arc<K>) -> Place {
        let hash = self.names.hash(name_of(&*object));
        let place = self.free.pop().unwrap_or_else(|| {
            let next = Place::try_from(self.slots.len()).expect("objects fit in memory");
            self.slots.push(Slot {
                object: None,
                next: None,
                seen: 0,
            });
            next
        });
        let next = self.names.first.insert(hash, place);
        let namespace = name_of(&*object).0;
        if !namespace.is_empty() {
            match self.namespaces.get_mut(namespace) {
                Some(places) => drop(places.insert(place)),
                None => drop(self.namespaces.insert(namespace.into(), [place].into())),
            }
        }
        let slot = &mut self.slots[place as usize];
        slot.next = next;
        slot.object = Some(object);
        place
    }

    /// Frees a place.
    fn leave(&mut self, place: Place) -> Option<Arc<K>> {
        let slot = &mut self.slots[place as usize];
        let (object, after) = (slot.object.take()?, slot.next.take());
        self.free.push(place);
        let (namespace, name) = name_of(&*object);
        if let Some(places) = self.namespaces.get_mut(namespace) {
            places.remove(&place);
            if places.is_empty() {
                self.namespaces.remove(namespace);
            }
        }
        let hash = self.names.hash((namespace, name));
        let first = self.names.first.get(&hash).copied();
        match (first == Some(place), after) {
            (true, Some(after)) => drop(self.names.first.insert(hash, after)),
            (true, None) => drop(self.names.first.remove(&hash)),
            (false, _) => {
                let mut next = first;
                while let Some(other) = next {
                    let slot = &mut self.slots[other as usize];
                    next = slot.next;
                    if next == Some(place) {
                        slot.next = after;
                        break;
                    }
                }
            }
        }
        if self.free.len() == self.slots.len() {
            // All went: so does what held them.
            self.free = Vec::new();
            self.slots = Vec::new();
            self.names.first.shrink_to_fit();
        }
        Some(object)
    }

    fn upsert(&mut self, mut object: K) {
        // No reader needs managed fields, and they are often the larger half of an object.
        object.meta_mut().managed_fields = None;
        let Some(place) = self.find(name_of(&object)) else {
            return self.add(object);
        };
        let (relists, slot) = (self.relists, &mut self.slots[place as usize]);
        slot.seen = relists;
        let old = slot
            .object
            .clone()
            .expect("the place was found by its name");
        if old.meta().resource_version.is_some()
            && old.meta().resource_version == object.meta().resource_version
        {
            return;
        }
        if old.meta().uid != object.meta().uid {
            self.remove(place, None);
            return self.add(object);
        }
        let new = Arc::new(object);
        slot.object = Some(new.clone());
        for index in self.indexes.values_mut() {
            let (before, after) = ((index.keys)(&old), (index.keys)(&new));
            if before != after {
                index.remove(place, &before);
                index.add(place, after);
            }
        }
        self.publish(place, &InformerEvent::Updated { old, new });
    }

    fn add(&mut self, object: K) {
        let new = Arc::new(object);
        let place = self.settle(new.clone());
        self.slots[place as usize].seen = self.relists;
        for index in self.indexes.values_mut() {
            let keys = (index.keys)(&new);
            index.add(place, keys);
        }
        self.publish(place, &InformerEvent::Added(new));
    }

    /// `last` is the final state, if the server sent one.
    fn remove(&mut self, place: Place, last: Option<K>) {
        let Some(old) = self.leave(place) else {
            return;
        };
        for index in self.indexes.values_mut() {
            let keys = (index.keys)(&old);
            index.remove(place, &keys);
        }
        let last = match last {
            Some(mut last) if last.meta().uid == old.meta().uid => {
                last.meta_mut().managed_fields = None;
                Arc::new(last)
            }
            _ => old,
        };
        self.publish(place, &InformerEvent::Deleted(last));
    }

    /// What the list that ended had not.
    fn remove_unseen(&mut self) {
        let gone: Vec<Place> = (0..)
            .zip(&self.slots)
            .filter(|(_, slot)| slot.object.is_some() && slot.seen != self.relists)
            .map(|(place, _)| place)
            .collect();
        for place in gone {
            self.remove(place, None);
        }
    }

    fn publish(&mut self, place: Place, event: &InformerEvent<K>) {
        if let Some(dispatcher) = &self.dispatcher {
            dispatcher.push(place, event.clone());
        }
        self.subscribers
            .retain(|subscriber| match subscriber.upgrade() {
                Some(queue) => {
                    queue.push(place, event.clone());
                    true
                }
                None => false,
            });
    }
}

#[cfg(test)]
mod tests;
