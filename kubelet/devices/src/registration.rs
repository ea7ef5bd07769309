//! The service by which plugins register, on `kubelet.sock`. Upstream: plugin/v1beta1/server.go, handler.go.

use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tonic::{Request, Response, Status};

use crate::directory;
use crate::manager::Manager;
use crate::name::check_name;
use crate::v1beta1::registration_server::{Registration, RegistrationServer};
use crate::v1beta1::{Empty, RegisterRequest, VERSION};

/// Registrations of one connection at a time.
const AT_ONCE: usize = 16;
/// A registration waits for the plugin's own socket and its answer.
const TIMEOUT: Duration = Duration::from_secs(30);
const MESSAGE_BYTES: usize = 64 << 10;

/// Why plugins cannot register.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("listen on {}: {source}", socket.display())]
    Listen {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "device plugin registration gRPC server failed and no device plugins can register: {0}"
    )]
    Serve(#[from] tonic::transport::Error),
}

/// Makes the folder anew and listens in it. What it returns serves until `ending`.
///
/// # Errors
/// The folder or the socket cannot be made.
pub async fn serve<E: Future<Output = ()>>(
    manager: Arc<Manager>,
    ending: E,
) -> Result<impl Future<Output = Result<(), ServeError>> + use<E>, ServeError> {
    let dir = manager.dir().to_owned();
    let failed = |source| ServeError::Listen {
        socket: directory::socket(manager.dir()),
        source,
    };
    let listener = directory::off_thread(move || directory::listen(&dir)).await;
    let listener = listener.map_err(failed)?;
    let listener = UnixListener::from_std(listener).map_err(failed)?;
    let service = RegistrationServer::new(Service(manager));
    let service = service.max_decoding_message_size(MESSAGE_BYTES);
    Ok(async move {
        tonic::transport::Server::builder()
            .concurrency_limit_per_connection(AT_ONCE)
            .timeout(TIMEOUT)
            .add_service(service)
            .serve_with_incoming_shutdown(local_grpc::incoming(listener), ending)
            .await?;
        Ok(())
    })
}

struct Service(Arc<Manager>);

#[tonic::async_trait]
impl Registration for Service {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let asked = request.into_inner();
        let resource = asked.resource_name.as_str();
        tracing::info!(
            resource,
            "Got registration request from device plugin with resource"
        );
        let outcome = self.accept(&asked).await;
        if let Err(why) = outcome {
            tracing::error!(resource, why, "Bad registration request from device plugin");
            // What Go's gRPC makes of a plain error.
            return Err(Status::unknown(why));
        }
        Ok(Response::new(Empty {}))
    }
}

impl Service {
    async fn accept(&self, asked: &RegisterRequest) -> Result<(), String> {
        let resource = asked.resource_name.as_str();
        if check_name(resource).is_ok() {
            self.0.observer().registered(resource);
        }
        if asked.version != VERSION {
            return Err(format!(
                "requested API version {:?} is not supported by kubelet. Supported version is [{VERSION:?}]",
                asked.version
            ));
        }
        check_name(resource)?;
        let socket = socket_of(self.0.dir(), &asked.endpoint)?;
        let connected = self.0.connect(resource, &socket).await;
        connected.map_err(|error| error.to_string())
    }
}

/// DIFFERS: upstream follows `..` out of the folder.
fn socket_of(dir: &Path, endpoint: &str) -> Result<PathBuf, String> {
    let below = Path::new(endpoint.trim_start_matches('/'));
    let mut parts = below.components().peekable();
    if parts.peek().is_none() || !parts.all(|part| matches!(part, Component::Normal(_))) {
        return Err(format!(
            "the endpoint {endpoint:?} is no socket below {}",
            dir.display()
        ));
    }
    Ok(dir.join(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_below_the_folder() {
        let dir = Path::new("/d");
        for (endpoint, expect) in [
            ("gpu.sock", Some("/d/gpu.sock")),
            ("/gpu.sock", Some("/d/gpu.sock")),
            ("vendor/gpu.sock", Some("/d/vendor/gpu.sock")),
            ("../gpu.sock", None),
            ("a/../../gpu.sock", None),
            ("", None),
        ] {
            let got = socket_of(dir, endpoint).ok();
            assert_eq!(got, expect.map(PathBuf::from), "{endpoint}");
        }
    }
}
