//! Whole sessions over a pipe: a client made of bare frames or messages, and processes made of pipes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use tokio::io::AsyncReadExt as _;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::codec::{FramedRead, FramedWrite};

use super::*;
use crate::spdy::{Frame, FrameDecoder, FrameEncoder, Headers};

const ALL: RemoteCommandOptions = RemoteCommandOptions {
    stdin: true,
    stdout: true,
    stderr: true,
    tty: false,
};

/// A process that says "ready" on stderr, copies stdin to stdout until it ends, and exits with `code`.
fn cat(code: i32) -> Process {
    let (stdin, mut stdin_far) = tokio::io::duplex(64);
    let (mut stdout_far, stdout) = tokio::io::duplex(64);
    let (mut stderr_far, stderr) = tokio::io::duplex(64);
    let exit = async move {
        let task = tokio::spawn(async move {
            stderr_far.write_all(b"ready").await.unwrap();
            drop(stderr_far);
            tokio::io::copy(&mut stdin_far, &mut stdout_far)
                .await
                .unwrap();
        });
        task.await.map_err(|error| error.to_string())?;
        Ok(code)
    };
    Process {
        stdin: Some(Box::new(stdin)),
        stdout: Some(Box::new(stdout)),
        stderr: Some(Box::new(stderr)),
        resize: None,
        detaches_with_stdin: false,
        exit: exit.boxed(),
    }
}

fn config() -> StreamConfig {
    StreamConfig {
        stream_creation_timeout: Duration::from_secs(2),
        ..StreamConfig::default()
    }
}

/// A client's end of a SPDY connection.
struct Client {
    read: FramedRead<tokio::io::ReadHalf<tokio::io::DuplexStream>, FrameDecoder>,
    write: FramedWrite<tokio::io::WriteHalf<tokio::io::DuplexStream>, FrameEncoder>,
}

impl Client {
    fn new(io: tokio::io::DuplexStream) -> Self {
        let (read, write) = tokio::io::split(io);
        Self {
            read: FramedRead::new(read, FrameDecoder::default()),
            write: FramedWrite::new(write, FrameEncoder::default()),
        }
    }

    async fn open(&mut self, stream_id: u32, kind: &str) {
        let headers = Headers(vec![("streamtype".into(), kind.into())]);
        self.write
            .send(Frame::SynStream {
                stream_id,
                fin: false,
                headers,
            })
            .await
            .unwrap();
        let expect = Frame::SynReply {
            stream_id,
            fin: false,
            headers: Headers::default(),
        };
        assert_eq!(self.read.next().await.unwrap().unwrap(), expect);
    }

    async fn send(&mut self, stream_id: u32, data: &'static [u8], fin: bool) {
        let data = Bytes::from_static(data);
        self.write
            .send(Frame::Data {
                stream_id,
                fin,
                data,
            })
            .await
            .unwrap();
    }

    /// All that comes until the server ends: what each stream got, and in which order they ended.
    async fn rest(mut self) -> (Vec<(u32, String)>, Vec<u32>) {
        let mut got: Vec<(u32, String)> = Vec::new();
        let mut ended = Vec::new();
        while let Some(Ok(frame)) = self.read.next().await {
            if let Frame::Data {
                stream_id,
                fin,
                data,
            } = frame
            {
                let text = String::from_utf8(data.to_vec()).unwrap();
                match got.iter_mut().find(|(id, _)| *id == stream_id) {
                    Some((_, all)) => all.push_str(&text),
                    None => got.push((stream_id, text)),
                }
                if fin {
                    ended.push(stream_id);
                }
            }
        }
        got.sort();
        (got, ended)
    }
}

async fn exec(protocol: &'static str, code: i32) -> (Vec<(u32, String)>, Vec<u32>) {
    let (near, far) = tokio::io::duplex(4096);
    let server = tokio::spawn(async move {
        spdy::serve(
            far,
            protocol,
            RemoteCommand::Exec,
            ALL,
            &config(),
            || async move { Ok(cat(code)) },
        )
        .await;
    });
    let mut client = Client::new(near);
    for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
        client.open(id, kind).await;
    }
    client.send(3, b"hello ", false).await;
    client.send(3, b"world", true).await;
    let result = client.rest().await;
    server.await.unwrap();
    result
}

#[tokio::test]
async fn spdy_v4_tells_the_exit_code_last() {
    let (got, ended) = exec("v4.channel.k8s.io", 3).await;
    assert_eq!(
        got[1..],
        [(5, "hello world".to_owned()), (7, "ready".to_owned())]
    );
    let status: serde_json::Value = serde_json::from_str(&got[0].1).unwrap();
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"][0]["message"], "3");
    assert_eq!(ended.last(), Some(&1));
    assert_eq!(ended.len(), 3);
}

#[tokio::test]
async fn spdy_success_and_old_protocols() {
    let (got, _) = exec("v4.channel.k8s.io", 0).await;
    assert_eq!(got[0].1, r#"{"metadata":{},"status":"Success"}"#);
    let (got, _) = exec("channel.k8s.io", 0).await;
    assert_eq!(got[0].1, "");
    let (got, _) = exec("v2.channel.k8s.io", 9).await;
    assert_eq!(
        got[0].1,
        "command terminated with non-zero exit code: exit status 9"
    );
}

#[tokio::test]
async fn a_process_that_does_not_start_is_told() {
    let (near, far) = tokio::io::duplex(4096);
    let options = RemoteCommandOptions {
        stdout: true,
        ..Default::default()
    };
    tokio::spawn(async move {
        spdy::serve(
            far,
            "v4.channel.k8s.io",
            RemoteCommand::Exec,
            options,
            &config(),
            || async { Err("no such file".to_owned()) },
        )
        .await;
    });
    let mut client = Client::new(near);
    client.open(1, "error").await;
    client.open(3, "stdout").await;
    let (got, _) = client.rest().await;
    assert!(
        got[0]
            .1
            .contains("error executing command in container: no such file"),
        "{got:?}"
    );
}

#[tokio::test]
async fn missing_streams_time_out_and_pings_are_answered() {
    let (near, far) = tokio::io::duplex(4096);
    let config = StreamConfig {
        stream_creation_timeout: Duration::from_millis(50),
        ..config()
    };
    let server = tokio::spawn(async move {
        spdy::serve(
            far,
            "v4.channel.k8s.io",
            RemoteCommand::Exec,
            ALL,
            &config,
            || async { panic!("nothing may start") },
        )
        .await;
    });
    let mut client = Client::new(near);
    client.open(1, "error").await;
    client.write.send(Frame::Ping { id: 1 }).await.unwrap();
    assert_eq!(
        client.read.next().await.unwrap().unwrap(),
        Frame::Ping { id: 1 }
    );
    let frame = client.read.next().await.unwrap().unwrap();
    assert_eq!(
        frame,
        Frame::RstStream {
            stream_id: 1,
            status: 5
        }
    );
    drop(client);
    server.await.unwrap();
}

#[tokio::test]
async fn a_client_that_hangs_up_drops_the_process() {
    struct Dropped(Arc<Mutex<bool>>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            *self.0.lock().unwrap() = true;
        }
    }
    let dropped = Arc::new(Mutex::new(false));
    let flag = Dropped(dropped.clone());
    let (near, far) = tokio::io::duplex(4096);
    let options = RemoteCommandOptions {
        stdout: true,
        ..Default::default()
    };
    let server = tokio::spawn(async move {
        spdy::serve(
            far,
            "v4.channel.k8s.io",
            RemoteCommand::Exec,
            options,
            &config(),
            || async {
                Ok(Process {
                    stdin: None,
                    stdout: None,
                    stderr: None,
                    resize: None,
                    detaches_with_stdin: false,
                    exit: async move {
                        let _flag = flag;
                        std::future::pending().await
                    }
                    .boxed(),
                })
            },
        )
        .await;
    });
    let mut client = Client::new(near);
    client.open(1, "error").await;
    client.open(3, "stdout").await;
    drop(client);
    server.await.unwrap();
    assert!(*dropped.lock().unwrap());
}

#[tokio::test]
async fn websocket_v5_ends_stdin_by_signal() {
    let (near, far) = tokio::io::duplex(4096);
    let server = tokio::spawn(async move {
        websocket::serve(
            far,
            "v5.channel.k8s.io",
            RemoteCommand::Exec,
            ALL,
            &config(),
            || async { Ok(cat(7)) },
        )
        .await;
    });
    let mut client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
    client
        .send(Message::binary(&b"\x00hello"[..]))
        .await
        .unwrap();
    client
        .send(Message::binary(&b"\xff\x00"[..]))
        .await
        .unwrap();
    let mut channels = [const { Vec::new() }; 5];
    let mut greeted = false;
    while let Some(Ok(message)) = client.next().await {
        if let Message::Binary(data) = message {
            greeted |= data[..] == [1];
            channels[usize::from(data[0])].extend_from_slice(&data[1..]);
        }
    }
    assert!(greeted);
    assert_eq!(channels[1], b"hello");
    assert_eq!(channels[2], b"ready");
    let status: serde_json::Value = serde_json::from_slice(&channels[3]).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "7");
    server.await.unwrap();
}

#[tokio::test]
async fn websocket_base64_resizes_a_terminal() {
    let (near, far) = tokio::io::duplex(4096);
    let options = RemoteCommandOptions {
        stdin: true,
        stdout: true,
        stderr: false,
        tty: true,
    };
    let server = tokio::spawn(async move {
        websocket::serve(
            far,
            "v4.base64.channel.k8s.io",
            RemoteCommand::Attach,
            options,
            &config(),
            || async {
                let (resize, mut sizes) = mpsc::channel(1);
                let (mut stdout_far, stdout) = tokio::io::duplex(64);
                let exit = async move {
                    let size: TerminalSize = sizes.recv().await.unwrap();
                    let text = format!("{}x{}", size.width, size.height);
                    stdout_far.write_all(text.as_bytes()).await.unwrap();
                    Ok(5)
                };
                Ok(Process {
                    stdin: None,
                    stdout: Some(Box::new(stdout)),
                    stderr: None,
                    resize: Some(resize),
                    detaches_with_stdin: false,
                    exit: exit.boxed(),
                })
            },
        )
        .await;
    });
    let mut client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
    // {"Width":80,"Height":24}
    client
        .send(Message::text("4eyJXaWR0aCI6ODAsIkhlaWdodCI6MjR9"))
        .await
        .unwrap();
    let mut texts = Vec::new();
    while let Some(Ok(message)) = client.next().await {
        if let Message::Text(text) = message {
            texts.push(text.to_string());
        }
    }
    assert_eq!(texts[..2], ["1", "1ODB4MjQ="]);
    assert!(
        texts[2].starts_with('3'),
        "an attachment that ended is a success: {texts:?}"
    );
    server.await.unwrap();
}

#[tokio::test]
async fn a_child_that_keeps_the_output_open_does_not_hold_the_client() {
    tokio::time::pause();
    let (near, far) = tokio::io::duplex(4096);
    let options = RemoteCommandOptions {
        stdout: true,
        ..Default::default()
    };
    let (mut held, stdout) = tokio::io::duplex(64);
    tokio::spawn(async move {
        spdy::serve(
            far,
            "v4.channel.k8s.io",
            RemoteCommand::Exec,
            options,
            &config(),
            || async {
                Ok(Process {
                    stdin: None,
                    stdout: Some(Box::new(stdout)),
                    stderr: None,
                    resize: None,
                    detaches_with_stdin: false,
                    exit: async { Ok(0) }.boxed(),
                })
            },
        )
        .await;
    });
    held.write_all(b"last words").await.unwrap();
    let mut client = Client::new(near);
    client.open(1, "error").await;
    client.open(3, "stdout").await;
    let (got, _) = client.rest().await;
    assert_eq!(got[1], (3, "last words".to_owned()));
    assert!(got[0].1.contains("Success"));
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(1), held.read_to_end(&mut rest)).await;
}

#[test]
fn options() {
    let check = |query: &str, expect: Result<(bool, bool, bool, bool), &'static str>| {
        let got = RemoteCommandOptions::from_query(query);
        assert_eq!(
            got.map(|o| (o.stdin, o.stdout, o.stderr, o.tty)),
            expect,
            "{query}"
        );
    };
    check(
        "command=ls&output=1&error=1",
        Ok((false, true, true, false)),
    );
    check(
        "input=1&output=1&error=1&tty=1",
        Ok((true, true, false, true)),
    );
    check(
        "output=true",
        Err("you must specify at least 1 of stdin, stdout, stderr"),
    );
    check(
        "",
        Err("you must specify at least 1 of stdin, stdout, stderr"),
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_is_left_when_it_idles() {
    let (near, far) = tokio::io::duplex(64);
    let options = RemoteCommandOptions {
        stdout: true,
        ..Default::default()
    };
    let config = StreamConfig {
        idle_timeout: Duration::from_secs(60),
        ..config()
    };
    let server = tokio::spawn(async move {
        let start = || async {
            Ok(Process {
                stdin: None,
                stdout: Some(Box::new(tokio::io::repeat(b'x'))),
                stderr: None,
                resize: None,
                detaches_with_stdin: false,
                exit: std::future::pending().boxed(),
            })
        };
        let protocol = "v4.channel.k8s.io";
        spdy::serve(far, protocol, RemoteCommand::Exec, options, &config, start).await;
    });
    let mut client = Client::new(near);
    client.open(1, "error").await;
    client.open(3, "stdout").await;
    let ended = tokio::time::timeout(Duration::from_secs(300), server).await;
    ended.expect("it hangs").unwrap();
}

/// Sends input to a container that keeps its stdin; what each channel got until the server ended.
async fn attach_and_end_stdin(detaches: bool) -> Option<[Vec<u8>; 5]> {
    let (near, far) = tokio::io::duplex(4096);
    let server = tokio::spawn(async move {
        let start = move || async move {
            let (stdin, mut inside) = tokio::io::duplex(64);
            let (mut shell, stdout) = tokio::io::duplex(64);
            tokio::spawn(async move {
                let mut text = [0; 5];
                inside.read_exact(&mut text).await.unwrap();
                shell.write_all(&text).await.unwrap();
                // It goes on, with its streams open.
                std::future::pending::<()>().await;
                drop((inside, shell));
            });
            Ok(Process {
                stdin: Some(Box::new(stdin)),
                stdout: Some(Box::new(stdout)),
                stderr: None,
                resize: None,
                detaches_with_stdin: detaches,
                exit: std::future::pending().boxed(),
            })
        };
        let options = RemoteCommandOptions {
            stderr: false,
            ..ALL
        };
        let (protocol, attach) = ("v5.channel.k8s.io", RemoteCommand::Attach);
        websocket::serve(far, protocol, attach, options, &config(), start).await;
    });
    let mut client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
    let mut channels = [const { Vec::new() }; 5];
    client
        .send(Message::binary(&b"\x00hello"[..]))
        .await
        .unwrap();
    let told = async {
        while let Some(Ok(message)) = client.next().await {
            let Message::Binary(data) = message else {
                continue;
            };
            channels[usize::from(data[0])].extend_from_slice(&data[1..]);
            if channels[1] == b"hello" && data[0] == 1 {
                let end = Message::binary(&b"\xff\x00"[..]);
                client.send(end).await.unwrap();
            }
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(2), told).await;
    ended.ok()?;
    server.await.unwrap();
    Some(channels)
}

#[tokio::test]
async fn an_attachment_to_a_container_that_keeps_its_stdin_ends_with_the_clients() {
    let channels = attach_and_end_stdin(true).await.expect("it never returns");
    assert_eq!(channels[1], b"hello");
    let status: serde_json::Value = serde_json::from_slice(&channels[3]).unwrap();
    assert_eq!(status["status"], "Success");
    // With stdinOnce it is the container's end that ends it.
    assert_eq!(attach_and_end_stdin(false).await, None);
}

/// A process that has ended, or goes on, after it said something.
fn said(text: &[u8], exit: Option<i32>) -> Process {
    Process {
        stdin: None,
        stdout: Some(Box::new(std::io::Cursor::new(text.to_vec()))),
        stderr: None,
        resize: None,
        detaches_with_stdin: false,
        exit: match exit {
            Some(code) => async move { Ok(code) }.boxed(),
            None => std::future::pending().boxed(),
        },
    }
}

const ONLY_OUTPUT: RemoteCommandOptions = RemoteCommandOptions {
    stdin: false,
    stdout: true,
    stderr: false,
    tty: false,
};

#[tokio::test(start_paused = true)]
async fn a_slow_client_loses_nothing_of_a_process_that_has_ended() {
    let (near, far) = tokio::io::duplex(64);
    let text = vec![b'x'; 2 << 20];
    let process = said(&text, Some(0));
    tokio::spawn(async move {
        let start = || async { Ok(process) };
        let (protocol, exec) = ("v4.channel.k8s.io", RemoteCommand::Exec);
        spdy::serve(far, protocol, exec, ONLY_OUTPUT, &config(), start).await;
    });
    let mut client = Client::new(near);
    client.open(1, "error").await;
    client.open(3, "stdout").await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let (got, _) = client.rest().await;
    assert_eq!(got[1].1.len(), text.len());
    assert!(got[0].1.contains("Success"));
}

#[tokio::test(start_paused = true)]
async fn an_attachment_without_output_any_more_ends() {
    for (command, ends) in [(RemoteCommand::Attach, true), (RemoteCommand::Exec, false)] {
        let (near, far) = tokio::io::duplex(4096);
        let process = said(b"last words", None);
        tokio::spawn(async move {
            let start = || async { Ok(process) };
            spdy::serve(
                far,
                "v4.channel.k8s.io",
                command,
                ONLY_OUTPUT,
                &config(),
                start,
            )
            .await;
        });
        let mut client = Client::new(near);
        client.open(1, "error").await;
        client.open(3, "stdout").await;
        let rest = tokio::time::timeout(Duration::from_secs(60), client.rest()).await;
        assert_eq!(rest.is_ok(), ends, "{command:?}");
    }
}
