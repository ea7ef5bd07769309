//! Registry credentials: the pod's pull secrets, then the node's Docker configuration.
//!
//! Owns: reading `dockerconfigjson` and finding what fits an image. Never logs a secret. Upstream:
//! `pkg/credentialprovider`, v1.36.

use std::path::PathBuf;
use std::sync::Arc;

use images::Reference;
use k8s_openapi::api::core::v1::Secret;
use runtime::api::ImageAuth;
use serde::Deserialize;

#[derive(Deserialize, Default)]
struct DockerConfigJson {
    #[serde(default)]
    auths: std::collections::BTreeMap<String, DockerEntry>,
}

#[derive(Deserialize, Default)]
struct DockerEntry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
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
    pub fn lookup(&self, image: &str, secrets: &[Arc<Secret>]) -> Vec<ImageAuth> {
        let mut out = vec![];
        for secret in secrets {
            match parse_secret(secret) {
                Some(config) => out.extend(matching(&config, image)),
                None => tracing::warn!(
                    secret = secret.metadata.name.as_deref().unwrap_or_default(),
                    "image pull secret holds no readable Docker configuration"
                ),
            }
        }
        for file in &self.files {
            if let Ok(bytes) = std::fs::read(file)
                && let Ok(config) = serde_json::from_slice::<DockerConfigJson>(&bytes)
            {
                out.extend(matching(&config, image));
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

fn matching(config: &DockerConfigJson, image: &str) -> Vec<ImageAuth> {
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

fn to_auth(entry: &DockerEntry) -> ImageAuth {
    let (mut username, mut password) = (entry.username.clone(), entry.password.clone());
    if username.is_empty()
        && let Some(text) = decode_base64(&entry.auth).and_then(|b| String::from_utf8(b).ok())
        && let Some((user, pass)) = text.split_once(':')
    {
        username = user.to_owned();
        password = pass.to_owned();
    }
    ImageAuth {
        username,
        password,
        identity_token: entry.identitytoken.clone(),
        registry_token: entry.registrytoken.clone(),
    }
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    // serde already knows how: a Secret's bytes are base64 in JSON.
    serde_json::from_value::<k8s_openapi::ByteString>(serde_json::Value::String(
        text.trim().to_owned(),
    ))
    .ok()
    .map(|b| b.0)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            (auths[0].username.as_str(), auths[0].password.as_str()),
            ("u", "p")
        );
    }
}
