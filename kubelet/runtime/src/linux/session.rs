//! Exec, attach and port-forward.
//!
//! Streams never pass through the shim's messages: an exec's pipes and terminal go straight between
//! the process and this one; an attached client gets a pipe the shim copies output to, and the
//! container's own stdin.

use std::io;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use shim_protocol::{ErrorKind, Request, Response};
use tokio::io::AsyncReadExt;
use tokio::net::TcpSocket;
use tokio::sync::{mpsc, oneshot};

use super::record::Container;
use super::shim::{self, Connection, ShimCallError};
use super::stream::{Finishing, Stream};
use super::{Inner, blocking, io as io_error, shim_error};
use crate::api::*;
use crate::spec;

/// After a process's exit its output may still be held open by a child: as much longer is waited.
const DRAIN: Duration = Duration::from_millis(500);

/// Resizes that wait for the terminal.
const RESIZE_CAPACITY: usize = 8;

/// A forwarded port that takes longer to connect refuses, as the kernel does.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

struct Exec {
    connection: Connection,
    pid: i32,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

fn running(inner: &Inner, id: &str) -> Result<(Arc<Container>, PathBuf), RuntimeError> {
    let container = inner.container(id)?;
    let state = container.phase().state();
    if state != ContainerState::Running {
        return Err(RuntimeError::NotRunning {
            id: id.to_owned(),
            state,
        });
    }
    let path = inner.layout.sandbox_state(&container.record().sandbox_id);
    Ok((container, path))
}

async fn begin(
    inner: &Arc<Inner>,
    id: &str,
    command: &[String],
    options: &StreamOptions,
) -> Result<Exec, RuntimeError> {
    let (container, state_dir) = running(inner, id)?;
    let (process, sandbox_id) = {
        let record = container.record();
        (
            spec::exec_process(&record.process, command, options.tty),
            record.sandbox_id.clone(),
        )
    };
    let failed = shim_error(&sandbox_id);
    let mut connection = Connection::open(&state_dir).map_err(shim_error(&sandbox_id))?;
    let pipe = |wanted: bool,
                process_reads: bool|
     -> Result<(Option<OwnedFd>, Option<OwnedFd>), RuntimeError> {
        if !wanted || options.tty {
            return Ok((None, None));
        }
        let (ours, theirs) = shim::pipe(process_reads).map_err(io_error("pipe"))?;
        Ok((Some(ours), Some(theirs)))
    };
    let (stdin, their_stdin) = pipe(options.stdin, true)?;
    let (stdout, their_stdout) = pipe(options.stdout, false)?;
    let (stderr, their_stderr) = pipe(options.stderr, false)?;
    let request = Request::Exec {
        container: id.to_owned(),
        process: Box::new(process),
        stdin: their_stdin.is_some(),
        stdout: their_stdout.is_some(),
        stderr: their_stderr.is_some(),
    };
    let theirs: Vec<OwnedFd> = [their_stdin, their_stdout, their_stderr]
        .into_iter()
        .flatten()
        .collect();
    let borrowed: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
    connection.send(&request, &borrowed).await.map_err(failed)?;
    drop(borrowed);
    drop(theirs);
    match connection.answer().await {
        Ok((Response::ExecStarted { pid }, mut fds)) => Ok(Exec {
            connection,
            pid,
            stdin,
            stdout,
            stderr,
            terminal: fds.pop(),
        }),
        Ok((other, _)) => Err(shim_error(&sandbox_id)(ShimCallError::Unexpected(format!(
            "{other:?}"
        )))),
        Err(error) if error.kind() == Some(ErrorKind::Exec) => Err(RuntimeError::Start(format!(
            "failed to exec in container: failed to start exec: unable to start container process: {error}"
        ))),
        Err(error) if error.kind() == Some(ErrorKind::State) => Err(RuntimeError::NotRunning {
            id: id.to_owned(),
            state: ContainerState::Exited,
        }),
        Err(error) => Err(shim_error(&sandbox_id)(error)),
    }
}

async fn exit_code(connection: &mut Connection) -> Result<i32, ShimCallError> {
    loop {
        match connection.answer().await?.0 {
            Response::ExecExited { exit_code } => return Ok(exit_code),
            Response::Exited(exit) => return Ok(exit.exit_code),
            _ => {}
        }
    }
}

pub async fn exec(
    inner: &Arc<Inner>,
    id: &str,
    command: &[String],
    options: &StreamOptions,
) -> Result<Session, RuntimeError> {
    let exec = begin(inner, id, command, options).await?;
    let (sender, exit) = oneshot::channel();
    let mut connection = exec.connection;
    let sandbox_id = inner.container(id)?.record().sandbox_id.clone();
    // Ends with the process, or with its shim.
    tokio::spawn(async move {
        let code = exit_code(&mut connection)
            .await
            .map_err(shim_error(&sandbox_id));
        let _ = sender.send(code);
    });
    let stream = |fd: Option<OwnedFd>| -> Result<Option<Stream>, RuntimeError> {
        fd.map(Stream::new)
            .transpose()
            .map_err(io_error("open a stream"))
    };
    if let Some(terminal) = stream(exec.terminal)? {
        return Ok(Session {
            stdin: options.stdin.then(|| Box::new(terminal.clone()) as Writer),
            stdout: Some(Box::new(terminal.clone())),
            stderr: None,
            resize: Some(resizer(terminal)),
            detaches_with_stdin: false,
            exit,
        });
    }
    Ok(Session {
        // Shut down or dropped, the pipe closes and the process sees the end of its input.
        stdin: stream(exec.stdin)?.map(|stream| Box::new(Finishing::new(stream).0) as Writer),
        stdout: stream(exec.stdout)?.map(|stream| Box::new(stream) as Reader),
        stderr: stream(exec.stderr)?.map(|stream| Box::new(stream) as Reader),
        resize: None,
        detaches_with_stdin: false,
        exit,
    })
}

/// A task that follows the sizes it is sent, until the sender is dropped.
fn resizer(terminal: Stream) -> mpsc::Sender<TerminalSize> {
    let (sender, mut sizes) = mpsc::channel(RESIZE_CAPACITY);
    tokio::spawn(async move {
        while let Some(size) = sizes.recv().await {
            if let Err(error) = terminal.resize(size) {
                tracing::debug!(%error, "cannot resize a terminal");
            }
        }
    });
    sender
}

pub async fn exec_sync(
    inner: &Arc<Inner>,
    id: &str,
    command: &[String],
    timeout: Option<Duration>,
    limit: usize,
) -> Result<ExecSyncResponse, RuntimeError> {
    let timeout = timeout.filter(|timeout| !timeout.is_zero());
    let options = StreamOptions {
        stdin: false,
        stdout: true,
        stderr: true,
        tty: false,
    };
    let deadline = timeout.map(|timeout| tokio::time::Instant::now() + timeout);
    let timed_out = || RuntimeError::Timeout {
        what: format!("command {command:?}"),
        after: timeout.unwrap_or_default(),
    };
    let beginning = begin(inner, id, command, &options);
    let mut exec = match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, beginning)
            .await
            .map_err(|_| timed_out())??,
        None => beginning.await?,
    };
    let state_dir = running(inner, id).map(|(_, path)| path);
    let stdout = collect(exec.stdout.take(), limit).map_err(io_error("open a stream"))?;
    let stderr = collect(exec.stderr.take(), limit).map_err(io_error("open a stream"))?;
    let waiting = exit_code(&mut exec.connection);
    let result = match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, waiting).await,
        None => Ok(waiting.await),
    };
    match result {
        Ok(Ok(exit_code)) => Ok(ExecSyncResponse {
            stdout: stdout.finish().await,
            stderr: stderr.finish().await,
            exit_code,
        }),
        Ok(Err(error)) => Err(shim_error(id)(error)),
        Err(_) => {
            if let Ok(state_dir) = state_dir {
                let kill = Request::KillExec {
                    pid: exec.pid,
                    signal: libc::SIGKILL,
                };
                if let Err(error) = shim::call(&state_dir, &kill).await {
                    tracing::debug!(container = %id, %error, "cannot kill an exec that timed out");
                }
            }
            Err(timed_out())
        }
    }
}

/// Reads a stream in a task of its own, for the process's sake to its end, and keeps its beginning; dropped, it stops.
struct Collector {
    task: tokio::task::JoinHandle<()>,
    bytes: Arc<std::sync::Mutex<Vec<u8>>>,
}

fn collect(fd: Option<OwnedFd>, limit: usize) -> io::Result<Collector> {
    let bytes = Arc::new(std::sync::Mutex::new(Vec::new()));
    let stream = fd.map(Stream::new).transpose()?;
    let shared = bytes.clone();
    let task = tokio::spawn(async move {
        let Some(mut stream) = stream else { return };
        let mut chunk = [0u8; 8192];
        while let Ok(count) = stream.read(&mut chunk).await {
            if count == 0 {
                return;
            }
            let mut bytes = shared.lock().expect("no holder panics");
            let room = limit.saturating_sub(bytes.len());
            bytes.extend_from_slice(&chunk[..count.min(room)]);
        }
    });
    Ok(Collector { task, bytes })
}

impl Collector {
    /// What came until the end of the stream, or until the grace for somebody else's holding it is over.
    async fn finish(mut self) -> Vec<u8> {
        let _ = tokio::time::timeout(DRAIN, &mut self.task).await;
        std::mem::take(&mut *self.bytes.lock().expect("no holder panics"))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub async fn attach(
    inner: &Arc<Inner>,
    id: &str,
    options: &StreamOptions,
) -> Result<Session, RuntimeError> {
    let (container, state_dir) = running(inner, id)?;
    let (sandbox_id, tty, has_stdin, stdin_once) = {
        let record = container.record();
        (
            record.sandbox_id.clone(),
            record.config.tty,
            record.config.stdin,
            record.config.stdin_once,
        )
    };
    let mut connection = Connection::open(&state_dir).map_err(shim_error(&sandbox_id))?;
    let pipe = |wanted: bool| -> Result<(Option<OwnedFd>, Option<OwnedFd>), RuntimeError> {
        if !wanted {
            return Ok((None, None));
        }
        let (ours, theirs) = shim::pipe(false).map_err(io_error("pipe"))?;
        Ok((Some(ours), Some(theirs)))
    };
    let (stdout, their_stdout) = pipe(options.stdout)?;
    let (stderr, their_stderr) = pipe(options.stderr && !tty)?;
    let request = Request::Attach {
        container: id.to_owned(),
        stdin: options.stdin,
        stdout: stdout.is_some(),
        stderr: stderr.is_some(),
    };
    let theirs: Vec<OwnedFd> = [their_stdout, their_stderr].into_iter().flatten().collect();
    let borrowed: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
    connection
        .send(&request, &borrowed)
        .await
        .map_err(shim_error(&sandbox_id))?;
    drop(borrowed);
    drop(theirs);
    let (terminal, given) = match connection.answer().await {
        Ok((Response::Attached { terminal }, mut fds)) => (terminal, fds.pop()),
        Ok((other, _)) => {
            return Err(shim_error(&sandbox_id)(ShimCallError::Unexpected(format!(
                "{other:?}"
            ))));
        }
        Err(error) => return Err(shim_error(&sandbox_id)(error)),
    };
    let given = given
        .map(Stream::new)
        .transpose()
        .map_err(io_error("open a stream"))?;
    let resize = given.clone().filter(|_| terminal).map(resizer);
    let mut stdin = None;
    let mut detaches_with_stdin = false;
    if let Some(stream) = given.filter(|_| options.stdin && has_stdin) {
        detaches_with_stdin = !stdin_once || terminal;
        let (writer, done) = Finishing::new(stream);
        stdin = Some(Box::new(writer) as Writer);
        if stdin_once && !terminal {
            let (state_dir, id) = (state_dir.clone(), id.to_owned());
            tokio::spawn(async move {
                let _ = done.await;
                let close = Request::CloseStdin {
                    container: id.clone(),
                };
                if let Err(error) = shim::call(&state_dir, &close).await {
                    tracing::debug!(container = %id, %error, "cannot close a container's stdin");
                }
            });
        }
    }
    let (mut sender, exit) = oneshot::channel();
    tokio::spawn(async move {
        // Keeps the connection for as long as somebody wants to know: its end detaches.
        tokio::select! {
            code = exit_code(&mut connection) => {
                let _ = sender.send(code.map_err(shim_error(&sandbox_id)));
            }
            () = sender.closed() => {}
        }
    });
    let reader = |fd: Option<OwnedFd>| -> Result<Option<Reader>, RuntimeError> {
        Ok(fd
            .map(Stream::new)
            .transpose()
            .map_err(io_error("open a stream"))?
            .map(|stream| Box::new(stream) as Reader))
    };
    Ok(Session {
        stdin,
        stdout: reader(stdout)?,
        stderr: reader(stderr)?,
        resize,
        detaches_with_stdin,
        exit,
    })
}

pub async fn port_forward(
    inner: &Arc<Inner>,
    sandbox_id: &str,
    port: u16,
) -> Result<Box<dyn Duplex>, RuntimeError> {
    let sandbox = inner.sandbox(sandbox_id)?;
    let own_network = sandbox.record().config.namespaces.network != NamespaceMode::Node;
    let namespace = own_network.then(|| inner.layout.namespaces(sandbox_id).join("net"));
    // Upstream (containerd) tries IPv4 first, then IPv6.
    let mut last = None;
    for (v4, address) in [
        (true, ([127, 0, 0, 1], port).into()),
        (false, ([0, 0, 0, 0, 0, 0, 0, 1], port).into()),
    ] {
        let socket = match socket_in(namespace.clone(), v4).await {
            Ok(socket) => socket,
            Err(error) if v4 => return Err(error),
            // A kernel without IPv6 has nothing to add.
            Err(_) => break,
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(address)).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true);
                return Ok(Box::new(stream) as Box<dyn Duplex>);
            }
            Ok(Err(error)) => last = last.or(Some(error)),
            Err(_) => last = last.or(Some(io::ErrorKind::TimedOut.into())),
        }
    }
    Err(RuntimeError::Io {
        context: format!(
            "failed to execute portforward in network namespace {:?}: failed to connect to localhost:{port} inside namespace {sandbox_id:?}",
            namespace
                .map(|path| path.display().to_string())
                .unwrap_or_else(|| "host".to_owned())
        ),
        source: last.unwrap_or_else(|| io::Error::other("no address")),
    })
}

/// A socket belongs to the network namespace it is made in; only its making needs a thread there.
async fn socket_in(namespace: Option<PathBuf>, v4: bool) -> Result<TcpSocket, RuntimeError> {
    let fd = blocking(move || {
        in_namespace(namespace, move || new_socket(v4)).map_err(io_error("socket"))
    })
    .await?;
    // SAFETY: the descriptor is a new non-blocking TCP socket, and ours.
    let socket = unsafe { std::net::TcpStream::from_raw_fd(fd.into_raw_fd()) };
    Ok(TcpSocket::from_std_stream(socket))
}

fn new_socket(v4: bool) -> io::Result<OwnedFd> {
    let family = if v4 { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: integers only; the descriptor is new and ours.
    unsafe {
        let fd = libc::socket(
            family,
            libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            0,
        );
        if fd < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(OwnedFd::from_raw_fd(fd))
        }
    }
}

/// Runs `work` on a thread that enters the namespace and then ends: no other work ever runs on it.
pub fn in_namespace<T: Send + 'static>(
    namespace: Option<PathBuf>,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let Some(path) = namespace else { return work() };
    std::thread::Builder::new()
        .name("in-netns".to_owned())
        .spawn(move || {
            let file = std::fs::File::open(&path)?;
            setns(file, CloneFlags::CLONE_NEWNET)?;
            work()
        })?
        .join()
        .map_err(|_| io::Error::other("the thread in the network namespace panicked"))?
}
