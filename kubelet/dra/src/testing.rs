//! A driver in this process: as a value, or behind a socket.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use crate::claims::Device;
use crate::health::{DeviceHealth, HealthStatus};
use crate::plugin::{CallError, Claim, HealthReports, Plugin};
use crate::{health_v1, health_v1alpha1, v1, v1beta1};

type Answer<T> = dyn Fn(&Claim) -> Result<T, String> + Send + Sync;
/// By UID of a claim.
type Answers<T> = BTreeMap<String, Result<T, String>>;

/// What it is told to say, and what it was asked.
pub struct FakeDriver {
    /// `Prepare a b`, in order, by the names of claims.
    calls: Mutex<Vec<String>>,
    prepared: Mutex<Box<Answer<Vec<Device>>>>,
    unprepared: Mutex<Box<Answer<()>>>,
    /// It fails every call by this.
    broken: Mutex<Option<Status>>,
    /// It forgets the claims of this name.
    forgets: Mutex<Option<String>>,
    connections: watch::Sender<usize>,
    /// `None`: it tells nothing of health.
    health: watch::Sender<Option<Vec<DeviceHealth>>>,
}

/// A device of `pool` for all requests, whose CDI device is `vendor.com/class=<name>`.
pub fn device(name: &str) -> Device {
    Device {
        pool_name: "pool".to_owned(),
        device_name: name.to_owned(),
        cdi_device_ids: vec![format!("vendor.com/class={name}")],
        ..Device::default()
    }
}

/// Names with blanks between them; an exclamation mark is for a sick one.
pub fn health(names: &str) -> Vec<DeviceHealth> {
    let one = |name: &str| DeviceHealth {
        pool_name: "pool".to_owned(),
        device_name: name.trim_start_matches('!').to_owned(),
        health: match name.starts_with('!') {
            true => HealthStatus::Unhealthy,
            false => HealthStatus::Healthy,
        },
        // It says so once, and tests take their time.
        health_check_timeout: 3600 * 1_000_000_000,
        ..DeviceHealth::default()
    };
    names.split_whitespace().map(one).collect()
}

impl Default for FakeDriver {
    /// Every claim has one device, of its name.
    fn default() -> Self {
        Self {
            calls: Mutex::default(),
            prepared: Mutex::new(Box::new(|claim: &Claim| Ok(vec![device(&claim.name)]))),
            unprepared: Mutex::new(Box::new(|_: &Claim| Ok(()))),
            broken: Mutex::default(),
            forgets: Mutex::default(),
            connections: watch::Sender::new(1),
            health: watch::Sender::new(None),
        }
    }
}

impl FakeDriver {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn prepare_by(
        &self,
        answer: impl Fn(&Claim) -> Result<Vec<Device>, String> + Send + Sync + 'static,
    ) {
        *self.prepared.lock().unwrap() = Box::new(answer);
    }

    pub fn unprepare_by(
        &self,
        answer: impl Fn(&Claim) -> Result<(), String> + Send + Sync + 'static,
    ) {
        *self.unprepared.lock().unwrap() = Box::new(answer);
    }

    /// Every call fails; `None`: none any longer.
    pub fn break_by(&self, status: Option<Status>) {
        *self.broken.lock().unwrap() = status;
    }

    /// There is no answer for claims of this name.
    pub fn forget(&self, claim: Option<&str>) {
        *self.forgets.lock().unwrap() = claim.map(str::to_owned);
    }

    /// Whether it can be had; for one that is no socket.
    pub fn set_connected(&self, connected: bool) {
        self.connections.send_replace(usize::from(connected));
    }

    /// How its devices are.
    pub fn set_health(&self, names: &str) {
        self.health.send_replace(Some(health(names)));
    }

    /// What was asked since the last time.
    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    fn asked<T>(
        &self,
        call: &str,
        claims: &[Claim],
        answer: &Mutex<Box<Answer<T>>>,
    ) -> Result<Answers<T>, Status> {
        let names: Vec<_> = claims.iter().map(|claim| claim.name.as_str()).collect();
        let call = format!("{call} {}", names.join(" "));
        self.calls.lock().unwrap().push(call);
        if let Some(status) = self.broken.lock().unwrap().clone() {
            return Err(status);
        }
        let forgotten = self.forgets.lock().unwrap().clone();
        let kept = claims
            .iter()
            .filter(|c| Some(&c.name) != forgotten.as_ref());
        let answer = answer.lock().unwrap();
        Ok(kept
            .map(|claim| (claim.uid.clone(), answer(claim)))
            .collect())
    }

    fn reports(&self) -> BoxStream<'static, Vec<DeviceHealth>> {
        let mut told = self.health.subscribe();
        told.mark_changed();
        let next = |mut told: watch::Receiver<Option<Vec<DeviceHealth>>>| async move {
            told.changed().await.ok()?;
            let devices = told.borrow_and_update().clone()?;
            Some((devices, told))
        };
        stream::unfold(told, next).boxed()
    }
}

#[async_trait]
impl Plugin for FakeDriver {
    async fn prepare(&self, claims: Vec<Claim>) -> Result<Answers<Vec<Device>>, CallError> {
        Ok(self.asked("Prepare", &claims, &self.prepared)?)
    }
    async fn unprepare(&self, claims: Vec<Claim>) -> Result<Answers<()>, CallError> {
        Ok(self.asked("Unprepare", &claims, &self.unprepared)?)
    }
    async fn watch_health(&self) -> Result<HealthReports, CallError> {
        Ok(self.reports().map(Ok).boxed())
    }
    fn tells_health(&self) -> bool {
        self.health.borrow().is_some()
    }
    fn connections(&self) -> watch::Receiver<usize> {
        self.connections.subscribe()
    }
}

/// The driver behind a socket, until it is dropped.
pub struct Served {
    pub socket: PathBuf,
    task: JoinHandle<()>,
    /// Of its connections, which would outlive the task.
    streams: Arc<Mutex<Vec<std::os::unix::net::UnixStream>>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
        for stream in self.streams.lock().unwrap().iter() {
            // It may be closed already.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl FakeDriver {
    /// All services there are, in all versions.
    pub async fn serve(self: &Arc<Self>, socket: &Path) -> Served {
        use health_v1::dra_resource_health_server::DraResourceHealthServer;
        use health_v1alpha1::dra_resource_health_server::DraResourceHealthServer as Alpha;
        // What an earlier one left.
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let service = || Service(self.clone());
        let router = tonic::transport::Server::builder()
            .add_service(v1::dra_plugin_server::DraPluginServer::new(service()))
            .add_service(v1beta1::dra_plugin_server::DraPluginServer::new(service()))
            .add_service(DraResourceHealthServer::new(service()))
            .add_service(Alpha::new(service()));
        let streams: Arc<Mutex<Vec<_>>> = Arc::default();
        let kept = streams.clone();
        let incoming = UnixListenerStream::new(listener);
        let incoming = incoming.map(move |accepted| -> std::io::Result<UnixStream> {
            let stream = accepted?.into_std()?;
            kept.lock().unwrap().push(stream.try_clone()?);
            UnixStream::from_std(stream)
        });
        let task = tokio::spawn(async move {
            router.serve_with_incoming(incoming).await.unwrap();
        });
        Served {
            socket: socket.to_owned(),
            task,
            streams,
        }
    }
}

struct Service(Arc<FakeDriver>);

/// The value, and the words for what failed.
fn split<T: Default>(answer: Result<T, String>) -> (T, String) {
    match answer {
        Ok(value) => (value, String::new()),
        Err(error) => (T::default(), error),
    }
}

/// The two versions of one service.
macro_rules! serve {
    ($api:ident, $device:expr) => {
        #[tonic::async_trait]
        impl $api::dra_plugin_server::DraPlugin for Service {
            async fn node_prepare_resources(
                &self,
                request: Request<$api::NodePrepareResourcesRequest>,
            ) -> Result<Response<$api::NodePrepareResourcesResponse>, Status> {
                let claims: Vec<Claim> = request
                    .into_inner()
                    .claims
                    .into_iter()
                    .map(|claim| Claim {
                        namespace: claim.namespace,
                        name: claim.name,
                        uid: claim.uid,
                    })
                    .collect();
                let answers = self.0.asked("Prepare", &claims, &self.0.prepared)?;
                let claims = answers.into_iter().map(|(uid, answer)| {
                    let (devices, error) = split(answer);
                    let devices = devices.into_iter().map($device).collect();
                    (uid, $api::NodePrepareResourceResponse { devices, error })
                });
                let claims = claims.collect();
                Ok(Response::new($api::NodePrepareResourcesResponse { claims }))
            }

            async fn node_unprepare_resources(
                &self,
                request: Request<$api::NodeUnprepareResourcesRequest>,
            ) -> Result<Response<$api::NodeUnprepareResourcesResponse>, Status> {
                let claims: Vec<Claim> = request
                    .into_inner()
                    .claims
                    .into_iter()
                    .map(|claim| Claim {
                        namespace: claim.namespace,
                        name: claim.name,
                        uid: claim.uid,
                    })
                    .collect();
                let answers = self.0.asked("Unprepare", &claims, &self.0.unprepared)?;
                let claims = answers.into_iter().map(|(uid, answer)| {
                    let error = split(answer).1;
                    (uid, $api::NodeUnprepareResourceResponse { error })
                });
                let claims = claims.collect();
                Ok(Response::new($api::NodeUnprepareResourcesResponse {
                    claims,
                }))
            }
        }
    };
}

serve!(v1, |device: Device| v1::Device {
    request_names: device.request_names,
    pool_name: device.pool_name,
    device_name: device.device_name,
    cdi_device_ids: device.cdi_device_ids,
    share_id: device.share_id,
});
serve!(v1beta1, |device: Device| v1beta1::Device {
    request_names: device.request_names,
    pool_name: device.pool_name,
    device_name: device.device_name,
    cdi_device_ids: device.cdi_device_ids,
});

/// The two versions of one service.
macro_rules! serve_health {
    ($api:ident) => {
        #[tonic::async_trait]
        impl $api::dra_resource_health_server::DraResourceHealth for Service {
            type NodeWatchResourcesStream =
                BoxStream<'static, Result<$api::NodeWatchResourcesResponse, Status>>;

            async fn node_watch_resources(
                &self,
                _: Request<$api::NodeWatchResourcesRequest>,
            ) -> Result<Response<Self::NodeWatchResourcesStream>, Status> {
                let reports = self.0.reports().map(|devices| {
                    let devices = devices.into_iter().map(|one| $api::DeviceHealth {
                        device: Some($api::DeviceIdentifier {
                            pool_name: one.pool_name,
                            device_name: one.device_name,
                        }),
                        health: match one.health {
                            HealthStatus::Unknown => 0,
                            HealthStatus::Healthy => 1,
                            HealthStatus::Unhealthy => 2,
                        },
                        last_updated_time: 0,
                        health_check_timeout_seconds: one.health_check_timeout / 1_000_000_000,
                        message: one.message,
                    });
                    let devices = devices.collect();
                    Ok($api::NodeWatchResourcesResponse { devices })
                });
                Ok(Response::new(reports.boxed()))
            }
        }
    };
}

serve_health!(health_v1);
serve_health!(health_v1alpha1);
