//! One connection: its handshake, its requests, and the times it may take for them.
//!
//! ```text
//! handshake -> waiting for a request -> (first byte) reading its head -> answering -> waiting ...
//!    10 s           32 s, later 90 s             32 s                    no limit
//! ```
//!
//! An answer may take as long as it likes (logs that are followed, watches); an upgraded stream belongs to its handler.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use http::{Request, Response, StatusCode};
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use super::connections::{Slot, Standing};
use super::peer::{Peer, PeerCertificate};
use crate::shutdown::Shutdown;
use crate::tls::ServerTls;

/// Longest head of a request, in bytes; 431 beyond. Upstream: 1 MiB, of which no client of ours uses a hundredth.
const MAX_HEADER_BYTES: usize = 32 * 1024;
/// Requests at once on a connection of HTTP/2. Upstream: the same in `k8s.io/apiserver/pkg/server/secure_serving.go`.
const MAX_STREAMS: u32 = 100;
/// What a peer may send on HTTP/2 before it is read, in bytes, for a request and for a connection. Requests here have next to no bodies.
const WINDOW_BYTES: u32 = 65_535;
/// After this long without a word a peer is asked by TCP whether it still lives, and as often again. Upstream: Go's default.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// A peer that is gone is noticed by this (HTTP/2). Upstream's clients: `HTTP2_READ_IDLE_TIMEOUT_SECONDS`, 30.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// And this long after.
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a connection may take to close by itself.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a peer may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// For the TLS handshake.
    pub(super) handshake: Duration,
    /// For the head of a request, and until the first request begins.
    pub(super) header: Duration,
    /// Between two requests.
    pub(super) idle: Duration,
}

/// Upstream: `ReadHeaderTimeout` and `IdleTimeout` in `k8s.io/apiserver/pkg/server/secure_serving.go`.
pub(super) const TIMEOUTS: Timeouts = Timeouts {
    handshake: Duration::from_secs(10),
    header: Duration::from_secs(32),
    idle: Duration::from_secs(90),
};

/// What a connection is doing. Pure.
#[derive(Clone, Copy, Debug)]
struct Activity {
    in_flight: usize,
    /// When it was opened, or its last request was answered.
    since: Instant,
    /// When the head of the next request began to come (HTTP/1.1).
    head_since: Option<Instant>,
    asked: bool,
}

impl Activity {
    fn new(now: Instant) -> Self {
        Self {
            in_flight: 0,
            since: now,
            head_since: None,
            asked: false,
        }
    }

    fn began(&mut self) {
        self.in_flight += 1;
        self.asked = true;
        self.head_since = None;
    }

    fn ended(&mut self, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.since = now;
    }

    fn read(&mut self, now: Instant) {
        if self.in_flight == 0 && self.head_since.is_none() {
            self.head_since = Some(now);
        }
    }

    /// When the connection must end if nothing changes; `None` while it answers.
    fn deadline(&self, timeouts: &Timeouts) -> Option<Instant> {
        if self.in_flight > 0 {
            return None;
        }
        Some(match self.head_since {
            Some(head) => head + timeouts.header,
            None if self.asked => self.since + timeouts.idle,
            None => self.since + timeouts.header,
        })
    }
}

type SharedActivity = Arc<Mutex<Activity>>;

fn note(activity: &SharedActivity, change: impl FnOnce(&mut Activity)) {
    change(&mut activity.lock().expect("no panic while the lock is held"));
}

/// The stream below HTTP: keeps the connection's place for as long as anybody holds it, an upgrade's handler too.
struct Guarded<S> {
    stream: S,
    _slot: Arc<Slot>,
    /// `None` for HTTP/2, whose frames say nothing about requests.
    activity: Option<SharedActivity>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before
            && let Some(activity) = &self.activity
        {
            note(activity, |a| a.read(Instant::now()));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, data)
    }
}

/// A request in hand, until its answer's body has been sent or dropped.
struct InHand {
    slot: Arc<Slot>,
    activity: SharedActivity,
}

impl InHand {
    fn new(slot: Arc<Slot>, activity: SharedActivity) -> Self {
        slot.begin();
        note(&activity, Activity::began);
        Self { slot, activity }
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.slot.end();
        note(&self.activity, |a| a.ended(Instant::now()));
    }
}

/// What every connection of a server shares.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) tls: Option<ServerTls>,
    pub(super) router: Router,
    pub(super) timeouts: Timeouts,
    pub(super) shutdown: Shutdown,
}

/// Serves a connection until it ends, or must make room.
pub(super) async fn serve(
    stream: TcpStream,
    address: SocketAddr,
    slot: Arc<Slot>,
    service: Service,
) {
    // Small replies matter more here than packets saved.
    let _ = stream.set_nodelay(true);
    keep_alive(&stream);
    let evicted = slot.clone();
    let ended = async {
        let Some(tls) = service.tls.clone() else {
            let peer = Peer {
                address,
                certificate: None,
                slot,
            };
            return serve_stream(stream, peer, false, &service).await;
        };
        let accept = TlsAcceptor::from(tls.current()).accept(stream);
        match tokio::time::timeout(service.timeouts.handshake, accept).await {
            Ok(Ok(stream)) => {
                let session = stream.get_ref().1;
                let certificate = session
                    .peer_certificates()
                    .filter(|chain| !chain.is_empty())
                    .map(|chain| {
                        let chain = chain.iter().map(|c| c.clone().into_owned()).collect();
                        Arc::new(PeerCertificate::new(chain, tls))
                    });
                let is_good = |c: &Arc<PeerCertificate>| {
                    matches!(c.user(jiff::Timestamp::now()), Ok(Some(_)))
                };
                if certificate.as_ref().is_some_and(is_good) {
                    slot.set_standing(Standing::Certified);
                }
                let http2 = session.alpn_protocol() == Some(b"h2");
                let peer = Peer {
                    address,
                    certificate,
                    slot,
                };
                serve_stream(stream, peer, http2, &service).await;
            }
            Ok(Err(error)) => tracing::debug!(%address, %error, "TLS handshake error"),
            Err(_) => tracing::debug!(%address, "TLS handshake timed out"),
        }
    };
    tokio::select! {
        () = ended => {}
        () = evicted.closed() => tracing::debug!(%address, "Connection closed to make room"),
    }
}

/// Has the kernel notice a peer that is gone: nothing else does while logs are followed that say nothing.
fn keep_alive(stream: &TcpStream) {
    let times = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE);
    let set = socket2::SockRef::from(stream).set_tcp_keepalive(&times);
    if let Err(error) = set {
        tracing::debug!(%error, "TCP keepalive cannot be set");
    }
}

async fn serve_stream<S>(stream: S, peer: Peer, http2: bool, service: &Service)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity: SharedActivity = Arc::new(Mutex::new(Activity::new(Instant::now())));
    let address = peer.address;
    let io = TokioIo::new(Guarded {
        stream,
        _slot: peer.slot.clone(),
        activity: (!http2).then(|| activity.clone()),
    });
    let (router, watched) = (service.router.clone(), activity.clone());
    let answer = hyper::service::service_fn(move |mut request: Request<hyper::body::Incoming>| {
        let in_hand = InHand::new(peer.slot.clone(), activity.clone());
        request.extensions_mut().insert(peer.clone());
        let answer = router.clone().oneshot(request.map(Body::new));
        async move { answer.await.map(|response| hold(response, in_hand)) }
    });
    // What the handshake settled, rather than a look at the first bytes, for which a peer could take its time.
    let ended = if http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_header_list_size(MAX_HEADER_BYTES as u32)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        let connection = builder.serve_connection(io, answer);
        drive(connection, |c| c.graceful_shutdown(), &watched, service).await
    } else {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(MAX_HEADER_BYTES);
        let connection = builder.serve_connection(io, answer).with_upgrades();
        drive(connection, |c| c.graceful_shutdown(), &watched, service).await
    };
    match ended {
        Some(Err(error)) => tracing::debug!(%address, %error, "Connection ended"),
        Some(Ok(())) => {}
        None => tracing::debug!(%address, "Connection timed out"),
    }
}

/// Runs a connection until it ends by itself, by shutdown, or because the peer took too long (`None`: it did not close then).
async fn drive<C>(
    connection: C,
    close: fn(Pin<&mut C>),
    activity: &SharedActivity,
    service: &Service,
) -> Option<Result<(), hyper::Error>>
where
    C: Future<Output = Result<(), hyper::Error>>,
{
    tokio::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => Some(result),
        () = service.shutdown.triggered() => {
            close(connection.as_mut());
            Some(connection.await)
        }
        () = expired(activity, &service.timeouts) => {
            close(connection.as_mut());
            tokio::time::timeout(CLOSE_TIMEOUT, connection).await.ok()
        }
    }
}

/// Resolves when the peer has taken too long.
async fn expired(activity: &SharedActivity, timeouts: &Timeouts) {
    // A deadline may come nearer while this sleeps (a head begins), by no more than this.
    let longest = timeouts.header / 4;
    loop {
        let mut deadline = None;
        note(activity, |a| deadline = a.deadline(timeouts));
        let now = Instant::now();
        let left = match deadline {
            Some(deadline) if deadline <= now => return,
            Some(deadline) => deadline - now,
            None => longest,
        };
        tokio::time::sleep(left.min(longest)).await;
    }
}

fn hold(response: Response<Body>, in_hand: InHand) -> Response<Body> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        in_hand.slot.pin();
    }
    let (parts, body) = response.into_parts();
    // An empty body stays one, so that its length is known.
    if body.is_end_stream() {
        return Response::from_parts(parts, body);
    }
    let held = Held {
        body,
        _in_hand: in_hand,
    };
    Response::from_parts(parts, Body::new(held))
}

/// A body that keeps its request in hand.
struct Held {
    body: Body,
    _in_hand: InHand,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_a_peer_may_take() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let at = |n: u32| start + second * n;
        let deadline = |a: &Activity| a.deadline(&TIMEOUTS).map(|d| (d - start).as_secs());
        let mut activity = Activity::new(start);
        assert_eq!(deadline(&activity), Some(32));
        activity.read(at(10));
        // A byte now and then buys no time.
        activity.read(at(30));
        assert_eq!(deadline(&activity), Some(42));
        activity.began();
        assert_eq!(deadline(&activity), None);
        activity.read(at(50));
        activity.began();
        activity.ended(at(60));
        assert_eq!(deadline(&activity), None);
        activity.ended(at(100));
        assert_eq!(deadline(&activity), Some(190));
        activity.read(at(110));
        assert_eq!(deadline(&activity), Some(142));
    }
}
