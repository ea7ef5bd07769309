//! The shell over an in-memory API: what it expects, and what becomes of failures.

use component_base::clock::Clock;
use component_base::clock::FakeClock;
use controller_runtime::testing::FakeApi;
use controller_runtime::transport::Verb;
use serde_json::{Value, json};

use super::*;
use crate::testing::{Feed, settle};
use controller_runtime::Queues;

struct World {
    api: FakeApi,
    sets: Feed<ReplicaSet>,
    pods: Feed<Pod>,
    controller: Arc<ReplicaSetController<ReplicaSet>>,
    queue: WorkQueue,
    _watches: Watches,
}

impl World {
    fn new() -> Self {
        let api = FakeApi::new();
        let clock = FakeClock::new("2026-01-01T00:00:00Z".parse().unwrap());
        let ((sets, replica_sets), (pods, of_pods)) = (Feed::new(), Feed::new());
        let (controller, queue, watches) = ReplicaSetController::over(
            &Queues::unread(Clock::real()),
            replica_sets,
            of_pods,
            api.executor(),
            clock.clock(),
            &Shutdown::new(),
        );
        Self {
            api,
            sets,
            pods,
            controller,
            queue,
            _watches: watches,
        }
    }

    async fn put(&self, replicas: i32, more: Value) -> ReplicaSet {
        let mut value = json!({
            "metadata": {"name": "rs", "namespace": "ns", "uid": "rs", "generation": 1},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "a"}}, "template": {
                "metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c"}]},
            }},
        });
        value["metadata"]
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let rs: ReplicaSet = serde_json::from_value(value).unwrap();
        self.api.insert(&rs);
        self.sets.apply(rs.clone());
        settle().await;
        rs
    }

    /// The pods as the watch would bring them.
    async fn see_pods(&self) {
        for pod in self.api.list::<Pod>() {
            self.pods.apply(pod);
        }
        settle().await;
    }

    async fn reconcile(&self) -> Result<Option<Duration>, ApiError> {
        self.controller.reconcile(&ObjectKey::new("ns", "rs")).await
    }

    fn pod_writes(&self, verb: Verb) -> usize {
        self.api
            .writes()
            .iter()
            .filter(|r| r.verb == verb && r.resource.plural == "pods")
            .count()
    }

    fn condition(&self) -> Option<String> {
        let rs = self.api.get::<ReplicaSet>("ns", "rs").unwrap();
        rs.status?
            .conditions?
            .into_iter()
            .find(|c| c.type_.as_deref() == Some(reason::REPLICA_FAILURE))?
            .reason
    }
}

fn orphan(name: &str, app: &str) -> Pod {
    serde_json::from_value(
        json!({"metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": app}}}),
    )
    .unwrap()
}

#[tokio::test]
async fn does_not_act_again_before_it_has_seen_what_it_did() {
    let world = World::new();
    world.put(3, json!({})).await;
    world.reconcile().await.unwrap();
    assert_eq!(world.api.list::<Pod>().len(), 3);
    world.reconcile().await.unwrap();
    assert_eq!(
        world.api.list::<Pod>().len(),
        3,
        "the cache has none of them yet"
    );
    world.see_pods().await;
    assert!(!world.queue.is_empty());
    world.reconcile().await.unwrap();
    let status = world
        .api
        .get::<ReplicaSet>("ns", "rs")
        .unwrap()
        .status
        .unwrap();
    assert_eq!(
        (
            status.replicas,
            status.fully_labeled_replicas,
            status.observed_generation
        ),
        (3, Some(3), Some(1))
    );

    world.put(1, json!({})).await;
    world.reconcile().await.unwrap();
    assert_eq!(
        (
            world.api.list::<Pod>().len(),
            world.pod_writes(Verb::Delete)
        ),
        (1, 2)
    );
    world.reconcile().await.unwrap();
    assert_eq!(
        world.pod_writes(Verb::Delete),
        2,
        "their deletion is not seen yet"
    );
}

#[tokio::test]
async fn failures_are_told_and_tried_again() {
    let world = World::new();
    world.put(5, json!({})).await;
    world.api.fail(
        |r| r.verb == Verb::Create,
        ApiError::Forbidden("exceeded quota".into()),
    );
    assert_eq!(
        world.reconcile().await.unwrap_err().to_string(),
        "exceeded quota"
    );
    assert_eq!(
        world.pod_writes(Verb::Create),
        1,
        "a slow start ends with the first failure"
    );
    assert_eq!(world.condition().as_deref(), Some("FailedCreate"));
    world.api.heal();
    world.sets.apply(world.api.get("ns", "rs").unwrap());
    settle().await;
    world.reconcile().await.unwrap();
    assert_eq!(
        (world.api.list::<Pod>().len(), world.condition()),
        (5, None)
    );

    let world = World::new();
    world.put(2, json!({})).await;
    world.api.fail(
        |r| r.verb == Verb::Create,
        ApiError::NamespaceTerminating("going".into()),
    );
    assert!(
        world.reconcile().await.is_ok(),
        "nothing to be done about it"
    );
    assert_eq!(world.condition(), None);
}

#[tokio::test]
async fn adopts_and_releases_by_the_server_not_by_the_cache() {
    let world = World::new();
    world.put(1, json!({})).await;
    world.api.insert(&orphan("o", "a"));
    world.see_pods().await;
    world.reconcile().await.unwrap();
    let owner = |name: &str| {
        world
            .api
            .get::<Pod>("ns", name)
            .unwrap()
            .metadata
            .owner_references
            .unwrap_or_default()
    };
    assert_eq!(owner("o")[0].uid, "rs");
    assert_eq!(
        world.pod_writes(Verb::Create),
        0,
        "first the owners are settled"
    );
    world.see_pods().await;
    world.reconcile().await.unwrap();
    assert_eq!(world.pod_writes(Verb::Create), 0);

    // The server knows that it is going; the cache does not yet.
    let going = world
        .put(1, json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}))
        .await;
    world.sets.apply(ReplicaSet {
        metadata: ObjectMeta {
            deletion_timestamp: None,
            ..going.metadata.clone()
        },
        ..going
    });
    world.api.insert(&orphan("late", "a"));
    world.see_pods().await;
    let error = world.reconcile().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "ReplicaSet ns/rs is being deleted, it adopts nothing"
    );
    assert!(owner("late").is_empty());
}

#[test]
fn only_large_sets_gather_changes() {
    let of = |size| gathering_time(size).as_micros();
    assert_eq!([of(-1), of(0), of(100)], [0, 0, 0]);
    assert_eq!(
        [of(101), of(1_000), of(1_000_000)],
        [1_010, 10_000, 100_000]
    );
}
