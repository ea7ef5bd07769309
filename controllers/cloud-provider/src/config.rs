//! Configuration files of providers.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::de::DeserializeOwned;

/// Why a provider cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Nobody knows the name.
    #[error("unknown cloud provider {name:?}, known are {}", .known.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: &'static [&'static str],
    },
    /// A file cannot be read.
    #[error("reading {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A file says nothing that is understood.
    #[error("{}: {message}", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the field.
        message: String,
    },
}

impl ConfigError {
    pub(crate) fn invalid(path: &Path, message: impl ToString) -> Self {
        Self::Invalid {
            path: path.to_owned(),
            message: message.to_string(),
        }
    }
}

pub(crate) fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })
}

/// A file in YAML; a field nobody knows is an error.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = read(path)?;
    serde_saphyr::from_str(&text).map_err(|error| ConfigError::invalid(path, error))
}

/// What a file was when it was read: another one is read again.
pub(crate) type Version = (SystemTime, u64);

pub(crate) fn version(path: &Path) -> Result<Version, ConfigError> {
    let read = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let metadata = std::fs::metadata(path).map_err(read)?;
    Ok((metadata.modified().map_err(read)?, metadata.len()))
}
