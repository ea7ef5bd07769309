//! A socket that the service manager listened on before this program was there.
//!
//! Upstream: `sd_listen_fds(3)`.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use tokio::net::UnixListener;

/// The first descriptor that is passed.
const FIRST: RawFd = 3;

/// `None`: this program was started without one.
pub fn listener() -> io::Result<Option<UnixListener>> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(None);
    }
    match number("LISTEN_FDS") {
        None | Some(0) => return Ok(None),
        Some(1) => {}
        Some(more) => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("LISTEN_FDS={more}: one socket is served"),
            ));
        }
    }
    // SAFETY: by the protocol the descriptor is open and this program's for as long as it runs.
    #[allow(unsafe_code)]
    let passed = unsafe { BorrowedFd::borrow_raw(FIRST) };
    // A copy, which no program that is started inherits.
    let listener = std::os::unix::net::UnixListener::from(passed.try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener).map(Some)
}
