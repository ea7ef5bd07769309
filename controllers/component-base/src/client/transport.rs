//! Connections to the API server: HTTP/2, and as few of them as hold what is asked at the same time.
//!
//! Owns: when a connection is opened. One is opened at a time, whoever waits for it; the next only when all others are full.
//! A server that breaks connections is dialled with growing pauses. It knows nothing of requests but that they end.
//! A server that speaks no HTTP/2 (or no TLS) gets a connection a request in flight, as HTTP/1.1 wants it.
//! Upstream: `golang.org/x/net/http2/transport.go` as `k8s.io/apimachinery/pkg/util/net/http.go` sets it up.
//!
//! ```text
//! request -> a stream of the first connection that has one free -> body ends -> the stream is free again
//!         -> none: wait for the one dial under way (or begin it), look again
//! ```

use crate::tasks::{spawn_answer, spawn_helper};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use http::{Request, Response, Uri, uri};
use http_body_util::BodyExt as _;
use hyper::client::conn::http2;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Http1Client;
use hyper_util::client::legacy::connect::{Connection as _, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ConfigExt as _, DynBody};
use tokio::sync::Notify;
use tower::{BoxError, ServiceExt as _};

/// How long a connection may go without a sign of life before it is asked for one: a cut cable must not hold a watch until TCP
/// gives up. Upstream: `HTTP2_READ_IDLE_TIMEOUT_SECONDS`.
const SILENCE: Duration = Duration::from_secs(30);
/// How long the sign may take. Upstream: `HTTP2_PING_TIMEOUT_SECONDS`.
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// The same for a connection that speaks HTTP/1.1, by TCP's means.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;
/// For a connection with all its handshakes. Upstream: `net.Dialer.Timeout` of client-go's transport.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Streams of one connection, whatever more the server would take. Upstream's API server takes 100
/// (`http2Options.MaxConcurrentStreams` in `k8s.io/apiserver/pkg/server/secure_serving.go`).
const MAX_STREAMS: usize = 100;
/// What a stream that nobody reads may hold. Upstream: `transportDefaultStreamFlow`.
const STREAM_WINDOW: u32 = 4 << 20;
/// So large that watches that are not read just now hold up nobody else. Upstream: `transportDefaultConnFlow`.
const CONNECTION_WINDOW: u32 = 1 << 30;
/// The pause before a dial, once one was for nothing; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// No connection could be made; every request that waited for it gets the same.
#[derive(Clone, Debug, thiserror::Error)]
enum DialError {
    #[error("connecting to the API server: {0}")]
    Connect(#[source] Arc<dyn std::error::Error + Send + Sync>),
    #[error("connecting to the API server: no connection within 30s")]
    Timeout,
    #[error("connecting to the API server: ended early")]
    Ended,
}

fn connect_error(error: impl Into<BoxError>) -> DialError {
    DialError::Connect(Arc::from(error.into()))
}

type Connector = HttpsConnector<HttpConnector>;
type Dial = Shared<BoxFuture<'static, Result<(), DialError>>>;

/// Sends requests with absolute URIs of one server. Clones share the connections.
#[derive(Clone)]
pub(super) struct Transport {
    inner: Arc<Inner>,
}

struct Inner {
    server: Uri,
    connector: Connector,
    http1: Http1Client<Connector, Body>,
    /// Streams the server takes of one connection, by its last word: a new connection is not overfilled before it says so again.
    limit: Arc<AtomicUsize>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connections: Vec<Arc<Connection>>,
    dial: Option<Dial>,
    /// Dials since the last answer.
    unproven: u32,
    /// The server speaks no HTTP/2.
    http1: bool,
}

struct Connection {
    sender: http2::SendRequest<Body>,
    streams: AtomicUsize,
    /// [`Inner::limit`].
    limit: Arc<AtomicUsize>,
    /// The first answer came.
    answered: Arc<Notify>,
    /// Whether it did.
    proven: AtomicBool,
}

/// A stream of a connection, until dropped.
struct Stream(Arc<Connection>);

impl Connection {
    /// Only under the lock of [`State`].
    fn open(self: &Arc<Self>) -> Option<Stream> {
        let free = self.streams.load(Ordering::Acquire) < self.limit.load(Ordering::Relaxed);
        free.then(|| {
            self.streams.fetch_add(1, Ordering::AcqRel);
            Stream(self.clone())
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

enum Way {
    Http1,
    Http2(Stream),
}

impl Transport {
    /// # Errors
    /// When the configuration's TLS settings cannot be used.
    pub(super) fn new(config: &kube::Config) -> Result<Self, kube::Error> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(config.connect_timeout.unwrap_or(DIAL_TIMEOUT)));
        tcp.set_keepalive(Some(SILENCE));
        tcp.set_keepalive_interval(Some(PROBE_INTERVAL));
        tcp.set_keepalive_retries(Some(PROBES));
        tcp.set_tcp_user_timeout(Some(SILENCE + PROBE_INTERVAL * PROBES));
        let http1 = config.rustls_https_connector_with_connector(tcp.clone())?;
        let mut builder = HttpsConnectorBuilder::new()
            .with_tls_config(config.rustls_client_config()?)
            .https_or_http();
        if let Some(name) = &config.tls_server_name
            // The connector above was made of the same name.
            && let Ok(name) = name.clone().try_into()
        {
            builder = builder.with_server_name_resolver(FixedServerNameResolver::new(name));
        }
        let is_tls = config.cluster_url.scheme() == Some(&uri::Scheme::HTTPS);
        Ok(Self {
            inner: Arc::new(Inner {
                server: config.cluster_url.clone(),
                connector: builder.enable_http1().enable_http2().wrap_connector(tcp),
                http1: Http1Client::builder(TokioExecutor::new()).build(http1),
                limit: Arc::new(AtomicUsize::new(MAX_STREAMS)),
                state: Mutex::new(State {
                    http1: !is_tls,
                    ..State::default()
                }),
            }),
        })
    }
}

impl tower::Service<Request<Body>> for Transport {
    type Response = Response<Box<DynBody>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.inner.clone().send(request))
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    async fn send(
        self: Arc<Self>,
        mut request: Request<Body>,
    ) -> Result<Response<Box<DynBody>>, BoxError> {
        loop {
            let stream = match self.way().await? {
                Way::Http1 => {
                    let response = self.http1.request(request).await?;
                    return Ok(
                        response.map(|body| Box::new(body.map_err(BoxError::from)) as Box<DynBody>)
                    );
                }
                Way::Http2(stream) => stream,
            };
            let sent = stream.0.sender.clone().try_send_request(request).await;
            match sent {
                Ok(response) => {
                    self.lock().unproven = 0;
                    if !stream.0.proven.swap(true, Ordering::Relaxed) {
                        stream.0.answered.notify_one();
                    }
                    return Ok(response.map(|body| {
                        let body = body.map_err(move |error| {
                            // The stream is free when the body is dropped.
                            let _held = &stream;
                            BoxError::from(error)
                        });
                        Box::new(body) as Box<DynBody>
                    }));
                }
                // The connection ended before the request was begun: the next takes it.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(error.into_error().into()),
                },
            }
        }
    }

    /// A free stream, once there is one. The caller bounds the wait.
    async fn way(self: &Arc<Self>) -> Result<Way, DialError> {
        loop {
            let dial = {
                let mut state = self.lock();
                if state.http1 {
                    return Ok(Way::Http1);
                }
                state.connections.retain(|c| !c.sender.is_closed());
                if let Some(stream) = state.connections.iter().find_map(Connection::open) {
                    return Ok(Way::Http2(stream));
                }
                match &state.dial {
                    Some(dial) => dial.clone(),
                    None => self.begin_dial(&mut state),
                }
            };
            dial.await?;
        }
    }

    fn begin_dial(self: &Arc<Self>, state: &mut State) -> Dial {
        let pause = pause(state.unproven, rand::random());
        state.unproven = state.unproven.saturating_add(1);
        let inner = self.clone();
        // A task of its own: whoever waits may go, and the others still get their connection.
        let task = spawn_answer(async move {
            tokio::time::sleep(pause).await;
            let dialled = match tokio::time::timeout(DIAL_TIMEOUT, inner.dial()).await {
                Ok(dialled) => dialled,
                Err(_) => Err(DialError::Timeout),
            };
            let mut state = inner.lock();
            state.dial = None;
            match dialled? {
                Some(connection) => state.connections.push(Arc::new(connection)),
                None => state.http1 = true,
            }
            Ok(())
        });
        let inner = Arc::downgrade(self);
        let dial = async move {
            match task.await {
                Ok(outcome) => outcome,
                Err(_) => {
                    if let Some(inner) = inner.upgrade() {
                        inner.lock().dial = None;
                    }
                    Err(DialError::Ended)
                }
            }
        };
        let dial = dial.boxed().shared();
        state.dial = Some(dial.clone());
        dial
    }

    /// A connection; `None`: the server chose HTTP/1.1.
    async fn dial(&self) -> Result<Option<Connection>, DialError> {
        let socket = self.connector.clone().oneshot(self.server.clone()).await;
        let socket = socket.map_err(connect_error)?;
        if !socket.connected().is_negotiated_h2() {
            return Ok(None);
        }
        let (sender, mut driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_max_send_streams(self.limit.load(Ordering::Relaxed))
            .keep_alive_interval(SILENCE)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .handshake(socket)
            .await
            .map_err(connect_error)?;
        let seen = self.limit.clone();
        // Ends with the connection, or when the last sender and the last stream are gone.
        let answered = Arc::new(Notify::new());
        let answer = answered.clone();
        spawn_helper("connection to the API server", async move {
            let end = loop {
                tokio::select! {
                    end = &mut driver => break end,
                    // The server said what it takes before it answered anything.
                    () = answer.notified() => {
                        let taken = driver.current_max_send_streams();
                        seen.store(taken.clamp(1, MAX_STREAMS), Ordering::Relaxed);
                    }
                }
            };
            if let Err(error) = end {
                tracing::debug!(%error, "A connection to the API server ended");
            }
        });
        Ok(Some(Connection {
            sender,
            streams: AtomicUsize::new(0),
            limit: self.limit.clone(),
            answered,
            proven: AtomicBool::new(false),
        }))
    }
}

/// Before the dial after `unproven` ones of which no answer came. `random` in [0, 1): clients of one machine must not come all at once.
fn pause(unproven: u32, random: f64) -> Duration {
    match unproven {
        0 => Duration::ZERO,
        n => {
            let doubled = FIRST_PAUSE.saturating_mul(1 << (n - 1).min(10));
            doubled.min(LONGEST_PAUSE).mul_f64(0.5 + random)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dials_for_nothing_become_rare() {
        assert_eq!(pause(0, 0.9), Duration::ZERO);
        assert_eq!(pause(1, 0.5), FIRST_PAUSE);
        assert_eq!(pause(2, 0.5), FIRST_PAUSE * 2);
        for unproven in [7, 40, u32::MAX] {
            assert_eq!(pause(unproven, 0.0), LONGEST_PAUSE / 2);
            assert!(pause(unproven, 0.999) < LONGEST_PAUSE * 2);
        }
    }
}
