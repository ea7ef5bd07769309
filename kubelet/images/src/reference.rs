//! Names of images: parsing, normalisation, canonical text.
//!
//! Upstream: `github.com/distribution/reference` v0.6 (`ParseNormalizedNamed`, `ParseDockerRef`).

use std::fmt;

/// Longest repository path a name may have.
pub const REPOSITORY_NAME_TOTAL_LENGTH_MAX: usize = 255;
const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
const OFFICIAL_REPO_PREFIX: &str = "library/";
/// Longest tag.
const TAG_LENGTH_MAX: usize = 128;

/// Why a name is no image reference. The texts are upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("invalid reference format")]
    InvalidFormat,
    #[error("invalid reference format: repository name ({name}) must be lowercase")]
    NameContainsUppercase { name: String },
    #[error("repository name must have at least one component")]
    NameEmpty,
    #[error("repository name must not be more than {REPOSITORY_NAME_TOTAL_LENGTH_MAX} characters")]
    NameTooLong,
    #[error("invalid repository name ({name}), cannot specify 64-byte hexadecimal strings")]
    NameIsHex { name: String },
    #[error("unsupported digest algorithm")]
    DigestUnsupported,
    #[error("invalid checksum digest length")]
    DigestInvalidLength,
}

/// A normalised image name: `domain/path[:tag][@digest]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    /// Parses what a user wrote. A name with neither tag nor digest gets the tag `latest`; one with
    /// both loses the tag, since the digest decides.
    ///
    /// # Errors
    /// The name is malformed; a retry does not help.
    pub fn parse(image: &str) -> Result<Self, ReferenceError> {
        let mut reference = Self::parse_normalized(image)?;
        match (&reference.tag, &reference.digest) {
            (None, None) => reference.tag = Some("latest".to_owned()),
            (Some(_), Some(_)) => reference.tag = None,
            _ => {}
        }
        Ok(reference)
    }

    /// Parses what a user wrote and adds nothing but the domain and `library/`.
    ///
    /// # Errors
    /// The name is malformed; a retry does not help.
    pub fn parse_normalized(image: &str) -> Result<Self, ReferenceError> {
        if is_hex_id(image) {
            return Err(ReferenceError::NameIsHex {
                name: image.to_owned(),
            });
        }
        if image.is_empty() {
            return Err(ReferenceError::NameEmpty);
        }
        let (domain, remainder) = split_docker_domain(image);
        let name = remainder.split(['@']).next().unwrap_or_default();
        let name = match name.rfind(':') {
            Some(colon) => &name[..colon],
            None => name,
        };
        if name.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(ReferenceError::NameContainsUppercase {
                name: name.to_owned(),
            });
        }
        let (rest, digest) = match remainder.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (remainder.as_str(), None),
        };
        let (path, tag) = match rest.rfind(':') {
            Some(colon) => (&rest[..colon], Some(&rest[colon + 1..])),
            None => (rest, None),
        };
        if !is_domain(&domain) || !is_path(path) || tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(ReferenceError::InvalidFormat);
        }
        if let Some(digest) = digest {
            validate_digest(digest)?;
        }
        if path.len() > REPOSITORY_NAME_TOTAL_LENGTH_MAX {
            return Err(ReferenceError::NameTooLong);
        }
        Ok(Self {
            domain,
            path: path.to_owned(),
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }

    /// `docker.io`, `registry.k8s.io`, `localhost:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `docker.io/library/busybox`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// `sha256:…`.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// The same repository by digest alone.
    pub fn with_digest(&self, digest: &str) -> Self {
        Self {
            tag: None,
            digest: Some(digest.to_owned()),
            ..self.clone()
        }
    }

    /// What the registry is asked for: the digest if there is one, else the tag.
    pub fn object(&self) -> &str {
        self.digest
            .as_deref()
            .or(self.tag.as_deref())
            .unwrap_or("latest")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Whether `text` has the form of an image id without its algorithm.
pub(crate) fn is_hex_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Splits off the domain and gives the path its `library/`.
fn split_docker_domain(name: &str) -> (String, String) {
    let (domain, remainder) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.to_lowercase() != first =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    };
    let domain = if domain == LEGACY_DEFAULT_DOMAIN {
        DEFAULT_DOMAIN
    } else {
        domain
    };
    if domain == DEFAULT_DOMAIN && !remainder.contains('/') {
        (
            domain.to_owned(),
            format!("{OFFICIAL_REPO_PREFIX}{remainder}"),
        )
    } else {
        (domain.to_owned(), remainder.to_owned())
    }
}

/// A host name, an IPv4 address or a bracketed IPv6 address, with an optional port.
fn is_domain(domain: &str) -> bool {
    let (host, port) = if let Some(rest) = domain.strip_prefix('[') {
        let Some((address, after)) = rest.split_once(']') else {
            return false;
        };
        if address.is_empty() || !address.chars().all(|c| c.is_ascii_hexdigit() || c == ':') {
            return false;
        }
        match after.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if after.is_empty() => (None, None),
            None => return false,
        }
    } else {
        match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        }
    };
    let host_ok = host.is_none_or(|host| {
        host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
    });
    host_ok && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// Components of lower-case letters and digits, parted by `.`, `_`, `__` or dashes.
fn is_path(path: &str) -> bool {
    !path.is_empty()
        && path.split('/').all(|component| {
            let bytes = component.as_bytes();
            let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
                return false;
            };
            if !alnum(first) || !alnum(last) {
                return false;
            }
            bytes.chunk_by(|a, b| alnum(*a) == alnum(*b)).all(|run| {
                alnum(run[0])
                    || matches!(run, b"." | b"_" | b"__")
                    || run.iter().all(|&b| b == b'-')
            })
        })
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = tag.as_bytes();
    bytes.len() <= TAG_LENGTH_MAX
        && bytes.first().is_some_and(|&b| word(b))
        && bytes.iter().all(|&b| word(b) || b == b'.' || b == b'-')
}

/// `algorithm:hex`, of an algorithm we can verify.
pub(crate) fn validate_digest(digest: &str) -> Result<(), ReferenceError> {
    let Some((algorithm, hex)) = digest.split_once(':') else {
        return Err(ReferenceError::InvalidFormat);
    };
    if hex.len() < 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(ReferenceError::InvalidFormat);
    }
    let length = match algorithm {
        "sha256" => 64,
        "sha512" => 128,
        _ => return Err(ReferenceError::DigestUnsupported),
    };
    if hex.len() != length {
        return Err(ReferenceError::DigestInvalidLength);
    }
    if hex.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(ReferenceError::InvalidFormat);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(image: &str, expect: &str) {
        let got = match Reference::parse(image) {
            Ok(reference) => reference.to_string(),
            Err(error) => format!("error: {error}"),
        };
        assert_eq!(got, expect, "parsing {image:?}");
    }

    #[test]
    fn normalises() {
        let sha = "a".repeat(64);
        check("busybox", "docker.io/library/busybox:latest");
        check("busybox:1.36", "docker.io/library/busybox:1.36");
        check("foo/bar", "docker.io/foo/bar:latest");
        check(
            "index.docker.io/busybox",
            "docker.io/library/busybox:latest",
        );
        check("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10");
        check("localhost/foo", "localhost/foo:latest");
        check(
            "localhost:5000/a/b__c/d--e:v1",
            "localhost:5000/a/b__c/d--e:v1",
        );
        check("[::1]:5000/foo:x", "[::1]:5000/foo:x");
        check("Docker/foo:x", "Docker/foo:x");
        check(
            &format!("busybox:1.36@sha256:{sha}"),
            &format!("docker.io/library/busybox@sha256:{sha}"),
        );
    }

    #[test]
    fn refuses() {
        check(
            "",
            "error: repository name must have at least one component",
        );
        check("foo:", "error: invalid reference format");
        check(
            "Busybox",
            "error: invalid reference format: repository name (library/Busybox) must be lowercase",
        );
        check("a..b", "error: invalid reference format");
        check("a___b", "error: invalid reference format");
        check("-a", "error: invalid reference format");
        check("foo@sha256:abcd", "error: invalid reference format");
        check(
            &format!("foo@md5:{}", "a".repeat(32)),
            "error: unsupported digest algorithm",
        );
        check(
            &format!("foo@sha256:{}", "a".repeat(63)),
            "error: invalid checksum digest length",
        );
        check(
            &"a".repeat(64),
            &format!(
                "error: invalid repository name ({}), cannot specify 64-byte hexadecimal strings",
                "a".repeat(64)
            ),
        );
        check(
            &"a".repeat(300),
            "error: repository name must not be more than 255 characters",
        );
        check("foo:bar baz", "error: invalid reference format");
        check("foo/../bar", "error: invalid reference format");
    }
}
