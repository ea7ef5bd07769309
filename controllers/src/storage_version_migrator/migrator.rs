//! Carries out the migrations that run: notes the resource's version, then writes every object that is not newer.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::informer::{Informer, InformerEvent};
use component_base::shutdown::Shutdown;
use controller_runtime::executor::Target;
use controller_runtime::transport::Verb;
use controller_runtime::{
    ApiError, Controller, Executor, ObjectKey, PatchKind, Queues, Watches, run_controller,
};
use jiff::SignedDuration;
use k8s_openapi::api::storagemigration::v1::StorageVersionMigration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::GroupResource;
use kube::Client;
use serde_json::json;

use super::NAME;
use super::objects::{Objects, Stored};
use super::sync::{
    Progress, compare_versions, failed, failed_on_the_way, held_up, is_running, is_terminal,
    resource, succeeded, unhandled,
};
use crate::discovery::{Discovered, Discovery};

/// Migrations at once. Upstream: `workers`.
const WORKERS: usize = 5;
/// A resource that is not there may be of a definition that was just made.
const YOUNG: SignedDuration = SignedDuration::from_mins(1);
/// When to look for such a resource again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// What a resource must support.
const VERBS: [&str; 3] = ["update", "patch", "list"];

pub(super) struct Migrator {
    pub(super) migrations: Informer<StorageVersionMigration>,
    pub(super) discovery: Arc<dyn Discovery>,
    pub(super) objects: Arc<dyn Objects>,
    pub(super) executor: Executor,
    pub(super) clock: Clock,
}

/// Runs it until shutdown.
pub(super) async fn run(
    queues: Queues,
    migrations: Informer<StorageVersionMigration>,
    client: Client,
    executor: Executor,
    clock: Clock,
    shutdown: Shutdown,
) {
    let queue = queues.queue(NAME);
    let mut watches = Watches::new(shutdown.clone());
    let keys = queue.clone();
    watches.on(&migrations, move |event| {
        if !matches!(event, InformerEvent::Deleted(_)) {
            keys.add(ObjectKey::of(&**event.object()));
        }
    });
    let migrator = Arc::new(Migrator {
        migrations,
        discovery: Arc::new(client.clone()),
        objects: Arc::new(client),
        executor,
        clock,
    });
    run_controller(migrator, queue, watches, WORKERS, shutdown).await;
}

/// How writing objects ended.
enum Outcome {
    Done,
    /// Worth another try.
    HeldUp(ApiError),
    Failed(ApiError),
}

/// Whether an error says nothing of the object. Upstream: `isRetriableError`.
fn is_transient(error: &ApiError) -> bool {
    match error {
        ApiError::Unreachable(_) | ApiError::TooManyRequests { .. } | ApiError::NotLeading => true,
        ApiError::Server { code, .. } => matches!(code, 500 | 503 | 504),
        _ => false,
    }
}

impl Migrator {
    async fn write(&self, migration: Option<StorageVersionMigration>) -> Result<(), ApiError> {
        if let Some(migration) = migration {
            self.executor.update_status(&migration).await?;
        }
        Ok(())
    }

    async fn fail(
        &self,
        migration: &StorageVersionMigration,
        message: String,
    ) -> Result<Option<Duration>, ApiError> {
        self.write(failed(migration, message, self.clock.now()))
            .await?;
        Ok(None)
    }

    /// The resource as the server prefers it.
    async fn discover(&self, wanted: &GroupResource) -> Result<Option<Discovered>, ApiError> {
        let found = self.discovery.resources().await?;
        let mut found = found.resources.into_iter();
        Ok(found.find(|d| {
            let resource = &d.resource;
            d.preferred && resource.group == wanted.group && resource.plural == wanted.resource
        }))
    }

    fn is_young(&self, migration: &StorageVersionMigration) -> bool {
        let created = migration.metadata.creation_timestamp.as_ref();
        created.is_some_and(|created| self.clock.now().duration_since(created.0) < YOUNG)
    }

    /// Notes up to which version objects are to be written. Upstream: the resource-version controller.
    async fn note_version(
        &self,
        migration: &StorageVersionMigration,
        found: &Discovered,
    ) -> Result<Option<Duration>, ApiError> {
        let resource = &found.resource;
        if !found.supports(&VERBS) {
            let message = format!(
                "resource \"{}, Resource={}\" does not support discovery operations: [{}]",
                resource.api_version(),
                resource.plural,
                VERBS.join(" ")
            );
            return self.fail(migration, message).await;
        }
        let api_resource = found.api_resource();
        let latest = self.objects.latest(&api_resource, found.namespaced).await?;
        if let Err(error) = compare_versions(&latest, &latest) {
            let message = format!(
                "latest resourceVersion for {}, Resource={} is not valid: {error}",
                resource.api_version(),
                resource.plural
            );
            return self.fail(migration, message).await;
        }
        let mut noted = migration.clone();
        noted.status.get_or_insert_default().resource_version = Some(latest);
        self.write(Some(noted)).await?;
        Ok(None)
    }

    async fn migrate(
        &self,
        migration: &StorageVersionMigration,
        found: &Discovered,
        up_to: &str,
    ) -> Result<Option<Duration>, ApiError> {
        let mut objects = self.objects.all(&found.api_resource()).await?;
        let total = objects.len();
        let mut malformed = None;
        objects.retain(
            |object| match compare_versions(&object.resource_version, up_to) {
                Ok(order) => order != Ordering::Greater,
                Err(error) => {
                    malformed = Some(error);
                    false
                }
            },
        );
        if let Some(error) = malformed {
            return self.fail(migration, unhandled(&error)).await;
        }
        let mut progress = Progress {
            left: objects.len(),
            total,
        };
        let outcome = self.write_objects(found, &objects, &mut progress).await;
        let now = self.clock.now();
        match outcome {
            Outcome::Done => {
                self.write(succeeded(migration, progress, now)).await?;
                Ok(None)
            }
            Outcome::Failed(error) => {
                let failed = failed_on_the_way(migration, progress, &error, now);
                self.write(failed).await?;
                Ok(None)
            }
            Outcome::HeldUp(error) => {
                // For people; the next try comes either way.
                let _ = self.write(held_up(migration, progress, &error, now)).await;
                match error {
                    ApiError::TooManyRequests {
                        retry_after_seconds: seconds @ 1..,
                        ..
                    } => Ok(Some(Duration::from_secs(u64::from(seconds)))),
                    error => Err(error),
                }
            }
        }
    }

    /// Patches objects with nothing, one by one; the server stores them anew.
    async fn write_objects(
        &self,
        found: &Discovered,
        objects: &[Stored],
        progress: &mut Progress,
    ) -> Outcome {
        for object in objects {
            let target = Target {
                resource: found.resource.clone(),
                key: object.key.clone(),
                subresource: "",
            };
            let patch = json!({
                "apiVersion": found.resource.api_version(), "kind": found.resource.kind,
                "metadata": { "resourceVersion": object.resource_version },
            });
            let query = vec![("fieldManager", NAME.to_owned())];
            let verb = Verb::Patch(PatchKind::Merge);
            match self.executor.send(verb, &target, query, patch).await {
                Ok(_) => {}
                // Written, deleted or made anew meanwhile: stored as of today, or not at all.
                Err(ApiError::Conflict(_) | ApiError::NotFound(_)) => {}
                Err(error) if is_transient(&error) => return Outcome::HeldUp(error),
                Err(error) => return Outcome::Failed(error),
            }
            progress.left -= 1;
        }
        Outcome::Done
    }
}

#[async_trait]
impl Controller for Migrator {
    type Key = ObjectKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        NAME
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let Some(migration) = self.migrations.get_key(key) else {
            return Ok(None);
        };
        let Some(wanted) = resource(&migration).filter(|_| is_running(&migration)) else {
            return Ok(None);
        };
        if is_terminal(&migration) {
            return Ok(None);
        }
        let status = migration.status.as_ref();
        let noted = status.and_then(|s| s.resource_version.as_deref());
        let noted = noted.filter(|version| !version.is_empty());
        let found = match self.discover(wanted).await? {
            Some(found) => found,
            None if self.is_young(&migration) => return Ok(Some(LOOK_AGAIN)),
            None => {
                let message = match noted {
                    None => "resource does not exist in discovery".to_owned(),
                    Some(_) => unhandled(&"unable to obtain GVR from discovery"),
                };
                return self.fail(&migration, message).await;
            }
        };
        match noted {
            None => self.note_version(&migration, &found).await,
            Some(up_to) => self.migrate(&migration, &found, up_to).await,
        }
    }
}
