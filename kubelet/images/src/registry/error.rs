//! What registries answer when they do not give what was asked.

use futures::StreamExt as _;
use http::{Method, StatusCode};
use reqwest::{Response, Url};

use crate::mirrors::MirrorsError;

/// How much of a server's error text is shown.
const ERROR_BODY_BYTES: usize = 4096;

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
    let mut body = Vec::new();
    let mut stream = response.bytes_stream();
    while let Some(Ok(chunk)) = stream.next().await {
        body.extend_from_slice(&chunk);
        if body.len() >= ERROR_BODY_BYTES {
            break;
        }
    }
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

pub(super) fn unavailable(url: &Url, error: &reqwest::Error) -> RegistryError {
    RegistryError::Unavailable {
        url: url.to_string(),
        reason: chain(error),
    }
}

/// An error with its causes; reqwest shows only the outermost.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
