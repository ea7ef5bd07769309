//! Transitions by story, and the task with a syncer that only writes down what it was asked.

use super::*;
use k8s_openapi::api::core::v1::{PodSpec, PodStatus as ApiPodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

fn pod(deleted: Option<i64>) -> Arc<Pod> {
    let mut pod = Pod {
        spec: Some(PodSpec {
            termination_grace_period_seconds: Some(30),
            ..Default::default()
        }),
        ..Default::default()
    };
    pod.metadata.uid = Some("u".into());
    if let Some(grace) = deleted {
        pod.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        pod.metadata.deletion_grace_period_seconds = Some(grace);
    }
    Arc::new(pod)
}

#[test]
fn a_deleted_pod_terminates_and_never_comes_back() {
    let mut s = PodSyncStatus::default();
    assert_eq!(transition(&mut s, &Update::Pod(pod(None))), Effect::Work);
    assert_eq!(
        transition(&mut s, &Update::Pod(pod(Some(30)))),
        Effect::CancelAndWork
    );
    assert_eq!(
        (s.state, s.grace_period_seconds),
        (WorkState::Terminating, Some(30))
    );
    assert_eq!(transition(&mut s, &Update::Pod(pod(None))), Effect::Nothing);
    assert_eq!(
        transition(&mut s, &Update::Pod(pod(Some(1)))),
        Effect::ShortenGrace
    );
    assert_eq!(s.grace_period_seconds, Some(1));
    assert_eq!(
        transition(&mut s, &Update::Pod(pod(Some(60)))),
        Effect::Nothing
    );
    s.state = WorkState::Terminated;
    s.finished = true;
    assert_eq!(transition(&mut s, &Update::Pod(pod(None))), Effect::Nothing);
    assert!(!s.restart_requested);
}

#[test]
fn a_static_pod_that_comes_back_begins_anew_when_its_former_self_is_through() {
    let mut fixed = (*pod(None)).clone();
    let source = (pod::CONFIG_SOURCE_ANNOTATION.to_owned(), "file".to_owned());
    fixed.metadata.annotations = Some([source].into());
    for state in [WorkState::Terminating, WorkState::Terminated] {
        let mut s = PodSyncStatus {
            state,
            ..PodSyncStatus::default()
        };
        assert!(!comes_back(&mut s, &pod(None)), "not a static one");
        assert!(comes_back(&mut s, &fixed));
        assert!(s.restart_requested);
    }
    let mut runs = PodSyncStatus::default();
    assert!(!comes_back(&mut runs, &fixed) && !runs.restart_requested);
}

#[test]
fn a_terminal_phase_terminates() {
    let mut s = PodSyncStatus::default();
    let mut ended = (*pod(None)).clone();
    ended.status = Some(ApiPodStatus {
        phase: Some("Failed".into()),
        ..Default::default()
    });
    assert_eq!(
        transition(&mut s, &Update::Pod(Arc::new(ended))),
        Effect::CancelAndWork
    );
}

#[test]
fn an_eviction_keeps_its_reason() {
    let mut s = PodSyncStatus::default();
    let forced = ForcedFailure {
        spares_success: false,
        reason: "Evicted".into(),
        message: "m".into(),
        disruption: None,
    };
    let kill = Update::Kill {
        pod: pod(None),
        grace_period_seconds: Some(0),
        forced: Some(forced.clone()),
    };
    assert_eq!(transition(&mut s, &kill), Effect::CancelAndWork);
    assert_eq!(s.forced, Some(forced));
    assert_eq!(s.grace_period_seconds, Some(1));
}

/// A node that runs out of memory does not wait half an hour for a pod that is on its way already.
#[test]
fn a_pod_that_is_ending_is_ended_at_once_if_the_node_is_in_need() {
    let mut s = PodSyncStatus::default();
    let deleted = pod(Some(1800));
    assert_eq!(
        transition(&mut s, &Update::Pod(deleted.clone())),
        Effect::CancelAndWork
    );
    let evicted = |grace| Update::Kill {
        pod: deleted.clone(),
        grace_period_seconds: Some(grace),
        forced: None,
    };
    assert_eq!(transition(&mut s, &evicted(0)), Effect::ShortenGrace);
    assert_eq!(s.grace_period_seconds, Some(1));
    assert_eq!(transition(&mut s, &evicted(60)), Effect::Nothing);
    // Of what comes at once the shortest counts, too.
    let mut s = PodSyncStatus::default();
    assert_eq!(transition(&mut s, &evicted(0)), Effect::CancelAndWork);
    assert_eq!(s.grace_period_seconds, Some(1));
}

struct Recorder {
    calls: Mutex<Vec<String>>,
    done: Notify,
}

#[async_trait]
impl PodSyncer for Recorder {
    async fn sync_pod(&self, _: &Arc<Pod>, cancel: &CancellationToken) -> SyncOutcome {
        self.calls.lock().unwrap().push("sync".into());
        cancel.cancelled().await;
        SyncOutcome::default()
    }
    async fn sync_terminating_pod(
        &self,
        _: &Arc<Pod>,
        _: Option<&ForcedFailure>,
        grace: i64,
    ) -> Result<(), SyncError> {
        self.calls
            .lock()
            .unwrap()
            .push(format!("terminating {grace}"));
        if grace > 1 {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
    async fn sync_terminating_runtime_pod(&self, _: &PodStatus) -> Result<(), SyncError> {
        Ok(())
    }
    async fn sync_terminated_pod(&self, _: &Arc<Pod>) -> Result<(), SyncError> {
        self.calls.lock().unwrap().push("terminated".into());
        Ok(())
    }
    fn pod_finished(&self, _: &str) {
        self.done.notify_one();
    }
}

#[tokio::test]
async fn the_task_goes_through_all_states_and_hurries_when_told() {
    let workers = Arc::new(PodWorkers::new(
        Duration::from_secs(60),
        CancellationToken::new(),
    ));
    let syncer = Arc::new(Recorder {
        calls: Mutex::default(),
        done: Notify::new(),
    });
    workers.set_syncer(syncer.clone());
    workers.update_pod("u", Update::Pod(pod(None)));
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(workers.pod_could_have_running_containers("u"));
    workers.update_pod("u", Update::Pod(pod(Some(30))));
    tokio::time::sleep(Duration::from_millis(20)).await;
    workers.update_pod("u", Update::Pod(pod(Some(1))));
    syncer.done.notified().await;
    assert_eq!(
        *syncer.calls.lock().unwrap(),
        ["sync", "terminating 30", "terminating 1", "terminated"]
    );
    assert!(workers.is_finished("u"));
    assert!(!workers.pod_could_have_running_containers("u"));
}
