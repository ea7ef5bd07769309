//! Bytes in binary messages, both ways: what SPDY is tunnelled through.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_util::codec::{FramedRead, FramedWrite};

use super::MAX_DATA_BYTES;
use super::frame::{Event, FrameDecoder, FrameEncoder, Message};
use crate::life::{CLOSE_TIMEOUT, LINGER};

/// Bytes on their way, each direction.
const TUNNEL_BYTES: usize = 64 * 1024;

/// The inner connection. It ends with the outer one, and the outer one with it.
pub(crate) fn tunnel<T>(io: T) -> DuplexStream
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (read, write) = tokio::io::split(io);
    let mut stream = FramedRead::with_capacity(read, FrameDecoder::default(), MAX_DATA_BYTES);
    let mut sink = FramedWrite::new(write, FrameEncoder);
    let (near, far) = tokio::io::duplex(TUNNEL_BYTES);
    let (mut from_us, mut to_us) = tokio::io::split(far);
    // One is enough: of several pings the last is to be answered. RFC 6455, 5.5.3.
    let (pong, mut pongs) = mpsc::channel::<Bytes>(1);
    // What the client is told at the end.
    let code = Arc::new(AtomicU16::new(CloseCode::Normal.into()));
    let fault = code.clone();
    let incoming = async move {
        loop {
            match stream.next().await {
                Some(Ok(Event::Piece { data, .. })) => {
                    if to_us.write_all(&data).await.is_err() {
                        // Unread bytes would make the kernel reset what we wrote last.
                        let rest = async { while let Some(Ok(_)) = stream.next().await {} };
                        let _ = tokio::time::timeout(LINGER, rest).await;
                        break;
                    }
                }
                Some(Ok(Event::Ping(data))) => {
                    // One is being answered.
                    let _ = pong.try_send(data);
                }
                Some(Ok(Event::Pong)) => {}
                Some(Ok(Event::Close)) | None => break,
                Some(Err(error)) => {
                    tracing::debug!(%error, "closing a streaming connection");
                    fault.store(error.code().into(), Ordering::Release);
                    break;
                }
            }
        }
        // Fails only when the other end has gone.
        let _ = to_us.shutdown().await;
        stream
    };
    let outgoing = async move {
        let mut buffer = vec![0; MAX_DATA_BYTES];
        loop {
            let message = tokio::select! {
                count = from_us.read(&mut buffer) => match count {
                    Ok(0) | Err(_) => break,
                    Ok(count) => Message::Binary(Bytes::copy_from_slice(&buffer[..count])),
                },
                Some(data) = pongs.recv() => Message::Pong(data),
            };
            if sink.send(message).await.is_err() {
                break;
            }
        }
        let code = CloseCode::from(code.load(Ordering::Acquire));
        // The client may be gone already, or read nothing.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, sink.send(Message::Close(code))).await;
        sink
    };
    tokio::spawn(async move {
        let _halves = tokio::join!(incoming, outgoing);
    });
    near
}
