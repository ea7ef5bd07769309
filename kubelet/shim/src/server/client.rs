//! A connected client and what it is sent.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use shim_protocol::wire::{self, Decoder};

use crate::sys;

/// What a sink may have waiting before the container's output is held back.
const SINK_BYTES: usize = 64 * 1024;

pub struct Client {
    pub socket: UnixStream,
    pub decoder: Decoder,
    pub outgoing: VecDeque<Outgoing>,
    pub role: Role,
}

pub enum Role {
    Plain,
    Subscriber,
    Exec,
    Attached {
        container: String,
        stdin: bool,
        sinks: [Option<Sink>; 2],
    },
}

/// A message on its way; its descriptors go with the first byte.
pub struct Outgoing {
    pub bytes: Vec<u8>,
    pub sent: usize,
    pub fds: Vec<OwnedFd>,
}

impl Client {
    pub fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            decoder: Decoder::default(),
            outgoing: VecDeque::new(),
            role: Role::Plain,
        }
    }

    /// Sends what the socket takes. An error ends the client.
    pub fn flush(&mut self) -> io::Result<()> {
        while let Some(message) = self.outgoing.front_mut() {
            let fds: Vec<_> = message.fds.iter().map(|fd| fd.as_raw_fd()).collect();
            match wire::send_with_fds(
                self.socket.as_raw_fd(),
                &message.bytes[message.sent..],
                &fds,
            ) {
                Ok(count) => {
                    message.sent += count;
                    message.fds.clear();
                    if message.sent == message.bytes.len() {
                        self.outgoing.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Where an attached client reads one stream of its container.
pub struct Sink {
    pub fd: OwnedFd,
    pub pending: Vec<u8>,
    pub stalled_since_ms: Option<u64>,
    ending: bool,
}

impl Sink {
    pub fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            pending: Vec::new(),
            stalled_since_ms: None,
            ending: false,
        }
    }

    pub fn is_full(&self) -> bool {
        self.pending.len() >= SINK_BYTES
    }

    /// Takes bytes; `false`: the reader is gone.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        self.pending.extend_from_slice(bytes);
        self.flush()
    }

    /// Writes what the pipe takes; `false`: the sink is done with.
    pub fn flush(&mut self) -> bool {
        while !self.pending.is_empty() {
            match sys::write(&self.fd, &self.pending) {
                Ok(count) => {
                    self.pending.drain(..count);
                    self.stalled_since_ms = None;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stalled_since_ms.get_or_insert_with(sys::monotonic_ms);
                    return true;
                }
                Err(_) => return false,
            }
        }
        self.pending = Vec::new();
        !self.ending
    }

    /// No more will come: the sink closes when what waits has gone.
    pub fn end(sink: &mut Option<Self>) {
        if let Some(inner) = sink {
            inner.ending = true;
            if !inner.flush() {
                *sink = None;
            }
        }
    }
}
