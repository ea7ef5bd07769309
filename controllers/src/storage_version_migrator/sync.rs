//! The decisions: which migration runs, what its conditions say, what a definition is told, which versions are older. Pure.

use std::cmp::Ordering;
use std::fmt::Display;

use component_helpers::conditions;
use controller_runtime::executor::Target;
use controller_runtime::{Action, PatchKind};
use jiff::Timestamp;
use k8s_openapi::api::storagemigration::v1::StorageVersionMigration;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, GroupResource, Time};
use serde_json::json;

/// It runs, or ran.
const RUNNING: &str = "Running";
const SUCCEEDED: &str = "Succeeded";
const FAILED: &str = "Failed";
/// A condition of definitions.
const STORAGE_MIGRATING: &str = "StorageMigrating";
/// Who writes it.
const RUNNER: &str = "migration-runner-controller";

fn is_true(migration: &StorageVersionMigration, condition: &str) -> bool {
    let conditions = migration
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|all| conditions::is_true(all, condition))
}

pub(super) fn is_running(migration: &StorageVersionMigration) -> bool {
    is_true(migration, RUNNING)
}

/// Whether it has ended, one way or the other.
pub(super) fn is_terminal(migration: &StorageVersionMigration) -> bool {
    is_true(migration, SUCCEEDED) || is_true(migration, FAILED)
}

pub(super) fn has_succeeded(migration: &StorageVersionMigration) -> bool {
    is_true(migration, SUCCEEDED)
}

/// The resource a migration is for.
pub(super) fn resource(migration: &StorageVersionMigration) -> Option<&GroupResource> {
    migration.spec.as_ref().map(|spec| &spec.resource)
}

/// What is to be done about the migrations of one resource.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Turn<'a> {
    /// They have ended and still say that they run.
    pub(super) ended: Vec<&'a StorageVersionMigration>,
    /// The next one to run: the oldest, if none runs.
    pub(super) next: Option<&'a StorageVersionMigration>,
}

/// What is to be done about the migrations of one resource; all of `migrations` are for it.
pub(super) fn turn<'a>(
    migrations: impl IntoIterator<Item = &'a StorageVersionMigration>,
) -> Turn<'a> {
    let age = |m: &StorageVersionMigration| {
        let created = m.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (created, m.metadata.name.clone())
    };
    let mut turn = Turn::default();
    let mut in_progress = false;
    for migration in migrations {
        match (is_running(migration), is_terminal(migration)) {
            (true, true) => turn.ended.push(migration),
            (true, false) => in_progress = true,
            (false, true) => {}
            (false, false) => {
                if turn.next.is_none_or(|next| age(migration) < age(next)) {
                    turn.next = Some(migration);
                }
            }
        }
    }
    if in_progress {
        turn.next = None;
    }
    turn
}

fn with(
    migration: &StorageVersionMigration,
    new: &[(&str, &str, &str, String)],
    now: Timestamp,
) -> Option<StorageVersionMigration> {
    let mut changed = migration.clone();
    let status = changed.status.get_or_insert_default();
    let all = status.conditions.get_or_insert_default();
    let mut any = false;
    for (type_, status, reason, message) in new {
        let condition = Condition {
            type_: (*type_).to_owned(),
            status: (*status).to_owned(),
            reason: (*reason).to_owned(),
            message: message.clone(),
            observed_generation: None,
            last_transition_time: Time(now),
        };
        any |= conditions::set(all, condition, &Time(now));
    }
    any.then_some(changed)
}

/// How far a migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// Objects that are still to be written.
    pub(super) left: usize,
    /// All objects.
    pub(super) total: usize,
}

fn running_message(progress: Option<Progress>, transient: Option<&dyn Display>) -> String {
    let mut message = "The migration is running".to_owned();
    match progress {
        Some(Progress { left: 0, total }) if total > 0 => {
            message += &format!(", {total} objects verified migrated");
        }
        Some(Progress { left, total }) if total > 0 => {
            message += &format!(", {left}/{total} objects not yet migrated");
        }
        _ => {}
    }
    if let Some(error) = transient {
        message += &format!("; transient error: {error}");
    }
    message
}

fn running(
    progress: Option<Progress>,
    transient: Option<&dyn Display>,
) -> (&'static str, &'static str, &'static str, String) {
    let message = running_message(progress, transient);
    (RUNNING, "True", "MigrationRunning", message)
}

/// The migration, begun.
pub(super) fn begun(
    migration: &StorageVersionMigration,
    now: Timestamp,
) -> Option<StorageVersionMigration> {
    with(migration, &[running(None, None)], now)
}

/// The migration, held up for a while.
pub(super) fn held_up(
    migration: &StorageVersionMigration,
    progress: Progress,
    error: &dyn Display,
    now: Timestamp,
) -> Option<StorageVersionMigration> {
    with(migration, &[running(Some(progress), Some(error))], now)
}

/// The migration, succeeded.
pub(super) fn succeeded(
    migration: &StorageVersionMigration,
    progress: Progress,
    now: Timestamp,
) -> Option<StorageVersionMigration> {
    let done = "Migration completed".to_owned();
    let reason = "StorageVersionMigrationSucceeded";
    let conditions = [
        running(Some(progress), None),
        (SUCCEEDED, "True", reason, done),
    ];
    with(migration, &conditions, now)
}

/// The migration, failed for good.
pub(super) fn failed(
    migration: &StorageVersionMigration,
    message: String,
    now: Timestamp,
) -> Option<StorageVersionMigration> {
    let reason = "StorageVersionMigrationFailed";
    with(migration, &[(FAILED, "True", reason, message)], now)
}

/// What a failure for good is called.
pub(super) fn unhandled(error: &dyn Display) -> String {
    format!("migration encountered unhandled error: {error}")
}

/// The migration, failed for good on the way.
pub(super) fn failed_on_the_way(
    migration: &StorageVersionMigration,
    progress: Progress,
    error: &dyn Display,
    now: Timestamp,
) -> Option<StorageVersionMigration> {
    let Progress { left, total } = progress;
    let message = format!("{left}/{total} not yet migrated. {}", unhandled(error));
    let reason = "StorageVersionMigrationFailed";
    let conditions = [
        running(Some(progress), None),
        (FAILED, "True", reason, message),
    ];
    with(migration, &conditions, now)
}

/// The migration, no longer running.
pub(super) fn ended(
    migration: &StorageVersionMigration,
    now: Timestamp,
) -> Option<StorageVersionMigration> {
    let message = "Migration completed".to_owned();
    let condition = (RUNNING, "False", "MigrationCompleted", message);
    let mut ended = with(migration, &[condition], now)?;
    let status = ended.status.as_mut()?;
    let running = status.conditions.as_mut()?.iter_mut();
    for condition in running.filter(|c| c.type_ == RUNNING) {
        condition.observed_generation = migration.metadata.generation;
    }
    Some(ended)
}

fn definition_patch(
    definition: &CustomResourceDefinition,
    (status, reason, message): (&str, &str, String),
    stored: Option<&str>,
    now: Timestamp,
) -> Action {
    let meta = &definition.metadata;
    let mut patch = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        // What is said of a generation, and which version is stored, must not have changed meanwhile.
        "metadata": { "name": meta.name, "resourceVersion": meta.resource_version },
        "status": { "conditions": [{
            "type": STORAGE_MIGRATING, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": Time(now), "observedGeneration": meta.generation,
        }] },
    });
    if let Some(stored) = stored {
        patch["status"]["storedVersions"] = json!([stored]);
    }
    let name = meta.name.as_deref().unwrap_or_default();
    Action::Patch {
        target: Target::of::<CustomResourceDefinition>("", name).subresource("status"),
        kind: PatchKind::Apply(RUNNER),
        patch,
    }
}

/// Tells a definition that its objects are migrated now.
pub(super) fn definition_begun(
    definition: &CustomResourceDefinition,
    migration: &StorageVersionMigration,
    now: Timestamp,
) -> Action {
    let name = migration.metadata.name.as_deref().unwrap_or_default();
    let message = format!("Migration {name} is running");
    let words = ("True", "MigrationRunning", message);
    definition_patch(definition, words, None, now)
}

/// Tells a definition how the migration ended.
///
/// DIFFERS: the stored versions become the one that is stored only where the migration succeeded. Upstream drops the others after a
/// failed one, too, though objects may still be stored in them.
pub(super) fn definition_ended(
    definition: &CustomResourceDefinition,
    success: bool,
    now: Timestamp,
) -> Action {
    let conditions = definition
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_ref());
    let mut migrating = conditions.into_iter().flatten();
    let unchanged = migrating
        .find(|c| c.type_ == STORAGE_MIGRATING)
        .is_some_and(|c| c.observed_generation == definition.metadata.generation);
    let (reason, message) = match (success, unchanged) {
        (true, true) => (
            "MigrationSucceeded",
            "The migration has succeeded and the stored versions have been updated",
        ),
        (true, false) => (
            "MigrationSucceeded",
            "The migration has succeeded but the stored versions have not been updated due to a generation mismatch",
        ),
        (false, _) => ("MigrationFailed", "The migration has failed"),
    };
    let stored = definition.spec.versions.iter().find(|v| v.storage);
    let stored = stored.filter(|_| success && unchanged);
    let stored = stored.map(|v| v.name.as_str());
    let words = ("False", reason, message.to_owned());
    definition_patch(definition, words, stored, now)
}

/// A version that is no number of the API server's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("resource version is not well formed: {0}")]
pub(super) struct Malformed(String);

/// Compares versions of one resource. Upstream: `CompareResourceVersion`.
pub(super) fn compare_versions(a: &str, b: &str) -> Result<Ordering, Malformed> {
    for version in [a, b] {
        let digits = version.bytes().all(|byte| byte.is_ascii_digit());
        if version.is_empty() || version.starts_with('0') || !digits {
            return Err(Malformed(version.to_owned()));
        }
    }
    Ok(a.len().cmp(&b.len()).then_with(|| a.cmp(b)))
}
