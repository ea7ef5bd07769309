//! Port-forward over a WebSocket: for the i-th port channel 2i is data, 2i+1 errors; each begins with the port.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinSet;

use super::Forward;
use crate::StreamConfig;
use crate::websocket::{Channels, Codec};

/// A channel has no end of its own: a client that waits for the pod's sees it only when the whole connection ends. Upstream:
/// containerd's `portForward`, after either side has ended.
const PATIENCE: Duration = Duration::from_millis(500);

/// How a subprotocol writes its channels. `None`: not supported.
pub(super) fn codec(protocol: &str) -> Option<Codec> {
    match protocol {
        "" | "v4.channel.k8s.io" => Some(Codec {
            base64: false,
            close_signal: false,
        }),
        "v4.base64.channel.k8s.io" => Some(Codec {
            base64: true,
            close_signal: false,
        }),
        _ => None,
    }
}

pub(super) async fn serve<T, C, F, D>(
    io: T,
    protocol: &str,
    ports: &[u16],
    config: &StreamConfig,
    forward: Arc<Forward<C>>,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    C: Fn(u16) -> F + Send + Sync + 'static,
    F: Future<Output = Result<D, String>> + Send + 'static,
    D: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Some(codec) = codec(protocol) else { return };
    // A channel's number is one byte.
    let ports = &ports[..ports.len().min(127)];
    let readable: Vec<bool> = ports.iter().flat_map(|_| [true, false]).collect();
    let (channels, mut readers) = Channels::open(io, codec, &readable, config);
    let mut forwards = JoinSet::new();
    for (index, port) in ports.iter().copied().enumerate() {
        let mut data = channels.writer(index as u8 * 2);
        let mut error = channels.writer(index as u8 * 2 + 1);
        let Some(mut reader) = readers[index * 2].take() else {
            continue;
        };
        let forward = forward.clone();
        forwards.spawn(async move {
            let greeting = port.to_le_bytes();
            if data.write_all(&greeting).await.is_err() || error.write_all(&greeting).await.is_err()
            {
                return;
            }
            let forwarded = forward.run(port, &mut reader, &mut data, Some(PATIENCE));
            if let Err(reason) = forwarded.await {
                tracing::debug!(port, reason, "port-forward failed");
                // A client that is gone needs no reason.
                let _ = error.write_all(reason.as_bytes()).await;
            }
        });
    }
    let closed = channels.closed();
    let all = async { while forwards.join_next().await.is_some() {} };
    tokio::select! {
        () = all => {}
        () = closed.cancelled() => {}
    }
}
