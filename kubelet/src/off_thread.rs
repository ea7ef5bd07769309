//! File work that may hang, off the async threads and with a deadline.
//!
//! A file system of somebody else's (FUSE, a dead NFS server) may keep a thread for good. What called goes on after
//! [`DEADLINE`]; the thread is lost, and at most [`AT_ONCE`] of them ever are.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Of one piece of work, the wait for its turn included.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// Pieces at a time; also the most threads that can be lost.
const AT_ONCE: usize = 32;

/// The work gave no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OffThreadError {
    #[error("no answer from the file system within {} s", DEADLINE.as_secs())]
    Deadline,
    #[error("the work on files ended early")]
    Panicked,
}

/// Runs `work` on a thread of its own.
///
/// # Errors
/// It took longer than [`DEADLINE`] (it goes on, unheard), or panicked.
pub async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, OffThreadError> {
    static TURNS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(AT_ONCE)));
    run(&TURNS, DEADLINE, work).await
}

/// Runs `work`, which may wait for files, on a thread where that holds nobody up; in its turn among the tasks where one thread does
/// everything ([`host::alone`]).
pub fn spawn_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    match host::alone::works_alone() {
        true => Handle::current().spawn(async move { work() }),
        false => tokio::task::spawn_blocking(work),
    }
}

async fn run<T: Send + 'static>(
    turns: &Arc<Semaphore>,
    deadline: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, OffThreadError> {
    let work = async {
        let turn = turns.clone().acquire_owned().await;
        let turn = turn.map_err(|_| OffThreadError::Panicked)?;
        let done = spawn_blocking(move || {
            // Given back when the work is through, not when nobody waits any more.
            let _turn = turn;
            work()
        });
        done.await.map_err(|_| OffThreadError::Panicked)
    };
    match tokio::time::timeout(deadline, work).await {
        Ok(done) => done,
        Err(_) => Err(OffThreadError::Deadline),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hanging_work_holds_its_turn_and_nobody_else() {
        let turns = Arc::new(Semaphore::new(1));
        let (release, held) = std::sync::mpsc::channel::<()>();
        let short = Duration::from_millis(50);
        let hang = run(&turns, short, move || held.recv().is_ok()).await;
        assert_eq!(hang, Err(OffThreadError::Deadline));
        assert_eq!(
            run(&turns, short, || 1).await,
            Err(OffThreadError::Deadline)
        );
        drop(release);
        assert_eq!(run(&turns, DEADLINE, || 2).await, Ok(2));
        let work = || -> u8 { panic!("as it may") };
        assert_eq!(
            run(&turns, DEADLINE, work).await,
            Err(OffThreadError::Panicked)
        );
    }
}
