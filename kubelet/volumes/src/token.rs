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

/// Tokens by what was asked. Bounded by the pods of the node: [`TokenCache::forget_pod`].
#[derive(Debug, Default)]
pub(crate) struct TokenCache {
    tokens: Mutex<HashMap<TokenRequest, ServiceAccountToken>>,
}

impl TokenCache {
    /// The cached token while it is young; else a new one. If the server refuses, an old token serves until it expires.
    pub async fn get(
        &self,
        source: &dyn ObjectSource,
        request: &TokenRequest,
        now: Timestamp,
    ) -> Result<ServiceAccountToken, SourceError> {
        let cached = self.lock().get(request).cloned();
        if let Some(token) = &cached
            && now < renew_at(token)
        {
            return Ok(token.clone());
        }
        match source.service_account_token(request).await {
            Ok(token) => {
                self.lock().insert(request.clone(), token.clone());
                Ok(token)
            }
            Err(error) => match cached {
                Some(token) if now <= token.expires_at => {
                    tracing::error!(namespace = request.namespace, service_account = request.service_account, %error, "Couldn't update token");
                    Ok(token)
                }
                _ => Err(error),
            },
        }
    }

    /// When the first of a pod's tokens wants renewal.
    pub fn next_renewal(&self, pod_uid: &str) -> Option<Timestamp> {
        self.lock()
            .iter()
            .filter(|(r, _)| r.pod_uid == pod_uid)
            .map(|(_, t)| renew_at(t))
            .min()
    }

    /// Forgets what serves nobody any more.
    pub fn drop_expired(&self, now: Timestamp) {
        self.lock().retain(|_, token| now <= token.expires_at);
    }

    pub fn forget_pod(&self, pod_uid: &str) {
        self.lock().retain(|request, _| request.pod_uid != pod_uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TokenRequest, ServiceAccountToken>> {
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
}
