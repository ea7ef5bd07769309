//! Async ends of pipes and terminals that came from a shim.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::api::TerminalSize;

/// A non-blocking descriptor that is read, written, or both. A terminal's master tells its end as
/// EIO, which is read as the end here.
#[derive(Clone)]
pub struct Stream {
    fd: Arc<AsyncFd<OwnedFd>>,
}

impl Stream {
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        super::shim::set_nonblocking(std::os::fd::AsFd::as_fd(&fd))?;
        // SAFETY: an `OwnedFd` owns its descriptor and never exchanges it.
        let fd = unsafe { AsyncFd::register(fd)? };
        Ok(Self { fd: Arc::new(fd) })
    }

    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let size = libc::winsize {
            ws_row: size.height,
            ws_col: size.width,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: `size` lives through the call and is what TIOCSWINSZ reads.
        let result = unsafe { libc::ioctl(self.fd.get_ref().as_raw_fd(), libc::TIOCSWINSZ, &size) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(context))?;
            let unfilled = buffer.initialize_unfilled();
            let result = guard.try_io(|fd| {
                // SAFETY: the buffer is live and as long as stated.
                let count = unsafe {
                    libc::read(
                        fd.get_ref().as_raw_fd(),
                        unfilled.as_mut_ptr().cast(),
                        unfilled.len(),
                    )
                };
                if count < 0 {
                    Err(io::Error::last_os_error())
                } else {
                    Ok(count as usize)
                }
            });
            match result {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_write_ready(context))?;
            let result = guard.try_io(|fd| {
                // SAFETY: the buffer is live and as long as stated.
                let count = unsafe {
                    libc::write(fd.get_ref().as_raw_fd(), bytes.as_ptr().cast(), bytes.len())
                };
                if count < 0 {
                    Err(io::Error::last_os_error())
                } else {
                    Ok(count as usize)
                }
            });
            match result {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A writer that tells when its user is done with it: shut down or dropped.
pub struct Finishing<W> {
    /// `None` once shut down: a pipe's other end then sees the end.
    inner: Option<W>,
    done: Option<tokio::sync::oneshot::Sender<()>>,
}

impl<W> Finishing<W> {
    pub fn new(inner: W) -> (Self, tokio::sync::oneshot::Receiver<()>) {
        let (done, receiver) = tokio::sync::oneshot::channel();
        (
            Self {
                inner: Some(inner),
                done: Some(done),
            },
            receiver,
        )
    }

    fn finish(&mut self) {
        self.inner = None;
        if let Some(done) = self.done.take() {
            let _ = done.send(());
        }
    }
}

impl<W> Drop for Finishing<W> {
    fn drop(&mut self) {
        self.finish();
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Finishing<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.inner {
            Some(inner) => Pin::new(inner).poll_write(context, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Some(inner) => Pin::new(inner).poll_flush(context),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}
