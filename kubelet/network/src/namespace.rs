//! Work inside another network namespace.

use std::fs::File;
use std::future::Future;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

/// Runs the future that `work` makes on a thread of its own that has joined the network namespace at `path`.
/// The thread ends with the work, so no other task ever finds itself in that namespace.
///
/// # Errors
/// Outer: the namespace could not be entered.
pub async fn run_in<F, T, Output>(path: &Path, work: F) -> std::io::Result<Output>
where
    F: FnOnce() -> T + Send + 'static,
    T: Future<Output = Output>,
    Output: Send + 'static,
{
    let namespace = File::open(path)?;
    let (send, receive) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("netns".into())
        .spawn(move || {
            let enter = || {
                setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)?;
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                Ok(runtime.block_on(work()))
            };
            // A receiver that is gone was cancelled; the work is done all the same.
            let _ = send.send(enter());
        })?;
    receive.await.unwrap_or_else(|_| {
        Err(std::io::Error::other(
            "the thread in the network namespace panicked",
        ))
    })
}
