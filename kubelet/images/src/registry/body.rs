//! The one way a server's answer is read into memory: up to a bound, whatever its headers promise. Layers go to the
//! disk as they come, see `session`.

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use reqwest::Response;

use super::error::chain;

/// A token endpoint's answer: some KiB in life.
pub(super) const MAX_TOKEN_BYTES: u64 = 1 << 20;

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("is larger than {max} bytes")]
    TooLarge { max: u64 },
    #[error("{0}")]
    Broken(String),
}

/// The whole body; one of more than `max` bytes is refused as soon as that is known.
pub(super) async fn read(response: Response, max: u64) -> Result<Bytes, BodyError> {
    if response.content_length().is_some_and(|length| length > max) {
        return Err(BodyError::TooLarge { max });
    }
    let (body, whole) = read_up_to(response, max).await?;
    if whole {
        Ok(body)
    } else {
        Err(BodyError::TooLarge { max })
    }
}

/// The first `max` bytes of a body at most, and whether they are all of it.
pub(super) async fn read_up_to(response: Response, max: u64) -> Result<(Bytes, bool), BodyError> {
    let mut body = BytesMut::new();
    let mut stream = response.bytes_stream();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| BodyError::Broken(chain(error)))?;
        let room = max - body.len() as u64;
        if chunk.len() as u64 > room {
            body.extend_from_slice(&chunk[..room as usize]);
            return Ok((body.freeze(), false));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((body.freeze(), true))
}
