//! A connection and its client over a pipe: bounds, windows, and what is no SPDY of a decent client's.

use std::time::Duration;

use bytes::BytesMut;
use futures::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio_util::codec::{Encoder as _, FramedRead};

use super::*;
use crate::memory::{OWN_BYTES, Pool, STREAM_BYTES};
use crate::spdy::{FrameDecoder, FrameEncoder};

const PIPE_BYTES: usize = 64 * 1024;

/// A client that writes what it is told and reads when it is told.
struct Client {
    encoder: FrameEncoder,
    /// Of a frame that was not taken whole.
    unsent: BytesMut,
    write: WriteHalf<DuplexStream>,
    read: FramedRead<ReadHalf<DuplexStream>, FrameDecoder>,
}

fn connect(pool: usize) -> (Connection, Client) {
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let config = StreamConfig {
        pool: Pool::new(pool),
        ..StreamConfig::default()
    };
    let (read, write) = tokio::io::split(near);
    let client = Client {
        encoder: FrameEncoder::default(),
        unsent: BytesMut::new(),
        write,
        read: FramedRead::new(read, FrameDecoder::default()),
    };
    (Connection::server(far, &config), client)
}

fn open(stream_id: u32) -> Frame {
    Frame::SynStream {
        stream_id,
        fin: false,
        headers: Headers(vec![("streamtype".into(), "data".into())]),
    }
}

fn data(stream_id: u32, bytes: &[u8], fin: bool) -> Frame {
    Frame::Data {
        stream_id,
        fin,
        data: Bytes::copy_from_slice(bytes),
    }
}

impl Client {
    /// `false`: it was not taken within a moment, or the connection is gone.
    async fn try_send(&mut self, frame: Frame) -> bool {
        self.encoder.encode(frame, &mut self.unsent).unwrap();
        let write = async {
            while !self.unsent.is_empty() {
                if self.write.write_buf(&mut self.unsent).await.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(Duration::from_millis(200), write).await == Ok(true)
    }

    async fn send(&mut self, frame: Frame) {
        assert!(self.try_send(frame).await, "the server takes nothing");
    }

    /// Sends a frame again and again: how often until nothing more is taken.
    async fn flood(&mut self, frame: &Frame, most: usize) -> usize {
        for count in 0..most {
            if !self.try_send(frame.clone()).await {
                return count;
            }
        }
        most
    }

    async fn next(&mut self) -> Option<Frame> {
        let next = tokio::time::timeout(Duration::from_secs(20), self.read.next());
        next.await.expect("the server is silent")?.ok()
    }

    /// How the connection ends: the status of GOAWAY.
    async fn goodbye(&mut self) -> Option<u32> {
        while let Some(frame) = self.next().await {
            if let Frame::GoAway { status, .. } = frame {
                return Some(status);
            }
        }
        None
    }
}

async fn accept(connection: &mut Connection) -> Stream {
    connection.accept().await.unwrap().accept().await.unwrap()
}

#[tokio::test]
async fn what_is_not_read_is_bounded_whatever_its_pieces() {
    for (piece, pool) in [(32 * 1024, 10 * STREAM_BYTES), (32 * 1024, 0), (16, 0)] {
        let (mut connection, mut client) = connect(pool);
        client.send(open(1)).await;
        let mut stream = accept(&mut connection).await;
        let sent = piece
            * client
                .flood(&data(1, &vec![7; piece], false), 400_000)
                .await;
        let bound = if pool == 0 { OWN_BYTES } else { STREAM_BYTES };
        let on_the_way = 2 * PIPE_BYTES + 32 * 1024;
        assert!(
            (bound / 2..=bound + on_the_way).contains(&sent),
            "{sent} bytes were taken in pieces of {piece}"
        );
        // The other way is open all the same.
        stream.writer.write_all(b"still here").await.unwrap();
        loop {
            match client.next().await.unwrap() {
                Frame::Data { data, .. } => break assert_eq!(&data[..], b"still here"),
                Frame::SynReply { .. } | Frame::WindowUpdate { .. } | Frame::Ping { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        // Once it is read, it goes on.
        let mut rest = vec![0; bound / 2];
        stream.reader.read_exact(&mut rest).await.unwrap();
        assert!(rest.iter().all(|byte| *byte == 7));
    }
}

#[tokio::test]
async fn a_slow_stream_leaves_the_others_room() {
    let (mut connection, mut client) = connect(10 * STREAM_BYTES);
    client.send(open(1)).await;
    client.send(open(3)).await;
    let (_slow, mut quick) = (accept(&mut connection).await, accept(&mut connection).await);
    let piece = [7; 32 * 1024];
    // As much as spdystream would keep: 50 frames.
    for _ in 0..50 {
        client.send(data(1, &piece, false)).await;
    }
    client.send(data(3, b"quick", true)).await;
    let mut text = String::new();
    quick.reader.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "quick");
}

#[tokio::test]
async fn what_a_gone_reader_left_takes_no_room() {
    let (mut connection, mut client) = connect(0);
    client.send(open(1)).await;
    let stream = accept(&mut connection).await;
    client.flood(&data(1, &[7; 32 * 1024], false), 1000).await;
    drop(stream.reader);
    assert_eq!(
        client.flood(&data(1, &[7; 32 * 1024], false), 100).await,
        100
    );
    drop(stream.writer);
}

#[tokio::test]
async fn hostile_frames_end_in_goaway() {
    let window = |stream_id, delta| Frame::WindowUpdate { stream_id, delta };
    let cases: Vec<(&str, Vec<Frame>)> = vec![
        ("an id again", vec![open(1), open(1)]),
        ("an id that went down", vec![open(5), open(3)]),
        (
            "an id that ended",
            vec![open(1), data(1, b"", true), open(1)],
        ),
        ("the server's id", vec![open(2)]),
        (
            "the session's window too large",
            vec![window(0, 0x7fff_ffff)],
        ),
        ("the session's window by nothing", vec![window(0, 0)]),
        (
            "every window too large",
            vec![Frame::Settings {
                initial_window: Some(0x8000_0000),
            }],
        ),
        (
            "headers that inflate hugely",
            vec![Frame::SynStream {
                stream_id: 1,
                fin: false,
                headers: Headers(vec![("x".into(), "x".repeat(200_000))]),
            }],
        ),
    ];
    for (name, frames) in cases {
        let (mut connection, mut client) = connect(0);
        let accepting = tokio::spawn(async move {
            let mut streams = Vec::new();
            while let Some(incoming) = connection.accept().await {
                streams.extend(incoming.accept().await);
            }
            assert!(connection.closed().is_cancelled());
        });
        for frame in frames {
            client.send(frame).await;
        }
        assert_eq!(client.goodbye().await, Some(1), "{name}");
        assert_eq!(client.next().await, None, "{name}");
        drop(client);
        accepting.await.unwrap();
    }
}

#[tokio::test]
async fn junk_ends_in_goaway() {
    let cases: [(&str, &[u8]); 5] = [
        ("another version", &[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]),
        (
            "a control frame of 16 MiB",
            &[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],
        ),
        ("stream zero", &[0, 0, 0, 0, 0, 0, 0, 0]),
        (
            "SETTINGS that lie",
            &[0x80, 3, 0, 4, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff],
        ),
        (
            "headers that are no zlib",
            b"\x80\x03\0\x01\0\0\0\x0e\0\0\0\x01\0\0\0\0\0\0junk",
        ),
    ];
    for (name, bytes) in cases {
        let (connection, mut client) = connect(0);
        client.write.write_all(bytes).await.unwrap();
        assert_eq!(client.goodbye().await, Some(1), "{name}");
        assert!(connection.closed().is_cancelled(), "{name}");
    }
}

#[tokio::test]
async fn a_hundred_thousand_streams_leave_four_thousand() {
    let (mut connection, client) = connect(0);
    let shared = connection.shared.clone();
    let accepting = tokio::spawn(async move {
        let mut streams = Vec::new();
        while let Some(incoming) = connection.accept().await {
            streams.extend(incoming.accept().await);
        }
        streams.len()
    });
    let Client {
        mut encoder,
        mut write,
        mut read,
        ..
    } = client;
    let reading = tokio::spawn(async move {
        let (mut opened, mut refused) = (0, 0);
        while let Some(Ok(frame)) = read.next().await {
            match frame {
                Frame::SynReply { .. } => opened += 1,
                Frame::RstStream { status: 3, .. } => refused += 1,
                other => panic!("{other:?}"),
            }
            if opened + refused == 100_000 {
                break;
            }
        }
        (opened, refused)
    });
    for index in 0..100_000 {
        let mut bytes = BytesMut::new();
        encoder.encode(open(2 * index + 1), &mut bytes).unwrap();
        write.write_all(&bytes).await.unwrap();
    }
    assert_eq!(reading.await.unwrap(), (MAX_STREAMS, 100_000 - MAX_STREAMS));
    assert_eq!(shared.streams().len(), MAX_STREAMS);
    drop(write);
    assert_eq!(accepting.await.unwrap(), MAX_STREAMS);
}

#[tokio::test]
async fn streams_that_ended_leave_nothing() {
    let (mut connection, mut client) = connect(0);
    for index in 0..10_000 {
        let id = 2 * index + 1;
        client.send(open(id)).await;
        let mut stream = accept(&mut connection).await;
        client.send(data(id, b"hi", index % 3 == 0)).await;
        match index % 3 {
            0 => stream.writer.shutdown().await.unwrap(),
            1 => stream.writer.reset().await,
            _ => {
                client
                    .send(Frame::RstStream {
                        stream_id: id,
                        status: 5,
                    })
                    .await
            }
        }
        while !matches!(client.next().await, Some(Frame::SynReply { .. })) {}
    }
    let ended = async {
        while !connection.shared.streams().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(5), ended).await;
    ended.expect("streams are left");
}

#[tokio::test]
async fn a_client_that_floods_and_does_not_read_holds_up_itself_alone() {
    for (name, frame) in [
        ("pings", Frame::Ping { id: 1 }),
        (
            "updates of windows that overflow",
            Frame::WindowUpdate {
                stream_id: 1,
                delta: 0x7fff_ffff,
            },
        ),
    ] {
        let (mut connection, mut client) = connect(0);
        client.send(open(1)).await;
        let _stream = accept(&mut connection).await;
        let mut bytes = BytesMut::new();
        client.encoder.encode(frame.clone(), &mut bytes).unwrap();
        let taken = client.flood(&frame, 100_000).await * bytes.len();
        if name == "pings" {
            assert!(taken < 4 * PIPE_BYTES, "{taken} bytes of {name}");
        }
        // The connection is as it should be once the client reads.
        let draining = async {
            let mut answers = 0;
            while let Ok(Some(Ok(_))) =
                tokio::time::timeout(Duration::from_millis(300), client.read.next()).await
            {
                answers += 1;
            }
            answers
        };
        assert!(draining.await > 0, "{name}");
    }
}

#[tokio::test]
async fn a_client_with_windows_gets_what_it_has_room_for() {
    let (mut connection, mut client) = connect(0);
    let settings = Frame::Settings {
        initial_window: Some(1000),
    };
    client.send(settings).await;
    client.send(open(1)).await;
    let mut stream = accept(&mut connection).await;
    let writing = tokio::spawn(async move {
        stream.writer.write_all(&[7; 5000]).await.unwrap();
        stream.writer.shutdown().await.unwrap();
        stream
    });
    let (mut got, mut room, mut ended) = (0, 1000, false);
    while !ended {
        match client.next().await.unwrap() {
            Frame::Data { fin, data, .. } => {
                got += data.len();
                ended = fin;
                assert!(got <= room, "{got} bytes came, {room} were asked for");
                if got == room {
                    room += 700;
                    let (stream_id, delta) = (1, 700);
                    client.send(Frame::WindowUpdate { stream_id, delta }).await;
                }
            }
            Frame::SynReply { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(got, 5000);
    writing.await.unwrap();
}

#[tokio::test]
async fn a_client_that_keeps_to_windows_sends_a_megabyte() {
    let (mut connection, mut client) = connect(0);
    client.send(open(1)).await;
    let mut stream = accept(&mut connection).await;
    let reading = tokio::spawn(async move {
        let mut all = Vec::new();
        stream.reader.read_to_end(&mut all).await.unwrap();
        all.len()
    });
    let (mut own, mut session, mut left) = (64 * 1024, 64 * 1024, 1 << 20);
    while left > 0 {
        let count = left.min(own).min(session).min(10_000);
        if count > 0 {
            client.send(data(1, &vec![7; count], left == count)).await;
            (left, own, session) = (left - count, own - count, session - count);
            continue;
        }
        match client.next().await.unwrap() {
            Frame::WindowUpdate {
                stream_id: 0,
                delta,
            } => session += delta as usize,
            Frame::WindowUpdate {
                stream_id: 1,
                delta,
            } => own += delta as usize,
            Frame::SynReply { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(reading.await.unwrap(), 1 << 20);
}

#[tokio::test]
async fn a_client_that_hangs_up_behind_what_it_sent_is_noticed() {
    tokio::time::pause();
    let (mut connection, mut client) = connect(0);
    client.send(open(1)).await;
    let _stream = accept(&mut connection).await;
    client.flood(&data(1, &[7; 32 * 1024], false), 1000).await;
    drop(client);
    let closed = connection.closed();
    let noticed = tokio::time::timeout(Duration::from_secs(60), closed.cancelled()).await;
    noticed.expect("nobody looked");
}
