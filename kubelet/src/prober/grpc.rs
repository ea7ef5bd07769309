//! The gRPC health check, over HTTP/2 without TLS.
//!
//! Owns: `grpc.health.v1.Health/Check`, encoded by hand: one string out, one number back. Upstream: `pkg/probe/grpc`, v1.36.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::http::AbortOnDrop;

/// Why the service is not called healthy.
#[derive(Debug, thiserror::Error)]
pub enum GrpcError {
    #[error("timeout: failed to connect service {address:?} within {}: {reason}", component_base::duration::format(*.timeout))]
    Connect {
        address: String,
        timeout: Duration,
        reason: String,
    },
    /// This node has no file or memory left for it.
    #[error("dial tcp {address}: {source}")]
    Shortage {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("timeout: health rpc did not complete within {}", component_base::duration::format(*.0))]
    Timeout(Duration),
    #[error("error: health rpc failed: {0}")]
    Http(#[from] hyper::Error),
    #[error("error: health rpc failed: {0}")]
    Request(#[from] ::http::Error),
    #[error(
        "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {0}"
    )]
    Unimplemented(String),
    #[error("error: health rpc failed with status {code}: {message}")]
    Status { code: u32, message: String },
    #[error("error: health rpc failed: received message larger than max ({MAX_ANSWER_BYTES})")]
    TooLong,
    #[error("error: health rpc failed: {0}")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("service unhealthy (responded with {0:?})")]
    Unhealthy(&'static str),
}

/// Of an answer: it has one number. The pod may send whatever it likes for as long as the probe lasts.
///
/// DIFFERS: upstream takes 4 MiB.
const MAX_ANSWER_BYTES: usize = 4096;

/// gRPC's code for a method nobody serves.
const UNIMPLEMENTED: u32 = 12;

fn encode(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a); // field 1, length-delimited
        let mut len = service.len();
        while len >= 0x80 {
            message.put_u8((len as u8 & 0x7f) | 0x80);
            len >>= 7;
        }
        message.put_u8(len as u8);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0); // not compressed
    frame.put_u32(u32::try_from(message.len()).unwrap_or(0));
    frame.extend_from_slice(&message);
    frame.freeze()
}

/// The status of a HealthCheckResponse; zero (UNKNOWN) where the field is left out.
fn decode(frame: &[u8]) -> u8 {
    match frame.get(5..) {
        Some([0x08, status, ..]) => *status,
        _ => 0,
    }
}

/// # Errors
/// Everything but SERVING; the text is the probe's output.
pub async fn check(
    host: &str,
    port: u16,
    service: &str,
    timeout: Duration,
) -> Result<(), GrpcError> {
    let address = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    let deadline = tokio::time::Instant::now() + timeout;
    let stream = match tokio::time::timeout_at(deadline, TcpStream::connect(address.as_str())).await
    {
        Ok(Ok(stream)) => stream,
        Ok(Err(source)) if crate::rlimit::is_shortage(&source) => {
            return Err(GrpcError::Shortage { address, source });
        }
        Ok(Err(e)) => {
            return Err(GrpcError::Connect {
                address,
                timeout,
                reason: super::http::plain_io_error(&e),
            });
        }
        Err(_) => {
            return Err(GrpcError::Connect {
                address,
                timeout,
                reason: "context deadline exceeded".into(),
            });
        }
    };
    match tokio::time::timeout_at(deadline, call(stream, &address, service)).await {
        Ok(result) => result,
        Err(_) => Err(GrpcError::Timeout(timeout)),
    }
}

async fn call(stream: TcpStream, address: &str, service: &str) -> Result<(), GrpcError> {
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    // The connection ends with the probe, answered or given up.
    let _driver = AbortOnDrop(tokio::spawn(connection));
    let request = ::http::Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.37")
        .body(Full::new(encode(service)))?;
    read(sender.send_request(request).await?).await
}

async fn read(response: ::http::Response<hyper::body::Incoming>) -> Result<(), GrpcError> {
    let header = |map: &::http::HeaderMap, name: &str| {
        map.get(name)
            .and_then(|v| v.to_str().ok())
            .map(str::to_owned)
    };
    let (parts, body) = response.into_parts();
    let collected = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
    let collected = collected.map_err(|error| match error.is::<LengthLimitError>() {
        true => GrpcError::TooLong,
        false => GrpcError::Body(error),
    })?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let find = |name: &str| header(&trailers, name).or_else(|| header(&parts.headers, name));
    let code: u32 = find("grpc-status")
        .and_then(|v| v.parse().ok())
        .unwrap_or(if parts.status.is_success() { 0 } else { 2 });
    let message = find("grpc-message").unwrap_or_default();
    match code {
        0 => {}
        UNIMPLEMENTED => return Err(GrpcError::Unimplemented(message)),
        code => return Err(GrpcError::Status { code, message }),
    }
    match decode(&collected.to_bytes()) {
        1 => Ok(()),
        2 => Err(GrpcError::Unhealthy("NOT_SERVING")),
        3 => Err(GrpcError::Unhealthy("SERVICE_UNKNOWN")),
        _ => Err(GrpcError::Unhealthy("UNKNOWN")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames() {
        assert_eq!(&encode("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&encode("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(decode(&[0, 0, 0, 0, 2, 0x08, 1]), 1);
        assert_eq!(decode(&[0, 0, 0, 0, 0]), 0);
    }

    /// A server whose answer has no end.
    async fn endless(stream: TcpStream) {
        use hyper::service::service_fn;
        let service = service_fn(|_| async {
            let pieces = futures::stream::repeat_with(|| {
                let piece = Bytes::from_static(&[0; 1024]);
                Ok::<_, std::convert::Infallible>(hyper::body::Frame::data(piece))
            });
            let body = http_body_util::StreamBody::new(pieces);
            Ok::<_, std::convert::Infallible>(::http::Response::new(body))
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = server.serve_connection(TokioIo::new(stream), service).await;
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_not_kept() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            endless(stream).await;
        });
        let error = check("127.0.0.1", port, "", Duration::from_secs(60)).await;
        assert_eq!(
            error.unwrap_err().to_string(),
            "error: health rpc failed: received message larger than max (4096)"
        );
    }
}
