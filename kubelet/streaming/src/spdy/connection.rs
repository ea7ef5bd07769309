//! A server's SPDY connection: two tasks (one reads, one writes) and the streams between them.
//!
//! ```text
//! stream: incoming --accept()--> open --FIN in / FIN out--> half closed --both--> gone
//!            \--reject()--> RST        \--RST either way--------------------------^
//! ```
//!
//! What a client may make it keep: [`crate::memory`] for data, [`WRITE_QUEUE`] frames on the way out, [`MAX_STREAMS`] streams.
//! Where a bound is reached the connection is not read; where the protocol is broken it ends with GOAWAY.

mod read;
mod write;

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use futures::SinkExt as _;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, PollSender};

use super::flow::Flow;
use super::frame::{GOAWAY_OK, MAX_DATA_BYTES, STATUS_CANCEL};
use super::{Frame, Headers};
use crate::StreamConfig;
use crate::life::{CLOSE_TIMEOUT, Life};
use crate::memory::Share;
use crate::queue::{Inlet, Outlet};
use write::Urgent;

/// Frames waiting to be written, each of at most 32 KiB.
const WRITE_QUEUE: usize = 8;
/// Streams not yet accepted.
const ACCEPT_QUEUE: usize = 16;
/// Streams a connection may have at once; more are refused.
const MAX_STREAMS: usize = 4096;

/// A server's connection. Dropping it closes it.
pub struct Connection {
    incoming: mpsc::Receiver<IncomingStream>,
    shared: Arc<Shared>,
}

struct Shared {
    out: mpsc::Sender<Frame>,
    urgent: Urgent,
    streams: Mutex<HashMap<u32, Arc<StreamState>>>,
    flow: Mutex<Flow>,
    /// Writers whose window is closed.
    waiting: Mutex<Vec<Waker>>,
    life: Life,
}

struct StreamState {
    /// Where the client's data goes; ended once its side is closed.
    inlet: Inlet,
    /// FIN or RST has been sent.
    finished: AtomicBool,
    /// The client does not want any more.
    reset: CancellationToken,
}

impl Shared {
    fn streams(&self) -> MutexGuard<'_, HashMap<u32, Arc<StreamState>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flow(&self) -> MutexGuard<'_, Flow> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, stream_id: u32) -> Option<Arc<StreamState>> {
        self.flow().forget(stream_id);
        self.streams().remove(&stream_id)
    }

    /// Windows may be open, or of no matter any more.
    fn wake_writers(&self) {
        let waiting =
            std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().for_each(Waker::wake);
    }

    fn wait_for_window(&self, context: &Context<'_>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            waiting.push(context.waker().clone());
        }
    }

    /// So many bytes of a stream take no room any more.
    fn used(&self, stream_id: u32, count: usize) {
        let update = self.flow().used(stream_id, count);
        if let Some(update) = update {
            self.urgent.update(update);
        }
    }
}

impl Connection {
    /// Takes over an upgraded connection.
    pub fn server<T>(io: T, config: &StreamConfig) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(io);
        let (out, frames) = mpsc::channel(WRITE_QUEUE);
        let (accept, incoming) = mpsc::channel(ACCEPT_QUEUE);
        let shared = Arc::new(Shared {
            out,
            urgent: Urgent::default(),
            streams: Mutex::default(),
            flow: Mutex::new(Flow::new()),
            waiting: Mutex::default(),
            life: Life::new(),
        });
        let reading = read::ReadTask {
            shared: shared.clone(),
            accept,
            share: Share::new(config.pool.clone()),
            idle_timeout: config.idle_timeout,
            last_id: 0,
        };
        tokio::spawn(reading.run(read));
        tokio::spawn(write::run(write, shared.clone(), frames));
        Self { incoming, shared }
    }

    /// The next stream the client opens; `None` when the connection is closed. Cancel-safe.
    pub async fn accept(&mut self) -> Option<IncomingStream> {
        self.incoming.recv().await
    }

    /// Resolves when the client has hung up, or the connection broke or idled away.
    pub fn closed(&self) -> CancellationToken {
        self.shared.life.closed.clone()
    }

    /// Resets what is still open, writes what is queued, and closes. A client that reads nothing is not waited for long.
    pub async fn close(self) {
        let open: Vec<u32> = self
            .shared
            .streams()
            .iter()
            .filter(|(_, state)| !state.finished.swap(true, Ordering::AcqRel))
            .map(|(id, _)| *id)
            .collect();
        let resets = open.into_iter().map(|stream_id| Frame::RstStream {
            stream_id,
            status: STATUS_CANCEL,
        });
        let goodbye = Frame::GoAway {
            last_stream_id: 0,
            status: GOAWAY_OK,
        };
        let saying = async {
            for frame in resets.chain([goodbye]) {
                if self.shared.out.send(frame).await.is_err() {
                    break;
                }
            }
        };
        // The client may read nothing any more.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, saying).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.life.closing.cancel();
    }
}

/// A stream the client asks for.
pub struct IncomingStream {
    id: u32,
    headers: Headers,
    outlet: Outlet,
    state: Arc<StreamState>,
    shared: Arc<Shared>,
}

impl IncomingStream {
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// Odd, and rising with each stream of a client.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Replies, and opens the stream. `None`: the connection has ended.
    pub async fn accept(self) -> Option<Stream> {
        let reply = Frame::SynReply {
            stream_id: self.id,
            fin: false,
            headers: Headers::default(),
        };
        self.shared.out.send(reply).await.ok()?;
        Some(Stream {
            id: self.id,
            reader: StreamReader {
                id: self.id,
                outlet: self.outlet,
                shared: self.shared.clone(),
            },
            writer: StreamWriter {
                id: self.id,
                out: PollSender::new(self.shared.out.clone()),
                shared: self.shared,
                state: self.state,
            },
        })
    }

    /// Refuses the stream.
    pub async fn reject(self) {
        self.state.finished.store(true, Ordering::Release);
        self.shared.forget(self.id);
        let frame = Frame::RstStream {
            stream_id: self.id,
            status: STATUS_CANCEL,
        };
        // A connection that ended needs no refusal.
        let _ = self.shared.out.send(frame).await;
    }
}

/// An open stream.
pub struct Stream {
    pub id: u32,
    pub reader: StreamReader,
    pub writer: StreamWriter,
}

/// What the client sends; it ends with the client's FIN, a reset, or the connection. Dropped, it throws away what comes.
pub struct StreamReader {
    id: u32,
    outlet: Outlet,
    shared: Arc<Shared>,
}

impl AsyncBufRead for StreamReader {
    fn poll_fill_buf(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        Pin::new(&mut self.get_mut().outlet).poll_fill_buf(context)
    }

    fn consume(mut self: Pin<&mut Self>, count: usize) {
        Pin::new(&mut self.outlet).consume(count);
        self.shared.used(self.id, count);
    }
}

impl AsyncRead for StreamReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let data = ready!(self.as_mut().poll_fill_buf(context))?;
        let count = data.len().min(buffer.remaining());
        buffer.put_slice(&data[..count]);
        self.consume(count);
        Poll::Ready(Ok(()))
    }
}

/// What the client gets. Shutting it down sends FIN; dropping it sends nothing.
pub struct StreamWriter {
    id: u32,
    out: PollSender<Frame>,
    shared: Arc<Shared>,
    state: Arc<StreamState>,
}

impl StreamWriter {
    /// Sends RST_STREAM, unless the stream has ended.
    pub async fn reset(&mut self) {
        if !self.state.finished.swap(true, Ordering::AcqRel) {
            let frame = Frame::RstStream {
                stream_id: self.id,
                status: STATUS_CANCEL,
            };
            // A connection that ended needs no reset.
            let _ = self.out.send(frame).await;
        }
        self.state.inlet.end();
    }

    /// Resolves when the client has reset the stream, or the connection has ended.
    pub fn was_reset(&self) -> CancellationToken {
        self.state.reset.clone()
    }

    fn broken() -> io::Error {
        io::ErrorKind::BrokenPipe.into()
    }

    fn is_over(&self) -> bool {
        self.state.reset.is_cancelled() || self.state.finished.load(Ordering::Acquire)
    }
}

impl AsyncWrite for StreamWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if self.is_over() {
            return Poll::Ready(Err(Self::broken()));
        }
        ready!(self.out.poll_reserve(context)).map_err(|_| Self::broken())?;
        let wanted = buffer.len().min(MAX_DATA_BYTES);
        let mut count = self.shared.flow().send(self.id, wanted);
        if count == 0 {
            self.shared.wait_for_window(context);
            // It may have opened, or the stream may have ended, before we were on the list.
            if self.is_over() {
                return Poll::Ready(Err(Self::broken()));
            }
            count = self.shared.flow().send(self.id, wanted);
        }
        if count == 0 {
            // Others may use the place meanwhile.
            self.out.abort_send();
            return Poll::Pending;
        }
        let frame = Frame::Data {
            stream_id: self.id,
            fin: false,
            data: Bytes::copy_from_slice(&buffer[..count]),
        };
        self.out.send_item(frame).map_err(|_| Self::broken())?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The writing task flushes whenever its queue runs empty.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.state.finished.load(Ordering::Acquire) {
            return Poll::Ready(Ok(()));
        }
        if ready!(self.out.poll_reserve(context)).is_err() {
            return Poll::Ready(Ok(()));
        }
        if self.state.finished.swap(true, Ordering::AcqRel) {
            self.out.abort_send();
            return Poll::Ready(Ok(()));
        }
        let frame = Frame::Data {
            stream_id: self.id,
            fin: true,
            data: Bytes::new(),
        };
        self.out.send_item(frame).map_err(|_| Self::broken())?;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
