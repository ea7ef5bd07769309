//! Serving HTTP: the secure server (TLS, authentication, authorization) and the plain one for loopback health pages.
//!
//! Routes are an axum [`Router`]; this module owns listening, TLS and who may ask. Upgraded connections (exec, port-forward) outlive
//! the request and end with the process. Upstream: `k8s.io/apiserver/pkg/server/{secure_serving,options}`.

mod access;
mod delegated;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

pub use access::{AccessControl, Attributes, Authorization, UserInfo};
pub use delegated::{DelegatedAuthentication, DelegatedAuthorization};

use crate::shutdown::Shutdown;
use crate::tls::ServerTls;

/// A handshake that takes longer is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once before new ones wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 4096;
/// How long open requests may last after shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Why nothing can be served.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// The address is taken or not ours.
    #[error("failed to listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// Who is at the other end; an extension of every request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The address.
    pub address: SocketAddr,
    /// The user of a verified client certificate.
    pub certificate: Option<UserInfo>,
}

/// Listens on an address. Port 0 means any; see [`TcpListener::local_addr`].
///
/// # Errors
/// When the address is taken or not ours.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ServingError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ServingError::Listen { address, source })
}

/// A server with TLS whose every request passes `access`.
pub struct SecureServer {
    /// Where it listens.
    pub listener: TcpListener,
    /// The certificate and the client CA.
    pub tls: ServerTls,
    /// Who may ask for what.
    pub access: AccessControl,
}

impl SecureServer {
    /// Serves until shutdown, then lets open requests end for a short time.
    pub async fn serve(self, router: Router, shutdown: Shutdown) {
        let access = Arc::new(self.access);
        let router = router.layer(axum::middleware::from_fn(move |request, next| {
            access::check(access.clone(), request, next)
        }));
        accept(self.listener, Some(self.tls), router, shutdown).await;
    }
}

/// Serves without TLS and for everybody: for health pages on loopback.
pub async fn serve_insecure(listener: TcpListener, router: Router, shutdown: Shutdown) {
    accept(listener, None, router, shutdown).await;
}

async fn accept(listener: TcpListener, tls: Option<ServerTls>, router: Router, shutdown: Shutdown) {
    let tracker = tokio_util::task::TaskTracker::new();
    let slots = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Some(Ok(slot)) = shutdown.run_until(slots.clone().acquire_owned()).await else {
            break;
        };
        let (stream, address) = match shutdown.run_until(listener.accept()).await {
            None => break,
            Some(Ok(accepted)) => accepted,
            Some(Err(error)) => {
                // Out of file descriptors, mostly: others must end first.
                tracing::warn!(%error, "Accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, router, shutdown) = (tls.clone(), router.clone(), shutdown.clone());
        tracker.spawn(async move {
            connection(stream, address, tls, router, shutdown).await;
            drop(slot);
        });
    }
    drop(listener);
    tracker.close();
    // Err means that some requests did not end; they end with the process.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, tracker.wait()).await;
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<ServerTls>,
    router: Router,
    shutdown: Shutdown,
) {
    // Small replies matter more here than packets saved.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return serve_stream(
            stream,
            Peer {
                address,
                certificate: None,
            },
            router,
            shutdown,
        )
        .await;
    };
    match tokio::time::timeout(
        HANDSHAKE_TIMEOUT,
        TlsAcceptor::from(tls.current()).accept(stream),
    )
    .await
    {
        Ok(Ok(stream)) => {
            let certificate = stream
                .get_ref()
                .1
                .peer_certificates()
                .and_then(|c| c.first())
                .and_then(|c| UserInfo::from_certificate(c));
            serve_stream(
                stream,
                Peer {
                    address,
                    certificate,
                },
                router,
                shutdown,
            )
            .await;
        }
        Ok(Err(error)) => tracing::debug!(%address, %error, "TLS handshake error"),
        Err(_) => tracing::debug!(%address, "TLS handshake timed out"),
    }
}

async fn serve_stream<S>(stream: S, peer: Peer, router: Router, shutdown: Shutdown)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |mut request: Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer.clone());
        router.clone().oneshot(request.map(Body::new))
    });
    let builder = Builder::new(TokioExecutor::new());
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shutdown.triggered() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "Connection ended");
    }
}
