//! SIGTERM and SIGINT end a process in good order, a second one at once.
//!
//! Upstream: `k8s.io/apiserver/pkg/server/signal.go` (a second signal exits with code 1).

use tokio::signal::unix::{SignalKind, signal};

use crate::shutdown::Shutdown;
use crate::tasks::spawn_helper;

impl Shutdown {
    /// A token that the first SIGTERM or SIGINT triggers; the second one exits the process with code 1.
    ///
    /// # Errors
    /// When the kernel refuses a signal handler; retrying does not help.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::new();
        shutdown.keep_for_process();
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let token = shutdown.token().clone();
        spawn_helper("signals", async move {
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
}
