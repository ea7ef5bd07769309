//! SPDY/3.1 as Kubernetes uses it: framing, header compression, and a server's connection of many streams.
//!
//! Flow control is not part of it: spdystream neither sends nor heeds WINDOW_UPDATE, so this side ignores it, too.
//! A stream that nobody reads holds up its connection once its queue is full.

mod connection;
mod frame;
mod header;

pub use connection::{Connection, IncomingStream, Stream, StreamReader, StreamWriter};
pub use frame::{Frame, FrameDecoder, FrameEncoder, SpdyError};
pub use header::Headers;
