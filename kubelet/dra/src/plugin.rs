//! One driver, called over its socket.
//!
//! Upstream: plugin/dra_plugin.go.
//!
//! **Invariant:** every call has a deadline but the stream of health, and every message a bound.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::claims::Device;
use crate::connection::Connection;
use crate::health::{DeviceHealth, HealthStatus};
use crate::observer::Observer;
use crate::service::{HealthService, Service};
use crate::{health_v1, health_v1alpha1, v1, v1beta1};

/// Upstream: `defaultClientCallTimeout`.
const CALL_TIMEOUT: Duration = Duration::from_secs(45);
/// As Go's gRPC has it by default.
const MESSAGE_BYTES: usize = 4 << 20;
/// Of what a driver says for users, in bytes: an event has 1024 letters.
const MOST_WORDS: usize = 2048;

/// What a driver answered instead of doing what it was asked. The text is grpc-go's, as messages of pods have it upstream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rpc error: code = {} desc = {message}", code_name(*.code))]
pub struct CallError {
    pub code: Code,
    pub message: String,
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self {
            code: status.code(),
            message: shortened(status.message()),
        }
    }
}

/// A driver's words for an event.
pub(crate) fn shortened(message: &str) -> String {
    match message.len() {
        0..=MOST_WORDS => message.to_owned(),
        _ => format!("{}...", &message[..message.floor_char_boundary(MOST_WORDS)]),
    }
}

/// As Go's gRPC calls it. Source: google.golang.org/grpc/codes.
pub(crate) fn code_name(code: Code) -> String {
    match code {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        other => format!("{other:?}"),
    }
}

/// A claim, as drivers are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// How all devices are, anew after every change. It ends when the driver does.
pub type HealthReports = BoxStream<'static, Result<HealthReport, CallError>>;
pub type HealthReport = Vec<DeviceHealth>;

/// What a driver is asked.
#[async_trait]
pub trait Plugin: Send + Sync + 'static {
    /// By UID of a claim: its devices, or why it is not prepared.
    async fn prepare(
        &self,
        claims: Vec<Claim>,
    ) -> Result<BTreeMap<String, Result<Vec<Device>, String>>, CallError>;
    /// By UID of a claim: why it is not unprepared, if it is not.
    async fn unprepare(
        &self,
        claims: Vec<Claim>,
    ) -> Result<BTreeMap<String, Result<(), String>>, CallError>;
    /// Asked only if it tells of health.
    async fn watch_health(&self) -> Result<HealthReports, CallError>;
    fn tells_health(&self) -> bool;
    /// Zero: it is not to be had.
    fn connections(&self) -> watch::Receiver<usize>;
}

/// A driver that listens on a socket, or will.
pub(crate) struct Client {
    pub(crate) driver: String,
    pub(crate) service: Service,
    pub(crate) health: Option<HealthService>,
    connection: Connection,
    clock: Clock,
    observer: Arc<dyn Observer>,
}

impl Client {
    pub(crate) fn open(
        driver: &str,
        socket: &Path,
        (service, health): (Service, Option<HealthService>),
        clock: &Clock,
        observer: &Arc<dyn Observer>,
    ) -> Self {
        Self {
            driver: driver.to_owned(),
            service,
            health,
            connection: Connection::open(socket, clock.clone()),
            clock: clock.clone(),
            observer: observer.clone(),
        }
    }

    fn channel(&self) -> Channel {
        self.connection.channel()
    }

    /// The answer, or that there was none in time.
    async fn within<T>(
        &self,
        method: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CallError> {
        let begin = self.clock.monotonic();
        let answer = match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(answer) => answer.map(Response::into_inner).map_err(CallError::from),
            Err(_) => Err(Status::deadline_exceeded("context deadline exceeded").into()),
        };
        let method = format!("/{}.DRAPlugin/{method}", self.service.package());
        let code = answer.as_ref().err().map_or(Code::Ok, |error| error.code);
        let took = self.clock.monotonic() - begin;
        self.observer
            .called(&self.driver, &method, &code_name(code), took);
        answer
    }
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

/// An empty text is none.
fn outcome<T>(value: T, error: String) -> Result<T, String> {
    match error.is_empty() {
        true => Ok(value),
        false => Err(error),
    }
}

#[async_trait]
impl Plugin for Client {
    async fn prepare(
        &self,
        claims: Vec<Claim>,
    ) -> Result<BTreeMap<String, Result<Vec<Device>, String>>, CallError> {
        const METHOD: &str = "NodePrepareResources";
        let channel = self.channel();
        match self.service {
            Service::V1 => {
                let claims = claims.into_iter().map(v1::Claim::from).collect();
                let mut client = v1::dra_plugin_client::DraPluginClient::new(channel)
                    .max_decoding_message_size(MESSAGE_BYTES);
                let asked = request(v1::NodePrepareResourcesRequest { claims });
                let answer = self.within(METHOD, client.node_prepare_resources(asked));
                let all = answer.await?.claims.into_iter();
                let one = |(uid, of_claim): (String, v1::NodePrepareResourceResponse)| {
                    let devices = of_claim.devices.into_iter().map(Device::from).collect();
                    (uid, outcome(devices, of_claim.error))
                };
                Ok(all.map(one).collect())
            }
            Service::V1Beta1 => {
                let claims = claims.into_iter().map(v1beta1::Claim::from).collect();
                let mut client = v1beta1::dra_plugin_client::DraPluginClient::new(channel)
                    .max_decoding_message_size(MESSAGE_BYTES);
                let asked = request(v1beta1::NodePrepareResourcesRequest { claims });
                let answer = self.within(METHOD, client.node_prepare_resources(asked));
                let all = answer.await?.claims.into_iter();
                let one = |(uid, of_claim): (String, v1beta1::NodePrepareResourceResponse)| {
                    let devices = of_claim.devices.into_iter().map(Device::from).collect();
                    (uid, outcome(devices, of_claim.error))
                };
                Ok(all.map(one).collect())
            }
        }
    }

    async fn unprepare(
        &self,
        claims: Vec<Claim>,
    ) -> Result<BTreeMap<String, Result<(), String>>, CallError> {
        const METHOD: &str = "NodeUnprepareResources";
        let channel = self.channel();
        match self.service {
            Service::V1 => {
                let claims = claims.into_iter().map(v1::Claim::from).collect();
                let mut client = v1::dra_plugin_client::DraPluginClient::new(channel)
                    .max_decoding_message_size(MESSAGE_BYTES);
                let asked = request(v1::NodeUnprepareResourcesRequest { claims });
                let answer = self.within(METHOD, client.node_unprepare_resources(asked));
                let all = answer.await?.claims.into_iter();
                Ok(all
                    .map(|(uid, one)| (uid, outcome((), one.error)))
                    .collect())
            }
            Service::V1Beta1 => {
                let claims = claims.into_iter().map(v1beta1::Claim::from).collect();
                let mut client = v1beta1::dra_plugin_client::DraPluginClient::new(channel)
                    .max_decoding_message_size(MESSAGE_BYTES);
                let asked = request(v1beta1::NodeUnprepareResourcesRequest { claims });
                let answer = self.within(METHOD, client.node_unprepare_resources(asked));
                let all = answer.await?.claims.into_iter();
                Ok(all
                    .map(|(uid, one)| (uid, outcome((), one.error)))
                    .collect())
            }
        }
    }

    async fn watch_health(&self) -> Result<HealthReports, CallError> {
        let channel = self.channel();
        match self.health {
            Some(HealthService::V1) => {
                use health_v1::dra_resource_health_client::DraResourceHealthClient;
                let mut client =
                    DraResourceHealthClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
                let asked = health_v1::NodeWatchResourcesRequest {};
                let stream = client.node_watch_resources(asked).await?.into_inner();
                let reports = stream.map(|message| -> Result<HealthReport, CallError> {
                    let devices = message.map_err(CallError::from)?.devices.into_iter();
                    Ok(devices.map(DeviceHealth::from).collect())
                });
                Ok(reports.boxed())
            }
            Some(HealthService::V1Alpha1) => {
                use health_v1alpha1::dra_resource_health_client::DraResourceHealthClient;
                let mut client =
                    DraResourceHealthClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
                let asked = health_v1alpha1::NodeWatchResourcesRequest {};
                let stream = client.node_watch_resources(asked).await?.into_inner();
                let reports = stream.map(|message| -> Result<HealthReport, CallError> {
                    let devices = message.map_err(CallError::from)?.devices.into_iter();
                    Ok(devices.map(DeviceHealth::from).collect())
                });
                Ok(reports.boxed())
            }
            None => Err(Status::unimplemented("the driver offers no service of health").into()),
        }
    }

    fn tells_health(&self) -> bool {
        self.health.is_some()
    }

    fn connections(&self) -> watch::Receiver<usize> {
        self.connection.watch()
    }
}

impl From<Claim> for v1::Claim {
    fn from(claim: Claim) -> Self {
        Self {
            namespace: claim.namespace,
            uid: claim.uid,
            name: claim.name,
        }
    }
}

impl From<Claim> for v1beta1::Claim {
    fn from(claim: Claim) -> Self {
        Self {
            namespace: claim.namespace,
            uid: claim.uid,
            name: claim.name,
        }
    }
}

impl From<v1::Device> for Device {
    fn from(device: v1::Device) -> Self {
        Self {
            pool_name: device.pool_name,
            device_name: device.device_name,
            share_id: device.share_id,
            request_names: device.request_names,
            cdi_device_ids: device.cdi_device_ids,
        }
    }
}

impl From<v1beta1::Device> for Device {
    fn from(device: v1beta1::Device) -> Self {
        Self {
            pool_name: device.pool_name,
            device_name: device.device_name,
            share_id: None,
            request_names: device.request_names,
            cdi_device_ids: device.cdi_device_ids,
        }
    }
}

/// From the two versions of one message. Upstream: `buildDeviceHealth`.
fn device_health(
    (pool_name, device_name): (String, String),
    status: i32,
    timeout_seconds: i64,
    message: String,
) -> DeviceHealth {
    DeviceHealth {
        pool_name,
        device_name,
        health: match status {
            1 => HealthStatus::Healthy,
            2 => HealthStatus::Unhealthy,
            _ => HealthStatus::Unknown,
        },
        // Said when it is taken over.
        last_updated: jiff::Timestamp::UNIX_EPOCH,
        health_check_timeout: timeout_seconds.max(0).saturating_mul(1_000_000_000),
        message,
    }
}

impl From<health_v1::DeviceHealth> for DeviceHealth {
    fn from(told: health_v1::DeviceHealth) -> Self {
        let device = told.device.unwrap_or_default();
        let name = (device.pool_name, device.device_name);
        device_health(
            name,
            told.health,
            told.health_check_timeout_seconds,
            told.message,
        )
    }
}

impl From<health_v1alpha1::DeviceHealth> for DeviceHealth {
    fn from(told: health_v1alpha1::DeviceHealth) -> Self {
        let device = told.device.unwrap_or_default();
        let name = (device.pool_name, device.device_name);
        device_health(
            name,
            told.health,
            told.health_check_timeout_seconds,
            told.message,
        )
    }
}
