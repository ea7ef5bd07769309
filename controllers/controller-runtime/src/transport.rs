//! The seam between controllers and the API: one request, one answer.
//!
//! [`ApiTransport`] speaks to the API server; `testing::FakeApi` stands in for it, and can fail, delay or repeat any request.

use std::borrow::Cow;

use async_trait::async_trait;
use bytes::Bytes;
use component_base::client::wire::{self, Encoding};
use component_base::json;
use http_body_util::BodyExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::core::ApiResource;
use kube_protobuf::{Message, View, envelope};
use serde::de::DeserializeOwned;
use serde_json::Value;

mod body;

pub use body::Body;

/// Which kind of object a request is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    /// Empty for the core group.
    pub group: Cow<'static, str>,
    /// As `v1`.
    pub version: Cow<'static, str>,
    /// As `Pod`.
    pub kind: Cow<'static, str>,
    /// As `pods`.
    pub plural: Cow<'static, str>,
}

impl Resource {
    /// The resource of a type of k8s-openapi.
    pub fn of<K: kube::Resource<DynamicType = ()>>() -> Self {
        Self {
            group: K::group(&()),
            version: K::version(&()),
            kind: K::kind(&()),
            plural: K::plural(&()),
        }
    }

    /// The value of `apiVersion`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

impl From<&ApiResource> for Resource {
    fn from(resource: &ApiResource) -> Self {
        Self {
            group: resource.group.clone().into(),
            version: resource.version.clone().into(),
            kind: resource.kind.clone().into(),
            plural: resource.plural.clone().into(),
        }
    }
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Reads one object.
    Get,
    /// Reads a collection.
    List,
    /// Creates.
    Create,
    /// Replaces, checked by resourceVersion.
    Update,
    /// Changes parts; the content type says how.
    Patch(PatchKind),
    /// Deletes one object.
    Delete,
    /// Deletes a collection.
    DeleteCollection,
}

/// How a patch is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PatchKind {
    /// RFC 7386.
    Merge,
    /// Upstream's strategic merge; not for custom resources.
    Strategic,
    /// RFC 6902.
    Json,
    /// Server-side apply as this field manager, which takes fields over from others.
    Apply(&'static str),
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What to do.
    pub verb: Verb,
    /// To which kind.
    pub resource: Resource,
    /// Empty for cluster objects (or all namespaces of a list).
    pub namespace: String,
    /// Empty for collections and creation.
    pub name: String,
    /// Empty for the object itself, else `status`, `approval`, `finalize`, `token`, …
    pub subresource: Cow<'static, str>,
    /// Query parameters (selectors, field manager).
    pub query: Vec<(&'static str, String)>,
    /// The object, patch or DeleteOptions; null for none.
    pub body: Body,
}

/// Why a request failed.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum ApiError {
    /// The object, or its namespace, is not there.
    #[error("{0}")]
    NotFound(String),
    /// Someone else wrote first; read again and decide anew.
    #[error("{0}")]
    Conflict(String),
    /// The object is there already.
    #[error("{0}")]
    AlreadyExists(String),
    /// The namespace is going; nothing can be created there any more.
    #[error("{0}")]
    NamespaceTerminating(String),
    /// The object is not valid; no retry helps.
    #[error("{0}")]
    Invalid(String),
    /// We may not; a retry helps only after RBAC or quota changed.
    #[error("{0}")]
    Forbidden(String),
    /// The server is busy (429) or asks to come back.
    #[error("{message}")]
    TooManyRequests {
        /// The server's words.
        message: String,
        /// When to come back, in seconds; 0 when it does not say.
        retry_after_seconds: u32,
    },
    /// Any other answer of the server.
    #[error("{message}")]
    Server {
        /// HTTP status.
        code: u16,
        /// `reason` of the Status.
        reason: String,
        /// The server's words.
        message: String,
    },
    /// No answer; the write may have happened.
    #[error("{0}")]
    Unreachable(String),
    /// The answer is no object of the kind.
    #[error("decoding the answer: {0}")]
    Decode(String),
    /// This process does not lead any more; nothing was sent.
    #[error("not leading, the write was not sent")]
    NotLeading,
}

impl ApiError {
    /// The message of [`Self::NotFound`] where the path leads to nothing: no server has the resource. Upstream: `NewGenericServerResponse`.
    pub const NO_SUCH_RESOURCE: &str = "the server could not find the requested resource";

    /// Whether the object is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_))
    }
    /// Whether someone else wrote first.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict(_))
    }
    /// Whether the object is there already.
    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::AlreadyExists(_))
    }
    /// Whether the namespace is going.
    pub fn is_namespace_terminating(&self) -> bool {
        matches!(self, Self::NamespaceTerminating(_))
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        let terminating = component_base::client::is_namespace_terminating(&error);
        let kube::Error::Api(status) = &error else {
            return match &error {
                kube::Error::SerdeError(e) => Self::Decode(e.to_string()),
                other => Self::Unreachable(other.to_string()),
            };
        };
        let message = match status.code {
            // The path leads to nothing, and who said so knows no Status; as client-go words it.
            404 if status.reason != "NotFound" => Self::NO_SUCH_RESOURCE.to_owned(),
            _ => status.message.clone(),
        };
        match (status.code, status.reason.as_str()) {
            _ if terminating => Self::NamespaceTerminating(message),
            (404, _) => Self::NotFound(message),
            (409, "AlreadyExists") => Self::AlreadyExists(message),
            (409, _) => Self::Conflict(message),
            (422, _) => Self::Invalid(message),
            (403, _) => Self::Forbidden(message),
            (429, _) => Self::TooManyRequests {
                message,
                retry_after_seconds: status.details.as_ref().map_or(0, |d| d.retry_after_seconds),
            },
            (code, reason) => Self::Server {
                code,
                reason: reason.to_string(),
                message,
            },
        }
    }
}

/// Carries requests.
#[async_trait]
pub trait Transport: Send + Sync {
    /// Sends one request and returns the object (or Status) the server answered with.
    ///
    /// # Errors
    /// See [`ApiError`].
    async fn send(&self, request: Request) -> Result<Answer, ApiError>;
}

/// The object (or Status) that the server answered with, read as far as somebody wants it.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Read already.
    Json(Value),
    /// With its envelope.
    Protobuf(Bytes),
}

impl Answer {
    /// All of it.
    ///
    /// # Errors
    /// It is no object, or of a kind that was not asked for.
    pub fn value(self) -> Result<Value, ApiError> {
        match self {
            Self::Json(value) => Ok(value),
            Self::Protobuf(bytes) => object(&bytes).map_err(undecoded),
        }
    }

    /// As an object of a kind, without who set which field.
    ///
    /// # Errors
    /// It is none.
    pub fn decode<K>(self) -> Result<K, ApiError>
    where
        K: kube::Resource<DynamicType = ()> + DeserializeOwned,
    {
        match self {
            Self::Json(value) => json::from_value(&value).map_err(undecoded),
            Self::Protobuf(bytes) => {
                let unknown = envelope::open(&bytes).map_err(undecoded)?;
                let wanted = (K::api_version(&()), K::kind(&()));
                if (unknown.api_version, unknown.kind) != (&*wanted.0, &*wanted.1) {
                    return Err(undecoded(not_asked_for(&unknown)));
                }
                let message = kube_protobuf::message(&K::group(&()), &K::version(&()), &wanted.1)
                    .ok_or_else(|| undecoded(not_asked_for(&unknown)))?;
                kube_protobuf::from_slice(message, unknown.raw, false).map_err(undecoded)
            }
        }
    }

    /// The metadata of an object, without who set which field.
    ///
    /// # Errors
    /// It is none.
    pub fn metadata(self) -> Result<ObjectMeta, ApiError> {
        #[derive(serde::Deserialize)]
        struct Object {
            #[serde(default)]
            metadata: ObjectMeta,
        }
        let object: Object = match self {
            Self::Json(value) => json::from_value(&value).map_err(undecoded)?,
            Self::Protobuf(bytes) => {
                let unknown = envelope::open(&bytes).map_err(undecoded)?;
                kube_protobuf::from_slice(any_object(), unknown.raw, false).map_err(undecoded)?
            }
        };
        Ok(object.metadata)
    }

    /// Which object it is: `metadata.name`, `namespace`, `uid` and `resourceVersion`, of whatever kind. Null stays null.
    ///
    /// # Errors
    /// It is none.
    pub fn identity(self) -> Result<Value, ApiError> {
        match self {
            Self::Json(value) => Ok(value),
            Self::Protobuf(bytes) => {
                let unknown = envelope::open(&bytes).map_err(undecoded)?;
                kube_protobuf::from_slice_as(any_object(), unknown.raw, identity_view())
                    .map_err(undecoded)
            }
        }
    }
}

/// What all kinds have in the same place.
fn any_object() -> &'static Message {
    kube_protobuf::message("meta.k8s.io", "v1", "PartialObjectMetadata").expect("a built-in kind")
}

fn identity_view() -> &'static View {
    static VIEW: std::sync::LazyLock<View> = std::sync::LazyLock::new(|| {
        View::without(&[(
            "meta.v1.ObjectMeta",
            &[
                "generateName",
                "selfLink",
                "generation",
                "creationTimestamp",
                "deletionTimestamp",
                "deletionGracePeriodSeconds",
                "labels",
                "annotations",
                "ownerReferences",
                "finalizers",
            ],
        )])
    });
    &VIEW
}

fn undecoded(error: impl std::fmt::Display) -> ApiError {
    ApiError::Decode(error.to_string())
}

fn not_asked_for(unknown: &envelope::Unknown<'_>) -> kube_protobuf::Error {
    let (version, kind) = (unknown.api_version, unknown.kind);
    kube_protobuf::Error::Other(format!("{version} {kind} was not asked for"))
}

/// The API server.
pub struct ApiTransport {
    client: Client,
}

impl ApiTransport {
    /// Requests go out under `client`'s identity.
    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

#[async_trait]
impl Transport for ApiTransport {
    async fn send(&self, request: Request) -> Result<Answer, ApiError> {
        let message = message(&request);
        let (content_type, body) = body(&request, message);
        let accept = match message {
            Some(_) => wire::ACCEPT_PROTOBUF,
            None => "application/json",
        };
        let http = http::Request::builder()
            .method(method(request.verb))
            .uri(path(&request))
            .header("content-type", content_type)
            .header("accept", accept)
            .body(body.into())
            .map_err(|e| ApiError::Decode(e.to_string()))?;
        let (encoding, body) = wire::send(&self.client, http).await?;
        let bytes = body.collect().await?.to_bytes();
        match encoding {
            Encoding::Json => serde_json::from_slice(&bytes)
                .map(Answer::Json)
                .map_err(undecoded),
            Encoding::Protobuf => Ok(Answer::Protobuf(bytes)),
        }
    }
}

/// What the object of the request is in protobuf; `None`: it is not built in, or the answer is of another kind.
fn message(request: &Request) -> Option<&'static Message> {
    let resource = &request.resource;
    let plain = request.subresource.is_empty() || request.subresource == "status";
    let single = !matches!(request.verb, Verb::List | Verb::DeleteCollection);
    (plain && single)
        .then(|| kube_protobuf::message(&resource.group, &resource.version, &resource.kind))
        .flatten()
}

/// Content type and bytes. Patches are JSON; so is an object that protobuf has a field too few for.
fn body(request: &Request, message: Option<&'static Message>) -> (&'static str, Bytes) {
    let content_type = match request.verb {
        Verb::Patch(PatchKind::Merge) => "application/merge-patch+json",
        Verb::Patch(PatchKind::Strategic) => "application/strategic-merge-patch+json",
        Verb::Patch(PatchKind::Json) => "application/json-patch+json",
        // JSON is YAML.
        Verb::Patch(PatchKind::Apply(_)) => "application/apply-patch+yaml",
        _ => "application/json",
    };
    if request.body.is_null() {
        return (content_type, Bytes::new());
    }
    if matches!(request.verb, Verb::Create | Verb::Update)
        && let Some(message) = message
    {
        let resource = &request.resource;
        let kind = (&*resource.api_version(), &*resource.kind);
        match request.body.protobuf(message, kind) {
            Some(bytes) => return (kube_protobuf::CONTENT_TYPE, bytes),
            None => tracing::debug!(kind = kind.1, "Written as JSON"),
        }
    }
    (content_type, request.body.to_string().into())
}

/// An object with its envelope, as it is in JSON.
fn object(bytes: &[u8]) -> Result<Value, kube_protobuf::Error> {
    let unknown = envelope::open(bytes)?;
    let (group, version) = match unknown.api_version.split_once('/') {
        Some(parts) => parts,
        None => ("", unknown.api_version),
    };
    let Some(message) = kube_protobuf::message(group, version, unknown.kind) else {
        return Err(not_asked_for(&unknown));
    };
    let mut object: Value = kube_protobuf::from_slice(message, unknown.raw, true)?;
    object["apiVersion"] = unknown.api_version.into();
    object["kind"] = unknown.kind.into();
    Ok(object)
}

/// The path and query of a request.
fn path(request: &Request) -> String {
    let resource = &request.resource;
    let mut path = if resource.group.is_empty() {
        format!("/api/{}", resource.version)
    } else {
        format!("/apis/{}/{}", resource.group, resource.version)
    };
    if !request.namespace.is_empty() {
        path += &format!("/namespaces/{}", request.namespace);
    }
    path += &format!("/{}", resource.plural);
    // Creating an object has no name in its path, creating a subresource (token, binding, eviction) has.
    if !request.name.is_empty() && (request.verb != Verb::Create || !request.subresource.is_empty())
    {
        path += &format!("/{}", request.name);
    }
    if !request.subresource.is_empty() {
        path += &format!("/{}", request.subresource);
    }
    let mut query: Vec<String> = request
        .query
        .iter()
        .map(|(key, value)| format!("{key}={}", escape(value)))
        .collect();
    if let Verb::Patch(PatchKind::Apply(manager)) = request.verb {
        query.push(format!("fieldManager={}&force=true", escape(manager)));
    }
    if query.is_empty() {
        path
    } else {
        format!("{path}?{}", query.join("&"))
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(byte as char)
            }
            other => escaped += &format!("%{other:02X}"),
        }
    }
    escaped
}

fn method(verb: Verb) -> http::Method {
    match verb {
        Verb::Get | Verb::List => http::Method::GET,
        Verb::Create => http::Method::POST,
        Verb::Update => http::Method::PUT,
        Verb::Patch(_) => http::Method::PATCH,
        Verb::Delete | Verb::DeleteCollection => http::Method::DELETE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::Deployment;
    use k8s_openapi::api::core::v1::Pod;

    fn check(
        verb: Verb,
        resource: Resource,
        namespace: &str,
        name: &str,
        subresource: &'static str,
        expect: &str,
    ) {
        let query = if verb == Verb::List {
            vec![("labelSelector", "a=b,c".to_string())]
        } else {
            Vec::new()
        };
        let request = Request {
            verb,
            resource,
            namespace: namespace.into(),
            name: name.into(),
            subresource: subresource.into(),
            query,
            body: Body::null(),
        };
        assert_eq!(path(&request), expect);
    }

    #[test]
    fn built_in_objects_are_protobuf_and_come_back() {
        let mut request = Request {
            verb: Verb::Create,
            resource: Resource::of::<Deployment>(),
            namespace: "ns".into(),
            name: String::new(),
            subresource: "".into(),
            query: Vec::new(),
            body: Body::null(),
        };
        let mut deployment = serde_json::json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": {"l": "m"}},
            "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {"containers": [{"name": "c"}]}}},
        });
        request.body = deployment.clone().into();
        let encoded = |request: &Request| body(request, message(request));
        let (content_type, bytes) = encoded(&request);
        assert_eq!(content_type, kube_protobuf::CONTENT_TYPE);
        let answer = Answer::Protobuf(bytes);
        assert_eq!(answer.clone().value().unwrap(), deployment);
        let typed: Deployment = answer.clone().decode().unwrap();
        assert_eq!(serde_json::to_value(typed).unwrap(), deployment);
        let other = answer.clone().decode::<Pod>().unwrap_err();
        assert_eq!(
            other.to_string(),
            "decoding the answer: apps/v1 Deployment was not asked for"
        );
        let identity = serde_json::json!({"metadata": {"name": "d"}});
        assert_eq!(answer.identity().unwrap(), identity);

        // A field of another version, a patch, another kind's answer.
        deployment["spec"]["color"] = "red".into();
        request.body = deployment.into();
        assert_eq!(encoded(&request).0, "application/json");
        request.verb = Verb::Patch(PatchKind::Merge);
        assert_eq!(encoded(&request).0, "application/merge-patch+json");
        request.subresource = "scale".into();
        assert!(message(&request).is_none());
    }

    #[test]
    fn paths() {
        let (pod, deployment) = (Resource::of::<Pod>, Resource::of::<Deployment>);
        check(
            Verb::Get,
            pod(),
            "ns",
            "a",
            "",
            "/api/v1/namespaces/ns/pods/a",
        );
        check(
            Verb::Create,
            pod(),
            "ns",
            "a",
            "",
            "/api/v1/namespaces/ns/pods",
        );
        check(
            Verb::Create,
            pod(),
            "ns",
            "a",
            "binding",
            "/api/v1/namespaces/ns/pods/a/binding",
        );
        check(
            Verb::Update,
            deployment(),
            "ns",
            "d",
            "status",
            "/apis/apps/v1/namespaces/ns/deployments/d/status",
        );
        check(
            Verb::List,
            pod(),
            "",
            "",
            "",
            "/api/v1/pods?labelSelector=a%3Db%2Cc",
        );
    }
}
