//! Digests: naming content by its hash, and checking content against its name.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256, Sha512};

/// A hash under way, of the algorithm its expected digest names.
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub(crate) fn sha256() -> Self {
        Self::Sha256(Sha256::new())
    }

    /// For content that should have `digest`; `None`: an algorithm we do not know.
    pub(crate) fn of(digest: &str) -> Option<Self> {
        match digest.split_once(':')?.0 {
            "sha256" => Some(Self::sha256()),
            "sha512" => Some(Self::Sha512(Sha512::new())),
            _ => None,
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    /// `sha256:<hex>`.
    pub(crate) fn finish(self) -> String {
        match self {
            Self::Sha256(hash) => format!("sha256:{}", hex(&hash.finalize())),
            Self::Sha512(hash) => format!("sha512:{}", hex(&hash.finalize())),
        }
    }
}

/// The sha256 digest of `bytes`.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let mut hasher = Hasher::sha256();
    hasher.update(bytes);
    hasher.finish()
}

/// Whether `bytes` hash to `digest`.
pub(crate) fn matches(bytes: &[u8], digest: &str) -> bool {
    Hasher::of(digest).is_some_and(|mut hasher| {
        hasher.update(bytes);
        hasher.finish() == digest
    })
}

/// Chain ids of layers whose uncompressed digests are `diff_ids`, lowest first.
///
/// Upstream: `image-spec/identity.ChainIDs`.
pub(crate) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let id = match chain.last() {
            None => diff_id.clone(),
            Some(parent) => sha256(format!("{parent} {diff_id}").as_bytes()),
        };
        chain.push(id);
    }
    chain
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Hashes all that is read through it.
pub(crate) struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> HashingReader<R> {
    pub(crate) fn new(inner: R, hasher: Hasher) -> Self {
        Self { inner, hasher }
    }

    pub(crate) fn finish(self) -> String {
        self.hasher.finish()
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_and_chains() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256(b""), empty);
        assert!(matches(b"", empty));
        assert!(!matches(b"x", empty));
        assert!(!matches(b"", "md5:00"));
        let ids = chain_ids(&["sha256:a".into(), "sha256:b".into()]);
        assert_eq!(ids[0], "sha256:a");
        assert_eq!(ids[1], sha256(b"sha256:a sha256:b"));
    }
}
