use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use component_base::clock::FakeClock;
use controller_runtime::testing::FakeApi;
use controller_runtime::transport::{Request, Verb};
use controller_runtime::{ApiError, Controller as _, ObjectKey, PatchKind, Resource};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::storagemigration::v1::StorageVersionMigration;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::ApiResource;
use serde_json::{Value, from_value, json};

use super::migrator::Migrator;
use super::objects::{Objects, Stored};
use super::runner::{Key, Runner};
use super::sync::{compare_versions, turn};
use crate::discovery::{ApiResources, Discovered, Discovery};
use crate::testing::{Feed, settle};

fn start() -> Timestamp {
    "2026-01-01T00:10:00Z".parse().unwrap()
}

/// A migration of `resource` in the core group; conditions are `TYPE=STATUS`.
fn migration(
    name: &str,
    resource: &str,
    version: &str,
    conditions: &[&str],
) -> StorageVersionMigration {
    grouped(name, "", resource, version, conditions)
}

fn grouped(
    name: &str,
    group: &str,
    resource: &str,
    version: &str,
    conditions: &[&str],
) -> StorageVersionMigration {
    let conditions: Vec<_> = conditions
        .iter()
        .map(|text| {
            let (type_, status) = text.split_once('=').unwrap();
            json!({ "type": type_, "status": status, "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" })
        })
        .collect();
    from_value(json!({
        "metadata": { "name": name, "uid": format!("uid-{name}"), "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 1 },
        "spec": { "resource": { "group": group, "resource": resource } },
        "status": { "resourceVersion": version, "conditions": conditions },
    }))
    .unwrap()
}

/// `TYPE=STATUS REASON: MESSAGE` of each condition.
fn conditions(migration: &StorageVersionMigration) -> Vec<String> {
    let status = migration.status.as_ref().unwrap();
    let all = status.conditions.iter().flatten();
    all.map(|c| format!("{}={} {}: {}", c.type_, c.status, c.reason, c.message))
        .collect()
}

/// What the API server has: ConfigMaps, Events without updates, and their objects.
struct Server {
    latest: Mutex<String>,
    objects: Vec<Stored>,
}

#[async_trait]
impl Discovery for Server {
    async fn resources(&self) -> Result<ApiResources, ApiError> {
        let discovered = |resource: Resource, verbs: &[&str], preferred| Discovered {
            resource,
            namespaced: true,
            verbs: verbs.iter().map(ToString::to_string).collect(),
            preferred,
            subresources: Vec::new(),
        };
        let all = ["get", "list", "create", "update", "patch", "delete"];
        let old = Resource {
            version: "v1beta1".into(),
            ..Resource::of::<ConfigMap>()
        };
        let resources = vec![
            discovered(old, &["list"], false),
            discovered(Resource::of::<ConfigMap>(), &all, true),
            discovered(
                Resource::of::<k8s_openapi::api::core::v1::Event>(),
                &["list", "create"],
                true,
            ),
        ];
        Ok(ApiResources {
            resources,
            failed: Vec::new(),
        })
    }
}

#[async_trait]
impl Objects for Server {
    async fn latest(&self, resource: &ApiResource, namespaced: bool) -> Result<String, ApiError> {
        assert_eq!(
            (&*resource.plural, &*resource.version, namespaced),
            ("configmaps", "v1", true)
        );
        Ok(self.latest.lock().unwrap().clone())
    }

    async fn all(&self, _: &ApiResource) -> Result<Vec<Stored>, ApiError> {
        Ok(self.objects.clone())
    }
}

struct Cluster {
    api: FakeApi,
    clock: FakeClock,
    feed: Feed<StorageVersionMigration>,
    migrator: Migrator,
    runner: Runner,
}

/// A cluster with these ConfigMaps, by name and version.
async fn cluster(objects: &[(&str, &str)]) -> Cluster {
    let api = FakeApi::new();
    let clock = FakeClock::new(start());
    let (feed, informer) = Feed::new();
    for (name, version) in objects {
        let object =
            json!({ "metadata": { "name": name, "namespace": "ns", "resourceVersion": version } });
        api.insert(&from_value::<ConfigMap>(object).unwrap());
    }
    let objects = objects.iter().map(|(name, version)| Stored {
        key: ObjectKey::new("ns", *name),
        resource_version: (*version).to_owned(),
    });
    let server = Arc::new(Server {
        latest: Mutex::new("100".into()),
        objects: objects.collect(),
    });
    let migrator = Migrator {
        migrations: informer.clone(),
        discovery: server.clone(),
        objects: server,
        executor: api.executor(),
        clock: clock.clock(),
    };
    let runner = Runner {
        migrations: informer,
        executor: api.executor(),
        clock: clock.clock(),
    };
    Cluster {
        api,
        clock,
        feed,
        migrator,
        runner,
    }
}

impl Cluster {
    async fn add(&self, migration: &StorageVersionMigration) {
        self.api.insert(migration);
        self.feed.apply(migration.clone());
        settle().await;
    }

    /// One round of the migrator; what it said, and the migration then.
    async fn migrate(&self, name: &str) -> (Result<Option<u64>, String>, StorageVersionMigration) {
        let result = self.migrator.reconcile(&ObjectKey::new("", name)).await;
        let result = result
            .map(|again| again.map(|d| d.as_secs()))
            .map_err(|e| e.to_string());
        (result, self.api.get("", name).unwrap())
    }

    async fn take_turns(&self, group: &str, resource: &str) {
        let key = Key {
            group: group.into(),
            resource: resource.into(),
        };
        self.runner.reconcile(&key).await.unwrap();
    }

    /// Names of the ConfigMaps that were patched.
    fn patched(&self) -> Vec<String> {
        let patches = self
            .api
            .writes()
            .into_iter()
            .filter(|r| r.resource == Resource::of::<ConfigMap>());
        patches
            .map(|request| {
                assert_eq!(request.verb, Verb::Patch(PatchKind::Merge));
                assert_eq!(request.query, [("fieldManager", super::NAME.to_owned())]);
                let version = request.body["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
                let expect = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "resourceVersion": version } });
                assert_eq!(request.body, expect);
                request.name
            })
            .collect()
    }
}

const RUNS: &[&str] = &["Running=True"];

#[tokio::test]
async fn a_migration_runs_from_beginning_to_end() {
    let cluster = cluster(&[("a", "7"), ("b", "100"), ("newer", "101")]).await;
    let mut waiting = migration("m", "configmaps", "", &[]);
    cluster.add(&waiting).await;
    // Not before it is its turn.
    assert_eq!(cluster.migrate("m").await.0, Ok(None));
    cluster.take_turns("", "configmaps").await;
    for (version, expect) in [
        (
            "100",
            "Running=True MigrationRunning: The migration is running",
        ),
        (
            "100",
            "Running=True MigrationRunning: The migration is running, 3 objects verified migrated|Succeeded=True StorageVersionMigrationSucceeded: Migration completed",
        ),
    ] {
        waiting = cluster.api.get("", "m").unwrap();
        cluster.feed.apply(waiting);
        settle().await;
        let (result, now) = cluster.migrate("m").await;
        assert_eq!(result, Ok(None));
        assert_eq!(conditions(&now).join("|"), expect);
        assert_eq!(
            now.status.unwrap().resource_version.as_deref(),
            Some(version)
        );
    }
    // What is newer than the migration was stored as of today.
    assert_eq!(cluster.patched(), ["a", "b"]);
    cluster.feed.apply(cluster.api.get("", "m").unwrap());
    settle().await;
    cluster.take_turns("", "configmaps").await;
    let done: StorageVersionMigration = cluster.api.get("", "m").unwrap();
    assert_eq!(
        conditions(&done)[0],
        "Running=False MigrationCompleted: Migration completed"
    );
    // Nothing is left to do.
    cluster.feed.apply(done);
    settle().await;
    let writes = cluster.api.writes().len();
    cluster.take_turns("", "configmaps").await;
    assert_eq!(cluster.migrate("m").await.0, Ok(None));
    assert_eq!(cluster.api.writes().len(), writes);
}

#[tokio::test]
async fn errors_of_objects() {
    let check = async |error: ApiError, result: Result<Option<u64>, &str>, expect: &[&str]| {
        let cluster = cluster(&[("a", "1"), ("b", "2"), ("c", "3")]).await;
        cluster
            .add(&migration("m", "configmaps", "100", RUNS))
            .await;
        cluster.api.fail(|r: &Request| r.name == "b", error.clone());
        let (outcome, now) = cluster.migrate("m").await;
        assert_eq!(outcome, result.map_err(ToOwned::to_owned), "{error:?}");
        assert_eq!(conditions(&now), expect, "{error:?}");
    };
    let done: &[&str] = &[
        "Running=True MigrationRunning: The migration is running, 3 objects verified migrated",
        "Succeeded=True StorageVersionMigrationSucceeded: Migration completed",
    ];
    check(ApiError::Conflict("c".into()), Ok(None), done).await;
    check(ApiError::NotFound("n".into()), Ok(None), done).await;
    let held_up = "Running=True MigrationRunning: The migration is running, 2/3 objects not yet migrated; transient error: busy";
    let busy = |seconds| ApiError::TooManyRequests {
        message: "busy".into(),
        retry_after_seconds: seconds,
    };
    check(busy(0), Err("busy"), &[held_up]).await;
    check(busy(7), Ok(Some(7)), &[held_up]).await;
    check(
        ApiError::Unreachable("busy".into()),
        Err("busy"),
        &[held_up],
    )
    .await;
    let server = |code| ApiError::Server {
        code,
        reason: String::new(),
        message: "busy".into(),
    };
    check(server(500), Err("busy"), &[held_up]).await;
    check(server(503), Err("busy"), &[held_up]).await;
    let failed: &[&str] = &[
        "Running=True MigrationRunning: The migration is running, 2/3 objects not yet migrated",
        "Failed=True StorageVersionMigrationFailed: 2/3 not yet migrated. migration encountered unhandled error: busy",
    ];
    check(ApiError::Forbidden("busy".into()), Ok(None), failed).await;
    check(ApiError::Invalid("busy".into()), Ok(None), failed).await;
    check(server(418), Ok(None), failed).await;
}

#[tokio::test]
async fn resources_that_cannot_be_migrated() {
    let fails = async |cluster: &Cluster, migration: &StorageVersionMigration, expect: &str| {
        cluster.add(migration).await;
        let (result, now) = cluster.migrate("m").await;
        assert_eq!(result, Ok(None));
        let expect = format!("Failed=True StorageVersionMigrationFailed: {expect}");
        assert_eq!(conditions(&now)[1], expect);
    };
    let empty = cluster(&[]).await;
    fails(&empty, &migration("m", "events", "", RUNS), "resource \"v1, Resource=events\" does not support discovery operations: [update patch list]").await;
    let empty = cluster(&[]).await;
    fails(
        &empty,
        &migration("m", "widgets", "", RUNS),
        "resource does not exist in discovery",
    )
    .await;
    let empty = cluster(&[]).await;
    let gone = "migration encountered unhandled error: unable to obtain GVR from discovery";
    fails(&empty, &migration("m", "widgets", "5", RUNS), gone).await;
    // It may be served in a moment.
    let mut young = migration("m", "widgets", "", RUNS);
    young.metadata.creation_timestamp = from_value(json!("2026-01-01T00:09:30Z")).unwrap();
    let empty = cluster(&[]).await;
    empty.add(&young).await;
    assert_eq!(empty.migrate("m").await.0, Ok(Some(5)));
    assert_eq!(conditions(&young).len(), 1);
    empty.clock.advance(std::time::Duration::from_secs(31));
    fails(&empty, &young, "resource does not exist in discovery").await;
    // Versions that are no numbers cannot be compared.
    let strange = cluster(&[("a", "x")]).await;
    fails(
        &strange,
        &migration("m", "configmaps", "100", RUNS),
        "migration encountered unhandled error: resource version is not well formed: x",
    )
    .await;
    let mut strange = cluster(&[]).await;
    let server = Server {
        latest: Mutex::new("y".into()),
        objects: Vec::new(),
    };
    strange.migrator.objects = Arc::new(server);
    fails(&strange, &migration("m", "configmaps", "", RUNS), "latest resourceVersion for v1, Resource=configmaps is not valid: resource version is not well formed: y").await;
}

#[test]
fn one_migration_of_a_resource_runs() {
    let named = |name: &str, created: &str, conditions: &[&str]| {
        let mut migration = migration(name, "configmaps", "", conditions);
        migration.metadata.creation_timestamp = from_value(json!(created)).unwrap();
        migration
    };
    let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z");
    let check = |all: &[StorageVersionMigration], ended: &[&str], next: Option<&str>| {
        let turn = turn(all);
        let name = |m: &StorageVersionMigration| m.metadata.name.clone().unwrap();
        let found: Vec<_> = turn.ended.iter().map(|m| name(m)).collect();
        assert_eq!(
            (found, turn.next.map(name).as_deref()),
            (ended.iter().map(ToString::to_string).collect(), next)
        );
    };
    let (old, new, same) = (
        named("old", early, &[]),
        named("new", late, &[]),
        named("same", early, &[]),
    );
    check(&[], &[], None);
    check(&[new.clone(), same, old.clone()], &[], Some("old"));
    let running = named("running", late, RUNS);
    check(&[old.clone(), running.clone()], &[], None);
    check(&[running, old.clone()], &[], None);
    let succeeded = named("done", early, &["Running=True", "Succeeded=True"]);
    let failed = named("failed", early, &["Running=True", "Failed=True"]);
    let past = named("past", early, &["Running=False", "Succeeded=True"]);
    check(
        &[succeeded, failed, past, old, new],
        &["done", "failed"],
        Some("old"),
    );
}

fn definition(generation: i64, observed: Option<i64>) -> CustomResourceDefinition {
    let condition = observed.map(|observed| json!({ "type": "StorageMigrating", "status": "True", "observedGeneration": observed }));
    let conditions: Vec<Value> = condition.into_iter().collect();
    from_value(json!({
        "metadata": { "name": "widgets.example.com", "generation": generation, "resourceVersion": "5" },
        "spec": { "group": "example.com", "scope": "Namespaced", "names": { "kind": "Widget", "plural": "widgets" },
            "versions": [{ "name": "v1", "served": true, "storage": false }, { "name": "v2", "served": true, "storage": true }] },
        "status": { "conditions": conditions, "storedVersions": ["v1", "v2"], "acceptedNames": { "kind": "Widget", "plural": "widgets" } },
    }))
    .unwrap()
}

#[tokio::test]
async fn definitions_are_told() {
    let check = async |conditions: &[&str],
                       definition: CustomResourceDefinition,
                       expect: &str,
                       stored: &[&str]| {
        let cluster = cluster(&[]).await;
        cluster
            .add(&grouped("m", "example.com", "widgets", "", conditions))
            .await;
        cluster.api.insert(&definition);
        cluster.take_turns("example.com", "widgets").await;
        let now: CustomResourceDefinition = cluster.api.get("", "widgets.example.com").unwrap();
        let status = now.status.unwrap();
        let condition = &status.conditions.unwrap()[0];
        let words = [
            &condition.status,
            condition.reason.as_ref().unwrap(),
            condition.message.as_ref().unwrap(),
        ];
        assert_eq!(format!("{} {}: {}", words[0], words[1], words[2]), expect);
        assert_eq!(
            condition.observed_generation,
            definition.metadata.generation
        );
        assert_eq!(status.stored_versions.unwrap(), stored);
        let patch = &cluster.api.writes()[0];
        assert_eq!(
            patch.verb,
            Verb::Patch(PatchKind::Apply("migration-runner-controller"))
        );
        assert_eq!(
            (
                &*patch.subresource,
                &patch.body["metadata"]["resourceVersion"]
            ),
            ("status", &json!("5"))
        );
    };
    let both = ["v1", "v2"];
    check(
        &[],
        definition(1, None),
        "True MigrationRunning: Migration m is running",
        &both,
    )
    .await;
    let done = ["Running=True", "Succeeded=True"];
    let updated = "False MigrationSucceeded: The migration has succeeded and the stored versions have been updated";
    check(&done, definition(3, Some(3)), updated, &["v2"]).await;
    let mismatch = "False MigrationSucceeded: The migration has succeeded but the stored versions have not been updated due to a generation mismatch";
    check(&done, definition(4, Some(3)), mismatch, &both).await;
    check(&done, definition(4, None), mismatch, &both).await;
    // Objects may still be stored in the old version.
    let failed = ["Running=True", "Failed=True"];
    check(
        &failed,
        definition(3, Some(3)),
        "False MigrationFailed: The migration has failed",
        &both,
    )
    .await;
}

#[tokio::test]
async fn a_definition_that_others_write_is_read_again() {
    let cluster = cluster(&[]).await;
    cluster
        .add(&grouped("m", "example.com", "widgets", "", &[]))
        .await;
    cluster.api.insert(&definition(1, None));
    let is_definition =
        |r: &Request| r.resource.plural == "customresourcedefinitions" && r.verb != Verb::Get;
    cluster
        .api
        .fail(is_definition, ApiError::Conflict("c".into()));
    let key = Key {
        group: "example.com".into(),
        resource: "widgets".into(),
    };
    assert!(
        cluster
            .runner
            .reconcile(&key)
            .await
            .unwrap_err()
            .is_conflict()
    );
    assert_eq!(cluster.api.writes().len(), 5);
    // It does not run before its definition says so.
    assert_eq!(conditions(&cluster.api.get("", "m").unwrap()), [""; 0]);
}

#[test]
fn versions() {
    use std::cmp::Ordering::{Equal, Greater, Less};
    for (a, b, order) in [
        ("9", "10", Less),
        ("10", "10", Equal),
        ("11", "10", Greater),
        ("99999999999999999999999", "100000000000000000000000", Less),
    ] {
        assert_eq!(compare_versions(a, b), Ok(order), "{a} {b}");
    }
    for bad in ["", "0", "01", "x", "-1", "1.0"] {
        assert!(
            compare_versions(bad, "1").is_err() && compare_versions("1", bad).is_err(),
            "{bad:?}"
        );
    }
}
