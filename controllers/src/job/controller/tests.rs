//! The shell: when a Job is looked at.

use component_base::clock::FakeClock;
use controller_runtime::testing::FakeApi;
use serde_json::{Value, json};

use super::*;
use crate::testing::{Feed, settle};
use controller_runtime::Queues;

struct World {
    api: FakeApi,
    jobs: Feed<Job>,
    pods: Feed<Pod>,
    clock: FakeClock,
    controller: Arc<JobController>,
    queue: WorkQueue<JobKey>,
    _watches: Watches,
}

impl World {
    fn new() -> Self {
        let clock = FakeClock::new("2026-01-01T00:00:00Z".parse().unwrap());
        let ((jobs, of_jobs), (pods, of_pods)) = (Feed::new(), Feed::new());
        let api = FakeApi::new();
        let executor = api.executor();
        let (controller, queue, watches) = JobController::over(
            &Queues::unread(clock.clock()),
            of_jobs,
            of_pods,
            executor,
            clock.clock(),
            &Shutdown::new(),
        );
        Self {
            api,
            jobs,
            pods,
            clock,
            controller,
            queue,
            _watches: watches,
        }
    }

    fn put(&self, generation: i32, version: i32, status: Value) {
        let job = json!({
            "metadata": {
                "name": "j", "namespace": "ns", "uid": "j", "generation": generation, "resourceVersion": version.to_string(),
            },
            "spec": { "selector": { "matchLabels": { "job": "j" } }, "template": {} },
            "status": status,
        });
        self.jobs.apply(serde_json::from_value(job).unwrap());
    }

    /// The server has it like this, and so does the cache.
    async fn put_pod(&self, pod: &Pod) {
        self.api.insert(pod);
        self.pods.apply(pod.clone());
        settle().await;
    }

    /// The Job as the watch would bring it.
    async fn see_job(&self) {
        self.jobs.apply(self.job());
        settle().await;
    }

    fn job(&self) -> Job {
        self.api.get("ns", "j").unwrap()
    }

    async fn reconcile(&self) -> Option<Duration> {
        self.controller.reconcile(&key()).await.unwrap()
    }

    /// Whether the Job is to be looked at now; then it was.
    async fn is_due(&self) -> bool {
        settle().await;
        if self.queue.is_empty() {
            return false;
        }
        let key = self.queue.get().await.unwrap();
        self.queue.done(&key);
        assert_eq!(key, self::key());
        true
    }
}

fn key() -> JobKey {
    JobKey::Job(ObjectKey::new("ns", "j"))
}

#[tokio::test]
async fn what_is_wanted_is_looked_at_at_once_and_what_happened_together() {
    let world = World::new();
    world.put(1, 1, json!({}));
    assert!(world.is_due().await);
    // Its own write, and a pod of it.
    world.put(1, 2, json!({ "active": 1 }));
    let owner = json!({ "apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "j", "controller": true });
    let meta = json!({ "name": "p", "namespace": "ns", "uid": "p", "ownerReferences": [owner] });
    let pod = serde_json::from_value(json!({ "metadata": meta })).unwrap();
    world.pods.apply(pod);
    assert!(!world.is_due().await);
    world.clock.advance(BATCH_PERIOD);
    assert!(world.is_due().await);
    assert!(!world.is_due().await);
    // Another specification does not wait.
    world.put(2, 3, json!({ "active": 1 }));
    assert!(world.is_due().await);
    // A finished Job is forgotten at once.
    let complete = json!({ "type": "Complete", "status": "True", "lastProbeTime": null, "lastTransitionTime": null });
    world.put(2, 4, json!({ "conditions": [complete] }));
    assert!(world.is_due().await);
}

#[tokio::test]
async fn however_often_it_failed_it_is_tried_again_within_a_minute() {
    let world = World::new();
    let key = key();
    for failures in 1..20 {
        world.queue.add_rate_limited(key.clone());
        settle().await;
        assert_eq!(world.queue.len(), 0, "{failures}: not at once");
        world.clock.advance(Duration::from_secs(60));
        settle().await;
        assert_eq!(world.queue.len(), 1, "{failures}");
        assert_eq!(world.queue.get().await.as_ref(), Some(&key));
        world.queue.done(&key);
    }
}

#[tokio::test]
async fn a_job_older_than_what_was_written_is_not_acted_on() {
    let world = World::new();
    let job: Job = serde_json::from_value(json!({
        "metadata": {"name": "j", "namespace": "ns", "uid": "j", "resourceVersion": "1"},
        "spec": {
            "parallelism": 1, "completions": 1, "backoffLimit": 6, "selector": {"matchLabels": {"j": "j"}},
            "template": {
                "metadata": {"labels": {"j": "j"}},
                "spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]},
            },
        },
    }))
    .unwrap();
    world.api.insert(&job);
    world.see_job().await;
    world.reconcile().await;
    world.see_job().await;
    let mut pod = world.api.list::<Pod>().remove(0);
    pod.status = serde_json::from_value(json!({"phase": "Succeeded"})).unwrap();
    world.put_pod(&pod).await;
    world.reconcile().await;
    assert!(is_finished(&world.job()));

    // The pod is counted, and the cache has it so; the Job it has as it was before.
    pod.metadata.finalizers = None;
    world.put_pod(&pod).await;
    assert_eq!(world.reconcile().await, Some(STALE_PAUSE));
    assert_eq!(
        world.api.list::<Pod>().len(),
        1,
        "none is made in its place"
    );
    world.see_job().await;
    assert_eq!(world.reconcile().await, None);
}
