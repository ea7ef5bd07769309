//! The shell: watches, queues, and steps carried out in order.
//!
//! One worker for claims and one for volumes, as upstream's: two that bind at once would take each other's volumes. What takes its time
//! has a queue of its own (`operations.rs`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::events::EventType;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use component_base::shutdown::Shutdown;
use component_helpers::persistent_volume::{
    claim_class, claim_ref, is_pod_terminated, volume_class, volume_name, volume_phase,
};
use component_helpers::pod;
use controller_runtime::work_queue::RateLimit;
use controller_runtime::{
    Action, ApiError, Controller, Executor, ObjectKey, Watches, WorkQueue, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;

use super::cache::Cache;
use super::host_path;
use super::matching::claim_key;
use super::metrics::{self, Metrics, OperationTimes};
use super::operations::{Operations, PAUSE};
use super::provisioning::default_class;
use super::sync::{
    ClaimView, Operation, Plan, Purpose, Step, SyncError, VolumeView, reason, sync_claim,
    sync_volume,
};
use crate::context::{ControllerContext, Running, StartError};
use crate::options::VolumeOptions;
use crate::pods_by_claim;
use crate::storage_operations::StorageOperations;

const NAME: &str = "persistentvolume-binder-controller";
/// Provisioning and deleting at once.
const OPERATIONS: usize = 10;
/// How long an operation that failed waits. Upstream: pkg/util/goroutinemap/exponentialbackoff.
const BACKOFF: RateLimit = RateLimit {
    base: Duration::from_millis(500),
    max: Duration::from_secs(122),
    qps: 0.0,
    burst: 0,
};

/// What all loops of the controller share.
pub struct Binder {
    pub(super) claims: Informer<PersistentVolumeClaim>,
    pub(super) volumes: Informer<PersistentVolume>,
    pub(super) classes: Informer<StorageClass>,
    pub(super) pods: Informer<Pod>,
    pub(super) nodes: Informer<Node>,
    pub(super) cache: Arc<Cache>,
    pub(super) executor: Executor,
    pub(super) claim_queue: WorkQueue<ObjectKey>,
    pub(super) volume_queue: WorkQueue<ObjectKey>,
    pub(super) operations: WorkQueue<Operation>,
    pub(super) times: OperationTimes,
    pub(super) metrics: Arc<Metrics>,
    pub(super) storage_operations: Arc<StorageOperations>,
    pub(super) clock: Clock,
    pub(super) options: VolumeOptions,
    pub(super) host_path_root: PathBuf,
    /// Between tries to save a volume that was made.
    pub(super) save_pause: Duration,
    pub(super) shutdown: Shutdown,
}

/// Builds the controller.
///
/// # Errors
/// When it gets no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let executor = context
        .executor("persistent-volume-binder", "persistentvolume-controller")
        .await?;
    let measured = Arc::new(Metrics::register(&context.metrics)?);
    let binder = Arc::new(Binder {
        claims: context.informers.informer(InformerOptions::default()),
        volumes: context.informers.informer(InformerOptions::default()),
        classes: context.informers.informer(InformerOptions::default()),
        pods: context.informers.informer(InformerOptions::default()),
        nodes: context.informers.informer(InformerOptions::default()),
        cache: Arc::default(),
        executor,
        claim_queue: context.queues.queue("claims"),
        volume_queue: context.queues.queue("volumes"),
        operations: context.queues.queue_with("volume_operations", BACKOFF),
        times: OperationTimes::new(context.clock.clone(), measured.clone()),
        metrics: measured,
        storage_operations: context.storage_operations.clone(),
        clock: context.clock.clone(),
        options: context.options.volumes.clone(),
        host_path_root: host_path::ROOT.into(),
        save_pause: PAUSE,
        shutdown: context.shutdown,
    });
    metrics::watch(&context.metrics, &binder.cache)?;
    Ok(binder.run().boxed())
}

impl Binder {
    /// Runs until shutdown.
    pub(super) async fn run(self: Arc<Self>) {
        let mut watches = Watches::new(self.shutdown.clone());
        self.watch(&mut watches);
        if !watches.wait_for_sync().await {
            return;
        }
        self.fill_cache();
        let no_watches = || Watches::new(self.shutdown.clone());
        let end = || self.shutdown.clone();
        let claims = run_controller(
            Arc::new(Claims(self.clone())),
            self.claim_queue.clone(),
            watches,
            1,
            end(),
        );
        let volumes = run_controller(
            Arc::new(Volumes(self.clone())),
            self.volume_queue.clone(),
            no_watches(),
            1,
            end(),
        );
        let operations = run_controller(
            Arc::new(Operations(self.clone())),
            self.operations.clone(),
            no_watches(),
            OPERATIONS,
            end(),
        );
        tokio::join!(claims, volumes, operations, self.resync());
    }

    fn watch(self: &Arc<Self>, watches: &mut Watches) {
        pods_by_claim::add_index(&self.pods);
        watches.wait_for(&self.classes);
        watches.wait_for(&self.pods);
        watches.wait_for(&self.nodes);
        let binder = self.clone();
        watches.on(&self.claims, move |event| {
            binder.claim_queue.add(ObjectKey::of(&**event.object()));
            if let InformerEvent::Updated { old, new } = &event
                && old.metadata.uid != new.metadata.uid
                && !volume_name(old).is_empty()
            {
                // A namesake has taken its place; nobody else tells the volume.
                let volume = ObjectKey::new("", volume_name(old));
                binder.volume_queue.add(volume);
            }
        });
        let binder = self.clone();
        watches.on(&self.volumes, move |event| {
            binder.volume_queue.add(ObjectKey::of(&**event.object()));
        });
    }

    /// Every claim and volume is known before the first is decided about.
    pub(super) fn fill_cache(&self) {
        for volume in self.volumes.list() {
            self.cache.store_volume(volume);
        }
        for claim in self.claims.list() {
            self.cache.store_claim(claim);
        }
    }

    /// Looks at everything every `--pvclaimbinder-sync-period`: claims that wait for a class or a volume are told of none of them.
    async fn resync(&self) {
        let period = self.options.claim_binder_sync_period;
        loop {
            let pause = tokio::time::sleep(period);
            if self.shutdown.run_until(pause).await.is_none() {
                return;
            }
            for claim in self.claims.list() {
                self.claim_queue.add(ObjectKey::of(&*claim));
            }
            for volume in self.volumes.list() {
                self.volume_queue.add(ObjectKey::of(&*volume));
            }
        }
    }

    /// One pass over a claim.
    pub(super) async fn sync_claim_by_key(&self, key: &ObjectKey) -> Result<(), SyncError> {
        let Some(claim) = self.claims.get_key(key) else {
            self.times.forget(&key.to_string());
            if let Some(claim) = self.cache.remove_claim(key)
                && !volume_name(&claim).is_empty()
            {
                let volume = ObjectKey::new("", volume_name(&claim));
                self.volume_queue.add(volume);
            }
            return Ok(());
        };
        if !self.cache.store_claim(claim.clone()) {
            return Ok(());
        }
        let plan = self.plan_claim(&claim);
        let purpose = plan.purpose.clone();
        if let Purpose::Provision(provisioner) = &purpose {
            self.times.start(&key.to_string(), provisioner, "provision");
        }
        let result = self.carry_out(plan).await;
        self.after_claim(&claim, key, &purpose, result.as_ref().err());
        result
    }

    fn plan_claim(&self, claim: &PersistentVolumeClaim) -> Plan {
        let class = self.classes.get("", claim_class(claim));
        let classes = self.classes.list();
        let users = pods_by_claim::users(&self.pods, &ObjectKey::of(claim));
        let mut waiting: Vec<String> = users
            .iter()
            .filter(|pod| !is_pod_terminated(pod) && pod::node_name(pod).is_none())
            .map(|pod| pod::name(pod).to_owned())
            .collect();
        waiting.sort_unstable();
        self.cache.read(|state| {
            let view = ClaimView {
                volumes: &state.volumes,
                class: class.as_deref(),
                default_class: default_class(&classes).map(|class| &**class),
                unscheduled_pods: &waiting,
                dynamic_provisioning: self.options.enable_dynamic_provisioning,
            };
            sync_claim(claim, &view)
        })
    }

    /// Metrics and the event of a failure.
    fn after_claim(
        &self,
        claim: &PersistentVolumeClaim,
        key: &ObjectKey,
        purpose: &Purpose,
        error: Option<&SyncError>,
    ) {
        let key = key.to_string();
        match (purpose, error) {
            (Purpose::AssignClass, error) => self.metrics.record_class_assignment(error.is_none()),
            (Purpose::Bind, None) => self.times.done(&key),
            (Purpose::Bind, Some(_)) => self.times.failed(&key),
            (Purpose::Provision(_), Some(error)) => {
                self.times.failed(&key);
                let message = format!("Error saving claim: {error}");
                self.warn(claim, reason::PROVISIONING_FAILED, message);
            }
            _ => {}
        }
    }

    /// Records a warning about an object.
    pub(super) fn warn<K: kube::Resource<DynamicType = ()>>(
        &self,
        object: &K,
        reason: &'static str,
        message: String,
    ) {
        let regarding = component_base::events::object_reference(object);
        let recorder = self.executor.recorder();
        recorder.event(&regarding, EventType::Warning, reason, reason, message);
    }

    /// One pass over a volume.
    pub(super) async fn sync_volume_by_key(&self, key: &ObjectKey) -> Result<(), SyncError> {
        let Some(volume) = self.volumes.get_key(key) else {
            self.times.done(&key.name);
            if let Some(claim) = self
                .cache
                .remove_volume(&key.name)
                .and_then(|volume| claim_key(&volume))
            {
                // Its claim is lost; it should not learn that at the next full round only.
                self.claim_queue.add(claim);
            }
            return Ok(());
        };
        if !self.cache.store_volume(volume.clone()) {
            return Ok(());
        }
        let claim = self.claim_of(&volume).await?;
        let class = self.classes.get("", volume_class(&volume));
        let view = VolumeView {
            claim: claim.as_deref(),
            class: class.as_deref(),
            users: &self.users_of(&volume),
        };
        let plan = sync_volume(&volume, &view);
        if let Purpose::Delete(deleter) = &plan.purpose {
            self.times.start(&key.name, deleter, "delete");
        }
        self.carry_out(plan).await
    }

    /// What has the name of the volume's claim. That it is not there, or is another, is believed of the server alone, unless the volume
    /// has been released before.
    async fn claim_of(
        &self,
        volume: &PersistentVolume,
    ) -> Result<Option<Arc<PersistentVolumeClaim>>, ApiError> {
        let (Some(key), Some(reference)) = (claim_key(volume), claim_ref(volume)) else {
            return Ok(None);
        };
        if reference.uid.as_deref().is_none_or(str::is_empty) {
            return Ok(None);
        }
        let is_it = |claim: &Arc<PersistentVolumeClaim>| claim.metadata.uid == reference.uid;
        let mut claim = self.cache.claim(&key);
        if claim.is_none() {
            if matches!(volume_phase(volume), "Released" | "Failed") {
                return Ok(None);
            }
            claim = self.claims.get_key(&key);
        }
        if claim.as_ref().is_some_and(is_it) {
            return Ok(claim);
        }
        let live = self.executor.get(&key.namespace, &key.name).await?;
        Ok(live.map(Arc::new))
    }

    fn users_of(&self, volume: &PersistentVolume) -> Vec<String> {
        let Some(claim) = claim_key(volume) else {
            return Vec::new();
        };
        let users = pods_by_claim::users(&self.pods, &claim);
        let active = users.iter().filter(|pod| !is_pod_terminated(pod));
        let mut names: Vec<String> = active.map(|pod| pod::key(pod)).collect();
        names.sort_unstable();
        names
    }

    /// Takes the steps of a plan until one fails. What the server answers is known at once, and later steps build on it.
    pub(super) async fn carry_out(&self, plan: Plan) -> Result<(), SyncError> {
        let mut volume: Option<Arc<PersistentVolume>> = None;
        let mut claim: Option<Arc<PersistentVolumeClaim>> = None;
        for step in plan.steps {
            match step {
                Step::UpdateVolume(mut object) => {
                    if let Some(last) = &volume {
                        object.metadata.resource_version = last.metadata.resource_version.clone();
                    }
                    volume = Some(self.keep_volume(self.executor.update(&*object).await?));
                }
                Step::UpdateVolumeStatus(mut object) => {
                    if let Some(last) = &volume {
                        object.metadata = last.metadata.clone();
                        object.spec = last.spec.clone();
                    }
                    volume = Some(self.keep_volume(self.executor.update_status(&*object).await?));
                }
                Step::UpdateClaim(mut object) => {
                    if let Some(last) = &claim {
                        object.metadata.resource_version = last.metadata.resource_version.clone();
                    }
                    claim = Some(self.keep_claim(self.executor.update(&*object).await?));
                }
                Step::UpdateClaimStatus(mut object) => {
                    if let Some(last) = &claim {
                        object.metadata = last.metadata.clone();
                        object.spec = last.spec.clone();
                    }
                    claim = Some(self.keep_claim(self.executor.update_status(&*object).await?));
                }
                Step::Event(action) => self.record(&action).await,
                Step::SyncClaim(key) => self.claim_queue.add(key),
                Step::Start(operation) => self.begin(operation),
            }
        }
        plan.error.map_or(Ok(()), Err)
    }

    /// Puts an event down.
    pub(super) async fn record(&self, event: &Action) {
        // Recording only queues; it has no failure that anyone could act on.
        let _ = self.executor.execute(event).await;
    }

    /// Starts an operation, unless it failed a short while ago.
    fn begin(&self, operation: Operation) {
        if self.operations.num_requeues(&operation) == 0 {
            self.operations.add(operation);
        }
    }

    pub(super) fn keep_volume(&self, volume: PersistentVolume) -> Arc<PersistentVolume> {
        let volume = Arc::new(volume);
        self.cache.store_volume(volume.clone());
        volume
    }

    pub(super) fn keep_claim(&self, claim: PersistentVolumeClaim) -> Arc<PersistentVolumeClaim> {
        let claim = Arc::new(claim);
        self.cache.store_claim(claim.clone());
        claim
    }
}

struct Claims(Arc<Binder>);
struct Volumes(Arc<Binder>);

#[async_trait]
impl Controller for Claims {
    type Key = ObjectKey;
    type Error = SyncError;

    fn name(&self) -> &'static str {
        NAME
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, SyncError> {
        self.0.sync_claim_by_key(key).await.map(|()| None)
    }

    fn is_conflict(&self, error: &SyncError) -> bool {
        matches!(error, SyncError::Api(error) if error.is_conflict())
    }
}

#[async_trait]
impl Controller for Volumes {
    type Key = ObjectKey;
    type Error = SyncError;

    fn name(&self) -> &'static str {
        NAME
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, SyncError> {
        self.0.sync_volume_by_key(key).await.map(|()| None)
    }

    fn is_conflict(&self, error: &SyncError) -> bool {
        matches!(error, SyncError::Api(error) if error.is_conflict())
    }
}
