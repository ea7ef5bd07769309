//! Port-forward over SPDY: the client opens an error and a data stream for each connection, paired by request id.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Forward, parse_port};
use crate::StreamConfig;
use crate::spdy::{Connection, IncomingStream, Stream};

/// A request's id is kept until its pair is whole. Clients count.
const MAX_REQUEST_ID_BYTES: usize = 256;

/// A pair that is not whole yet.
struct Half {
    data: Option<Stream>,
    error: Option<Stream>,
    deadline: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

pub(super) async fn serve<T, C, F, D>(io: T, config: &StreamConfig, forward: Arc<Forward<C>>)
where
    T: AsyncRead + AsyncWrite + Send + 'static,
    C: Fn(u16) -> F + Send + Sync + 'static,
    F: Future<Output = Result<D, String>> + Send + 'static,
    D: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut connection = Connection::server(io, config);
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut forwards = JoinSet::new();
    loop {
        let next_deadline = halves.values().map(|half| half.deadline).min();
        let expired = async {
            match next_deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let incoming = tokio::select! {
            incoming = connection.accept() => incoming,
            Some(_) = forwards.join_next() => continue,
            () = expired => {
                expire(&mut halves).await;
                continue;
            }
        };
        let Some(incoming) = incoming else { break };
        let (kind, port, request) = match identify(&incoming) {
            Ok(identity) => identity,
            Err(reason) => {
                tracing::debug!(reason, "port-forward stream refused");
                incoming.reject().await;
                continue;
            }
        };
        let half = halves.entry(request.clone()).or_insert_with(|| Half {
            data: None,
            error: None,
            deadline: Instant::now() + config.stream_creation_timeout,
        });
        let slot = if kind == Kind::Data {
            &mut half.data
        } else {
            &mut half.error
        };
        if slot.is_some() {
            incoming.reject().await;
            continue;
        }
        let Some(stream) = incoming.accept().await else {
            break;
        };
        *slot = Some(stream);
        if half.data.is_none() || half.error.is_none() {
            continue;
        }
        let Some(Half {
            data: Some(data),
            error: Some(error),
            ..
        }) = halves.remove(&request)
        else {
            continue;
        };
        forwards.spawn(forward_pair(forward.clone(), port, data, error));
    }
    forwards.shutdown().await;
    connection.close().await;
}

async fn forward_pair<C, F, D>(
    forward: Arc<Forward<C>>,
    port: u16,
    mut data: Stream,
    mut error: Stream,
) where
    C: Fn(u16) -> F + Send + Sync + 'static,
    F: Future<Output = Result<D, String>> + Send + 'static,
    D: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let was_reset = data.writer.was_reset();
    let forwarded = tokio::select! {
        forwarded = forward.run(port, &mut data.reader, &mut data.writer, None) => forwarded,
        // Nobody is there for what the pod says.
        () = was_reset.cancelled() => Ok(()),
    };
    if let Err(reason) = forwarded {
        tracing::debug!(port, reason, "port-forward failed");
        // A client that is gone needs no reason.
        let _ = error.writer.write_all(reason.as_bytes()).await;
        let _ = error.writer.shutdown().await;
        data.writer.reset().await;
        return;
    }
    let _ = data.writer.shutdown().await;
    let _ = error.writer.shutdown().await;
}

async fn expire(halves: &mut HashMap<String, Half>) {
    let now = Instant::now();
    let late: Vec<String> = halves
        .iter()
        .filter(|(_, half)| half.deadline <= now)
        .map(|(request, _)| request.clone())
        .collect();
    for request in late {
        let Some(half) = halves.remove(&request) else {
            continue;
        };
        tracing::debug!(request, "timed out waiting for streams");
        if let Some(mut error) = half.error {
            let text = format!("(request={request}) timed out waiting for streams");
            // A client that is gone needs no reason.
            let _ = error.writer.write_all(text.as_bytes()).await;
            let _ = error.writer.shutdown().await;
        }
        if let Some(mut data) = half.data {
            data.writer.reset().await;
        }
    }
}

/// Kind, port and request id of a stream. A client that gives no id opens the error stream first, data next.
fn identify(stream: &IncomingStream) -> Result<(Kind, u16, String), String> {
    let headers = stream.headers();
    let port = headers.get("port").ok_or("\"port\" header is required")?;
    let port = parse_port(port)?;
    let kind = match headers.get("streamtype") {
        Some("data") => Kind::Data,
        Some("error") => Kind::Error,
        Some(other) => return Err(format!("invalid stream type {other:?}")),
        None => return Err("\"streamType\" header is required".to_owned()),
    };
    let request = match headers.get("requestid").filter(|id| !id.is_empty()) {
        Some(id) if id.len() > MAX_REQUEST_ID_BYTES => {
            return Err(format!("a request id of {} bytes is too long", id.len()));
        }
        Some(id) => id.to_owned(),
        None if kind == Kind::Error => stream.id().to_string(),
        None => stream.id().saturating_sub(2).to_string(),
    };
    Ok((kind, port, request))
}
