//! Exec and attach: one process, its standard streams, its terminal's size, and how it ended.
//!
//! ```text
//! streams open -> start -> stdin, stdout, stderr and sizes copied -> process ends, output drained -> status -> close
//!                              |-- client hangs up: the process is dropped
//!                              \-- client's stdin ends, and the process detaches with it: success
//! ```
//!
//! Upstream: `k8s.io/cri-streaming/pkg/streaming/remotecommand`.

mod resize;
mod spdy;
mod status;
mod websocket;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::copy::{Buffer, copy_in};
use crate::{Reader, Response, StreamConfig, Writer, negotiate};
pub use status::Exit;

/// After the process has ended its output may still be held open by a child; silent for this long, it is left.
const DRAIN_IDLE: Duration = Duration::from_secs(5);

/// What the client wants to talk to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoteCommandOptions {
    /// It will send input.
    pub stdin: bool,
    /// It wants the output.
    pub stdout: bool,
    /// It wants the errors; never of a terminal.
    pub stderr: bool,
    /// The process is to have a terminal.
    pub tty: bool,
}

impl RemoteCommandOptions {
    /// From the query `input=1&output=1&error=1&tty=1`.
    ///
    /// # Errors
    /// None of the three is asked for; the text is upstream's.
    pub fn from_query(query: &str) -> Result<Self, &'static str> {
        let is_set = |name: &str| {
            query.split('&').any(|pair| {
                pair.split_once('=')
                    .is_some_and(|(k, v)| k == name && v == "1")
            })
        };
        let tty = is_set("tty");
        let options = Self {
            stdin: is_set("input"),
            stdout: is_set("output"),
            // A terminal has one output.
            stderr: is_set("error") && !tty,
            tty,
        };
        if options.stdin || options.stdout || options.stderr {
            Ok(options)
        } else {
            Err("you must specify at least 1 of stdin, stdout, stderr")
        }
    }
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TerminalSize {
    /// Of a line.
    pub width: u16,
    /// Lines.
    pub height: u16,
}

/// The far end: a running process. Dropping it hangs up.
pub struct Process {
    /// Its input, if the client asked for it.
    pub stdin: Option<Writer>,
    /// Its output, if the client asked for it.
    pub stdout: Option<Reader>,
    /// Its errors, if the client asked for them.
    pub stderr: Option<Reader>,
    /// New sizes of its terminal, if it has one.
    pub resize: Option<mpsc::Sender<TerminalSize>>,
    /// The session ends when the client's stdin does, though the process goes on with its own still open. Upstream's
    /// runtimes detach so from a container without `stdinOnce`.
    pub detaches_with_stdin: bool,
    /// The exit code, or why there is none.
    pub exit: BoxFuture<'static, Result<i32, String>>,
}

/// Which of the two; they differ in what an ending means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteCommand {
    /// The exit code is told.
    Exec,
    /// Always a success: what ended was not the client's to begin with.
    Attach,
}

impl RemoteCommand {
    fn error_prefix(self) -> &'static str {
        match self {
            Self::Exec => "error executing command in container",
            Self::Attach => "error attaching to container",
        }
    }
}

/// What a client sends, read where it was received.
type Inbound = Box<dyn AsyncBufRead + Send + Unpin>;

/// The client's side, whatever the protocol.
struct Streams {
    stdin: Option<Inbound>,
    stdout: Option<Writer>,
    stderr: Option<Writer>,
    resize: Option<Inbound>,
    error: Writer,
    /// Errors as `metav1.Status` JSON (v4 and later); otherwise as plain text, and success as nothing.
    json_status: bool,
    closed: CancellationToken,
}

/// Answers an exec or attach request. `start` runs once the client's streams are open.
pub fn serve_remote_command<B, F, S>(
    mut request: Request<B>,
    command: RemoteCommand,
    options: RemoteCommandOptions,
    config: StreamConfig,
    start: S,
) -> Response
where
    S: FnOnce() -> F + Send + 'static,
    F: Future<Output = Result<Process, String>> + Send + 'static,
{
    let websocket = negotiate::is_websocket(request.headers());
    let agreed = if websocket {
        negotiate::websocket(&request, |protocol| websocket::codec(protocol).is_some())
    } else {
        negotiate::spdy(&request, spdy::PROTOCOLS)
    };
    let agreed = match agreed {
        Ok(agreed) => agreed,
        Err(refusal) => return *refusal,
    };
    if request
        .extensions()
        .get::<hyper::upgrade::OnUpgrade>()
        .is_none()
    {
        return *negotiate::refuse(
            StatusCode::BAD_REQUEST,
            "unable to upgrade: this connection cannot be upgraded".to_owned(),
        );
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let protocol = agreed.protocol;
    tokio::spawn(async move {
        let io = match upgrade.await {
            Ok(upgraded) => TokioIo::new(upgraded),
            Err(error) => {
                tracing::debug!(%error, "streaming connection was not upgraded");
                return;
            }
        };
        let shutdown = config.shutdown.clone();
        let serve = async {
            if websocket {
                websocket::serve(io, &protocol, command, options, &config, start).await;
            } else {
                spdy::serve(io, &protocol, command, options, &config, start).await;
            }
        };
        tokio::select! {
            () = serve => {}
            () = shutdown.cancelled() => {}
        }
    });
    agreed.response
}

/// Starts the process and stays with it to its end.
async fn run<F, S>(mut streams: Streams, command: RemoteCommand, start: S)
where
    S: FnOnce() -> F,
    F: Future<Output = Result<Process, String>>,
{
    let closed = streams.closed.clone();
    let exit = tokio::select! {
        exit = drive(&mut streams, command, start) => exit,
        () = closed.cancelled() => {
            tracing::debug!("the client hung up");
            return;
        }
    };
    let exit = match (command, exit) {
        (RemoteCommand::Attach, Ok(_)) | (_, Ok(0)) => Exit::Success,
        (RemoteCommand::Exec, Ok(code)) => Exit::Code(code),
        (_, Err(reason)) => Exit::Failed(format!("{}: {reason}", command.error_prefix())),
    };
    let text = if streams.json_status {
        Some(exit.json())
    } else {
        exit.text()
    };
    if let Some(text) = text
        && let Err(error) = streams.error.write_all(text.as_bytes()).await
    {
        tracing::debug!(%error, "the status did not reach the client");
    }
    // A client that is gone needs no end of the stream.
    let _ = streams.error.shutdown().await;
}

/// Copies until the process has ended and its output is drained, or the client has detached.
async fn drive<F, S>(streams: &mut Streams, command: RemoteCommand, start: S) -> Result<i32, String>
where
    S: FnOnce() -> F,
    F: Future<Output = Result<Process, String>>,
{
    let mut process = start().await?;
    let (progress, mut progressed) = mpsc::channel::<()>(1);
    let detaches = process.detaches_with_stdin;
    let stdin = async {
        match (&mut streams.stdin, process.stdin.take()) {
            (Some(from), Some(mut to)) => {
                // A process that does not read its input is none of our business.
                let ended = copy_in(from, &mut to).await;
                if detaches && ended.is_ok() {
                    return;
                }
            }
            (Some(from), None) => {
                let _ = copy_in(from, &mut tokio::io::sink()).await;
            }
            _ => {}
        }
        // Input may end long before the process does.
        std::future::pending().await
    };
    let sizes = async {
        resize::forward(streams.resize.take(), process.resize.take()).await;
        std::future::pending().await
    };
    let progress = Progress {
        made: progress,
        waiting: AtomicUsize::new(0),
    };
    let has_output = process.stdout.is_some() || process.stderr.is_some();
    let stdout = output(process.stdout.take(), streams.stdout.as_mut(), &progress);
    let stderr = output(process.stderr.take(), streams.stderr.as_mut(), &progress);
    let exit = process.exit;

    let ends = async {
        let outputs = async { tokio::join!(stdout, stderr) };
        tokio::pin!(outputs, exit);
        let code = tokio::select! {
            biased;
            code = &mut exit => code,
            // As upstream's runtimes: an attachment without output is at its end.
            _ = &mut outputs => match command {
                RemoteCommand::Attach if has_output => {
                    let ended = tokio::time::timeout(DRAIN_IDLE, exit).await;
                    return ended.unwrap_or(Ok(0));
                }
                _ => return exit.await,
            },
        };
        loop {
            tokio::select! {
                _ = &mut outputs => return code,
                more = tokio::time::timeout(DRAIN_IDLE, progressed.recv()) => match more {
                    Ok(_) => {}
                    // It is the client that is slow: what it has not read yet is not lost.
                    Err(_) if progress.waiting.load(Ordering::Relaxed) > 0 => {}
                    Err(_) => {
                        tracing::debug!("output is still open after the process has ended");
                        return code;
                    }
                },
            }
        }
    };
    tokio::select! {
        code = ends => code,
        () = stdin => {
            tracing::debug!("the client's input has ended: detached");
            Ok(0)
        }
        () = sizes => unreachable!("it is forever pending"),
    }
}

/// What the outputs tell of themselves.
struct Progress {
    made: mpsc::Sender<()>,
    /// Outputs that wait for the client.
    waiting: AtomicUsize,
}

/// Copies one output to the client, and ends the client's stream with it.
async fn output(from: Option<Reader>, to: Option<&mut Writer>, progress: &Progress) {
    match (from, to) {
        (Some(mut from), Some(to)) => {
            let mut buffer = Buffer::new();
            let mut listening = true;
            while let Ok(data @ [_, ..]) = buffer.fill(&mut from).await {
                // A client that closed one output may still read the other: go on, so that the process is not held up.
                if listening {
                    progress.waiting.fetch_add(1, Ordering::Relaxed);
                    listening = to.write_all(data).await.is_ok();
                    progress.waiting.fetch_sub(1, Ordering::Relaxed);
                }
                let _ = progress.made.try_send(());
            }
            end(to).await;
        }
        (Some(mut from), None) => {
            let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
        }
        (None, Some(to)) => end(to).await,
        (None, None) => {}
    }
}

async fn end(stream: &mut (impl AsyncWrite + Unpin)) {
    // A client that is gone needs no end of the stream.
    let _ = stream.shutdown().await;
}
