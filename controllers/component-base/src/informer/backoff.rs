//! How long an informer waits before it asks again.

use std::time::Duration;

use http::StatusCode;
use kube::runtime::watcher::{Error, Event};

/// Upstream: `NewExponentialBackoffManager(800ms, …)` of client-go's reflector.
const FIRST: Duration = Duration::from_millis(800);
/// DIFFERS: upstream waits up to 30 s, doubled by jitter; a node would then learn of its pods a minute after the API server is back.
const LONGEST: Duration = Duration::from_millis(2500);

/// Doubles up to [`LONGEST`], and up to as much again at random: hundreds of watches end in the same moment, when their connection does.
#[derive(Debug)]
pub(super) struct RelistBackoff {
    next: Duration,
    /// The last error was an answer of the server.
    answered: bool,
    /// A relist without a wait was granted, and nothing has come of it yet.
    granted: bool,
}

impl Default for RelistBackoff {
    fn default() -> Self {
        Self {
            next: FIRST,
            answered: false,
            granted: false,
        }
    }
}

impl RelistBackoff {
    /// The wait after an error.
    ///
    /// DIFFERS: an expired version needs a list, which the server would gladly give: the first time it is asked for at once.
    /// After an API server's return all versions are expired, and upstream's controllers wait twice.
    /// A server that was not there and now answers is about to be well: it is waited for from [`FIRST`] on again.
    pub(super) fn after(&mut self, error: &Error) -> Duration {
        let code = status_code(error);
        if !std::mem::replace(&mut self.answered, code.is_some()) && code.is_some() {
            self.next = FIRST;
        }
        if !is_expired(error) {
            self.granted = false;
        } else if !std::mem::replace(&mut self.granted, true) {
            return Duration::ZERO;
        }
        let wait = self.next;
        self.next = (wait * 2).min(LONGEST);
        wait.mul_f64(1.0 + rand::random::<f64>())
    }

    /// What came shows how well the server is: the begin of a list does not, it is told before the server is asked.
    pub(super) fn note<K>(&mut self, event: &Event<K>) {
        match event {
            Event::Init | Event::InitApply(_) => {}
            Event::InitDone => self.next = FIRST,
            Event::Apply(_) | Event::Delete(_) => *self = Self::default(),
        }
    }
}

/// Whether the server no longer has the version that the watch or the list wanted to go on from.
pub(super) fn is_expired(error: &Error) -> bool {
    status_code(error) == Some(StatusCode::GONE.as_u16())
}

/// What the server answered; `None`: nothing.
fn status_code(error: &Error) -> Option<u16> {
    match error {
        Error::WatchError(status) => Some(status.code),
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status))
        | Error::WatchFailed(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn error(code: u16) -> Error {
        Error::WatchError(Status::failure("no", "no").with_code(code).boxed())
    }

    fn no_answer() -> Error {
        Error::WatchStartFailed(kube::Error::TlsRequired)
    }

    #[test]
    fn watches_that_ended_together_do_not_begin_together() {
        let waits: Vec<Duration> = (0..300)
            .map(|_| RelistBackoff::default().after(&no_answer()))
            .collect();
        for tenth in 0..10 {
            let from = FIRST.mul_f64(1.0 + 0.1 * f64::from(tenth));
            let begin = waits
                .iter()
                .filter(|wait| (from..from + FIRST / 10).contains(*wait));
            // Thirty are to be expected.
            let count = begin.count();
            assert!((5..100).contains(&count), "{tenth}: {count}");
        }
    }

    #[test]
    fn no_wait_is_longer_than_five_seconds_however_long_the_server_is_away() {
        let mut backoff = RelistBackoff::default();
        for _ in 0..100 {
            let wait = backoff.after(&no_answer());
            assert!(wait >= FIRST && wait <= Duration::from_secs(5), "{wait:?}");
        }
        // It is back, and does not know its own rules yet.
        assert!(backoff.after(&error(403)) <= FIRST * 2);
        for _ in 0..3 {
            // Refused lists begin, too.
            backoff.note(&Event::<()>::Init);
            backoff.after(&error(403));
        }
        assert!(backoff.after(&error(403)) >= LONGEST);
        backoff.note(&Event::<()>::InitDone);
        assert!(backoff.after(&error(500)) <= FIRST * 2);
    }

    #[test]
    fn an_expired_version_is_left_behind_at_once_but_not_again_and_again() {
        let mut backoff = RelistBackoff::default();
        let relist = |backoff: &mut RelistBackoff| {
            backoff.note(&Event::<()>::Init);
            backoff.note(&Event::<()>::InitDone);
        };
        assert!(backoff.after(&error(500)) >= FIRST);
        assert_eq!(backoff.after(&error(410)), Duration::ZERO);
        relist(&mut backoff);
        assert!(backoff.after(&error(410)) >= FIRST);
        relist(&mut backoff);
        assert!(backoff.after(&error(410)) >= FIRST);
        backoff.note(&Event::Apply(()));
        assert_eq!(backoff.after(&error(410)), Duration::ZERO);
    }
}
