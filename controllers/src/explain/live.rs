//! What the API server has now of an object and of what its controller looks at: read once, and put in the place of the caches.

use std::collections::HashMap;
use std::sync::Arc;

use component_base::informer::{Factory, Informer, Object};
use component_base::shutdown::Shutdown;
use component_helpers::owner_ref::is_controlled_by;
use controller_runtime::{ApiError, Executor, ObjectKey};
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet,
};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolumeClaim, Pod, ReplicationController};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::runtime::watcher;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::ExplainError;
use super::kind::Kind;

/// What was found.
pub struct Live {
    /// The object.
    pub subject: Value,
    /// Of a Deployment: those it controls, oldest first.
    pub replica_sets: Vec<Arc<ReplicaSet>>,
    /// Controlled by the object, or by its ReplicaSets.
    pub pods: Vec<Arc<Pod>>,
    pub autoscalers: Vec<HorizontalPodAutoscaler>,
    pub budgets: Vec<PodDisruptionBudget>,
    /// About the object, oldest first.
    pub events: Vec<Event>,
    /// What could not be read, and is left out.
    pub notes: Vec<String>,
    /// By resource and name, those that are written whole.
    objects: HashMap<(&'static str, String), Value>,
}

/// Reads for one namespace.
struct Reader<'a> {
    executor: &'a Executor,
    factory: &'a Factory,
    namespace: &'a str,
    notes: Vec<String>,
    objects: HashMap<(&'static str, String), Value>,
}

fn failed(what: &str, source: ApiError) -> ExplainError {
    ExplainError::Read {
        what: what.to_owned(),
        source,
    }
}

impl Live {
    /// Reads, and seeds `factory` with it.
    pub async fn read(
        kind: Kind,
        key: &ObjectKey,
        executor: &Executor,
        factory: &Factory,
    ) -> Result<Self, ExplainError> {
        let mut reader = Reader {
            executor,
            factory,
            namespace: &key.namespace,
            notes: Vec::new(),
            objects: HashMap::new(),
        };
        let subject = reader.subjects(kind, &key.name).await?;
        let uid = subject["metadata"]["uid"].as_str().unwrap_or_default();
        let pods: Vec<Arc<Pod>> = reader.seed("pods").await?;
        let mut replica_sets = Vec::new();
        match kind {
            Kind::Deployment => {
                let all: Vec<Arc<ReplicaSet>> = reader.seed("replicasets").await?;
                let own = all
                    .into_iter()
                    .filter(|rs| is_controlled_by(&rs.metadata, uid));
                replica_sets = own.collect();
                replica_sets.sort_by_key(|rs| rs.metadata.creation_timestamp.clone());
            }
            Kind::StatefulSet => {
                reader
                    .seed::<ControllerRevision>("controllerrevisions")
                    .await?;
                reader
                    .seed::<PersistentVolumeClaim>("persistentvolumeclaims")
                    .await?;
            }
            Kind::DaemonSet => {
                reader
                    .seed::<ControllerRevision>("controllerrevisions")
                    .await?;
                reader.seed_from::<Node>("nodes", "").await?;
            }
            Kind::ReplicaSet | Kind::ReplicationController | Kind::Job => {}
        }
        let of_sets = replica_sets
            .iter()
            .filter_map(|rs| rs.metadata.uid.as_deref());
        let owners: Vec<&str> = of_sets.chain([uid]).collect();
        let is_own = |pod: &Arc<Pod>| {
            owners
                .iter()
                .any(|owner| is_controlled_by(&pod.metadata, owner))
        };
        let pods = pods.into_iter().filter(is_own).collect();
        let selector = format!("involvedObject.uid={uid}");
        let mut events: Vec<Event> = reader.optional("events", &selector).await;
        events.retain(|event| event.involved_object.uid.as_deref() == Some(uid));
        events.sort_by_key(|event| event.last_timestamp.clone());
        Ok(Self {
            replica_sets,
            pods,
            autoscalers: reader.optional("horizontalpodautoscalers", "").await,
            budgets: reader.optional("poddisruptionbudgets", "").await,
            events,
            notes: reader.notes,
            objects: reader.objects,
            subject,
        })
    }

    /// An object that was read.
    pub fn object(&self, plural: &str, name: &str) -> Option<&Value> {
        let mut all = self.objects.iter();
        let found = all.find(|((resource, own), _)| *resource == plural && own == name);
        found.map(|(_, object)| object)
    }
}

impl Reader<'_> {
    /// All of the kind in the namespace, as orphans may be another's; the one of this name.
    async fn subjects(&mut self, kind: Kind, name: &str) -> Result<Value, ExplainError> {
        let plural = kind.plural();
        match kind {
            Kind::Deployment => drop(self.seed::<Deployment>(plural).await?),
            Kind::ReplicaSet => drop(self.seed::<ReplicaSet>(plural).await?),
            Kind::ReplicationController => drop(self.seed::<ReplicationController>(plural).await?),
            Kind::StatefulSet => drop(self.seed::<StatefulSet>(plural).await?),
            Kind::DaemonSet => drop(self.seed::<DaemonSet>(plural).await?),
            Kind::Job => drop(self.seed::<Job>(plural).await?),
        }
        let found = self.objects.get(&(plural, name.to_owned()));
        found.cloned().ok_or_else(|| {
            let namespace = self.namespace;
            let message = format!("there is no {name:?} in the namespace {namespace:?}");
            failed(plural, ApiError::NotFound(message))
        })
    }

    async fn seed<K>(&mut self, plural: &'static str) -> Result<Vec<Arc<K>>, ExplainError>
    where
        K: Object + kube::Resource<DynamicType = ()> + Serialize + DeserializeOwned,
    {
        self.seed_from(plural, self.namespace).await
    }

    async fn seed_from<K>(
        &mut self,
        plural: &'static str,
        namespace: &str,
    ) -> Result<Vec<Arc<K>>, ExplainError>
    where
        K: Object + kube::Resource<DynamicType = ()> + Serialize + DeserializeOwned,
    {
        let found: Vec<K> = self
            .executor
            .list(namespace, "", "")
            .await
            .map_err(|source| failed(plural, source))?;
        for object in &found {
            let name = object.meta().name.clone().unwrap_or_default();
            let value = serde_json::to_value(object)?;
            self.objects.insert((plural, name), value);
        }
        let informer = informer(plural, found);
        informer.wait_for_sync().await;
        self.factory.seed(informer.clone());
        Ok(informer.list())
    }

    /// What explains but decides nothing: who may not read it gets the rest.
    async fn optional<K>(&mut self, plural: &str, fields: &str) -> Vec<K>
    where
        K: kube::Resource<DynamicType = ()> + DeserializeOwned,
    {
        match self.executor.list(self.namespace, "", fields).await {
            Ok(found) => found,
            Err(error) => {
                self.notes.push(format!("{plural} are left out: {error}"));
                Vec::new()
            }
        }
    }
}

/// An informer of what was found, which never changes.
fn informer<K: Object>(plural: &str, found: Vec<K>) -> Informer<K> {
    let listed = found.into_iter().map(watcher::Event::InitApply);
    let events = [watcher::Event::Init]
        .into_iter()
        .chain(listed)
        .chain([watcher::Event::InitDone]);
    let stream = futures::stream::iter(events.map(Ok).collect::<Vec<_>>());
    let stream = stream.chain(futures::stream::pending());
    Informer::from_stream(stream, plural.to_owned(), &Shutdown::new())
}
