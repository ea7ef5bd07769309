//! Who asks, and whether they may: the middleware in front of every route of a secure server.
//!
//! Authentication: client certificate, then bearer token (of the header, then of a WebSocket's subprotocols), then anonymous; credentials
//! that are no good make nobody anonymous. Only then authorization: groups that may do everything, paths that are open to all, then the API server's word. No route is looked up before.
//! Upstream: `k8s.io/apiserver/pkg/endpoints/filters`, `pkg/authentication/authenticatorfactory`, `pkg/server/options/authorization.go`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::body::Body;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{Method, Request, StatusCode, header};
use serde_json::json;

use super::connections::Standing;
use super::protocol_token::ProtocolToken;
use super::reviews::NoAnswer;
use super::{DelegatedAuthentication, DelegatedAuthorization, Peer};
use crate::clock::Clock;

const ANONYMOUS: &str = "system:anonymous";
/// When to ask again after a 429. Upstream: the same in its filter of requests in flight.
const RETRY_AFTER_SECONDS: &str = "1";

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
            username: ANONYMOUS.into(),
            groups: vec!["system:unauthenticated".into()],
            ..Self::default()
        }
    }

    /// Everybody who was authenticated is in this group. Upstream: `group.NewAuthenticatedGroupAdder`.
    fn authenticated(mut self) -> Self {
        const AUTHENTICATED: &str = "system:authenticated";
        const UNAUTHENTICATED: &str = "system:unauthenticated";
        let known = |g: &String| g == AUTHENTICATED || g == UNAUTHENTICATED;
        if self.username != ANONYMOUS && !self.groups.iter().any(known) {
            self.groups.push(AUTHENTICATED.to_string());
        }
        self
    }

    fn is_anonymous(&self) -> bool {
        self.username == ANONYMOUS
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
    /// Only open paths and groups that may do everything pass.
    AllowNone,
    /// The API server is asked by SubjectAccessReview (`Webhook`).
    Delegated(DelegatedAuthorization),
}

/// Who may ask for what. Build with [`AccessControl::new`].
pub struct AccessControl {
    tokens: Option<DelegatedAuthentication>,
    anonymous: bool,
    authorization: Authorization,
    always_allow_groups: Vec<String>,
    always_allow_paths: Vec<String>,
    clock: Clock,
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
            always_allow_groups: vec!["system:masters".into()],
            always_allow_paths: Vec::new(),
            clock: Clock::real(),
            attributes: Arc::new(|parts| {
                vec![Attributes::non_resource(&parts.method, parts.uri.path())]
            }),
        }
    }

    /// Groups that may do everything, without a question to the API server; `system:masters` if nothing is said.
    pub fn always_allow_groups(
        mut self,
        groups: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.always_allow_groups = groups.into_iter().map(Into::into).collect();
        self
    }

    /// The clock certificates are judged by.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Paths everybody may get, without credentials (bad ones are refused all the same): `/healthz`, or `/healthz/*` for all below.
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

    /// Who asks. A token that was good is taken out of the request.
    async fn authenticate(&self, parts: &mut http::request::Parts) -> Result<UserInfo, Refusal> {
        let peer = parts.extensions.get::<Peer>().cloned();
        let mut failed = false;
        if let Some(certificate) = peer.as_ref().and_then(|peer| peer.certificate.as_ref()) {
            match certificate.user(self.clock.now()) {
                Ok(Some(user)) => return Ok(user.authenticated()),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "Unable to authenticate the request");
                    failed = true;
                }
            }
        }
        // Without anybody to ask tokens are not looked at, as upstream.
        if let Some(tokens) = &self.tokens {
            let from = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |p| p.address.ip());
            if let Some(token) = bearer_token(&parts.headers) {
                match tokens.review(token, from).await {
                    Ok(Some(user)) => {
                        parts.headers.remove(header::AUTHORIZATION);
                        return Ok(user.authenticated());
                    }
                    Err(NoAnswer::Busy) => return Err(Refusal::Busy),
                    Ok(None) | Err(NoAnswer::Failed) => failed = true,
                }
            }
            match ProtocolToken::of(&parts.headers) {
                Ok(None) => {}
                Ok(Some(found)) => match tokens.review(&found.token, from).await {
                    Ok(Some(user)) => {
                        found.strip(&mut parts.headers);
                        return Ok(user.authenticated());
                    }
                    Err(NoAnswer::Busy) => return Err(Refusal::Busy),
                    Ok(None) | Err(NoAnswer::Failed) => failed = true,
                },
                Err(error) => {
                    tracing::debug!(error, "Unable to authenticate the request");
                    failed = true;
                }
            }
        }
        if failed || !self.anonymous {
            return Err(Refusal::Unauthorized);
        }
        Ok(UserInfo::anonymous())
    }

    /// Whether the user may, and whether that is because of who it is.
    async fn authorize(
        &self,
        user: &UserInfo,
        parts: &http::request::Parts,
    ) -> Result<Grant, Refusal> {
        let grant = if user.is_anonymous() {
            Grant::ToAll
        } else {
            Grant::ToUser
        };
        if user
            .groups
            .iter()
            .any(|g| self.always_allow_groups.contains(g))
        {
            return Ok(grant);
        }
        if self.is_open(parts.uri.path()) {
            return Ok(Grant::ToAll);
        }
        if matches!(self.authorization, Authorization::AlwaysAllow) {
            return Ok(grant);
        }
        let attributes = (self.attributes)(parts);
        let mut reason = String::new();
        if let Authorization::Delegated(delegated) = &self.authorization {
            for wanted in &attributes {
                match delegated.review(user, wanted).await {
                    Ok(Ok(())) => return Ok(grant),
                    Ok(Err(why)) => reason = why,
                    Err(NoAnswer::Busy) => return Err(Refusal::Busy),
                    Err(NoAnswer::Failed) => {
                        let wanted = describe(Some(wanted));
                        return Err(Refusal::Unknown(format!(
                            "Authorization error (user={}, {wanted})",
                            user.username
                        )));
                    }
                }
            }
        }
        let wanted = describe(attributes.last());
        let message = format!("Forbidden (user={}, {wanted}) {reason}", user.username);
        Err(Refusal::Forbidden(message.trim().to_string()))
    }
}

/// Why a request was let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grant {
    /// This user may.
    ToUser,
    /// Anybody may.
    ToAll,
}

/// Why a request was not let through.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Unauthorized,
    Forbidden(String),
    /// Authorization could not be checked.
    Unknown(String),
    Busy,
}

fn describe(attributes: Option<&Attributes>) -> String {
    match attributes {
        Some(Attributes::NonResource { verb, path }) => format!("verb={verb}, path={path}"),
        Some(Attributes::Resource {
            verb,
            resource,
            subresource,
            ..
        }) => format!("verb={verb}, resource={resource}, subresource={subresource}"),
        None => "nothing".to_string(),
    }
}

/// The token of an `Authorization: Bearer` header. Upstream: `bearertoken.AuthenticateRequest`.
fn bearer_token(headers: &http::HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let mut words = value.trim().splitn(3, ' ');
    let scheme = words.next()?;
    words
        .next()
        .filter(|token| scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
}

/// The middleware: passes the request on with its [`UserInfo`] as an extension, or refuses it.
pub(super) async fn check(
    access: Arc<AccessControl>,
    request: Request<Body>,
    next: Next,
) -> Response {
    let (mut parts, body) = request.into_parts();
    let slot = parts.extensions.get::<Peer>().map(|p| p.slot.clone());
    let user = match access.authenticate(&mut parts).await {
        Ok(user) => user,
        Err(refusal) => {
            if let (Some(slot), Refusal::Unauthorized) = (&slot, &refusal) {
                slot.set_standing(Standing::Stranger);
            }
            return refusal.into_response();
        }
    };
    match access.authorize(&user, &parts).await {
        Ok(Grant::ToUser) => {
            if let Some(slot) = &slot {
                slot.set_standing(Standing::Trusted);
            }
        }
        Ok(Grant::ToAll) => {}
        Err(refusal) => return refusal.into_response(),
    }
    parts.extensions.insert(user);
    next.run(Request::from_parts(parts, body)).await
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, reason, message) = match self {
            Self::Unauthorized => (
                StatusCode::UNAUTHORIZED,
                "Unauthorized",
                "Unauthorized".into(),
            ),
            Self::Forbidden(message) => (StatusCode::FORBIDDEN, "Forbidden", message),
            Self::Unknown(message) => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message),
            Self::Busy => (
                StatusCode::TOO_MANY_REQUESTS,
                "TooManyRequests",
                "Too many requests, please try again later.".to_string(),
            ),
        };
        let body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": status.as_u16(),
        });
        let mut response = (status, axum::Json(body)).into_response();
        if status == StatusCode::TOO_MANY_REQUESTS {
            let seconds = http::HeaderValue::from_static(RETRY_AFTER_SECONDS);
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer(access: AccessControl, path: &str, token: Option<&str>) -> StatusCode {
        let access = Arc::new(access);
        let router =
            axum::Router::new()
                .fallback(|| async { "ok" })
                .layer(axum::middleware::from_fn(move |request, next| {
                    check(access.clone(), request, next)
                }));
        let mut request = Request::get(path);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, token);
        }
        let request = request.body(Body::empty()).unwrap();
        tower::ServiceExt::oneshot(router, request)
            .await
            .unwrap()
            .status()
    }

    #[tokio::test]
    async fn open_paths_and_strangers() {
        let open = || {
            AccessControl::new(None, true, Authorization::AllowNone)
                .always_allow_paths(["/healthz", "/livez/*"])
        };
        assert_eq!(answer(open(), "/healthz", None).await, 200);
        assert_eq!(answer(open(), "/livez/ping", None).await, 200);
        assert_eq!(answer(open(), "/metrics", None).await, 403);
        // No authenticator for tokens: they are not looked at.
        assert_eq!(answer(open(), "/healthz", Some("Bearer x")).await, 200);
        assert_eq!(answer(open(), "/metrics", Some("Bearer x")).await, 403);
        let closed = || {
            AccessControl::new(None, false, Authorization::AlwaysAllow)
                .always_allow_paths(["/healthz"])
        };
        assert_eq!(answer(closed(), "/healthz", None).await, 401);
        assert_eq!(answer(closed(), "/metrics", None).await, 401);
        let all = AccessControl::new(None, true, Authorization::AlwaysAllow);
        assert_eq!(answer(all, "/metrics", None).await, 200);
    }

    #[test]
    fn tokens_in_headers() {
        let check = |value: &'static str, expect: Option<&str>| {
            let mut headers = http::HeaderMap::new();
            headers.insert(header::AUTHORIZATION, http::HeaderValue::from_static(value));
            assert_eq!(bearer_token(&headers), expect, "{value}");
        };
        check("Bearer a.b", Some("a.b"));
        check("  bearer a.b ", Some("a.b"));
        check("Bearer a b", Some("a"));
        check("Bearer", None);
        check("Bearer  a", None);
        check("Basic a", None);
        check("", None);
        assert_eq!(bearer_token(&http::HeaderMap::new()), None);
    }

    #[test]
    fn the_authenticated_are_a_group() {
        let user = |name: &str, groups: &[&str]| UserInfo {
            username: name.into(),
            groups: groups.iter().map(ToString::to_string).collect(),
            ..UserInfo::default()
        };
        assert_eq!(
            user("a", &["b"]).authenticated().groups,
            ["b", "system:authenticated"]
        );
        let known = user("a", &["system:authenticated"]).authenticated();
        assert_eq!(known.groups, ["system:authenticated"]);
        let nobody = UserInfo::anonymous();
        assert_eq!(nobody.clone().authenticated(), nobody);
    }
}
