//! A driver in this process: notes what it is asked, and mounts nothing unless told how.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use csi_spec::csi::v1 as pb;
use csi_spec::csi::v1::node_server::{Node, NodeServer};
use csi_spec::csi::v1::node_service_capability::rpc::Type;
use csi_spec::pluginregistration as reg;
use csi_spec::pluginregistration::registration_server::{Registration, RegistrationServer};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::drivers::{Driver, Drivers};
use crate::version::highest_supported;

type Act = Box<dyn Fn(&str) -> Result<(), Status> + Send + Sync>;

/// What the fake notes and is told.
#[derive(Default)]
pub struct State {
    /// `NodeStageVolume volume path`, in order.
    calls: Mutex<Vec<String>>,
    pub published: Mutex<Vec<pb::NodePublishVolumeRequest>>,
    pub staged: Mutex<Vec<pb::NodeStageVolumeRequest>>,
    pub expanded: Mutex<Vec<pb::NodeExpandVolumeRequest>>,
    pub capabilities: Mutex<Vec<Type>>,
    /// A method's errors, each told once, the first first.
    failures: Mutex<HashMap<&'static str, Vec<Status>>>,
    on_publish: Mutex<Option<Act>>,
    on_unpublish: Mutex<Option<Act>>,
}

impl State {
    fn note(&self, method: &'static str, volume: &str, path: &str) -> Result<(), Status> {
        let call = format!("{method} {volume} {path}");
        self.calls.lock().unwrap().push(call);
        let mut failures = self.failures.lock().unwrap();
        match failures.get_mut(method) {
            Some(list) if !list.is_empty() => Err(list.remove(0)),
            _ => Ok(()),
        }
    }

    /// What was asked since the last time.
    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    /// The next call of `method` fails.
    pub fn fail(&self, method: &'static str, status: Status) {
        let mut failures = self.failures.lock().unwrap();
        failures.entry(method).or_default().push(status);
    }

    /// Done with the target of each publication.
    pub fn on_publish(&self, act: impl Fn(&str) -> Result<(), Status> + Send + Sync + 'static) {
        *self.on_publish.lock().unwrap() = Some(Box::new(act));
    }

    /// Done with the target of each end of one.
    pub fn on_unpublish(&self, act: impl Fn(&str) -> Result<(), Status> + Send + Sync + 'static) {
        *self.on_unpublish.lock().unwrap() = Some(Box::new(act));
    }
}

/// Serves until it is dropped.
pub struct FakeDriver {
    pub socket: PathBuf,
    pub state: Arc<State>,
    task: JoinHandle<()>,
}

impl FakeDriver {
    pub async fn start(socket: &Path) -> Self {
        let state = Arc::new(State::default());
        *state.capabilities.lock().unwrap() = vec![
            Type::StageUnstageVolume,
            Type::GetVolumeStats,
            Type::ExpandVolume,
        ];
        let listener = UnixListener::bind(socket).unwrap();
        let service = NodeServer::new(Service(state.clone()));
        let task = tokio::spawn(async move {
            let router = Server::builder().add_service(service);
            router
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self {
            socket: socket.to_owned(),
            state,
            task,
        }
    }

    /// As if it had registered.
    pub fn register(&self, drivers: &Drivers, name: &str) {
        let version = highest_supported(&["1.0.0".to_owned()]).unwrap();
        let endpoint = self.socket.clone();
        drivers.set(name, Driver { endpoint, version });
    }

    /// As if its socket had gone.
    pub fn deregister(drivers: &Drivers, name: &str) {
        drivers.remove(name);
    }
}

impl Drop for FakeDriver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Service(Arc<State>);

#[tonic::async_trait]
impl Node for Service {
    async fn node_stage_volume(
        &self,
        request: Request<pb::NodeStageVolumeRequest>,
    ) -> Result<Response<pb::NodeStageVolumeResponse>, Status> {
        let asked = request.into_inner();
        let answer = self.0.note(
            "NodeStageVolume",
            &asked.volume_id,
            &asked.staging_target_path,
        );
        self.0.staged.lock().unwrap().push(asked);
        answer.map(|()| Response::new(Default::default()))
    }
    async fn node_unstage_volume(
        &self,
        request: Request<pb::NodeUnstageVolumeRequest>,
    ) -> Result<Response<pb::NodeUnstageVolumeResponse>, Status> {
        let asked = request.get_ref();
        self.0.note(
            "NodeUnstageVolume",
            &asked.volume_id,
            &asked.staging_target_path,
        )?;
        Ok(Response::new(Default::default()))
    }
    async fn node_publish_volume(
        &self,
        request: Request<pb::NodePublishVolumeRequest>,
    ) -> Result<Response<pb::NodePublishVolumeResponse>, Status> {
        let asked = request.into_inner();
        let answer = self
            .0
            .note("NodePublishVolume", &asked.volume_id, &asked.target_path);
        let target = asked.target_path.clone();
        self.0.published.lock().unwrap().push(asked);
        answer?;
        if let Some(act) = &*self.0.on_publish.lock().unwrap() {
            act(&target)?;
        }
        Ok(Response::new(Default::default()))
    }
    async fn node_unpublish_volume(
        &self,
        request: Request<pb::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<pb::NodeUnpublishVolumeResponse>, Status> {
        let asked = request.get_ref();
        self.0
            .note("NodeUnpublishVolume", &asked.volume_id, &asked.target_path)?;
        if let Some(act) = &*self.0.on_unpublish.lock().unwrap() {
            act(&asked.target_path)?;
        }
        Ok(Response::new(Default::default()))
    }
    async fn node_get_volume_stats(
        &self,
        request: Request<pb::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<pb::NodeGetVolumeStatsResponse>, Status> {
        let asked = request.get_ref();
        self.0
            .note("NodeGetVolumeStats", &asked.volume_id, &asked.volume_path)?;
        let usage = |unit, available, total, used| pb::VolumeUsage {
            unit: unit as i32,
            available,
            total,
            used,
        };
        Ok(Response::new(pb::NodeGetVolumeStatsResponse {
            usage: vec![
                usage(pb::volume_usage::Unit::Bytes, 60, 100, 40),
                usage(pb::volume_usage::Unit::Inodes, 7, 10, 3),
            ],
            ..Default::default()
        }))
    }
    async fn node_get_volume_health(
        &self,
        _: Request<pb::NodeGetVolumeHealthRequest>,
    ) -> Result<Response<pb::NodeGetVolumeHealthResponse>, Status> {
        Err(Status::unimplemented("health"))
    }
    async fn node_get_storage_health(
        &self,
        _: Request<pb::NodeGetStorageHealthRequest>,
    ) -> Result<Response<pb::NodeGetStorageHealthResponse>, Status> {
        Err(Status::unimplemented("health"))
    }
    async fn node_expand_volume(
        &self,
        request: Request<pb::NodeExpandVolumeRequest>,
    ) -> Result<Response<pb::NodeExpandVolumeResponse>, Status> {
        let asked = request.into_inner();
        let answer = self
            .0
            .note("NodeExpandVolume", &asked.volume_id, &asked.volume_path);
        let wanted = asked
            .capacity_range
            .as_ref()
            .map_or(0, |r| r.required_bytes);
        self.0.expanded.lock().unwrap().push(asked);
        answer?;
        Ok(Response::new(pb::NodeExpandVolumeResponse {
            capacity_bytes: wanted,
        }))
    }
    async fn node_get_capabilities(
        &self,
        _: Request<pb::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<pb::NodeGetCapabilitiesResponse>, Status> {
        let kinds = self.0.capabilities.lock().unwrap().clone();
        let capability = |kind: Type| pb::NodeServiceCapability {
            r#type: Some(pb::node_service_capability::Type::Rpc(
                pb::node_service_capability::Rpc {
                    r#type: kind as i32,
                },
            )),
        };
        Ok(Response::new(pb::NodeGetCapabilitiesResponse {
            capabilities: kinds.into_iter().map(capability).collect(),
        }))
    }
    async fn node_get_info(
        &self,
        _: Request<pb::NodeGetInfoRequest>,
    ) -> Result<Response<pb::NodeGetInfoResponse>, Status> {
        Ok(Response::new(pb::NodeGetInfoResponse {
            node_id: "node-1".to_owned(),
            max_volumes_per_node: 7,
            accessible_topology: None,
        }))
    }
}

/// A registrar: what it says of its plugin.
#[derive(Clone)]
pub struct Plugin {
    pub kind: String,
    pub name: String,
    pub endpoint: PathBuf,
    pub versions: Vec<String>,
}

impl Plugin {
    pub fn csi(name: &str, endpoint: &Path, versions: &[&str]) -> Self {
        Self {
            kind: reg::CSI_PLUGIN.to_owned(),
            name: name.to_owned(),
            endpoint: endpoint.to_owned(),
            versions: versions.iter().map(|v| (*v).to_owned()).collect(),
        }
    }

    /// Serves at `socket` until dropped.
    pub async fn start(self, socket: &Path) -> RunningPlugin {
        let listener = UnixListener::bind(socket).unwrap();
        let (tell, told) = watch::channel(None);
        let service = RegistrationServer::new(Registrar { plugin: self, tell });
        let task = tokio::spawn(async move {
            let router = Server::builder().add_service(service);
            router
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        });
        RunningPlugin { told, task }
    }
}

/// A registrar that serves.
pub struct RunningPlugin {
    told: watch::Receiver<Option<Result<(), String>>>,
    task: JoinHandle<()>,
}

impl RunningPlugin {
    /// What it was told of its registration, once it was.
    pub async fn status(&self) -> Result<(), String> {
        let mut told = self.told.clone();
        let wait = told.wait_for(Option::is_some);
        let told = tokio::time::timeout(Duration::from_secs(10), wait).await;
        told.unwrap().unwrap().clone().unwrap()
    }
}

impl Drop for RunningPlugin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Registrar {
    plugin: Plugin,
    tell: watch::Sender<Option<Result<(), String>>>,
}

#[tonic::async_trait]
impl Registration for Registrar {
    async fn get_info(
        &self,
        _: Request<reg::InfoRequest>,
    ) -> Result<Response<reg::PluginInfo>, Status> {
        Ok(Response::new(reg::PluginInfo {
            r#type: self.plugin.kind.clone(),
            name: self.plugin.name.clone(),
            endpoint: self.plugin.endpoint.display().to_string(),
            supported_versions: self.plugin.versions.clone(),
        }))
    }
    async fn notify_registration_status(
        &self,
        request: Request<reg::RegistrationStatus>,
    ) -> Result<Response<reg::RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        self.tell.send_replace(Some(if status.plugin_registered {
            Ok(())
        } else {
            Err(status.error)
        }));
        Ok(Response::new(Default::default()))
    }
}
