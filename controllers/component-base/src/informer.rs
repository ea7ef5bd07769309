//! Informers: one watched cache per kind and selection, shared by everybody in the process.
//!
//! Fed by a reflector (streaming lists, bookmarks, resume, relist with backoff; protobuf). Objects are trimmed and held as `Arc`.
//! Handlers, which do not block, are called by one task of the informer; whoever may be slow is a subscriber with a queue of its own.
//! A queue merges what was not read yet, so nobody loses a state.
//! Upstream: `k8s.io/client-go/tools/cache`.
//!
//! ```text
//! reflector -> store (objects, indexes) -> one queue -> handler, handler, …
//!                                       -> queue per subscriber -> InformerEvent
//! ```

mod backoff;
mod dispatch;
mod keep;
mod metadata;
mod queue;
mod reflector;
mod store;
mod tolerant;

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use kube::core::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use backoff::{RelistBackoff, is_expired};
pub use dispatch::Subscription;
pub use keep::{Keep, Keeps};
pub use kube_protobuf::View;
pub use metadata::{HasMetadata, MetadataEvent, MetadataInformer, MetadataReceiver};
pub use queue::{InformerEvent, Receiver};
use reflector::{Source, reflect};
use store::Store;

use crate::shutdown::Shutdown;

/// Namespace and name of an object; the namespace is empty for cluster objects. Displays as `namespace/name` or `name`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Empty for cluster objects.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl ObjectKey {
    /// A key; an empty namespace means a cluster object.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
    /// The key of an object.
    pub fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// What an informer can hold: any API object, typed, dynamic or metadata alone.
pub trait Object: Resource + Clone + Debug + Send + Sync + 'static {}
impl<K: Resource + Clone + Debug + Send + Sync + 'static> Object for K {}

/// Which objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct InformerOptions {
    /// A label selector; empty selects everything.
    pub label_selector: Option<String>,
    /// A field selector, as `spec.nodeName=a`.
    pub field_selector: Option<String>,
}

impl InformerOptions {
    /// Adds a field selector.
    pub fn fields(mut self, selector: impl Into<String>) -> Self {
        self.field_selector = Some(selector.into());
        self
    }
    /// Adds a label selector.
    pub fn labels(mut self, selector: impl Into<String>) -> Self {
        self.label_selector = Some(selector.into());
        self
    }
}

/// Makes informers and remembers them: asking twice for one kind and selection gives one informer.
#[derive(Clone)]
pub struct Factory {
    inner: Arc<FactoryInner>,
}

/// Type, resource or namespace, selection.
type InformerId = (TypeId, String, InformerOptions);

struct FactoryInner {
    client: Client,
    shutdown: Shutdown,
    keeps: Keeps,
    informers: Mutex<HashMap<InformerId, Box<dyn Any + Send>>>,
    /// Of all objects of a resource, by its path.
    whole: Mutex<HashMap<String, MetadataInformer>>,
}

impl Factory {
    /// A factory whose informers end with `shutdown`.
    pub fn new(client: Client, shutdown: Shutdown) -> Self {
        Self::keeping(client, shutdown, Keeps::default())
    }

    /// The same, of informers that keep what this process reads.
    pub fn keeping(client: Client, shutdown: Shutdown, keeps: Keeps) -> Self {
        Self {
            inner: Arc::new(FactoryInner {
                client,
                shutdown,
                keeps,
                informers: Mutex::default(),
                whole: Mutex::default(),
            }),
        }
    }

    /// The client the informers use.
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    /// The informer of a kind over the whole cluster; starts at once.
    pub fn informer<K>(&self, options: InformerOptions) -> Informer<K>
    where
        K: Object + DeserializeOwned + Resource<DynamicType = ()>,
    {
        self.cached(String::new(), &options, || {
            let api = Api::<K>::all(self.inner.client.clone());
            let path = api.resource_url().to_string();
            let keep = self.inner.keeps.of();
            let informer = Informer::start_keeping(api, &options, keep, &self.inner.shutdown);
            if options == InformerOptions::default() {
                let metadata = MetadataInformer::of(informer.clone());
                let mut whole = self.inner.whole.lock();
                let whole = whole.as_mut().expect("no panic while the lock is held");
                whole.insert(path, metadata);
            }
            informer
        })
    }

    /// Puts `informer` in the place of that of all objects of its kind, before anybody asks for it.
    pub fn seed<K: Object>(&self, informer: Informer<K>) {
        self.cached(String::new(), &InformerOptions::default(), || informer);
    }

    /// The informer of a kind in one namespace; starts at once.
    pub fn namespaced_informer<K>(&self, namespace: &str, options: InformerOptions) -> Informer<K>
    where
        K: Object + DeserializeOwned + Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        self.cached(namespace.to_string(), &options, || {
            Informer::start_keeping(
                Api::namespaced(self.inner.client.clone(), namespace),
                &options,
                self.inner.keeps.of(),
                &self.inner.shutdown,
            )
        })
    }

    /// The metadata of all objects of a resource found by discovery: from the informer of the kind where there is one already,
    /// else from one of metadata alone, which holds of it what owners and counts are found by.
    pub fn metadata(&self, resource: &ApiResource) -> MetadataInformer {
        let path = PartialObjectMeta::<DynamicObject>::url_path(resource, None);
        let whole = self.inner.whole.lock();
        if let Some(informer) = whole.expect("no panic while the lock is held").get(&path) {
            return informer.clone();
        }
        let options = InformerOptions::default();
        MetadataInformer::of(self.cached(metadata_id(resource), &options, || {
            let source = Source {
                client: self.inner.client.clone(),
                path: path.clone(),
                options: options.clone(),
                message: kube_protobuf::message("meta.k8s.io", "v1", "PartialObjectMetadata"),
                metadata: true,
                keep: Keep::<PartialObjectMeta<DynamicObject>>::identity(),
            };
            Informer::from_stream(reflect(source), path, &self.inner.shutdown)
        }))
    }

    /// Forgets the metadata informer of a resource (its CRD is gone); it ends when the last handle is dropped.
    pub fn forget_metadata(&self, resource: &ApiResource) {
        let key = (
            TypeId::of::<PartialObjectMeta<DynamicObject>>(),
            metadata_id(resource),
            InformerOptions::default(),
        );
        self.inner
            .informers
            .lock()
            .expect("no panic while the lock is held")
            .remove(&key);
    }

    fn cached<K: Object>(
        &self,
        id: String,
        options: &InformerOptions,
        make: impl FnOnce() -> Informer<K>,
    ) -> Informer<K> {
        let mut informers = self
            .inner
            .informers
            .lock()
            .expect("no panic while the lock is held");
        let entry = informers
            .entry((TypeId::of::<K>(), id, options.clone()))
            .or_insert_with(|| Box::new(make()));
        entry
            .downcast_ref::<Informer<K>>()
            .expect("stored under its own type id")
            .clone()
    }
}

/// A shared, watched cache. Clones are handles; a standalone informer's watch ends when the last handle is dropped.
pub struct Informer<K: Object> {
    store: Arc<Store<K>>,
    synced: watch::Receiver<bool>,
    shutdown: Shutdown,
    /// Ends the watch when the last handle goes.
    _guard: Arc<tokio_util::sync::DropGuard>,
}

impl<K: Object> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            synced: self.synced.clone(),
            shutdown: self.shutdown.clone(),
            _guard: self._guard.clone(),
        }
    }
}

impl<K: Object> Informer<K> {
    /// A standalone informer over `api`'s namespace or cluster, outside of any factory; ends with `shutdown` or with its last
    /// handle.
    pub fn start(api: Api<K>, options: &InformerOptions, shutdown: &Shutdown) -> Self
    where
        K: DeserializeOwned + Resource<DynamicType = ()>,
    {
        Self::start_keeping(api, options, Keep::default(), shutdown)
    }

    /// The same, of what `keep` has.
    pub fn start_keeping(
        api: Api<K>,
        options: &InformerOptions,
        keep: Keep<K>,
        shutdown: &Shutdown,
    ) -> Self
    where
        K: DeserializeOwned + Resource<DynamicType = ()>,
    {
        let path = api.resource_url().to_string();
        let source = Source {
            client: api.into_client(),
            path: path.clone(),
            options: options.clone(),
            message: kube_protobuf::message(&K::group(&()), &K::version(&()), &K::kind(&())),
            metadata: false,
            keep,
        };
        Self::from_stream(reflect(source), path, shutdown)
    }

    /// Feeds a store from a stream of watcher events; the seam for tests and unusual sources.
    pub fn from_stream<S>(stream: S, kind: String, shutdown: &Shutdown) -> Self
    where
        S: futures::Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    {
        let store = Arc::new(Store::new());
        let (synced_sender, synced) = watch::channel(false);
        let end = shutdown.child();
        let guard = Arc::new(end.token().clone().drop_guard());
        let task_store = store.clone();
        let name = format!("informer of {kind}");
        shutdown.spawn_guarded(name, async move {
            let mut stream = Box::pin(stream);
            let mut backoff = RelistBackoff::default();
            while let Some(Some(event)) = end.run_until(stream.next()).await {
                match event {
                    Ok(event) => {
                        backoff.note(&event);
                        if task_store.apply(event) {
                            synced_sender.send_replace(true);
                        }
                    }
                    Err(error) => {
                        match is_expired(&error) {
                            true => tracing::debug!(kind, %error, "Watch expired, will list"),
                            false => tracing::warn!(kind, %error, "Watch failed, will retry"),
                        }
                        // The stream asks the server only when it is polled.
                        let wait = tokio::time::sleep(backoff.after(&error));
                        if end.run_until(wait).await.is_none() {
                            break;
                        }
                    }
                }
            }
            task_store.close();
        });
        Self {
            store,
            synced,
            shutdown: shutdown.clone(),
            _guard: guard,
        }
    }

    /// The object, if the cache has it.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.store.get(namespace, name)
    }

    /// The object of a key.
    pub fn get_key(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.store.get(&key.namespace, &key.name)
    }

    /// All objects, in no order.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.store.list()
    }

    /// All objects of a namespace, in no order.
    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.store.list_namespace(namespace)
    }

    /// How many objects of a namespace the cache has.
    pub fn count_namespace(&self, namespace: &str) -> usize {
        self.store.count_namespace(namespace)
    }

    /// How many objects the cache has.
    pub fn len(&self) -> usize {
        self.store.len()
    }

    /// Whether the cache is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds an index under a name of its own; adding it twice keeps the first. `keys` gives the values an object is found by.
    pub fn add_index(
        &self,
        name: &'static str,
        keys: impl Fn(&K) -> Vec<String> + Send + Sync + 'static,
    ) {
        self.store.add_index(name, Box::new(keys));
    }

    /// Objects that have `value` in an index; empty when there is no such index.
    pub fn by_index(&self, name: &str, value: &str) -> Vec<Arc<K>> {
        self.store.by_index(name, value)
    }

    /// How many objects have `value` in an index; 0 when there is no such index.
    pub fn count_by_index(&self, name: &str, value: &str) -> usize {
        self.store.count_by_index(name, value)
    }

    /// Calls `handler` for every event from now on, after an `Added` for everything stored, until the subscription is dropped. One task
    /// calls all handlers of an informer, one after the other: a handler must not block. Must be called inside a tokio runtime.
    pub fn on(&self, handler: impl FnMut(InformerEvent<K>) + Send + 'static) -> Subscription {
        let (subscription, first) = self.store.add_handler(Box::new(handler));
        if let Some(dispatcher) = first {
            let name = format!("event handlers of {}", std::any::type_name::<K>());
            self.shutdown.spawn_guarded(name, dispatcher.run());
        }
        subscription
    }

    /// Events from now on, after an `Added` for everything stored, for a reader that may be slow.
    pub fn subscribe(&self) -> Receiver<K> {
        self.store.subscribe()
    }

    /// Whether the first list has arrived in full.
    pub fn has_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Waits for the first list; `false` when the informer ended before.
    pub async fn wait_for_sync(&self) -> bool {
        self.synced.clone().wait_for(|synced| *synced).await.is_ok()
    }
}

fn metadata_id(resource: &ApiResource) -> String {
    format!(
        "{}/{}/{}",
        resource.group, resource.version, resource.plural
    )
}

#[cfg(test)]
mod tests;
