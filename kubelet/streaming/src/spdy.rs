//! SPDY/3.1 as Kubernetes uses it: framing, header compression, flow control, and a server's connection of many streams.
//!
//! A stream that nobody reads holds up its connection once its queue is full ([`crate::memory`]), unless its client keeps to
//! the windows of flow control, which spdystream does not.

mod connection;
mod flow;
mod frame;
mod header;

pub use connection::{Connection, IncomingStream, Stream, StreamReader, StreamWriter};
pub use frame::{Frame, FrameDecoder, FrameEncoder, SpdyError};
pub use header::Headers;
