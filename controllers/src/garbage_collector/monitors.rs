//! The metadata of every kind, kept in step with discovery: new CustomResourceDefinitions are followed within a
//! second or two, and every 30 s at the latest (kinds of aggregated servers have no event).
//!
//! DIFFERS: upstream watches the metadata of everything once more. Here kinds that another controller watches come from its informer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use component_base::informer::{Factory, MetadataEvent, MetadataInformer, Subscription};
use component_base::shutdown::Shutdown;
use controller_runtime::Resource;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::Notify;

use super::collector::Collector;
use super::graph::Identity;
use crate::discovery::{ApiResources, Discovered, Discovery};

/// How often discovery is asked without any event.
const SYNC_PERIOD: Duration = Duration::from_secs(30);
/// The API server serves a new kind a moment after its definition changed; several changes come at once.
const SETTLE: Duration = Duration::from_secs(1);
/// How long the start waits for all kinds to be listed.
const INITIAL_SYNC_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) struct Monitors {
    pub factory: Factory,
    pub discovery: Arc<dyn Discovery>,
    pub collector: Arc<Collector>,
    pub shutdown: Shutdown,
    running: BTreeMap<Resource, Monitor>,
    kinds_changed: Arc<Notify>,
}

struct Monitor {
    discovered: Discovered,
    informer: MetadataInformer,
    /// Its events go into the graph until this is dropped.
    _events: Subscription,
}

impl Monitors {
    pub fn new(
        factory: Factory,
        discovery: Arc<dyn Discovery>,
        collector: Arc<Collector>,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            factory,
            discovery,
            collector,
            shutdown,
            running: BTreeMap::new(),
            kinds_changed: Arc::default(),
        }
    }

    /// Starts the first watches and waits until they have listed, or 30 s. `false`: told to end.
    pub async fn start(&mut self) -> bool {
        self.sync().await;
        let synced =
            futures::future::join_all(self.running.values().map(|m| m.informer.wait_for_sync()));
        let waited = self
            .shutdown
            .run_until(tokio::time::timeout(INITIAL_SYNC_TIMEOUT, synced))
            .await;
        match waited {
            None => return false,
            Some(Err(_)) => tracing::warn!(
                "Garbage collector: not all resource monitors could be synced, proceeding anyways"
            ),
            Some(Ok(_)) => tracing::info!("Garbage collector: all resource monitors have synced"),
        }
        true
    }

    /// Follows discovery until shutdown.
    pub async fn run(mut self) {
        loop {
            let shutdown = self.shutdown.clone();
            let changed = self.kinds_changed.clone();
            let wake = async {
                tokio::select! {
                    () = changed.notified() => tokio::time::sleep(SETTLE).await,
                    () = tokio::time::sleep(SYNC_PERIOD) => {}
                }
            };
            if shutdown.run_until(wake).await.is_none() {
                return;
            }
            self.sync().await;
        }
    }

    async fn sync(&mut self) {
        let Some(found) = self.shutdown.run_until(self.discovery.resources()).await else {
            return;
        };
        let found = match found {
            Ok(found) if !found.resources.is_empty() => found,
            Ok(_) => {
                return tracing::warn!(
                    "no resources reported by discovery, skipping garbage collector sync"
                );
            }
            Err(error) => {
                return tracing::warn!(%error, "discovery failed, skipping garbage collector sync");
            }
        };
        let wanted = deletable_resources(&found);
        let failed: Vec<String> = found.failed.clone();
        self.collector.set_kinds(found);
        let gone: Vec<_> = self
            .running
            .keys()
            // What a silent server had is kept: its objects are not gone.
            .filter(|r| !wanted.contains_key(*r) && !failed.contains(&r.api_version()))
            .cloned()
            .collect();
        for resource in gone {
            if let Some(monitor) = self.running.remove(&resource) {
                tracing::info!(resource = %resource.plural, group = %resource.group, "garbage collector stops watching");
                let resource = monitor.discovered.api_resource();
                self.factory.forget_metadata(&resource);
            }
        }
        for (resource, discovered) in wanted {
            if !self.running.contains_key(&resource) {
                let monitor = self.monitor(discovered);
                self.running.insert(resource, monitor);
            }
        }
    }

    fn monitor(&self, discovered: Discovered) -> Monitor {
        let informer = self.factory.metadata(&discovered.api_resource());
        let (collector, kinds_changed) = (self.collector.clone(), self.kinds_changed.clone());
        let mut feed = Feed::of(&discovered.resource);
        let events = informer.on(move |event| {
            feed.take(&collector, &event);
            if feed.defines_kinds {
                kinds_changed.notify_one();
            }
        });
        Monitor {
            discovered,
            informer,
            _events: events,
        }
    }
}

/// Preferred, so that each object is watched once; events own nothing and are owned by nothing.
fn deletable_resources(found: &ApiResources) -> BTreeMap<Resource, Discovered> {
    let is_events =
        |r: &Resource| r.plural == "events" && (r.group.is_empty() || r.group == "events.k8s.io");
    let deletable = |d: &&Discovered| {
        d.preferred && d.supports(&["delete", "list", "watch"]) && !is_events(&d.resource)
    };
    found
        .resources
        .iter()
        .filter(deletable)
        .map(|d| (d.resource.clone(), d.clone()))
        .collect()
}

/// From one watch into the graph.
struct Feed {
    kind: Kind,
    /// Its objects are kinds themselves.
    defines_kinds: bool,
}

impl Feed {
    fn of(resource: &Resource) -> Self {
        Self {
            kind: Kind::of(resource),
            defines_kinds: matches!(
                resource.plural.as_ref(),
                "customresourcedefinitions" | "apiservices"
            ),
        }
    }

    fn take(&mut self, collector: &Collector, event: &MetadataEvent) {
        let kind = &mut self.kind;
        match event {
            MetadataEvent::Added(new) => {
                let new = new.metadata();
                collector.observe(kind.identity(new), None, new)
            }
            MetadataEvent::Updated { old, new } => {
                let (old, new) = (old.metadata(), new.metadata());
                if is_same(old, new) {
                    collector.note_version(new);
                } else if old.uid == new.uid {
                    collector.observe(kind.identity(new), Some(old), new);
                } else {
                    // A namesake took its place.
                    collector.deleted(&kind.identity(old));
                    collector.observe(kind.identity(new), None, new);
                }
            }
            MetadataEvent::Deleted(last) => collector.deleted(&kind.identity(last.metadata())),
        }
    }
}

/// Whether nothing changed that the graph is made of: most changes are of a status.
fn is_same(old: &ObjectMeta, new: &ObjectMeta) -> bool {
    old.uid == new.uid
        && old.owner_references == new.owner_references
        && old.finalizers == new.finalizers
        && old.deletion_timestamp == new.deletion_timestamp
}

/// Makes identities of one kind's objects; what they have in common is held once.
struct Kind {
    kind: Arc<str>,
    api_version: Arc<str>,
    /// The last one: events of a namespace come together.
    namespace: Arc<str>,
}

impl Kind {
    fn of(resource: &Resource) -> Self {
        Self {
            kind: (&*resource.kind).into(),
            api_version: resource.api_version().into(),
            namespace: "".into(),
        }
    }

    fn identity(&mut self, meta: &ObjectMeta) -> Identity {
        let text = |value: &Option<String>| value.as_deref().unwrap_or_default().into();
        if *self.namespace != *meta.namespace.as_deref().unwrap_or_default() {
            self.namespace = text(&meta.namespace);
        }
        Identity {
            api_version: self.api_version.clone(),
            kind: self.kind.clone(),
            namespace: self.namespace.clone(),
            name: text(&meta.name),
            uid: text(&meta.uid),
        }
    }
}
