//! Exec and attach over a WebSocket: channels 0 stdin, 1 stdout, 2 stderr, 3 error, 4 resize.

use std::future::Future;

use tokio::io::{AsyncRead, AsyncWrite};

use super::{Process, RemoteCommand, RemoteCommandOptions, Streams, run};
use crate::StreamConfig;
use crate::websocket::{Channels, Codec};

const STDIN: usize = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: usize = 4;

/// How a subprotocol writes its channels, and whether its status is JSON. `None`: not supported.
pub(super) fn codec(protocol: &str) -> Option<(Codec, bool)> {
    let codec = |base64, close_signal| Codec {
        base64,
        close_signal,
    };
    Some(match protocol {
        "" | "channel.k8s.io" => (codec(false, false), false),
        "base64.channel.k8s.io" => (codec(true, false), false),
        "v4.channel.k8s.io" => (codec(false, false), true),
        "v4.base64.channel.k8s.io" => (codec(true, false), true),
        "v5.channel.k8s.io" => (codec(false, true), true),
        _ => return None,
    })
}

pub(super) async fn serve<T, F, S>(
    io: T,
    protocol: &str,
    command: RemoteCommand,
    options: RemoteCommandOptions,
    config: &StreamConfig,
    start: S,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: FnOnce() -> F,
    F: Future<Output = Result<Process, String>>,
{
    let Some((codec, json_status)) = codec(protocol) else {
        return;
    };
    let readable = [options.stdin, false, false, false, options.tty];
    let (channels, mut readers) = Channels::open(io, codec, &readable, config);
    // Some clients wait for a first message before they send any.
    let greeting = match options {
        RemoteCommandOptions { stdout: true, .. } => STDOUT,
        RemoteCommandOptions { stderr: true, .. } => STDERR,
        _ => ERROR,
    };
    channels.greet(greeting).await;
    let streams = Streams {
        stdin: readers[STDIN].take().map(|reader| Box::new(reader) as _),
        stdout: options
            .stdout
            .then(|| Box::new(channels.writer(STDOUT)) as _),
        stderr: options
            .stderr
            .then(|| Box::new(channels.writer(STDERR)) as _),
        resize: readers[RESIZE].take().map(|reader| Box::new(reader) as _),
        error: Box::new(channels.writer(ERROR)),
        json_status,
        closed: channels.closed(),
    };
    run(streams, command, start).await;
}
