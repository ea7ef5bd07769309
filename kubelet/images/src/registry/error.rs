//! What registries answer when they do not give what was asked.

use http::{Method, StatusCode};
use reqwest::{Response, Url};

use crate::mirrors::MirrorsError;

/// How much of a server's error text is shown.
const ERROR_BODY_BYTES: u64 = 4096;

/// Why a registry did not give what was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    /// No connection, a server error or too many requests: try again later.
    #[error("{url}: {reason}")]
    Unavailable { url: String, reason: String },
    #[error("{name}: not found")]
    NotFound { name: String },
    #[error(
        "pull access denied, repository does not exist or may require authorization: {message}"
    )]
    Denied { message: String },
    #[error("unexpected status from {method} request to {url}: {status}{message}")]
    Status {
        method: Method,
        url: String,
        status: StatusCode,
        message: String,
    },
    #[error("{what}: {reason}")]
    Content { what: String, reason: String },
    #[error("registry configuration: {0}")]
    Config(String),
    #[error("{path}: {reason}")]
    Disk { path: String, reason: String },
    #[error("no host of {registry} is allowed to {capability}")]
    NoHost {
        registry: String,
        capability: &'static str,
    },
}

impl From<MirrorsError> for RegistryError {
    fn from(error: MirrorsError) -> Self {
        Self::Config(error.to_string())
    }
}

/// The errors a registry tells in its JSON body, or the body's first line; with `: ` before it, or empty.
pub(super) async fn error_text(response: Response) -> String {
    let body = match super::body::read_up_to(response, ERROR_BODY_BYTES).await {
        Ok((body, _)) => body,
        Err(_) => return String::new(),
    };
    let errors = serde_json::from_slice::<serde_json::Value>(&body)
        .ok()
        .and_then(|json| {
            let texts: Vec<String> = json
                .get("errors")?
                .as_array()?
                .iter()
                .filter_map(|error| {
                    let code = error
                        .get("code")?
                        .as_str()?
                        .to_lowercase()
                        .replace('_', " ");
                    let message = error
                        .get("message")
                        .and_then(|m| m.as_str())
                        .unwrap_or_default();
                    Some(if message.is_empty() {
                        code
                    } else {
                        format!("{code}: {message}")
                    })
                })
                .collect();
            (!texts.is_empty()).then(|| texts.join(", "))
        });
    let text = errors.unwrap_or_else(|| {
        String::from_utf8_lossy(&body)
            .lines()
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned()
    });
    if text.is_empty() {
        text
    } else {
        format!(": {text}")
    }
}

pub(super) fn unavailable(url: &Url, error: reqwest::Error) -> RegistryError {
    RegistryError::Unavailable {
        url: shown(url),
        reason: chain(error),
    }
}

/// A URL as it may be shown: queries of signed URLs are credentials, and so is what stands before the host.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Neither can fail on a URL that has a host, and one that has none holds no user.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}

/// An error with its causes; reqwest shows only the outermost. Its URL, which may be one that a server sent us to, is
/// shown without its query.
pub(super) fn chain(mut error: reqwest::Error) -> String {
    if let Some(url) = error.url_mut()
        && let Ok(clean) = Url::parse(&shown(url))
    {
        *url = clean;
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_shown_without_their_secrets() {
        let url = Url::parse("https://me:pass@host:5000/v2/a?X-Amz-Signature=s#f").unwrap();
        assert_eq!(shown(&url), "https://host:5000/v2/a");
    }

    #[tokio::test]
    async fn causes_are_told_without_the_query() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Nobody listens on port 1.
        let url = "http://127.0.0.1:1/blob?X-Amz-Signature=hush";
        let error = reqwest::Client::new().get(url).send().await.unwrap_err();
        assert!(error.to_string().contains("hush"));
        let text = chain(error);
        assert!(
            text.contains("127.0.0.1:1/blob") && text.contains("refused"),
            "{text}"
        );
        assert!(!text.contains("hush"), "{text}");
    }
}
