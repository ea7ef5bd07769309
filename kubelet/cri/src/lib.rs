//! The CRI: runtime v1's services on a [`runtime::Runtime`] and an image store, and the program that answers on its socket.
//!
//! ```text
//! client -> cri.sock of gantry-cri --the kubelet has the runtime--> its runtime.sock: bytes go to and fro
//!                                  '--nobody has it--> gantry-cri opens it, as a kubelet would, and answers itself
//! request -> service (shell) -> from_cri (pure) -> Runtime -> to_cri (pure) -> answer
//! ```
//!
//! Never decides what should run, and keeps nothing but tokens of streams and rates of counters.
//!
//! Upstream: `k8s.io/cri-api` 0.37.2, and containerd's CRI plugin for what the messages do not say.
#![deny(unsafe_code)]

mod archives;
pub mod ctr;
pub mod error;
mod filter;
pub mod from_cri;
pub mod front;
pub mod options;
mod serve;
mod service;
pub mod session;
mod streaming_server;
pub mod to_cri;

pub use serve::{ServeError, Served, listen, serve_socket};
pub use service::{CriService, ServiceOptions};
