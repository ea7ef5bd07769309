//! What a provider answers when it does not do what it was asked to.

/// Why a provider did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// It never will: this provider has no such thing. HTTP: 501.
    #[error("this provider does not support {0}")]
    Unsupported(&'static str),
    /// There is no such pod or container. HTTP: 404.
    #[error("not found")]
    NotFound,
    /// A field of the pod cannot be understood or carried out; no retry helps before it is changed. HTTP: 400.
    #[error("{field}: {message}")]
    Invalid {
        /// The field's path, as `spec.containers[0].image`.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// Not now: the backend is away or busy. Tried again later. HTTP: 503.
    #[error("{0}")]
    Unavailable(String),
    /// It went wrong. Tried again later. HTTP: 500.
    #[error("{0}")]
    Failed(String),
}
