//! What must hold whatever a client sends: for the fuzz targets in `fuzz/`, and for the cases they found.
//!
//! Each function panics when its promise is broken.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio_util::codec::{Decoder as _, Encoder as _};

use crate::StreamConfig;
use crate::spdy::{Connection, Frame, FrameDecoder, FrameEncoder};
use crate::websocket::{Channels, Codec};

/// Frames longer than this are read in none but our own tests.
const MAX_CONTROL_BYTES: usize = 128 * 1024;

/// SPDY frames: pieces say the same as the whole; no more data comes out than went in, no header block is larger than its
/// bound; what was read and written again is read the same.
pub fn spdy_frames(data: &[u8]) {
    let Some((&step, data)) = data.split_first() else {
        return;
    };
    let (whole, failed) = frames(data, data.len());
    let (pieces, failed_in_pieces) = frames(data, 1 + usize::from(step));
    assert_eq!(failed, failed_in_pieces, "an error depends on the pieces");
    assert_eq!(joined(&whole), joined(&pieces));
    let carried: usize = whole
        .iter()
        .map(|frame| match frame {
            Frame::Data { data, .. } => data.len(),
            _ => 0,
        })
        .sum();
    assert!(carried <= data.len());
    let mut encoder = FrameEncoder::default();
    let mut written = BytesMut::new();
    let mut kept = Vec::new();
    for frame in joined(&whole) {
        if let Frame::SynStream { headers, .. }
        | Frame::SynReply { headers, .. }
        | Frame::Headers { headers, .. } = &frame
        {
            let bytes: usize = headers.0.iter().map(|(n, v)| n.len() + v.len()).sum();
            assert!(headers.0.len() <= 1000 && bytes <= 1 << 20, "{bytes}");
        }
        if matches!(frame, Frame::Ignored { .. }) {
            continue;
        }
        let before = written.len();
        encoder
            .encode(frame.clone(), &mut written)
            .expect("what was read can be written");
        let is_data = matches!(frame, Frame::Data { .. });
        if !is_data && written.len() - before > MAX_CONTROL_BYTES {
            // It packs worse than the client's did. Nothing behind it can be read: the blocks depend on each other.
            written.truncate(before);
            break;
        }
        kept.push(frame);
    }
    let (again, failed) = frames(&written, written.len());
    assert!(!failed, "what we write cannot be read");
    assert_eq!(joined(&again), kept);
}

fn frames(data: &[u8], step: usize) -> (Vec<Frame>, bool) {
    let mut decoder = FrameDecoder::default();
    let mut source = BytesMut::new();
    let mut all = Vec::new();
    for piece in data.chunks(step.max(1)) {
        source.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut source) {
                Ok(Some(frame)) => all.push(frame),
                Ok(None) => break,
                Err(_) => return (all, true),
            }
        }
    }
    (all, false)
}

/// Data that came in several pieces as one frame.
fn joined(frames: &[Frame]) -> Vec<Frame> {
    let mut all: Vec<Frame> = Vec::new();
    let mut open: Option<(u32, Vec<u8>)> = None;
    for frame in frames {
        if let Frame::Data {
            stream_id,
            fin,
            data,
        } = frame
        {
            let (id, mut bytes) = open.take().unwrap_or((*stream_id, Vec::new()));
            if id != *stream_id {
                all.push(data_frame(id, false, bytes));
                bytes = Vec::new();
            }
            bytes.extend_from_slice(data);
            if *fin {
                all.push(data_frame(*stream_id, true, bytes));
            } else {
                open = Some((*stream_id, bytes));
            }
            continue;
        }
        if let Some((id, bytes)) = open.take() {
            all.push(data_frame(id, false, bytes));
        }
        all.push(frame.clone());
    }
    if let Some((id, bytes)) = open {
        all.push(data_frame(id, false, bytes));
    }
    // Frames of no bytes come and go with the pieces.
    all.retain(|frame| !matches!(frame, Frame::Data { fin: false, data, .. } if data.is_empty()));
    all
}

fn data_frame(stream_id: u32, fin: bool, data: Vec<u8>) -> Frame {
    Frame::Data {
        stream_id,
        fin,
        data: Bytes::from(data),
    }
}

/// A client that says all it has to say and hangs up; what is written to it is lost.
struct Said {
    data: Vec<u8>,
    at: usize,
    step: usize,
}

impl AsyncRead for Said {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let end = self
            .data
            .len()
            .min(self.at + self.step.min(buffer.remaining()));
        let start = std::mem::replace(&mut self.at, end);
        buffer.put_slice(&self.data[start..end]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Said {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buffer.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A whole SPDY connection: it ends when the client is gone, and its streams hold no more than the client sent.
pub fn spdy_connection(data: &[u8]) {
    let Some((&step, data)) = data.split_first() else {
        return;
    };
    run(async move {
        let said = Said {
            data: data.to_vec(),
            at: 0,
            step: 1 + usize::from(step),
        };
        let mut connection = Connection::server(said, &config());
        let mut readers = tokio::task::JoinSet::new();
        while let Some(incoming) = connection.accept().await {
            if incoming.id() % 7 == 3 {
                incoming.reject().await;
                continue;
            }
            let Some(mut stream) = incoming.accept().await else {
                break;
            };
            readers.spawn(async move {
                let mut bytes = Vec::new();
                stream.reader.read_to_end(&mut bytes).await.map(drop)?;
                Ok::<usize, io::Error>(bytes.len())
            });
        }
        let mut carried = 0;
        while let Some(read) = readers.join_next().await {
            carried += read
                .expect("a reader does not panic")
                .expect("it ends well");
        }
        assert!(carried <= data.len());
        connection.close().await;
    });
}

/// A WebSocket of channels: it ends when the client is gone, and no channel holds more than the client sent.
pub fn websocket(data: &[u8]) {
    let Some((&first, data)) = data.split_first() else {
        return;
    };
    let codec = Codec {
        base64: first & 1 != 0,
        close_signal: first & 2 != 0,
    };
    run(async move {
        let said = Said {
            data: data.to_vec(),
            at: 0,
            step: 1 + usize::from(first >> 2),
        };
        let readable = [true, false, true, true];
        let (channels, readers) = Channels::open(said, codec, &readable, &config());
        let reading = readers.into_iter().flatten().map(|mut reader| async move {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).await.expect("it ends well");
            bytes.len()
        });
        let carried: usize = futures::future::join_all(reading).await.iter().sum();
        assert!(carried <= data.len());
        channels.greet(0).await;
        channels.closed().cancelled().await;
    });
}

/// A connection that may stand still for ever: the client says all it has to say at once.
fn config() -> StreamConfig {
    StreamConfig {
        idle_timeout: Duration::ZERO,
        ..StreamConfig::default()
    }
}

/// On a runtime of its own; all its tasks end in time.
fn run<F: Future<Output = ()>>(work: F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime of one thread");
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(20), work)
            .await
            .expect("the connection ends with its client");
    });
    runtime.shutdown_background();
}

/// Connections to begin with.
pub fn spdy_seeds() -> Vec<Vec<u8>> {
    let headers = crate::spdy::Headers(vec![
        ("streamtype".into(), "stdin".into()),
        ("port".into(), "80".into()),
    ]);
    let syn = |stream_id, fin| Frame::SynStream {
        stream_id,
        fin,
        headers: headers.clone(),
    };
    let data = |stream_id, fin| Frame::Data {
        stream_id,
        fin,
        data: Bytes::from_static(b"said"),
    };
    let cases: [&[Frame]; 3] = [
        &[
            syn(1, false),
            data(1, false),
            syn(5, false),
            data(5, true),
            data(1, true),
        ],
        &[
            syn(1, true),
            Frame::Ping { id: 1 },
            Frame::RstStream {
                stream_id: 1,
                status: 5,
            },
            Frame::GoAway {
                last_stream_id: 1,
                status: 0,
            },
        ],
        &[
            Frame::SynReply {
                stream_id: 1,
                fin: false,
                headers: headers.clone(),
            },
            Frame::Headers {
                stream_id: 1,
                fin: true,
                headers: headers.clone(),
            },
            syn(3, false),
        ],
    ];
    cases
        .iter()
        .map(|frames| {
            let mut encoder = FrameEncoder::default();
            let mut bytes = BytesMut::from(&[7][..]);
            for frame in *frames {
                encoder
                    .encode(frame.clone(), &mut bytes)
                    .expect("these can be written");
            }
            bytes.to_vec()
        })
        .collect()
}

/// Connections to begin with: masked with nothing.
pub fn websocket_seeds() -> Vec<Vec<u8>> {
    vec![
        vec![
            2, 0x82, 0x83, 0, 0, 0, 0, 0, b'h', b'i', 0x88, 0x80, 0, 0, 0, 0,
        ],
        vec![
            255, 0x81, 0x85, 0, 0, 0, 0, b'0', b'Z', b'm', b'8', b'=', 0x89, 0x80, 0, 0, 0, 0,
        ],
        vec![2, 0x82, 0x82, 0, 0, 0, 0, 255, 0],
        vec![
            2, 0x02, 0x82, 0, 0, 0, 0, 2, b'a', 0x80, 0x81, 0, 0, 0, 0, b'b',
        ],
        vec![255, 0x82],
    ]
}

#[cfg(test)]
mod tests {
    /// What the targets begin with, and what they found.
    #[test]
    fn promises_hold() {
        for case in super::spdy_seeds() {
            super::spdy_frames(&case);
            super::spdy_connection(&case);
        }
        for case in super::websocket_seeds() {
            super::websocket(&case);
        }
    }
}
