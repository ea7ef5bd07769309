//! Work on the disk, off the async threads.

/// Runs disk work where it may block; a panic there goes on here.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only at the runtime's end, when nobody will look at an answer any more.
            Err(_) => std::future::pending().await,
        },
    }
}
