//! The shell over an in-memory API: name conflicts and failures of a new ReplicaSet.

use component_base::clock::Clock;
use component_base::clock::FakeClock;
use controller_runtime::testing::FakeApi;
use controller_runtime::transport::Verb;
use serde_json::json;

use super::*;
use crate::testing::{Feed, settle};
use controller_runtime::Queues;

struct World {
    api: FakeApi,
    deployments: Feed<Deployment>,
    sets: Feed<ReplicaSet>,
    _pods: Feed<Pod>,
    controller: Arc<DeploymentController>,
    _watches: Watches,
}

impl World {
    async fn new() -> Self {
        let api = FakeApi::new();
        let clock = FakeClock::new("2026-01-01T00:00:00Z".parse().unwrap());
        let ((deployments, of_deployments), (sets, of_sets), (pods, of_pods)) =
            (Feed::new(), Feed::new(), Feed::new());
        let (controller, _, watches) = DeploymentController::over(
            &Queues::unread(Clock::real()),
            of_deployments,
            of_sets,
            of_pods,
            api.executor(),
            clock.clock(),
            &Shutdown::new(),
        );
        let world = Self {
            api,
            deployments,
            sets,
            _pods: pods,
            controller,
            _watches: watches,
        };
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "d", "generation": 1},
            "spec": {
                "replicas": 2, "selector": {"matchLabels": {"app": "a"}}, "progressDeadlineSeconds": 600,
                "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}},
            },
        }))
        .unwrap();
        world.api.insert(&deployment);
        world.sync().await;
        world
    }

    /// The cache catches up with Deployments.
    async fn sync(&self) {
        self.api
            .list::<Deployment>()
            .into_iter()
            .for_each(|d| self.deployments.apply(d));
        settle().await;
    }

    async fn reconcile(&self) -> Result<Option<Duration>, DeploymentError> {
        self.controller
            .reconcile(&ObjectKey::new("ns", "web"))
            .await
    }

    fn deployment(&self) -> Deployment {
        self.api.get("ns", "web").unwrap()
    }

    fn creates(&self) -> usize {
        self.api
            .writes()
            .iter()
            .filter(|r| r.verb == Verb::Create)
            .count()
    }
}

#[tokio::test]
async fn a_slow_cache_makes_no_second_replica_set() {
    let world = World::new().await;
    world.reconcile().await.unwrap();
    assert_eq!(world.api.list::<ReplicaSet>().len(), 1);
    world.sync().await;
    // The ReplicaSet's event is late: the server is asked, and has it.
    world.reconcile().await.unwrap();
    assert_eq!(
        (world.api.list::<ReplicaSet>().len(), world.creates()),
        (1, 1)
    );
    assert_eq!(world.deployment().status.unwrap().collision_count, None);
    world
        .api
        .list::<ReplicaSet>()
        .into_iter()
        .for_each(|rs| world.sets.apply(rs));
    world.sync().await;
    world.reconcile().await.unwrap();
    assert_eq!(world.creates(), 1);
}

/// The cache of ReplicaSets has none of them, or the first alone: no number is given twice.
#[tokio::test]
async fn revisions_follow_what_the_server_has() {
    let world = World::new().await;
    let roll = async |image: &str| {
        let mut deployment = world.deployment();
        deployment.spec.template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
        world.api.insert(&deployment);
        world.sync().await;
        world.reconcile().await.unwrap();
        let all = world.api.list::<ReplicaSet>();
        let number = |rs: &ReplicaSet| rs.metadata.annotations.as_ref()?.get(REVISION).cloned();
        let of = |rs: &&ReplicaSet| {
            let spec = rs.spec.template.as_ref().and_then(|t| t.spec.as_ref());
            spec.is_some_and(|s| s.containers[0].image.as_deref() == Some(image))
        };
        all.iter().find(of).and_then(number).unwrap()
    };
    assert_eq!(roll("v1").await, "1");
    assert_eq!(roll("v2").await, "2");
    let all = world.api.list::<ReplicaSet>();
    let first = all.into_iter().min_by_key(|rs| rs.metadata.uid.clone());
    world.sets.apply(first.unwrap());
    assert_eq!(roll("v3").await, "3");
    // A rollback, too.
    assert_eq!(roll("v1").await, "4");
    assert_eq!(world.api.list::<ReplicaSet>().len(), 3);
}

#[tokio::test]
async fn a_collision_gives_another_name() {
    let world = World::new().await;
    world.reconcile().await.unwrap();
    let mut foreign = world.api.list::<ReplicaSet>().remove(0);
    foreign.metadata.owner_references = None;
    foreign.metadata.labels = None;
    world.api.insert(&foreign);
    world.sync().await;
    assert!(world.reconcile().await.is_err());
    assert_eq!(world.deployment().status.unwrap().collision_count, Some(1));
    world.sync().await;
    world.reconcile().await.unwrap();
    assert_eq!(world.api.list::<ReplicaSet>().len(), 2);
}

#[tokio::test]
async fn a_failed_creation_is_told_in_the_status() {
    let world = World::new().await;
    world.api.fail(
        |r| r.verb == Verb::Create,
        ApiError::Forbidden("quota".into()),
    );
    assert!(world.reconcile().await.is_err());
    let conditions = world.deployment().status.unwrap().conditions.unwrap();
    let progressing = conditions
        .iter()
        .find(|c| c.type_.as_deref() == Some("Progressing"))
        .unwrap();
    assert_eq!(
        (
            progressing.status.as_deref().unwrap_or_default(),
            progressing.reason.as_deref()
        ),
        ("False", Some("ReplicaSetCreateError"))
    );
    world.api.heal();
    world.api.fail(
        |r| r.verb == Verb::Create,
        ApiError::NamespaceTerminating("going".into()),
    );
    world.sync().await;
    assert!(world.reconcile().await.is_ok());
}
