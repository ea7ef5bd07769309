//! One plugin, called over its socket.
//!
//! Upstream: endpoint.go, plugin/v1beta1/client.go.
//!
//! **Invariant:** every call has a deadline but the stream of devices, and every message a bound.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};
use tower::service_fn;

use crate::v1beta1::device_plugin_client::DevicePluginClient;
use crate::v1beta1::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, Device, Empty, PreStartContainerRequest,
    PreferredAllocationRequest,
};

pub use crate::v1beta1::DevicePluginOptions as PluginOptions;

/// What the peer sees as the name of its host; upstream: `grpc.WithAuthority`.
const AUTHORITY: &str = "http://localhost";
/// How long a socket may take to be listened on; upstream: `dial`.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
const DIAL_RETRY: Duration = Duration::from_millis(100);
/// Of questions that need no device. DIFFERS: upstream waits for good.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Some plugins program their devices meanwhile. DIFFERS: upstream waits for good, and no other pod is admitted until then.
const ALLOCATE_TIMEOUT: Duration = Duration::from_secs(120);
/// Upstream: `KubeletPreStartContainerRPCTimeoutInSecs`.
const PRE_START_TIMEOUT: Duration = Duration::from_secs(30);
/// As Go's gRPC has it by default.
const MESSAGE_BYTES: usize = 4 << 20;

/// What a plugin answered instead of doing what it was asked. The text is grpc-go's, as messages of pods have it upstream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    #[error("rpc error: code = {} desc = {message}", code_name(*.code))]
    Rpc { code: Code, message: String },
    #[error("failed to dial device plugin: {}: {why}", socket.display())]
    Dial { socket: PathBuf, why: String },
    #[error("no containers return in allocation response")]
    NoContainer,
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self::Rpc {
            code: status.code(),
            message: status.message().to_owned(),
        }
    }
}

fn code_name(code: Code) -> String {
    match code {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        other => format!("{other:?}"),
    }
}

/// All devices of a plugin, anew after every change. It ends when the plugin does.
pub type Reports = BoxStream<'static, Result<Vec<Device>, CallError>>;

/// What a plugin is asked. One container at a time, as upstream.
#[async_trait]
pub trait Plugin: Send + Sync + 'static {
    async fn options(&self) -> Result<PluginOptions, CallError>;
    async fn list_and_watch(&self) -> Result<Reports, CallError>;
    /// Asked only if the options offer it.
    async fn preferred_allocation(
        &self,
        available: Vec<String>,
        must_include: Vec<String>,
        size: usize,
    ) -> Result<Vec<String>, CallError>;
    async fn allocate(&self, ids: Vec<String>) -> Result<ContainerAllocateResponse, CallError>;
    /// Asked only if the options want it.
    async fn pre_start_container(&self, ids: Vec<String>) -> Result<(), CallError>;
}

/// Waits until somebody listens on the socket.
///
/// # Errors
/// Nobody does in time.
pub async fn connect(socket: &Path) -> Result<Arc<dyn Plugin>, CallError> {
    let dialed = tokio::time::timeout(DIAL_TIMEOUT, async {
        loop {
            match dial(socket).await {
                Ok(channel) => return channel,
                Err(error) => tracing::debug!(socket = %socket.display(), %error, "not yet"),
            }
            tokio::time::sleep(DIAL_RETRY).await;
        }
    });
    let channel = dialed.await.map_err(|_| CallError::Dial {
        socket: socket.to_owned(),
        why: "context deadline exceeded".to_owned(),
    })?;
    let client = DevicePluginClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
    Ok(Arc::new(Client(client)))
}

pub(crate) async fn dial(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let socket = socket.to_owned();
    let connector = service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static(AUTHORITY)
        .connect_with_connector(connector)
        .await
}

struct Client(DevicePluginClient<Channel>);

impl Client {
    fn client(&self) -> DevicePluginClient<Channel> {
        self.0.clone()
    }
}

/// The answer, or that there was none in time.
async fn within<T>(
    timeout: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(timeout, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Status::deadline_exceeded("context deadline exceeded").into()),
    }
}

fn request<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

#[async_trait]
impl Plugin for Client {
    async fn options(&self) -> Result<PluginOptions, CallError> {
        let mut client = self.client();
        let asked = request(Empty {}, QUESTION_TIMEOUT);
        within(QUESTION_TIMEOUT, client.get_device_plugin_options(asked)).await
    }

    async fn list_and_watch(&self) -> Result<Reports, CallError> {
        let mut client = self.client();
        // The first message may be long in coming: some plugins answer once they know of a device.
        let stream = client.list_and_watch(Empty {}).await?.into_inner();
        let devices = stream.map(|m| m.map(|m| m.devices).map_err(CallError::from));
        Ok(devices.boxed())
    }

    async fn preferred_allocation(
        &self,
        available: Vec<String>,
        must_include: Vec<String>,
        size: usize,
    ) -> Result<Vec<String>, CallError> {
        let mut client = self.client();
        let container = ContainerPreferredAllocationRequest {
            available_device_i_ds: available,
            must_include_device_i_ds: must_include,
            allocation_size: i32::try_from(size).unwrap_or(i32::MAX),
        };
        let asked = PreferredAllocationRequest {
            container_requests: vec![container],
        };
        let call = client.get_preferred_allocation(request(asked, QUESTION_TIMEOUT));
        let answer = within(QUESTION_TIMEOUT, call).await?;
        let first = answer.container_responses.into_iter().next();
        Ok(first.unwrap_or_default().device_i_ds)
    }

    async fn allocate(&self, ids: Vec<String>) -> Result<ContainerAllocateResponse, CallError> {
        let mut client = self.client();
        let asked = AllocateRequest {
            container_requests: vec![ContainerAllocateRequest { devices_ids: ids }],
        };
        let call = client.allocate(request(asked, ALLOCATE_TIMEOUT));
        let answer = within(ALLOCATE_TIMEOUT, call).await?;
        let first = answer.container_responses.into_iter().next();
        first.ok_or(CallError::NoContainer)
    }

    async fn pre_start_container(&self, ids: Vec<String>) -> Result<(), CallError> {
        let mut client = self.client();
        let asked = PreStartContainerRequest { devices_ids: ids };
        let call = client.pre_start_container(request(asked, PRE_START_TIMEOUT));
        within(PRE_START_TIMEOUT, call).await.map(drop)
    }
}
