//! One metadata-only watch a kind, kept in step with discovery: new CustomResourceDefinitions are followed within a
//! second or two, and every 30 s at the latest (kinds of aggregated servers have no event).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use component_base::informer::{Factory, Informer, InformerEvent, InformerOptions, Receiver};
use component_base::shutdown::Shutdown;
use controller_runtime::Resource;
use kube::core::{DynamicObject, PartialObjectMeta};
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

type Metadata = PartialObjectMeta<DynamicObject>;

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
    informer: Informer<Metadata>,
    end: Shutdown,
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
                monitor.end.trigger();
                self.factory.forget_metadata(
                    &monitor.discovered.api_resource(),
                    &InformerOptions::default(),
                );
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
        let informer = self
            .factory
            .metadata(&discovered.api_resource(), InformerOptions::default());
        let end = self.shutdown.child();
        let (collector, stop, kinds_changed) = (
            self.collector.clone(),
            end.clone(),
            self.kinds_changed.clone(),
        );
        let (resource, events) = (discovered.resource.clone(), informer.subscribe());
        self.shutdown
            .spawn_guarded("garbage collector: resource monitor", async move {
                feed(&collector, &resource, events, &stop, &kinds_changed).await
            });
        Monitor {
            discovered,
            informer,
            end,
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
async fn feed(
    collector: &Collector,
    resource: &Resource,
    mut events: Receiver<Metadata>,
    end: &Shutdown,
    kinds_changed: &Notify,
) {
    let defines_kinds = matches!(
        resource.plural.as_ref(),
        "customresourcedefinitions" | "apiservices"
    );
    while let Some(Some(event)) = end.run_until(events.recv()).await {
        match &event {
            InformerEvent::Added(new) => {
                collector.observe(identity(resource, new), None, &new.metadata)
            }
            InformerEvent::Updated { old, new } if old.metadata.uid == new.metadata.uid => {
                collector.observe(identity(resource, new), Some(&old.metadata), &new.metadata);
            }
            // A namesake took its place.
            InformerEvent::Updated { old, new } => {
                collector.deleted(&identity(resource, old));
                collector.observe(identity(resource, new), None, &new.metadata);
            }
            InformerEvent::Deleted(last) => collector.deleted(&identity(resource, last)),
        }
        if defines_kinds {
            kinds_changed.notify_one();
        }
    }
}

fn identity(resource: &Resource, object: &Metadata) -> Identity {
    let meta = &object.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    Identity {
        api_version: resource.api_version(),
        kind: resource.kind.to_string(),
        namespace: text(&meta.namespace),
        name: text(&meta.name),
        uid: text(&meta.uid),
    }
}
