//! Writes every stored object of a resource once, so that all are stored in the version and under the encryption of today.
//!
//! Upstream: pkg/controller/storageversionmigrator, v1.37.
//!
//! ```text
//! created ----> runner: Running (one migration a resource), the definition's StorageMigrating
//!         ----> migrator: status.resourceVersion = now ----> objects up to there are patched with nothing ----> Succeeded | Failed
//!         ----> runner: Running is False, the definition's storedVersions are the one that is stored
//! ```
//!
//! DIFFERS: objects are found by a list of their metadata, which is as new as the migration by itself. Upstream takes the garbage
//! collector's cache, waits until that is new enough, and needs the garbage collector for it.

mod migrator;
mod objects;
mod runner;
mod sync;
#[cfg(test)]
mod tests;

use futures::FutureExt as _;

use component_base::informer::InformerOptions;
use k8s_openapi::api::storagemigration::v1::StorageVersionMigration;

use crate::context::{ControllerContext, Running, StartError};

/// The gate of the controller.
pub const STORAGE_VERSION_MIGRATOR: &str = "StorageVersionMigrator";
/// It writes as the account of this name, which is also the field manager of its patches.
pub const NAME: &str = "storage-version-migrator-controller";

/// Builds the controller; with its gate off, or an API server without migrations, it has nothing to do.
///
/// # Errors
/// When no client can be had, or the server does not say what it has.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    if !context.features.enabled(STORAGE_VERSION_MIGRATOR)
        || !context.serves::<StorageVersionMigration>().await?
    {
        return Ok(context.nothing_to_do(NAME));
    }
    let context = context.fast();
    let migrations = context.informers.informer(InformerOptions::default());
    let executor = context.executor(NAME, NAME).await?;
    let client = context.client(NAME).await?;
    let runner = runner::run(
        context.queues.clone(),
        migrations.clone(),
        executor.clone(),
        context.clock.clone(),
        context.shutdown.clone(),
    );
    let migrator = migrator::run(
        context.queues,
        migrations,
        client,
        executor,
        context.clock,
        context.shutdown,
    );
    Ok(futures::future::join(runner, migrator).map(drop).boxed())
}
