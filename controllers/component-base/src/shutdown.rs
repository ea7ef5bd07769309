//! One token that ends a process: SIGTERM or SIGINT triggers it, every task watches it.
//!
//! Upstream: `k8s.io/apiserver/pkg/server/signal.go` (a second signal exits at once with code 1).

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A cloneable shutdown token. Triggering a parent triggers its children, not the other way round.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
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

    /// A token that ends with this one, and can be triggered alone.
    pub fn child(&self) -> Self {
        Self {
            token: self.token.child_token(),
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

    /// The underlying token, for libraries that want one.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }
}
