//! Questions to the API server whose answers come in protobuf or JSON, as the server likes; errors are read from either.

use http::{Request, StatusCode, header};
use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::core::Status;
use kube::{Client, Resource};
use kube_protobuf::{CONTENT_TYPE, envelope};
use serde::Serialize;

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

/// Creates an object in `namespace`, in protobuf where the kind is built in. What the server made of it is not read.
///
/// # Errors
/// As [`send`].
pub async fn create<K>(client: &Client, namespace: &str, object: &K) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Serialize,
{
    let (version, kind) = (K::api_version(&()), K::kind(&()));
    let message = kube_protobuf::message(&K::group(&()), &K::version(&()), &kind);
    let encoded = message.and_then(|m| kube_protobuf::to_vec(m, (&version, &kind), object).ok());
    let (content_type, body) = match encoded {
        Some(bytes) => (CONTENT_TYPE, bytes),
        None => {
            let json = serde_json::to_vec(object).map_err(kube::Error::SerdeError)?;
            ("application/json", json)
        }
    };
    let request = Request::post(K::url_path(&(), Some(namespace)));
    write(client, request, content_type, body).await
}

/// Merges a strategic merge patch into an object. What the server made of it is not read.
///
/// # Errors
/// As [`send`].
pub async fn patch<K>(
    client: &Client,
    namespace: &str,
    name: &str,
    patch: &serde_json::Value,
) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()>,
{
    let path = format!("{}/{name}", K::url_path(&(), Some(namespace)));
    let body = patch.to_string().into_bytes();
    let content_type = "application/strategic-merge-patch+json";
    write(client, Request::patch(path), content_type, body).await
}

async fn write(
    client: &Client,
    request: http::request::Builder,
    content_type: &str,
    body: Vec<u8>,
) -> Result<(), kube::Error> {
    let request = request
        .header(header::CONTENT_TYPE, content_type)
        .header(header::ACCEPT, ACCEPT_PROTOBUF)
        .body(Body::from(body))
        .map_err(kube::Error::HttpError)?;
    let (_, body) = send(client, request).await?;
    body.collect().await.map(drop)
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
