//! Images and patterns of images as URLs without a scheme, and which credential of an answer fits which image.
//!
//! Pure. Upstream: `pkg/credentialprovider/keyring.go`, v1.37 (`ParseSchemelessURL`, `URLsMatch`, `BasicDockerKeyring`).

use std::collections::BTreeMap;

/// Docker Hub's name in Docker's configuration. Upstream: `defaultRegistryHost`.
const DEFAULT_REGISTRY_HOST: &str = "index.docker.io";

/// Why a text is no URL without a scheme. The words are those of Go's `net/url`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("parse {0:?}: net/url: invalid control character in URL")]
    Control(String),
    #[error("parse {url:?}: invalid character {character:?} in host name")]
    Host { url: String, character: char },
    #[error("parse {url:?}: invalid port {port:?} after host")]
    Port { url: String, port: String },
    #[error("parse {0:?}: missing ']' in host")]
    Bracket(String),
    #[error("parse {url:?}: invalid URL escape {escape:?}")]
    Escape { url: String, escape: String },
}

/// `host[:port][/path]`; the host's labels may hold `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemelessUrl {
    host: String,
    /// Empty: none.
    port: String,
    /// Begins with `/`, or is empty.
    path: String,
}

impl SchemelessUrl {
    /// # Errors
    /// Go would not take it for a URL either.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let url = || format!("https://{text}");
        if text.bytes().any(|b| b < 0x20 || b == 0x7f) {
            return Err(UrlError::Control(url()));
        }
        let before = text.split('#').next().unwrap_or_default();
        let before = before.split('?').next().unwrap_or_default();
        let slash = before.find('/').unwrap_or(before.len());
        let (authority, path) = before.split_at(slash);
        let host = authority.rsplit('@').next().unwrap_or_default();
        let (host, port) = split_port(host, url)?;
        let valid = |c: char| {
            !c.is_ascii() || c.is_ascii_alphanumeric() || "-_.~!$&'()*+,;=:<>\"".contains(c)
        };
        if let Some(character) = host.chars().find(|c| !valid(*c)) {
            return Err(UrlError::Host {
                url: url(),
                character,
            });
        }
        Ok(Self {
            host: host.to_owned(),
            port: port.to_owned(),
            path: unescape(path).map_err(|escape| UrlError::Escape { url: url(), escape })?,
        })
    }

    /// Whether `image` has the same port, as many labels of the host that fit each, and a path that begins with this one's.
    ///
    /// The path is a prefix of text, as upstream: `r.io/team` covers `r.io/teamwork`, too.
    pub fn covers(&self, image: &Self) -> bool {
        let labels: Vec<&str> = self.host.split('.').collect();
        let others: Vec<&str> = image.host.split('.').collect();
        self.port == image.port
            && labels.len() == others.len()
            && image.path.starts_with(&self.path)
            && labels.iter().zip(&others).all(|(p, text)| glob(p, text))
    }
}

fn split_port(host: &str, url: impl Fn() -> String) -> Result<(&str, &str), UrlError> {
    let (host, port) = match host.strip_prefix('[') {
        Some(rest) => rest
            .split_once(']')
            .ok_or_else(|| UrlError::Bracket(url()))?,
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    match port.strip_prefix(':') {
        None if port.is_empty() => Ok((host, "")),
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => Ok((host, digits)),
        _ => Err(UrlError::Port {
            url: url(),
            port: port.to_owned(),
        }),
    }
}

/// The path with `%xx` read; the error is the escape that is none.
fn unescape(path: &str) -> Result<String, String> {
    let mut out = Vec::with_capacity(path.len());
    let mut bytes = path.as_bytes();
    while let [first, rest @ ..] = bytes {
        bytes = rest;
        if *first != b'%' {
            out.push(*first);
            continue;
        }
        let digits = rest.get(..2).and_then(|d| std::str::from_utf8(d).ok());
        let byte = digits
            .filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|d| u8::from_str_radix(d, 16).ok());
        let Some(byte) = byte else {
            let end = rest.len().min(2);
            return Err(format!("%{}", String::from_utf8_lossy(&rest[..end])));
        };
        out.push(byte);
        bytes = &rest[2..];
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// `*` stands for any text. In time of the product of both lengths at most: the text is a pod's.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // The last star, and how far the text was when it was tried with one byte more.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            p += 1;
            t += 1;
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            p = at + 1;
            t = from + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

/// The place in the index of a key of an answer (`[scheme://]host[:port][/path]`); `None`: it is no URL.
fn index_key(repository: &str) -> Option<String> {
    let bare = repository
        .strip_prefix("https://")
        .or_else(|| repository.strip_prefix("http://"))
        .unwrap_or(repository);
    let url = SchemelessUrl::parse(bare).ok()?;
    let mut host = match url.host.contains(':') {
        true => format!("[{}]", url.host),
        false => url.host,
    };
    if !url.port.is_empty() {
        host = format!("{host}:{}", url.port);
    }
    // Versions of the registry's API and no repositories.
    let path = match url.path.as_str() {
        path if path.starts_with("/v1/") || path.starts_with("/v2/") => &path[3..],
        path => path,
    };
    Some(match path {
        "" | "/" => host,
        path => format!("{host}{path}"),
    })
}

/// What fits `image` (`domain/path`, no tag) of several answers, given in the order of the providers: the most specific key
/// first, and of one key the earlier provider's.
pub fn lookup<'a, T>(answers: impl IntoIterator<Item = (&'a str, T)>, image: &str) -> Vec<T> {
    let mut index: BTreeMap<String, Vec<T>> = BTreeMap::new();
    for (repository, credential) in answers {
        match index_key(repository) {
            Some(key) => index.entry(key).or_default().push(credential),
            None => tracing::warn!(
                repository,
                "a credential provider's answer has a key that is no URL; it is ignored"
            ),
        }
    }
    let Ok(url) = SchemelessUrl::parse(image) else {
        return vec![];
    };
    let hub = is_default_registry(image)
        .then(|| index.remove(DEFAULT_REGISTRY_HOST))
        .flatten();
    let found: Vec<T> = index
        .into_iter()
        .rev()
        .filter(|(key, _)| SchemelessUrl::parse(key).is_ok_and(|key| key.covers(&url)))
        .flat_map(|(_, credentials)| credentials)
        .collect();
    match found.is_empty() {
        true => hub.unwrap_or_default(),
        false => found,
    }
}

/// `image` is normalised: the hub is named.
fn is_default_registry(image: &str) -> bool {
    let host = image.split('/').next().unwrap_or_default();
    host == "docker.io" || host == DEFAULT_REGISTRY_HOST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_and_images() {
        for (pattern, image, expect) in [
            ("r.io", "r.io/a/b", true),
            ("r.io", "r.io:5000/a", false),
            ("r.io:5000", "r.io:5000/a", true),
            ("r.io:5000", "r.io:5001/a", false),
            ("r.io:5000", "r.io/a", false),
            ("*.r.io", "x.r.io/a", true),
            ("*.r.io", "r.io/a", false),
            ("*.r.io", "x.y.r.io/a", false),
            ("*.*.r.io", "x.y.r.io/a", true),
            ("app*.r.io", "app1.r.io/a", true),
            ("app*.r.io", "other.r.io/a", false),
            ("*-us.r.io", "a-us-us.r.io/a", true),
            ("r.*", "r.io/a", true),
            ("*.io", "x.r.io/a", false),
            ("r.io/team", "r.io/team/app", true),
            ("r.io/team", "r.io/teamwork/app", true),
            ("r.io/team", "r.io/other/team", false),
            ("r.io/t*", "r.io/team", false),
            ("r.io/%74eam", "r.io/team", true),
            ("[::1]:5000", "[::1]:5000/a", true),
            ("*", "localhost/a", true),
            ("*:5000", "localhost:5000/a", true),
        ] {
            let parsed = |text| SchemelessUrl::parse(text).unwrap();
            assert_eq!(
                parsed(pattern).covers(&parsed(image)),
                expect,
                "{pattern} {image}"
            );
        }
    }

    #[test]
    fn what_is_no_url() {
        for (text, expect) in [
            ("r io", "invalid character ' ' in host name"),
            ("r.io:x", "invalid port \":x\" after host"),
            ("a:b:c", "invalid port \":b:c\" after host"),
            ("[::1", "missing ']' in host"),
            ("r.io/%zz", "invalid URL escape \"%zz\""),
            ("r\n.io", "invalid control character in URL"),
            ("%41.io", "invalid character '%' in host name"),
        ] {
            let error = SchemelessUrl::parse(text).unwrap_err().to_string();
            assert!(error.ends_with(expect), "{text:?}: {error}");
        }
    }

    #[test]
    fn globs_of_many_stars_end() {
        let pattern = "*a".repeat(100) + "b";
        assert!(!glob(&pattern, &"a".repeat(4000)));
        assert!(glob(&pattern, &("a".repeat(4000) + "b")));
    }

    #[test]
    fn the_most_specific_first_and_then_the_earlier_provider() {
        let answers = [
            ("r.io", 1),
            ("https://r.io/v2/", 2),
            ("r.io/team", 3),
            ("http://r.io/team", 4),
            ("other.io", 5),
            ("*.io", 6),
            ("no url", 7),
            ("r.io/v1/team/app", 8),
        ];
        assert_eq!(lookup(answers, "r.io/team/app"), [8, 3, 4, 1, 2, 6]);
        assert_eq!(lookup(answers, "r.io/x"), [1, 2, 6]);
        assert!(lookup(answers, "r.io:5000/x").is_empty());
    }

    #[test]
    fn the_hub_by_its_old_name_if_nothing_else_fits() {
        let image = "docker.io/library/busybox";
        let old = ("https://index.docker.io/v1/", 1);
        assert_eq!(lookup([old], image), [1]);
        assert_eq!(lookup([old, ("docker.io", 2)], image), [2]);
        assert!(lookup([old], "r.io/x").is_empty());
    }
}
