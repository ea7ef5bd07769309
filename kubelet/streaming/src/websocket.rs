//! Channels in a WebSocket: the first byte of each message says for which one it is.
//!
//! Upstream: `k8s.io/streaming/pkg/httpstream/wsstream`.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Buf as _, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_util::sync::{CancellationToken, PollSender};

/// Largest message taken. Upstream: `golang.org/x/net/websocket`'s 32 MiB.
const MAX_MESSAGE_BYTES: usize = 32 << 20;
/// Messages a channel may hold unread before the connection waits.
const CHANNEL_QUEUE: usize = 64;
const WRITE_QUEUE: usize = 32;
/// Data of one message we send.
const MAX_DATA_BYTES: usize = 32 * 1024;
/// v5: the next byte names a channel the client has ended.
const CLOSE_SIGNAL: u8 = 255;
/// How long the client may take to answer our goodbye.
const LINGER: Duration = Duration::from_secs(2);
/// How long a client may take to read what is queued when the connection closes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);
const TUNNEL_BYTES: usize = 64 * 1024;

/// How channels are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Codec {
    /// Text messages of base64, with the channel as a digit.
    pub(crate) base64: bool,
    /// The client may end a channel.
    pub(crate) close_signal: bool,
}

/// A WebSocket of channels. Dropping it closes it.
pub(crate) struct Channels {
    out: mpsc::Sender<Message>,
    codec: Codec,
    life: Arc<Life>,
}

/// What the two tasks and their owner know of the connection.
struct Life {
    /// Nothing comes any more.
    closed: CancellationToken,
    /// The client is gone, or has idled away: nothing more is written.
    gone: CancellationToken,
    /// We want to end: what is queued is written, then the connection closes.
    closing: CancellationToken,
    last_activity: Mutex<Instant>,
}

impl Life {
    fn touch(&self) {
        *self
            .last_activity
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    async fn idle(&self, timeout: Duration) {
        if timeout.is_zero() {
            return std::future::pending().await;
        }
        loop {
            let last = *self
                .last_activity
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if last + timeout <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(last + timeout).await;
        }
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        self.life.closing.cancel();
    }
}

impl Channels {
    /// Takes over an upgraded connection. `readable[i]`: the client may write to channel i; its data comes out of the
    /// reader at the same place. An idle timeout of zero means none.
    pub(crate) async fn open<T>(
        io: T,
        codec: Codec,
        readable: &[bool],
        idle_timeout: Duration,
    ) -> (Self, Vec<Option<ChannelReader>>)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sink, stream) = socket(io).await.split();
        let (out, messages) = mpsc::channel(WRITE_QUEUE);
        let life = Arc::new(Life {
            closed: CancellationToken::new(),
            gone: CancellationToken::new(),
            closing: CancellationToken::new(),
            last_activity: Mutex::new(Instant::now()),
        });
        let mut senders = Vec::with_capacity(readable.len());
        let mut readers = Vec::with_capacity(readable.len());
        for readable in readable {
            if *readable {
                let (sender, data) = mpsc::channel(CHANNEL_QUEUE);
                senders.push(Some(sender));
                readers.push(Some(ChannelReader {
                    data,
                    current: Bytes::new(),
                }));
            } else {
                senders.push(None);
                readers.push(None);
            }
        }
        let reading = ReadTask {
            stream,
            codec,
            channels: senders,
            life: life.clone(),
            idle_timeout,
        };
        tokio::spawn(reading.run());
        tokio::spawn(write_messages(sink, messages, life.clone()));
        (Self { out, codec, life }, readers)
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
        self.life.closed.clone()
    }
}

async fn socket<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> WebSocketStream<T> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Clients take an end without a code for a failure.
fn goodbye() -> Message {
    Message::Close(Some(CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    }))
}

fn encode(codec: Codec, number: u8, data: &[u8]) -> Message {
    if codec.base64 {
        let mut text = String::with_capacity(data.len() * 4 / 3 + 4);
        text.push(char::from(b'0' + number));
        BASE64.encode_string(data, &mut text);
        Message::text(text)
    } else {
        let mut frame = BytesMut::with_capacity(data.len() + 1);
        frame.extend_from_slice(&[number]);
        frame.extend_from_slice(data);
        Message::binary(frame.freeze())
    }
}

/// What one message of a client says.
#[derive(Debug, PartialEq, Eq)]
enum Incoming {
    Data(u8, Bytes),
    End(u8),
    Nothing,
    Broken(&'static str),
}

fn decode(codec: Codec, mut message: Bytes) -> Incoming {
    if message.is_empty() {
        return Incoming::Nothing;
    }
    let mut number = message.get_u8();
    if codec.close_signal && number == CLOSE_SIGNAL {
        return match message.len() {
            1 => Incoming::End(message[0]),
            _ => Incoming::Broken("one channel must follow the close signal"),
        };
    }
    if !codec.base64 {
        return Incoming::Data(number, message);
    }
    number = number.wrapping_sub(b'0');
    match BASE64.decode(&message) {
        Ok(data) => Incoming::Data(number, data.into()),
        // As upstream: the message is lost, the connection is not.
        Err(_) => Incoming::Nothing,
    }
}

struct ReadTask<T> {
    stream: SplitStream<WebSocketStream<T>>,
    codec: Codec,
    channels: Vec<Option<mpsc::Sender<Bytes>>>,
    life: Arc<Life>,
    idle_timeout: Duration,
}

impl<T: AsyncRead + AsyncWrite + Unpin> ReadTask<T> {
    async fn run(mut self) {
        let mut by_us = false;
        loop {
            let message = tokio::select! {
                message = self.stream.next() => message,
                () = self.life.idle(self.idle_timeout) => {
                    tracing::debug!("closing an idle streaming connection");
                    break;
                }
                () = self.life.closing.cancelled() => {
                    by_us = true;
                    break;
                }
            };
            self.life.touch();
            let data = match message {
                Some(Ok(Message::Binary(data))) => data,
                Some(Ok(Message::Text(text))) => text.into(),
                Some(Ok(Message::Close(_))) | None => break,
                Some(Ok(_)) => continue,
                Some(Err(error)) => {
                    tracing::debug!(%error, "streaming connection broke");
                    break;
                }
            };
            match decode(self.codec, data) {
                Incoming::Data(number, data) => {
                    let channel = self
                        .channels
                        .get(usize::from(number))
                        .and_then(Clone::clone);
                    if let Some(channel) = channel
                        && !data.is_empty()
                    {
                        tokio::select! {
                            // Nobody reads it: dropped.
                            _ = channel.send(data) => {}
                            () = self.life.closing.cancelled() => {
                                by_us = true;
                                break;
                            }
                        }
                    }
                }
                Incoming::End(number) => match self.channels.get_mut(usize::from(number)) {
                    Some(channel) => *channel = None,
                    None => break,
                },
                Incoming::Nothing => {}
                Incoming::Broken(reason) => {
                    tracing::warn!(reason, "closing a streaming connection");
                    break;
                }
            }
        }
        if !by_us {
            self.life.gone.cancel();
        }
        self.life.closed.cancel();
        self.channels.clear();
        self.life.closing.cancelled().await;
        // Until the client answers our goodbye, so that the last bytes are not lost to a reset.
        let _ = tokio::time::timeout(LINGER, async {
            while let Some(Ok(_)) = self.stream.next().await {}
        })
        .await;
    }
}

async fn write_messages<T: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<T>, Message>,
    mut messages: mpsc::Receiver<Message>,
    life: Arc<Life>,
) {
    let writing = async {
        loop {
            let message = tokio::select! {
                biased;
                message = messages.recv() => message,
                () = life.closing.cancelled() => None,
            };
            let Some(message) = message else { break };
            life.touch();
            if let Err(error) = sink.send(message).await {
                tracing::debug!(%error, "streaming connection broke");
                life.closed.cancel();
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
    messages.close();
    // The client may be gone already.
    let _ = tokio::time::timeout(LINGER, sink.send(goodbye())).await;
}

/// What the client sends on one channel.
pub(crate) struct ChannelReader {
    data: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl AsyncRead for ChannelReader {
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

/// What the client gets on one channel. There is no way to end a single channel towards the client.
pub(crate) struct ChannelWriter {
    number: u8,
    codec: Codec,
    out: PollSender<Message>,
}

impl AsyncWrite for ChannelWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.out.poll_reserve(cx)).map_err(|_| broken())?;
        let count = buffer.len().min(MAX_DATA_BYTES);
        let message = encode(self.codec, self.number, &buffer[..count]);
        self.out.send_item(message).map_err(|_| broken())?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The writing task flushes each message.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Bytes in binary messages, both ways: what SPDY is tunnelled through.
pub(crate) async fn tunnel<T>(io: T) -> DuplexStream
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sink, mut stream) = socket(io).await.split();
    let (near, far) = tokio::io::duplex(TUNNEL_BYTES);
    let (mut from_us, mut to_us) = tokio::io::split(far);
    let incoming = async move {
        while let Some(Ok(message)) = stream.next().await {
            let data = match message {
                Message::Binary(data) => data,
                Message::Close(_) => break,
                _ => continue,
            };
            if to_us.write_all(&data).await.is_err() {
                break;
            }
        }
        // Fails only when the other end has gone.
        let _ = to_us.shutdown().await;
        stream
    };
    let outgoing = async move {
        let mut buffer = vec![0; MAX_DATA_BYTES];
        while let Ok(count) = from_us.read(&mut buffer).await {
            if count == 0
                || sink
                    .send(Message::binary(buffer[..count].to_vec()))
                    .await
                    .is_err()
            {
                break;
            }
        }
        // The client may be gone already.
        let _ = sink.send(goodbye()).await;
    };
    tokio::spawn(async move {
        let _halves = tokio::join!(incoming, outgoing);
    });
    near
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: Codec = Codec {
        base64: false,
        close_signal: false,
    };
    const V5: Codec = Codec {
        base64: false,
        close_signal: true,
    };
    const TEXT: Codec = Codec {
        base64: true,
        close_signal: false,
    };

    #[test]
    fn messages() {
        let check = |codec, message: &'static [u8], expect| {
            assert_eq!(
                decode(codec, Bytes::from_static(message)),
                expect,
                "{message:?}"
            );
        };
        check(RAW, b"\x00foo\n", Incoming::Data(0, "foo\n".into()));
        check(RAW, b"", Incoming::Nothing);
        check(
            RAW,
            b"\xff\x00",
            Incoming::Data(255, Bytes::from_static(b"\0")),
        );
        check(V5, b"\xff\x00", Incoming::End(0));
        check(
            V5,
            b"\xff",
            Incoming::Broken("one channel must follow the close signal"),
        );
        check(TEXT, b"0Zm9vCgo=", Incoming::Data(0, "foo\n\n".into()));
        check(TEXT, b"0***", Incoming::Nothing);
        assert_eq!(encode(RAW, 1, b"\n"), Message::binary(&b"\x01\n"[..]));
        assert_eq!(encode(TEXT, 1, b"\n"), Message::text("1Cg=="));
    }
}
