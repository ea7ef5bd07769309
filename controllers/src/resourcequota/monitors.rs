//! How many objects of each quotable kind a namespace has, by the informers of metadata that the garbage collector has, too, kept in
//! step with discovery. New CustomResourceDefinitions are followed within a second or two, and every 30 s at the latest.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use component_base::informer::{Factory, MetadataEvent, MetadataInformer, Subscription};
use component_base::shutdown::Shutdown;
use controller_runtime::Resource;
use futures::future::join_all;
use kube::core::ApiResource;
use tokio::sync::Notify;

use crate::discovery::{ApiResources, Discovered, Discovery};

/// How often discovery is asked without any event.
const SYNC_PERIOD: Duration = Duration::from_secs(30);
/// The API server serves a new kind a moment after its definition changed; several changes come at once.
const SETTLE: Duration = Duration::from_secs(1);
/// How long the start waits for all kinds to be listed.
const INITIAL_SYNC_TIMEOUT: Duration = Duration::from_secs(30);

/// The caches by what quotas call their kind: `secrets`, `deployments.apps`. Cheap to clone.
#[derive(Clone, Default)]
pub struct Counts(Arc<RwLock<BTreeMap<String, MetadataInformer>>>);

impl Counts {
    /// Of a namespace, all kinds whose cache is complete.
    pub fn of(&self, namespace: &str) -> Vec<(String, usize)> {
        let caches = self.0.read().unwrap_or_else(PoisonError::into_inner);
        caches
            .iter()
            .filter(|(_, cache)| cache.has_synced())
            .map(|(name, cache)| (name.clone(), cache.count(namespace)))
            .collect()
    }

    fn insert(&self, name: String, cache: MetadataInformer) {
        let mut caches = self.0.write().unwrap_or_else(PoisonError::into_inner);
        caches.insert(name, cache);
    }

    fn remove(&self, name: &str) {
        let mut caches = self.0.write().unwrap_or_else(PoisonError::into_inner);
        caches.remove(name);
    }
}

/// What a count became smaller of.
pub type OnLess = Arc<dyn Fn(Less<'_>) + Send + Sync>;

/// Why quotas are to be measured anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Less<'a> {
    /// An object of this kind has gone from a namespace.
    Gone { name: &'a str, namespace: &'a str },
    /// This kind can be counted from now on.
    Known { name: &'a str },
}

/// Keeps [`Counts`] in step with discovery.
pub struct Monitors {
    factory: Factory,
    discovery: Arc<dyn Discovery>,
    counts: Counts,
    on_less: OnLess,
    shutdown: Shutdown,
    running: BTreeMap<Resource, Monitor>,
}

struct Monitor {
    discovered: Discovered,
    cache: MetadataInformer,
    end: Shutdown,
    /// Its deletions are told of until this is dropped.
    _events: Subscription,
}

impl Monitors {
    /// No watches yet.
    pub fn new(
        factory: Factory,
        discovery: Arc<dyn Discovery>,
        counts: Counts,
        on_less: OnLess,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            factory,
            discovery,
            counts,
            on_less,
            shutdown,
            running: BTreeMap::new(),
        }
    }

    /// Starts the first watches and waits until they have listed, or 30 s. `false`: told to end.
    pub async fn start(&mut self) -> bool {
        self.sync().await;
        let synced = join_all(self.running.values().map(|m| m.cache.wait_for_sync()));
        let waited = tokio::time::timeout(INITIAL_SYNC_TIMEOUT, synced);
        match self.shutdown.run_until(waited).await {
            None => return false,
            Some(Err(_)) => tracing::warn!(
                "not all resource monitors of quotas could be synced, proceeding without them"
            ),
            Some(Ok(_)) => {}
        }
        true
    }

    /// Follows discovery until shutdown.
    pub async fn run(mut self) {
        let changed = Arc::new(Notify::new());
        let definitions = self.factory.metadata(&custom_resource_definitions());
        let notify = changed.clone();
        let _events = definitions.on(move |_| notify.notify_one());
        let shutdown = self.shutdown.clone();
        loop {
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
        let found = match self.shutdown.run_until(self.discovery.resources()).await {
            None => return,
            Some(Ok(found)) if !found.resources.is_empty() => found,
            Some(Ok(_)) => {
                return tracing::warn!("no resources reported by discovery, skipping quota sync");
            }
            Some(Err(error)) => {
                return tracing::warn!(%error, "discovery failed, skipping quota sync");
            }
        };
        let wanted = quotable_resources(&found);
        let gone: Vec<_> = self
            .running
            .keys()
            // What a silent server had is kept: its objects are not gone.
            .filter(|r| !wanted.contains_key(*r) && !found.failed.contains(&r.api_version()))
            .cloned()
            .collect();
        for resource in gone {
            if let Some(monitor) = self.running.remove(&resource) {
                monitor.end.trigger();
                self.counts.remove(&quota_name(&resource));
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
        let cache = self.factory.metadata(&discovered.api_resource());
        let name = quota_name(&discovered.resource);
        self.counts.insert(name.clone(), cache.clone());
        let (on_less, of_kind) = (self.on_less.clone(), name.clone());
        let events = cache.on(move |event| {
            if let MetadataEvent::Deleted(last) = &event {
                let namespace = last.metadata().namespace.as_deref().unwrap_or_default();
                let name = &of_kind;
                on_less(Less::Gone { name, namespace });
            }
        });
        let end = self.shutdown.child();
        let known = tell_when_known(name, cache.clone(), end.clone(), self.on_less.clone());
        end.spawn_guarded("quota: first list of a resource", known);
        Monitor {
            discovered,
            cache,
            end,
            _events: events,
        }
    }
}

async fn tell_when_known(name: String, cache: MetadataInformer, end: Shutdown, on_less: OnLess) {
    if end.run_until(cache.wait_for_sync()).await == Some(true) {
        on_less(Less::Known { name: &name });
    }
}

/// What a quota calls a kind.
fn quota_name(resource: &Resource) -> String {
    match resource.group.as_ref() {
        "" => resource.plural.to_string(),
        group => format!("{}.{group}", resource.plural),
    }
}

fn custom_resource_definitions() -> ApiResource {
    ApiResource {
        group: "apiextensions.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "apiextensions.k8s.io/v1".to_owned(),
        kind: "CustomResourceDefinition".to_owned(),
        plural: "customresourcedefinitions".to_owned(),
    }
}

/// Namespaced kinds that are stored, but for events and for those that are measured and not only counted.
fn quotable_resources(found: &ApiResources) -> BTreeMap<Resource, Discovered> {
    let is_quotable = |d: &&Discovered| {
        let (group, plural) = (d.resource.group.as_ref(), d.resource.plural.as_ref());
        let events = plural == "events" && (group.is_empty() || group == "events.k8s.io");
        let measured =
            group.is_empty() && ["pods", "services", "persistentvolumeclaims"].contains(&plural);
        d.preferred
            && d.namespaced
            && d.supports(&["create", "list", "watch", "delete"])
            && !events
            && !measured
    };
    found
        .resources
        .iter()
        .filter(is_quotable)
        .map(|d| (d.resource.clone(), d.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted() {
        let kind = |group: &'static str, plural: &'static str, verbs: &[&str]| Discovered {
            resource: Resource {
                group: group.into(),
                version: "v1".into(),
                kind: "Kind".into(),
                plural: plural.into(),
            },
            namespaced: plural != "nodes",
            verbs: verbs.iter().map(ToString::to_string).collect(),
            preferred: true,
            subresources: Vec::new(),
        };
        let all = ["create", "list", "watch", "delete"];
        let found = ApiResources {
            resources: vec![
                kind("", "pods", &all),
                kind("", "secrets", &all),
                kind("", "nodes", &all),
                kind("", "bindings", &["create"]),
                kind("events.k8s.io", "events", &all),
                kind("apps", "replicasets", &all),
                kind("example.com", "widgets", &all),
            ],
            failed: Vec::new(),
        };
        let mut names: Vec<_> = quotable_resources(&found).keys().map(quota_name).collect();
        names.sort();
        assert_eq!(
            names,
            ["replicasets.apps", "secrets", "widgets.example.com"]
        );
    }
}
