//! What the tasks of one streaming connection and its owner know of it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a closed connection waits for the client to hang up, so that the last bytes are not lost to a reset.
pub(crate) const LINGER: Duration = Duration::from_secs(2);
/// How long a client may take to read what is queued when the connection closes.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);
/// While a stream's reader holds the connection back nothing is read from it, not even its end: so often something is
/// written that shows whether the client is there, and shows the client that we are.
pub(crate) const PROBE_EVERY: Duration = Duration::from_secs(5);

pub(crate) struct Life {
    /// Nothing comes any more.
    pub(crate) closed: CancellationToken,
    /// The client is gone, or has idled away: nothing more is written.
    pub(crate) gone: CancellationToken,
    /// We want to end: what is queued is written, then the connection closes.
    pub(crate) closing: CancellationToken,
    last_activity: Mutex<Instant>,
}

impl Life {
    pub(crate) fn new() -> Self {
        Self {
            closed: CancellationToken::new(),
            gone: CancellationToken::new(),
            closing: CancellationToken::new(),
            last_activity: Mutex::new(Instant::now()),
        }
    }

    /// Something went over the connection.
    pub(crate) fn touch(&self) {
        *self
            .last_activity
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Resolves when nothing went over the connection for so long; zero: never.
    pub(crate) async fn idle(&self, timeout: Duration) {
        if timeout.is_zero() {
            return std::future::pending().await;
        }
        loop {
            let last = *self
                .last_activity
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if last + timeout <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(last + timeout).await;
        }
    }

    /// Waits for `work`, unless the connection ends first: then `None`. `probe` is called every [`PROBE_EVERY`].
    pub(crate) async fn while_held_back<T>(
        &self,
        work: impl Future<Output = T>,
        idle_timeout: Duration,
        mut probe: impl FnMut(),
    ) -> Option<T> {
        tokio::pin!(work);
        let idle = self.idle(idle_timeout);
        tokio::pin!(idle);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = self.closing.cancelled() => return None,
                () = self.closed.cancelled() => return None,
                () = &mut idle => return None,
                () = tokio::time::sleep(PROBE_EVERY) => probe(),
            }
        }
    }
}
