//! What the API server was asked, is being asked, and may still be asked.
//!
//! A question is known by a keyed digest, never by the token in it. There is one flight a question, however many wait for its answer, and
//! it goes on when they leave; flights are bounded, in whole and for each who asks; answers are kept for a time to live within bounds of
//! number and bytes, the good ones apart from the bad so that junk cannot push them out. Upstream:
//! `k8s.io/apiserver/pkg/authentication/token/cache`, `plugin/pkg/authorizer/webhook`.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::tasks::spawn_helper;
use tokio::sync::watch;

/// A question.
pub(super) type Digest = [u8; 32];

/// Makes digests that nobody outside this process can foresee.
pub(super) struct Digester {
    key: ring::hmac::Key,
}

impl Digester {
    pub(super) fn new() -> Self {
        let secret: [u8; 32] = rand::random();
        Self {
            key: ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret),
        }
    }

    pub(super) fn digest(&self, data: &[u8]) -> Digest {
        let tag = ring::hmac::sign(&self.key, data);
        let mut digest = [0; 32];
        digest.copy_from_slice(tag.as_ref());
        digest
    }
}

/// Bounds of a cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct CacheLimits {
    /// Answers at once.
    pub(super) entries: usize,
    /// Bytes of answers at once.
    pub(super) bytes: usize,
    /// An answer with more bytes is not kept.
    pub(super) entry_bytes: usize,
}

/// What an entry costs beside its value: digest twice, times, frames of the maps.
const ENTRY_OVERHEAD: usize = 160;

struct Entry<V> {
    until: Instant,
    value: V,
    bytes: usize,
    used: u64,
}

/// Answers by question; the longest unused goes first. Pure.
struct Cache<V> {
    limits: CacheLimits,
    entries: HashMap<Digest, Entry<V>>,
    by_use: BTreeMap<u64, Digest>,
    bytes: usize,
    uses: u64,
}

impl<V: Clone> Cache<V> {
    fn new(limits: CacheLimits) -> Self {
        Self {
            limits,
            entries: HashMap::new(),
            by_use: BTreeMap::new(),
            bytes: 0,
            uses: 0,
        }
    }

    fn get(&mut self, key: &Digest, now: Instant) -> Option<V> {
        if self.entries.get(key)?.until <= now {
            self.remove(key);
            return None;
        }
        self.uses += 1;
        let entry = self.entries.get_mut(key)?;
        self.by_use.remove(&entry.used);
        entry.used = self.uses;
        self.by_use.insert(self.uses, *key);
        Some(entry.value.clone())
    }

    fn put(&mut self, key: Digest, value: V, value_bytes: usize, until: Instant) {
        self.remove(&key);
        let bytes = value_bytes + ENTRY_OVERHEAD;
        if value_bytes > self.limits.entry_bytes || bytes > self.limits.bytes {
            return;
        }
        while self.entries.len() >= self.limits.entries || self.bytes + bytes > self.limits.bytes {
            let Some((_, oldest)) = self.by_use.first_key_value() else {
                return;
            };
            let oldest = *oldest;
            self.remove(&oldest);
        }
        self.uses += 1;
        self.by_use.insert(self.uses, key);
        self.bytes += bytes;
        let entry = Entry {
            until,
            value,
            bytes,
            used: self.uses,
        };
        self.entries.insert(key, entry);
    }

    fn remove(&mut self, key: &Digest) {
        if let Some(entry) = self.entries.remove(key) {
            self.by_use.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }
}

/// Bounds of flights.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlightLimits {
    /// At once.
    pub(super) total: usize,
    /// At once for one who asks.
    pub(super) per_owner: usize,
    /// Requests that wait for the flights at once, each with its head in memory.
    pub(super) waiting: usize,
}

/// An answer that may be kept.
#[derive(Clone, Debug)]
pub(super) struct Answer<V> {
    pub(super) value: V,
    /// What the value holds.
    pub(super) bytes: usize,
    /// Whether it lets somebody in.
    pub(super) good: bool,
    pub(super) ttl: Duration,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// Too many questions are open: a later try may help.
    Busy,
    /// The API server could not be asked.
    Failed,
}

struct State<O, V> {
    good: Cache<V>,
    bad: Cache<V>,
    flights: HashMap<Digest, watch::Receiver<Option<Result<V, NoAnswer>>>>,
    owners: HashMap<O, usize>,
    waiting: usize,
}

/// Questions of one kind, asked on behalf of owners `O`.
pub(super) struct Reviews<O, V> {
    limits: FlightLimits,
    state: Arc<Mutex<State<O, V>>>,
}

impl<O, V> Reviews<O, V>
where
    O: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(super) fn new(limits: FlightLimits, cache: CacheLimits) -> Self {
        let state = State {
            good: Cache::new(cache),
            bad: Cache::new(cache),
            flights: HashMap::new(),
            owners: HashMap::new(),
            waiting: 0,
        };
        Self {
            limits,
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// The answer that was kept.
    pub(super) fn known(&self, question: &Digest) -> Option<V> {
        let mut state = self.state.lock().expect("no panic while the lock is held");
        let now = Instant::now();
        match state.good.get(question, now) {
            Some(known) => Some(known),
            None => state.bad.get(question, now),
        }
    }

    /// The answer to a question: the one that is known, or the one that is under way, or a new one by `ask`, whose `None` is a failure
    /// and is not kept.
    pub(super) async fn answer<F>(
        &self,
        question: Digest,
        owner: O,
        ask: impl FnOnce() -> F,
    ) -> Result<V, NoAnswer>
    where
        F: Future<Output = Option<Answer<V>>> + Send + 'static,
    {
        let mut flight = {
            let mut state = self.state.lock().expect("no panic while the lock is held");
            let now = Instant::now();
            if let Some(known) = state.good.get(&question, now) {
                return Ok(known);
            }
            if let Some(known) = state.bad.get(&question, now) {
                return Ok(known);
            }
            if state.waiting >= self.limits.waiting {
                return Err(NoAnswer::Busy);
            }
            let flight = match state.flights.get(&question) {
                Some(flight) => flight.clone(),
                None => {
                    let of_owner = state.owners.get(&owner).copied().unwrap_or(0);
                    if state.flights.len() >= self.limits.total || of_owner >= self.limits.per_owner
                    {
                        return Err(NoAnswer::Busy);
                    }
                    let (sender, receiver) = watch::channel(None);
                    state.flights.insert(question, receiver.clone());
                    *state.owners.entry(owner.clone()).or_default() += 1;
                    let landing = Landing {
                        state: self.state.clone(),
                        question,
                        owner,
                    };
                    // Its own task: who asked first may leave, those who wait still want the answer.
                    let asked = ask();
                    spawn_helper("review", async move {
                        let answer = asked.await;
                        let result = landing.keep(answer);
                        drop(landing);
                        let _ = sender.send(Some(result));
                    });
                    receiver
                }
            };
            state.waiting += 1;
            flight
        };
        let _waiting = Waiting {
            state: self.state.clone(),
        };
        match flight.wait_for(Option::is_some).await {
            Ok(answer) => answer.clone().unwrap_or(Err(NoAnswer::Failed)),
            // The flight's task panicked.
            Err(_) => Err(NoAnswer::Failed),
        }
    }
}

/// A request that waits for a flight.
struct Waiting<O, V> {
    state: Arc<Mutex<State<O, V>>>,
}

impl<O, V> Drop for Waiting<O, V> {
    fn drop(&mut self) {
        if let Ok(mut state) = self.state.lock() {
            state.waiting -= 1;
        }
    }
}

/// Takes a flight off the list, however it ended.
struct Landing<O: Clone + Eq + Hash, V> {
    state: Arc<Mutex<State<O, V>>>,
    question: Digest,
    owner: O,
}

impl<O: Clone + Eq + Hash, V: Clone> Landing<O, V> {
    fn keep(&self, answer: Option<Answer<V>>) -> Result<V, NoAnswer> {
        let answer = answer.ok_or(NoAnswer::Failed)?;
        let mut state = self.state.lock().expect("no panic while the lock is held");
        let cache = if answer.good {
            &mut state.good
        } else {
            &mut state.bad
        };
        let until = Instant::now() + answer.ttl;
        cache.put(self.question, answer.value.clone(), answer.bytes, until);
        Ok(answer.value)
    }
}

impl<O: Clone + Eq + Hash, V> Drop for Landing<O, V> {
    fn drop(&mut self) {
        let Ok(mut state) = self.state.lock() else {
            return;
        };
        state.flights.remove(&self.question);
        if let Some(count) = state.owners.get_mut(&self.owner) {
            *count -= 1;
            if *count == 0 {
                state.owners.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const CACHE: CacheLimits = CacheLimits {
        entries: 3,
        bytes: 3 * (ENTRY_OVERHEAD + 100),
        entry_bytes: 200,
    };

    fn key(n: u8) -> Digest {
        [n; 32]
    }

    #[test]
    fn the_cache_has_bounds_of_number_and_bytes() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let mut cache = Cache::new(CACHE);
        let held = |cache: &mut Cache<u8>, now| -> Vec<u8> {
            let keys: Vec<Digest> = cache.entries.keys().copied().collect();
            let mut values: Vec<u8> = keys.iter().filter_map(|k| cache.get(k, now)).collect();
            values.sort_unstable();
            values
        };
        for n in 1..=3 {
            cache.put(key(n), n, 100, now + second);
        }
        assert_eq!(cache.get(&key(1), now), Some(1));
        // The longest unused goes.
        cache.put(key(4), 4, 100, now + second);
        assert_eq!(cache.get(&key(2), now), None);
        // One that is big pushes out as many as it needs.
        cache.put(key(5), 5, 200, now + second);
        assert_eq!(held(&mut cache, now), [4, 5]);
        // One that is too big is not kept, and pushes out none.
        cache.put(key(6), 6, 201, now + second);
        assert_eq!(held(&mut cache, now), [4, 5]);
        assert_eq!(cache.get(&key(4), now + second), None);
        cache.remove(&key(5));
        assert_eq!((cache.bytes, cache.by_use.len()), (0, 0));
        for n in 0..200 {
            cache.put(key(n), n, 1, now + second);
            cache.put(key(n), n, 2, now + second);
        }
        assert_eq!((cache.entries.len(), cache.by_use.len()), (3, 3));
        assert_eq!(cache.bytes, 3 * (ENTRY_OVERHEAD + 2));
    }

    #[test]
    fn digests_are_keyed() {
        let (one, other) = (Digester::new(), Digester::new());
        assert_eq!(one.digest(b"token"), one.digest(b"token"));
        assert_ne!(one.digest(b"token"), one.digest(b"tokem"));
        assert_ne!(one.digest(b"token"), other.digest(b"token"));
    }

    fn good(value: u8) -> Option<Answer<u8>> {
        Some(Answer {
            value,
            bytes: 1,
            good: true,
            ttl: Duration::from_secs(60),
        })
    }

    fn reviews() -> Arc<Reviews<u8, u8>> {
        let flights = FlightLimits {
            total: 3,
            per_owner: 2,
            waiting: 100,
        };
        Arc::new(Reviews::new(flights, CACHE))
    }

    #[tokio::test]
    async fn one_flight_a_question() {
        let (reviews, asked) = (reviews(), Arc::new(AtomicUsize::new(0)));
        let (go, gate) = watch::channel(false);
        let ask = || {
            let (asked, mut gate) = (asked.clone(), gate.clone());
            move || async move {
                asked.fetch_add(1, Ordering::SeqCst);
                let _ = gate.wait_for(|go| *go).await;
                good(7)
            }
        };
        let mut waiting = Vec::new();
        for _ in 0..100 {
            let (reviews, ask) = (reviews.clone(), ask());
            waiting.push(tokio::spawn(
                async move { reviews.answer(key(1), 1, ask).await },
            ));
        }
        while reviews.state.lock().unwrap().waiting < 100 {
            tokio::task::yield_now().await;
        }
        // No more may wait, for this or for anything else.
        for n in [1, 2] {
            let more = reviews.answer(key(n), 2, ask()).await;
            assert_eq!(more, Err(NoAnswer::Busy));
        }
        // Who asked first leaves; the others are answered all the same.
        waiting.remove(0).abort();
        go.send_replace(true);
        for waiter in waiting {
            assert_eq!(waiter.await.unwrap(), Ok(7));
        }
        assert_eq!(reviews.answer(key(1), 1, ask()).await, Ok(7));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn flights_have_bounds() {
        let reviews = reviews();
        let (go, gate) = watch::channel(false);
        let open = |n: u8, owner: u8| {
            let (reviews, mut gate) = (reviews.clone(), gate.clone());
            tokio::spawn(async move {
                let ask = || async move {
                    let _ = gate.wait_for(|go| *go).await;
                    good(n)
                };
                reviews.answer(key(n), owner, ask).await
            })
        };
        let mut opened = vec![open(1, 1), open(2, 1)];
        tokio::task::yield_now().await;
        // Owner 1 has its share; another has not, until all flights are taken.
        assert_eq!(open(3, 1).await.unwrap(), Err(NoAnswer::Busy));
        opened.push(open(4, 2));
        tokio::task::yield_now().await;
        assert_eq!(open(5, 3).await.unwrap(), Err(NoAnswer::Busy));
        go.send_replace(true);
        for flight in opened {
            assert!(flight.await.unwrap().is_ok());
        }
        assert_eq!(open(6, 1).await.unwrap(), Ok(6));
        let state = reviews.state.lock().unwrap();
        assert!(state.flights.is_empty() && state.owners.is_empty());
        assert_eq!(state.waiting, 0);
    }

    #[tokio::test]
    async fn failures_are_not_kept_and_junk_pushes_out_no_good_answer() {
        let reviews = reviews();
        let failed = reviews.answer(key(1), 1, || async { None }).await;
        assert_eq!(failed, Err(NoAnswer::Failed));
        let panicked = reviews
            .answer(key(1), 1, || async { panic!("as a client might") })
            .await;
        assert_eq!(panicked, Err(NoAnswer::Failed));
        assert_eq!(reviews.answer(key(1), 1, || async { good(1) }).await, Ok(1));
        for n in 10..200 {
            let junk = || async move {
                good(n).map(|answer| Answer {
                    good: false,
                    ..answer
                })
            };
            assert_eq!(reviews.answer(key(n), 1, junk).await, Ok(n));
        }
        let never = || async { panic!("it is known") };
        assert_eq!(reviews.answer(key(1), 1, never).await, Ok(1));
        assert_eq!(reviews.state.lock().unwrap().bad.entries.len(), 3);
    }
}
