//! Questions to the API server whose answers come in protobuf or JSON, as the server likes; errors are read from either.

use http::{Request, StatusCode, header};
use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::core::Status;
use kube::{Api, Client, Resource};
use kube_protobuf::{CONTENT_TYPE, envelope};
use serde::Serialize;
use serde::de::DeserializeOwned;

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
    create_at(client, K::url_path(&(), Some(namespace)), object).await
}

/// Creates a subresource of an object, as the `binding` of a Pod; as [`create`].
///
/// # Errors
/// As [`send`].
pub async fn create_subresource<K, S>(
    client: &Client,
    namespace: &str,
    name: &str,
    subresource: &str,
    object: &S,
) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()>,
    S: Resource<DynamicType = ()> + Serialize,
{
    let collection = K::url_path(&(), Some(namespace));
    create_at(client, format!("{collection}/{name}/{subresource}"), object).await
}

async fn create_at<K>(client: &Client, path: String, object: &K) -> Result<(), kube::Error>
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
    write(client, Request::post(path), content_type, body).await
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
    let content_type = Merge::Strategic.content_type();
    write(client, Request::patch(path), content_type, body).await
}

/// How a patch is merged. Patches are JSON, whatever the answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// RFC 7386.
    Json,
    /// Upstream's strategic merge; not for custom resources.
    Strategic,
}

impl Merge {
    fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
        }
    }
}

/// Merges a patch into an object's status; what the server made of it comes in protobuf where the kind is built in, without who set
/// which field. In the place of [`Api::patch_status`], which asks for JSON.
///
/// # Errors
/// As [`send`], or when the answer is no object of the kind.
pub async fn patch_status<K>(
    api: &Api<K>,
    name: &str,
    merge: Merge,
    patch: &serde_json::Value,
) -> Result<K, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned,
{
    let path = format!("{}/{name}/status", api.resource_url());
    let client = api.clone().into_client();
    let body = patch.to_string().into_bytes();
    let request = written(Request::patch(path), merge.content_type(), body)?;
    let (encoding, body) = send(&client, request).await?;
    let bytes = body.collect().await?.to_bytes();
    match encoding {
        Encoding::Json => serde_json::from_slice(&bytes).map_err(kube::Error::SerdeError),
        Encoding::Protobuf => decode(&bytes).map_err(unreadable),
    }
}

/// An object of this kind, with its envelope.
fn decode<K>(bytes: &[u8]) -> Result<K, kube_protobuf::Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let unknown = envelope::open(bytes)?;
    let message = kube_protobuf::message(&K::group(&()), &K::version(&()), &K::kind(&()));
    let asked_for = (unknown.api_version, unknown.kind) == (&*K::api_version(&()), &*K::kind(&()));
    let Some(message) = message.filter(|_| asked_for) else {
        let (version, kind) = (unknown.api_version, unknown.kind);
        let text = format!("{version} {kind} was not asked for");
        return Err(kube_protobuf::Error::Other(text));
    };
    kube_protobuf::from_slice(message, unknown.raw, false)
}

async fn write(
    client: &Client,
    request: http::request::Builder,
    content_type: &str,
    body: Vec<u8>,
) -> Result<(), kube::Error> {
    let (_, body) = send(client, written(request, content_type, body)?).await?;
    body.collect().await.map(drop)
}

fn written(
    request: http::request::Builder,
    content_type: &str,
    body: Vec<u8>,
) -> Result<Request<Body>, kube::Error> {
    request
        .header(header::CONTENT_TYPE, content_type)
        .header(header::ACCEPT, ACCEPT_PROTOBUF)
        .body(Body::from(body))
        .map_err(kube::Error::HttpError)
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::Response;
    use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
    use serde_json::json;

    use super::*;

    /// What a request was: method and path, content type, what is accepted, the body.
    type Seen = Arc<Mutex<Vec<(String, String, String, Vec<u8>)>>>;

    /// A client of a server that answers with these bytes.
    fn client(content_type: &'static str, answer: Vec<u8>) -> (Client, Seen) {
        let seen = Seen::default();
        let noted = seen.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (noted, answer) = (noted.clone(), answer.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await?.to_bytes().to_vec();
                let header = |name| head.headers[name].to_str().unwrap().to_owned();
                noted.lock().unwrap().push((
                    format!("{} {}", head.method, head.uri),
                    header(header::CONTENT_TYPE),
                    header(header::ACCEPT),
                    body,
                ));
                let head = Response::builder().header(header::CONTENT_TYPE, content_type);
                Ok::<_, tower::BoxError>(head.body(Body::from(answer))?)
            }
        });
        (Client::new(service, "default"), seen)
    }

    #[tokio::test]
    async fn a_binding_is_protobuf() {
        let (client, seen) = client("application/json", b"{}".to_vec());
        let mut binding = Binding::default();
        binding.metadata.name = Some("p".to_owned());
        binding.target = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some("n".to_owned()),
            ..ObjectReference::default()
        };
        create_subresource::<Pod, _>(&client, "ns", "p", "binding", &binding)
            .await
            .unwrap();
        let (request, content_type, accept, body) = seen.lock().unwrap().remove(0);
        assert_eq!(request, "POST /api/v1/namespaces/ns/pods/p/binding");
        assert_eq!((&*content_type, &*accept), (CONTENT_TYPE, ACCEPT_PROTOBUF));
        assert_eq!(decode::<Binding>(&body).unwrap(), binding);
        let other = decode::<Pod>(&body).unwrap_err().to_string();
        assert_eq!(other, "v1 Binding was not asked for");
    }

    #[tokio::test]
    async fn a_patched_status_is_read_in_either_encoding() {
        let node: Node = serde_json::from_value(
            json!({ "metadata": { "name": "n" }, "status": { "phase": "Running" } }),
        )
        .unwrap();
        let message = kube_protobuf::message("", "v1", "Node").unwrap();
        let protobuf = kube_protobuf::to_vec(message, ("v1", "Node"), &node).unwrap();
        let json = serde_json::to_vec(&node).unwrap();
        for (content_type, answer) in [(CONTENT_TYPE, protobuf), ("application/json", json)] {
            let (client, seen) = client(content_type, answer);
            let patch = json!({ "status": { "phase": "Running" } });
            let api = Api::<Node>::all(client);
            let patched = patch_status(&api, "n", Merge::Strategic, &patch).await;
            assert_eq!(patched.unwrap(), node);
            let (request, content_type, accept, body) = seen.lock().unwrap().remove(0);
            assert_eq!(request, "PATCH /api/v1/nodes/n/status");
            assert_eq!(content_type, "application/strategic-merge-patch+json");
            assert_eq!(accept, ACCEPT_PROTOBUF);
            assert_eq!(body, patch.to_string().into_bytes());
        }
    }
}
