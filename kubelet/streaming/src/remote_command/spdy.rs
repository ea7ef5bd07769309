//! Exec and attach over SPDY: a stream each for error, stdin, stdout, stderr and resize, opened by the client.

use std::future::Future;

use tokio::io::{AsyncRead, AsyncWrite};

use super::{Process, RemoteCommand, RemoteCommandOptions, Streams, run};
use crate::StreamConfig;
use crate::spdy::{Connection, Stream};

const V1: &str = "channel.k8s.io";
const V2: &str = "v2.channel.k8s.io";
const V3: &str = "v3.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
pub(super) const PROTOCOLS: &[&str] = &[V4, V3, V2, V1];

pub(super) async fn serve<T, F, S>(
    io: T,
    protocol: &str,
    command: RemoteCommand,
    options: RemoteCommandOptions,
    config: &StreamConfig,
    start: S,
) where
    T: AsyncRead + AsyncWrite + Send + 'static,
    S: FnOnce() -> F,
    F: Future<Output = Result<Process, String>>,
{
    let mut connection = Connection::server(io, config);
    let wait = wait_for_streams(&mut connection, protocol, options);
    let streams = match tokio::time::timeout(config.stream_creation_timeout, wait).await {
        Ok(Some(streams)) => streams,
        Ok(None) => return,
        Err(_) => {
            tracing::warn!("timed out waiting for client to create streams");
            connection.close().await;
            return;
        }
    };
    run(streams, command, start).await;
    connection.close().await;
}

/// Collects the streams the client must open. `None`: it hung up.
async fn wait_for_streams(
    connection: &mut Connection,
    protocol: &str,
    options: RemoteCommandOptions,
) -> Option<Streams> {
    let resizable = matches!(protocol, V3 | V4);
    let mut missing = 1
        + usize::from(options.stdin)
        + usize::from(options.stdout)
        + usize::from(options.stderr)
        + usize::from(options.tty && resizable);
    let (mut stdin, mut stdout, mut stderr, mut resize, mut error) = (None, None, None, None, None);
    while missing > 0 {
        let incoming = connection.accept().await?;
        let slot: &mut Option<Stream> = match incoming.headers().get("streamtype") {
            Some("stdin") => &mut stdin,
            Some("stdout") => &mut stdout,
            Some("stderr") => &mut stderr,
            Some("error") => &mut error,
            Some("resize") if resizable => &mut resize,
            other => {
                tracing::debug!(stream_type = other, "unexpected stream type");
                incoming.reject().await;
                continue;
            }
        };
        if slot.is_some() {
            incoming.reject().await;
            continue;
        }
        *slot = Some(incoming.accept().await?);
        missing -= 1;
    }
    Some(Streams {
        stdin: stdin.map(|stream| Box::new(stream.reader) as _),
        stdout: stdout.map(|stream| Box::new(stream.writer) as _),
        stderr: stderr.map(|stream| Box::new(stream.writer) as _),
        resize: resize.map(|stream| Box::new(stream.reader) as _),
        error: match error {
            Some(stream) => Box::new(stream.writer),
            // A client that opened others instead does not want to know.
            None => Box::new(tokio::io::sink()),
        },
        json_status: protocol == V4,
        closed: connection.closed(),
    })
}
