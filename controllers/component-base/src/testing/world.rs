//! What a whole program stands on in a test.

use std::fmt::Debug;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinHandle;

use super::ApiServer;
use crate::clock::Clock;
use crate::shutdown::Shutdown;

/// When every such test begins.
const BEGIN_SECONDS: i64 = 1_800_000_000;

/// An API server in memory, virtual time from the same moment on in every test, and the program's end.
pub struct World {
    /// Empty at first.
    pub api: ApiServer,
    /// The runtime's, which must be paused.
    pub clock: Clock,
    /// Triggered by [`World::end`].
    pub shutdown: Shutdown,
}

impl World {
    /// Nothing has happened yet.
    pub fn begin() -> Self {
        let begin = Timestamp::from_second(BEGIN_SECONDS).expect("the constant is in range");
        let clock = Clock::of_runtime(begin);
        Self {
            api: ApiServer::new(clock.clone()),
            clock,
            shutdown: Shutdown::new(),
        }
    }

    /// A time in which all that can happen does.
    pub async fn settle(&self, time: Duration) {
        self.clock.sleep(time).await;
    }

    /// Ends the program that runs here.
    ///
    /// # Panics
    /// It ends with an error, or panicked.
    pub async fn end<E: Debug>(&self, running: JoinHandle<Result<(), E>>) {
        self.shutdown.trigger();
        running.await.expect("no panic").expect("a good end");
    }
}
