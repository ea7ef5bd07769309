//! Where file system work is done.

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Runs `work`, which may wait for files, on a thread where that holds nobody up; in its turn among the tasks where one thread does
/// everything ([`host::alone`]).
pub(crate) fn spawn_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    match host::alone::works_alone() {
        true => Handle::current().spawn(async move { work() }),
        false => tokio::task::spawn_blocking(work),
    }
}
