//! Side-loading an archive.

/// Why an archive could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("image archive {path:?}: {reason}")]
    Invalid { path: std::path::PathBuf, reason: String },
}
