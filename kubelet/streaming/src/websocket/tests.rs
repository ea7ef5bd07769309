//! Channels and their client over a pipe: bounds, and what is no WebSocket of a decent client's.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as Theirs;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;
use crate::memory::{OWN_BYTES, Pool, STREAM_BYTES};

const PIPE_BYTES: usize = 64 * 1024;
const RAW: Codec = Codec {
    base64: false,
    close_signal: true,
};

fn connect(pool: usize) -> (Channels, Vec<Option<Outlet>>, DuplexStream) {
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let config = StreamConfig {
        pool: Pool::new(pool),
        ..StreamConfig::default()
    };
    let (channels, outlets) = Channels::open(far, RAW, &[true, false, true], &config);
    (channels, outlets, near)
}

/// Writes until nothing is taken for a moment: how much was.
async fn flood(io: &mut DuplexStream, bytes: &[u8], most: usize) -> usize {
    let mut taken = 0;
    while taken < most {
        let write = io.write(&bytes[taken % bytes.len()..]);
        match tokio::time::timeout(Duration::from_millis(200), write).await {
            Ok(Ok(count)) => taken += count,
            _ => break,
        }
    }
    taken
}

/// A client's frame with a mask of zeros.
fn frame(first: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first, 0xff];
    bytes.extend((data.len() as u64).to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(data);
    bytes
}

#[tokio::test]
async fn what_is_not_read_is_bounded_whatever_its_messages() {
    for (size, pool, bound) in [
        (32 << 20, 10 * STREAM_BYTES, STREAM_BYTES),
        (32 << 20, 0, OWN_BYTES),
        (32 * 1024, 0, OWN_BYTES),
        // Of these a sixteenth is data.
        (2, 0, 16 * OWN_BYTES),
    ] {
        let (channels, mut outlets, mut client) = connect(pool);
        let message = frame(0x82, &vec![0; size]);
        let message = message.repeat((64 * 1024 / message.len()).max(1));
        let taken = flood(&mut client, &message, 100 << 20).await;
        let on_the_way = 2 * PIPE_BYTES + 32 * 1024;
        assert!(
            (bound / 2..=bound + on_the_way).contains(&taken),
            "{taken} bytes were taken of messages of {size}"
        );
        // The other way is open all the same.
        channels.writer(1).write_all(b"still here").await.unwrap();
        let mut text = [0; 13];
        client.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"\x82\x0b\x01still here");
        // Once it is read, it goes on.
        let mut outlet = outlets[0].take().unwrap();
        tokio::spawn(async move {
            let mut all = Vec::new();
            let _ = outlet.read_to_end(&mut all).await;
        });
        assert!(flood(&mut client, &message[taken % message.len()..], 1000).await > 0);
    }
}

#[tokio::test]
async fn a_slow_channel_leaves_the_others_room() {
    let (_channels, mut outlets, mut client) = connect(10 * STREAM_BYTES);
    client
        .write_all(&frame(0x82, &vec![0; STREAM_BYTES / 2]))
        .await
        .unwrap();
    client.write_all(&frame(0x82, b"\x02quick")).await.unwrap();
    client.write_all(&frame(0x82, b"\xff\x02")).await.unwrap();
    let mut text = String::new();
    let quick = outlets[2].as_mut().unwrap();
    quick.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "quick");
}

#[tokio::test]
async fn hostile_frames_end_in_a_close() {
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        ("not masked", b"\x82\x01x".to_vec(), 1002),
        ("a reserved opcode", frame(0x83, b"x"), 1002),
        ("nothing to continue", frame(0x80, b"x"), 1002),
        ("a ping of 126 bytes", frame(0x89, &[0; 126]), 1002),
        (
            "a channel that is not there ends",
            frame(0x82, b"\xff\x09"),
            1002,
        ),
        (
            "two channels end at once",
            frame(0x82, b"\xff\x00\x02"),
            1002,
        ),
        (
            "2^63 bytes",
            b"\x82\xff\x80\0\0\0\0\0\0\0\0\0\0\0".to_vec(),
            1009,
        ),
    ];
    for (name, bytes, code) in cases {
        let (channels, _outlets, mut client) = connect(0);
        client.write_all(&bytes).await.unwrap();
        let mut said = [0; 4];
        client.read_exact(&mut said).await.unwrap();
        assert_eq!(said[..2], [0x88, 2], "{name}");
        assert_eq!(u16::from_be_bytes([said[2], said[3]]), code, "{name}");
        assert!(channels.closed().is_cancelled(), "{name}");
        assert_eq!(client.read(&mut said).await.unwrap(), 0, "{name}");
    }
}

#[tokio::test]
async fn pings_are_answered_by_the_last_and_hold_up_nothing() {
    let (channels, mut outlets, mut client) = connect(0);
    // A client that reads nothing: what is to be written stands still, what is read does not.
    let mut writer = channels.writer(1);
    let writing = tokio::spawn(async move {
        let _ = writer.write_all(&vec![0; 10 << 20]).await;
    });
    let ping: Vec<u8> = b"\x89\x84\0\0\0\0last".repeat(1000);
    let taken = flood(&mut client, &ping, 4 << 20).await;
    assert!(taken >= 4 << 20, "{taken} bytes of pings");
    client.write_all(&ping[taken % ping.len()..]).await.unwrap();
    client.write_all(&frame(0x82, b"\0input")).await.unwrap();
    let mut text = [0; 5];
    outlets[0]
        .as_mut()
        .unwrap()
        .read_exact(&mut text)
        .await
        .unwrap();
    assert_eq!(&text, b"input");
    let mut socket = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
    let mut answered = false;
    while !answered {
        let message = socket.next().await.unwrap().unwrap();
        answered = message == Theirs::Pong("last".into());
    }
    drop((channels, socket));
    writing.await.unwrap();
}

#[tokio::test]
async fn a_client_that_hangs_up_behind_what_it_sent_is_noticed() {
    tokio::time::pause();
    let (channels, _outlets, mut client) = connect(0);
    flood(&mut client, &frame(0x82, &[0; 32 * 1024]), 10 << 20).await;
    // Held back, it hears from us now and then.
    let mut pong = [0; 2];
    client.read_exact(&mut pong).await.unwrap();
    assert_eq!(pong, [0x8a, 0]);
    drop(client);
    let closed = channels.closed();
    let noticed = tokio::time::timeout(Duration::from_secs(60), closed.cancelled()).await;
    noticed.expect("nobody looked");
}
