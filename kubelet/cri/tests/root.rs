//! The program on this machine: a pod through gRPC, and the runtime changing hands while it runs.
//!
//! Run as root: `cargo test -p cri --test root -- --ignored`.

#[path = "../../runtime/tests/linux/image.rs"]
mod image;
#[path = "support/client.rs"]
mod support;

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cri::from_cri::NodeFacts;
use cri::front::runtime_socket;
use cri::options::Options;
use cri::{CriService, ServiceOptions};
use cri_spec::archives as pb;
use cri_spec::archives::archives_client::ArchivesClient;
use cri_spec::v1;
use futures::FutureExt as _;
use images::{ImageStore, ImageStoreConfig};
use network::{NetworkConfig, PodNetwork};
use runtime::linux::{LinuxRuntime, LinuxRuntimeConfig, Ownership};
use runtime::{Origin, Runtime as _};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use support::{Images, Runtime};

/// The shim next to this test, freshly built.
fn shim() -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    let path = deps.parent().unwrap().parent().unwrap().join("gantry-shim");
    let built = std::process::Command::new(env!("CARGO"))
        .args(["build", "-q", "-p", "shim"])
        .status()
        .unwrap();
    assert!(built.success());
    path
}

struct Node {
    options: Options,
    shutdown: CancellationToken,
    front: Option<JoinHandle<()>>,
    runtime: Runtime,
    images: Images,
    cgroup: String,
}

impl Node {
    async fn start() -> Self {
        let directory =
            std::env::temp_dir().join(format!("gantry-cri-test-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let options = Options {
            listen: directory.join("cri.sock"),
            runtime_root_dir: directory.join("root"),
            runtime_state_dir: directory.join("state"),
            runtime_handlers: vec!["runc".to_owned()],
            registry_config_dir: directory.join("certs.d"),
            pod_cidrs: Vec::new(),
            pod_network: network::Mode::Auto,
            pod_network_cidr: Vec::new(),
            shim_cgroup: format!("/gantry-cri-test-{}/shims", std::process::id()),
            shim_path: Some(shim()),
        };
        let shutdown = CancellationToken::new();
        let (served, ending) = (options.clone(), shutdown.clone());
        let front = tokio::spawn(async move { cri::front::run(served, &ending).await.unwrap() });
        while !options.listen.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (runtime, images) = support::connect(&options.listen).await;
        let cgroup = format!("/gantry-cri-test-{}", std::process::id());
        Self {
            options,
            shutdown,
            front: Some(front),
            runtime,
            images,
            cgroup,
        }
    }

    /// As a kubelet that starts.
    async fn kubelet(&self) -> LinuxRuntime {
        let options = &self.options;
        let (root, state) = (&options.runtime_root_dir, &options.runtime_state_dir);
        let ownership = Ownership::acquire(root, state).await.unwrap();
        let images = ImageStore::open(ImageStoreConfig {
            root: root.join("images"),
            ..Default::default()
        })
        .await
        .unwrap();
        let network = PodNetwork::open(NetworkConfig {
            state_dir: root.join("network"),
            ..Default::default()
        })
        .await
        .unwrap();
        let config = LinuxRuntimeConfig {
            root_dir: root.clone(),
            state_dir: state.clone(),
            shim_path: options.shim_path.clone(),
            ownership: Some(Arc::new(ownership)),
            ..Default::default()
        };
        LinuxRuntime::open(config, images, network).await.unwrap()
    }

    async fn import(&self, archive: &Path) -> String {
        let bytes = std::fs::read(archive).unwrap();
        let mut options = Some(pb::ImportOptions { pinned: true });
        let requests: Vec<_> = bytes
            .chunks(1 << 20)
            .map(|chunk| pb::ImportRequest {
                options: options.take(),
                chunk: chunk.to_vec(),
            })
            .collect();
        let mut client = archives(&self.options.listen).await;
        let imported = client.import(tokio_stream::iter(requests)).await.unwrap();
        imported.into_inner().images[0].id.clone()
    }

    async fn exec(&mut self, container: &str, script: &str) -> (i32, String) {
        let request = v1::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: ["/bin/sh", "-c", script].map(str::to_owned).into(),
            timeout: 20,
        };
        let answer = self.runtime.exec_sync(request).await.unwrap().into_inner();
        (
            answer.exit_code,
            String::from_utf8(answer.stdout).unwrap().trim().to_owned(),
        )
    }

    async fn status(&mut self, container: &str) -> v1::ContainerStatus {
        let request = v1::ContainerStatusRequest {
            container_id: container.to_owned(),
            verbose: false,
        };
        let answer = self.runtime.container_status(request).await.unwrap();
        answer.into_inner().status.unwrap()
    }

    /// What a failed test left.
    async fn remove_pods(&self) {
        let (mut runtime, _) = support::connect(&self.options.listen).await;
        let all = v1::ListPodSandboxRequest::default();
        for sandbox in runtime
            .list_pod_sandbox(all)
            .await
            .unwrap()
            .into_inner()
            .items
        {
            let request = v1::RemovePodSandboxRequest {
                pod_sandbox_id: sandbox.id,
            };
            runtime.remove_pod_sandbox(request).await.unwrap();
        }
    }

    async fn end(mut self) {
        self.shutdown.cancel();
        self.front.take().unwrap().await.unwrap();
        let directory = self.options.listen.parent().unwrap();
        std::fs::remove_dir_all(directory).unwrap();
        for entry in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let own = entry.path().join(self.cgroup.trim_start_matches('/'));
            let _ = std::fs::remove_dir(own.join("shims"));
            let _ = std::fs::remove_dir(own);
        }
    }
}

async fn archives(socket: &Path) -> ArchivesClient<tonic::transport::Channel> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let socket = socket.clone();
        async move {
            let connected = tokio::net::UnixStream::connect(socket).await;
            connected.map(hyper_util::rt::TokioIo::new)
        }
    });
    let channel = tonic::transport::Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .unwrap();
    ArchivesClient::new(channel)
}

/// The text of a container's log.
fn log(status: &v1::ContainerStatus) -> String {
    std::fs::read_to_string(&status.log_path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "runs containers: root"]
async fn a_pod_lives_while_the_runtime_changes_hands() {
    let mut node = Node::start().await;
    let result = AssertUnwindSafe(lives(&mut node)).catch_unwind().await;
    node.remove_pods().await;
    node.end().await;
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

async fn lives(node: &mut Node) {
    let directory = node.options.listen.parent().unwrap().to_owned();
    let archive = directory.join("image.tar");
    image::write(&archive);
    let image = node.import(&archive).await;
    let listed = node
        .images
        .list_images(v1::ListImagesRequest::default())
        .await;
    let listed = listed.unwrap().into_inner().images;
    assert_eq!((listed.len(), listed[0].id.as_str()), (1, image.as_str()));
    assert!(listed[0].pinned);

    let request = v1::RunPodSandboxRequest {
        config: Some(support::sandbox(
            "pod",
            &node.cgroup,
            &directory.join("logs"),
        )),
        runtime_handler: String::new(),
    };
    let sandbox = node.runtime.run_pod_sandbox(request).await.unwrap();
    let sandbox = sandbox.into_inner().pod_sandbox_id;
    let script = "echo begin; trap 'exit 7' TERM; while :; do sleep 0.1; done";
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(support::container(&image, &["/bin/sh", "-c", script])),
        sandbox_config: None,
    };
    let container = node.runtime.create_container(request).await.unwrap();
    let container = container.into_inner().container_id;
    let request = v1::StartContainerRequest {
        container_id: container.clone(),
    };
    node.runtime.start_container(request).await.unwrap();
    let started = node.status(&container).await.started_at;
    assert_eq!(
        node.exec(&container, "echo $FROM_IMAGE; exit 3").await,
        (3, "yes".to_owned())
    );
    let stats = node
        .runtime
        .container_stats(v1::ContainerStatsRequest {
            container_id: container.clone(),
        })
        .await;
    let memory = stats.unwrap().into_inner().stats.unwrap().memory.unwrap();
    assert!(memory.working_set_bytes.unwrap().value > 0);

    // A kubelet starts, finds the pod, and knows that it is not its own.
    let kubelet = node.kubelet().await;
    let found = kubelet.list_pod_sandboxes().await.unwrap();
    assert_eq!((found.len(), found[0].origin), (1, Origin::Cri));
    let ending = CancellationToken::new();
    let service = CriService::new(
        Arc::new(kubelet.clone()),
        kubelet.images().clone(),
        ServiceOptions {
            node: NodeFacts::default(),
            state_dir: node.options.runtime_state_dir.clone(),
            root_dir: node.options.runtime_root_dir.clone(),
            pod_cidrs_by_cri: false,
        },
        ending.clone(),
    );
    let socket = runtime_socket(&node.options.runtime_state_dir);
    let serving = cri::serve_socket(&socket, service, ending.clone()).unwrap();
    let status = again(node, &container).await;
    assert_eq!(status.state(), v1::ContainerState::ContainerRunning);
    assert_eq!(status.started_at, started);

    // The kubelet ends: the next to ask finds the pod all the same.
    ending.cancel();
    serving.await.unwrap();
    drop(kubelet);
    let status = again(node, &container).await;
    assert_eq!(status.started_at, started);
    let request = v1::StopContainerRequest {
        container_id: container.clone(),
        timeout: 10,
    };
    node.runtime.stop_container(request).await.unwrap();
    let status = node.status(&container).await;
    assert_eq!(status.exit_code, 7);
    assert!(log(&status).contains("begin"), "{}", log(&status));
    let request = v1::RemovePodSandboxRequest {
        pod_sandbox_id: sandbox,
    };
    node.runtime.remove_pod_sandbox(request).await.unwrap();
    assert_eq!(
        std::fs::read_dir(node.options.runtime_state_dir.join("sandboxes"))
            .unwrap()
            .count(),
        0
    );
}

/// Clients connect anew when the runtime has changed hands, as every client of gRPC does.
async fn again(node: &mut Node, container: &str) -> v1::ContainerStatus {
    let (runtime, images) = support::connect(&node.options.listen).await;
    (node.runtime, node.images) = (runtime, images);
    node.status(container).await
}
