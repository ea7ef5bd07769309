//! Why a call is refused, and the gRPC status that says so.

use runtime::{ImageError, RuntimeError};
use tonic::Status;

/// What is wrong with a request, by the name of its field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    #[error("{0} is required")]
    Missing(&'static str),
    #[error("invalid {field}: {value:?}: {reason}")]
    Invalid {
        field: &'static str,
        value: String,
        reason: String,
    },
    /// Nothing here acts on it: saying yes would be a lie.
    #[error("{field} is not supported by this runtime: {why}")]
    NotBuilt {
        field: &'static str,
        why: &'static str,
    },
}

impl FieldError {
    pub(crate) fn invalid(
        field: &'static str,
        value: impl ToString,
        reason: impl Into<String>,
    ) -> Self {
        Self::Invalid {
            field,
            value: value.to_string(),
            reason: reason.into(),
        }
    }
}

impl From<FieldError> for Status {
    fn from(error: FieldError) -> Self {
        let text = error.to_string();
        match error {
            FieldError::Missing(_) | FieldError::Invalid { .. } => Self::invalid_argument(text),
            FieldError::NotBuilt { .. } => Self::unimplemented(text),
        }
    }
}

/// The runtime's error as its clients know it: upstream's kubelet and crictl look at the codes `NotFound`, `DeadlineExceeded` and
/// `Unimplemented`.
pub fn status(error: RuntimeError) -> Status {
    let text = error.to_string();
    match error {
        RuntimeError::SandboxNotFound { .. }
        | RuntimeError::ContainerNotFound { .. }
        | RuntimeError::Image(ImageError::NotFound { .. }) => Status::not_found(text),
        RuntimeError::Invalid { .. } | RuntimeError::Image(ImageError::InvalidImageName { .. }) => {
            Status::invalid_argument(text)
        }
        RuntimeError::NotRunning { .. } => Status::failed_precondition(text),
        RuntimeError::Timeout { .. } => Status::deadline_exceeded(text),
        RuntimeError::Unsupported(_) => Status::unimplemented(text),
        RuntimeError::Image(ImageError::RegistryUnavailable { .. }) => Status::unavailable(text),
        RuntimeError::Create(_)
        | RuntimeError::Start(_)
        | RuntimeError::Sandbox { .. }
        | RuntimeError::Network { .. }
        | RuntimeError::Shim { .. }
        | RuntimeError::Io { .. }
        | RuntimeError::Image(_) => Status::unknown(text),
    }
}
