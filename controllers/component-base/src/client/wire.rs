//! Questions to the API server whose answers come in protobuf or JSON, as the server likes; errors are read from either.

use http::{Request, StatusCode, header};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use kube::core::Status;
use kube_protobuf::{CONTENT_TYPE, envelope};

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// With its envelope.
    Protobuf,
    /// Also where the server has no other.
    Json,
}

/// A kind that is built in is asked for in protobuf, and taken in JSON where the server has nothing else.
pub const ACCEPT_PROTOBUF: &str = "application/vnd.kubernetes.protobuf, application/json";

/// Sends a request; the answer's body is not read yet.
///
/// # Errors
/// No answer, or [`kube::Error::Api`] with the server's own words.
pub async fn send(
    client: &Client,
    request: Request<Body>,
) -> Result<(Encoding, Body), kube::Error> {
    let response = client.send(request).await?;
    let (head, body) = response.into_parts();
    let content_type = head.headers.get(header::CONTENT_TYPE);
    let encoding = match content_type {
        Some(t) if t.as_bytes().starts_with(CONTENT_TYPE.as_bytes()) => Encoding::Protobuf,
        _ => Encoding::Json,
    };
    if head.status.is_success() {
        return Ok((encoding, body));
    }
    let bytes = body.collect().await?.to_bytes();
    let status = match encoding {
        Encoding::Protobuf => status(&bytes).ok(),
        Encoding::Json => serde_json::from_slice(&bytes).ok(),
    };
    let status = status.unwrap_or_else(|| unreadable_status(head.status, &bytes));
    Err(kube::Error::Api(Box::new(status)))
}

/// Somebody on the way said it in words of its own.
fn unreadable_status(code: StatusCode, body: &[u8]) -> Status {
    let reason = code
        .canonical_reason()
        .unwrap_or("Failed to parse error data");
    Status::failure(&String::from_utf8_lossy(body), reason).with_code(code.as_u16())
}

/// Reads a `Status` with its envelope.
///
/// # Errors
/// It is none.
pub fn status(bytes: &[u8]) -> Result<Status, kube_protobuf::Error> {
    let message = kube_protobuf::message("", "v1", "Status").expect("a built-in kind");
    kube_protobuf::from_slice(message, envelope::open(bytes)?.raw, true)
}

/// An error of what was read, as kube tells of it.
pub fn unreadable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> kube::Error {
    kube::Error::Service(error.into())
}
