//! [`Observers`]: the plugins that hear of what changes; [`ObjectInformers`]: the kinds that are watched for them alone.
//!
//! Owns the order: what a plugin is told comes from the one task that handles all events, under a lock that a plugin's beginning takes, too. A list is never older
//! than the events told before it, so that a plugin that is told all there is and then every event ends with what there is. Costs nothing without observers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use component_base::informer::{Informer, InformerEvent};
use component_base::shutdown::Shutdown;
use framework::{EventObject, Object, ObjectKind, Plugin};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher;
use tokio::sync::mpsc;

#[cfg(test)]
mod tests;

/// A change of an object: before and after.
pub type Change = (Option<Arc<Object>>, Option<Arc<Object>>);

/// Changes that the event handlers have not taken yet; a watch waits when there are more.
const UNHANDLED: usize = 1024;
/// So long a kind may take to be listed before its name is logged.
const SLOW: Duration = Duration::from_secs(10);

/// Where what there is comes from.
pub trait Sources: Send + Sync {
    /// Watches the kind from now on.
    fn watch(&self, kind: ObjectKind);
    /// The objects of a kind that is watched.
    fn objects(&self, kind: ObjectKind) -> Vec<Arc<Object>>;
    /// All pods that have not ended.
    fn pods(&self) -> Vec<Arc<Pod>>;
}

struct Told {
    plugin: Arc<dyn Plugin>,
    kinds: Vec<ObjectKind>,
    pods: bool,
}

/// See the module.
#[derive(Default)]
pub struct Observers {
    told: Mutex<Vec<Told>>,
    any_hears_pods: AtomicBool,
    sources: OnceLock<Arc<dyn Sources>>,
}

impl Observers {
    /// Set once, before the first plugin is made; without, plugins hear of events alone.
    pub fn set_sources(&self, sources: Arc<dyn Sources>) {
        // A second one would be a fault of the program; the first stays.
        let _ = self.sources.set(sources);
    }

    /// These plugins hear of everything from now on, and nobody else.
    pub fn set(&self, plugins: impl Iterator<Item = Arc<dyn Plugin>>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = Vec::new();
        for plugin in plugins {
            let Some(observer) = plugin.as_observer() else {
                continue;
            };
            let kinds = observer.kinds();
            if let Some(sources) = self.sources.get() {
                kinds.iter().for_each(|kind| sources.watch(*kind));
            }
            self.tell_all(&*plugin, &kinds);
            observer.begin();
            let pods = observer.hears_pods();
            new.push(Told {
                plugin,
                kinds,
                pods,
            });
        }
        let any = new.iter().any(|told: &Told| told.pods);
        self.any_hears_pods.store(any, Ordering::Release);
        *told = new;
    }

    /// Tells plugins that answer a question, and nothing more, all that is known now.
    pub fn inform(&self, plugins: impl IntoIterator<Item = Arc<dyn Plugin>>) {
        let _told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for plugin in plugins {
            if let Some(observer) = plugin.as_observer() {
                self.tell_all(&*plugin, &observer.kinds());
            }
        }
    }

    /// Tells every observer again all there is of the kinds that plugins alone know: once they are listed, before the first pod.
    pub fn tell_objects(&self) {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sources) = self.sources.get() else {
            return;
        };
        for Told { plugin, kinds, .. } in &*told {
            let Some(observer) = plugin.as_observer() else {
                continue;
            };
            for object in kinds.iter().flat_map(|kind| sources.objects(*kind)) {
                observer.observe(None, Some(&EventObject::Custom(object)));
            }
        }
    }

    /// All there is of the kinds that plugins alone know.
    pub fn objects(&self) -> Vec<Arc<Object>> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sources) = self.sources.get() else {
            return Vec::new();
        };
        let kinds: BTreeSet<ObjectKind> =
            told.iter().flat_map(|told| &told.kinds).copied().collect();
        kinds
            .into_iter()
            .flat_map(|kind| sources.objects(kind))
            .collect()
    }

    fn tell_all(&self, plugin: &dyn Plugin, kinds: &[ObjectKind]) {
        let (Some(sources), Some(observer)) = (self.sources.get(), plugin.as_observer()) else {
            return;
        };
        for object in kinds.iter().flat_map(|kind| sources.objects(*kind)) {
            observer.observe(None, Some(&EventObject::Custom(object)));
        }
        if !observer.hears_pods() {
            return;
        }
        for pod in sources.pods() {
            observer.observe(None, Some(&EventObject::Pod(pod)));
        }
    }

    /// A pod changed.
    pub fn tell_pod(&self, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>) {
        if !self.any_hears_pods.load(Ordering::Acquire) {
            return;
        }
        let object = |pod: Option<&Arc<Pod>>| pod.map(|pod| EventObject::Pod(Arc::clone(pod)));
        self.tell(object(old).as_ref(), object(new).as_ref(), |told| told.pods);
    }

    /// An object of a kind that only plugins know changed.
    pub fn tell_object(
        &self,
        kind: ObjectKind,
        old: Option<&EventObject>,
        new: Option<&EventObject>,
    ) {
        self.tell(old, new, |told| told.kinds.contains(&kind));
    }

    fn tell(
        &self,
        old: Option<&EventObject>,
        new: Option<&EventObject>,
        wants: impl Fn(&Told) -> bool,
    ) {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for told in told.iter().filter(|told| wants(told)) {
            if let Some(observer) = told.plugin.as_observer() {
                observer.observe(old, new);
            }
        }
    }
}

/// Watches kinds for plugins, each from the moment one asks.
pub struct ObjectInformers {
    client: kube::Client,
    shutdown: Shutdown,
    pods: Informer<Pod>,
    informers: Mutex<BTreeMap<ObjectKind, Informer<DynamicObject>>>,
    changes: mpsc::Sender<Change>,
    /// The tasks that carry changes over run on it.
    tasks: tokio::runtime::Handle,
}

impl ObjectInformers {
    /// Nothing is watched yet. The receiver is for the event handlers.
    pub fn new(
        client: kube::Client,
        pods: Informer<Pod>,
        shutdown: Shutdown,
    ) -> (Arc<Self>, mpsc::Receiver<Change>) {
        let (changes, receiver) = mpsc::channel(UNHANDLED);
        let informers = ObjectInformers {
            client,
            shutdown,
            pods,
            informers: Mutex::default(),
            changes,
            tasks: tokio::runtime::Handle::current(),
        };
        (Arc::new(informers), receiver)
    }

    fn all(&self) -> Vec<(ObjectKind, Informer<DynamicObject>)> {
        let informers = self
            .informers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        informers.iter().map(|(k, i)| (*k, i.clone())).collect()
    }

    /// Have all kinds watched so far been listed once?
    pub fn has_synced(&self) -> bool {
        self.all().iter().all(|(_, informer)| informer.has_synced())
    }

    /// Waits until all kinds watched so far have been listed once; false when the process ends before. A kind that takes long is named: its definition may be
    /// missing, or the right to list it.
    pub async fn wait_for_sync(&self) -> bool {
        for (kind, informer) in self.all() {
            let synced = informer.wait_for_sync();
            tokio::pin!(synced);
            let done = match tokio::time::timeout(SLOW, &mut synced).await {
                Ok(done) => done,
                Err(_) => {
                    tracing::warn!(
                        resource = kind.event,
                        "A plugin needs objects that cannot be listed yet; nothing is scheduled until they are"
                    );
                    synced.await
                }
            };
            if !done {
                return false;
            }
        }
        true
    }

    fn start(&self, kind: ObjectKind) -> Informer<DynamicObject> {
        let gvk = GroupVersionKind::gvk(kind.group, kind.version, kind.kind);
        let resource = ApiResource::from_gvk_with_plural(&gvk, kind.plural);
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
        let stream = watcher::watcher(api, watcher::Config::default());
        let informer = Informer::from_stream(stream, kind.event.to_owned(), &self.shutdown);
        let (mut events, changes) = (informer.subscribe(), self.changes.clone());
        self.shutdown
            .spawn_essential(format!("changes of {}", kind.event), {
                let shutdown = self.shutdown.clone();
                async move {
                    while let Some(Some(event)) = shutdown.run_until(events.recv()).await {
                        if let Some(change) = change(kind, event)
                            && changes.send(change).await.is_err()
                        {
                            // The event handlers have ended.
                            break;
                        }
                    }
                    shutdown.triggered().await;
                }
            });
        informer
    }
}

fn object(kind: ObjectKind, object: &DynamicObject) -> Arc<Object> {
    Arc::new(Object {
        kind,
        metadata: object.metadata.clone(),
        data: object.data.clone(),
    })
}

/// `None` for what is told again and has not changed.
fn change(kind: ObjectKind, event: InformerEvent<DynamicObject>) -> Option<Change> {
    let version = |object: &DynamicObject| object.metadata.resource_version.clone();
    match event {
        InformerEvent::Added(new) => Some((None, Some(object(kind, &new)))),
        InformerEvent::Updated { old, new } if version(&old) == version(&new) => None,
        InformerEvent::Updated { old, new } => {
            Some((Some(object(kind, &old)), Some(object(kind, &new))))
        }
        InformerEvent::Deleted(old) => Some((Some(object(kind, &old)), None)),
    }
}

impl Sources for ObjectInformers {
    fn watch(&self, kind: ObjectKind) {
        // A plugin may be made on a thread without a runtime.
        let _runtime = self.tasks.enter();
        let mut informers = self
            .informers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        informers.entry(kind).or_insert_with(|| self.start(kind));
    }

    fn objects(&self, kind: ObjectKind) -> Vec<Arc<Object>> {
        let informers = self
            .informers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let found = informers.get(&kind).map(Informer::list);
        let found = found.unwrap_or_default();
        found.iter().map(|found| object(kind, found)).collect()
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.list()
    }
}
