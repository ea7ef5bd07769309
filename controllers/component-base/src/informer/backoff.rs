//! How long an informer waits before it asks again.

use std::time::Duration;

use kube::runtime::utils::Backoff;

/// Upstream: `NewExponentialBackoffManager(800ms, …)` of client-go's reflector.
const FIRST: Duration = Duration::from_millis(800);
/// DIFFERS: upstream waits up to 30 s, doubled by jitter; a node would then learn of its pods a minute after the API server is back.
const LONGEST: Duration = Duration::from_secs(4);

/// Doubles up to [`LONGEST`], with a jitter of up to a quarter so that not all ask at once.
#[derive(Debug)]
pub(super) struct RelistBackoff {
    next: Duration,
}

impl Default for RelistBackoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Iterator for RelistBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.next;
        self.next = (wait * 2).min(LONGEST);
        Some(wait.mul_f64(1.0 + 0.25 * rand::random::<f64>()))
    }
}

impl Backoff for RelistBackoff {
    fn reset(&mut self) {
        self.next = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_wait_is_longer_than_five_seconds_however_long_the_server_is_away() {
        let mut backoff = RelistBackoff::default();
        for _ in 0..100 {
            assert!(
                backoff
                    .next()
                    .is_some_and(|wait| wait >= FIRST && wait <= Duration::from_secs(5))
            );
        }
        backoff.reset();
        assert!(backoff.next().is_some_and(|wait| wait <= FIRST * 2));
    }
}
