//! What the runtime and a pod's shim say to each other, and how it lies on the wire.
//!
//! A unix stream socket, one request a connection (a connection is cheap), answered by one
//! [`Response`]. `Exec`, `Attach` and `Subscribe` keep the connection: more responses follow on
//! it. Streams never pass through messages: their file descriptors do.
//!
//! Owns: messages, framing, passing of descriptors. Knows nothing of libcontainer or of tokio.
//!
//! **Invariant:** a shim outlives many kubelets, so messages only ever gain optional fields and
//! variants; a reader ignores fields it does not know and answers `Unsupported` to a request it
//! does not know. [`VERSION`] changes only if that cannot hold.

pub mod capability;
pub mod chain;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod message;
pub mod wire;

pub use chain::chain;
pub use message::*;

/// The protocol's version; the shim reports its own in [`message::ShimState`].
pub const VERSION: u32 = 1;

/// The socket's name inside the sandbox's state directory.
pub const SOCKET_NAME: &str = "shim.sock";

/// The file of [`message::ShimConfig`] inside the sandbox's state directory.
pub const CONFIG_NAME: &str = "shim.json";
