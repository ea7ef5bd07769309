//! A request of HTTP, read as what is done to which object.

use http::Method;
use http::request::Parts;
use kube::Resource;
use kube_protobuf::envelope;
use serde_json::Value;

use super::Refusal;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// One object is read.
    Get,
    /// All of a kind are.
    List,
    /// What happens to them is told.
    Watch,
    /// POST.
    Create,
    /// PUT.
    Update,
    /// RFC 7386.
    MergePatch,
    /// Upstream's strategic merge.
    StrategicPatch,
    /// Server-side apply: merged here as RFC 7386 does, created where it is not.
    Apply,
    /// One object is deleted.
    Delete,
    /// All of a kind are.
    DeleteCollection,
}

impl Verb {
    /// Whether it may change anything.
    pub fn writes(self) -> bool {
        !matches!(self, Self::Get | Self::List | Self::Watch)
    }
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// What is done.
    pub verb: Verb,
    /// Empty for the core group.
    pub group: String,
    /// As `v1`.
    pub version: String,
    /// As `pods`.
    pub plural: String,
    /// Empty for objects of the cluster, and for lists of all namespaces.
    pub namespace: String,
    /// Empty for lists, and where the server makes a name up.
    pub name: String,
    /// As `status`; empty for the object itself.
    pub subresource: String,
    /// As it was sent.
    pub query: Vec<(String, String)>,
    /// Null where there was none.
    pub body: Value,
}

impl Call {
    /// Of a kind, without query and body.
    pub fn new<K: Resource<DynamicType = ()>>(verb: Verb, namespace: &str, name: &str) -> Self {
        Self {
            verb,
            group: K::group(&()).into_owned(),
            version: K::version(&()).into_owned(),
            plural: K::plural(&()).into_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            subresource: String::new(),
            query: Vec::new(),
            body: Value::Null,
        }
    }

    /// The first value of a parameter of the query; empty without one.
    pub fn parameter(&self, name: &str) -> &str {
        let found = self.query.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value)
    }

    pub(super) fn api_version(&self) -> String {
        match self.group.is_empty() {
            true => self.version.clone(),
            false => format!("{}/{}", self.group, self.version),
        }
    }

    pub(super) fn parse(head: &Parts, body: &[u8]) -> Result<Self, Refusal> {
        let path = head.uri.path();
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let unknown = || {
            let message = format!("the server could not find the requested resource: {path}");
            Refusal::new(404, "NotFound", message)
        };
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return Err(unknown()),
        };
        let (namespace, rest) = match rest {
            // A namespace itself has these two.
            ["namespaces", _, "status" | "finalize"] => ("", rest),
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let (plural, name, subresource) = match rest {
            [plural] => (*plural, "", ""),
            [plural, name] => (*plural, *name, ""),
            [plural, name, subresource @ ..] => (*plural, *name, subresource[0]),
            [] => return Err(unknown()),
        };
        let query = head.uri.query().unwrap_or_default();
        let query: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect();
        let watch = query
            .iter()
            .any(|(key, value)| key == "watch" && (value == "true" || value == "1"));
        let content_type = head.headers.get(http::header::CONTENT_TYPE);
        let content_type = content_type
            .and_then(|t| t.to_str().ok())
            .unwrap_or_default();
        let body = decode(content_type, body)?;
        let mut name = name.to_owned();
        if head.method == Method::POST && name.is_empty() {
            name = body["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
        }
        Ok(Self {
            verb: verb(&head.method, watch, name.is_empty(), content_type)?,
            group: group.to_owned(),
            version: version.to_owned(),
            plural: plural.to_owned(),
            namespace: namespace.to_owned(),
            name,
            subresource: subresource.to_owned(),
            query,
            body,
        })
    }
}

fn verb(method: &Method, watch: bool, all: bool, content_type: &str) -> Result<Verb, Refusal> {
    Ok(match (method.as_str(), all) {
        ("GET", true) if watch => Verb::Watch,
        ("GET", true) => Verb::List,
        ("GET", false) => Verb::Get,
        ("POST", _) => Verb::Create,
        ("PUT", _) => Verb::Update,
        ("DELETE", true) => Verb::DeleteCollection,
        ("DELETE", false) => Verb::Delete,
        ("PATCH", _) => match content_type {
            "application/merge-patch+json" => Verb::MergePatch,
            "application/strategic-merge-patch+json" => Verb::StrategicPatch,
            "application/apply-patch+yaml" => Verb::Apply,
            other => {
                let message = format!("the body of the request was in an unknown format: {other}");
                return Err(Refusal::new(415, "UnsupportedMediaType", message));
            }
        },
        (other, _) => {
            let message = format!("{other} is not known");
            return Err(Refusal::new(405, "MethodNotAllowed", message));
        }
    })
}

fn decode(content_type: &str, body: &[u8]) -> Result<Value, Refusal> {
    let wrong = |error: String| Refusal::new(400, "BadRequest", error);
    if body.is_empty() {
        return Ok(Value::Null);
    }
    if !content_type.starts_with(kube_protobuf::CONTENT_TYPE) {
        return serde_json::from_slice(body).map_err(|error| wrong(error.to_string()));
    }
    let unknown = envelope::open(body).map_err(|error| wrong(error.to_string()))?;
    let (group, version) = unknown
        .api_version
        .split_once('/')
        .unwrap_or(("", unknown.api_version));
    let message = kube_protobuf::message(group, version, unknown.kind)
        .ok_or_else(|| wrong(format!("{} is no kind of {version}", unknown.kind)))?;
    let mut object: Value = kube_protobuf::from_slice(message, unknown.raw, true)
        .map_err(|error| wrong(error.to_string()))?;
    object["apiVersion"] = unknown.api_version.into();
    object["kind"] = unknown.kind.into();
    Ok(object)
}
