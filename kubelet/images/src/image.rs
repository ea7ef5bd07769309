//! The plain values the store hands out and takes.

use std::path::PathBuf;

use oci_spec::image::ImageConfiguration;

/// One image of the store.
#[derive(Clone, Debug)]
pub struct Image {
    /// `sha256:…` of the image's config.
    pub id: String,
    /// Normalised names with a tag, `docker.io/library/busybox:1.36`; sorted.
    pub repo_tags: Vec<String>,
    /// Normalised names with a digest, `docker.io/library/busybox@sha256:…`; sorted.
    pub repo_digests: Vec<String>,
    /// What the image weighs in a registry: manifest, config and compressed layers.
    pub size_bytes: u64,
    pub config: ImageConfiguration,
    /// Chain ids, lowest layer first; each `sha256:…`.
    pub layers: Vec<String>,
    /// A pinned image is not to be garbage collected by the kubelet.
    pub pinned: bool,
}

/// One credential for a registry. All empty means anonymous.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Auth {
    pub username: String,
    pub password: String,
    /// An OAuth2 refresh token, exchanged at the registry's token endpoint.
    pub identity_token: String,
    /// Sent as it is as the Bearer token.
    pub registry_token: String,
}

impl Auth {
    /// Whether nothing is given.
    pub fn is_anonymous(&self) -> bool {
        self == &Auth::default()
    }
}

impl std::fmt::Debug for Auth {
    /// Never shows a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// What the store occupies on its disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The store's root directory.
    pub mountpoint: PathBuf,
    pub used_bytes: u64,
    pub inodes_used: u64,
}
