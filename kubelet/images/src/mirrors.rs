//! Where an image may come from: a registry's mirrors, certificates and headers.
//!
//! Reads `<dir>/<host>/hosts.toml` afresh for every pull, so that a change needs no restart.
//!
//! Upstream: containerd v2 `core/remotes/docker/config/hosts.go`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use reqwest::Url;
use serde::Deserialize;
use toml::Spanned;

/// Used for registries that have no folder of their own.
const DEFAULT_FOLDER: &str = "_default";
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";
/// Upstream: containerd's dialer timeout.
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a registry's configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MirrorsError {
    #[error("{path:?}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path:?}: {source}")]
    Toml {
        path: PathBuf,
        #[source]
        source: Box<toml::de::Error>,
    },
    #[error("{path:?}: host {host:?}: {reason}")]
    Host {
        path: PathBuf,
        host: String,
        reason: String,
    },
}

/// Certificates and checks of one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    pub(crate) ca: Vec<PathBuf>,
    /// Certificate and key; the same file twice if both are in one.
    pub(crate) client: Vec<(PathBuf, PathBuf)>,
    pub(crate) skip_verify: bool,
}

/// One host that may serve a registry's images, in the order to be asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Host {
    /// Up to and with `/v2`, no slash at the end.
    pub(crate) base: Url,
    pub(crate) pull: bool,
    pub(crate) resolve: bool,
    pub(crate) tls: Tls,
    pub(crate) headers: HeaderMap,
    /// The registry itself; mirrors are told by `?ns=` whom they stand for.
    pub(crate) origin: bool,
    pub(crate) dial_timeout: Duration,
}

#[derive(Deserialize, Default)]
struct HostsFile {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<String, Spanned<HostTable>>,
    #[serde(flatten)]
    own: HostTable,
}

#[derive(Deserialize, Default)]
struct HostTable {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    skip_verify: Option<bool>,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
    #[serde(default)]
    override_path: bool,
    dial_timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Client {
    One(String),
    Many(Vec<ClientItem>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ClientItem {
    Both(String),
    Pair(Vec<String>),
}

/// The hosts to ask for images of `registry`, in order; the registry itself comes last.
///
/// # Errors
/// The registry's hosts file cannot be read or holds something wrong.
pub(crate) fn hosts(dir: &Path, registry: &str) -> Result<Vec<Host>, MirrorsError> {
    let folder = folders(dir, registry)
        .into_iter()
        .find(|folder| folder.is_dir());
    let Some(folder) = folder else {
        return Ok(vec![default_host(registry, Tls::default(), dir)?]);
    };
    let path = folder.join("hosts.toml");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(vec![default_host(
                registry,
                docker_certificates(&folder)?,
                &folder,
            )?]);
        }
        Err(source) => return Err(MirrorsError::Io { path, source }),
    };
    let file: HostsFile = toml::from_str(&text).map_err(|source| MirrorsError::Toml {
        path: path.clone(),
        source: Box::new(source),
    })?;
    let mut tables: Vec<_> = file.host.into_iter().collect();
    // The file's order is the order of preference.
    tables.sort_by_key(|(_, table)| table.span().start);
    let mut hosts = Vec::with_capacity(tables.len() + 1);
    for (name, table) in tables {
        hosts.push(host(&path, &name, table.into_inner(), false)?);
    }
    let own_tls = file.own.ca.is_some() || file.own.client.is_some();
    let server = match file.server {
        Some(server) => server,
        None => format!(
            "{}://{}",
            default_scheme(registry, own_tls),
            default_name(registry)
        ),
    };
    hosts.push(host(&path, &server, file.own, true)?);
    Ok(hosts)
}

/// Upstream: `hostPaths`. A port is written `host_5000_` where a colon is no good in a file name.
fn folders(dir: &Path, registry: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':')
        && !port.is_empty()
        && port.bytes().all(|b| b.is_ascii_digit())
    {
        folders.push(dir.join(format!("{host}_{port}_")));
    }
    folders.push(dir.join(registry));
    folders.push(dir.join(DEFAULT_FOLDER));
    folders
}

fn default_name(registry: &str) -> &str {
    if registry == DOCKER_HUB {
        DOCKER_HUB_HOST
    } else {
        registry
    }
}

/// Plain HTTP for this machine's own registries without certificates, HTTPS for all others.
fn default_scheme(registry: &str, has_tls: bool) -> &'static str {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    let local = host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    if local && !has_tls { "http" } else { "https" }
}

fn default_host(registry: &str, tls: Tls, dir: &Path) -> Result<Host, MirrorsError> {
    let has_tls = tls != Tls::default();
    let server = format!(
        "{}://{}",
        default_scheme(registry, has_tls),
        default_name(registry)
    );
    let mut host = host(dir, &server, HostTable::default(), true)?;
    host.tls = tls;
    Ok(host)
}

fn host(path: &Path, name: &str, table: HostTable, origin: bool) -> Result<Host, MirrorsError> {
    let wrong = |reason: String| MirrorsError::Host {
        path: path.to_owned(),
        host: name.to_owned(),
        reason,
    };
    let full = if name.contains("://") {
        name.to_owned()
    } else {
        format!("https://{name}")
    };
    let mut base = Url::parse(&full).map_err(|error| wrong(error.to_string()))?;
    if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
        return Err(wrong("must be an http or https URL".to_owned()));
    }
    let mut url_path = base.path().trim_end_matches('/').to_owned();
    if !table.override_path && !url_path.ends_with("/v2") {
        url_path.push_str("/v2");
    }
    base.set_path(&url_path);

    let (mut pull, mut resolve) = (true, true);
    if let Some(capabilities) = table.capabilities {
        (pull, resolve) = (false, false);
        for capability in capabilities {
            match capability.to_lowercase().as_str() {
                "pull" => pull = true,
                "resolve" => resolve = true,
                "push" | "referrers" => {}
                _ => return Err(wrong(format!("unknown capability {capability:?}"))),
            }
        }
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut tls = Tls {
        skip_verify: table.skip_verify.unwrap_or(false),
        ..Tls::default()
    };
    if let Some(ca) = table.ca {
        tls.ca = ca.into_vec().iter().map(|file| dir.join(file)).collect();
    }
    tls.client = match table.client {
        None => Vec::new(),
        Some(Client::One(file)) => vec![(dir.join(&file), dir.join(&file))],
        Some(Client::Many(items)) => items
            .into_iter()
            .map(|item| match item {
                ClientItem::Both(file) => Ok((dir.join(&file), dir.join(&file))),
                ClientItem::Pair(pair) => match pair.as_slice() {
                    [both] => Ok((dir.join(both), dir.join(both))),
                    [cert, key] if key.is_empty() => Ok((dir.join(cert), dir.join(cert))),
                    [cert, key] => Ok((dir.join(cert), dir.join(key))),
                    other => Err(wrong(format!("invalid client pair {other:?}"))),
                },
            })
            .collect::<Result<_, _>>()?,
    };
    let mut headers = HeaderMap::new();
    for (key, values) in table.header {
        let header: HeaderName = key
            .parse()
            .map_err(|_| wrong(format!("invalid header name {key:?}")))?;
        for value in values.into_vec() {
            let value = HeaderValue::from_str(&value)
                .map_err(|_| wrong(format!("invalid value of header {key:?}")))?;
            headers.append(header.clone(), value);
        }
    }
    let dial_timeout = match &table.dial_timeout {
        None => DIAL_TIMEOUT,
        Some(text) => {
            parse_duration(text).ok_or_else(|| wrong(format!("invalid dial_timeout {text:?}")))?
        }
    };
    Ok(Host {
        base,
        pull,
        resolve,
        tls,
        headers,
        origin,
        dial_timeout,
    })
}

/// Go's notation of a duration, of one or more of `h`, `m`, `s`, `ms`.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            _ => return None,
        };
        rest = &rest[unit..];
        total += Duration::try_from_secs_f64(number * seconds).ok()?;
    }
    (!text.is_empty()).then_some(total)
}

/// Docker's form of the folder: `*.crt` are CAs, `*.cert` with `*.key` are client certificates.
fn docker_certificates(folder: &Path) -> Result<Tls, MirrorsError> {
    let wrong = |source| MirrorsError::Io {
        path: folder.to_owned(),
        source,
    };
    let mut tls = Tls::default();
    let mut files = std::fs::read_dir(folder)
        .and_then(|entries| {
            entries
                .map(|e| e.map(|e| e.path()))
                .collect::<io::Result<Vec<_>>>()
        })
        .map_err(wrong)?;
    files.sort();
    for file in files {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => tls.ca.push(file),
            Some("cert") => {
                let key = file.with_extension("key");
                tls.client.push((file, key));
            }
            _ => {}
        }
    }
    Ok(tls)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(registry: &str, files: &[(&str, &str)], expect: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let got: Vec<String> = match hosts(dir.path(), registry) {
            Ok(hosts) => hosts
                .iter()
                .map(|host| {
                    let mut line = host.base.to_string();
                    for (flag, name) in [
                        (host.pull, "pull"),
                        (host.resolve, "resolve"),
                        (host.tls.skip_verify, "skip_verify"),
                        (host.origin, "origin"),
                    ] {
                        if flag {
                            line.push(' ');
                            line.push_str(name);
                        }
                    }
                    for ca in &host.tls.ca {
                        line.push_str(&format!(
                            " ca={}",
                            ca.strip_prefix(dir.path()).unwrap_or(ca).display()
                        ));
                    }
                    for (cert, key) in &host.tls.client {
                        line.push_str(&format!(
                            " client={}:{}",
                            cert.file_name().unwrap().display(),
                            key.file_name().unwrap().display()
                        ));
                    }
                    for (key, value) in &host.headers {
                        line.push_str(&format!(" {key}={}", value.to_str().unwrap()));
                    }
                    line
                })
                .collect(),
            Err(error) => vec![
                error
                    .to_string()
                    .split(": ")
                    .skip(1)
                    .collect::<Vec<_>>()
                    .join(": "),
            ],
        };
        assert_eq!(got, expect);
    }

    #[test]
    fn defaults() {
        check(
            "docker.io",
            &[],
            &["https://registry-1.docker.io/v2 pull resolve origin"],
        );
        check(
            "registry.k8s.io",
            &[],
            &["https://registry.k8s.io/v2 pull resolve origin"],
        );
        check(
            "localhost:5000",
            &[],
            &["http://localhost:5000/v2 pull resolve origin"],
        );
        check(
            "[::1]:5000",
            &[],
            &["http://[::1]:5000/v2 pull resolve origin"],
        );
        check(
            "10.0.0.1:5000",
            &[],
            &["https://10.0.0.1:5000/v2 pull resolve origin"],
        );
    }

    #[test]
    fn hosts_files() {
        let file = r#"
server = "https://registry-1.docker.io"
ca = "own.pem"
[host."http://z.example:5000"]
  capabilities = ["pull", "resolve"]
  [host."http://z.example:5000".header]
    x-custom = ["a", "b"]
[host."a.example/sub"]
  capabilities = ["pull"]
  skip_verify = true
  ca = ["one.pem", "/two.pem"]
  client = [["c.pem", "k.pem"], ["d.pem", ""]]
[host."https://b.example/proxy"]
  override_path = true
"#;
        check(
            "docker.io",
            &[("docker.io/hosts.toml", file)],
            &[
                "http://z.example:5000/v2 pull resolve x-custom=a x-custom=b",
                "https://a.example/sub/v2 pull skip_verify ca=docker.io/one.pem ca=/two.pem client=c.pem:k.pem client=d.pem:d.pem",
                "https://b.example/proxy pull resolve",
                "https://registry-1.docker.io/v2 pull resolve origin ca=docker.io/own.pem",
            ],
        );
        let default = ("_default/hosts.toml", "[host.\"http://m\"]\n");
        check(
            "ghcr.io",
            &[default],
            &[
                "http://m/v2 pull resolve",
                "https://ghcr.io/v2 pull resolve origin",
            ],
        );
        check(
            "r:5000",
            &[
                default,
                ("r_5000_/hosts.toml", "server = \"http://r:5000\""),
            ],
            &["http://r:5000/v2 pull resolve origin"],
        );
        check(
            "r",
            &[("r/x.crt", ""), ("r/y.cert", ""), ("r/y.key", "")],
            &["https://r/v2 pull resolve origin ca=r/x.crt client=y.cert:y.key"],
        );
    }

    #[test]
    fn wrong_files() {
        check(
            "r",
            &[(
                "r/hosts.toml",
                "[host.\"http://m\"]\ncapabilities = [\"fly\"]",
            )],
            &["host \"http://m\": unknown capability \"fly\""],
        );
        check(
            "r",
            &[("r/hosts.toml", "server = \"ftp://m\"")],
            &["host \"ftp://m\": must be an http or https URL"],
        );
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(parse_duration("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(parse_duration("5"), None);
        assert_eq!(parse_duration(""), None);
    }
}
