//! One token that ends a process: a signal or a failed task triggers it ([`crate::signals`], [`crate::tasks`]), every task watches it.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

/// What ended the process. No retry helps but a new process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// A panic, with its message.
    #[error("the task {name:?} panicked: {message}")]
    Panicked {
        /// The task.
        name: String,
        /// The panic's words.
        message: String,
    },
    /// The task returned although nobody had asked the process to end.
    #[error("the task {name:?} ended unexpectedly")]
    Ended {
        /// The task.
        name: String,
    },
}

/// A cloneable shutdown token. Triggering a parent triggers its children, not the other way round.
#[derive(Clone, Debug)]
pub struct Shutdown {
    token: CancellationToken,
    /// The token of the whole process.
    root: CancellationToken,
    /// The first failure of the process.
    failure: Arc<OnceLock<TaskError>>,
}

static PROCESS: OnceLock<Shutdown> = OnceLock::new();

impl Default for Shutdown {
    fn default() -> Self {
        let token = CancellationToken::new();
        Self {
            root: token.clone(),
            token,
            failure: Arc::default(),
        }
    }
}

impl Shutdown {
    /// A token that only [`Shutdown::trigger`] triggers; for tests and sub-trees.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes it the process's, unless there is one.
    pub(crate) fn keep_for_process(&self) {
        // The first one is the process's.
        let _ = PROCESS.set(self.clone());
    }

    /// What [`Shutdown::on_signals`] made, if it was called.
    pub fn of_process() -> Option<&'static Self> {
        PROCESS.get()
    }

    /// A token that ends with this one, and can be triggered alone.
    pub fn child(&self) -> Self {
        Self {
            token: self.token.child_token(),
            root: self.root.clone(),
            failure: self.failure.clone(),
        }
    }

    /// Ends everything that watches this token.
    pub fn trigger(&self) {
        self.token.cancel();
    }

    /// Whether the token was triggered.
    pub fn is_triggered(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Resolves once triggered; cancel-safe.
    pub async fn triggered(&self) {
        self.token.cancelled().await;
    }

    /// Runs `future` until it ends or the token is triggered; `None` means triggered.
    pub async fn run_until<F: Future>(&self, future: F) -> Option<F::Output> {
        self.token.run_until_cancelled(future).await
    }

    /// Keeps the first failure and ends the process's tasks.
    pub fn fail(&self, error: TaskError) {
        tracing::error!(%error, "The process ends: it cannot work without this task");
        // The first one is the cause, whatever follows.
        let _ = self.failure.set(error);
        self.root.cancel();
    }

    /// What failed, if anything did.
    pub fn failed(&self) -> Option<TaskError> {
        self.failure.get().cloned()
    }

    pub(crate) async fn root_triggered(&self) {
        self.root.cancelled().await;
    }

    /// The underlying token, for libraries that want one.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }
}
