//! Who asks, and whether they may: the middleware in front of every route of a secure server.
//!
//! Authentication: client certificate, then bearer token, then anonymous. Authorization: paths that are open to all, then
//! `system:masters`, then the API server's word. Upstream: `k8s.io/apiserver/pkg/endpoints/filters`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{Method, Request, StatusCode, header};
use serde_json::json;

use super::{DelegatedAuthentication, DelegatedAuthorization, Peer};

/// A user as the API knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct UserInfo {
    /// The name.
    pub username: String,
    /// The UID, empty when unknown.
    pub uid: String,
    /// The groups.
    pub groups: Vec<String>,
    /// Extra attributes.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// Nobody in particular.
    pub fn anonymous() -> Self {
        Self {
            username: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            ..Self::default()
        }
    }

    /// The user a client certificate names: CN is the user, each O a group. `None` when it names nobody.
    pub fn from_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let subject = certificate.subject();
        let username = subject
            .iter_common_name()
            .next()?
            .as_str()
            .ok()?
            .to_string();
        if username.is_empty() {
            return None;
        }
        let mut groups: Vec<String> = subject
            .iter_organization()
            .filter_map(|o| o.as_str().ok())
            .map(ToString::to_string)
            .collect();
        groups.push("system:authenticated".into());
        Some(Self {
            username,
            groups,
            ..Self::default()
        })
    }
}

/// What is asked for, as authorization sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Attributes {
    /// A path of a component.
    NonResource {
        /// `get`, `post`, …
        verb: String,
        /// The path.
        path: String,
    },
    /// Something that stands for a resource, as the kubelet's `nodes/proxy`.
    Resource {
        /// `get`, `create`, …
        verb: String,
        /// Empty for the core group.
        group: String,
        /// `*` or a version.
        version: String,
        /// The plural name.
        resource: String,
        /// Empty for none.
        subresource: String,
        /// Empty for cluster resources.
        namespace: String,
        /// Empty for all.
        name: String,
    },
}

impl Attributes {
    /// The attributes of a plain path.
    pub fn non_resource(method: &Method, path: &str) -> Self {
        Self::NonResource {
            verb: method.as_str().to_lowercase(),
            path: path.to_string(),
        }
    }
}

type AttributesOf = dyn Fn(&http::request::Parts) -> Vec<Attributes> + Send + Sync;

/// Who decides what a known user may do.
#[expect(clippy::large_enum_variant, reason = "one a server, made at start")]
pub enum Authorization {
    /// Everybody may do everything (`AlwaysAllow`).
    AlwaysAllow,
    /// Only open paths and `system:masters` pass.
    AllowNone,
    /// The API server is asked by SubjectAccessReview (`Webhook`).
    Delegated(DelegatedAuthorization),
}

/// Who may ask for what. Build with [`AccessControl::new`].
pub struct AccessControl {
    tokens: Option<DelegatedAuthentication>,
    anonymous: bool,
    authorization: Authorization,
    always_allow_paths: Vec<String>,
    attributes: Arc<AttributesOf>,
}

impl AccessControl {
    /// `tokens` verifies bearer tokens; `anonymous` lets a request without credentials through as `system:anonymous`.
    pub fn new(
        tokens: Option<DelegatedAuthentication>,
        anonymous: bool,
        authorization: Authorization,
    ) -> Self {
        Self {
            tokens,
            anonymous,
            authorization,
            always_allow_paths: Vec::new(),
            attributes: Arc::new(|parts| {
                vec![Attributes::non_resource(&parts.method, parts.uri.path())]
            }),
        }
    }

    /// Paths everybody may get, without credentials: `/healthz`, or `/healthz/*` for all below.
    pub fn always_allow_paths(
        mut self,
        paths: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.always_allow_paths = paths.into_iter().map(Into::into).collect();
        self
    }

    /// How a request maps to attributes; one of several that are allowed is enough.
    pub fn attributes(
        mut self,
        of: impl Fn(&http::request::Parts) -> Vec<Attributes> + Send + Sync + 'static,
    ) -> Self {
        self.attributes = Arc::new(of);
        self
    }

    fn is_open(&self, path: &str) -> bool {
        self.always_allow_paths
            .iter()
            .any(|open| match open.strip_suffix('*') {
                Some(prefix) => path.starts_with(prefix),
                None => open == path || open.strip_prefix('/') == path.strip_prefix('/'),
            })
    }

    async fn authenticate(&self, parts: &http::request::Parts) -> Result<UserInfo, StatusCode> {
        if let Some(user) = parts
            .extensions
            .get::<Peer>()
            .and_then(|peer| peer.certificate.clone())
        {
            return Ok(user);
        }
        let token = parts
            .headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, token)| {
                scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty()
            })
            .map(|(_, token)| token.trim().to_string());
        match (token, &self.tokens) {
            (Some(token), Some(tokens)) => {
                tokens.review(&token).await.ok_or(StatusCode::UNAUTHORIZED)
            }
            (Some(_), None) => Err(StatusCode::UNAUTHORIZED),
            (None, _) if self.anonymous => Ok(UserInfo::anonymous()),
            (None, _) => Err(StatusCode::UNAUTHORIZED),
        }
    }

    async fn authorize(
        &self,
        user: &UserInfo,
        parts: &http::request::Parts,
    ) -> Result<(), (StatusCode, String)> {
        if matches!(self.authorization, Authorization::AlwaysAllow)
            || user.groups.iter().any(|g| g == "system:masters")
        {
            return Ok(());
        }
        let attributes = (self.attributes)(parts);
        let mut reason = String::new();
        if let Authorization::Delegated(delegated) = &self.authorization {
            for wanted in &attributes {
                match delegated.review(user, wanted).await {
                    Ok(()) => return Ok(()),
                    Err(why) => reason = why,
                }
            }
        }
        let wanted = match attributes.last() {
            Some(Attributes::NonResource { verb, path }) => format!("verb={verb}, path={path}"),
            Some(Attributes::Resource {
                verb,
                resource,
                subresource,
                ..
            }) => {
                format!("verb={verb}, resource={resource}, subresource={subresource}")
            }
            None => "nothing".to_string(),
        };
        Err((
            StatusCode::FORBIDDEN,
            format!("Forbidden (user={}, {wanted}) {reason}", user.username),
        ))
    }
}

/// The middleware: passes the request on with its [`UserInfo`] as an extension, or answers 401 or 403.
pub(super) async fn check(
    access: Arc<AccessControl>,
    request: Request<Body>,
    next: Next,
) -> Response {
    let (mut parts, body) = request.into_parts();
    if !access.is_open(parts.uri.path()) {
        let user = match access.authenticate(&parts).await {
            Ok(user) => user,
            Err(status) => return refuse(status, "Unauthorized", "Unauthorized"),
        };
        if let Err((status, message)) = access.authorize(&user, &parts).await {
            return refuse(status, "Forbidden", message.trim());
        }
        parts.extensions.insert(user);
    }
    next.run(Request::from_parts(parts, body)).await
}

fn refuse(status: StatusCode, reason: &str, message: &str) -> Response {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": status.as_u16(),
    });
    (status, axum::Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer(access: AccessControl, path: &str) -> StatusCode {
        let access = Arc::new(access);
        let router =
            axum::Router::new()
                .fallback(|| async { "ok" })
                .layer(axum::middleware::from_fn(move |request, next| {
                    check(access.clone(), request, next)
                }));
        let request = Request::get(path).body(Body::empty()).unwrap();
        tower::ServiceExt::oneshot(router, request)
            .await
            .unwrap()
            .status()
    }

    #[tokio::test]
    async fn open_paths_and_strangers() {
        let closed = || {
            AccessControl::new(None, false, Authorization::AlwaysAllow)
                .always_allow_paths(["/healthz", "/livez/*"])
        };
        assert_eq!(answer(closed(), "/healthz").await, 200);
        assert_eq!(answer(closed(), "/livez/ping").await, 200);
        assert_eq!(answer(closed(), "/metrics").await, 401);
        let open = AccessControl::new(None, true, Authorization::AlwaysAllow);
        assert_eq!(answer(open, "/metrics").await, 200);
    }
}
