//! The shell: Pods, claims and templates in; claims, statuses and reservations out.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::events::EventType;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use component_base::shutdown::Shutdown;
use component_helpers::pod;
use component_helpers::resource_claim::{
    NameError, claim_name, entries, is_for_pod, pod_claims, reserved_for,
};
use controller_runtime::{
    Action, ApiError, Controller, DeleteOptions, Executor, ObjectKey, Watches, WorkQueue,
    run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::{
    ResourceClaim, ResourceClaimConsumerReference, ResourceClaimTemplate,
};

use super::created::Created;
use super::metrics::{self, Metrics};
use super::release::{Verdict, is_left_over, owning_pod, released, verdict, without_finalizer};
use super::sync::{
    ReserveError, Wanted, claim_from_template, has_claims, is_done, is_of_entry, needs_work,
    pod_group, record, reservations, wanted,
};
use crate::context::{ControllerContext, Running, StartError};
use crate::uid_cache::UidCache;

const NAME: &str = "resourceclaim-controller";
/// Whom it writes as.
const ACCOUNT: &str = "resource-claim-controller";

/// The index of Pods by the claims they use. A claim for extended resources is not among them: the scheduler makes and reserves it.
const BY_CLAIM: &str = "podResourceClaim";
/// The index of Pods by the templates of their claims.
const BY_TEMPLATE: &str = "podResourceClaimTemplate";
/// The index of claims by the Pod they were made for: `namespace/uid`.
const BY_OWNER: &str = "claimPodOwner";

/// What a worker looks at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    Claim(ObjectKey),
    Pod(ObjectKey),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(key) => write!(f, "claim:{key}"),
            Self::Pod(key) => write!(f, "pod:{key}"),
        }
    }
}

/// Why a claim of a Pod is not there.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClaimError {
    #[error("checking for claim before creating it: {0}")]
    Name(#[from] NameError),
    #[error("checking claim existence: {0}")]
    Existence(#[source] ApiError),
    #[error(
        "resource claim template {template:?}: resourceclaimtemplate.resource.k8s.io {template:?} not found"
    )]
    NoTemplate { template: String },
    #[error("create ResourceClaim {name}: {source}")]
    Create {
        name: String,
        #[source]
        source: ApiError,
    },
}

#[derive(Debug, thiserror::Error)]
pub(super) enum SyncError {
    #[error("pod {pod}, PodResourceClaim {entry}: {source}")]
    Claim {
        pod: String,
        entry: String,
        #[source]
        source: ClaimError,
    },
    #[error("update pod {pod} ResourceClaimStatuses: {source}")]
    Status {
        pod: String,
        #[source]
        source: ApiError,
    },
    #[error(transparent)]
    Reserve(#[from] ReserveError),
    #[error("reserve claim {claim}: {source}")]
    Reservation {
        claim: String,
        #[source]
        source: ApiError,
    },
    #[error("delete unused generated claim {claim}: {source}")]
    Delete {
        claim: String,
        #[source]
        source: ApiError,
    },
    #[error(transparent)]
    Api(#[from] ApiError),
}

pub(super) struct ResourceClaims {
    pub(super) pods: Informer<Pod>,
    pub(super) claims: Informer<ResourceClaim>,
    pub(super) templates: Informer<ResourceClaimTemplate>,
    pub(super) created: Created,
    /// Pods that were seen to go: their reservations need no question to the server.
    pub(super) deleted: UidCache,
    pub(super) queue: WorkQueue<Key>,
    pub(super) executor: Executor,
    pub(super) metrics: Metrics,
}

/// Builds the controller; an API server without ResourceClaims gives it nothing to do.
///
/// # Errors
/// When no client can be had, or the server does not say what it has.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    if !context.serves::<ResourceClaim>().await? {
        return Ok(context.nothing_to_do(NAME));
    }
    let executor = context.executor(ACCOUNT, "resource_claim").await?;
    let informers = &context.informers;
    let controller = Arc::new(ResourceClaims {
        pods: informers.informer(InformerOptions::default()),
        claims: informers.informer(InformerOptions::default()),
        templates: informers.informer(InformerOptions::default()),
        created: Created::new(context.clock.clone()),
        deleted: UidCache::default(),
        queue: context.queues.queue("resource_claim"),
        executor,
        metrics: Metrics::register(&context.metrics)?,
    });
    metrics::register(&context.metrics, &controller.claims)?;
    let watches = controller.watch(&context.shutdown);
    let workers = context.options.workers("resourceclaim");
    let queue = controller.queue.clone();
    Ok(run_controller(controller, queue, watches, workers, context.shutdown).boxed())
}

fn in_namespace(pod: &Pod, name: &str) -> String {
    ObjectKey::new(pod::namespace(pod), name).to_string()
}

fn owner_key(pod: &Pod) -> String {
    format!("{}/{}", pod::namespace(pod), pod::uid(pod))
}

impl ResourceClaims {
    pub(super) fn watch(self: &Arc<Self>, shutdown: &Shutdown) -> Watches {
        self.pods.add_index(BY_CLAIM, |pod| {
            let names = entries(pod)
                .iter()
                .filter_map(|entry| claim_name(pod, entry).ok().flatten());
            names.map(|name| in_namespace(pod, name.name)).collect()
        });
        self.pods.add_index(BY_TEMPLATE, |pod| {
            let templates = entries(pod)
                .iter()
                .filter_map(|entry| entry.resource_claim_template_name.as_deref());
            templates.map(|name| in_namespace(pod, name)).collect()
        });
        self.claims.add_index(BY_OWNER, |claim| {
            let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
            let owner = owning_pod(claim).map(|(_, uid)| format!("{namespace}/{uid}"));
            owner.into_iter().collect()
        });
        let mut watches = Watches::new(shutdown.clone());
        let this = self.clone();
        watches.on(&self.pods, move |event| {
            let deleted = matches!(event, InformerEvent::Deleted(_));
            this.enqueue_pod(event.object(), deleted);
        });
        let this = self.clone();
        watches.on(&self.claims, move |event| {
            let key = ObjectKey::of(&**event.object());
            this.created.remove(&key);
            let users = this.pods.by_index(BY_CLAIM, &key.to_string());
            if !matches!(event, InformerEvent::Deleted(_)) {
                this.queue.add(Key::Claim(key));
            }
            users.iter().for_each(|pod| this.enqueue_pod(pod, false));
        });
        let this = self.clone();
        watches.on(&self.templates, move |event| {
            if !matches!(event, InformerEvent::Deleted(_)) {
                let key = ObjectKey::of(&**event.object()).to_string();
                let users = this.pods.by_index(BY_TEMPLATE, &key);
                users.iter().for_each(|pod| this.enqueue_pod(pod, false));
            }
        });
        watches
    }

    fn enqueue_pod(&self, pod: &Pod, deleted: bool) {
        if !has_claims(pod) {
            return;
        }
        if deleted {
            self.deleted.add(pod::uid(pod));
        }
        let namespace = pod::namespace(pod);
        if deleted || is_done(pod) {
            for claim in pod_claims(pod) {
                let key = ObjectKey::new(namespace, claim.name);
                self.queue.add(Key::Claim(key));
            }
        }
        if !deleted && needs_work(pod, |name| self.claims.get(namespace, name)) {
            self.queue.add(Key::Pod(ObjectKey::of(pod)));
        }
    }

    async fn sync_pod(&self, key: &ObjectKey) -> Result<(), SyncError> {
        let runs = |pod: &Arc<Pod>| !pod::is_terminating(pod) && !is_done(pod);
        let Some(pod) = self.pods.get_key(key).filter(runs) else {
            return Ok(());
        };
        if let Some(group) = pod_group(&pod) {
            // No retry helps.
            tracing::error!(pod = %key, "Pod is a member of PodGroup {group} but GenericWorkload feature is disabled");
            return Ok(());
        }
        let mut made = BTreeMap::new();
        for entry in entries(&pod) {
            match self.ensure_claim(&pod, entry).await {
                Ok(None) => {}
                Ok(Some(claim)) => drop(made.insert(entry.name.clone(), claim)),
                Err(source) => return Err(self.refused(&pod, entry, source).await),
            }
        }
        if !made.is_empty() {
            let recorded = self.executor.execute(&record(&pod, &made)).await;
            recorded.map_err(|source| SyncError::Status {
                pod: key.to_string(),
                source,
            })?;
        }
        let namespace = pod::namespace(&pod);
        for claim in reservations(&pod, &made, |name| self.claims.get(namespace, name))? {
            let written = self.executor.update_status(&claim).await;
            written.map_err(|source| SyncError::Reservation {
                claim: ObjectKey::of(&claim).to_string(),
                source,
            })?;
        }
        Ok(())
    }

    /// Tells the user why a claim was not made.
    async fn refused(&self, pod: &Pod, entry: &PodResourceClaim, source: ClaimError) -> SyncError {
        let message = format!("PodResourceClaim {}: {source}", entry.name);
        let reason = "FailedResourceClaimCreation";
        let event = Action::event(pod, EventType::Warning, reason, message);
        // Recording only queues; it has no failure that anyone could act on.
        let _ = self.executor.execute(&event).await;
        SyncError::Claim {
            pod: pod::key(pod),
            entry: entry.name.clone(),
            source,
        }
    }

    /// Sees to it that the claim of an entry is there; gives its name when the Pod's status does not have it.
    async fn ensure_claim(
        &self,
        pod: &Pod,
        entry: &PodResourceClaim,
    ) -> Result<Option<String>, ClaimError> {
        let template = match wanted(pod, entry)? {
            Wanted::Nothing => return Ok(None),
            Wanted::Recorded { name, template } => {
                if self.exists_for(pod, name).await? {
                    return Ok(None);
                }
                template
            }
            Wanted::Claim { template } => template,
        };
        let name = |claim: &ResourceClaim| claim.metadata.name.clone();
        if let Some(claim) = self.find(pod, entry) {
            return Ok(name(&claim));
        }
        let Some(found) = self.templates.get(pod::namespace(pod), template) else {
            return Err(ClaimError::NoTemplate {
                template: template.to_owned(),
            });
        };
        let claim = claim_from_template(pod, entry, &found);
        let created = self.executor.create(&claim).await;
        self.metrics.record_create(&claim, created.is_ok());
        let created: ResourceClaim = created.map_err(|source| ClaimError::Create {
            name: claim.metadata.generate_name.clone().unwrap_or_default(),
            source,
        })?;
        let made = name(&created);
        if self.claims.get_key(&ObjectKey::of(&created)).is_none() {
            self.created.add(created);
        }
        Ok(made)
    }

    /// Whether the claim on record is there and the Pod's. It may have been deleted by accident; then another is made.
    async fn exists_for(&self, pod: &Pod, name: &str) -> Result<bool, ClaimError> {
        let key = ObjectKey::new(pod::namespace(pod), name);
        let known = self.claims.get_key(&key).or_else(|| self.created.get(&key));
        let claim = match known {
            Some(claim) => Some(claim),
            None => self
                .executor
                .get::<ResourceClaim>(&key.namespace, &key.name)
                .await
                .map_err(ClaimError::Existence)?
                .map(Arc::new),
        };
        let Some(claim) = claim else {
            return Ok(false);
        };
        if let Err(error) = is_for_pod(pod, &claim) {
            tracing::error!(pod = pod::key(pod), %error, "Claim that was created for the pod is no longer owned by the pod, creating a new one");
            return Ok(false);
        }
        Ok(true)
    }

    /// A claim that was made for the entry and not recorded.
    fn find(&self, pod: &Pod, entry: &PodResourceClaim) -> Option<Arc<ResourceClaim>> {
        let is_wanted = |claim: &ResourceClaim| is_of_entry(pod, entry, claim);
        let known = self.claims.by_index(BY_OWNER, &owner_key(pod));
        let known = known.into_iter().find(|claim| is_wanted(claim));
        known.or_else(|| self.created.find(is_wanted))
    }

    async fn sync_claim(&self, key: &ObjectKey) -> Result<(), SyncError> {
        let Some(claim) = self.claims.get_key(key) else {
            return Ok(());
        };
        let mut remaining = Vec::new();
        for consumer in reserved_for(&claim) {
            if self.stays(key, consumer).await? {
                remaining.push(consumer.clone());
            }
        }
        let unused = remaining.is_empty();
        let mut current = (*claim).clone();
        let release = released(&claim, remaining);
        let was_released = release.is_some();
        if let Some(release) = release {
            current = self.executor.update_status(&release).await?;
        }
        if let Some(claim) = without_finalizer(&current, was_released) {
            self.executor.update(&claim).await?;
        }
        if unused {
            self.delete_left_over(key, &claim).await?;
        }
        Ok(())
    }

    async fn stays(
        &self,
        claim: &ObjectKey,
        consumer: &ResourceClaimConsumerReference,
    ) -> Result<bool, ApiError> {
        let namespace = &claim.namespace;
        let deleted = self.deleted.has(&consumer.uid);
        let cached = self.pods.get(namespace, &consumer.name);
        match verdict(consumer, deleted, cached.as_deref()) {
            Verdict::Keep => Ok(true),
            Verdict::Drop => Ok(false),
            Verdict::Ask => {
                let pod = self.executor.get::<Pod>(namespace, &consumer.name).await?;
                Ok(pod.is_some_and(|pod| pod::uid(&pod) == consumer.uid))
            }
        }
    }

    /// Deletes a claim that was made for a Pod that will not run; the Pod itself may stay for long.
    async fn delete_left_over(
        &self,
        key: &ObjectKey,
        claim: &ResourceClaim,
    ) -> Result<(), SyncError> {
        let Some((owner, _)) = owning_pod(claim) else {
            return Ok(());
        };
        let pod = self.pods.get(&key.namespace, owner);
        if !is_left_over(claim, pod.as_deref()) {
            return Ok(());
        }
        let options = DeleteOptions {
            uid: claim.metadata.uid.clone(),
            ..DeleteOptions::default()
        };
        let delete = Action::delete::<ResourceClaim>(&key.namespace, &key.name, options);
        match self.executor.execute(&delete).await {
            // A namesake is there now.
            Ok(_) | Err(ApiError::Conflict(_)) => Ok(()),
            Err(source) => Err(SyncError::Delete {
                claim: key.to_string(),
                source,
            }),
        }
    }
}

#[async_trait]
impl Controller for ResourceClaims {
    type Key = Key;
    type Error = SyncError;

    fn name(&self) -> &'static str {
        NAME
    }

    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, SyncError> {
        match key {
            Key::Claim(key) => self.sync_claim(key).await?,
            Key::Pod(key) => self.sync_pod(key).await?,
        }
        Ok(None)
    }

    fn is_conflict(&self, error: &SyncError) -> bool {
        match error {
            SyncError::Status { source, .. }
            | SyncError::Reservation { source, .. }
            | SyncError::Api(source) => source.is_conflict(),
            _ => false,
        }
    }
}
