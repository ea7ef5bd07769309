//! Logs, processes and connections over gRPC's streams.
//!
//! Answers are not waited for before input flows: a server may say nothing before it has read something.

use bytes::Bytes;
use futures::{FutureExt as _, TryStreamExt as _};
use kubelet_provider::{
    AttachOptions, Connection, LogOptions, LogStream, PodId, Process, ProviderError, TerminalSize,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::convert::{failure, message};
use super::{Client, v1};

/// Bytes of each direction on their way.
const BUFFER_BYTES: usize = 64 * 1024;
/// What one message carries.
const PIECE_BYTES: usize = 32 * 1024;
/// Messages on their way.
const QUEUE: usize = 4;

pub(super) async fn logs(
    mut client: Client,
    pod: &PodId,
    container: &str,
    options: &LogOptions,
) -> Result<LogStream, ProviderError> {
    let since = options
        .since
        .map(|at| i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX));
    let request = v1::LogsRequest {
        id: Some(message(pod)),
        container: container.to_owned(),
        follow: options.follow,
        previous: options.previous,
        timestamps: options.timestamps,
        tail_lines: options.tail_lines,
        limit_bytes: options.limit_bytes,
        since,
    };
    let stream = client.logs(request).await;
    let stream = stream
        .map_err(|status| failure(&status, "logs"))?
        .into_inner();
    let broken = |status: Status| std::io::Error::other(failure(&status, "logs"));
    let pieces = stream
        .map_ok(|piece| Bytes::from(piece.data))
        .map_err(broken);
    Ok(Box::new(tokio_util::io::StreamReader::new(pieces)))
}

pub(super) fn start(
    pod: &PodId,
    container: &str,
    command: &[String],
    options: &AttachOptions,
) -> v1::ProcessStart {
    v1::ProcessStart {
        id: Some(message(pod)),
        container: container.to_owned(),
        command: command.to_vec(),
        stdin: options.stdin,
        stdout: options.stdout,
        stderr: options.stderr,
        tty: options.tty,
    }
}

fn queue<T: Send + 'static>(receiver: mpsc::Receiver<T>) -> impl futures::Stream<Item = T> + Send {
    futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|item| (item, receiver))
    })
}

/// A process at the far end; `exec`, or else attach.
pub(super) fn process(client: Client, start: v1::ProcessStart, exec: bool) -> Process {
    use v1::process_input::Input;
    let input = |input: Input| v1::ProcessInput { input: Some(input) };
    let (sender, receiver) = mpsc::channel(QUEUE);
    let dropped = CancellationToken::new();
    let guard = dropped.clone().drop_guard();
    let (wants_stdin, tty) = (start.stdin, start.tty);
    let (stdout, stdout_far) = pipe(start.stdout);
    let (stderr, stderr_far) = pipe(start.stderr && !tty);
    let (stdin_far, stdin) = pipe(wants_stdin);
    let (sizes, mut resized) = mpsc::channel::<TerminalSize>(QUEUE);
    let (exit, exited) = oneshot::channel();
    let first = input(Input::Start(start));
    let ends = dropped.clone();
    component_base::tasks::spawn_helper("input of a process", async move {
        let work = async {
            sender.send(first).await.ok()?;
            let mut stdin = stdin_far;
            let mut buffer = vec![0; PIECE_BYTES];
            let mut open = (stdin.is_some(), tty);
            loop {
                let read = async {
                    match &mut stdin {
                        Some(stdin) => stdin.read(&mut buffer).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    read = read, if open.0 => match read {
                        Ok(0) | Err(_) => {
                            open.0 = false;
                            stdin = None;
                            sender.send(input(Input::StdinClosed(true))).await.ok()?;
                        }
                        Ok(count) => sender.send(input(Input::Stdin(buffer[..count].to_vec()))).await.ok()?,
                    },
                    size = resized.recv(), if open.1 => match size {
                        Some(size) => {
                            let size = v1::TerminalSize { width: size.width.into(), height: size.height.into() };
                            sender.send(input(Input::Resize(size))).await.ok()?;
                        }
                        None => open.1 = false,
                    },
                    () = sender.closed() => return Some(()),
                }
            }
        };
        ends.run_until_cancelled(work).await;
    });
    component_base::tasks::spawn_helper("output of a process", async move {
        let work = output(client, receiver, exec, stdout_far, stderr_far);
        if let Some(outcome) = dropped.run_until_cancelled(work).await {
            // Nobody may wait for it any more.
            let _ = exit.send(outcome);
        }
    });
    let exit = async move {
        let _guard = guard;
        let lost = |_| ProviderError::Failed("the process was lost".to_owned());
        exited.await.map_err(lost)?
    };
    Process {
        stdin: stdin.map(|s| Box::new(s) as _),
        stdout: stdout.map(|s| Box::new(s) as _),
        stderr: stderr.map(|s| Box::new(s) as _),
        resize: tty.then_some(sizes),
        exit: exit.boxed(),
    }
}

/// Both ends, if they are wanted.
fn pipe(wanted: bool) -> (Option<DuplexStream>, Option<DuplexStream>) {
    match wanted {
        true => {
            let (near, far) = tokio::io::duplex(BUFFER_BYTES);
            (Some(near), Some(far))
        }
        false => (None, None),
    }
}

async fn output(
    mut client: Client,
    input: mpsc::Receiver<v1::ProcessInput>,
    exec: bool,
    mut stdout: Option<DuplexStream>,
    mut stderr: Option<DuplexStream>,
) -> Result<i32, ProviderError> {
    use v1::process_output::Output;
    let what = if exec { "exec" } else { "attach" };
    let failed = |status: Status| failure(&status, what);
    let stream = match exec {
        true => client.exec(queue(input)).await,
        false => client.attach(queue(input)).await,
    };
    let mut stream = stream.map_err(failed)?.into_inner();
    while let Some(message) = stream.message().await.map_err(failed)? {
        let (to, data) = match message.output {
            Some(Output::Stdout(data)) => (&mut stdout, data),
            Some(Output::Stderr(data)) => (&mut stderr, data),
            Some(Output::Exit(code)) => return Ok(code),
            None => continue,
        };
        if let Some(to) = to {
            // Who closed one of them may still read the other.
            let _ = to.write_all(&data).await;
        }
    }
    Err(ProviderError::Failed(
        "the provider did not say how the process ended".to_owned(),
    ))
}

/// A connection to a port; errors end it.
pub(super) fn connection(mut client: Client, pod: &PodId, port: u16) -> Connection {
    use v1::port_forward_input::Input;
    let (near, far) = tokio::io::duplex(BUFFER_BYTES);
    let (mut from_client, mut to_client) = tokio::io::split(far);
    let (sender, receiver) = mpsc::channel(QUEUE);
    let start = v1::PortForwardStart {
        id: Some(message(pod)),
        port: port.into(),
    };
    let input = |input: Input| v1::PortForwardInput { input: Some(input) };
    component_base::tasks::spawn_helper("input of a port", async move {
        if sender.send(input(Input::Start(start))).await.is_err() {
            return;
        }
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let read = tokio::select! {
                read = from_client.read(&mut buffer) => read,
                () = sender.closed() => return,
            };
            match read {
                // The end of the queue is the end of the stream.
                Ok(0) | Err(_) => return,
                Ok(count) => {
                    let data = buffer[..count].to_vec();
                    if sender.send(input(Input::Data(data))).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    let pod = pod.clone();
    component_base::tasks::spawn_helper("output of a port", async move {
        let mut stream = match client.port_forward(queue(receiver)).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => {
                tracing::warn!(pod = %pod, port, error = status.message(), "Port-forward was refused");
                return;
            }
        };
        loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    if to_client.write_all(&message.data).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(status) => {
                    tracing::warn!(pod = %pod, port, error = status.message(), "Port-forward broke");
                    break;
                }
            }
        }
        // A client that is gone needs no end.
        let _ = to_client.shutdown().await;
    });
    Box::new(near)
}
