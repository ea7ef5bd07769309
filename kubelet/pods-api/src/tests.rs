//! Over a real socket.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper_util::rt::TokioIo;
use serde_json::json;
use tonic::transport::{Channel, Endpoint};

use super::v1alpha1::pods_client::PodsClient;
use super::*;

#[derive(Default)]
struct Node {
    ready: AtomicBool,
    pods: Mutex<BTreeMap<String, Arc<Pod>>>,
    statuses: Mutex<BTreeMap<String, PodStatus>>,
    seen: Mutex<Vec<(Method, Option<Code>)>>,
    lost: Mutex<u64>,
}

impl PodSource for Node {
    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }
    fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.lock().unwrap().values().rev().cloned().collect()
    }
    fn pod(&self, uid: &str) -> Option<Arc<Pod>> {
        self.pods.lock().unwrap().get(uid).cloned()
    }
    fn status(&self, uid: &str) -> Option<PodStatus> {
        self.statuses.lock().unwrap().get(uid).cloned()
    }
    fn observe(&self, method: Method, failed: Option<Code>) {
        self.seen.lock().unwrap().push((method, failed));
    }
    fn dropped(&self, events: u64) {
        *self.lost.lock().unwrap() += events;
    }
}

fn pod(uid: &str) -> Pod {
    let ready = json!([{"type": "Ready", "status": "True"}]);
    let pod = json!({"metadata": {"name": uid, "namespace": "n", "uid": uid}, "spec": {"containers": [{"name": "c"}]},
                     "status": {"conditions": ready}});
    serde_json::from_value(pod).unwrap()
}

fn read(bytes: &[u8]) -> Pod {
    let message = kube_protobuf::message("", "v1", "Pod").unwrap();
    kube_protobuf::from_slice(message, bytes, true).unwrap()
}

async fn start(node: &Arc<Node>, changes: &Changes) -> (tempfile::TempDir, PodsClient<Channel>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pods-api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(serve(
        listener,
        node.clone(),
        changes.clone(),
        std::future::pending(),
    ));
    let connect = tower::service_fn(move |_: tonic::transport::Uri| {
        let path = path.clone();
        async move { std::io::Result::Ok(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    let channel = endpoint.connect_with_connector(connect).await.unwrap();
    (dir, PodsClient::new(channel))
}

#[tokio::test]
async fn pods_are_listed_got_and_watched() {
    let (node, changes) = (Arc::new(Node::default()), Changes::default());
    let (_dir, mut client) = start(&node, &changes).await;
    let early = client.list_pods(ListPodsRequest {}).await.unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition);
    node.ready.store(true, Ordering::Relaxed);
    for uid in ["b", "a"] {
        node.pods
            .lock()
            .unwrap()
            .insert(uid.to_owned(), Arc::new(pod(uid)));
    }
    let known = PodStatus {
        phase: Some("Running".to_owned()),
        ..PodStatus::default()
    };
    node.statuses
        .lock()
        .unwrap()
        .insert("b".to_owned(), known.clone());

    let listed = client
        .list_pods(ListPodsRequest {})
        .await
        .unwrap()
        .into_inner();
    let pods: Vec<_> = listed.pods.iter().map(|p| read(p)).collect();
    assert_eq!(
        pods.iter()
            .map(|p| p.metadata.uid.as_deref().unwrap())
            .collect::<Vec<_>>(),
        ["a", "b"]
    );
    // Not looked at yet: what the API server believes is not passed on.
    let status = pods[0].status.clone().unwrap();
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(status.conditions.unwrap()[0].status, "False");
    assert_eq!(
        pods[1].status.as_ref().unwrap().phase.as_deref(),
        Some("Running")
    );

    let get = |uid: &str| GetPodRequest {
        pod_uid: uid.to_owned(),
    };
    let got = client.get_pod(get("b")).await.unwrap().into_inner();
    assert_eq!(read(&got.pod).spec.unwrap().containers[0].name, "c");
    let missing = client.get_pod(get("x")).await.unwrap_err();
    assert_eq!(
        (missing.code(), missing.message()),
        (Code::NotFound, "pod with UID x not found")
    );

    let mut watch = client
        .watch_pods(WatchPodsRequest {})
        .await
        .unwrap()
        .into_inner();
    changes.updated(&pod("b"), &known, false);
    changes.removed("n", "a", "a");
    let mut told = Vec::new();
    while told.len() < 5 {
        let event = watch.message().await.unwrap().unwrap();
        let kind = event.r#type();
        told.push((kind, read(&event.pod).metadata.uid.unwrap_or_default()));
    }
    let expected = [
        (EventType::Added, "a"),
        (EventType::Added, "b"),
        (EventType::InitialSyncComplete, ""),
        (EventType::Modified, "b"),
        (EventType::Deleted, "a"),
    ];
    assert_eq!(told, expected.map(|(kind, uid)| (kind, uid.to_owned())));
    let seen = node.seen.lock().unwrap();
    let expected = [
        (Method::List, Some(Code::FailedPrecondition)),
        (Method::List, None),
        (Method::Get, None),
        (Method::Get, Some(Code::NotFound)),
        (Method::Watch, None),
    ];
    assert_eq!(*seen, expected);
}

#[tokio::test]
async fn too_many_questions_and_too_slow_a_reader_are_refused() {
    let (node, changes) = (Arc::new(Node::default()), Changes::default());
    node.ready.store(true, Ordering::Relaxed);
    let server = Server {
        source: node.clone(),
        changes: changes.clone(),
        bucket: Mutex::new((BURST, Instant::now())),
    };
    let refused = (0..200)
        .filter_map(|_| server.get("x").err())
        .filter(|e| e.code() == Code::ResourceExhausted);
    assert!(refused.count() > 100);

    let mut events = server.watch().unwrap();
    let first = events.next().await.unwrap().unwrap();
    assert_eq!(first.r#type(), EventType::InitialSyncComplete);
    for _ in 0..BACKLOG + 7 {
        changes.updated(&pod("a"), &PodStatus::default(), true);
    }
    let slow = events.next().await.unwrap().unwrap_err();
    assert_eq!(slow.code(), Code::ResourceExhausted);
    assert!(events.next().await.is_none());
    assert_eq!(*node.lost.lock().unwrap(), 7);
}
