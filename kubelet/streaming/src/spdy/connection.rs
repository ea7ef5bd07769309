//! A server's SPDY connection: two tasks (one reads, one writes) and the streams between them.
//!
//! ```text
//! stream: incoming --accept()--> open --FIN in / FIN out--> half closed --both--> gone
//!            \--reject()--> RST        \--RST either way--------------------------^
//! ```

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::codec::{FramedRead, FramedWrite};
use tokio_util::sync::{CancellationToken, PollSender};

use super::frame::{MAX_DATA_BYTES, STATUS_CANCEL, STATUS_PROTOCOL_ERROR};
use super::{Frame, FrameDecoder, FrameEncoder, Headers, SpdyError};

/// Pieces of data a stream may hold unread before its connection waits.
const STREAM_QUEUE: usize = 256;
/// Frames waiting to be written.
const WRITE_QUEUE: usize = 32;
/// Streams not yet accepted.
const ACCEPT_QUEUE: usize = 64;
/// Streams a connection may have.
const MAX_STREAMS: usize = 4096;
/// How long a closed connection waits for the client to hang up, so that the last bytes are not lost to a reset.
const LINGER: Duration = Duration::from_secs(2);
/// How long a client may take to read what is queued when the connection closes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// A server's connection. Dropping it closes it.
pub struct Connection {
    incoming: mpsc::Receiver<IncomingStream>,
    shared: Arc<Shared>,
}

struct Shared {
    out: mpsc::Sender<Frame>,
    streams: Mutex<HashMap<u32, Arc<StreamState>>>,
    /// Nothing comes any more.
    closed: CancellationToken,
    /// The client is gone, or has idled away: nothing more is written.
    gone: CancellationToken,
    /// We want to end: what is queued is written, then the connection closes.
    closing: CancellationToken,
    last_activity: Mutex<Instant>,
}

struct StreamState {
    /// Where data goes; `None` once the client's side is closed.
    data: Mutex<Option<mpsc::Sender<Bytes>>>,
    /// FIN or RST has been sent.
    finished: AtomicBool,
    /// The client does not want any more.
    reset: AtomicBool,
}

impl Shared {
    fn touch(&self) {
        *self
            .last_activity
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn idle_since(&self) -> Instant {
        *self
            .last_activity
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn streams(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Arc<StreamState>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Takes over an upgraded connection. An idle timeout of zero means none.
    pub fn server<T>(io: T, idle_timeout: Duration) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(io);
        let (out, frames) = mpsc::channel(WRITE_QUEUE);
        let (accept, incoming) = mpsc::channel(ACCEPT_QUEUE);
        let shared = Arc::new(Shared {
            out,
            streams: Mutex::default(),
            closed: CancellationToken::new(),
            gone: CancellationToken::new(),
            closing: CancellationToken::new(),
            last_activity: Mutex::new(Instant::now()),
        });
        tokio::spawn(read_frames(read, shared.clone(), accept, idle_timeout));
        tokio::spawn(write_frames(write, shared.clone(), frames));
        Self { incoming, shared }
    }

    /// The next stream the client opens; `None` when the connection is closed. Cancel-safe.
    pub async fn accept(&mut self) -> Option<IncomingStream> {
        self.incoming.recv().await
    }

    /// Resolves when the client has hung up, or the connection broke or idled away.
    pub fn closed(&self) -> CancellationToken {
        self.shared.closed.clone()
    }

    /// Resets what is still open, writes what is queued, and closes.
    pub async fn close(self) {
        let open: Vec<u32> = self
            .shared
            .streams()
            .iter()
            .filter(|(_, state)| !state.finished.swap(true, Ordering::AcqRel))
            .map(|(id, _)| *id)
            .collect();
        for stream_id in open {
            let frame = Frame::RstStream {
                stream_id,
                status: STATUS_CANCEL,
            };
            if self.shared.out.send(frame).await.is_err() {
                break;
            }
        }
        let _ = self
            .shared
            .out
            .send(Frame::GoAway {
                last_stream_id: 0,
                status: 0,
            })
            .await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}

/// A stream the client asks for.
pub struct IncomingStream {
    id: u32,
    headers: Headers,
    data: mpsc::Receiver<Bytes>,
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
            headers: self.headers,
            id: self.id,
            reader: StreamReader {
                data: self.data,
                current: Bytes::new(),
            },
            writer: StreamWriter {
                id: self.id,
                out: PollSender::new(self.shared.out.clone()),
                state: self.state,
            },
        })
    }

    /// Refuses the stream.
    pub async fn reject(self) {
        self.state.finished.store(true, Ordering::Release);
        self.shared.streams().remove(&self.id);
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
    pub headers: Headers,
    pub reader: StreamReader,
    pub writer: StreamWriter,
}

/// What the client sends; it ends with the client's FIN, a reset, or the connection.
pub struct StreamReader {
    data: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl AsyncRead for StreamReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.current.is_empty() {
            match ready!(self.data.poll_recv(cx)) {
                Some(data) => self.current = data,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.current.len().min(buffer.remaining());
        buffer.put_slice(&self.current[..count]);
        self.current.advance(count);
        Poll::Ready(Ok(()))
    }
}

/// What the client gets. Shutting it down sends FIN; dropping it sends nothing.
pub struct StreamWriter {
    id: u32,
    out: PollSender<Frame>,
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
        self.state
            .data
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    fn broken() -> io::Error {
        io::ErrorKind::BrokenPipe.into()
    }
}

impl AsyncWrite for StreamWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if self.state.reset.load(Ordering::Acquire) || self.state.finished.load(Ordering::Acquire) {
            return Poll::Ready(Err(Self::broken()));
        }
        ready!(self.out.poll_reserve(cx)).map_err(|_| Self::broken())?;
        let count = buffer.len().min(MAX_DATA_BYTES);
        let frame = Frame::Data {
            stream_id: self.id,
            fin: false,
            data: Bytes::copy_from_slice(&buffer[..count]),
        };
        self.out.send_item(frame).map_err(|_| Self::broken())?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The writing task flushes whenever its queue runs empty.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.state.finished.load(Ordering::Acquire) {
            return Poll::Ready(Ok(()));
        }
        if ready!(self.out.poll_reserve(cx)).is_err() {
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

async fn read_frames<R: AsyncRead + Unpin>(
    read: R,
    shared: Arc<Shared>,
    accept: mpsc::Sender<IncomingStream>,
    idle_timeout: Duration,
) {
    let mut frames = FramedRead::with_capacity(read, FrameDecoder::default(), MAX_DATA_BYTES);
    let mut by_us = false;
    loop {
        let idle = async {
            if idle_timeout.is_zero() {
                return std::future::pending().await;
            }
            loop {
                let deadline = shared.idle_since() + idle_timeout;
                if deadline <= Instant::now() {
                    return;
                }
                tokio::time::sleep_until(deadline).await;
            }
        };
        let frame = tokio::select! {
            frame = frames.next() => frame,
            () = idle => {
                tracing::debug!(?idle_timeout, "closing an idle streaming connection");
                break;
            }
            () = shared.closing.cancelled() => {
                by_us = true;
                break;
            }
        };
        match frame {
            Some(Ok(frame)) => {
                shared.touch();
                if !handle(frame, &shared, &accept).await {
                    by_us = shared.closing.is_cancelled();
                    break;
                }
            }
            Some(Err(SpdyError::Io(error))) => {
                tracing::debug!(%error, "streaming connection broke");
                break;
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "closing a streaming connection");
                break;
            }
            None => break,
        }
    }
    if !by_us {
        shared.gone.cancel();
    }
    shared.closed.cancel();
    // Readers see their end.
    for state in shared.streams().values() {
        state.reset.store(true, Ordering::Release);
        state
            .data
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
    drop(accept);
    // Drained until the client hangs up: unread bytes would make the kernel reset what we wrote last.
    shared.closing.cancelled().await;
    let _ = tokio::time::timeout(LINGER, async {
        let mut rest = frames.into_inner();
        let _ = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await;
    })
    .await;
}

/// Acts on one frame. `false`: the connection is to end.
async fn handle(frame: Frame, shared: &Arc<Shared>, accept: &mpsc::Sender<IncomingStream>) -> bool {
    match frame {
        Frame::SynStream {
            stream_id,
            fin,
            headers,
        } => {
            let refused = {
                let streams = shared.streams();
                stream_id % 2 == 0
                    || streams.contains_key(&stream_id)
                    || streams.len() >= MAX_STREAMS
            };
            if refused {
                let frame = Frame::RstStream {
                    stream_id,
                    status: STATUS_PROTOCOL_ERROR,
                };
                return shared.out.send(frame).await.is_ok();
            }
            let (sender, data) = mpsc::channel(STREAM_QUEUE);
            let state = Arc::new(StreamState {
                data: Mutex::new((!fin).then_some(sender)),
                finished: AtomicBool::new(false),
                reset: AtomicBool::new(false),
            });
            shared.streams().insert(stream_id, state.clone());
            let incoming = IncomingStream {
                id: stream_id,
                headers,
                data,
                state,
                shared: shared.clone(),
            };
            tokio::select! {
                sent = accept.send(incoming) => sent.is_ok(),
                () = shared.closing.cancelled() => false,
            }
        }
        Frame::Data {
            stream_id,
            fin,
            data,
        } => {
            let Some(state) = shared.streams().get(&stream_id).cloned() else {
                return true;
            };
            let sender = state
                .data
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            if let Some(sender) = sender
                && !data.is_empty()
            {
                tokio::select! {
                    // Nobody reads it: dropped, as upstream does.
                    _ = sender.send(data) => {}
                    () = shared.closing.cancelled() => return false,
                }
            }
            if fin {
                close_remote(shared, stream_id, &state);
            }
            true
        }
        Frame::Headers { stream_id, fin, .. } | Frame::SynReply { stream_id, fin, .. } => {
            if fin && let Some(state) = shared.streams().get(&stream_id).cloned() {
                close_remote(shared, stream_id, &state);
            }
            true
        }
        Frame::RstStream { stream_id, .. } => {
            if let Some(state) = shared.streams().remove(&stream_id) {
                state.reset.store(true, Ordering::Release);
                state.finished.store(true, Ordering::Release);
                state
                    .data
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take();
            }
            true
        }
        Frame::Ping { id } => {
            // An even one answers ours, and we send none.
            id % 2 == 0 || shared.out.send(Frame::Ping { id }).await.is_ok()
        }
        Frame::GoAway { .. } => false,
        Frame::Ignored { .. } => true,
    }
}

fn close_remote(shared: &Shared, stream_id: u32, state: &StreamState) {
    state
        .data
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if state.finished.load(Ordering::Acquire) {
        shared.streams().remove(&stream_id);
    }
}

async fn write_frames<W: AsyncWrite + Unpin>(
    write: W,
    shared: Arc<Shared>,
    mut frames: mpsc::Receiver<Frame>,
) {
    let mut sink = FramedWrite::new(write, FrameEncoder::default());
    let writing = async {
        loop {
            let frame = match frames.try_recv() {
                Ok(frame) => frame,
                Err(_) => {
                    sink.flush().await?;
                    tokio::select! {
                        biased;
                        frame = frames.recv() => match frame {
                            Some(frame) => frame,
                            None => return Ok(()),
                        },
                        () = shared.closing.cancelled() => return Ok(()),
                    }
                }
            };
            shared.touch();
            forget_finished(&shared, &frame);
            sink.feed(frame).await?;
        }
    };
    let give_up = async {
        tokio::select! {
            () = shared.gone.cancelled() => {}
            () = async {
                shared.closing.cancelled().await;
                tokio::time::sleep(CLOSE_TIMEOUT).await;
            } => {}
        }
    };
    let result: Result<(), SpdyError> = tokio::select! {
        result = writing => result,
        () = give_up => Ok(()),
    };
    if let Err(error) = result {
        tracing::debug!(%error, "streaming connection broke");
        shared.closed.cancel();
    }
    frames.close();
    // The client may be gone already.
    let _ = tokio::time::timeout(LINGER, sink.into_inner().shutdown()).await;
}

/// A stream both sides have ended is forgotten.
fn forget_finished(shared: &Shared, frame: &Frame) {
    match frame {
        Frame::Data {
            stream_id,
            fin: true,
            ..
        } => {
            let mut streams = shared.streams();
            let ended = streams.get(stream_id).is_some_and(|state| {
                state
                    .data
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .is_none()
            });
            if ended {
                streams.remove(stream_id);
            }
        }
        Frame::RstStream { stream_id, .. } => {
            shared.streams().remove(stream_id);
        }
        _ => {}
    }
}
