//! What is said to a plugin on its standard input, and what it answers.
//!
//! Pure. Upstream: `k8s.io/kubelet/pkg/apis/credentialprovider`, v1.37: group `credentialprovider.kubelet.k8s.io`, the same
//! fields in each version but for the account's, which only v1 has.

use std::collections::BTreeMap;
use std::time::Duration;

use component_base::duration::{self, DurationError};
use serde::{Deserialize, Serialize};

/// The version that knows tokens of service accounts.
pub const V1: &str = "credentialprovider.kubelet.k8s.io/v1";
/// All that are spoken, sorted.
pub const API_VERSIONS: [&str; 3] = [
    V1,
    "credentialprovider.kubelet.k8s.io/v1alpha1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
];
const RESPONSE: &str = "CredentialProviderResponse";

/// `CredentialProviderRequest`. Holds a token: not to be logged.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Request<'a> {
    kind: &'static str,
    api_version: &'a str,
    /// `domain/path`, without tag and digest.
    image: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    service_account_token: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    service_account_annotations: &'a BTreeMap<String, String>,
}

impl<'a> Request<'a> {
    pub fn new(
        api_version: &'a str,
        image: &'a str,
        token: &'a str,
        annotations: &'a BTreeMap<String, String>,
    ) -> Self {
        Self {
            kind: "CredentialProviderRequest",
            api_version,
            image,
            service_account_token: token,
            service_account_annotations: annotations,
        }
    }

    /// One line of JSON.
    pub fn encode(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec(self).expect("texts and maps of texts are always JSON");
        json.push(b'\n');
        json
    }
}

/// One credential of an answer.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    pub username: String,
    pub password: String,
}

impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig").finish_non_exhaustive()
    }
}

/// How far an answer reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheKeyType {
    Image,
    Registry,
    Global,
}

/// `CredentialProviderResponse`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub cache_key_type: CacheKeyType,
    /// `None`: the configuration's `defaultCacheDuration`. Zero: not to be kept.
    pub cache_duration: Option<Duration>,
    /// By what they open: `[scheme://]host[:port][/path]`, `*` in the host.
    pub auth: BTreeMap<String, AuthConfig>,
}

/// Why an answer is none. Never holds what the plugin said beyond kind, version and cache key type: it may be secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    #[error("error reading GVK from response: it is no JSON object with apiVersion and kind")]
    Meta,
    #[error(
        "apiVersion from credential plugin response did not match expected apiVersion:{expected}, actual apiVersion:{actual}"
    )]
    ApiVersion { expected: String, actual: String },
    #[error("failed to decode CredentialProviderResponse, unexpected Kind: {0:?}")]
    Kind(String),
    #[error("error decoding credential provider plugin response from stdout")]
    Decode,
    #[error("credential provider plugin did not return a valid cacheKeyType: {0}")]
    CacheKeyType(String),
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    kind: String,
    api_version: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wire {
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(default)]
    cache_key_type: String,
    cache_duration: Option<String>,
    auth: Option<BTreeMap<String, AuthConfig>>,
}

/// Reads an answer strictly; it must be of the version that was asked in.
///
/// # Errors
/// See [`ResponseError`].
pub fn decode(bytes: &[u8], api_version: &str) -> Result<Response, ResponseError> {
    let meta: Meta = serde_json::from_slice(bytes).map_err(|_| ResponseError::Meta)?;
    if meta.api_version != api_version {
        return Err(ResponseError::ApiVersion {
            expected: api_version.to_owned(),
            actual: meta.api_version,
        });
    }
    if meta.kind != RESPONSE {
        return Err(ResponseError::Kind(meta.kind));
    }
    let wire: Wire = serde_json::from_slice(bytes).map_err(|_| ResponseError::Decode)?;
    let cache_duration = match wire.cache_duration.as_deref().map(duration::parse) {
        None => None,
        Some(Ok(duration)) => Some(duration),
        // Over before it began.
        Some(Err(DurationError::Negative(_))) => Some(Duration::ZERO),
        Some(Err(_)) => return Err(ResponseError::Decode),
    };
    let cache_key_type = match wire.cache_key_type.as_str() {
        "Image" => CacheKeyType::Image,
        "Registry" => CacheKeyType::Registry,
        "Global" => CacheKeyType::Global,
        other => return Err(ResponseError::CacheKeyType(other.to_owned())),
    };
    Ok(Response {
        cache_key_type,
        cache_duration,
        auth: wire.auth.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests() {
        let said = |token: &str, annotations: &[(&str, &str)]| {
            let annotations = annotations
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect();
            String::from_utf8(Request::new(V1, "r.io/a", token, &annotations).encode()).unwrap()
        };
        assert_eq!(
            said("", &[]),
            "{\"kind\":\"CredentialProviderRequest\",\"apiVersion\":\"credentialprovider.kubelet.k8s.io/v1\",\"image\":\"r.io/a\"}\n"
        );
        assert!(said("t", &[("k", "v")]).ends_with(
            "\"image\":\"r.io/a\",\"serviceAccountToken\":\"t\",\"serviceAccountAnnotations\":{\"k\":\"v\"}}\n"
        ));
    }

    fn answer(rest: &str) -> Result<Response, String> {
        let text = format!(r#"{{"kind":"{RESPONSE}","apiVersion":"{V1}"{rest}}}"#);
        decode(text.as_bytes(), V1).map_err(|e| e.to_string())
    }

    #[test]
    fn answers() {
        let got = answer(
            r#","cacheKeyType":"Registry","cacheDuration":"5m","auth":{"r.io":{"username":"u","password":"p"}}"#,
        )
        .unwrap();
        assert_eq!(got.cache_key_type, CacheKeyType::Registry);
        assert_eq!(got.cache_duration, Some(Duration::from_secs(300)));
        assert_eq!(got.auth["r.io"].password, "p");
        assert!(!format!("{got:?}").contains("\"p\""));
        let got = answer(r#","cacheKeyType":"Image","cacheDuration":null,"auth":null"#).unwrap();
        assert_eq!((got.cache_duration, got.auth.len()), (None, 0));
        let got = answer(r#","cacheKeyType":"Global","cacheDuration":"-1s""#).unwrap();
        assert_eq!(got.cache_duration, Some(Duration::ZERO));
    }

    #[test]
    fn what_is_no_answer() {
        let decode_error = "error decoding credential provider plugin response from stdout";
        for (rest, expect) in [
            ("", "did not return a valid cacheKeyType: "),
            (
                r#","cacheKeyType":"Pod""#,
                "did not return a valid cacheKeyType: Pod",
            ),
            (r#","cacheKeyType":"Image","more":1"#, decode_error),
            (
                r#","cacheKeyType":"Image","auth":{"r.io":{"token":"secret"}}"#,
                decode_error,
            ),
            (
                r#","cacheKeyType":"Image","cacheDuration":"soon""#,
                decode_error,
            ),
            (
                r#","cacheKeyType":"Image","cacheKeyType":"Image""#,
                decode_error,
            ),
        ] {
            let error = answer(rest).unwrap_err();
            assert!(error.ends_with(expect), "{rest}: {error}");
        }
        let of = |text: &str| decode(text.as_bytes(), V1).unwrap_err().to_string();
        assert!(of("").starts_with("error reading GVK from response"));
        assert!(of("{}").ends_with(&format!("expected apiVersion:{V1}, actual apiVersion:")));
        let request = format!(r#"{{"kind":"CredentialProviderRequest","apiVersion":"{V1}"}}"#);
        assert!(of(&request).contains("unexpected Kind"));
    }
}
