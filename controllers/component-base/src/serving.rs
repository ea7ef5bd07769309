//! Serving HTTP: the secure server (TLS, authentication, authorization) and the plain one for loopback health pages.
//!
//! Routes are an axum [`Router`]; this module owns listening, TLS and who may ask. Upgraded connections (exec, port-forward) outlive
//! the request and end with the process. Upstream: `k8s.io/apiserver/pkg/server/{secure_serving,options}`.

mod access;
mod connection;
mod connections;
mod delegated;
mod metrics;
mod peer;
mod protocol_token;
mod reviews;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;

pub use access::{AccessControl, Attributes, Authorization, UserInfo};
use connection::{Service, TIMEOUTS, Timeouts};
use connections::{Connections, LIMITS, Limits};
pub use delegated::{DelegatedAuthentication, DelegatedAuthorization};
pub use peer::{CertificateRefused, Peer, user_of};

use crate::shutdown::Shutdown;
use crate::tls::ServerTls;

/// Pause when no connection can be taken for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
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
        self.serve_within(router, LIMITS, TIMEOUTS, shutdown).await;
    }

    async fn serve_within(
        self,
        router: Router,
        limits: Limits,
        timeouts: Timeouts,
        shutdown: Shutdown,
    ) {
        let access = Arc::new(self.access);
        let router = router.layer(axum::middleware::from_fn(move |request, next| {
            access::check(access.clone(), request, next)
        }));
        let service = Service {
            tls: Some(self.tls),
            router,
            timeouts,
            shutdown,
        };
        accept(self.listener, limits, service).await;
    }
}

/// Serves without TLS and for everybody: for health pages on loopback.
pub async fn serve_insecure(listener: TcpListener, router: Router, shutdown: Shutdown) {
    let service = Service {
        tls: None,
        router,
        timeouts: TIMEOUTS,
        shutdown,
    };
    accept(listener, LIMITS, service).await;
}

async fn accept(listener: TcpListener, limits: Limits, service: Service) {
    let tracker = tokio_util::task::TaskTracker::new();
    let connections = Connections::new(limits);
    loop {
        let (stream, address) = match service.shutdown.run_until(listener.accept()).await {
            None => break,
            Some(Ok(accepted)) => accepted,
            Some(Err(error)) => {
                // Out of file descriptors, mostly: somebody who has proven nothing makes room.
                let evicted = connections.evict();
                tracing::warn!(%error, evicted, "Accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let slot = connections.admit(address.ip());
        tracker.spawn(connection::serve(stream, address, slot, service.clone()));
    }
    drop(listener);
    tracker.close();
    // Err means that some requests did not end; they end with the process.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, tracker.wait()).await;
}

#[cfg(test)]
mod tests;
