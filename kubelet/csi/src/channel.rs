//! A gRPC connection over a unix socket.

use std::path::Path;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Error, Uri};
use tower::service_fn;

/// What the peer sees as the name of its host; upstream: `grpc.WithAuthority`.
const AUTHORITY: &str = "http://localhost";

/// Connects with the first call.
pub(crate) fn lazy(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    Endpoint::from_static(AUTHORITY).connect_with_connector_lazy(service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    }))
}

/// Connects now.
pub(crate) async fn connect(socket: &Path) -> Result<Channel, Error> {
    let socket = socket.to_owned();
    let connector = service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static(AUTHORITY)
        .connect_with_connector(connector)
        .await
}
