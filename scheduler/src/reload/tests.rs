//! Another configuration file while the scheduler works.

use framework::testing::{PodBuilder, make_node, make_pod};
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::options::flag_set;
use crate::testing::Bed;

const HEAD: &str = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n";

fn write(path: &Path, text: &str) {
    // As editors and volumes do: the file is replaced, not written.
    let beside = path.with_extension("new");
    std::fs::write(&beside, format!("{HEAD}{text}")).expect("written");
    std::fs::rename(&beside, path).expect("renamed");
}

/// A scheduler that works by a file, of one node with a GPU and one without.
struct Case {
    bed: Bed,
    reload: Reload,
    told: tokio::sync::mpsc::UnboundedReceiver<RecordedEvent>,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Case {
    fn new(text: &str, pods: &[PodBuilder]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("scheduler.yaml");
        write(&path, text);
        let flags = flag_set()
            .parse([format!("--config={}", path.display())])
            .expect("known flags");
        let config = config_from_flags(&flags).expect("valid");
        let infos: Vec<Arc<PodInfo>> = pods.iter().cloned().map(PodBuilder::info).collect();
        let bed = Bed::with_config(config.clone(), &infos);
        let node = |name: &str| make_node(name).capacity(&[("cpu", "2"), ("pods", "10")]);
        bed.scheduler.cache.add_node(node("n0").build());
        for info in &infos {
            if bed.scheduler.responsible_for_pod(&info.pod) {
                bed.scheduler.queue.add(Arc::clone(info));
            }
        }
        let (recorder, told) = Recorder::fake();
        let reload = Reload::new(
            flags,
            Arc::clone(&bed.scheduler),
            Box::new(move || infos.iter().map(|info| Arc::clone(&info.pod)).collect()),
            Arc::new(ArcSwap::from_pointee(config)),
            Box::new(|_| {}),
            recorder,
        );
        Case {
            bed,
            reload,
            told,
            path,
            _directory: directory,
        }
    }

    fn rewrite(&self, text: &str) -> Result<Outcome, ReloadError> {
        write(&self.path, text);
        self.reload.look()
    }
}

fn pod(name: &str) -> PodBuilder {
    make_pod(name).uid(name).req(&[("cpu", "1")])
}

#[tokio::test]
async fn a_pod_that_a_plugin_refused_is_tried_without_it() {
    let refused = pod("a").node_selector(&[("disk", "ssd")]);
    let mut case = Case::new("", &[refused]);
    case.bed.settle().await;
    assert_eq!(case.bed.scheduler.queue.counts().unschedulable, 1);
    let without = "profiles: [{plugins: {filter: {disabled: [{name: NodeAffinity}]}}}]";
    assert_eq!(
        case.rewrite(without).expect("valid"),
        Outcome::Reloaded {
            not_before_restart: vec![]
        }
    );
    case.bed.settle().await;
    assert_eq!(*case.bed.writes.bound.lock().unwrap(), ["a -> n0"]);
    assert_eq!(case.rewrite(without).expect("valid"), Outcome::Unchanged);
}

#[tokio::test]
async fn a_file_that_cannot_be_used_changes_nothing() {
    let mut case = Case::new("podInitialBackoffSeconds: 3", &[pod("a")]);
    let before = case.reload.current.load_full();
    let profiles = case.bed.scheduler.profiles();
    for (text, want) in [
        ("podInitialBackoffSeconds: 0", "podInitialBackoffSeconds"),
        ("podInitialBackofSeconds: 1", "podInitialBackofSeconds"),
        (
            "profiles: [{plugins: {filter: {enabled: [{name: Nope}]}}}]",
            "\"Nope\" does not exist",
        ),
        (
            "profiles: [{pluginConfig: [{name: NodeResourcesFit, args: {nope: 1}}]}]",
            "initializing profile",
        ),
        (
            "extenders: [{urlPrefix: 'https://x', tlsConfig: {caFile: /nowhere}}]",
            "/nowhere",
        ),
    ] {
        let error = case.rewrite(text).expect_err(want);
        assert!(error.to_string().contains(want), "{error}");
        assert!(Arc::ptr_eq(&before, &case.reload.current.load_full()));
        assert!(Arc::ptr_eq(&profiles, &case.bed.scheduler.profiles()));
    }
    std::fs::remove_file(&case.path).expect("removed");
    let error = case.reload.look().expect_err("no file");
    assert!(error.to_string().contains("scheduler.yaml"), "{error}");
    case.bed.settle().await;
    assert_eq!(*case.bed.writes.bound.lock().unwrap(), ["a -> n0"]);
}

#[tokio::test]
async fn profiles_come_and_go_with_their_pods() {
    let pods = [
        pod("ours"),
        pod("new").scheduler_name("second"),
        pod("placed").scheduler_name("second").node("n0"),
    ];
    let mut case = Case::new("", &pods);
    assert_eq!(case.bed.scheduler.queue.counts().active, 1);
    case.rewrite("profiles: [{schedulerName: second}]")
        .expect("valid");
    assert!(case.bed.scheduler.profiles().contains_key("second"));
    let waiting = case.bed.scheduler.queue.pending_pods();
    let names: Vec<&str> = waiting.iter().map(|pod| pod.name()).collect();
    assert_eq!(names, ["new"], "the other's profile is gone");
    case.bed.settle().await;
    assert_eq!(*case.bed.writes.bound.lock().unwrap(), ["new -> n0"]);
}

#[tokio::test]
async fn a_pod_that_is_being_bound_keeps_its_profile() {
    let mut case = Case::new("", &[pod("a").label("permit", "wait")]);
    case.bed.settle().await;
    assert!(case.bed.scheduler.cache.is_assumed_pod("a"));
    case.rewrite("profiles: [{schedulerName: second, plugins: {bind: {disabled: [{name: '*'}], enabled: [{name: DefaultBinder}]}}}]")
        .expect("valid");
    let waiting = case.bed.scheduler.shared.waiting_pods().get("a");
    let waiting = waiting.expect("it waits still");
    framework::WaitingPod::allow(&*waiting, "Scripted");
    case.bed
        .until("a is bound", |bed| {
            !bed.writes.bound.lock().unwrap().is_empty()
        })
        .await;
    assert_eq!(*case.bed.writes.bound.lock().unwrap(), ["a -> n0"]);
}

#[tokio::test]
async fn what_only_a_start_reads_is_named() {
    let case = Case::new("", &[]);
    let outcome = case
        .rewrite("leaderElection: {leaderElect: false}\nclientConnection: {qps: 7}\ndelayCacheUntilActive: true\nparallelism: 3")
        .expect("valid");
    let not_before_restart = vec![
        "leaderElection",
        "clientConnection",
        "delayCacheUntilActive",
    ];
    assert_eq!(outcome, Outcome::Reloaded { not_before_restart });
}

#[tokio::test]
async fn changes_of_the_file_are_seen_and_told() {
    let Case {
        reload,
        mut told,
        path,
        bed,
        _directory,
    } = Case::new("", &[]);
    let shutdown = Shutdown::new();
    let changed = Reload::watch(&reload.flags)
        .expect("a watch")
        .expect("there is a file");
    // A change between the watch's begin and the first look is not missed.
    write(&path, "parallelism: 5");
    let running = tokio::spawn(reload.run(changed, shutdown.clone()));
    let mut next = async || {
        let event = tokio::time::timeout(Duration::from_secs(30), told.recv()).await;
        let event = event.expect("an event").expect("a recorder");
        assert_eq!(event.regarding.name.as_deref(), Some("kube-scheduler"));
        (event.reason, event.message)
    };
    assert_eq!(next().await.0, "ConfigurationReloaded");
    write(&path, "parallelism: 0");
    let (reason, message) = next().await;
    assert_eq!(reason, "ConfigurationRejected");
    assert!(
        message.starts_with("The configuration before it stays: parallelism: Invalid value: 0"),
        "{message}"
    );
    assert_eq!(bed.scheduler.shared.metrics().last_reload_successful(), 0);
    write(&path, "profiles: [{schedulerName: second}]");
    assert_eq!(next().await.0, "ConfigurationReloaded");
    assert_eq!(bed.scheduler.shared.metrics().last_reload_successful(), 1);
    assert!(bed.scheduler.profiles().contains_key("second"));
    shutdown.trigger();
    running.await.expect("it ends");
}
