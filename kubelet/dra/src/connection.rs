//! The connection to a driver's socket: there as long as the driver is, and made anew when it comes back.
//!
//! ```text
//! dial -> up --(the driver hangs up)--> down -> wait, longer each time -> dial
//! ```
//!
//! Upstream has it from gRPC (`monitoredPlugin`): a driver that nobody is connected to is not to be had, and its slices go after a while.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use component_base::clock::Clock;
use component_base::tasks::spawn_helper;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// What the peer sees as the name of its host; upstream: gRPC's for a unix socket.
const AUTHORITY: &str = "http://localhost";
/// Between tries. Upstream: gRPC's `backoff.DefaultConfig`.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(120);

/// Dropping it hangs up.
pub(crate) struct Connection {
    link: Arc<Link>,
    keeper: AbortHandle,
}

struct Link {
    socket: PathBuf,
    /// How many streams are open.
    open: watch::Sender<usize>,
    /// The newest; it connects itself again when it is used.
    channel: Mutex<Option<Channel>>,
}

impl Connection {
    /// Connects as soon as somebody listens.
    pub(crate) fn open(socket: &Path, clock: Clock) -> Self {
        let link = Arc::new(Link {
            socket: socket.to_owned(),
            open: watch::Sender::new(0),
            channel: Mutex::default(),
        });
        let kept = link.clone();
        let keeper = spawn_helper("connection to a driver of devices", async move {
            kept.keep(&clock).await;
        });
        Self {
            link,
            keeper: keeper.abort_handle(),
        }
    }

    /// What calls go by, whether the driver is there or not.
    pub(crate) fn channel(&self) -> Channel {
        let channel = self.link.channel();
        channel.unwrap_or_else(|| self.link.lazy())
    }

    /// How many streams are open: none means that the driver is not to be had.
    pub(crate) fn watch(&self) -> watch::Receiver<usize> {
        self.link.open.subscribe()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Link {
    async fn keep(self: &Arc<Self>, clock: &Clock) {
        let mut retry = FIRST_RETRY;
        loop {
            match self.dial().await {
                Ok(channel) => {
                    *self.lock() = Some(channel);
                    retry = FIRST_RETRY;
                }
                Err(error) => {
                    tracing::debug!(socket = %self.socket.display(), %error, "a driver of devices is not to be had");
                }
            }
            // A call may have connected by itself.
            let mut open = self.open.subscribe();
            // The sender is ours.
            let _ = open.wait_for(|open| *open == 0).await;
            clock.sleep(retry).await;
            retry = (retry * 2).min(LAST_RETRY);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Channel>> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn channel(&self) -> Option<Channel> {
        self.lock().clone()
    }

    fn connector(
        self: &Arc<Self>,
    ) -> impl tower::Service<
        Uri,
        Response = TokioIo<Counted>,
        Error = io::Error,
        Future: Send + 'static,
    >
    + Send
    + 'static
    + use<> {
        let link = self.clone();
        service_fn(move |_: Uri| {
            let link = link.clone();
            async move {
                let stream = UnixStream::connect(&link.socket).await?;
                link.open.send_modify(|open| *open += 1);
                Ok::<_, io::Error>(TokioIo::new(Counted { stream, link }))
            }
        })
    }

    fn lazy(self: &Arc<Self>) -> Channel {
        Endpoint::from_static(AUTHORITY).connect_with_connector_lazy(self.connector())
    }

    async fn dial(self: &Arc<Self>) -> Result<Channel, tonic::transport::Error> {
        Endpoint::from_static(AUTHORITY)
            .connect_with_connector(self.connector())
            .await
    }
}

/// A stream that is counted for as long as it lives.
struct Counted {
    stream: UnixStream,
    link: Arc<Link>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.link.open.send_modify(|open| *open -= 1);
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
