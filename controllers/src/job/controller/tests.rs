//! The shell: when a Job is looked at.

use component_base::clock::FakeClock;
use controller_runtime::testing::FakeApi;
use serde_json::{Value, json};

use super::*;
use crate::testing::{Feed, settle};

struct World {
    jobs: Feed<Job>,
    pods: Feed<Pod>,
    clock: FakeClock,
    queue: WorkQueue<JobKey>,
    _watches: Watches,
}

impl World {
    fn new() -> Self {
        let clock = FakeClock::new("2026-01-01T00:00:00Z".parse().unwrap());
        let ((jobs, of_jobs), (pods, of_pods)) = (Feed::new(), Feed::new());
        let executor = FakeApi::new().executor();
        let (_, queue, watches) =
            JobController::over(of_jobs, of_pods, executor, clock.clock(), &Shutdown::new());
        Self {
            jobs,
            pods,
            clock,
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

    /// Whether the Job is to be looked at now; then it was.
    async fn is_due(&self) -> bool {
        settle().await;
        if self.queue.is_empty() {
            return false;
        }
        let key = self.queue.get().await.unwrap();
        self.queue.done(&key);
        assert_eq!(key, JobKey::Job(ObjectKey::new("ns", "j")));
        true
    }
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
