//! What the error stream says at the end.

use serde_json::json;

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    Success,
    /// Not zero.
    Code(i32),
    /// It could not be started, or nobody knows.
    Failed(String),
}

impl Exit {
    /// A `metav1.Status`, for v4 and later.
    pub(super) fn json(&self) -> String {
        match self {
            Self::Success => json!({ "metadata": {}, "status": "Success" }),
            Self::Code(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.message(),
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            Self::Failed(_) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.message(),
                "reason": "InternalError",
                "code": 500,
            }),
        }
        .to_string()
    }

    /// Plain text, for the protocols before v4; `None`: nothing is said.
    pub(super) fn text(&self) -> Option<String> {
        (*self != Self::Success).then(|| self.message())
    }

    fn message(&self) -> String {
        match self {
            Self::Success => String::new(),
            Self::Code(code) => {
                format!("command terminated with non-zero exit code: exit status {code}")
            }
            Self::Failed(reason) => format!("Internal error occurred: {reason}"),
        }
    }
}
