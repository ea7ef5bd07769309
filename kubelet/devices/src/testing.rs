//! A plugin in this process: as a value, or behind a socket.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use crate::plugin::{CallError, Plugin, PluginOptions, Reports};
use crate::v1beta1::device_plugin_server::{DevicePlugin, DevicePluginServer};
use crate::v1beta1::registration_client::RegistrationClient;
use crate::v1beta1::{self as pb, ContainerAllocateResponse};

type Answer = dyn Fn(&[String]) -> Result<ContainerAllocateResponse, Status> + Send + Sync;

/// What it is told to say, and what it was asked.
pub struct FakePlugin {
    /// `None`: it ended.
    devices: watch::Sender<Option<Vec<pb::Device>>>,
    options: PluginOptions,
    /// `Allocate a b`, in order.
    calls: Mutex<Vec<String>>,
    answer: Mutex<Box<Answer>>,
    /// What it prefers.
    pub preferred: Mutex<Vec<String>>,
}

/// IDs with blanks between them; an exclamation mark is for a sick one, `@1` for one of that NUMA node.
pub fn devices(ids: &str) -> Vec<pb::Device> {
    let one = |id: &str| {
        let sick = id.starts_with('!');
        let (id, node) = match id.trim_start_matches('!').split_once('@') {
            Some((id, node)) => (id, Some(node.parse().unwrap())),
            None => (id.trim_start_matches('!'), None),
        };
        pb::Device {
            id: id.to_owned(),
            health: if sick { "Unhealthy" } else { pb::HEALTHY }.to_owned(),
            topology: node.map(|id| pb::TopologyInfo {
                nodes: vec![pb::NumaNode { id }],
            }),
        }
    };
    ids.split_whitespace().map(one).collect()
}

impl FakePlugin {
    /// Answers with the variable `DEVICES`.
    pub fn new(ids: &str, options: PluginOptions) -> Arc<Self> {
        let answer = |ids: &[String]| {
            let envs = [("DEVICES".to_owned(), ids.join(","))].into();
            Ok(ContainerAllocateResponse {
                envs,
                ..ContainerAllocateResponse::default()
            })
        };
        Arc::new(Self {
            devices: watch::Sender::new(Some(devices(ids))),
            options,
            calls: Mutex::default(),
            answer: Mutex::new(Box::new(answer)),
            preferred: Mutex::default(),
        })
    }

    /// It has other devices now.
    pub fn set(&self, ids: &str) {
        self.devices.send_replace(Some(devices(ids)));
    }

    /// Its stream of devices ends.
    pub fn end(&self) {
        self.devices.send_replace(None);
    }

    pub fn answer_by(
        &self,
        answer: impl Fn(&[String]) -> Result<ContainerAllocateResponse, Status> + Send + Sync + 'static,
    ) {
        *self.answer.lock().unwrap() = Box::new(answer);
    }

    /// What was asked since the last time.
    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    fn note(&self, call: &str, ids: &[String]) {
        let call = format!("{call} {}", ids.join(" "));
        self.calls.lock().unwrap().push(call);
    }

    fn reports(&self) -> BoxStream<'static, Vec<pb::Device>> {
        let mut told = self.devices.subscribe();
        told.mark_changed();
        let next = |mut told: watch::Receiver<Option<Vec<pb::Device>>>| async move {
            told.changed().await.ok()?;
            let devices = told.borrow_and_update().clone()?;
            Some((devices, told))
        };
        stream::unfold(told, next).boxed()
    }

    fn asked(&self, ids: &[String]) -> Result<ContainerAllocateResponse, Status> {
        self.note("Allocate", ids);
        self.answer.lock().unwrap()(ids)
    }
}

#[async_trait]
impl Plugin for FakePlugin {
    async fn options(&self) -> Result<PluginOptions, CallError> {
        Ok(self.options)
    }
    async fn list_and_watch(&self) -> Result<Reports, CallError> {
        Ok(self.reports().map(Ok).boxed())
    }
    async fn preferred_allocation(
        &self,
        available: Vec<String>,
        must_include: Vec<String>,
        size: usize,
    ) -> Result<Vec<String>, CallError> {
        let must = must_include.join(" ");
        self.note(&format!("Prefer {size} with [{must}] of"), &available);
        Ok(self.preferred.lock().unwrap().clone())
    }
    async fn allocate(&self, ids: Vec<String>) -> Result<ContainerAllocateResponse, CallError> {
        Ok(self.asked(&ids)?)
    }
    async fn pre_start_container(&self, ids: Vec<String>) -> Result<(), CallError> {
        self.note("PreStart", &ids);
        Ok(())
    }
}

/// The plugin behind a socket, until it is dropped.
pub struct Served {
    pub socket: PathBuf,
    task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakePlugin {
    pub async fn serve(self: &Arc<Self>, socket: &Path) -> Served {
        let listener = UnixListener::bind(socket).unwrap();
        let service = DevicePluginServer::new(Service(self.clone()));
        let task = tokio::spawn(async move {
            let router = tonic::transport::Server::builder().add_service(service);
            let incoming = UnixListenerStream::new(listener);
            router.serve_with_incoming(incoming).await.unwrap();
        });
        Served {
            socket: socket.to_owned(),
            task,
        }
    }
}

/// Registers as a plugin does.
///
/// # Errors
/// What the kubelet answered.
pub async fn register(
    kubelet: &Path,
    version: &str,
    endpoint: &str,
    resource: &str,
) -> Result<(), String> {
    let channel = crate::plugin::dial(kubelet)
        .await
        .map_err(|e| e.to_string())?;
    let request = pb::RegisterRequest {
        version: version.to_owned(),
        endpoint: endpoint.to_owned(),
        resource_name: resource.to_owned(),
        options: None,
    };
    let answer = RegistrationClient::new(channel).register(request).await;
    answer
        .map(drop)
        .map_err(|status| status.message().to_owned())
}

struct Service(Arc<FakePlugin>);

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream = BoxStream<'static, Result<pb::ListAndWatchResponse, Status>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<pb::Empty>,
    ) -> Result<Response<PluginOptions>, Status> {
        Ok(Response::new(self.0.options))
    }
    async fn list_and_watch(
        &self,
        _: Request<pb::Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let message = |devices| Ok(pb::ListAndWatchResponse { devices });
        Ok(Response::new(self.0.reports().map(message).boxed()))
    }
    async fn get_preferred_allocation(
        &self,
        request: Request<pb::PreferredAllocationRequest>,
    ) -> Result<Response<pb::PreferredAllocationResponse>, Status> {
        let asked = request.into_inner().container_requests.remove(0);
        let (available, must) = (asked.available_device_i_ds, asked.must_include_device_i_ds);
        let size = usize::try_from(asked.allocation_size).unwrap();
        let ids = self.0.preferred_allocation(available, must, size).await;
        let container = pb::ContainerPreferredAllocationResponse {
            device_i_ds: ids.unwrap(),
        };
        Ok(Response::new(pb::PreferredAllocationResponse {
            container_responses: vec![container],
        }))
    }
    async fn allocate(
        &self,
        request: Request<pb::AllocateRequest>,
    ) -> Result<Response<pb::AllocateResponse>, Status> {
        let asked = request.into_inner().container_requests.remove(0);
        let container = self.0.asked(&asked.devices_ids)?;
        Ok(Response::new(pb::AllocateResponse {
            container_responses: vec![container],
        }))
    }
    async fn pre_start_container(
        &self,
        request: Request<pb::PreStartContainerRequest>,
    ) -> Result<Response<pb::PreStartContainerResponse>, Status> {
        self.0.note("PreStart", &request.into_inner().devices_ids);
        Ok(Response::new(pb::PreStartContainerResponse {}))
    }
}
