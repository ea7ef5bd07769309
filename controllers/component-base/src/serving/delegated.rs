//! Asking the API server who a token belongs to (TokenReview) and what a user may do (SubjectAccessReview), with caches.
//!
//! An answer is kept for a time to live; failures to ask are not kept. Upstream: `k8s.io/apiserver/plugin/pkg/{authenticator,authorizer}`.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};

use super::{Attributes, UserInfo};

/// Answers kept at once; the cache is emptied of expired ones, then of all, when it is full.
const MAX_CACHED: usize = 8192;
/// How long the API server may take (upstream's client timeout).
const TIMEOUT: Duration = Duration::from_secs(10);

struct Cache<K, V> {
    entries: Mutex<HashMap<K, (Instant, V)>>,
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    fn new() -> Self {
        Self {
            entries: Mutex::new(HashMap::new()),
        }
    }
    fn get(&self, key: &K) -> Option<V> {
        let entries = self
            .entries
            .lock()
            .expect("no panic while the lock is held");
        entries
            .get(key)
            .filter(|(until, _)| *until > Instant::now())
            .map(|(_, value)| value.clone())
    }
    fn put(&self, key: K, value: V, ttl: Duration) {
        let now = Instant::now();
        let mut entries = self
            .entries
            .lock()
            .expect("no panic while the lock is held");
        if entries.len() >= MAX_CACHED {
            entries.retain(|_, (until, _)| *until > now);
            if entries.len() >= MAX_CACHED {
                entries.clear();
            }
        }
        entries.insert(key, (now + ttl, value));
    }
}

/// Bearer tokens by TokenReview.
pub struct DelegatedAuthentication {
    api: Api<TokenReview>,
    audiences: Option<Vec<String>>,
    ttl: Duration,
    cache: Cache<String, Option<UserInfo>>,
}

impl DelegatedAuthentication {
    /// `ttl` is `--authentication-token-webhook-cache-ttl`: 10 s for control plane components, 2 min for the kubelet.
    pub fn new(client: Client, ttl: Duration) -> Self {
        Self {
            api: Api::all(client),
            audiences: None,
            ttl,
            cache: Cache::new(),
        }
    }

    /// The user of a token; `None` when the token is not good or nobody could be asked.
    pub async fn review(&self, token: &str) -> Option<UserInfo> {
        let key = token.to_string();
        if let Some(known) = self.cache.get(&key) {
            return known;
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: key.clone(),
                audiences: self.audiences.clone(),
            },
            ..TokenReview::default()
        };
        let answer =
            tokio::time::timeout(TIMEOUT, self.api.create(&PostParams::default(), &review)).await;
        let status = match answer {
            Ok(Ok(review)) => review.status?,
            Ok(Err(error)) => {
                tracing::warn!(%error, "Unable to authenticate the request: TokenReview failed");
                return None;
            }
            Err(_) => {
                tracing::warn!("Unable to authenticate the request: TokenReview timed out");
                return None;
            }
        };
        let user = status
            .user
            .filter(|_| status.authenticated == Some(true))
            .map(|user| UserInfo {
                username: user.username.unwrap_or_default(),
                uid: user.uid.unwrap_or_default(),
                groups: user.groups.unwrap_or_default(),
                extra: user.extra.unwrap_or_default(),
            });
        self.cache.put(key, user.clone(), self.ttl);
        user
    }
}

/// Permissions by SubjectAccessReview.
pub struct DelegatedAuthorization {
    api: Api<SubjectAccessReview>,
    allow_ttl: Duration,
    deny_ttl: Duration,
    cache: Cache<(UserInfo, Attributes), Result<(), String>>,
}

impl DelegatedAuthorization {
    /// Times to live: 10 s and 10 s for control plane components, 5 min and 30 s for the kubelet.
    pub fn new(client: Client, allow_ttl: Duration, deny_ttl: Duration) -> Self {
        Self {
            api: Api::all(client),
            allow_ttl,
            deny_ttl,
            cache: Cache::new(),
        }
    }

    /// Whether a user may; the error is the reason for people.
    ///
    /// # Errors
    /// When the user may not, or nobody could be asked (a retry may help then).
    pub async fn review(&self, user: &UserInfo, attributes: &Attributes) -> Result<(), String> {
        let key = (user.clone(), attributes.clone());
        if let Some(known) = self.cache.get(&key) {
            return known;
        }
        let review = SubjectAccessReview {
            spec: spec(user, attributes),
            ..SubjectAccessReview::default()
        };
        let status =
            match tokio::time::timeout(TIMEOUT, self.api.create(&PostParams::default(), &review))
                .await
            {
                Ok(Ok(review)) => review.status.unwrap_or_default(),
                Ok(Err(error)) => {
                    tracing::warn!(%error, "SubjectAccessReview failed");
                    return Err("authorization could not be checked".into());
                }
                Err(_) => return Err("authorization check timed out".into()),
            };
        let answer = if status.allowed {
            Ok(())
        } else {
            Err(status.reason.unwrap_or_default())
        };
        self.cache.put(
            key,
            answer.clone(),
            if answer.is_ok() {
                self.allow_ttl
            } else {
                self.deny_ttl
            },
        );
        answer
    }
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
