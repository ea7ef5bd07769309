//! Registry credentials: the pod's pull secrets, then the node's Docker configuration. (Those of plugins come after:
//! `credential_provider`.)
//!
//! Owns: reading `dockerconfigjson`, finding what fits an image, and the hash by which a credential is known again.
//! Never logs a secret. Blocks on the node's files. Upstream: `pkg/credentialprovider`, v1.36.

use std::path::PathBuf;
use std::sync::Arc;

use images::Reference;
use k8s_openapi::api::core::v1::Secret;
use runtime::api::ImageAuth;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::pull_record::{ImagePullSecret, ImagePullServiceAccount};

#[derive(Deserialize, Default)]
struct DockerConfigJson {
    #[serde(default)]
    auths: std::collections::BTreeMap<String, DockerEntry>,
}

/// A credential and where it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackedAuth {
    pub auth: ImageAuth,
    pub source: CredentialSource,
}

/// Whose a credential is. Upstream: `CredentialSource`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialSource {
    /// The node's own (its files, or a credential provider that saw no account): open to all pods.
    Node,
    Secret(ImagePullSecret),
    /// A credential provider gave it for a token of this account.
    ServiceAccount(ImagePullServiceAccount),
}

#[derive(Deserialize, Default)]
struct DockerEntry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    email: String,
    #[serde(default)]
    auth: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

/// Credentials of the node: Docker's files, read at each look-up so that a rotation needs no restart.
#[derive(Debug, Default)]
pub struct Keyring {
    files: Vec<PathBuf>,
}

impl Keyring {
    /// The places upstream looks in.
    pub fn for_node(root_dir: &std::path::Path) -> Self {
        let mut files = vec![root_dir.join("config.json")];
        if let Some(home) = std::env::var_os("HOME") {
            files.push(PathBuf::from(home).join(".docker/config.json"));
        }
        files.push("/.docker/config.json".into());
        Self { files }
    }

    /// Everything that may open the image, the pod's own first, the most specific first.
    pub fn lookup(&self, image: &str, secrets: &[Arc<Secret>]) -> Vec<TrackedAuth> {
        let mut out = vec![];
        for secret in secrets {
            let Some(config) = parse_secret(secret) else {
                tracing::warn!(
                    secret = secret.metadata.name.as_deref().unwrap_or_default(),
                    "image pull secret holds no readable Docker configuration"
                );
                continue;
            };
            out.extend(matching(&config, image).into_iter().map(|found| {
                let text = |field: &Option<String>| field.clone().unwrap_or_default();
                TrackedAuth {
                    source: CredentialSource::Secret(ImagePullSecret {
                        uid: text(&secret.metadata.uid),
                        namespace: text(&secret.metadata.namespace),
                        name: text(&secret.metadata.name),
                        credential_hash: found.hash,
                    }),
                    auth: found.auth,
                }
            }));
        }
        for file in &self.files {
            if let Ok(bytes) = std::fs::read(file)
                && let Ok(config) = serde_json::from_slice::<DockerConfigJson>(&bytes)
            {
                out.extend(
                    matching(&config, image)
                        .into_iter()
                        .map(|found| TrackedAuth {
                            auth: found.auth,
                            source: CredentialSource::Node,
                        }),
                );
            }
        }
        out
    }
}

fn parse_secret(secret: &Secret) -> Option<DockerConfigJson> {
    let data = secret.data.as_ref()?;
    match secret.type_.as_deref() {
        Some("kubernetes.io/dockercfg") => {
            let auths = serde_json::from_slice(&data.get(".dockercfg")?.0).ok()?;
            Some(DockerConfigJson { auths })
        }
        _ => serde_json::from_slice(&data.get(".dockerconfigjson")?.0).ok(),
    }
}

/// Does `pattern` (`[scheme://]host[:port][/path]`, `*` in host labels) cover the image?
fn covers(pattern: &str, domain: &str, repository: &str) -> bool {
    let pattern = pattern
        .split_once("://")
        .map_or(pattern, |(_, rest)| rest)
        .trim_end_matches('/');
    let (host, path) = pattern.split_once('/').unwrap_or((pattern, ""));
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    };
    // `v1` and `v2` are API versions and no repositories.
    let path = path
        .strip_prefix("v1")
        .or_else(|| path.strip_prefix("v2"))
        .unwrap_or(path)
        .trim_matches('/');
    let (host, port) = host.split_once(':').unwrap_or((host, ""));
    let (want_host, want_port) = domain.split_once(':').unwrap_or((domain, ""));
    if port != want_port {
        return false;
    }
    let labels: Vec<&str> = host.split('.').collect();
    let wanted: Vec<&str> = want_host.split('.').collect();
    let hosts_fit =
        labels.len() == wanted.len() && labels.iter().zip(&wanted).all(|(p, w)| glob(p, w));
    hosts_fit
        && (path.is_empty() || repository == path || repository.starts_with(&format!("{path}/")))
}

/// `*` stands for any text within one label.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).any(|i| rest.is_char_boundary(i) && glob(tail, &rest[i..]))
        }),
    }
}

fn matching(config: &DockerConfigJson, image: &str) -> Vec<Found> {
    let Ok(reference) = Reference::parse_normalized(image) else {
        return vec![];
    };
    let mut hits: Vec<(&String, &DockerEntry)> = config
        .auths
        .iter()
        .filter(|(p, _)| covers(p, reference.domain(), reference.path()))
        .collect();
    hits.sort_by_key(|(pattern, _)| std::cmp::Reverse(pattern.len()));
    hits.into_iter().map(|(_, entry)| to_auth(entry)).collect()
}

struct Found {
    auth: ImageAuth,
    hash: String,
}

fn to_auth(entry: &DockerEntry) -> Found {
    let (mut username, mut password) = (entry.username.clone(), entry.password.clone());
    // As upstream, `auth` wins over the two.
    if let Some(text) = decode_base64(&entry.auth).and_then(|b| String::from_utf8(b).ok())
        && let Some((user, pass)) = text.split_once(':')
    {
        username = user.to_owned();
        password = pass.to_owned();
    }
    let auth = ImageAuth {
        username,
        password,
        identity_token: entry.identitytoken.clone(),
        registry_token: entry.registrytoken.clone(),
    };
    let hash = hash_auth(&auth, &entry.email);
    Found { auth, hash }
}

/// Upstream's `AuthConfig` in JSON, as Go writes it.
#[derive(Serialize)]
struct AuthConfig<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    username: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    password: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    email: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    identitytoken: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    registrytoken: &'a str,
}

/// Upstream: `hashAuthConfig`. Hex SHA-256; empty if it cannot be made, which equals no other.
fn hash_auth(auth: &ImageAuth, email: &str) -> String {
    let config = AuthConfig {
        username: &auth.username,
        password: &auth.password,
        email,
        identitytoken: &auth.identity_token,
        registrytoken: &auth.registry_token,
    };
    let Ok(json) = serde_json::to_string(&config) else {
        return String::new();
    };
    // Go escapes these in every string, so that JSON may stand in HTML.
    let mut go = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                go.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => go.push(c),
        }
    }
    Sha256::digest(go.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    // With or without padding. serde already knows how: a Secret's bytes are base64 in JSON.
    let mut text = text.trim().trim_end_matches('=').to_owned();
    while text.len() % 4 != 0 {
        text.push('=');
    }
    serde_json::from_value::<k8s_openapi::ByteString>(serde_json::Value::String(text))
        .ok()
        .map(|b| b.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By sha256sum.
    const HASH_OF_U_P: &str = "edbd57ca9372e64eb1c9070ecf3a049ac553596b0529acf034c7a71d4e618e88";
    const HASH_ESCAPED: &str = "3b9edeb91ec52f719867a01817212b0ec85fbf60026f6809fa9e93ff6d815c90";

    #[test]
    fn patterns() {
        assert!(covers(
            "https://index.docker.io/v1/",
            "docker.io",
            "library/busybox"
        ));
        assert!(covers("*.example.com", "reg.example.com", "a/b"));
        assert!(!covers("*.example.com", "a.b.example.com", "a/b"));
        assert!(covers("reg.io:5000/team", "reg.io:5000", "team/app"));
        assert!(!covers("reg.io:5000/team", "reg.io:5000", "teamster/app"));
        assert!(!covers("reg.io", "reg.io:5000", "x"));
    }

    #[test]
    fn secrets_are_decoded() {
        let json = br#"{"auths":{"reg.io":{"auth":"dTpw"}}}"#;
        let secret = Secret {
            type_: Some("kubernetes.io/dockerconfigjson".into()),
            data: Some(
                [(
                    ".dockerconfigjson".to_owned(),
                    k8s_openapi::ByteString(json.to_vec()),
                )]
                .into(),
            ),
            ..Default::default()
        };
        let auths = Keyring::default().lookup("reg.io/a:1", &[Arc::new(secret)]);
        assert_eq!(
            (
                auths[0].auth.username.as_str(),
                auths[0].auth.password.as_str()
            ),
            ("u", "p")
        );
        let CredentialSource::Secret(secret) = &auths[0].source else {
            panic!("{:?}", auths[0].source);
        };
        assert_eq!(
            secret.credential_hash,
            // {"username":"u","password":"p"}
            HASH_OF_U_P
        );
    }

    #[test]
    fn hashes_are_gos() {
        let entry = |json: &str| to_auth(&serde_json::from_str::<DockerEntry>(json).unwrap()).hash;
        assert_eq!(entry(r#"{"username":"u","password":"p"}"#), HASH_OF_U_P);
        // `auth` wins; its text is the same credential.
        assert_eq!(
            entry(r#"{"username":"x","password":"y","auth":"dTpw"}"#),
            HASH_OF_U_P
        );
        // {"username":"u","password":"\u003c\u0026","email":"a@b"}
        assert_eq!(
            entry(r#"{"username":"u","password":"<&","email":"a@b"}"#),
            HASH_ESCAPED
        );
    }
}
