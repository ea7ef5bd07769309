//! `RuntimeService`.

use std::collections::HashMap;
use std::time::Duration;

use cri_spec::v1;
use cri_spec::v1::runtime_service_server::RuntimeService;
use runtime::{ContainerState, RuntimeError, SandboxState, StreamOptions};
use tonic::{Request, Response, Status};

use super::{Answers, CriService, in_messages};
use crate::error::{FieldError, status};
use crate::{from_cri, to_cri};

/// The version of the answer to `Version`, ever since. Upstream: `kubeAPIVersion`.
const KUBE_API_VERSION: &str = "0.1.0";
/// Of each output of `ExecSync`. Source: containerd's and upstream's limit of a message.
const EXEC_SYNC_BYTES: usize = 16 << 20;
/// What kubeadm compares with its own pause image. No pause container is ever run: it is named so that nobody is warned.
/// Upstream: `PauseVersion` of `cmd/kubeadm/app/constants`.
const PAUSE_IMAGE: &str = "registry.k8s.io/pause:3.10.2";

fn checkpoints() -> Status {
    FieldError::NotBuilt {
        field: "checkpointing",
        why: "containers and pods cannot be checkpointed or restored yet",
    }
    .into()
}

/// What a client may ask of a stream. Upstream: `cri-streaming`.
fn stream_options(
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
) -> Result<StreamOptions, Status> {
    if tty && stderr {
        return Err(Status::invalid_argument(
            "tty and stderr cannot both be true",
        ));
    }
    if !stdin && !stdout && !stderr {
        return Err(Status::invalid_argument(
            "one of stdin, stdout, or stderr must be set",
        ));
    }
    Ok(StreamOptions {
        stdin,
        stdout,
        stderr,
        tty,
    })
}

impl CriService {
    async fn running(&self, wanted: &str) -> Result<String, Status> {
        let id = self.container_id(wanted).await?;
        let found = self.runtime().container_status(&id).await.map_err(status)?;
        if found.state != ContainerState::Running {
            let state = found.state;
            return Err(status(RuntimeError::NotRunning { id, state }));
        }
        Ok(id)
    }

    fn info(&self) -> HashMap<String, String> {
        let options = &self.inner.options;
        let config = serde_json::json!({
            "sandboxImage": PAUSE_IMAGE,
            "stateDir": options.state_dir,
            "rootDir": options.root_dir,
            "cgroupDriver": "cgroupfs",
            "snapshotter": "overlayfs",
        });
        [("config".to_owned(), config.to_string())].into()
    }
}

#[tonic::async_trait]
impl RuntimeService for CriService {
    async fn version(
        &self,
        _: Request<v1::VersionRequest>,
    ) -> Result<Response<v1::VersionResponse>, Status> {
        let (runtime_name, runtime_version) = self.runtime().version();
        Ok(Response::new(v1::VersionResponse {
            version: KUBE_API_VERSION.to_owned(),
            runtime_name,
            runtime_version,
            runtime_api_version: v1::API_VERSION.to_owned(),
        }))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Result<Response<v1::RunPodSandboxResponse>, Status> {
        let config = from_cri::sandbox_config(request.get_ref(), self.inner.options.node)?;
        let pod_sandbox_id = self
            .runtime()
            .run_pod_sandbox(&config)
            .await
            .map_err(status)?;
        Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Result<Response<v1::StopPodSandboxResponse>, Status> {
        if let Some(id) = self.find_sandbox(&request.get_ref().pod_sandbox_id).await? {
            self.runtime().stop_pod_sandbox(&id).await.map_err(status)?;
        }
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Result<Response<v1::RemovePodSandboxResponse>, Status> {
        if let Some(id) = self.find_sandbox(&request.get_ref().pod_sandbox_id).await? {
            self.runtime()
                .remove_pod_sandbox(&id)
                .await
                .map_err(status)?;
        }
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Result<Response<v1::PodSandboxStatusResponse>, Status> {
        let request = request.into_inner();
        let id = self.sandbox_id(&request.pod_sandbox_id).await?;
        let found = self
            .runtime()
            .pod_sandbox_status(&id)
            .await
            .map_err(status)?;
        let containers = self.runtime().list_containers().await.map_err(status)?;
        let info = match request.verbose {
            false => HashMap::new(),
            true => {
                let info = serde_json::json!({
                    "runtimeHandler": found.runtime_handler,
                    "origin": found.origin,
                });
                [("info".to_owned(), info.to_string())].into()
            }
        };
        Ok(Response::new(v1::PodSandboxStatusResponse {
            status: Some(to_cri::sandbox_status(&found)),
            info,
            containers_statuses: containers
                .iter()
                .filter(|container| container.sandbox_id == id)
                .map(to_cri::container_status)
                .collect(),
            timestamp: to_cri::nanoseconds(jiff::Timestamp::now()),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Result<Response<v1::ListPodSandboxResponse>, Status> {
        let items = self.sandboxes(request.get_ref().filter.as_ref()).await?;
        Ok(Response::new(v1::ListPodSandboxResponse { items }))
    }

    type StreamPodSandboxesStream = Answers<v1::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        let items = self.sandboxes(request.get_ref().filter.as_ref()).await?;
        let message = |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes };
        Ok(Response::new(in_messages(items, message)))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Result<Response<v1::CreateContainerResponse>, Status> {
        let request = request.into_inner();
        let mut config =
            from_cri::container_config(request.config.as_ref(), self.inner.options.node)?;
        let sandbox = self.sandbox_id(&request.pod_sandbox_id).await?;
        let found = self
            .runtime()
            .pod_sandbox_status(&sandbox)
            .await
            .map_err(status)?;
        config.security.namespaces =
            from_cri::namespaces_in(&found.namespaces, &config.security.namespaces)?;
        let container_id = self
            .runtime()
            .create_container(&sandbox, &config)
            .await
            .map_err(status)?;
        Ok(Response::new(v1::CreateContainerResponse { container_id }))
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Result<Response<v1::StartContainerResponse>, Status> {
        let id = self.container_id(&request.get_ref().container_id).await?;
        self.runtime().start_container(&id).await.map_err(status)?;
        Ok(Response::new(v1::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Result<Response<v1::StopContainerResponse>, Status> {
        let request = request.into_inner();
        // Without a grace period, also a negative one, it is killed at once.
        let timeout = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
        if let Some(id) = self.find_container(&request.container_id).await? {
            self.runtime()
                .stop_container(&id, timeout)
                .await
                .map_err(status)?;
        }
        Ok(Response::new(v1::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Result<Response<v1::RemoveContainerResponse>, Status> {
        if let Some(id) = self.find_container(&request.get_ref().container_id).await? {
            self.runtime().remove_container(&id).await.map_err(status)?;
        }
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Result<Response<v1::ListContainersResponse>, Status> {
        let containers = self.containers(request.get_ref().filter.as_ref()).await?;
        Ok(Response::new(v1::ListContainersResponse { containers }))
    }

    type StreamContainersStream = Answers<v1::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        let items = self.containers(request.get_ref().filter.as_ref()).await?;
        let message = |containers| v1::StreamContainersResponse { containers };
        Ok(Response::new(in_messages(items, message)))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Result<Response<v1::ContainerStatusResponse>, Status> {
        let request = request.into_inner();
        let id = self.container_id(&request.container_id).await?;
        let found = self.runtime().container_status(&id).await.map_err(status)?;
        let info = match request.verbose {
            false => HashMap::new(),
            true => {
                let info = serde_json::json!({
                    "sandboxID": found.sandbox_id,
                    "pid": found.pid.unwrap_or(0),
                    "signal": found.signal,
                    "origin": found.origin,
                });
                [("info".to_owned(), info.to_string())].into()
            }
        };
        Ok(Response::new(v1::ContainerStatusResponse {
            status: Some(to_cri::container_status(&found)),
            info,
        }))
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Result<Response<v1::UpdateContainerResourcesResponse>, Status> {
        let resources = from_cri::update(request.get_ref())?;
        let id = self.container_id(&request.get_ref().container_id).await?;
        self.runtime()
            .update_container_resources(&id, &resources)
            .await
            .map_err(status)?;
        Ok(Response::new(v1::UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Result<Response<v1::ReopenContainerLogResponse>, Status> {
        let id = self.container_id(&request.get_ref().container_id).await?;
        self.runtime()
            .reopen_container_log(&id)
            .await
            .map_err(status)?;
        Ok(Response::new(v1::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(
        &self,
        request: Request<v1::ExecSyncRequest>,
    ) -> Result<Response<v1::ExecSyncResponse>, Status> {
        let request = request.into_inner();
        if request.cmd.is_empty() {
            return Err(FieldError::Missing("cmd").into());
        }
        let id = self.container_id(&request.container_id).await?;
        let timeout = u64::try_from(request.timeout)
            .ok()
            .filter(|seconds| *seconds > 0)
            .map(Duration::from_secs);
        let answer = self
            .runtime()
            .exec_sync(&id, &request.cmd, timeout, EXEC_SYNC_BYTES)
            .await
            .map_err(status)?;
        Ok(Response::new(v1::ExecSyncResponse {
            stdout: answer.stdout,
            stderr: answer.stderr,
            exit_code: answer.exit_code,
        }))
    }

    async fn exec(
        &self,
        request: Request<v1::ExecRequest>,
    ) -> Result<Response<v1::ExecResponse>, Status> {
        let request = request.into_inner();
        if request.cmd.is_empty() {
            return Err(FieldError::Missing("cmd").into());
        }
        let options = stream_options(request.stdin, request.stdout, request.stderr, request.tty)?;
        let id = self.running(&request.container_id).await?;
        let url = self.inner.streaming.exec(id, request.cmd, options).await?;
        Ok(Response::new(v1::ExecResponse { url }))
    }

    async fn attach(
        &self,
        request: Request<v1::AttachRequest>,
    ) -> Result<Response<v1::AttachResponse>, Status> {
        let request = request.into_inner();
        let options = stream_options(request.stdin, request.stdout, request.stderr, request.tty)?;
        let id = self.running(&request.container_id).await?;
        let url = self.inner.streaming.attach(id, options).await?;
        Ok(Response::new(v1::AttachResponse { url }))
    }

    async fn port_forward(
        &self,
        request: Request<v1::PortForwardRequest>,
    ) -> Result<Response<v1::PortForwardResponse>, Status> {
        let request = request.into_inner();
        let ports = request
            .port
            .iter()
            .map(|port| {
                u16::try_from(*port)
                    .ok()
                    .filter(|port| *port > 0)
                    .ok_or_else(|| FieldError::invalid("port", port, "must be from 1 to 65535"))
            })
            .collect::<Result<Vec<u16>, _>>()?;
        let id = self.sandbox_id(&request.pod_sandbox_id).await?;
        let found = self
            .runtime()
            .pod_sandbox_status(&id)
            .await
            .map_err(status)?;
        if found.state != SandboxState::Ready {
            return Err(Status::failed_precondition(format!(
                "pod sandbox {id} is not ready"
            )));
        }
        let url = self.inner.streaming.port_forward(id, ports).await?;
        Ok(Response::new(v1::PortForwardResponse { url }))
    }

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Result<Response<v1::ContainerStatsResponse>, Status> {
        let id = self.container_id(&request.get_ref().container_id).await?;
        let filter = v1::ContainerStatsFilter {
            id: id.clone(),
            ..Default::default()
        };
        match self.stats(Some(&filter)).await?.pop() {
            Some(stats) => Ok(Response::new(v1::ContainerStatsResponse {
                stats: Some(stats),
            })),
            None => Err(Status::failed_precondition(format!(
                "container {id} is not running: it uses nothing"
            ))),
        }
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Result<Response<v1::ListContainerStatsResponse>, Status> {
        let stats = self.stats(request.get_ref().filter.as_ref()).await?;
        Ok(Response::new(v1::ListContainerStatsResponse { stats }))
    }

    type StreamContainerStatsStream = Answers<v1::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        let items = self.stats(request.get_ref().filter.as_ref()).await?;
        let message = |container_stats| v1::StreamContainerStatsResponse { container_stats };
        Ok(Response::new(in_messages(items, message)))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Result<Response<v1::PodSandboxStatsResponse>, Status> {
        let id = self.sandbox_id(&request.get_ref().pod_sandbox_id).await?;
        let filter = v1::PodSandboxStatsFilter {
            id: id.clone(),
            ..Default::default()
        };
        match self.sandbox_stats(Some(&filter)).await?.pop() {
            Some(stats) => Ok(Response::new(v1::PodSandboxStatsResponse {
                stats: Some(stats),
            })),
            None => Err(Status::failed_precondition(format!(
                "pod sandbox {id} is not ready: it uses nothing"
            ))),
        }
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Result<Response<v1::ListPodSandboxStatsResponse>, Status> {
        let stats = self
            .sandbox_stats(request.get_ref().filter.as_ref())
            .await?;
        Ok(Response::new(v1::ListPodSandboxStatsResponse { stats }))
    }

    type StreamPodSandboxStatsStream = Answers<v1::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        let items = self
            .sandbox_stats(request.get_ref().filter.as_ref())
            .await?;
        let message = |pod_sandbox_stats| v1::StreamPodSandboxStatsResponse { pod_sandbox_stats };
        Ok(Response::new(in_messages(items, message)))
    }

    async fn update_runtime_config(
        &self,
        request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Result<Response<v1::UpdateRuntimeConfigResponse>, Status> {
        let cidrs = request
            .into_inner()
            .runtime_config
            .and_then(|config| config.network_config)
            .map(|network| network.pod_cidr)
            .unwrap_or_default();
        let cidrs: Vec<String> = cidrs
            .split(',')
            .map(|cidr| cidr.trim().to_owned())
            .filter(|cidr| !cidr.is_empty())
            .collect();
        // An empty update is what upstream's kubelet sends of a node that has no range yet.
        if cidrs.is_empty() {
            return Ok(Response::new(v1::UpdateRuntimeConfigResponse {}));
        }
        if !self.inner.options.pod_cidrs_by_cri {
            return Err(Status::failed_precondition(
                "runtime_config.network_config.pod_cidr: the kubelet runs, and tells the pod CIDRs of its Node",
            ));
        }
        self.runtime()
            .update_pod_cidrs(cidrs)
            .await
            .map_err(status)?;
        Ok(Response::new(v1::UpdateRuntimeConfigResponse {}))
    }

    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let found = self.runtime().status().await.map_err(status)?;
        Ok(Response::new(v1::StatusResponse {
            status: Some(to_cri::conditions(&found)),
            info: match request.get_ref().verbose {
                true => self.info(),
                false => HashMap::new(),
            },
            runtime_handlers: to_cri::handlers(&found),
            features: Some(v1::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
                mount_options: false,
            }),
        }))
    }

    async fn checkpoint_container(
        &self,
        _: Request<v1::CheckpointContainerRequest>,
    ) -> Result<Response<v1::CheckpointContainerResponse>, Status> {
        Err(checkpoints())
    }

    async fn checkpoint_pod(
        &self,
        _: Request<v1::CheckpointPodRequest>,
    ) -> Result<Response<v1::CheckpointPodResponse>, Status> {
        Err(checkpoints())
    }

    async fn restore_pod(
        &self,
        _: Request<v1::RestorePodRequest>,
    ) -> Result<Response<v1::RestorePodResponse>, Status> {
        Err(checkpoints())
    }

    type GetContainerEventsStream = Answers<v1::ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        Ok(Response::new(self.container_events()))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Result<Response<v1::ListMetricDescriptorsResponse>, Status> {
        Ok(Response::new(v1::ListMetricDescriptorsResponse {
            descriptors: to_cri::descriptors(),
        }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Result<Response<v1::ListPodSandboxMetricsResponse>, Status> {
        let pod_metrics = self.sandbox_metrics().await?;
        Ok(Response::new(v1::ListPodSandboxMetricsResponse {
            pod_metrics,
        }))
    }

    type StreamPodSandboxMetricsStream = Answers<v1::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        let items = self.sandbox_metrics().await?;
        let message = |pod_sandbox_metrics| v1::StreamPodSandboxMetricsResponse {
            pod_sandbox_metrics,
        };
        Ok(Response::new(in_messages(items, message)))
    }

    async fn runtime_config(
        &self,
        _: Request<v1::RuntimeConfigRequest>,
    ) -> Result<Response<v1::RuntimeConfigResponse>, Status> {
        Ok(Response::new(v1::RuntimeConfigResponse {
            linux: Some(v1::LinuxRuntimeConfiguration {
                cgroup_driver: v1::CgroupDriver::Cgroupfs.into(),
            }),
        }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        _: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<v1::UpdatePodSandboxResourcesResponse>, Status> {
        Err(FieldError::NotBuilt {
            field: "UpdatePodSandboxResources",
            why: "a pod's cgroup is its caller's, the runtime keeps no copy of its resources",
        }
        .into())
    }
}
