//! One token that ends a process: SIGTERM or SIGINT triggers it, every task watches it.
//!
//! Upstream: `k8s.io/apiserver/pkg/server/signal.go` (a second signal exits at once with code 1).

use std::sync::{Arc, OnceLock};

use tokio::signal::unix::{SignalKind, signal};
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

    /// A token that the first SIGTERM or SIGINT triggers; the second one exits the process with code 1.
    ///
    /// # Errors
    /// When the kernel refuses a signal handler; retrying does not help.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::new();
        // The first one is the process's.
        let _ = PROCESS.set(shutdown.clone());
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let token = shutdown.token.clone();
        tokio::spawn(async move {
            for round in 0..2 {
                tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
                if round == 1 {
                    std::process::exit(1);
                }
                tracing::info!("Received a termination signal, shutting down");
                token.cancel();
            }
        });
        Ok(shutdown)
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
