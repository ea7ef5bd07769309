//! [`Watches`]: who sleeps until something with a key changes. Never here: what changes, nor an async runtime.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

#[derive(Default)]
struct Slot {
    changed: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Slot {
    fn notify(&self) {
        self.changed.store(true, Ordering::Release);
        let waker = self
            .waker
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct Watches(Mutex<HashMap<String, Vec<Arc<Slot>>>>);

impl Watches {
    /// Watches these keys, until the answer is dropped.
    pub fn watch(&self, keys: Vec<String>) -> Watch<'_> {
        let slot = Arc::new(Slot::default());
        let mut watches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for key in &keys {
            watches
                .entry(key.clone())
                .or_default()
                .push(Arc::clone(&slot));
        }
        Watch {
            watches: self,
            keys,
            slot,
        }
    }

    /// Something changed: wakes who watches these keys.
    pub fn notify<'a>(&self, keys: impl IntoIterator<Item = &'a String>) {
        let watches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for slot in keys
            .into_iter()
            .filter_map(|key| watches.get(key))
            .flatten()
        {
            slot.notify();
        }
    }

    /// Does nobody watch?
    pub fn is_empty(&self) -> bool {
        let watches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watches.is_empty()
    }

    /// Wakes everybody.
    pub fn notify_all(&self) {
        let watches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watches.values().flatten().for_each(|slot| slot.notify());
    }
}

/// Ends with its drop.
pub struct Watch<'a> {
    watches: &'a Watches,
    keys: Vec<String>,
    slot: Arc<Slot>,
}

impl Watch<'_> {
    /// Waits for a change since the watch began, or since the last one waited for.
    pub async fn changed(&mut self) {
        let slot = &self.slot;
        poll_fn(|context| {
            let mut waker = slot.waker.lock().unwrap_or_else(PoisonError::into_inner);
            if slot.changed.swap(false, Ordering::AcqRel) {
                return Poll::Ready(());
            }
            *waker = Some(context.waker().clone());
            drop(waker);
            // A change between the look and the waker's being there has found no waker.
            match slot.changed.swap(false, Ordering::AcqRel) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut watches = self
            .watches
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for key in &self.keys {
            if let Some(slots) = watches.get_mut(key) {
                slots.retain(|slot| !Arc::ptr_eq(slot, &self.slot));
                if slots.is_empty() {
                    watches.remove(key);
                }
            }
        }
    }
}
