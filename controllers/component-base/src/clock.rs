//! Time as a value that tests can move.
//!
//! Pure cores get `now` as an argument; async shells hold a [`Clock`]. Upstream: `k8s.io/utils/clock`.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::watch;

/// Wall clock, monotonic clock and sleeping; cheap to clone.
#[derive(Clone, Debug)]
pub struct Clock {
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Real {
        start: tokio::time::Instant,
    },
    /// What the wall clock said when the runtime's did `begun`.
    Runtime {
        start: Timestamp,
        begun: tokio::time::Instant,
    },
    Fake(FakeClock),
}

impl Clock {
    /// The machine's clock. Its monotonic part is tokio's, as its sleeps are: in a paused runtime they go together.
    pub fn real() -> Self {
        Self {
            kind: Kind::Real {
                start: tokio::time::Instant::now(),
            },
        }
    }

    /// The clock of the tokio runtime, which says `start` now. In a test with a paused clock it is moved as the runtime's is: by
    /// itself, to the next sleeper, once nobody has anything else to do.
    pub fn of_runtime(start: Timestamp) -> Self {
        let begun = tokio::time::Instant::now();
        Self {
            kind: Kind::Runtime { start, begun },
        }
    }

    /// Wall clock time. May step.
    pub fn now(&self) -> Timestamp {
        match &self.kind {
            Kind::Real { .. } => Timestamp::now(),
            Kind::Runtime { start, begun } => later(*start, begun.elapsed()),
            Kind::Fake(fake) => fake.now(),
        }
    }

    /// Time since the clock was made; never steps back.
    pub fn monotonic(&self) -> Duration {
        match &self.kind {
            Kind::Real { start } => start.elapsed(),
            Kind::Runtime { begun, .. } => begun.elapsed(),
            Kind::Fake(fake) => fake.elapsed(),
        }
    }

    /// The same as a point in time that others can be compared with.
    pub fn instant(&self) -> Instant {
        match &self.kind {
            Kind::Real { .. } | Kind::Runtime { .. } => tokio::time::Instant::now().into_std(),
            Kind::Fake(fake) => fake.begun + fake.elapsed(),
        }
    }

    /// Sleeps; cancel-safe. With a fake clock, until the clock was moved far enough.
    pub async fn sleep(&self, duration: Duration) {
        match &self.kind {
            Kind::Real { .. } | Kind::Runtime { .. } => tokio::time::sleep(duration).await,
            Kind::Fake(fake) => fake.sleep(duration).await,
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::real()
    }
}

/// A clock that stands still until a test moves it.
#[derive(Clone, Debug)]
pub struct FakeClock {
    start: Timestamp,
    begun: Instant,
    offset: Arc<Mutex<Duration>>,
    moved: Arc<watch::Sender<Duration>>,
}

impl FakeClock {
    /// A clock that stands at `start`.
    pub fn new(start: Timestamp) -> Self {
        Self {
            start,
            begun: Instant::now(),
            offset: Arc::default(),
            moved: Arc::new(watch::Sender::new(Duration::ZERO)),
        }
    }

    /// The handle that code under test holds.
    pub fn clock(&self) -> Clock {
        Clock {
            kind: Kind::Fake(self.clone()),
        }
    }

    /// Moves the clock forward and wakes sleepers whose time came.
    pub fn advance(&self, by: Duration) {
        let mut offset = self.offset.lock().expect("no panic while the lock is held");
        *offset += by;
        self.moved.send_replace(*offset);
    }

    fn elapsed(&self) -> Duration {
        *self.offset.lock().expect("no panic while the lock is held")
    }

    fn now(&self) -> Timestamp {
        later(self.start, self.elapsed())
    }

    async fn sleep(&self, duration: Duration) {
        let until = self.elapsed() + duration;
        let mut moved = self.moved.subscribe();
        // The sender lives in self, so waiting cannot fail.
        let _ = moved.wait_for(|elapsed| *elapsed >= until).await;
    }
}

fn later(start: Timestamp, by: Duration) -> Timestamp {
    start + jiff::SignedDuration::try_from(by).unwrap_or(jiff::SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_runtime_s_clock_goes_with_its_sleepers() {
        let clock = Clock::of_runtime(Timestamp::UNIX_EPOCH);
        clock.sleep(Duration::from_secs(3600)).await;
        assert_eq!(clock.now().as_second(), 3600);
        assert_eq!(clock.monotonic().as_secs(), 3600);
    }

    #[tokio::test(start_paused = true)]
    async fn the_machine_s_clock_measures_what_it_sleeps() {
        let (clock, begun) = (Clock::real(), Clock::real().instant());
        clock.sleep(Duration::from_secs(3600)).await;
        assert_eq!(clock.monotonic().as_secs(), 3600);
        assert_eq!((clock.instant() - begun).as_secs(), 3600);
    }

    #[tokio::test]
    async fn fake_clock_wakes_sleepers() {
        let fake = FakeClock::new(Timestamp::UNIX_EPOCH);
        let clock = fake.clock();
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep(Duration::from_secs(10)).await }
        });
        tokio::task::yield_now().await;
        fake.advance(Duration::from_secs(9));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        fake.advance(Duration::from_secs(1));
        sleeper.await.unwrap();
        assert_eq!(clock.now().as_second(), 10);
    }
}
