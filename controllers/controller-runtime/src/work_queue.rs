//! A queue of keys that holds each key once, never gives a key to two workers, and delays keys that failed.
//!
//! A key added while a worker has it is given out again after `done`. Upstream: `k8s.io/client-go/util/workqueue` (the queue, the
//! delaying queue, and `DefaultTypedControllerRateLimiter`: per key 5 ms doubling to 1000 s, and 10 a second with a burst of 100).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use component_base::clock::Clock;
use component_base::metrics::{RegisterError, Registry};
use component_base::tasks::spawn_vital;
use tokio::sync::Notify;

use self::metrics::{Metrics, QueueMetrics};

mod metrics;

/// What may be queued.
pub trait Key: Clone + Eq + Hash + Ord + Send + Sync + 'static {}
impl<T: Clone + Eq + Hash + Ord + Send + Sync + 'static> Key for T {}

/// How long a failed key waits.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    /// After the first failure; doubles with each.
    pub base: Duration,
    /// Never longer than this.
    pub max: Duration,
    /// All keys together, a second; 0 means no limit.
    pub qps: f64,
    /// At once before `qps` holds.
    pub burst: u32,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(5),
            max: Duration::from_secs(1000),
            qps: 10.0,
            burst: 100,
        }
    }
}

/// Makes the queues of one component: they go by one clock, and what is told of them is in one registry. Cheap to clone.
#[derive(Clone)]
pub struct Queues {
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl Queues {
    /// No queue yet.
    ///
    /// # Errors
    /// The registry has the queues of another component.
    pub fn register(registry: &Registry, clock: Clock) -> Result<Self, RegisterError> {
        let metrics = Arc::new(Metrics::register(registry)?);
        Ok(Self { clock, metrics })
    }

    /// Of whose queues nobody reads anything.
    pub fn unread(clock: Clock) -> Self {
        Self::register(&Registry::new(), clock).expect("the registry is empty")
    }

    /// A queue with upstream's default limits; `name` labels its metrics. Must be called inside a tokio runtime.
    pub fn queue<K: Key>(&self, name: &str) -> WorkQueue<K> {
        self.queue_with(name, RateLimit::default())
    }

    /// The same with limits of its own.
    pub fn queue_with<K: Key>(&self, name: &str, limit: RateLimit) -> WorkQueue<K> {
        WorkQueue::make(name, limit, self.clock.clone(), &self.metrics)
    }
}

/// A cloneable handle to one queue, of [`Queues`].
pub struct WorkQueue<K = super::ObjectKey> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

struct Shared<K> {
    state: Mutex<State<K>>,
    ready: Notify,
    delayed: Notify,
    clock: Clock,
    limit: RateLimit,
    metrics: QueueMetrics,
}

struct State<K> {
    queue: VecDeque<K>,
    /// Keys that need work.
    dirty: HashSet<K>,
    /// Keys a worker has, and since when.
    processing: HashMap<K, Duration>,
    added_at: HashMap<K, Duration>,
    waiting: BinaryHeap<Reverse<(Duration, K)>>,
    /// The earliest time a waiting key is due.
    due: HashMap<K, Duration>,
    failures: HashMap<K, u32>,
    /// The overall bucket: when the next token is there.
    bucket: Duration,
    shut_down: bool,
}

impl<K: Key> WorkQueue<K> {
    fn make(name: &str, limit: RateLimit, clock: Clock, metrics: &Metrics) -> Self {
        let state = State {
            queue: VecDeque::new(),
            dirty: HashSet::new(),
            processing: HashMap::new(),
            added_at: HashMap::new(),
            waiting: BinaryHeap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
            bucket: Duration::ZERO,
            shut_down: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            ready: Notify::new(),
            delayed: Notify::new(),
            clock,
            limit,
            metrics: metrics.of_queue(name),
        });
        spawn_vital("delayed keys", move_due_keys(Arc::downgrade(&shared)));
        let weak = Arc::downgrade(&shared);
        metrics.watch(
            name,
            Box::new(move || weak.upgrade().map(|shared| shared.in_progress())),
        );
        Self { shared }
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.shared.lock()
    }

    /// Adds a key now.
    pub fn add(&self, key: K) {
        self.shared.add(key);
    }

    /// Adds a key after a time; an earlier time that is set already stays.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let first = {
            let mut state = self.lock();
            if state.shut_down {
                return;
            }
            let at = self.shared.clock.monotonic().saturating_add(delay);
            if state.due.get(&key).is_some_and(|due| *due <= at) {
                return;
            }
            let next = state.waiting.peek().map(|Reverse((next, _))| *next);
            state.due.insert(key.clone(), at);
            state.waiting.push(Reverse((at, key)));
            next.is_none_or(|next| at < next)
        };
        // Who sleeps until an earlier key is due need not wake for this one.
        if first {
            self.shared.delayed.notify_one();
        }
    }

    /// Adds a key that failed, after its backoff.
    pub fn add_rate_limited(&self, key: K) {
        self.shared.metrics.retries.inc();
        let delay = {
            let mut state = self.lock();
            let failures = state.failures.entry(key.clone()).or_default();
            let own = exponential(self.shared.limit, *failures);
            *failures = failures.saturating_add(1);
            own.max(state.take_token(self.shared.limit, self.shared.clock.monotonic()))
        };
        self.add_after(key, delay);
    }

    /// Forgets the failures of a key.
    pub fn forget(&self, key: &K) {
        self.lock().failures.remove(key);
    }

    /// How often a key failed since it was last forgotten.
    pub fn num_requeues(&self, key: &K) -> u32 {
        self.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// Keys ready to be worked on.
    pub fn len(&self) -> usize {
        self.lock().queue.len()
    }

    /// Whether nothing is ready.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next key; [`WorkQueue::done`] must follow. `None` when shut down and empty. Cancel-safe.
    pub async fn get(&self) -> Option<K> {
        loop {
            {
                let mut state = self.lock();
                if let Some(key) = state.queue.pop_front() {
                    let now = self.shared.clock.monotonic();
                    state.dirty.remove(&key);
                    state.processing.insert(key.clone(), now);
                    let waited = state
                        .added_at
                        .remove(&key)
                        .map(|at| now.saturating_sub(at))
                        .unwrap_or_default();
                    self.shared.metrics.got(waited, state.queue.len());
                    if !state.queue.is_empty() {
                        self.shared.ready.notify_one();
                    }
                    return Some(key);
                }
                if state.shut_down {
                    self.shared.ready.notify_one();
                    return None;
                }
            }
            self.shared.ready.notified().await;
        }
    }

    /// Gives a key back; if it was added meanwhile it is queued again.
    pub fn done(&self, key: &K) {
        {
            let mut state = self.lock();
            let now = self.shared.clock.monotonic();
            if let Some(since) = state.processing.remove(key) {
                self.shared
                    .metrics
                    .work
                    .observe(now.saturating_sub(since).as_secs_f64());
            }
            if !state.dirty.contains(key) {
                return;
            }
            state.queue.push_back(key.clone());
            self.shared.metrics.depth.set(state.queue.len() as f64);
        }
        self.shared.ready.notify_one();
    }

    /// Ends the queue: nothing is added any more, workers get `None` when it is empty.
    pub fn shut_down(&self) {
        {
            let mut state = self.lock();
            state.shut_down = true;
            state.waiting.clear();
            state.due.clear();
        }
        self.shared.ready.notify_waiters();
        self.shared.ready.notify_one();
        self.shared.delayed.notify_one();
    }
}

impl<K: Key> Shared<K> {
    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().expect("no panic while the lock is held")
    }

    /// Seconds that workers have spent on the keys they hold: all together, and the longest.
    fn in_progress(&self) -> (f64, f64) {
        let now = self.clock.monotonic();
        let state = self.lock();
        let times = state
            .processing
            .values()
            .map(|since| now.saturating_sub(*since).as_secs_f64());
        times.fold((0.0, 0.0), |(sum, longest), time| {
            (sum + time, f64::max(longest, time))
        })
    }

    fn add(&self, key: K) {
        {
            let mut state = self.lock();
            if state.shut_down || !state.dirty.insert(key.clone()) {
                return;
            }
            self.metrics.adds.inc();
            state.added_at.insert(key.clone(), self.clock.monotonic());
            if state.processing.contains_key(&key) {
                return;
            }
            state.queue.push_back(key);
            self.metrics.depth.set(state.queue.len() as f64);
        }
        self.ready.notify_one();
    }
}

impl<K: Key> State<K> {
    /// Takes a token of the overall bucket: how long until it is there.
    fn take_token(&mut self, limit: RateLimit, now: Duration) -> Duration {
        if limit.qps <= 0.0 {
            return Duration::ZERO;
        }
        let token = Duration::from_secs_f64(1.0 / limit.qps);
        let full = token * limit.burst;
        // `bucket` is when the bucket would be full again; it may be at most `full` ahead before keys must wait.
        self.bucket = self.bucket.max(now) + token;
        self.bucket.saturating_sub(now + full)
    }
}

fn exponential(limit: RateLimit, failures: u32) -> Duration {
    let factor = 2f64.powi(i32::try_from(failures.min(1000)).unwrap_or(1000));
    let seconds = limit.base.as_secs_f64() * factor;
    if seconds >= limit.max.as_secs_f64() {
        limit.max
    } else {
        Duration::from_secs_f64(seconds)
    }
}

/// Moves keys whose time came into the queue; ends with the queue.
async fn move_due_keys<K: Key>(weak: std::sync::Weak<Shared<K>>) {
    /// The task looks this often whether its queue still exists.
    const IDLE: Duration = Duration::from_secs(60);
    loop {
        let Some(shared) = weak.upgrade() else { return };
        let now = shared.clock.monotonic();
        let mut due = Vec::new();
        let wait = {
            let mut state = shared.lock();
            if state.shut_down {
                return;
            }
            loop {
                match state.waiting.peek() {
                    Some(Reverse((at, _))) if *at <= now => {}
                    Some(Reverse((at, _))) => break *at - now,
                    None => break IDLE,
                }
                if let Some(Reverse((at, key))) = state.waiting.pop() {
                    // An entry that an earlier one overtook is stale.
                    if state.due.get(&key) == Some(&at) {
                        state.due.remove(&key);
                        due.push(key);
                    }
                }
            }
        };
        due.into_iter().for_each(|key| shared.add(key));
        let clock = shared.clock.clone();
        tokio::select! {
            () = clock.sleep(wait.min(IDLE)) => {}
            () = shared.delayed.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use component_base::clock::FakeClock;

    fn queue() -> (WorkQueue<u32>, FakeClock) {
        let fake = FakeClock::new(jiff::Timestamp::UNIX_EPOCH);
        (Queues::unread(fake.clock()).queue("test"), fake)
    }

    #[tokio::test]
    async fn a_key_is_held_once_and_given_to_one() {
        let (queue, _) = queue();
        queue.add(1);
        queue.add(1);
        assert_eq!(queue.len(), 1);
        assert_eq!(queue.get().await, Some(1));
        queue.add(1);
        assert_eq!(queue.len(), 0);
        queue.done(&1);
        assert_eq!(queue.len(), 1);
        assert_eq!(queue.get().await, Some(1));
        queue.done(&1);
        assert_eq!(queue.len(), 0);
        queue.shut_down();
        assert_eq!(queue.get().await, None);
        assert_eq!(queue.clone().get().await, None);
    }

    #[tokio::test]
    async fn delays_and_backoff() {
        let (queue, clock) = queue();
        queue.add_after(1, Duration::from_secs(10));
        queue.add_after(1, Duration::from_secs(20));
        queue.add_after(2, Duration::from_secs(20));
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        clock.advance(Duration::from_secs(10));
        assert_eq!(queue.get().await, Some(1));
        assert_eq!(queue.len(), 0);
        clock.advance(Duration::from_secs(10));
        assert_eq!(queue.get().await, Some(2));
        assert_eq!(
            exponential(RateLimit::default(), 0),
            Duration::from_millis(5)
        );
        assert_eq!(
            exponential(RateLimit::default(), 3),
            Duration::from_millis(40)
        );
        assert_eq!(
            exponential(RateLimit::default(), 60),
            Duration::from_secs(1000)
        );
        queue.add_rate_limited(3);
        assert_eq!(queue.num_requeues(&3), 1);
        queue.forget(&3);
        assert_eq!(queue.num_requeues(&3), 0);
    }

    #[tokio::test]
    async fn the_bucket_lets_a_burst_through() {
        let (queue, _) = queue();
        let mut state = queue.lock();
        let limit = RateLimit::default();
        for _ in 0..100 {
            assert_eq!(
                state.take_token(limit, Duration::from_secs(5)),
                Duration::ZERO
            );
        }
        assert_eq!(
            state.take_token(limit, Duration::from_secs(5)),
            Duration::from_millis(100)
        );
    }

    #[tokio::test]
    async fn queues_of_two_components_count_apart() {
        let (one, two) = (Registry::new(), Registry::new());
        let register = |registry| Queues::register(registry, Clock::real());
        let (first, second) = (register(&one).unwrap(), register(&two).unwrap());
        assert!(register(&one).is_err(), "they would be mixed up");
        let (busy, idle) = (first.queue::<u32>("same"), second.queue::<u32>("same"));
        busy.add(1);
        busy.add(2);
        let adds = |registry: &Registry| {
            let families = registry.gather();
            let mut families = families.iter();
            let adds = families.find(|family| family.name() == "workqueue_adds_total");
            adds.unwrap().get_metric()[0].get_counter().get_value()
        };
        assert_eq!((adds(&one), adds(&two)), (2.0, 0.0));
        drop(idle);
    }
}
