//! A token bucket: `burst` at once, then `qps` a second, first come first served.
//!
//! Nobody owes tokens: one is taken when its turn has come, so a waiter that gives up costs nothing.
//! Upstream: `k8s.io/client-go/util/flowcontrol`, `golang.org/x/time/rate`.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::clock::Clock;

/// A rate limit shared by everybody that holds it.
#[derive(Debug)]
pub struct TokenBucket {
    qps: f64,
    burst: f64,
    /// Who waits for a token; the semaphore hands the place on in order, and forgets who is gone.
    turn: Semaphore,
    state: Mutex<State>,
    clock: Clock,
}

#[derive(Debug)]
struct State {
    tokens: f64,
    /// By the clock, which begins with the bucket.
    at: Duration,
}

impl TokenBucket {
    /// A full bucket. `qps` is above zero.
    pub fn new(qps: f64, burst: u32) -> Self {
        Self {
            qps,
            burst: f64::from(burst),
            turn: Semaphore::new(1),
            state: Mutex::new(State {
                tokens: f64::from(burst),
                at: Duration::ZERO,
            }),
            clock: Clock::real(),
        }
    }

    /// Takes a token, waiting for it if need be. Cancel-safe: dropped while it waits, it has taken nothing.
    pub async fn acquire(&self) {
        // The semaphore is never closed.
        let _turn = self.turn.acquire().await;
        while let Err(wait) = self.take() {
            self.clock.sleep(wait).await;
        }
    }

    /// Takes a token if there is one that nobody waits for.
    pub async fn try_acquire(&self) -> bool {
        match self.turn.try_acquire() {
            Ok(_turn) => self.take().is_ok(),
            Err(_) => false,
        }
    }

    /// A token, or how long until there is one.
    fn take(&self) -> Result<(), Duration> {
        let mut state = self.lock();
        let now = self.clock.monotonic();
        let grown = now.saturating_sub(state.at).as_secs_f64() * self.qps;
        state.tokens = (state.tokens + grown).min(self.burst);
        state.at = now;
        if state.tokens >= 1.0 {
            state.tokens -= 1.0;
            Ok(())
        } else {
            let wait = Duration::from_secs_f64((1.0 - state.tokens) / self.qps);
            // Rounding must not make it wait for nothing.
            Err(wait.max(Duration::from_millis(1)))
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn lets_a_burst_through_and_then_so_many_a_second() {
        let bucket = TokenBucket::new(50.0, 3);
        for _ in 0..3 {
            assert!(bucket.try_acquire().await);
        }
        assert!(!bucket.try_acquire().await);
        let begin = Instant::now();
        for _ in 0..20 {
            bucket.acquire().await;
        }
        let took = begin.elapsed();
        assert!(took > Duration::from_millis(380), "{took:?}");
    }

    #[tokio::test]
    async fn whoever_gives_up_costs_nothing() {
        let bucket = TokenBucket::new(10.0, 1);
        bucket.acquire().await;
        {
            let mut waiters: Vec<_> = (0..1_500).map(|_| Box::pin(bucket.acquire())).collect();
            for waiter in &mut waiters {
                assert!(waiter.now_or_never().is_none());
            }
        }
        // A debt of 1,500 would take minutes.
        let soon = tokio::time::timeout(Duration::from_secs(2), bucket.acquire());
        assert!(soon.await.is_ok());
    }

    #[tokio::test]
    async fn first_come_first_served() {
        let bucket = Arc::new(TokenBucket::new(10.0, 1));
        bucket.acquire().await;
        let order = Arc::new(Mutex::new(vec![]));
        let tasks: Vec<_> = (0..5)
            .map(|number| {
                let (bucket, order) = (bucket.clone(), order.clone());
                tokio::spawn(async move {
                    bucket.acquire().await;
                    order.lock().unwrap().push(number);
                })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(!bucket.try_acquire().await);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4]);
    }
}
