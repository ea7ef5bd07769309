//! The examples in other languages, each driven through the protocol as `virtual-kubelet` does it.
//!
//! They need their languages' tools: `cargo test -p virtual-kubelet --test examples -- --ignored`, with `PYTHON` for an interpreter that
//! has grpcio and grpcio-tools, and with `go` and `protoc` on the path.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use component_base::shutdown::Shutdown;
use k8s_openapi::api::core::v1::Pod;
use kubelet_provider::{
    ContainerState, LogOptions, PodEvents, PodId, Provider as _, ProviderError, ProviderEvent,
    ProviderEvents,
};
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use virtual_kubelet::remote::{Endpoint, Remote};

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn folder(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(of)
}

fn pod(name: &str, command: &[&str]) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": name, "namespace": "ns", "uid": format!("uid-of-{name}") },
        "spec": { "nodeName": "v-0", "containers": [{ "name": "c", "image": "i", "command": command }] },
    }))
    .unwrap()
}

async fn report(events: &mut ProviderEvents) -> (PodId, ContainerState) {
    let next = tokio::time::timeout(Duration::from_secs(20), events.next()).await;
    let ProviderEvent::Report(id, report) = next.expect("the provider tells of it") else {
        panic!("a report was expected");
    };
    (id, report.containers[0].state.clone())
}

/// What the issue asks of a provider: run, logs, delete; and what must fail.
async fn drive(socket: &Path, name: &str) {
    let endpoint = Endpoint::parse(&format!("unix://{}", socket.display())).unwrap();
    let remote = Remote::connect(endpoint, Shutdown::new()).await.unwrap();
    assert_eq!(remote.name(), name);
    let (sender, mut events) = PodEvents::channel();
    remote.start(sender).await.unwrap();
    let talks = pod("talks", &["sh", "-c", "echo hello; exec sleep 100"]);
    let id = PodId::of(&talks);
    remote.create_pod(Arc::new(talks)).await.unwrap();
    let (of, state) = report(&mut events).await;
    assert_eq!(of, id);
    assert!(matches!(state, ContainerState::Running { .. }), "{state:?}");
    assert_eq!(remote.pods().await.unwrap().len(), 1);
    let follow = LogOptions {
        follow: true,
        ..LogOptions::default()
    };
    let mut log = remote.logs(&id, "c", &follow).await.unwrap();
    let mut hello = [0; 6];
    log.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello\n");
    remote
        .delete_pod(&id, Duration::from_secs(5))
        .await
        .unwrap();
    loop {
        let next = tokio::time::timeout(Duration::from_secs(20), events.next()).await;
        match next.expect("the pod goes") {
            ProviderEvent::Gone(of) => break assert_eq!(of, id),
            ProviderEvent::Report(_, report) => assert!(report.has_ended(), "{report:?}"),
            other => panic!("{other:?}"),
        }
    }
    let again = remote.delete_pod(&id, Duration::ZERO).await;
    assert_eq!(again, Err(ProviderError::NotFound));
    let fails = pod("fails", &["sh", "-c", "exit 7"]);
    remote.create_pod(Arc::new(fails)).await.unwrap();
    loop {
        if let (_, ContainerState::Terminated(ended)) = report(&mut events).await {
            assert_eq!(ended.exit_code, 7);
            break;
        }
    }
    let refused = remote
        .create_pod(Arc::new(pod("none", &[])))
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, ProviderError::Invalid { field, .. } if field == "spec.containers[0].command"),
        "{refused:?}"
    );
    let exec = remote
        .exec(
            &id,
            "c",
            &["x".to_owned()],
            &kubelet_provider::AttachOptions::default(),
        )
        .await;
    assert_eq!(exec.err(), Some(ProviderError::Unsupported("exec")));
}

#[tokio::test]
#[ignore = "needs python3 with grpcio and grpcio-tools"]
async fn the_python_provider_runs_logs_and_deletes() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("p.sock");
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let file = folder("examples/python/provider.py");
    let lines = std::fs::read_to_string(&file).unwrap().lines().count();
    assert!(lines < 150, "the example has {lines} lines");
    let mut command = Command::new(python);
    let child = command
        .arg(file)
        .arg(&socket)
        .arg(folder("proto"))
        .spawn()
        .unwrap();
    let _running = Running(child);
    drive(&socket, "python").await;
}

#[tokio::test]
#[ignore = "needs go and protoc"]
async fn the_go_provider_runs_logs_and_deletes() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, program) = (
        directory.path().join("p.sock"),
        directory.path().join("provider"),
    );
    let go = |arguments: &[&str]| {
        let status = Command::new("go")
            .current_dir(folder("examples/go"))
            .args(arguments)
            .status();
        assert!(status.unwrap().success(), "go {arguments:?}");
    };
    go(&["generate"]);
    go(&["build", "-o", program.to_str().unwrap(), "."]);
    let _running = Running(Command::new(&program).arg(&socket).spawn().unwrap());
    drive(&socket, "go").await;
}
