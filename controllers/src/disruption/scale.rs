//! How many pods the controllers of some pods want together: from the caches, else from the `scale` subresource of any kind.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, RwLock};

use component_base::informer::Informer;
use component_helpers::{owner_ref::get_controller_of, pod as pod_helpers};
use controller_runtime::executor::Target;
use controller_runtime::transport::Verb;
use controller_runtime::{ApiError, Executor, ObjectKey, Resource};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::Value;

use crate::discovery::{ApiResources, Discovery};

/// Why the wanted number of pods is not known.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ScaleError {
    /// The API server does not know the controller's kind.
    #[error("no matches for kind {kind:?} in version {api_version:?}")]
    NoKind {
        /// As `DaemonSet`.
        kind: String,
        /// As `apps/v1`.
        api_version: String,
    },
    /// The controller's kind has no number of pods, as a DaemonSet.
    #[error("{0} does not implement the scale subresource")]
    NoScale(String),
    /// The controller that a pod names is gone.
    #[error("found no controllers for pod {0:?}")]
    NoController(String),
    /// A request failed.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// The outcome of [`Scales::expected_scale`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// The sum over all controllers.
    pub scale: i32,
    /// The names of pods that nobody controls; they are in no sum.
    pub unmanaged: Vec<String>,
}

/// Finds controllers and their scale.
pub struct Scales {
    pub controllers: Informer<ReplicationController>,
    pub replica_sets: Informer<ReplicaSet>,
    pub deployments: Informer<Deployment>,
    pub stateful_sets: Informer<StatefulSet>,
    pub executor: Executor,
    pub discovery: Arc<dyn Discovery>,
    /// What discovery said last; asked anew whenever a kind or its scale is not in it.
    pub known: RwLock<Arc<ApiResources>>,
}

impl Scales {
    /// What the controllers of `pods` want together, each counted once.
    ///
    /// # Errors
    /// See [`ScaleError`]; one pod whose controller cannot be asked spoils the sum.
    pub async fn expected_scale(&self, pods: &[Arc<Pod>]) -> Result<Expected, ScaleError> {
        let mut expected = Expected::default();
        let mut asked: HashSet<&str> = HashSet::new();
        let mut scales: HashMap<String, i32> = HashMap::new();
        for pod in pods {
            let name = pod_helpers::name(pod);
            let Some(owner) = get_controller_of(&pod.metadata) else {
                expected.unmanaged.push(name.to_owned());
                continue;
            };
            if !asked.insert(&owner.uid) {
                continue;
            }
            let namespace = pod_helpers::namespace(pod);
            let found = match self.cached(owner, namespace) {
                Some(found) => Some(found),
                None => self.asked(owner, namespace).await?,
            };
            let (uid, scale) = found.ok_or_else(|| ScaleError::NoController(name.to_owned()))?;
            scales.insert(uid, scale);
        }
        expected.scale = scales.into_values().fold(0, i32::saturating_add);
        Ok(expected)
    }

    /// UID and scale by the caches; a ReplicaSet of a Deployment counts as the Deployment.
    fn cached(&self, owner: &OwnerReference, namespace: &str) -> Option<(String, i32)> {
        let (group, name) = (group(owner), owner.name.as_str());
        let of = |uid: Option<&String>, replicas: Option<i32>| {
            let uid = uid.filter(|uid| **uid == owner.uid)?;
            // The API server's default.
            Some((uid.clone(), replicas.unwrap_or(1)))
        };
        match (group, owner.kind.as_str()) {
            ("", "ReplicationController") => {
                let found = self.controllers.get(namespace, name)?;
                of(
                    found.metadata.uid.as_ref(),
                    found.spec.as_ref().and_then(|s| s.replicas),
                )
            }
            ("apps", "StatefulSet") => {
                let found = self.stateful_sets.get(namespace, name)?;
                of(found.metadata.uid.as_ref(), found.spec.replicas)
            }
            ("apps" | "extensions", "ReplicaSet") => {
                let found = self.replica_sets.get(namespace, name)?;
                let own = of(found.metadata.uid.as_ref(), found.spec.replicas)?;
                match get_controller_of(&found.metadata) {
                    Some(above) if above.kind == "Deployment" => self.deployment(above, namespace),
                    _ => Some(own),
                }
            }
            _ => None,
        }
    }

    fn deployment(&self, owner: &OwnerReference, namespace: &str) -> Option<(String, i32)> {
        let found = self.deployments.get(namespace, &owner.name)?;
        let same = matches!(group(owner), "apps" | "extensions")
            && found.metadata.uid.as_ref() == Some(&owner.uid);
        let replicas = found.spec.replicas.unwrap_or(1);
        same.then(|| (owner.uid.clone(), replicas))
    }

    /// UID and scale by the subresource; `None`: the controller is gone, or another of its name is there.
    async fn asked(
        &self,
        owner: &OwnerReference,
        namespace: &str,
    ) -> Result<Option<(String, i32)>, ScaleError> {
        let target = Target {
            resource: self.scalable(owner).await?,
            key: ObjectKey::new(namespace, &owner.name),
            subresource: "scale",
        };
        let sent = self
            .executor
            .send(Verb::Get, &target, Vec::new(), Value::Null);
        let scale = match sent.await {
            Err(ApiError::NotFound(_)) => return Ok(None),
            answer => answer?,
        };
        if scale["metadata"]["uid"] != owner.uid.as_str() {
            return Ok(None);
        }
        let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
        Ok(Some((
            owner.uid.clone(),
            i32::try_from(replicas).unwrap_or(i32::MAX),
        )))
    }

    /// The resource of a controller's kind, which has a scale.
    async fn scalable(&self, owner: &OwnerReference) -> Result<Resource, ScaleError> {
        let known = self.known.read().expect("no panic under the lock").clone();
        if let Ok(resource) = scalable(&known, owner) {
            return Ok(resource);
        }
        let fresh = Arc::new(self.discovery.resources().await?);
        *self.known.write().expect("no panic under the lock") = fresh.clone();
        scalable(&fresh, owner)
    }
}

fn scalable(known: &ApiResources, owner: &OwnerReference) -> Result<Resource, ScaleError> {
    let found = known
        .of_kind(&owner.api_version, &owner.kind)
        .ok_or_else(|| ScaleError::NoKind {
            kind: owner.kind.clone(),
            api_version: owner.api_version.clone(),
        })?;
    if found.subresources.iter().any(|name| name == "scale") {
        return Ok(found.resource.clone());
    }
    let Resource { plural, group, .. } = &found.resource;
    let dot = if group.is_empty() { "" } else { "." };
    Err(ScaleError::NoScale(format!("{plural}{dot}{group}")))
}

/// Empty for the core group.
fn group(owner: &OwnerReference) -> &str {
    owner
        .api_version
        .split_once('/')
        .map_or("", |(group, _)| group)
}
