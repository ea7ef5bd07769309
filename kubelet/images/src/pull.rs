//! Pulling: resolve, fetch, verify, unpack.

/// Why a pull failed.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The name is malformed. No retry helps. Upstream reason: `InvalidImageName`.
    #[error("failed to parse image name {image:?}: {source}")]
    InvalidName { image: String, #[source] source: crate::reference::ReferenceError },
    /// No registry host could be asked (no connection, 5xx, 429). A retry may help.
    #[error("failed to pull image {image:?}: {reason}")]
    Unavailable { image: String, reason: String },
    /// The registry said no: unknown name or tag, or no permission. A retry helps only after a change.
    #[error("failed to pull image {image:?}: {reason}")]
    Refused { image: String, reason: String },
    /// Something that came does not match its digest or is no valid manifest, config or layer.
    #[error("failed to pull image {image:?}: {reason}")]
    Verification { image: String, reason: String },
    /// The image has no variant for this machine.
    #[error("failed to pull image {image:?}: no match for platform in manifest: {platform}: not found")]
    NoMatchingPlatform { image: String, platform: String },
    #[error("failed to pull image {image:?}: {source}")]
    Unpack { image: String, #[source] source: crate::unpack::UnpackError },
    #[error("failed to pull image {image:?}: {source}")]
    Store { image: String, #[source] source: crate::store::ImageStoreError },
}
