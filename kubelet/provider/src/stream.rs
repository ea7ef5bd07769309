//! Logs, processes and connections, as streams.

use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::ProviderError;

/// Bytes that come.
pub type Output = Box<dyn AsyncRead + Send + Unpin>;
/// Bytes that go.
pub type Input = Box<dyn AsyncWrite + Send + Unpin>;
/// A container's log as the client gets it. Dropping it means that nobody reads on.
pub type LogStream = Output;

/// Which part of a log is wanted: `v1.PodLogOptions`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on with what comes until the container has ended.
    pub follow: bool,
    /// Of the container's run before this one.
    pub previous: bool,
    /// Begin each line with its time, RFC 3339 with nanoseconds, and a space.
    pub timestamps: bool,
    /// So many lines from the end; `None`: all.
    pub tail_lines: Option<u64>,
    /// No more bytes than these.
    pub limit_bytes: Option<u64>,
    /// Nothing that was said before.
    pub since: Option<Timestamp>,
}

/// What a client wants of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttachOptions {
    /// It sends input.
    pub stdin: bool,
    /// It reads standard output.
    pub stdout: bool,
    /// It reads standard error; never with a terminal.
    pub stderr: bool,
    /// There is a terminal.
    pub tty: bool,
}

/// A terminal's size, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// A process a client talks to. Dropping it hangs up.
pub struct Process {
    /// `None`: it takes none.
    pub stdin: Option<Input>,
    /// `None`: it says nothing.
    pub stdout: Option<Output>,
    /// `None`: it says nothing there.
    pub stderr: Option<Output>,
    /// Where sizes of the client's terminal go; `None`: it has none.
    pub resize: Option<mpsc::Sender<TerminalSize>>,
    /// The exit code, once it has ended.
    pub exit: BoxFuture<'static, Result<i32, ProviderError>>,
}

/// Both directions of a connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection to a port.
pub type Connection = Box<dyn Duplex>;
