//! Channels in a WebSocket: the first byte of each message says for which one it is.
//!
//! A channel that nobody reads holds up the connection once its queue is full ([`crate::memory`]). Upstream:
//! `k8s.io/streaming/pkg/httpstream/wsstream`.

mod demux;
mod frame;
mod tunnel;

#[cfg(test)]
mod tests;

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, mpsc};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_util::codec::{FramedRead, FramedWrite};
use tokio_util::sync::{CancellationToken, PollSender};

pub(crate) use demux::Codec;
use demux::{Demux, Incoming, encode};
use frame::{Event, FrameDecoder, FrameEncoder, Message, WebSocketError};
pub(crate) use tunnel::tunnel;

use crate::StreamConfig;
use crate::life::{CLOSE_TIMEOUT, LINGER, Life};
use crate::memory::Share;
use crate::queue::{Inlet, Outlet, Pushed, queue};

/// Messages waiting to be written, each of at most 32 KiB.
const WRITE_QUEUE: usize = 8;
/// Data of one message we send.
const MAX_DATA_BYTES: usize = 32 * 1024;

/// A WebSocket of channels. Dropping it closes it.
pub(crate) struct Channels {
    out: mpsc::Sender<Message>,
    codec: Codec,
    shared: Arc<Shared>,
}

struct Shared {
    life: Life,
    urgent: Urgent,
}

/// What the reading task has to say. It waits for nobody: reading must not depend on a client that does not read.
#[derive(Default)]
struct Urgent {
    said: Mutex<Said>,
    news: Notify,
}

#[derive(Default)]
struct Said {
    /// Of several pings the last is to be answered. RFC 6455, 5.5.3.
    pong: Option<Bytes>,
    /// The client broke the protocol.
    fault: Option<CloseCode>,
}

impl Urgent {
    fn pong(&self, data: Bytes) {
        self.said
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pong = Some(data);
        self.news.notify_one();
    }

    /// A pong that answers nothing: a client whose own pings wait behind what it sent too fast sees that we are here, and a
    /// connection that is dead shows it. RFC 6455, 5.5.3.
    fn probe(&self) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.pong.get_or_insert_default();
        drop(said);
        self.news.notify_one();
    }

    fn break_off(&self, code: CloseCode) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.fault = Some(code);
        drop(said);
        self.news.notify_one();
    }

    fn next(&self) -> Option<Message> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        match said.fault {
            Some(code) => Some(Message::Close(code)),
            None => said.pong.take().map(Message::Pong),
        }
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        self.shared.life.closing.cancel();
    }
}

impl Channels {
    /// Takes over an upgraded connection. `readable[i]`: the client may write to channel i; its data comes out of the
    /// reader at the same place.
    pub(crate) fn open<T>(
        io: T,
        codec: Codec,
        readable: &[bool],
        config: &StreamConfig,
    ) -> (Self, Vec<Option<Outlet>>)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (read, write) = tokio::io::split(io);
        let (out, messages) = mpsc::channel(WRITE_QUEUE);
        let shared = Arc::new(Shared {
            life: Life::new(),
            urgent: Urgent::default(),
        });
        let share = Share::new(config.pool.clone());
        let (inlets, outlets) = readable
            .iter()
            .map(|readable| match readable {
                true => {
                    let (inlet, outlet) = queue(share.clone());
                    (Some(inlet), Some(outlet))
                }
                false => (None, None),
            })
            .unzip();
        let reading = ReadTask {
            frames: FramedRead::with_capacity(read, FrameDecoder::default(), MAX_DATA_BYTES),
            demux: Demux::new(codec),
            channels: inlets,
            shared: shared.clone(),
            idle_timeout: config.idle_timeout,
        };
        tokio::spawn(reading.run());
        tokio::spawn(write_messages(write, messages, shared.clone()));
        (Self { out, codec, shared }, outlets)
    }

    /// The write end of channel `number`.
    pub(crate) fn writer(&self, number: u8) -> ChannelWriter {
        ChannelWriter {
            number,
            codec: self.codec,
            out: PollSender::new(self.out.clone()),
        }
    }

    /// Tells the client that all is set up: an empty message on a channel.
    pub(crate) async fn greet(&self, number: u8) {
        let _ = self.out.send(encode(self.codec, number, &[])).await;
    }

    /// Resolves when the client has hung up, or the connection broke or idled away.
    pub(crate) fn closed(&self) -> CancellationToken {
        self.shared.life.closed.clone()
    }
}

struct ReadTask<R> {
    frames: FramedRead<R, FrameDecoder>,
    demux: Demux,
    channels: Vec<Option<Inlet>>,
    shared: Arc<Shared>,
    idle_timeout: Duration,
}

impl<R: AsyncRead + Unpin> ReadTask<R> {
    async fn run(mut self) {
        let shared = self.shared.clone();
        let life = &shared.life;
        loop {
            let event = tokio::select! {
                event = self.frames.next() => event,
                () = life.idle(self.idle_timeout) => {
                    tracing::debug!("closing an idle streaming connection");
                    life.gone.cancel();
                    break;
                }
                () = life.closing.cancelled() => break,
                () = life.closed.cancelled() => break,
            };
            life.touch();
            let handled = match event {
                Some(Ok(event)) => self.handle(event).await,
                Some(Err(error)) => Err(error),
                None => Ok(false),
            };
            match handled {
                Ok(true) => continue,
                Ok(false) if life.closing.is_cancelled() => {}
                Ok(false) => life.gone.cancel(),
                Err(WebSocketError::Io(error)) => {
                    tracing::debug!(%error, "streaming connection broke");
                    life.gone.cancel();
                }
                Err(error) => {
                    tracing::warn!(%error, "closing a streaming connection");
                    shared.urgent.break_off(error.code());
                }
            }
            break;
        }
        life.closed.cancel();
        // Readers see their end.
        self.channels.clear();
        life.closing.cancelled().await;
        // Until the client answers our goodbye, so that the last bytes are not lost to a reset.
        let _ = tokio::time::timeout(LINGER, async {
            let mut rest = self.frames.into_inner();
            let _ = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await;
        })
        .await;
    }

    /// Acts on one event. `false`: the connection is to end.
    async fn handle(&mut self, event: Event) -> Result<bool, WebSocketError> {
        let incoming = match event {
            Event::Piece { first, last, data } => self.demux.piece(first, last, data),
            Event::Ping(data) => {
                self.shared.urgent.pong(data);
                return Ok(true);
            }
            Event::Pong => return Ok(true),
            Event::Close => return Ok(false),
        };
        match incoming {
            Incoming::Data(number, data) => {
                let channel = self.channels.get(usize::from(number));
                match channel.and_then(Option::as_ref) {
                    Some(channel) => {
                        Ok(push(channel, &data, &self.shared, self.idle_timeout).await)
                    }
                    // Nobody reads it: dropped.
                    None => Ok(true),
                }
            }
            Incoming::End(number) => match self.channels.get_mut(usize::from(number)) {
                Some(channel) => {
                    *channel = None;
                    Ok(true)
                }
                None => Err(WebSocketError::Protocol("no such channel")),
            },
            Incoming::Nothing => Ok(true),
            Incoming::Broken(reason) => Err(WebSocketError::Protocol(reason)),
        }
    }
}

/// `false`: the connection ended before there was room.
async fn push(channel: &Inlet, data: &[u8], shared: &Shared, idle_timeout: Duration) -> bool {
    if channel.try_push(data) != Pushed::Full {
        return true;
    }
    let room = channel.push(data);
    let probe = || shared.urgent.probe();
    let held = shared.life.while_held_back(room, idle_timeout, probe);
    held.await.is_some()
}

async fn write_messages<W: AsyncWrite + Unpin>(
    write: W,
    mut messages: mpsc::Receiver<Message>,
    shared: Arc<Shared>,
) {
    let life = &shared.life;
    let mut sink = FramedWrite::new(write, FrameEncoder);
    // Clients take an end without a code for a failure.
    let mut goodbye = Some(Message::Close(CloseCode::Normal));
    let writing = async {
        loop {
            let message = match shared.urgent.next() {
                Some(message) => message,
                None => {
                    let message = tokio::select! {
                        biased;
                        message = messages.recv() => message,
                        () = shared.urgent.news.notified() => continue,
                        () = life.closing.cancelled() => None,
                    };
                    let Some(message) = message else { break };
                    life.touch();
                    message
                }
            };
            let last = matches!(message, Message::Close(_));
            if let Err(error) = sink.send(message).await {
                tracing::debug!(%error, "streaming connection broke");
                goodbye = None;
                break;
            }
            if last {
                goodbye = None;
                break;
            }
        }
    };
    tokio::select! {
        () = writing => {}
        () = life.gone.cancelled() => {}
        () = async {
            life.closing.cancelled().await;
            tokio::time::sleep(CLOSE_TIMEOUT).await;
        } => {}
    }
    life.closed.cancel();
    messages.close();
    // The client may be gone already.
    let _ = tokio::time::timeout(LINGER, async {
        if let Some(goodbye) = goodbye {
            let _ = sink.send(goodbye).await;
        }
        let _ = sink.into_inner().shutdown().await;
    })
    .await;
}

/// What the client gets on one channel. There is no way to end a single channel towards the client.
pub(crate) struct ChannelWriter {
    number: u8,
    codec: Codec,
    out: PollSender<Message>,
}

impl AsyncWrite for ChannelWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.out.poll_reserve(context)).map_err(|_| broken())?;
        let count = buffer.len().min(MAX_DATA_BYTES);
        let message = encode(self.codec, self.number, &buffer[..count]);
        self.out.send_item(message).map_err(|_| broken())?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The writing task flushes each message.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
