//! Copying one direction of a stream to its end.

use bytes::BytesMut;
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite,
    AsyncWriteExt as _,
};

/// Of many quiet streams each costs no more than this.
const LEAST_BUFFER_BYTES: usize = 4 * 1024;
const MOST_BUFFER_BYTES: usize = 32 * 1024;

/// A buffer that grows while it is filled at once, up to 32 KiB.
pub(crate) struct Buffer {
    bytes: BytesMut,
    size: usize,
}

impl Buffer {
    pub(crate) fn new() -> Self {
        Self {
            bytes: BytesMut::new(),
            size: LEAST_BUFFER_BYTES,
        }
    }

    /// What one read gives; empty at the end.
    ///
    /// # Errors
    /// Reading failed.
    pub(crate) async fn fill<R>(&mut self, reader: &mut R) -> std::io::Result<&[u8]>
    where
        R: AsyncRead + Unpin + ?Sized,
    {
        if self.bytes.len() == self.size && self.size < MOST_BUFFER_BYTES {
            self.size *= 2;
        }
        self.bytes.clear();
        self.bytes.reserve(self.size);
        let size = self.size as u64;
        (&mut *reader).take(size).read_buf(&mut self.bytes).await?;
        Ok(&self.bytes)
    }
}

/// Copies what the pod says until it ends, flushing whatever has come, then closes the writer's side.
///
/// # Errors
/// Reading or writing failed; the writer is closed then, too, as far as it can be.
pub(crate) async fn copy_out<R, W>(reader: &mut R, writer: &mut W) -> std::io::Result<()>
where
    R: AsyncRead + Unpin + ?Sized,
    W: AsyncWrite + Unpin + ?Sized,
{
    let mut buffer = Buffer::new();
    let result = async {
        loop {
            let data = buffer.fill(reader).await?;
            if data.is_empty() {
                return Ok(());
            }
            writer.write_all(data).await?;
            writer.flush().await?;
        }
    }
    .await;
    let closed = writer.shutdown().await;
    result.and(closed)
}

/// Copies what a client says until it ends, as fast as the writer takes it, then closes the writer's side.
///
/// # Errors
/// Reading or writing failed; the writer is closed then, too, as far as it can be.
pub(crate) async fn copy_in<R, W>(reader: &mut R, writer: &mut W) -> std::io::Result<()>
where
    R: AsyncBufRead + Unpin + ?Sized,
    W: AsyncWrite + Unpin + ?Sized,
{
    let result = async {
        loop {
            let data = reader.fill_buf().await?;
            if data.is_empty() {
                return Ok(());
            }
            let count = writer.write(data).await?;
            if count == 0 {
                return Err(std::io::ErrorKind::WriteZero.into());
            }
            reader.consume(count);
            writer.flush().await?;
        }
    }
    .await;
    let closed = writer.shutdown().await;
    result.and(closed)
}
