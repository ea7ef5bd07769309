//! Things to look at: each is in the queue at most once, however often it is added.
//!
//! **Invariant:** it is never longer than there are things (pods of the node, probes of their containers).

use std::collections::{HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::Notify;

/// First added, first out. Many may add, one takes.
#[derive(Debug)]
pub struct Pending<T> {
    items: Mutex<Items<T>>,
    added: Notify,
}

#[derive(Debug)]
struct Items<T> {
    order: VecDeque<T>,
    known: HashSet<T>,
}

impl<T> Default for Pending<T> {
    fn default() -> Self {
        let items = Items {
            order: VecDeque::new(),
            known: HashSet::new(),
        };
        Self {
            items: Mutex::new(items),
            added: Notify::new(),
        }
    }
}

impl<T: Clone + Eq + Hash> Pending<T> {
    fn lock(&self) -> MutexGuard<'_, Items<T>> {
        self.items.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn add(&self, item: T) {
        let mut items = self.lock();
        if items.known.insert(item.clone()) {
            items.order.push_back(item);
            drop(items);
            self.added.notify_one();
        }
    }

    /// The next one, when there is one. Cancel-safe: nothing is taken before it is returned.
    pub async fn next(&self) -> T {
        loop {
            if let Some(item) = self.take() {
                return item;
            }
            self.added.notified().await;
        }
    }

    fn take(&self) -> Option<T> {
        let mut items = self.lock();
        let item = items.order.pop_front()?;
        items.known.remove(&item);
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn each_thing_waits_once() {
        let pending = Pending::default();
        for item in ["a", "b", "a", "a"] {
            pending.add(item);
        }
        assert_eq!((pending.next().await, pending.next().await), ("a", "b"));
        assert_eq!(pending.take(), None);
        pending.add("a");
        assert_eq!(pending.next().await, "a");
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let pending = Arc::new(Pending::default());
        let adder = pending.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            adder.add(7);
        });
        let next = tokio::time::timeout(Duration::from_secs(5), pending.next());
        assert_eq!(next.await, Ok(7));
    }
}
