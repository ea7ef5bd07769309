//! Copying one direction of a stream to its end.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

const BUFFER_BYTES: usize = 32 * 1024;

/// Copies until the reader ends, flushing whatever has come, then closes the writer's side.
///
/// # Errors
/// Reading or writing failed; the writer is closed then, too, as far as it can be.
pub(crate) async fn copy_to_end<R, W>(reader: &mut R, writer: &mut W) -> std::io::Result<()>
where
    R: AsyncRead + Unpin + ?Sized,
    W: AsyncWrite + Unpin + ?Sized,
{
    let mut buffer = vec![0; BUFFER_BYTES];
    let result = async {
        loop {
            let count = reader.read(&mut buffer).await?;
            if count == 0 {
                return Ok(());
            }
            writer.write_all(&buffer[..count]).await?;
            writer.flush().await?;
        }
    }
    .await;
    let closed = writer.shutdown().await;
    result.and(closed)
}
