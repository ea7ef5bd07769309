//! What a plugin answers: a [`Code`], the reasons, and the plugin that said so.
//!
//! Expected outcomes (unschedulable, skip, wait) are values here, never Rust errors. Upstream: kube-scheduler
//! framework/interface.go, v1.36.

use std::fmt;

/// The kind of answer. Upstream's names and meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Code {
    /// The plugin ran and found the pod schedulable.
    #[default]
    Success,
    /// Something unexpected went wrong; the pod is retried soon, whatever events come.
    Error,
    /// The pod does not fit now; preemption might help.
    Unschedulable,
    /// The pod does not fit, and preemption cannot help.
    UnschedulableAndUnresolvable,
    /// A Permit plugin asks to wait.
    Wait,
    /// PreFilter/PreScore: the coupled Filter/Score has nothing to do. Bind: not mine.
    Skip,
    /// Scheduling went well but something external has to act first; no backoff.
    Pending,
}

impl Code {
    /// Upstream's name of the code, as metrics and logs carry it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Code::Success => "Success",
            Code::Error => "Error",
            Code::Unschedulable => "Unschedulable",
            Code::UnschedulableAndUnresolvable => "UnschedulableAndUnresolvable",
            Code::Wait => "Wait",
            Code::Skip => "Skip",
            Code::Pending => "Pending",
        }
    }

    /// True for `Unschedulable`, `UnschedulableAndUnresolvable` and `Pending`.
    pub const fn is_rejected(self) -> bool {
        matches!(
            self,
            Code::Unschedulable | Code::UnschedulableAndUnresolvable | Code::Pending
        )
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The result of running a plugin. A success carries nothing and allocates nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[must_use]
pub struct Status {
    code: Code,
    reasons: Vec<String>,
    plugin: &'static str,
}

impl Status {
    /// The empty success.
    pub const fn success() -> Self {
        Status {
            code: Code::Success,
            reasons: Vec::new(),
            plugin: "",
        }
    }

    /// A status with one reason.
    pub fn new(code: Code, reason: impl Into<String>) -> Self {
        Status {
            code,
            reasons: vec![reason.into()],
            plugin: "",
        }
    }

    /// A status with any number of reasons, in order.
    pub fn with_reasons(code: Code, reasons: Vec<String>) -> Self {
        Status {
            code,
            reasons,
            plugin: "",
        }
    }

    /// `Unschedulable` with one reason.
    pub fn unschedulable(reason: impl Into<String>) -> Self {
        Self::new(Code::Unschedulable, reason)
    }

    /// `UnschedulableAndUnresolvable` with one reason.
    pub fn unresolvable(reason: impl Into<String>) -> Self {
        Self::new(Code::UnschedulableAndUnresolvable, reason)
    }

    /// `Skip` without a reason.
    pub const fn skip() -> Self {
        Status {
            code: Code::Skip,
            reasons: Vec::new(),
            plugin: "",
        }
    }

    /// `Wait` without a reason (Permit).
    pub const fn wait() -> Self {
        Status {
            code: Code::Wait,
            reasons: Vec::new(),
            plugin: "",
        }
    }

    /// `Error` with the text of `error`.
    pub fn error(error: impl fmt::Display) -> Self {
        Self::new(Code::Error, error.to_string())
    }

    /// Names the plugin that gave the status, unless one is named already.
    pub fn by(mut self, plugin: &'static str) -> Self {
        if self.plugin.is_empty() {
            self.plugin = plugin;
        }
        self
    }

    /// The code.
    pub const fn code(&self) -> Code {
        self.code
    }

    /// Why, in the plugin's order; empty for a success.
    pub fn reasons(&self) -> &[String] {
        &self.reasons
    }

    /// The plugin that gave the status; empty when unknown.
    pub const fn plugin(&self) -> &'static str {
        self.plugin
    }

    /// The reasons joined by `, `.
    pub fn message(&self) -> String {
        self.reasons.join(", ")
    }

    /// True for `Success`.
    pub const fn is_success(&self) -> bool {
        matches!(self.code, Code::Success)
    }

    /// True for `Skip`.
    pub const fn is_skip(&self) -> bool {
        matches!(self.code, Code::Skip)
    }

    /// True for `Wait`.
    pub const fn is_wait(&self) -> bool {
        matches!(self.code, Code::Wait)
    }

    /// True for `Error`.
    pub const fn is_error(&self) -> bool {
        matches!(self.code, Code::Error)
    }

    /// True for `Unschedulable`, `UnschedulableAndUnresolvable` and `Pending`.
    pub const fn is_rejected(&self) -> bool {
        self.code.is_rejected()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())
    }
}
