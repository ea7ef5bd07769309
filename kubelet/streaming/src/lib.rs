//! Streaming: the server sides of exec, attach and port-forward, over SPDY/3.1 and over WebSocket.
//!
//! Owns the protocols and nothing else: whoever serves HTTP hands in the request and a closure that starts the far end
//! (a [`Process`] or a connection to a port), and gives back the response it gets. Knows no runtime, no pods.
//!
//! ```text
//! request -> negotiate -> 101 -> upgraded connection -> spdy | websocket | spdy in a websocket
//!                                                    -> streams -> start the far end -> copy -> status -> close
//! ```
//!
//! Upstream: `k8s.io/cri-streaming`, `k8s.io/streaming`, `github.com/moby/spdystream`, v1.36.
#![forbid(unsafe_code)]

mod copy;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod life;
mod memory;
mod negotiate;
pub mod port_forward;
mod queue;
pub mod remote_command;
pub mod spdy;
mod websocket;

use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

pub use memory::Pool;
pub use port_forward::{PortForwardOptions, serve_port_forward};
pub use remote_command::{
    Process, RemoteCommand, RemoteCommandOptions, TerminalSize, serve_remote_command,
};

/// What a handler answers with: 101 and an upgrade, or a refusal in plain text.
pub type Response = http::Response<Full<bytes::Bytes>>;
/// What one side writes and this one reads.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// What this side writes and the other reads.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// Bounds of one connection.
#[derive(Clone, Debug)]
pub struct StreamConfig {
    /// A connection without a byte for this long is closed. Zero: never. Upstream: `streamingConnectionIdleTimeout`, 4 h.
    pub idle_timeout: Duration,
    /// How long a client may take to open its streams. Upstream: `DefaultStreamCreationTimeout`, 30 s.
    pub stream_creation_timeout: Duration,
    /// Where connections hold what a client sent and nobody has read, beyond a little that each has of its own. One for
    /// all connections of a process.
    pub pool: Arc<Pool>,
    /// Ends every connection.
    pub shutdown: CancellationToken,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(4 * 3600),
            stream_creation_timeout: Duration::from_secs(30),
            pool: Arc::default(),
            shutdown: CancellationToken::new(),
        }
    }
}
