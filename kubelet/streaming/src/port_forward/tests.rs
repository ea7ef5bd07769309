//! Whole forwards over a pipe.

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::codec::{FramedRead, FramedWrite};

use super::*;
use crate::spdy::{Frame, FrameDecoder, FrameEncoder, Headers};

/// Port 80 reads to the end and answers in capitals; nobody listens on the others.
async fn shout(port: u16) -> Result<DuplexStream, String> {
    if port != 80 {
        return Err("connection refused".to_owned());
    }
    let (near, mut far) = tokio::io::duplex(1024);
    tokio::spawn(async move {
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        far.write_all(text.to_uppercase().as_bytes()).await.unwrap();
    });
    Ok(near)
}

async fn client(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
    let (read, write) = tokio::io::split(io);
    let mut read = FramedRead::new(read, FrameDecoder::default());
    let mut write = FramedWrite::new(write, FrameEncoder::default());
    let open = |stream_id, kind: &str, port: &str, request: &str| Frame::SynStream {
        stream_id,
        fin: false,
        headers: Headers(vec![
            ("streamtype".into(), kind.into()),
            ("port".into(), port.into()),
            ("requestid".into(), request.into()),
        ]),
    };
    for frame in [
        open(1, "error", "80", "0"),
        open(3, "data", "80", "0"),
        open(5, "error", "81", "1"),
        open(7, "data", "81", "1"),
        open(9, "data", "none", "2"),
        Frame::Data {
            stream_id: 3,
            fin: true,
            data: Bytes::from_static(b"hello"),
        },
    ] {
        write.send(frame).await.unwrap();
    }
    let (mut answer, mut error, mut ended, mut refused) =
        (String::new(), String::new(), Vec::new(), Vec::new());
    while ended.len() < 3 || refused.len() < 2 {
        match read.next().await.unwrap().unwrap() {
            Frame::Data {
                stream_id,
                fin,
                data,
            } => {
                let text = std::str::from_utf8(&data).unwrap();
                match stream_id {
                    3 => answer.push_str(text),
                    5 => error.push_str(text),
                    1 => assert_eq!(text, ""),
                    other => panic!("data on {other}"),
                }
                if fin {
                    ended.push(stream_id);
                }
            }
            Frame::RstStream { stream_id, .. } => refused.push(stream_id),
            Frame::SynReply { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    ended.sort_unstable();
    refused.sort_unstable();
    assert_eq!((ended, refused), (vec![1, 3, 5], vec![7, 9]));
    assert_eq!(answer, "HELLO");
    assert_eq!(
        error,
        "error forwarding port 81 to pod web, uid 1: connection refused"
    );
}

type Connecting = futures::future::BoxFuture<'static, Result<DuplexStream, String>>;

type Connect = fn(u16) -> Connecting;

fn forward() -> Arc<Forward<Connect>> {
    use futures::FutureExt as _;
    Arc::new(Forward {
        pod: "web, uid 1".to_owned(),
        connect: |port| shout(port).boxed(),
    })
}

#[tokio::test]
async fn spdy_pairs() {
    let (near, far) = tokio::io::duplex(4096);
    let server =
        tokio::spawn(async move { spdy::serve(far, &StreamConfig::default(), forward()).await });
    client(near).await;
    server.await.unwrap();
}

#[tokio::test]
async fn spdy_in_a_websocket() {
    let (near, far) = tokio::io::duplex(4096);
    let server = tokio::spawn(async move {
        let io = crate::websocket::tunnel(far);
        spdy::serve(io, &StreamConfig::default(), forward()).await;
    });
    let mut socket = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
    let (io, pump) = tokio::io::duplex(4096);
    let pumping = tokio::spawn(async move {
        let (mut read, mut write) = tokio::io::split(pump);
        let mut buffer = [0; 1024];
        loop {
            tokio::select! {
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(data))) => write.write_all(&data).await.unwrap(),
                    _ => break,
                },
                count = read.read(&mut buffer) => match count {
                    Ok(0) | Err(_) => break,
                    Ok(count) => socket.send(Message::binary(buffer[..count].to_vec())).await.unwrap(),
                },
            }
        }
    });
    client(io).await;
    pumping.await.unwrap();
    server.await.unwrap();
}

#[tokio::test]
async fn websocket_ports() {
    let (near, far) = tokio::io::duplex(4096);
    tokio::spawn(async move {
        let config = StreamConfig::default();
        websocket::serve(far, "v4.channel.k8s.io", &[81], &config, forward()).await;
    });
    let mut socket = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
    let mut got = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(data) = message {
            got.push(data.to_vec());
        }
    }
    assert_eq!(got[..2], [vec![0, 81, 0], vec![1, 81, 0]]);
    assert!(String::from_utf8_lossy(&got[2]).contains("connection refused"));
}

/// The pod says something and hangs up; the client never does.
#[tokio::test(start_paused = true)]
async fn a_websocket_ends_with_the_pods_connection() {
    let forward = Arc::new(Forward {
        pod: "web, uid 1".to_owned(),
        connect: |_| async {
            let (near, mut far) = tokio::io::duplex(1024);
            far.write_all(b"bye").await.unwrap();
            Ok::<_, String>(near)
        },
    });
    let (near, far) = tokio::io::duplex(4096);
    let server = tokio::spawn(async move {
        let config = StreamConfig::default();
        websocket::serve(far, "v4.channel.k8s.io", &[80], &config, forward).await;
    });
    let mut socket = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
    let reading = async {
        let mut got = Vec::new();
        while let Some(Ok(message)) = socket.next().await {
            match message {
                Message::Binary(data) => got.push(data.to_vec()),
                Message::Close(_) => break,
                _ => {}
            }
        }
        got
    };
    let got = tokio::time::timeout(Duration::from_secs(5), reading).await;
    let got = got.expect("the connection ends");
    assert_eq!(got.last().unwrap(), b"\0bye");
    server.await.unwrap();
}

/// Reading fails, as from a connection that was reset.
struct Broken;

impl AsyncRead for Broken {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_is_told_of_while_the_client_is_silent() {
    let forward = Arc::new(Forward {
        pod: "web, uid 1".to_owned(),
        connect: |_| async { Ok::<_, String>(tokio::io::join(Broken, tokio::io::sink())) },
    });
    let (near, far) = tokio::io::duplex(4096);
    tokio::spawn(async move { spdy::serve(far, &StreamConfig::default(), forward).await });
    let (read, write) = tokio::io::split(near);
    let mut read = FramedRead::new(read, FrameDecoder::default());
    let mut write = FramedWrite::new(write, FrameEncoder::default());
    for (stream_id, kind) in [(1, "error"), (3, "data")] {
        let headers = Headers(vec![
            ("streamtype".into(), kind.into()),
            ("port".into(), "80".into()),
            ("requestid".into(), "0".into()),
        ]);
        let frame = Frame::SynStream {
            stream_id,
            fin: false,
            headers,
        };
        write.send(frame).await.unwrap();
    }
    let told = async {
        loop {
            match read.next().await.unwrap().unwrap() {
                Frame::Data {
                    stream_id: 1, data, ..
                } if !data.is_empty() => return String::from_utf8(data.to_vec()).unwrap(),
                _ => {}
            }
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(5), told).await;
    assert_eq!(
        told.expect("the error is told"),
        "error forwarding port 80 to pod web, uid 1: connection reset"
    );
}

#[test]
fn options() {
    let check = |query: &str, expect: Result<Vec<u16>, &str>| {
        let request = Request::builder()
            .uri(format!("/portForward/a/b?{query}"))
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .body(())
            .unwrap();
        let got = PortForwardOptions::from_request(&request).map(|options| options.ports);
        assert_eq!(got, expect.map_err(str::to_owned), "{query}");
    };
    check("port=80,443&port=8080", Ok(vec![80, 443, 8080]));
    check("", Err("query parameter \"port\" is required"));
    check("port=", Err("query parameter \"port\" cannot be empty"));
    check("port=0", Err("port \"0\" must be > 0"));
    assert_eq!(
        PortForwardOptions::from_request(&Request::new(()))
            .unwrap()
            .ports,
        [0u16; 0]
    );
}
