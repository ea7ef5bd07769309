use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use component_base::shutdown::Shutdown;
use futures::Stream;
use kubelet_provider::{
    AttachOptions, ContainerState, LogOptions, PodEvents, PodFeature, PodId, Provider as _,
    ProviderError, ProviderEvent,
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::v1::provider_server::{Provider, ProviderServer};
use super::{Endpoint, Remote, v1};
use crate::testing::pod;

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A provider in the same process, behind a real socket.
#[derive(Clone)]
struct Server {
    pods: Arc<Mutex<HashMap<String, v1::PodStatus>>>,
    events: broadcast::Sender<v1::PodEvent>,
    /// Ends the streams of events there are.
    away: Arc<Mutex<CancellationToken>>,
    /// How often it was asked who it is.
    asked: Arc<AtomicUsize>,
}

impl Server {
    fn new() -> Self {
        Self {
            pods: Arc::default(),
            events: broadcast::Sender::new(16),
            away: Arc::default(),
            asked: Arc::default(),
        }
    }

    fn serve(&self, path: &std::path::Path) {
        let listener = tokio::net::UnixListener::bind(path).unwrap();
        let service = ProviderServer::new(self.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    }
}

#[tonic::async_trait]
impl Provider for Server {
    type WatchPodsStream = Events<v1::PodEvent>;
    type LogsStream = Events<v1::LogsResponse>;
    type ExecStream = Events<v1::ProcessOutput>;
    type AttachStream = Events<v1::ProcessOutput>;
    type PortForwardStream = Events<v1::PortForwardOutput>;

    async fn info(
        &self,
        _: Request<v1::InfoRequest>,
    ) -> Result<Response<v1::InfoResponse>, Status> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Ok(Response::new(v1::InfoResponse {
            name: "test".into(),
            version: "7".into(),
            features: vec!["Probes".into()],
            labels: [("zone".to_owned(), "z".to_owned())].into(),
            calls: ["Logs", "Exec", "PortForward"].map(str::to_owned).into(),
        }))
    }
    async fn list_pods(
        &self,
        _: Request<v1::ListPodsRequest>,
    ) -> Result<Response<v1::ListPodsResponse>, Status> {
        let pods = self.pods.lock().unwrap().values().cloned().collect();
        Ok(Response::new(v1::ListPodsResponse { pods }))
    }
    async fn create_pod(
        &self,
        request: Request<v1::CreatePodRequest>,
    ) -> Result<Response<v1::CreatePodResponse>, Status> {
        let request = request.into_inner();
        let pod: serde_json::Value = serde_json::from_slice(&request.pod).unwrap();
        if pod["spec"]["containers"][0]["image"] == "bad" {
            return Err(Status::invalid_argument(
                "spec.containers[0].image: no such thing",
            ));
        }
        let id = request.id.unwrap();
        let running = v1::Running {
            started_at: 5_000_000_000,
        };
        let container = v1::ContainerStatus {
            name: "c".into(),
            state: Some(v1::container_status::State::Running(running)),
            ready: true,
            ..Default::default()
        };
        let status = v1::PodStatus {
            id: Some(id.clone()),
            pod_ips: vec!["10.0.0.9".into()],
            containers: vec![container],
            ..Default::default()
        };
        self.pods.lock().unwrap().insert(id.uid, status.clone());
        let event = v1::PodEvent {
            event: Some(v1::pod_event::Event::Status(status)),
        };
        let _ = self.events.send(event);
        Ok(Response::new(v1::CreatePodResponse {}))
    }
    async fn update_pod(
        &self,
        _: Request<v1::UpdatePodRequest>,
    ) -> Result<Response<v1::UpdatePodResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn delete_pod(
        &self,
        request: Request<v1::DeletePodRequest>,
    ) -> Result<Response<v1::DeletePodResponse>, Status> {
        let id = request.into_inner().id.unwrap();
        let found = self.pods.lock().unwrap().remove(&id.uid);
        found.ok_or_else(|| Status::not_found(""))?;
        let event = v1::PodEvent {
            event: Some(v1::pod_event::Event::Gone(id)),
        };
        let _ = self.events.send(event);
        Ok(Response::new(v1::DeletePodResponse {}))
    }
    async fn watch_pods(
        &self,
        _: Request<v1::WatchPodsRequest>,
    ) -> Result<Response<Self::WatchPodsStream>, Status> {
        let receiver = self.events.subscribe();
        let away = self.away.lock().unwrap().clone();
        let first = futures::stream::iter([Ok(v1::PodEvent::default())]);
        let rest = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver
                .recv()
                .await
                .ok()
                .map(|event| (Ok(event), receiver))
        });
        let events = futures::StreamExt::chain(first, rest);
        let events = futures::StreamExt::take_until(events, async move { away.cancelled().await });
        Ok(Response::new(Box::pin(events)))
    }
    async fn logs(
        &self,
        request: Request<v1::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let request = request.into_inner();
        let text = format!("{} {:?}", request.container, request.tail_lines);
        let pieces = [Ok(v1::LogsResponse { data: text.into() })];
        Ok(Response::new(Box::pin(futures::stream::iter(pieces))))
    }
    async fn exec(
        &self,
        request: Request<Streaming<v1::ProcessInput>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        use v1::process_input::Input;
        use v1::process_output::Output;
        // Nothing is answered before something was read, headers included.
        let mut input = request.into_inner();
        let first = input.message().await?.unwrap();
        let Some(Input::Start(start)) = first.input else {
            return Err(Status::invalid_argument("no start"));
        };
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            let say = |output| {
                Ok(v1::ProcessOutput {
                    output: Some(output),
                })
            };
            let _ = sender
                .send(say(Output::Stderr(start.command.join(" ").into())))
                .await;
            while let Ok(Some(message)) = input.message().await {
                match message.input {
                    Some(Input::Stdin(data)) => {
                        sender.send(say(Output::Stdout(data))).await.unwrap()
                    }
                    Some(Input::StdinClosed(_)) => break,
                    _ => {}
                }
            }
            let _ = sender.send(say(Output::Exit(3))).await;
        });
        Ok(Response::new(Box::pin(
            tokio_stream::wrappers::ReceiverStream::new(receiver),
        )))
    }
    async fn attach(
        &self,
        _: Request<Streaming<v1::ProcessInput>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn port_forward(
        &self,
        request: Request<Streaming<v1::PortForwardInput>>,
    ) -> Result<Response<Self::PortForwardStream>, Status> {
        use v1::port_forward_input::Input;
        let input = request.into_inner();
        let echo = futures::stream::unfold(input, |mut input| async move {
            let data = match input.message().await.ok()??.input? {
                Input::Start(start) => start.port.to_string().into_bytes(),
                Input::Data(data) => data,
            };
            Some((Ok(v1::PortForwardOutput { data }), input))
        });
        Ok(Response::new(Box::pin(echo)))
    }
    async fn stats(
        &self,
        _: Request<v1::StatsRequest>,
    ) -> Result<Response<v1::StatsResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

struct Rig {
    server: Server,
    remote: Remote,
    events: kubelet_provider::ProviderEvents,
    _directory: tempfile::TempDir,
}

async fn rig() -> Rig {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("p.sock");
    let server = Server::new();
    server.serve(&socket);
    let endpoint = Endpoint::parse(&format!("unix://{}", socket.display())).unwrap();
    let remote = Remote::connect(endpoint, Shutdown::new()).await.unwrap();
    let (sender, events) = PodEvents::channel();
    remote.start(sender).await.unwrap();
    Rig {
        server,
        remote,
        events,
        _directory: directory,
    }
}

async fn next(rig: &mut Rig) -> ProviderEvent {
    tokio::time::timeout(Duration::from_secs(20), rig.events.next())
        .await
        .unwrap()
}

#[tokio::test]
async fn a_pod_of_a_provider_behind_a_socket_comes_and_goes() {
    let mut rig = rig().await;
    assert_eq!(
        (rig.remote.name(), rig.remote.version().as_str()),
        ("test", "7")
    );
    assert!(rig.remote.features().has(PodFeature::Probes));
    assert!(!rig.remote.features().has(PodFeature::Volumes));
    let object = pod("a", json!({}), json!({}));
    let id = PodId::of(&object);
    rig.remote
        .create_pod(Arc::new(object.clone()))
        .await
        .unwrap();
    let ProviderEvent::Report(of, report) = next(&mut rig).await else {
        panic!("a report was expected");
    };
    assert_eq!(of, id);
    assert_eq!(report.pod_ips, [std::net::IpAddr::from([10, 0, 0, 9])]);
    assert!(
        matches!(report.containers[0].state, ContainerState::Running { started_at } if started_at.as_second() == 5)
    );
    assert_eq!(rig.remote.pods().await.unwrap(), [(id.clone(), report)]);
    assert_eq!(
        rig.remote.update_pod(Arc::new(object)).await,
        Err(ProviderError::Unsupported("changes of a running pod"))
    );
    rig.remote.delete_pod(&id, Duration::ZERO).await.unwrap();
    assert_eq!(next(&mut rig).await, ProviderEvent::Gone(id.clone()));
    assert_eq!(
        rig.remote.delete_pod(&id, Duration::ZERO).await,
        Err(ProviderError::NotFound)
    );
    let mut bad = pod("b", json!({}), json!({}));
    bad.spec.as_mut().unwrap().containers[0].image = Some("bad".into());
    let refused = rig.remote.create_pod(Arc::new(bad)).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "spec.containers[0].image: no such thing"
    );
}

#[tokio::test]
async fn what_went_while_the_provider_was_away_is_gone() {
    let mut rig = rig().await;
    let [a, b] = ["a", "b"].map(|name| pod(name, json!({}), json!({})));
    for pod in [&a, &b] {
        rig.remote.create_pod(Arc::new(pod.clone())).await.unwrap();
        next(&mut rig).await;
    }
    let (a, b) = (PodId::of(&a), PodId::of(&b));
    rig.server.pods.lock().unwrap().remove(&*a.uid);
    std::mem::take(&mut *rig.server.away.lock().unwrap()).cancel();
    let (mut seen, mut gone) = (false, false);
    while !(seen && gone) {
        match next(&mut rig).await {
            ProviderEvent::Report(id, _) => seen |= id == b,
            ProviderEvent::Gone(id) => gone |= id == a,
            other => panic!("{other:?}"),
        }
    }
    // Another one may have come back.
    assert_eq!(rig.server.asked.load(Ordering::Relaxed), 2);
}

#[test]
fn what_a_provider_says_anew_is_compared() {
    let said = v1::InfoResponse {
        name: "test".into(),
        version: "7".into(),
        features: vec!["Probes".into()],
        ..Default::default()
    };
    let mut now = said.clone();
    now.version = "8".into();
    assert!(super::changes(&said, &now).is_empty());
    now.features.clear();
    now.calls.push("Exec".into());
    assert_eq!(super::changes(&said, &now), ["features", "calls"]);
}

#[tokio::test]
async fn streams_flow_both_ways_and_what_is_not_named_is_not_called() {
    let rig = rig().await;
    let object = pod("a", json!({}), json!({}));
    let id = PodId::of(&object);
    let options = LogOptions {
        tail_lines: Some(4),
        ..LogOptions::default()
    };
    let mut text = String::new();
    let mut log = rig.remote.logs(&id, "c", &options).await.unwrap();
    log.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "c Some(4)");
    let attach = rig.remote.attach(&id, "c", &AttachOptions::default()).await;
    assert_eq!(attach.err(), Some(ProviderError::Unsupported("attach")));
    let wanted = AttachOptions {
        stdin: true,
        stdout: true,
        stderr: true,
        tty: false,
    };
    let command = ["cat".to_owned(), "-".to_owned()];
    let mut process = rig.remote.exec(&id, "c", &command, &wanted).await.unwrap();
    let mut stdin = process.stdin.take().unwrap();
    stdin.write_all(b"hello").await.unwrap();
    let mut five = [0; 5];
    process
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut five)
        .await
        .unwrap();
    assert_eq!(&five, b"hello");
    drop(stdin);
    assert_eq!(process.exit.await, Ok(3));
    let mut said = String::new();
    process
        .stderr
        .unwrap()
        .read_to_string(&mut said)
        .await
        .unwrap();
    assert_eq!(said, "cat -");
    let mut connection = rig.remote.port_forward(&id, 80).await.unwrap();
    connection.write_all(b"x").await.unwrap();
    let mut three = [0; 3];
    connection.read_exact(&mut three).await.unwrap();
    assert_eq!(&three, b"80x");
}

#[test]
fn endpoints_are_sockets() {
    assert!(Endpoint::parse("unix:///run/a.sock").is_ok());
    for bad in ["", "http://a", "unix://a.sock", "/run/a.sock"] {
        let error = Endpoint::parse(bad).unwrap_err().to_string();
        assert!(error.contains(&format!("{bad:?}")), "{error}");
    }
}
