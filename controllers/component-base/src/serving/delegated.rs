//! Asking the API server who a token belongs to (TokenReview) and what a user may do (SubjectAccessReview).
//!
//! What was asked before is not asked again for a time to live, failures excepted; see [`super::reviews`] for the bounds. Upstream:
//! `k8s.io/apiserver/plugin/pkg/{authenticator,authorizer}`.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::connections::group;
use super::metrics::{AUTHENTICATION, AUTHORIZATION, Asked, TOKENS};
use super::reviews::{Answer, CacheLimits, Digest, Digester, FlightLimits, NoAnswer, Reviews};
use super::{Attributes, UserInfo};

/// How long the API server may take (upstream's client timeout).
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest token that is looked at, in bytes. A service account's has some 1,200, one of an identity provider with 200 groups 10 KiB.
pub(super) const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Upstream: `maxControlledAttrCacheSize` for the bytes of an entry, 8192 entries in the authorizer's cache.
const CACHE: CacheLimits = CacheLimits {
    entries: 8192,
    bytes: 4 * 1024 * 1024,
    entry_bytes: 10_000,
};
/// Questions about tokens: an address may have no more than a part of them.
const TOKEN_FLIGHTS: FlightLimits = FlightLimits {
    total: 32,
    per_owner: 8,
    waiting: 512,
};
/// Questions about users: each has a part of them.
const ACCESS_FLIGHTS: FlightLimits = FlightLimits {
    total: 128,
    per_owner: 16,
    waiting: 512,
};

/// Bearer tokens by TokenReview.
pub struct DelegatedAuthentication {
    api: Api<TokenReview>,
    ttl: Duration,
    digester: Digester,
    reviews: Reviews<IpAddr, Option<UserInfo>>,
}

impl DelegatedAuthentication {
    /// `ttl` is `--authentication-token-webhook-cache-ttl`: 10 s for control plane components, 2 min for the kubelet.
    pub fn new(client: Client, ttl: Duration) -> Self {
        Self {
            api: Api::all(client),
            ttl,
            digester: Digester::new(),
            reviews: Reviews::new(TOKEN_FLIGHTS, CACHE),
        }
    }

    /// The user of a token that came from an address; `None` when the token is not good.
    ///
    /// # Errors
    /// When nobody could be asked, or too much is being asked at once; a retry may help.
    pub(super) async fn review(
        &self,
        token: &str,
        from: IpAddr,
    ) -> Result<Option<UserInfo>, NoAnswer> {
        if token.len() > MAX_TOKEN_BYTES {
            return Ok(None);
        }
        let began = Instant::now();
        let question = self.digester.digest(token.as_bytes());
        if let Some(known) = self.reviews.known(&question) {
            TOKENS.looked_up(true, began.elapsed());
            return Ok(known);
        }
        let _blocked = TOKENS.blocked();
        let (api, ttl, token) = (self.api.clone(), self.ttl, token.to_string());
        let answer = self
            .reviews
            .answer(question, group(from), move || ask_token(api, token, ttl))
            .await;
        TOKENS.looked_up(false, began.elapsed());
        answer
    }
}

async fn ask_token(
    api: Api<TokenReview>,
    token: String,
    ttl: Duration,
) -> Option<Answer<Option<UserInfo>>> {
    let review = TokenReview {
        spec: TokenReviewSpec {
            token,
            audiences: None,
        },
        ..TokenReview::default()
    };
    let in_flight = TOKENS.in_flight();
    let status = match create(&api, &review, &AUTHENTICATION).await {
        Ok(review) => review.status,
        Err(error) => {
            tracing::warn!(
                error,
                "Unable to authenticate the request: TokenReview failed"
            );
            None
        }
    };
    drop(in_flight);
    // Upstream counts what the API server says of a token it does not know as an error, too.
    let told = |status: &TokenReviewStatus| status.error.as_deref().unwrap_or("").is_empty();
    TOKENS.fetched(status.as_ref().is_some_and(told));
    let status = status?;
    let user = status
        .user
        .filter(|_| status.authenticated == Some(true))
        .map(|user| UserInfo {
            username: user.username.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        });
    Some(Answer {
        bytes: user.as_ref().map_or(0, user_bytes),
        good: user.is_some(),
        value: user,
        ttl,
    })
}

/// Asks the API server and counts it; an error is for the log.
async fn create<K>(api: &Api<K>, review: &K, asked: &Asked) -> Result<K, String>
where
    K: Clone + DeserializeOwned + Serialize + Debug,
{
    let began = Instant::now();
    let post = PostParams::default();
    let answer = tokio::time::timeout(TIMEOUT, api.create(&post, review)).await;
    let code = match &answer {
        Ok(Ok(_)) => Some(http::StatusCode::CREATED.as_u16()),
        Ok(Err(kube::Error::Api(status))) => Some(status.code),
        Ok(Err(_)) | Err(_) => None,
    };
    asked.record(code, began.elapsed());
    match answer {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {TIMEOUT:?}")),
    }
}

fn user_bytes(user: &UserInfo) -> usize {
    let list = |texts: &[String]| texts.iter().map(|t| t.len() + 24).sum::<usize>();
    let extra = |extra: &BTreeMap<String, Vec<String>>| {
        let each = extra
            .iter()
            .map(|(key, values)| key.len() + 48 + list(values));
        each.sum::<usize>()
    };
    user.username.len() + user.uid.len() + list(&user.groups) + extra(&user.extra)
}

/// Permissions by SubjectAccessReview.
pub struct DelegatedAuthorization {
    api: Api<SubjectAccessReview>,
    allow_ttl: Duration,
    deny_ttl: Duration,
    digester: Digester,
    /// `Err` is the reason for a refusal.
    reviews: Reviews<Digest, Result<(), String>>,
}

impl DelegatedAuthorization {
    /// Times to live: 10 s and 10 s for control plane components, 5 min and 30 s for the kubelet.
    pub fn new(client: Client, allow_ttl: Duration, deny_ttl: Duration) -> Self {
        Self {
            api: Api::all(client),
            allow_ttl,
            deny_ttl,
            digester: Digester::new(),
            reviews: Reviews::new(ACCESS_FLIGHTS, CACHE),
        }
    }

    /// Whether a user may; the inner error is the reason why not.
    ///
    /// # Errors
    /// When nobody could be asked, or too much is being asked at once; a retry may help.
    pub(super) async fn review(
        &self,
        user: &UserInfo,
        attributes: &Attributes,
    ) -> Result<Result<(), String>, NoAnswer> {
        let review = SubjectAccessReview {
            spec: spec(user, attributes),
            ..SubjectAccessReview::default()
        };
        let text = serde_json::to_vec(&review.spec).map_err(|_| NoAnswer::Failed)?;
        let question = self.digester.digest(&text);
        let owner = self.digester.digest(user.username.as_bytes());
        let (api, allow_ttl, deny_ttl) = (self.api.clone(), self.allow_ttl, self.deny_ttl);
        let ask = move || ask_access(api, review, allow_ttl, deny_ttl);
        self.reviews.answer(question, owner, ask).await
    }
}

async fn ask_access(
    api: Api<SubjectAccessReview>,
    review: SubjectAccessReview,
    allow_ttl: Duration,
    deny_ttl: Duration,
) -> Option<Answer<Result<(), String>>> {
    let status = match create(&api, &review, &AUTHORIZATION).await {
        Ok(review) => review.status.unwrap_or_default(),
        Err(error) => {
            tracing::warn!(error, "SubjectAccessReview failed");
            return None;
        }
    };
    let reason = status.reason.unwrap_or_default();
    Some(if status.allowed {
        Answer {
            value: Ok(()),
            bytes: 0,
            good: true,
            ttl: allow_ttl,
        }
    } else {
        Answer {
            bytes: reason.len(),
            value: Err(reason),
            good: false,
            ttl: deny_ttl,
        }
    })
}

fn spec(user: &UserInfo, attributes: &Attributes) -> SubjectAccessReviewSpec {
    let some = |text: &str| Some(text.to_string()).filter(|t| !t.is_empty());
    let mut spec = SubjectAccessReviewSpec {
        user: some(&user.username),
        uid: some(&user.uid),
        groups: Some(user.groups.clone()),
        extra: Some(user.extra.clone()).filter(|e| !e.is_empty()),
        ..SubjectAccessReviewSpec::default()
    };
    match attributes {
        Attributes::NonResource { verb, path } => {
            spec.non_resource_attributes = Some(NonResourceAttributes {
                path: some(path),
                verb: some(verb),
            });
        }
        Attributes::Resource {
            verb,
            group,
            version,
            resource,
            subresource,
            namespace,
            name,
        } => {
            spec.resource_attributes = Some(ResourceAttributes {
                verb: some(verb),
                group: some(group),
                version: some(version),
                resource: some(resource),
                subresource: some(subresource),
                namespace: some(namespace),
                name: some(name),
                ..ResourceAttributes::default()
            });
        }
    }
    spec
}
