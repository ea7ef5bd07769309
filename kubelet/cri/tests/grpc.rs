//! The services over a socket, on a runtime in memory.

#[path = "support/client.rs"]
mod support;

use std::sync::Arc;

use cri::from_cri::NodeFacts;
use cri::{CriService, ServiceOptions};
use cri_spec::v1;
use cri_spec::v1::ContainerEventType as Kind;
use futures::StreamExt as _;
use images::{ImageStore, ImageStoreConfig};
use runtime::fake::FakeRuntime;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use support::{Images, Runtime};

struct Server {
    fake: FakeRuntime,
    runtime: Runtime,
    images: Images,
    ending: CancellationToken,
    directory: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let fake = FakeRuntime::new();
        let store = ImageStore::open(ImageStoreConfig {
            root: directory.path().join("images"),
            ..Default::default()
        })
        .await
        .unwrap();
        let ending = CancellationToken::new();
        let options = ServiceOptions {
            node: NodeFacts::default(),
            state_dir: directory.path().join("state"),
            root_dir: directory.path().to_owned(),
            pod_cidrs_by_cri: false,
        };
        let service = CriService::new(Arc::new(fake.clone()), store, options, ending.clone());
        let socket = directory.path().join("cri.sock");
        cri::serve_socket(&socket, service, ending.clone()).unwrap();
        let (runtime, images) = support::connect(&socket).await;
        Self {
            fake,
            runtime,
            images,
            ending,
            directory,
        }
    }

    async fn pull(&mut self, image: &str) -> String {
        let request = v1::PullImageRequest {
            image: Some(v1::ImageSpec {
                image: image.to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let pulled = self.images.pull_image(request).await.unwrap();
        pulled.into_inner().image_ref
    }

    async fn run_sandbox(&mut self, name: &str) -> String {
        let request = v1::RunPodSandboxRequest {
            config: Some(support::sandbox(name, "/x", self.directory.path())),
            runtime_handler: String::new(),
        };
        let ran = self.runtime.run_pod_sandbox(request).await.unwrap();
        ran.into_inner().pod_sandbox_id
    }

    async fn create(&mut self, sandbox: &str) -> String {
        let image = self.pull("registry.example/a:1").await;
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(support::container(&image, &["sleep", "9"])),
            sandbox_config: None,
        };
        let created = self.runtime.create_container(request).await.unwrap();
        created.into_inner().container_id
    }

    async fn start_container(&mut self, container_id: &str) {
        let container_id = container_id.to_owned();
        let request = v1::StartContainerRequest { container_id };
        self.runtime.start_container(request).await.unwrap();
    }
}

#[tokio::test]
async fn a_container_lives_and_everything_of_it_is_told() {
    let mut server = Server::start().await;
    let events = server
        .runtime
        .get_container_events(v1::GetEventsRequest {})
        .await
        .unwrap();
    let mut events = events.into_inner();
    let sandbox = server.run_sandbox("pod").await;
    let container = server.create(&sandbox).await;
    server.start_container(&container).await;

    let id = container[..container.len() - 1].to_owned();
    // One container alone begins with zeros as the sandbox does: ids are looked for among their kind.
    let request = v1::ContainerStatusRequest {
        container_id: container.clone(),
        verbose: true,
    };
    let status = server.runtime.container_status(request).await.unwrap();
    let status = status.into_inner();
    assert!(status.info["info"].contains(&sandbox));
    let status = status.status.unwrap();
    assert_eq!(status.state(), v1::ContainerState::ContainerRunning);
    let filter = v1::ContainerFilter {
        id,
        state: Some(v1::ContainerStateValue {
            state: v1::ContainerState::ContainerRunning.into(),
        }),
        ..Default::default()
    };
    let request = v1::ListContainersRequest {
        filter: Some(filter),
    };
    let listed = server.runtime.list_containers(request).await.unwrap();
    let listed = listed.into_inner().containers;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].image_id, status.image_id);

    let pod_sandbox_id = sandbox.clone();
    let request = v1::StopPodSandboxRequest { pod_sandbox_id };
    server.runtime.stop_pod_sandbox(request).await.unwrap();
    let pod_sandbox_id = sandbox.clone();
    let request = v1::RemovePodSandboxRequest { pod_sandbox_id };
    server.runtime.remove_pod_sandbox(request).await.unwrap();

    let mut told = Vec::new();
    while told.len() < 8 {
        let event = events.next().await.unwrap().unwrap();
        told.push((event.container_id.clone(), event.container_event_type()));
    }
    let of = |id: &str, kind: Kind| (id.to_owned(), kind);
    let expect = [
        of(&sandbox, Kind::ContainerCreatedEvent),
        of(&sandbox, Kind::ContainerStartedEvent),
        of(&container, Kind::ContainerCreatedEvent),
        of(&container, Kind::ContainerStartedEvent),
        of(&container, Kind::ContainerStoppedEvent),
        of(&sandbox, Kind::ContainerStoppedEvent),
        of(&container, Kind::ContainerDeletedEvent),
        of(&sandbox, Kind::ContainerDeletedEvent),
    ];
    assert_eq!(told, expect);
    server.ending.cancel();
    let last = events.next().await.unwrap().unwrap_err();
    assert_eq!(last.code(), Code::Unavailable);
}

#[tokio::test]
async fn what_is_not_there_may_be_stopped_and_not_looked_at() {
    let mut server = Server::start().await;
    let absent = || "absent".to_owned();
    let runtime = &mut server.runtime;
    let stop = v1::StopPodSandboxRequest {
        pod_sandbox_id: absent(),
    };
    runtime.stop_pod_sandbox(stop).await.unwrap();
    let remove = v1::RemoveContainerRequest {
        container_id: absent(),
    };
    runtime.remove_container(remove).await.unwrap();
    let look = v1::ContainerStatusRequest {
        container_id: absent(),
        verbose: false,
    };
    let error = runtime.container_status(look).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    let stop = v1::StopPodSandboxRequest::default();
    let error = runtime.stop_pod_sandbox(stop).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let removed = server
        .images
        .remove_image(v1::RemoveImageRequest {
            image: Some(v1::ImageSpec {
                image: "absent".to_owned(),
                ..Default::default()
            }),
        })
        .await;
    removed.unwrap();
}

#[tokio::test]
async fn what_is_not_built_says_so() {
    let mut server = Server::start().await;
    let sandbox = server.run_sandbox("pod").await;
    let mut config = support::container("registry.example/a:1", &[]);
    config.windows = Some(v1::WindowsContainerConfig::default());
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: sandbox,
        config: Some(config),
        sandbox_config: None,
    };
    let error = server.runtime.create_container(request).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    assert!(error.message().contains("config.windows"), "{error}");
    let checkpoint = v1::CheckpointContainerRequest::default();
    let error = server.runtime.checkpoint_container(checkpoint).await;
    assert_eq!(error.unwrap_err().code(), Code::Unimplemented);
    let config = v1::UpdateRuntimeConfigRequest {
        runtime_config: Some(v1::RuntimeConfig {
            network_config: Some(v1::NetworkConfig {
                pod_cidr: "10.0.0.0/24".to_owned(),
            }),
        }),
    };
    let error = server.runtime.update_runtime_config(config).await;
    assert_eq!(error.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn the_runtime_says_what_kubeadm_asks() {
    let mut server = Server::start().await;
    let version = server.runtime.version(v1::VersionRequest::default()).await;
    assert_eq!(version.unwrap().into_inner().runtime_api_version, "v1");
    server
        .fake
        .set_ready(None, Some(("NoNetwork".to_owned(), "none yet".to_owned())));
    let request = v1::StatusRequest { verbose: true };
    let status = server.runtime.status(request).await.unwrap().into_inner();
    let conditions = status.status.unwrap().conditions;
    let told: Vec<_> = conditions
        .iter()
        .map(|c| (c.r#type.as_str(), c.status, c.reason.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            ("RuntimeReady", true, ""),
            ("NetworkReady", false, "NoNetwork")
        ]
    );
    let config: serde_json::Value = serde_json::from_str(&status.info["config"]).unwrap();
    assert!(config["sandboxImage"].as_str().unwrap().contains("/pause:"));
    let config = server
        .runtime
        .runtime_config(v1::RuntimeConfigRequest {})
        .await;
    let linux = config.unwrap().into_inner().linux.unwrap();
    assert_eq!(linux.cgroup_driver(), v1::CgroupDriver::Cgroupfs);
    let usage = server.images.image_fs_info(v1::ImageFsInfoRequest {}).await;
    assert_eq!(usage.unwrap().into_inner().image_filesystems.len(), 1);
}

#[tokio::test]
async fn streamed_lists_are_in_messages_of_some() {
    let mut server = Server::start().await;
    let empty = server
        .runtime
        .stream_pod_sandboxes(v1::StreamPodSandboxesRequest::default())
        .await;
    assert_eq!(empty.unwrap().into_inner().count().await, 0);
    for number in 0..70 {
        server.run_sandbox(&format!("pod-{number}")).await;
    }
    let stream = server
        .runtime
        .stream_pod_sandboxes(v1::StreamPodSandboxesRequest::default())
        .await;
    let messages: Vec<_> = stream.unwrap().into_inner().collect().await;
    let sizes: Vec<_> = messages
        .into_iter()
        .map(|message| message.unwrap().pod_sandboxes.len())
        .collect();
    assert_eq!(sizes, [64, 6]);
}

#[tokio::test]
async fn rates_are_told_of_all_that_one_answer_speaks_of() {
    let mut server = Server::start().await;
    for name in ["one", "two", "three"] {
        let sandbox = server.run_sandbox(name).await;
        let container = server.create(&sandbox).await;
        server.start_container(&container).await;
    }
    let request = v1::ListPodSandboxStatsRequest::default();
    let first = server.runtime.list_pod_sandbox_stats(request.clone()).await;
    assert_eq!(first.unwrap().into_inner().stats.len(), 3);
    tokio::time::sleep(std::time::Duration::from_millis(150)).await;
    let second = server.runtime.list_pod_sandbox_stats(request).await;
    for stats in second.unwrap().into_inner().stats {
        let cpu = stats.linux.unwrap().cpu.unwrap();
        assert!(cpu.usage_nano_cores.is_some(), "{:?}", stats.attributes);
    }
}

#[tokio::test]
async fn an_address_is_for_a_running_container_and_good_once() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut server = Server::start().await;
    let sandbox = server.run_sandbox("pod").await;
    let container = server.create(&sandbox).await;
    let request = v1::ExecRequest {
        container_id: container.clone(),
        cmd: vec!["true".to_owned()],
        stdout: true,
        ..Default::default()
    };
    let error = server.runtime.exec(request.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    server.start_container(&container).await;
    let without = v1::ExecRequest {
        stdout: false,
        ..request.clone()
    };
    let error = server.runtime.exec(without).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let url = server.runtime.exec(request).await.unwrap().into_inner().url;
    let rest = url.strip_prefix("http://").unwrap();
    let (address, path) = rest.split_once('/').unwrap();
    assert!(address.starts_with("127.0.0.1:") && path.starts_with("exec/"));
    let mut answers = Vec::new();
    for _ in 0..2 {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = format!(
            "GET /{path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        answers.push(String::from_utf8(head).unwrap().to_lowercase());
    }
    assert!(answers[0].starts_with("http/1.1 101"), "{}", answers[0]);
    assert!(
        answers[0].contains("connection: upgrade\r\n"),
        "{}",
        answers[0]
    );
    assert!(answers[1].starts_with("http/1.1 404"), "{}", answers[1]);
}
