//! Unpacking a layer into a directory of its own.

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("layer entry {entry:?}: {source}")]
    Entry { entry: String, #[source] source: std::io::Error },
}
