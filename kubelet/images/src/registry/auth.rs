//! Answering a registry's challenge: Basic, or a Bearer token from its token endpoint.
//!
//! Upstream: containerd v2 `core/remotes/docker/authorizer.go`, `auth/fetch.go`.

use http::HeaderValue;
use reqwest::{Client, Url};
use serde::Deserialize;

use super::body::{self, BodyError, MAX_TOKEN_BYTES};
use super::error::shown;
use super::{RegistryError, chain};
use crate::image::Auth;
use crate::reference::Reference;

/// Named to token endpoints that want to know.
const CLIENT_ID: &str = "containerd-client";

/// A parsed `WWW-Authenticate` header.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    fn get(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

#[derive(Deserialize)]
struct TokenResponse {
    token: Option<String>,
    access_token: Option<String>,
}

/// The `Authorization` header that satisfies one of the challenges; `None`: nothing we have would.
pub(super) async fn answer(
    client: &Client,
    challenges: &[String],
    auth: &Auth,
    reference: &Reference,
) -> Result<Option<HeaderValue>, RegistryError> {
    let parsed: Vec<Challenge> = challenges.iter().map(|text| parse(text)).collect();
    if let Some(bearer) = parsed.iter().find(|challenge| challenge.scheme == "bearer") {
        let token = if auth.registry_token.is_empty() {
            fetch_token(client, bearer, auth, reference).await?
        } else {
            auth.registry_token.clone()
        };
        return secret(&format!("Bearer {token}")).map(Some);
    }
    if parsed.iter().any(|challenge| challenge.scheme == "basic") && !auth.username.is_empty() {
        return secret(&basic(auth)).map(Some);
    }
    Ok(None)
}

fn secret(value: &str) -> Result<HeaderValue, RegistryError> {
    let mut header = HeaderValue::from_str(value).map_err(|_| RegistryError::Denied {
        message: "the credential holds characters that no header may".to_owned(),
    })?;
    header.set_sensitive(true);
    Ok(header)
}

fn basic(auth: &Auth) -> String {
    use base64::Engine as _;
    let text = format!("{}:{}", auth.username, auth.password);
    format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(text)
    )
}

async fn fetch_token(
    client: &Client,
    challenge: &Challenge,
    auth: &Auth,
    reference: &Reference,
) -> Result<String, RegistryError> {
    let realm = challenge.get("realm").unwrap_or_default();
    let mut url = Url::parse(realm).map_err(|error| RegistryError::Denied {
        message: format!("invalid token realm: {error}"),
    })?;
    // What is shown of it; a realm may carry a query of its own.
    let realm = shown(&url);
    let own_scope = format!("repository:{}:pull", reference.path());
    let scope = challenge.get("scope").unwrap_or(&own_scope);
    let service = challenge.get("service");

    let request = if auth.identity_token.is_empty() {
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = service {
                query.append_pair("service", service);
            }
            query.append_pair("scope", scope);
        }
        let request = client.get(url.clone());
        if auth.username.is_empty() {
            request
        } else {
            request.header(http::header::AUTHORIZATION, secret(&basic(auth))?)
        }
    } else {
        let mut form = Url::parse("form:").expect("a constant");
        form.query_pairs_mut()
            .append_pair("grant_type", "refresh_token")
            .append_pair("service", service.unwrap_or_default())
            .append_pair("scope", scope)
            .append_pair("client_id", CLIENT_ID)
            .append_pair("refresh_token", &auth.identity_token);
        client
            .post(url.clone())
            .header(
                http::header::CONTENT_TYPE,
                "application/x-www-form-urlencoded",
            )
            .body(form.query().unwrap_or_default().to_owned())
    };
    let response = request
        .send()
        .await
        .map_err(|error| RegistryError::Unavailable {
            url: realm.clone(),
            reason: format!("failed to fetch token: {}", chain(error)),
        })?;
    let status = response.status();
    if !status.is_success() {
        let text = super::error::error_text(response).await;
        let reason = format!("failed to authorize: failed to fetch token: {status}{text}");
        return Err(
            if status.is_server_error() || status == http::StatusCode::TOO_MANY_REQUESTS {
                RegistryError::Unavailable {
                    url: realm.clone(),
                    reason,
                }
            } else {
                RegistryError::Denied { message: reason }
            },
        );
    }
    let body = body::read(response, MAX_TOKEN_BYTES)
        .await
        .map_err(|error| match error {
            BodyError::TooLarge { .. } => RegistryError::Denied {
                message: format!("answer of token endpoint {realm} {error}"),
            },
            BodyError::Broken(reason) => RegistryError::Unavailable {
                url: realm.clone(),
                reason,
            },
        })?;
    let denied = |message: String| RegistryError::Denied { message };
    let parsed: TokenResponse = serde_json::from_slice(&body)
        .map_err(|error| denied(format!("token endpoint {realm}: {error}")))?;
    parsed
        .access_token
        .filter(|token| !token.is_empty())
        .or(parsed.token)
        .filter(|token| !token.is_empty())
        .ok_or_else(|| denied(format!("token endpoint {realm} gave no token")))
}

/// `Scheme key="value", key=value`.
fn parse(text: &str) -> Challenge {
    let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    let mut parameters = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', ',', '\t']);
        let Some((key, after)) = rest.split_once('=') else {
            break;
        };
        let mut value = String::new();
        if let Some(quoted) = after.strip_prefix('"') {
            let mut end = quoted.len();
            let mut escaped = false;
            for (index, c) in quoted.char_indices() {
                match c {
                    _ if escaped => {
                        value.push(c);
                        escaped = false;
                    }
                    '\\' => escaped = true,
                    '"' => {
                        end = index + 1;
                        break;
                    }
                    _ => value.push(c),
                }
            }
            rest = &quoted[end..];
        } else {
            let end = after.find(',').unwrap_or(after.len());
            value.push_str(after[..end].trim());
            rest = &after[end..];
        }
        parameters.push((key.trim().to_lowercase(), value));
    }
    Challenge {
        scheme: scheme.to_lowercase(),
        parameters,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let challenge = parse(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push",x=y"#,
        );
        assert_eq!(challenge.scheme, "bearer");
        assert_eq!(challenge.get("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(challenge.get("scope"), Some("repository:a/b:pull,push"));
        assert_eq!(challenge.get("x"), Some("y"));
        assert_eq!(
            parse(r#"Basic realm="a \"b\"""#).get("realm"),
            Some("a \"b\"")
        );
        assert_eq!(parse("Negotiate").scheme, "negotiate");
    }
}
