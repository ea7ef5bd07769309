//! The runtime's side of a shim: starting one, talking to it, sealing its program.
//!
//! The program runs from a sealed copy in memory, one for all shims a runtime starts: a container
//! that reaches its shim's executable through /proc cannot write to it (CVE-2019-5736), and an
//! upgrade on disk changes no running pod.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use shim_protocol::wire::{self, Decoder, WireError};
use shim_protocol::{ErrorKind, Request, Response, SOCKET_NAME};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// No request takes a sound shim longer; a start takes some 20 ms.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(120);

/// Why a shim did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ShimCallError {
    /// Nobody serves the socket: the shim is gone.
    #[error("cannot connect to {path}: {source}")]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the shim hung up")]
    HungUp,
    #[error("the shim did not answer within {0:?}")]
    Silent(Duration),
    #[error(transparent)]
    Refused(#[from] shim_protocol::ShimError),
    #[error("unexpected answer {0}")]
    Unexpected(String),
    #[error("start {program}: {reason}")]
    Spawn { program: PathBuf, reason: String },
}

/// A shim that ends resets its connections: that is a hang-up too.
fn lost(error: io::Error) -> ShimCallError {
    match error.kind() {
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::NotConnected => ShimCallError::HungUp,
        _ => WireError::Io(error).into(),
    }
}

impl ShimCallError {
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Refused(error) => Some(error.kind),
            _ => None,
        }
    }
}

/// The shim's program, sealed.
pub struct ShimProgram {
    path: PathBuf,
    sealed: OwnedFd,
}

impl ShimProgram {
    pub fn load(path: &Path) -> io::Result<Self> {
        let program = trim(std::fs::read(path)?);
        // SAFETY: the name is a static string; the descriptor is new and ours.
        let sealed: File = unsafe {
            let fd = libc::memfd_create(
                c"gantry-shim".as_ptr(),
                libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
            );
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            std::os::fd::FromRawFd::from_raw_fd(fd)
        };
        (&sealed).write_all(&program)?;
        let seals =
            libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
        // SAFETY: fcntl on a live descriptor with integers.
        if unsafe { libc::fcntl(sealed.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            path: path.to_owned(),
            sealed: sealed.into(),
        })
    }

    /// Runs the program to its end: it serves in the background, or has done its work.
    pub async fn run(&self, args: &[&std::ffi::OsStr]) -> Result<(), ShimCallError> {
        let failed = |reason: String| ShimCallError::Spawn {
            program: self.path.clone(),
            reason,
        };
        let output =
            tokio::process::Command::new(format!("/proc/self/fd/{}", self.sealed.as_raw_fd()))
                .arg0("gantry-shim")
                .args(args)
                .env_clear()
                .current_dir("/")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .output()
                .await
                .map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(failed(if text.is_empty() {
            output.status.to_string()
        } else {
            text
        }))
    }
}

/// Leaves out of an ELF program what is never loaded: symbols, debug information, section headers. The
/// copy lies in memory for as long as a shim runs. What is no 64-bit ELF comes back as it is.
fn trim(mut program: Vec<u8>) -> Vec<u8> {
    let number = |bytes: &[u8], at: usize, size: usize| -> Option<usize> {
        let field = bytes.get(at..at + size)?;
        Some(
            field
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | usize::from(*byte)),
        )
    };
    let end = |bytes: &[u8]| -> Option<usize> {
        // 64 bits, little-endian.
        if bytes.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let (table, size, count) = (
            number(bytes, 32, 8)?,
            number(bytes, 54, 2)?,
            number(bytes, 56, 2)?,
        );
        let mut end = table + size * count;
        for index in 0..count {
            let header = table + index * size;
            end = end.max(number(bytes, header + 8, 8)? + number(bytes, header + 32, 8)?);
        }
        (end <= bytes.len()).then_some(end)
    };
    if let Some(end) = end(&program) {
        program.truncate(end);
        // e_shoff, e_shnum and e_shstrndx: there are no sections any more.
        program[40..48].fill(0);
        program[60..64].fill(0);
    }
    program
}

/// One connection: one request, then its answers.
pub struct Connection {
    socket: AsyncFd<UnixStream>,
    decoder: Decoder,
}

impl Connection {
    /// Never blocks: a shim that accepts nothing more is an error.
    pub fn open(state_dir: &Path) -> Result<Self, ShimCallError> {
        let failed = |source: io::Error| ShimCallError::Connect {
            path: state_dir.join(SOCKET_NAME),
            source,
        };
        let socket = connect(state_dir).map_err(failed)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        // SAFETY: the socket owns its descriptor and never exchanges it.
        let socket = unsafe { AsyncFd::register_with_interest(socket, interest) }
            .map_err(|error| failed(error.into()))?;
        Ok(Self {
            socket,
            decoder: Decoder::default(),
        })
    }

    pub async fn send(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ShimCallError> {
        let frame = wire::encode(request, fds.len())?;
        let mut raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let mut sent = 0;
        while sent < frame.len() {
            let mut guard = self.socket.writable().await.map_err(WireError::Io)?;
            let result = guard
                .try_io(|socket| wire::send_with_fds(socket.as_raw_fd(), &frame[sent..], &raw));
            match result {
                Ok(Ok(count)) => {
                    sent += count;
                    raw.clear();
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(lost(error)),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }

    /// The next answer. Cancel-safe: what came of a message is kept.
    pub async fn receive(&mut self) -> Result<(Response, Vec<OwnedFd>), ShimCallError> {
        loop {
            if let Some(message) = self.decoder.take::<Response>()? {
                return Ok(message);
            }
            let mut guard = self.socket.readable().await.map_err(WireError::Io)?;
            let decoder = &mut self.decoder;
            match guard.try_io(|socket| decoder.receive(socket.get_ref())) {
                Ok(Ok(0)) => return Err(ShimCallError::HungUp),
                Ok(Ok(_)) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(lost(error)),
                Err(_would_block) => {}
            }
        }
    }

    /// As `receive`, with a refusal as an error.
    pub async fn answer(&mut self) -> Result<(Response, Vec<OwnedFd>), ShimCallError> {
        match self.receive().await? {
            (Response::Error(error), _) => Err(error.into()),
            other => Ok(other),
        }
    }
}

fn connect(state_dir: &Path) -> io::Result<UnixStream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    // A socket's name has 107 bytes; the state directory may be longer.
    let directory = File::open(state_dir)?;
    let path = format!("/proc/self/fd/{}/{SOCKET_NAME}", directory.as_raw_fd());
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path.as_str())?)?;
    Ok(UnixStream::from(fd))
}

/// One request and its one answer, within [`CALL_TIMEOUT`].
pub async fn call(state_dir: &Path, request: &Request) -> Result<Response, ShimCallError> {
    let answer = async {
        let mut connection = Connection::open(state_dir)?;
        connection.send(request, &[]).await?;
        Ok(connection.answer().await?.0)
    };
    match tokio::time::timeout(CALL_TIMEOUT, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(ShimCallError::Silent(CALL_TIMEOUT)),
    }
}

/// A pipe: (the runtime's non-blocking end, the process's end). `process_reads`: it is its stdin.
pub fn pipe(process_reads: bool) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(io::Error::from)?;
    let (ours, theirs) = if process_reads {
        (write, read)
    } else {
        (read, write)
    };
    set_nonblocking(ours.as_fd())?;
    Ok((ours, theirs))
}

pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = fcntl(fd.as_raw_fd(), FcntlArg::F_GETFL).map_err(io::Error::from)?;
    let flags = OFlag::from_bits_truncate(flags) | OFlag::O_NONBLOCK;
    fcntl(fd.as_raw_fd(), FcntlArg::F_SETFL(flags))
        .map(drop)
        .map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_trimmed_program_still_runs() {
        let path = std::env::current_exe().unwrap();
        let whole = std::fs::read(&path).unwrap();
        assert!(trim(whole.clone()).len() < whole.len());
        assert_eq!(trim(b"#!/bin/sh\n".to_vec()), b"#!/bin/sh\n");
        let program = ShimProgram::load(&path).unwrap();
        program.run(&["--list".as_ref()]).await.unwrap();
        assert!(program.run(&["--no-such-flag".as_ref()]).await.is_err());
    }
}
