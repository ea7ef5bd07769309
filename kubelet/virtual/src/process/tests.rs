use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use component_base::shutdown::Shutdown;
use kubelet_provider::{
    AttachOptions, ContainerState, LogOptions, NodeDescription, PodEvents, PodId, PodReport,
    Provider as _, ProviderError, ProviderEvent, ProviderEvents,
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{CONDITION, Processes, TAINT};
use crate::testing::pod;

struct Rig {
    provider: Processes,
    events: ProviderEvents,
    shutdown: Shutdown,
}

async fn rig(root: &Path) -> Rig {
    let shutdown = Shutdown::new();
    let provider = Processes::new(
        root.to_owned(),
        Some([127, 0, 0, 1].into()),
        shutdown.clone(),
    );
    let (sender, events) = PodEvents::channel();
    provider.start(sender).await.unwrap();
    Rig {
        provider,
        events,
        shutdown,
    }
}

fn shell(name: &str, script: &str) -> k8s_openapi::api::core::v1::Pod {
    let container = json!({ "name": "c", "command": ["sh", "-c", script], "env": [{ "name": "WORD", "value": "hello" }] });
    pod(name, json!({}), json!({ "containers": [container] }))
}

impl Rig {
    async fn create(&self, pod: &k8s_openapi::api::core::v1::Pod) -> PodId {
        self.provider
            .create_pod(Arc::new(pod.clone()))
            .await
            .unwrap();
        PodId::of(pod)
    }

    async fn next(&mut self) -> ProviderEvent {
        let next = tokio::time::timeout(Duration::from_secs(20), self.events.next()).await;
        next.expect("the provider tells of it")
    }

    async fn until(&mut self, holds: impl Fn(&ContainerState) -> bool) -> PodReport {
        loop {
            if let ProviderEvent::Report(_, report) = self.next().await
                && holds(&report.containers[0].state)
            {
                return report;
            }
        }
    }

    async fn until_gone(&mut self) {
        while !matches!(self.next().await, ProviderEvent::Gone(_)) {}
    }
}

fn is_running(state: &ContainerState) -> bool {
    matches!(state, ContainerState::Running { .. })
}

fn has_ended(state: &ContainerState) -> bool {
    matches!(state, ContainerState::Terminated(_))
}

async fn log(rig: &Rig, id: &PodId, options: LogOptions) -> String {
    let mut text = String::new();
    let mut log = rig.provider.logs(id, "c", &options).await.unwrap();
    log.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn a_process_runs_talks_and_ends_with_its_code() {
    let root = tempfile::tempdir().unwrap();
    let mut rig = rig(root.path()).await;
    let id = rig
        .create(&shell("a", "echo one; echo $WORD; exit 3"))
        .await;
    let report = rig.until(has_ended).await;
    let ContainerState::Terminated(ended) = &report.containers[0].state else {
        panic!("{report:?}");
    };
    assert_eq!(ended.exit_code, 3);
    assert_eq!(log(&rig, &id, LogOptions::default()).await, "one\nhello\n");
    let tail = LogOptions {
        tail_lines: Some(1),
        ..LogOptions::default()
    };
    assert_eq!(log(&rig, &id, tail).await, "hello\n");
    let times = LogOptions {
        timestamps: true,
        ..LogOptions::default()
    };
    let refused = rig.provider.logs(&id, "c", &times).await;
    assert_eq!(
        refused.err(),
        Some(ProviderError::Unsupported("times in logs"))
    );
    rig.provider.delete_pod(&id, Duration::ZERO).await.unwrap();
    rig.until_gone().await;
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    assert_eq!(
        rig.provider.delete_pod(&id, Duration::ZERO).await,
        Err(ProviderError::NotFound)
    );
}

#[tokio::test]
async fn a_followed_log_ends_with_its_process() {
    let root = tempfile::tempdir().unwrap();
    let mut rig = rig(root.path()).await;
    let id = rig
        .create(&shell(
            "a",
            "trap 'echo bye; exit 0' TERM; echo hi; while :; do sleep 0.05; done",
        ))
        .await;
    rig.until(is_running).await;
    let follow = LogOptions {
        follow: true,
        ..LogOptions::default()
    };
    let mut following = rig.provider.logs(&id, "c", &follow).await.unwrap();
    let mut hi = [0; 3];
    following.read_exact(&mut hi).await.unwrap();
    rig.provider
        .delete_pod(&id, Duration::from_secs(20))
        .await
        .unwrap();
    let report = rig.until(has_ended).await;
    assert!(
        matches!(&report.containers[0].state, ContainerState::Terminated(t) if t.exit_code == 0),
        "{report:?}"
    );
    let mut rest = String::new();
    let read =
        tokio::time::timeout(Duration::from_secs(20), following.read_to_string(&mut rest)).await;
    read.unwrap().unwrap();
    assert_eq!(rest, "bye\n");
}

#[tokio::test]
async fn who_does_not_listen_is_killed_when_the_grace_is_over() {
    let root = tempfile::tempdir().unwrap();
    let mut rig = rig(root.path()).await;
    let id = rig
        .create(&shell("a", "trap '' TERM; while :; do sleep 0.05; done"))
        .await;
    rig.until(is_running).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    rig.provider
        .delete_pod(&id, Duration::from_secs(600))
        .await
        .unwrap();
    rig.provider
        .delete_pod(&id, Duration::from_millis(300))
        .await
        .unwrap();
    let report = rig.until(has_ended).await;
    assert!(
        matches!(&report.containers[0].state, ContainerState::Terminated(t) if t.exit_code == 137),
        "{report:?}"
    );
    rig.until_gone().await;
}

#[tokio::test]
async fn a_new_provider_adopts_what_runs_and_judges_what_ended() {
    let root = tempfile::tempdir().unwrap();
    let mut first = rig(root.path()).await;
    let lives = first.create(&shell("lives", "exec sleep 1000")).await;
    first.until(is_running).await;
    let dies = first.create(&shell("dies", "exec sleep 1000")).await;
    first.until(is_running).await;
    let pid = |rig: &Rig, id: &PodId| rig.provider.shared.find(id).unwrap().runs()[0].pid.unwrap();
    let (lives_pid, (dies_pid, _)) = (pid(&first, &lives), pid(&first, &dies));
    first.shutdown.trigger();
    drop(first);
    let kill = |pid: i32| {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    };
    kill(dies_pid);
    // This process is its parent: nobody else takes it away.
    let gone = async {
        while super::child::start_time(dies_pid).is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone)
        .await
        .unwrap();
    let mut second = rig(root.path()).await;
    let pods = second.provider.pods().await.unwrap();
    assert_eq!(pods.len(), 2);
    assert_eq!(pid(&second, &lives), lives_pid);
    let (_, report) = pods.iter().find(|(id, _)| *id == dies).unwrap();
    let ContainerState::Terminated(ended) = &report.containers[0].state else {
        panic!("{report:?}");
    };
    assert_eq!(
        (ended.exit_code, ended.reason.as_str()),
        (137, "ContainerStatusUnknown")
    );
    second
        .provider
        .delete_pod(&lives, Duration::from_secs(5))
        .await
        .unwrap();
    second.until_gone().await;
    assert!(super::child::start_time(lives_pid.0).is_none());
}

#[tokio::test]
async fn exec_and_ports_are_the_machines_and_the_node_says_so() {
    let root = tempfile::tempdir().unwrap();
    let mut rig = rig(root.path()).await;
    let id = rig.create(&shell("a", "exec sleep 1000")).await;
    rig.until(is_running).await;
    let wanted = AttachOptions {
        stdin: true,
        stdout: true,
        stderr: false,
        tty: false,
    };
    let command = ["sh", "-c", "cat; echo $WORD; exit 4"].map(str::to_owned);
    let mut process = rig
        .provider
        .exec(&id, "c", &command, &wanted)
        .await
        .unwrap();
    let mut stdin = process.stdin.take().unwrap();
    stdin.write_all(b"in ").await.unwrap();
    drop(stdin);
    let mut text = String::new();
    process
        .stdout
        .as_mut()
        .unwrap()
        .read_to_string(&mut text)
        .await
        .unwrap();
    assert_eq!((text.as_str(), process.exit.await), ("in hello\n", Ok(4)));
    let tty = AttachOptions {
        tty: true,
        ..wanted
    };
    let refused = rig.provider.exec(&id, "c", &command, &tty).await;
    assert_eq!(refused.err(), Some(ProviderError::Unsupported("terminals")));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let _connection = rig.provider.port_forward(&id, port).await.unwrap();
    listener.accept().await.unwrap();
    let mut node = NodeDescription::default();
    rig.provider.configure_node(&mut node).await.unwrap();
    assert_eq!(node.taints[0].key, TAINT);
    assert_eq!(
        (
            node.conditions[0].type_.as_str(),
            node.conditions[0].status.as_str()
        ),
        (CONDITION, "False")
    );
    rig.provider.delete_pod(&id, Duration::ZERO).await.unwrap();
    rig.until_gone().await;
}

#[tokio::test]
async fn the_record_of_a_pod_is_its_newest() {
    let root = tempfile::tempdir().unwrap();
    let mut rig = rig(root.path()).await;
    let id = rig.create(&shell("a", "exec sleep 1000")).await;
    rig.until(is_running).await;
    let shared = rig.provider.shared.clone();
    let pod = shared.find(&id).unwrap();
    for _ in 0..20 {
        // As containers that start at the same time.
        let changes = (0..16).map(|_| async {
            pod.runs()[0].restarts += 1;
            shared.changed(&pod).await;
        });
        futures::future::join_all(changes).await;
        let records = super::record::read_all(root.path()).await.unwrap();
        assert_eq!(
            records[0].1.runs[0].restarts,
            pod.runs()[0].restarts,
            "a new process would go on with what is over"
        );
    }
    rig.provider.delete_pod(&id, Duration::ZERO).await.unwrap();
    rig.until_gone().await;
    rig.shutdown.trigger();
}
