//! The registrar: asks the driver beside it for its name, and tells the kubelet that the driver is there, over a socket in the
//! kubelet's folder of registrations. The kubelet finds the socket; the registrar never calls the kubelet.
//!
//! Upstream: kubernetes-csi/node-driver-registrar (behaviour, names, flags).

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use csi_spec::csi::v1::GetPluginInfoRequest;
use csi_spec::csi::v1::identity_client::IdentityClient;
use csi_spec::pluginregistration as api;
use csi_spec::pluginregistration::registration_client::RegistrationClient;
use csi_spec::pluginregistration::registration_server::{Registration, RegistrationServer};
use thiserror::Error;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, async_trait};

use crate::endpoint::{self, Endpoint, EndpointError};

/// The versions of CSI that a kubelet may choose from. Upstream: `main.go`.
const VERSIONS: &[&str] = &["1.0.0"];
/// How long to wait before the driver is asked again.
const RETRY: Duration = Duration::from_millis(500);
/// Upstream's client waits so long for the driver's socket. Upstream: csi-lib-utils, `connection.go`.
const DRIVER_DEADLINE: Duration = Duration::from_secs(30);

/// The registrar cannot do its work.
#[derive(Debug, Error)]
pub enum RegistrarError {
    #[error("the driver at {path} did not tell its name: {last}")]
    NoDriver { path: PathBuf, last: String },
    #[error("the driver at {0} has an empty name")]
    NoName(PathBuf),
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error("the kubelet refused the driver: {0}")]
    Refused(String),
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("serve registrations")]
    Serve(#[from] tonic::transport::Error),
}

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// The driver's socket, as seen from here.
    pub driver: PathBuf,
    /// The driver's socket, as the kubelet sees it.
    pub driver_for_kubelet: String,
    /// The folder of registrations, as seen from here.
    pub registrations: PathBuf,
    /// How long a call may take.
    pub timeout: Duration,
    /// Where health is told; empty for nowhere.
    pub http: String,
}

/// Registers the driver and stays until `stop` ends.
///
/// # Errors
/// The driver does not answer, the kubelet refuses it, or a socket cannot be had. The caller ends: its container starts it anew.
pub async fn run(options: &Options, stop: impl Future<Output = ()>) -> Result<(), RegistrarError> {
    let name = driver_name(&options.driver, options.timeout).await?;
    tracing::info!(driver = name, "the driver told its name");
    let socket = options.registrations.join(format!("{name}-reg.sock"));
    let endpoint = Endpoint::Unix(socket.clone());
    let listener = endpoint.listen().await?;
    let io = |what: String| move |source| RegistrarError::Io { what, source };
    // The kubelet is root.
    tokio::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))
        .await
        .map_err(io(format!("set the mode of {}", socket.display())))?;
    let (refused, mut refusals) = mpsc::channel(1);
    let service = Registrar {
        info: api::PluginInfo {
            r#type: api::CSI_PLUGIN.to_owned(),
            name: name.clone(),
            endpoint: options.driver_for_kubelet.clone(),
            supported_versions: VERSIONS
                .iter()
                .map(|version| (*version).to_owned())
                .collect(),
        },
        refused,
    };
    let serving = tonic::transport::Server::builder()
        .add_service(RegistrationServer::new(service))
        .serve_with_incoming(listener.into_stream());
    let telling = async {
        if options.http.is_empty() {
            return std::future::pending().await;
        }
        let health = Health {
            socket: socket.clone(),
            name: name.clone(),
            timeout: options.timeout,
        };
        let router = Router::new()
            .route("/healthz", get(healthz))
            .with_state(health);
        serve_http(&options.http, router)
            .await
            .map_err(io(format!("serve on {}", options.http)))
    };
    tracing::info!(socket = %socket.display(), "waiting for the kubelet");
    let ended = tokio::select! {
        ended = serving => ended.map_err(RegistrarError::from),
        ended = telling => ended,
        Some(why) = refusals.recv() => Err(RegistrarError::Refused(why)),
        () = stop => Ok(()),
    };
    endpoint.forget().await;
    ended
}

/// Asks the driver, again and again while it is starting.
async fn driver_name(socket: &Path, timeout: Duration) -> Result<String, RegistrarError> {
    let deadline = tokio::time::Instant::now() + DRIVER_DEADLINE.max(timeout);
    loop {
        let asked = tokio::time::timeout(timeout, async {
            let channel = endpoint::connect(socket)
                .await
                .map_err(|err| err.to_string())?;
            let mut client = IdentityClient::new(channel);
            let answer = client.get_plugin_info(GetPluginInfoRequest {}).await;
            answer.map_err(|status| status.message().to_owned())
        });
        let last = match asked.await {
            Ok(Ok(answer)) => {
                let name = answer.into_inner().name;
                if name.is_empty() {
                    return Err(RegistrarError::NoName(socket.to_owned()));
                }
                return Ok(name);
            }
            Ok(Err(why)) => why,
            Err(_) => format!("no answer within {timeout:?}"),
        };
        if tokio::time::Instant::now() >= deadline {
            return Err(RegistrarError::NoDriver {
                path: socket.to_owned(),
                last,
            });
        }
        tracing::info!(socket = %socket.display(), "still waiting for the driver: {last}");
        tokio::time::sleep(RETRY).await;
    }
}

struct Registrar {
    info: api::PluginInfo,
    refused: mpsc::Sender<String>,
}

#[async_trait]
impl Registration for Registrar {
    async fn get_info(
        &self,
        _: Request<api::InfoRequest>,
    ) -> Result<Response<api::PluginInfo>, Status> {
        Ok(Response::new(self.info.clone()))
    }

    async fn notify_registration_status(
        &self,
        request: Request<api::RegistrationStatus>,
    ) -> Result<Response<api::RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!(driver = self.info.name, "the kubelet registered the driver");
        } else {
            tracing::error!(
                driver = self.info.name,
                "the kubelet refused the driver: {}",
                status.error
            );
            // Full means that one refusal is on its way already.
            let _ = self.refused.try_send(status.error);
        }
        Ok(Response::new(api::RegistrationStatusResponse {}))
    }
}

#[derive(Clone)]
struct Health {
    socket: PathBuf,
    name: String,
    timeout: Duration,
}

async fn healthz(State(health): State<Health>) -> (StatusCode, String) {
    match tokio::fs::metadata(&health.socket).await {
        Ok(meta) if meta.file_type().is_socket() => {}
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            return (StatusCode::INTERNAL_SERVER_ERROR, err.to_string());
        }
        _ => {
            return (
                StatusCode::NOT_FOUND,
                "registration socket does not exist".to_owned(),
            );
        }
    }
    let asked = tokio::time::timeout(health.timeout, async {
        let channel = endpoint::connect(&health.socket)
            .await
            .map_err(|err| err.to_string())?;
        let mut client = RegistrationClient::new(channel);
        let answer = client.get_info(api::InfoRequest {}).await;
        answer.map_err(|status| status.message().to_owned())
    });
    match asked.await {
        Ok(Ok(info)) if info.get_ref().name == health.name => (StatusCode::OK, "ok".to_owned()),
        Ok(Ok(info)) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("invalid driver name {}", info.get_ref().name),
        ),
        Ok(Err(why)) => (StatusCode::INTERNAL_SERVER_ERROR, why),
        Err(_) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("no answer within {:?}", health.timeout),
        ),
    }
}

/// Serves HTTP; an address without a host is every address.
///
/// # Errors
/// The address is taken.
pub async fn serve_http(address: &str, router: Router) -> io::Result<()> {
    let address = if address.starts_with(':') {
        format!("0.0.0.0{address}")
    } else {
        address.to_owned()
    };
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(listener, router).await
}
