//! How many bytes clients may have sent that nobody has read yet.
//!
//! Each connection has [`OWN_BYTES`] that nobody can take from it; beyond that all connections draw on one [`Pool`]. When
//! neither has room the connection is not read: the client's kernel, and then the client, hold the rest.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// What a connection may hold whatever the others do.
pub(crate) const OWN_BYTES: usize = 256 * 1024;
/// What one stream may hold. Upstream: spdystream keeps 50 frames, of 32 KiB by its usual clients, before a stream that is
/// not read holds up the others.
pub(crate) const STREAM_BYTES: usize = 2 * 1024 * 1024;
/// What the pool of a process holds, unless it is said otherwise.
const POOL_BYTES: usize = 32 * 1024 * 1024;

/// Bytes for all connections of a process, beyond what each has of its own.
#[derive(Debug)]
pub struct Pool {
    free: AtomicUsize,
}

impl Pool {
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            free: AtomicUsize::new(bytes),
        })
    }

    fn take(&self, bytes: usize) -> bool {
        let take = |free: usize| free.checked_sub(bytes);
        self.free
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
            .is_ok()
    }

    fn give(&self, bytes: usize) {
        self.free.fetch_add(bytes, Ordering::AcqRel);
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            free: AtomicUsize::new(POOL_BYTES),
        }
    }
}

/// One connection's part.
pub(crate) struct Share {
    pool: Arc<Pool>,
    held: Mutex<usize>,
    /// Told whenever bytes were given back; the connection's one reading task waits for it.
    pub(crate) given: Notify,
}

/// What of `held` comes from the pool.
fn borrowed(held: usize) -> usize {
    held.saturating_sub(OWN_BYTES)
}

impl Share {
    pub(crate) fn new(pool: Arc<Pool>) -> Arc<Self> {
        Arc::new(Self {
            pool,
            held: Mutex::new(0),
            given: Notify::new(),
        })
    }

    /// Whether there was room for so many bytes. At most [`OWN_BYTES`] fit a connection that holds nothing, always.
    pub(crate) fn take(&self, bytes: usize) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let more = borrowed(*held + bytes) - borrowed(*held);
        let room = more == 0 || self.pool.take(more);
        if room {
            *held += bytes;
        }
        room
    }

    pub(crate) fn give(&self, bytes: usize) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let less = *held - bytes;
        self.pool.give(borrowed(*held) - borrowed(less));
        *held = less;
        drop(held);
        self.given.notify_one();
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let held = *self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.pool.give(borrowed(held));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_bytes_are_sure_and_the_rest_is_shared() {
        let pool = Pool::new(100);
        let (one, other) = (Share::new(pool.clone()), Share::new(pool.clone()));
        assert!(one.take(OWN_BYTES));
        assert!(one.take(60));
        assert!(!one.take(41), "the pool is short of one byte");
        assert!(other.take(OWN_BYTES), "one's own is never lent");
        assert!(other.take(40));
        assert!(!other.take(1));
        one.give(60 + 10);
        assert!(one.take(10));
        assert!(other.take(60));
        drop(other);
        assert!(one.take(100));
        drop(one);
        assert_eq!(pool.free.load(Ordering::Acquire), 100);
    }
}
