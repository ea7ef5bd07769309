//! Service account tokens of pods: asked for once, kept in memory, renewed long before they expire.
//! Upstream: pkg/kubelet/token/token_manager.go.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};

use crate::source::{ObjectSource, ServiceAccountToken, SourceError, TokenRequest};

/// A token older than this is renewed however long it would live.
const MAX_TTL: SignedDuration = SignedDuration::from_hours(24);
/// A token is renewed when this share of its life is left.
const LEFT_PERCENT: i64 = 20;
/// After a renewal that the server refused. Upstream asks again with the pod's next sync, which comes about as often.
const RETRY: SignedDuration = SignedDuration::from_mins(1);

/// Tokens by what was asked. Bounded by the pods of the node: [`TokenCache::forget_pod`].
#[derive(Debug, Default)]
pub(crate) struct TokenCache {
    tokens: Mutex<HashMap<TokenRequest, Cached>>,
}

#[derive(Clone, Debug)]
struct Cached {
    token: ServiceAccountToken,
    /// Not asked for again before.
    renew_at: Timestamp,
}

impl TokenCache {
    /// The cached token while it is young; else a new one. If the server refuses, an old token serves until it expires.
    pub async fn get(
        &self,
        source: &dyn ObjectSource,
        request: &TokenRequest,
        now: Timestamp,
    ) -> Result<ServiceAccountToken, SourceError> {
        if let Some(token) = self.young(request, now) {
            return Ok(token);
        }
        let answer = source.service_account_token(request).await;
        self.keep(request, answer, now)
    }

    fn young(&self, request: &TokenRequest, now: Timestamp) -> Option<ServiceAccountToken> {
        let tokens = self.lock();
        let cached = tokens.get(request)?;
        (now < cached.renew_at && now <= cached.token.expires_at).then(|| cached.token.clone())
    }

    /// What the server's answer makes of the token that was cached.
    fn keep(
        &self,
        request: &TokenRequest,
        answer: Result<ServiceAccountToken, SourceError>,
        now: Timestamp,
    ) -> Result<ServiceAccountToken, SourceError> {
        let mut tokens = self.lock();
        let error = match answer {
            Ok(token) => {
                let cached = Cached {
                    token: token.clone(),
                    renew_at: renew_at(&token),
                };
                tokens.insert(request.clone(), cached);
                return Ok(token);
            }
            Err(error) => error,
        };
        let Some(old) = tokens.get_mut(request) else {
            return Err(error);
        };
        let again = now.saturating_add(RETRY).unwrap_or(now);
        old.renew_at = old.renew_at.max(again);
        if now > old.token.expires_at {
            return Err(error);
        }
        tracing::error!(namespace = request.namespace, service_account = request.service_account, %error, "Couldn't update token");
        Ok(old.token.clone())
    }

    /// When the first of a pod's tokens wants renewal.
    pub fn next_renewal(&self, pod_uid: &str) -> Option<Timestamp> {
        self.lock()
            .iter()
            .filter(|(r, _)| r.pod_uid == pod_uid)
            .map(|(_, cached)| cached.renew_at)
            .min()
    }

    /// Forgets what serves nobody any more.
    pub fn drop_expired(&self, now: Timestamp) {
        self.lock()
            .retain(|_, cached| now <= cached.token.expires_at);
    }

    pub fn forget_pod(&self, pod_uid: &str) {
        self.lock().retain(|request, _| request.pod_uid != pod_uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TokenRequest, Cached>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// At 80 % of its lifetime, or 24 h after it was issued, whichever comes first.
// DIFFERS: upstream subtracts up to 10 s of jitter at random; ours comes from the issue times themselves,
// which already differ from pod to pod.
fn renew_at(token: &ServiceAccountToken) -> Timestamp {
    let Some(lifetime) = token.expiration_seconds.filter(|s| *s > 0) else {
        return token.expires_at;
    };
    let before = |end: Timestamp, seconds: i64| {
        end.saturating_sub(SignedDuration::from_secs(seconds))
            .unwrap_or(end)
    };
    let issued_at = before(token.expires_at, lifetime);
    let oldest = issued_at
        .saturating_add(MAX_TTL)
        .unwrap_or(token.expires_at);
    oldest.min(before(
        token.expires_at,
        lifetime.saturating_mul(LEFT_PERCENT) / 100,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renews_at_four_fifths_or_a_day() {
        let at = |s: i64| Timestamp::from_second(1_000_000 + s).unwrap();
        for (lifetime, expect) in [
            (Some(3600), 2880),
            (Some(600), 480),
            (Some(7 * 86400), 86400),
            (Some(100_000), 80_000),
            (None, 3600),
        ] {
            let expires = lifetime.unwrap_or(3600);
            let token = ServiceAccountToken {
                token: String::new(),
                expires_at: at(expires),
                expiration_seconds: lifetime,
            };
            assert_eq!(renew_at(&token), at(expect), "{lifetime:?}");
        }
    }

    #[test]
    fn a_refused_renewal_is_asked_for_again_after_a_while() {
        let at = |s: i64| Timestamp::from_second(1_000_000 + s).unwrap();
        let request = TokenRequest {
            namespace: "ns".to_owned(),
            service_account: "default".to_owned(),
            service_account_uid: None,
            audiences: Vec::new(),
            expiration_seconds: Some(600),
            pod_name: "p".to_owned(),
            pod_uid: "uid".to_owned(),
        };
        let token = |name: &str, expires: i64| ServiceAccountToken {
            token: name.to_owned(),
            expires_at: at(expires),
            expiration_seconds: Some(600),
        };
        let refused = || {
            Err(SourceError::Refused {
                code: 503,
                message: "away".to_owned(),
            })
        };
        let cache = TokenCache::default();
        cache.keep(&request, Ok(token("old", 600)), at(0)).unwrap();
        assert_eq!(cache.next_renewal("uid"), Some(at(480)));
        assert!(cache.young(&request, at(480)).is_none());
        let served = cache.keep(&request, refused(), at(480)).unwrap();
        assert_eq!(served.token, "old");
        // Neither the pod's next sync nor its volumes ask before.
        assert_eq!(cache.next_renewal("uid"), Some(at(540)));
        assert!(cache.young(&request, at(539)).is_some());
        assert!(cache.young(&request, at(540)).is_none());
        assert!(cache.keep(&request, refused(), at(590)).is_ok());
        // What has expired serves nobody.
        assert!(cache.young(&request, at(601)).is_none());
        assert!(cache.keep(&request, refused(), at(601)).is_err());
        assert_eq!(cache.next_renewal("uid"), Some(at(661)));
        cache
            .keep(&request, Ok(token("new", 1220)), at(661))
            .unwrap();
        assert_eq!(cache.young(&request, at(662)).unwrap().token, "new");
    }
}
