//! The objects of an informer, their indexes, and the fan-out to subscribers. All of it changes under one lock, so that a
//! subscriber's queue and the store never disagree about the order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use kube::runtime::watcher::Event;

use super::queue::Queue;
use super::{InformerEvent, Object, ObjectKey, Receiver};

type IndexFn<K> = Box<dyn Fn(&K) -> Vec<String> + Send + Sync>;

struct Index<K> {
    keys: IndexFn<K>,
    entries: HashMap<String, HashSet<ObjectKey>>,
}

struct Inner<K: Object> {
    objects: HashMap<ObjectKey, Arc<K>>,
    namespaces: BTreeMap<String, HashSet<ObjectKey>>,
    indexes: HashMap<&'static str, Index<K>>,
    subscribers: Vec<Weak<Queue<K>>>,
    /// Keys seen during a relist that is under way.
    relist: Option<HashSet<ObjectKey>>,
    closed: bool,
}

pub(super) struct Store<K: Object> {
    inner: RwLock<Inner<K>>,
}

impl<K: Object> Store<K> {
    pub(super) fn new() -> Self {
        Self {
            inner: RwLock::new(Inner {
                objects: HashMap::new(),
                namespaces: BTreeMap::new(),
                indexes: HashMap::new(),
                subscribers: Vec::new(),
                relist: None,
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
            Event::Init => inner.relist = Some(HashSet::new()),
            Event::InitApply(object) => {
                let key = ObjectKey::of(&object);
                if let Some(seen) = &mut inner.relist {
                    seen.insert(key.clone());
                }
                inner.upsert(key, object);
            }
            Event::InitDone => {
                if let Some(seen) = inner.relist.take() {
                    let gone: Vec<ObjectKey> = inner
                        .objects
                        .keys()
                        .filter(|key| !seen.contains(key))
                        .cloned()
                        .collect();
                    for key in gone {
                        inner.remove(&key, None);
                    }
                }
                return true;
            }
            Event::Apply(object) => inner.upsert(ObjectKey::of(&object), object),
            Event::Delete(object) => inner.remove(&ObjectKey::of(&object), Some(object)),
        }
        false
    }

    pub(super) fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.read().objects.get(key).cloned()
    }
    pub(super) fn list(&self) -> Vec<Arc<K>> {
        self.read().objects.values().cloned().collect()
    }
    pub(super) fn len(&self) -> usize {
        self.read().objects.len()
    }
    pub(super) fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let inner = self.read();
        let keys = inner.namespaces.get(namespace);
        keys.into_iter()
            .flatten()
            .filter_map(|key| inner.objects.get(key).cloned())
            .collect()
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
        for (key, object) in &inner.objects {
            index.add(key, object);
        }
        inner.indexes.insert(name, index);
    }
    pub(super) fn by_index(&self, name: &str, value: &str) -> Vec<Arc<K>> {
        let inner = self.read();
        let keys = inner
            .indexes
            .get(name)
            .and_then(|index| index.entries.get(value));
        keys.into_iter()
            .flatten()
            .filter_map(|key| inner.objects.get(key).cloned())
            .collect()
    }

    pub(super) fn subscribe(&self) -> Receiver<K> {
        let mut inner = self.write();
        let queue = Arc::new(Queue::new());
        for (key, object) in &inner.objects {
            queue.push(key, InformerEvent::Added(object.clone()));
        }
        if inner.closed {
            queue.close();
        }
        inner.subscribers.push(Arc::downgrade(&queue));
        Receiver { queue }
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
    }
}

impl<K> Index<K> {
    fn add(&mut self, key: &ObjectKey, object: &K) {
        for value in (self.keys)(object) {
            self.entries.entry(value).or_default().insert(key.clone());
        }
    }
    fn remove(&mut self, key: &ObjectKey, object: &K) {
        for value in (self.keys)(object) {
            if let Some(keys) = self.entries.get_mut(&value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.entries.remove(&value);
                }
            }
        }
    }
}

impl<K: Object> Inner<K> {
    fn upsert(&mut self, key: ObjectKey, mut object: K) {
        // No reader needs managed fields, and they are often the larger half of an object.
        object.meta_mut().managed_fields = None;
        let old = self.objects.get(&key).cloned();
        if let Some(old) = &old {
            if old.meta().resource_version.is_some()
                && old.meta().resource_version == object.meta().resource_version
            {
                return;
            }
            if old.meta().uid != object.meta().uid {
                self.remove(&key, None);
                return self.upsert(key, object);
            }
        }
        let new = Arc::new(object);
        self.objects.insert(key.clone(), new.clone());
        self.namespaces
            .entry(key.namespace.clone())
            .or_default()
            .insert(key.clone());
        for index in self.indexes.values_mut() {
            if let Some(old) = &old {
                index.remove(&key, old);
            }
            index.add(&key, &new);
        }
        let event = match old {
            Some(old) => InformerEvent::Updated { old, new },
            None => InformerEvent::Added(new),
        };
        self.publish(&key, event);
    }

    /// `last` is the final state, if the server sent one.
    fn remove(&mut self, key: &ObjectKey, last: Option<K>) {
        let Some(old) = self.objects.remove(key) else {
            return;
        };
        if let Some(keys) = self.namespaces.get_mut(&key.namespace) {
            keys.remove(key);
            if keys.is_empty() {
                self.namespaces.remove(&key.namespace);
            }
        }
        for index in self.indexes.values_mut() {
            index.remove(key, &old);
        }
        let last = match last {
            Some(mut last) if last.meta().uid == old.meta().uid => {
                last.meta_mut().managed_fields = None;
                Arc::new(last)
            }
            _ => old,
        };
        self.publish(key, InformerEvent::Deleted(last));
    }

    fn publish(&mut self, key: &ObjectKey, event: InformerEvent<K>) {
        self.subscribers
            .retain(|subscriber| match subscriber.upgrade() {
                Some(queue) => {
                    queue.push(key, event.clone());
                    true
                }
                None => false,
            });
    }
}
