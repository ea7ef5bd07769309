//! What takes its time: directories made and deleted as volumes. One operation of a name runs at once, and waits longer after each failure.
//!
//! Upstream: `provisionClaimOperation`, `deleteVolumeOperation` of persistentvolume/pv_controller.go, v1.36.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::events::EventType;
use component_base::tasks;
use component_helpers::persistent_volume::{
    PV_CONTROLLER_FINALIZER, SELECTED_NODE, annotation, claim_class, has_annotation,
    remove_annotation, volume_name,
};
use controller_runtime::{Action, ApiError, Controller, DeleteOptions, ObjectKey};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

use super::binding::fail_volume;
use super::controller::Binder;
use super::host_path::{self, DeleteError, Refusal};
use super::matching::claim_key;
use super::provisioning::{Deleter, deleter_of, with_provisioner};
use super::sync::{Operation, Plan, SyncError, is_released, reason};

/// How often a volume that was made is saved, and a directory that could not be saved deleted.
const TRIES: u32 = 5;
/// Pause between these tries.
pub const PAUSE: Duration = Duration::from_secs(10);

/// Why an operation failed; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    /// A read or write.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The claim gets no volume like this.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The directory is still there.
    #[error(transparent)]
    Delete(#[from] DeleteError),
    /// A phase or event could not be written.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// The work on the disk ended with a panic.
    #[error("the work on the disk did not end: {0}")]
    Panicked(String),
}

/// The loop of operations.
pub struct Operations(pub(super) Arc<Binder>);

#[async_trait]
impl Controller for Operations {
    type Key = Operation;
    type Error = OperationError;

    fn name(&self) -> &'static str {
        "persistentvolume-binder-controller"
    }

    async fn reconcile(&self, operation: &Operation) -> Result<Option<Duration>, OperationError> {
        let (key, result) = match operation {
            Operation::Provision { claim, uid } => {
                (claim.to_string(), self.0.provision(claim, uid).await)
            }
            Operation::Delete { volume, uid } => (volume.clone(), self.0.delete(volume, uid).await),
        };
        if result.is_err() {
            self.0.times.failed(&key);
        }
        result.map(|()| None)
    }

    fn is_conflict(&self, error: &OperationError) -> bool {
        matches!(error, OperationError::Api(error) if error.is_conflict())
    }
}

impl Binder {
    /// Runs what blocks, and counts how long it took.
    async fn on_disk<T: Send + 'static, E: Send + 'static>(
        &self,
        operation: &str,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<Result<T, E>, OperationError> {
        let began = self.clock.monotonic();
        let result = tokio::task::spawn_blocking(work).await;
        let success = matches!(&result, Ok(Ok(_)));
        let took = self.clock.monotonic().saturating_sub(began);
        self.storage_operations
            .record(host_path::PLUGIN_NAME, operation, success, took);
        result.map_err(|error| match error.try_into_panic() {
            Ok(panic) => OperationError::Panicked(tasks::message(&*panic)),
            Err(error) => OperationError::Panicked(error.to_string()),
        })
    }

    /// Makes the volume of a claim, unless it needs none any more.
    pub(super) async fn provision(&self, key: &ObjectKey, uid: &str) -> Result<(), OperationError> {
        let claim = self.cache.claim(key).filter(|claim| {
            claim.metadata.uid.as_deref() == Some(uid) && volume_name(claim).is_empty()
        });
        let Some(mut claim) = claim else {
            return Ok(());
        };
        let Some(class) = self.classes.get("", claim_class(&claim)) else {
            return Ok(());
        };
        if claim.spec.as_ref().is_some_and(|s| s.data_source.is_some()) {
            return self.refuse(&claim, Refusal::DataSource).await;
        }
        if let Some(named) = with_provisioner(&claim, &class.provisioner) {
            claim = self.keep_claim(self.executor.update(&named).await?);
        }
        let name = host_path::volume_name_for(&claim);
        let there: Option<PersistentVolume> = self.executor.get("", &name).await?;
        if there.is_some() {
            return Ok(());
        }
        let node = annotation(&claim.metadata, SELECTED_NODE);
        let missing = node.filter(|node| self.nodes.get("", node).is_none());
        let enabled = self.options.enable_hostpath_provisioner;
        if let Some(refusal) = host_path::refuse(&claim, &class, enabled, missing) {
            return self.refuse(&claim, refusal).await;
        }
        let root = self.host_path_root.clone();
        match self
            .on_disk("volume_provision", move || host_path::make(&root))
            .await?
        {
            Ok(path) => self.save(&claim, &class, path).await,
            Err(error) => {
                let refusal = Refusal::Directory {
                    class: claim_class(&claim).to_owned(),
                    message: error.to_string(),
                };
                self.refuse(&claim, refusal).await
            }
        }
    }

    /// Tells why the claim gets no volume; the scheduler may choose another node where that can help.
    async fn refuse(
        &self,
        claim: &PersistentVolumeClaim,
        refusal: Refusal,
    ) -> Result<(), OperationError> {
        if refusal.reschedules() && has_annotation(&claim.metadata, SELECTED_NODE) {
            let mut claim = claim.clone();
            remove_annotation(&mut claim.metadata, SELECTED_NODE);
            match self.executor.update(&claim).await {
                Ok(claim) => drop(self.keep_claim(claim)),
                Err(error) => {
                    tracing::debug!(claim = %ObjectKey::of(&claim), %error, "Failed to delete annotation of the selected node");
                }
            }
        }
        self.warn(claim, reason::PROVISIONING_FAILED, refusal.to_string());
        Err(refusal.into())
    }

    /// Saves the volume that a directory was made for. When it cannot be saved the directory goes again.
    async fn save(
        &self,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
        path: String,
    ) -> Result<(), OperationError> {
        let volume = host_path::provision(claim, class, &path);
        let mut failure = None;
        for attempt in 0..TRIES {
            if attempt > 0 && !self.pause().await {
                break;
            }
            match self.executor.create(&volume).await {
                Ok(volume) => {
                    self.keep_volume(volume);
                    failure = None;
                    break;
                }
                // An answer was lost.
                Err(error) if error.is_already_exists() => {
                    failure = None;
                    break;
                }
                Err(error) => failure = Some(error),
            }
        }
        let Some(error) = failure else {
            let message = format!(
                "Successfully provisioned volume {} using {}",
                host_path::volume_name_for(claim),
                host_path::PLUGIN_NAME
            );
            let event = Action::event(
                claim,
                EventType::Normal,
                reason::PROVISIONING_SUCCEEDED,
                message,
            );
            self.record(&event).await;
            return Ok(());
        };
        let key = ObjectKey::of(claim);
        let message = format!(
            "Error creating provisioned PV object for claim {key}: {error}. Deleting the volume."
        );
        self.warn(claim, reason::PROVISIONING_FAILED, message);
        if let Err(error) = self.clean_up(&path).await {
            let message = format!(
                "Error cleaning provisioned volume for claim {key}: {error}. Please delete manually."
            );
            self.warn(claim, reason::PROVISIONING_CLEANUP_FAILED, message);
        }
        Ok(())
    }

    async fn clean_up(&self, path: &str) -> Result<(), OperationError> {
        let mut result = self.delete_directory(path).await;
        for _ in 1..TRIES {
            if result.is_ok() || !self.pause().await {
                break;
            }
            result = self.delete_directory(path).await;
        }
        result
    }

    /// Waits before another try; `false` at shutdown.
    async fn pause(&self) -> bool {
        let pause = tokio::time::sleep(self.save_pause);
        self.shutdown.run_until(pause).await.is_some()
    }

    async fn delete_directory(&self, path: &str) -> Result<(), OperationError> {
        let path = path.to_owned();
        self.on_disk("volume_delete", move || host_path::delete(&path))
            .await??;
        Ok(())
    }

    /// Deletes a volume whose claim is gone, unless somebody needs it after all.
    pub(super) async fn delete(&self, name: &str, uid: &str) -> Result<(), OperationError> {
        let is_it = |volume: &PersistentVolume| volume.metadata.uid.as_deref() == Some(uid);
        // Past all caches: it may have been bound, changed or deleted since.
        let live: Option<PersistentVolume> = self.executor.get("", name).await?;
        let Some(volume) = live.filter(is_it) else {
            return Ok(());
        };
        let claim = claim_key(&volume).and_then(|key| self.cache.claim(&key));
        if !is_released(&volume, claim.as_deref()) || deleter_of(&volume) != Ok(Deleter::HostPath) {
            return Ok(());
        }
        let source = volume.spec.as_ref().and_then(|s| s.host_path.as_ref());
        let deleted = match source {
            Some(source) => self.delete_directory(&source.path).await,
            None => Err(DeleteError::NoPath(name.to_owned()).into()),
        };
        if let Err(error) = deleted {
            let mut plan = Plan::default();
            let message = error.to_string();
            fail_volume(&mut plan, &volume, reason::VOLUME_FAILED_DELETE, &message);
            self.carry_out(plan).await?;
            return Err(error);
        }
        self.remove_finalizer(volume).await?;
        let options = DeleteOptions {
            uid: Some(uid.to_owned()),
            ..DeleteOptions::default()
        };
        let action = Action::delete::<PersistentVolume>("", name, options);
        self.executor.execute(&action).await?;
        Ok(())
    }

    async fn remove_finalizer(&self, mut volume: PersistentVolume) -> Result<(), ApiError> {
        let finalizers = volume.metadata.finalizers.get_or_insert_default();
        if !finalizers.iter().any(|f| f == PV_CONTROLLER_FINALIZER) {
            return Ok(());
        }
        finalizers.retain(|finalizer| finalizer != PV_CONTROLLER_FINALIZER);
        match self.executor.update(&volume).await {
            // It was being deleted, and this was the last that held it.
            Err(ApiError::NotFound(_)) => Ok(()),
            volume => volume.map(|volume| drop(self.keep_volume(volume))),
        }
    }
}
