//! One migration of a resource at a time: begins the oldest that waits, closes those that have ended, and tells the resource's
//! definition, if it has one.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::informer::Informer;
use component_base::shutdown::Shutdown;
use controller_runtime::{Action, ApiError, Controller, Executor, Queues, Watches, run_controller};
use jiff::Timestamp;
use k8s_openapi::api::storagemigration::v1::StorageVersionMigration;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use super::sync::{
    begun, definition_begun, definition_ended, ended, has_succeeded, resource, turn,
};

const NAME: &str = "migration-runner-controller";
/// Tries to write a definition that others write, too. Upstream: `retry.DefaultRetry`.
const TRIES: u32 = 5;

/// A resource of a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) group: String,
    pub(super) resource: String,
}

impl Key {
    fn of(migration: &StorageVersionMigration) -> Option<Self> {
        resource(migration).map(|resource| Self {
            group: resource.group.clone(),
            resource: resource.resource.clone(),
        })
    }
}

/// As the definition of the resource is called.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.resource, self.group)
    }
}

pub(super) struct Runner {
    pub(super) migrations: Informer<StorageVersionMigration>,
    pub(super) executor: Executor,
    pub(super) clock: Clock,
}

/// Runs it until shutdown.
pub(super) async fn run(
    queues: Queues,
    migrations: Informer<StorageVersionMigration>,
    executor: Executor,
    clock: Clock,
    shutdown: Shutdown,
) {
    let queue = queues.queue(NAME);
    let mut watches = Watches::new(shutdown.clone());
    let keys = queue.clone();
    watches.on(&migrations, move |event| {
        if let Some(key) = Key::of(event.object()) {
            keys.add(key);
        }
    });
    let runner = Arc::new(Runner {
        migrations,
        executor,
        clock,
    });
    run_controller(runner, queue, watches, 1, shutdown).await;
}

impl Runner {
    /// Writes the definition of a resource, if it has one, as it is now.
    async fn tell(
        &self,
        key: &Key,
        words: impl Fn(&CustomResourceDefinition, Timestamp) -> Action + Send + Sync,
    ) -> Result<(), ApiError> {
        let mut tries = TRIES;
        loop {
            let found: Option<CustomResourceDefinition> =
                self.executor.get("", &key.to_string()).await?;
            let Some(definition) = found else {
                return Ok(());
            };
            let action = words(&definition, self.clock.now());
            tries -= 1;
            match self.executor.execute(&action).await {
                Err(ApiError::Conflict(_)) if tries > 0 => {}
                result => return result.map(drop),
            }
        }
    }
}

#[async_trait]
impl Controller for Runner {
    type Key = Key;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        NAME
    }

    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, ApiError> {
        let mut all = self.migrations.list();
        all.retain(|migration| Key::of(migration).as_ref() == Some(key));
        let turn = turn(all.iter().map(|migration| &**migration));
        for migration in turn.ended {
            let success = has_succeeded(migration);
            self.tell(key, |definition, now| {
                definition_ended(definition, success, now)
            })
            .await?;
            if let Some(ended) = ended(migration, self.clock.now()) {
                self.executor.update_status(&ended).await?;
            }
        }
        if let Some(next) = turn.next {
            self.tell(key, |definition, now| {
                definition_begun(definition, next, now)
            })
            .await?;
            if let Some(begun) = begun(next, self.clock.now()) {
                self.executor.update_status(&begun).await?;
            }
        }
        Ok(None)
    }
}
