//! The shell over an in-memory API, with a cache that is fed by hand.

use component_base::clock::FakeClock;
use component_base::events::{RecordedEvent, Recorder};
use controller_runtime::testing::FakeApi;
use controller_runtime::transport::Verb;
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::gathering::PERIOD;
use crate::testing::{Feed, settle};
use controller_runtime::Queues;

struct World {
    api: FakeApi,
    clock: FakeClock,
    events: UnboundedReceiver<RecordedEvent>,
    pods: Feed<Pod>,
    endpoints: Feed<Endpoints>,
    _services: Feed<Service>,
    controller: Arc<EndpointsController>,
    queue: WorkQueue,
    _watches: Watches,
}

fn key() -> ObjectKey {
    ObjectKey::new("ns", "s")
}

impl World {
    /// With the Service `s` of all pods with the label `app: a`.
    async fn new() -> Self {
        let api = FakeApi::new();
        let (recorder, events) = Recorder::fake();
        let clock = FakeClock::new("2026-01-01T00:00:00Z".parse().unwrap());
        let ((services, of_services), (pods, of_pods)) = (Feed::new(), Feed::new());
        let (endpoints, of_endpoints) = Feed::new();
        let (controller, queue, watches) = EndpointsController::over(
            &Queues::unread(clock.clock()),
            (of_services, of_pods, of_endpoints),
            api.executor_with(recorder),
            clock.clock(),
            &Shutdown::new(),
        );
        let service = json!({
            "metadata": { "name": "s", "namespace": "ns", "uid": "s" },
            "spec": { "clusterIP": "10.0.0.1", "selector": { "app": "a" }, "ports": [{ "port": 80 }] },
        });
        services.apply(serde_json::from_value(service).unwrap());
        settle().await;
        let world = Self {
            api,
            clock,
            events,
            pods,
            endpoints,
            _services: services,
            controller,
            queue,
            _watches: watches,
        };
        assert_eq!(world.take().await, Some(key()));
        world
    }

    /// The pod `a`, with this address if any, at this version.
    async fn put_pod(&self, ip: Option<&str>, version: u32) {
        let ips: Vec<_> = ip.iter().map(|ip| json!({ "ip": ip })).collect();
        let pod = json!({
            "metadata": {
                "name": "a", "namespace": "ns", "uid": "a", "labels": { "app": "a" }, "resourceVersion": version.to_string(),
            },
            "spec": { "containers": [] },
            "status": { "podIPs": ips, "conditions": [{ "type": "Ready", "status": "True" }] },
        });
        self.pods.apply(serde_json::from_value(pod).unwrap());
        settle().await;
    }

    /// The key that is due, if any.
    async fn take(&self) -> Option<ObjectKey> {
        settle().await;
        if self.queue.is_empty() {
            return None;
        }
        let key = self.queue.get().await?;
        self.queue.done(&key);
        Some(key)
    }

    async fn reconcile(&self) {
        self.controller.reconcile(&key()).await.unwrap();
    }

    /// Verbs of the writes so far.
    fn writes(&self) -> Vec<Verb> {
        self.api.writes().iter().map(|write| write.verb).collect()
    }
}

#[tokio::test]
async fn a_pass_before_its_own_write_comes_back_goes_by_what_it_wrote() {
    let mut world = World::new().await;
    world.reconcile().await;
    assert_eq!(world.writes(), [Verb::Create]);
    // The cache has nothing yet: neither created again nor written for nothing.
    world.reconcile().await;
    assert_eq!(world.writes(), [Verb::Create]);
    world.put_pod(Some("10.1.0.1"), 1).await;
    world.reconcile().await;
    world.put_pod(Some("10.1.0.2"), 2).await;
    world.reconcile().await;
    assert_eq!(world.writes(), [Verb::Create, Verb::Update, Verb::Update]);
    // The cache comes to the second of three.
    let mut late: Endpoints = world.api.get("ns", "s").unwrap();
    let last: u64 = late.metadata.resource_version.unwrap().parse().unwrap();
    late.metadata.resource_version = Some((last - 1).to_string());
    world.endpoints.apply(late.clone());
    world.put_pod(Some("10.1.0.3"), 3).await;
    world.reconcile().await;
    assert_eq!(world.writes().len(), 4);
    assert!(world.events.try_recv().is_err(), "nothing failed");

    // Deleted by somebody: they come back.
    let gone: Endpoints = world.api.get("ns", "s").unwrap();
    let options = DeleteOptions::default();
    let delete = Action::delete::<Endpoints>("ns", "s", options);
    world.controller.executor.execute(&delete).await.unwrap();
    world.endpoints.apply(gone.clone());
    world.endpoints.delete(gone);
    world.clock.advance(PERIOD);
    assert_eq!(world.take().await, Some(key()));
    world.reconcile().await;
    assert_eq!(world.writes().last(), Some(&Verb::Create));
}

#[tokio::test]
async fn who_else_wrote_is_told_of_and_the_cache_is_believed() {
    let mut world = World::new().await;
    world.reconcile().await;
    let mut theirs: Endpoints = world.api.get("ns", "s").unwrap();
    theirs.metadata.resource_version = None;
    world.controller.executor.update(&theirs).await.unwrap();
    world.put_pod(Some("10.1.0.1"), 1).await;
    let conflict = world.controller.reconcile(&key()).await.unwrap_err();
    assert!(conflict.is_conflict());
    let event = world.events.try_recv().unwrap();
    assert_eq!(event.reason, "FailedToUpdateEndpoint");
    let theirs: Endpoints = world.api.get("ns", "s").unwrap();
    world.endpoints.apply(theirs);
    settle().await;
    world.reconcile().await;
    let now: Endpoints = world.api.get("ns", "s").unwrap();
    assert!(now.subsets.is_some());
}

#[tokio::test]
async fn changes_after_a_write_are_written_together() {
    let world = World::new().await;
    world.put_pod(None, 1).await;
    assert_eq!(world.take().await, None, "no address, nobody's endpoint");
    world.put_pod(Some("10.1.0.1"), 2).await;
    assert_eq!(world.take().await, Some(key()), "the first at once");
    world.reconcile().await;
    world.put_pod(Some("10.1.0.2"), 3).await;
    world.put_pod(Some("10.1.0.3"), 4).await;
    assert_eq!(world.take().await, None);
    world.clock.advance(PERIOD);
    assert_eq!(world.take().await, Some(key()));
    world.reconcile().await;
    assert_eq!(world.writes(), [Verb::Create, Verb::Update]);
    assert_eq!(world.take().await, None);
}
