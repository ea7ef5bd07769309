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
    /// Up to and with `/v2`, no slash at the end; where the file overrides the path, as the file has it.
    pub(crate) base: Url,
    pub(crate) pull: bool,
    pub(crate) resolve: bool,
    pub(crate) tls: Tls,
    pub(crate) headers: HeaderMap,
    /// The registry's own entry: credentials go to it however it is reached.
    pub(crate) origin: bool,
    /// Another host than the image names: it is told by `?ns=` whom it stands for. Upstream: `isProxy`.
    pub(crate) proxy: bool,
    /// Asked by plain HTTP once it turns out that it knows no TLS. Upstream: `NewHTTPFallback`.
    pub(crate) plain_fallback: bool,
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
/// The registry's folder cannot be read. A hosts file that makes no sense is told in the log and not used, as containerd
/// does: what stands beside it and the registry itself are.
pub(crate) fn hosts(dir: &Path, registry: &str) -> Result<Vec<Host>, MirrorsError> {
    let mut folder = None;
    for candidate in folders(dir, registry) {
        let exists = candidate.try_exists().map_err(|source| MirrorsError::Io {
            path: candidate.clone(),
            source,
        })?;
        if exists {
            folder = Some(candidate);
            break;
        }
    }
    let Some(folder) = folder else {
        return Ok(vec![default_host(registry, Tls::default())?]);
    };
    let path = folder.join("hosts.toml");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(MirrorsError::Io { path, source }),
    };
    if text.is_empty() {
        return Ok(vec![default_host(registry, docker_certificates(&folder)?)?]);
    }
    match parse(&path, &text, registry) {
        Ok(hosts) => Ok(hosts),
        Err(error) => {
            // The file, the line and what is wrong there, on one line of the log.
            let error = error.to_string().replace('\n', " ");
            tracing::error!(
                registry,
                error,
                "failed to decode hosts.toml: it is not used"
            );
            Ok(vec![default_host(registry, docker_certificates(&folder)?)?])
        }
    }
}

/// The entries of a hosts file, in its order, the registry's own last.
fn parse(path: &Path, text: &str, registry: &str) -> Result<Vec<Host>, MirrorsError> {
    let file: HostsFile = toml::from_str(text).map_err(|source| MirrorsError::Toml {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    let mut tables: Vec<_> = file.host.into_iter().collect();
    // The file's order is the order of preference.
    tables.sort_by_key(|(_, table)| table.span().start);
    let mut hosts = Vec::with_capacity(tables.len() + 1);
    for (name, table) in tables {
        hosts.push(host(path, &name, table.into_inner(), registry)?);
    }
    let mut own = match file.server.filter(|server| !server.is_empty()) {
        Some(server) => host(path, &server, file.own, registry)?,
        None => {
            let table = HostTable {
                // Not what the file says: upstream sets all of these for a server it was not told.
                capabilities: None,
                override_path: false,
                ..file.own
            };
            let mut own = host(path, &default_server(registry), table, registry)?;
            own.skip_verify_on_this_machine(registry);
            own
        }
    };
    own.origin = true;
    hosts.push(own);
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

/// Whether the registry is this machine. Upstream: `docker.IsLocalhost`.
fn is_local(registry: &str) -> bool {
    let (host, _) = split_port(registry);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Host and port; the port is empty if there is none.
fn split_port(authority: &str) -> (&str, &str) {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.ends_with(':') => {
            (host, port)
        }
        _ => (authority, ""),
    }
}

/// The registry as it is reached when nobody says how: by HTTPS, but for ports of this machine other than 443.
fn default_server(registry: &str) -> String {
    if registry == DOCKER_HUB {
        return format!("https://{DOCKER_HUB_HOST}");
    }
    let (_, port) = split_port(registry);
    let scheme = match is_local(registry) && !port.is_empty() && port != "443" {
        true => "http",
        false => "https",
    };
    format!("{scheme}://{registry}")
}

fn default_host(registry: &str, tls: Tls) -> Result<Host, MirrorsError> {
    let table = HostTable::default();
    let mut host = host(Path::new("/"), &default_server(registry), table, registry)?;
    host.origin = true;
    if tls != Tls::default() {
        host.tls = tls;
        host.prefer_tls();
    }
    host.skip_verify_on_this_machine(registry);
    Ok(host)
}

impl Host {
    /// A port that may be either is tried with TLS first if TLS is configured for it.
    fn prefer_tls(&mut self) {
        if self.base.scheme() == "http" && self.base.port_or_known_default() != Some(80) {
            // Cannot fail between these two; a port other than 80 is written out and stays.
            self.plain_fallback = self.base.set_scheme("https").is_ok();
        }
    }

    /// Nobody signs certificates for this machine's own registries.
    fn skip_verify_on_this_machine(&mut self, registry: &str) {
        if is_local(registry) && split_port(registry).1 != "80" {
            self.tls.skip_verify = true;
            self.prefer_tls();
        }
    }
}

fn host(path: &Path, name: &str, table: HostTable, registry: &str) -> Result<Host, MirrorsError> {
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

    let named = table.capabilities.unwrap_or_default();
    // An empty list says no more than none.
    let (mut pull, mut resolve) = (named.is_empty(), named.is_empty());
    for capability in named {
        match capability.to_lowercase().as_str() {
            "pull" => pull = true,
            "resolve" => resolve = true,
            "push" | "referrers" => {}
            _ => return Err(wrong(format!("unknown capability {capability:?}"))),
        }
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    let has_tls = table.ca.is_some() || table.client.is_some() || table.skip_verify.is_some();
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
    if tls.client.len() > 1 {
        tracing::warn!(
            host = name,
            "hosts.toml names several client certificates: the first is used"
        );
    }
    let authority = full
        .split_once("://")
        .map_or(full.as_str(), |(_, rest)| rest);
    let authority = authority.split('/').next().unwrap_or_default();
    let is_hub = registry == DOCKER_HUB && authority == DOCKER_HUB_HOST;
    let mut host = Host {
        base,
        pull,
        resolve,
        tls,
        headers,
        origin: false,
        proxy: authority != registry && !is_hub,
        plain_fallback: false,
        dial_timeout,
    };
    if has_tls {
        host.prefer_tls();
    }
    Ok(host)
}

/// Go's notation of a duration, of one or more of `h`, `m`, `s`, `ms`, `us`, `ns`.
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
            "us" | "µs" | "μs" => 0.000_001,
            "ns" => 0.000_000_001,
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
                // Without a key beside it the file holds both.
                let key = file.with_extension("key");
                let key = if key.exists() { key } else { file.clone() };
                tls.client.push((file, key));
            }
            _ => {}
        }
    }
    Ok(tls)
}

/// See `crate::fuzz::hosts_file`.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &str, registry: &str) {
    let folder = Path::new("/certs.d/registry");
    let hosts = match parse(&folder.join("hosts.toml"), text, registry) {
        Ok(hosts) => hosts,
        Err(error) => {
            let _ = error.to_string();
            return;
        }
    };
    let (own, others) = hosts.split_last().expect("the registry itself is one");
    assert!(own.origin && others.iter().all(|host| !host.origin));
    for host in &hosts {
        assert!(matches!(host.base.scheme(), "http" | "https"));
        assert!(host.base.host_str().is_some_and(|name| !name.is_empty()));
        let path = host.base.path();
        assert!(path == "/" || !path.ends_with('/'));
        for file in &host.tls.ca {
            assert!(file.is_absolute());
        }
    }
}

#[cfg(test)]
mod tests;
