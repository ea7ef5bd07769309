//! What a bootstrap token Secret says. Shared by the bootstrap signer and the token cleaner. Pure.
//!
//! Upstream: k8s.io/cluster-bootstrap/util/secrets, v1.36.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;

/// The type of these Secrets.
pub const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
/// The namespace they count in.
pub const NAMESPACE: &str = "kube-system";
const NAME_PREFIX: &str = "bootstrap-token-";

/// Whether a token still holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// It has no end.
    Never,
    /// It ends in this time.
    In(Duration),
    /// It is over, or nobody can read when it ends.
    Expired,
}

/// A text of the Secret.
pub fn data<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    let bytes = &secret.data.as_ref()?.get(key)?.0;
    std::str::from_utf8(bytes)
        .ok()
        .filter(|text| !text.is_empty())
}

/// When the token ends.
pub fn expiry(secret: &Secret, now: Timestamp) -> Expiry {
    let Some(text) = data(secret, "expiration") else {
        return Expiry::Never;
    };
    let Ok(end) = text.parse::<Timestamp>() else {
        return Expiry::Expired;
    };
    match Duration::try_from(end.duration_since(now)) {
        Ok(left) if !left.is_zero() => Expiry::In(left),
        _ => Expiry::Expired,
    }
}

/// Id and secret of a token that may sign the cluster information; `None` for any other.
pub fn signing_token(secret: &Secret, now: Timestamp) -> Option<(&str, &str)> {
    if secret.type_.as_deref() != Some(SECRET_TYPE) {
        return None;
    }
    let named = secret.metadata.name.as_deref()?.strip_prefix(NAME_PREFIX)?;
    let well_formed = named.len() == 6
        && named
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let (id, value) = (data(secret, "token-id")?, data(secret, "token-secret")?);
    let allowed = data(secret, "usage-bootstrap-signing") == Some("true");
    (well_formed && id == named && allowed && expiry(secret, now) != Expiry::Expired)
        .then_some((id, value))
}
