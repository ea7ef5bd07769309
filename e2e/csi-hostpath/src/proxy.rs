//! The driver's place taken by somebody else: a connection to the CSI endpoint is joined with the next connection to a second one.
//! Upstream's suite runs its mock driver in its own process and reaches the pod's socket so.

use std::io;

use crate::endpoint::Listener;

/// Joins connections, each of the one with the next of the other, without an end.
///
/// # Errors
/// A socket takes no more connections.
pub async fn run(front: Listener, back: Listener) -> io::Result<()> {
    loop {
        let mut near = front.accept().await?;
        let mut far = back.accept().await?;
        tokio::spawn(async move {
            match tokio::io::copy_bidirectional(&mut near, &mut far).await {
                Ok((sent, received)) => tracing::debug!(sent, received, "connection ended"),
                Err(err) => tracing::debug!(%err, "connection ended"),
            }
        });
    }
}
