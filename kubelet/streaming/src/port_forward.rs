//! Port-forward: connections to ports of a pod, each a pair of streams: data both ways, errors to the client.
//!
//! Upstream: `k8s.io/cri-streaming/pkg/streaming/portforward`.

mod spdy;
mod websocket;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite};

use crate::copy::{copy_in, copy_out};
use crate::{Response, StreamConfig, negotiate};

const V1: &str = "portforward.k8s.io";
/// SPDY inside a WebSocket.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// What a WebSocket client wants; a SPDY client says it stream by stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortForwardOptions {
    pub ports: Vec<u16>,
}

impl PortForwardOptions {
    /// From the query `port=80,443&port=8080` of a WebSocket request without tunnelling.
    ///
    /// # Errors
    /// No port, or none from 1 to 65535; the texts are upstream's.
    pub fn from_request<B>(request: &Request<B>) -> Result<Self, String> {
        let tunnelled = negotiate::websocket(request, |protocol| protocol == TUNNEL).is_ok();
        if !negotiate::is_websocket(request.headers()) || tunnelled {
            return Ok(Self::default());
        }
        let values: Vec<String> = request
            .uri()
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .filter(|(key, _)| *key == "port")
            .map(|(_, value)| value.replace("%2C", ",").replace("%2c", ","))
            .collect();
        if values.is_empty() {
            return Err("query parameter \"port\" is required".to_owned());
        }
        let mut ports = Vec::new();
        for value in values {
            if value.is_empty() {
                return Err("query parameter \"port\" cannot be empty".to_owned());
            }
            for port in value.split(',') {
                ports.push(parse_port(port)?);
            }
        }
        Ok(Self { ports })
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(0) => Err(format!("port {text:?} must be > 0")),
        Ok(port) => Ok(port),
        Err(error) => Err(format!("unable to parse {text:?} as a port: {error}")),
    }
}

/// Answers a port-forward request. `connect` is called for each connection with its port; its error is told to the
/// client as upstream words it, with `pod` (`<name>, uid <uid>`).
pub fn serve_port_forward<B, C, F, D>(
    mut request: Request<B>,
    pod: String,
    options: PortForwardOptions,
    config: StreamConfig,
    connect: C,
) -> Response
where
    C: Fn(u16) -> F + Send + Sync + 'static,
    F: Future<Output = Result<D, String>> + Send + 'static,
    D: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let websocket = negotiate::is_websocket(request.headers());
    let agreed = if websocket {
        negotiate::websocket(&request, |protocol| {
            protocol == TUNNEL || websocket::codec(protocol).is_some()
        })
    } else {
        negotiate::spdy(&request, &[V1])
    };
    let agreed = match agreed {
        Ok(agreed) => agreed,
        Err(refusal) => return *refusal,
    };
    if request
        .extensions()
        .get::<hyper::upgrade::OnUpgrade>()
        .is_none()
    {
        return *negotiate::refuse(
            StatusCode::BAD_REQUEST,
            "unable to upgrade: this connection cannot be upgraded".to_owned(),
        );
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let protocol = agreed.protocol;
    let forward = Arc::new(Forward { pod, connect });
    tokio::spawn(async move {
        let io = match upgrade.await {
            Ok(upgraded) => TokioIo::new(upgraded),
            Err(error) => {
                tracing::debug!(%error, "streaming connection was not upgraded");
                return;
            }
        };
        let shutdown = config.shutdown.clone();
        let serve = async {
            if protocol == TUNNEL {
                spdy::serve(crate::websocket::tunnel(io), &config, forward).await;
            } else if websocket {
                websocket::serve(io, &protocol, &options.ports, &config, forward).await;
            } else {
                spdy::serve(io, &config, forward).await;
            }
        };
        tokio::select! {
            () = serve => {}
            () = shutdown.cancelled() => {}
        }
    });
    agreed.response
}

/// How connections are made.
struct Forward<C> {
    pod: String,
    connect: C,
}

impl<C, F, D> Forward<C>
where
    C: Fn(u16) -> F + Send + Sync + 'static,
    F: Future<Output = Result<D, String>> + Send + 'static,
    D: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    /// Connects and copies both ways until both have ended. `patience`: how long the client may go on after the pod has ended,
    /// where it cannot be told of that; `None`: it is told, and decides. An error's text is for the client.
    async fn run(
        &self,
        port: u16,
        from_client: &mut (impl AsyncBufRead + Unpin),
        to_client: &mut (impl AsyncWrite + Unpin),
        patience: Option<Duration>,
    ) -> Result<(), String> {
        let failed =
            |reason: &str| format!("error forwarding port {port} to pod {}: {reason}", self.pod);
        let connection = (self.connect)(port)
            .await
            .map_err(|reason| failed(&reason))?;
        let (mut from_pod, mut to_pod) = tokio::io::split(connection);
        let inbound = copy_in(from_client, &mut to_pod);
        let outbound = copy_out(&mut from_pod, to_client);
        tokio::pin!(inbound, outbound);
        let inbound = tokio::select! {
            outbound = &mut outbound => {
                // A connection that broke is told of at once: the client has nothing to wait for.
                outbound.map_err(|error| failed(&error.to_string()))?;
                match patience {
                    Some(patience) => {
                        let rest = tokio::time::timeout(patience, inbound).await;
                        rest.unwrap_or(Ok(()))
                    }
                    None => inbound.await,
                }
            }
            inbound = &mut inbound => {
                outbound.await.map_err(|error| failed(&error.to_string()))?;
                inbound
            }
        };
        match inbound {
            // The pod closed first: all it sent has gone out.
            Err(error) if is_hang_up(&error) => Ok(()),
            other => other.map_err(|error| failed(&error.to_string())),
        }
    }
}

fn is_hang_up(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}
