//! Hands the events of an informer to its handlers, all in one task: fifteen controllers look at Pods, and a change of a Pod wakes one
//! task, not fifteen.
//!
//! A handler that comes late is told of everything that is stored, at its own place among the events; what was told before it came, and
//! what changed after, do not merge.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::queue::{Item, Queue};
use super::store::Place;
use super::{InformerEvent, Object};

/// Must not block: all others wait meanwhile.
pub(super) type Handler<K> = Box<dyn FnMut(InformerEvent<K>) + Send>;

/// Events that are told in a row before other tasks get a turn.
const BATCH: usize = 64;

/// A handler that is to be called from here on.
pub(super) struct Joining<K> {
    handler: Handler<K>,
    ended: Arc<AtomicBool>,
    /// What is stored at this place among the events.
    stored: Vec<Arc<K>>,
}

/// A handler's place at an informer; dropping it ends the calls.
pub struct Subscription {
    ended: Arc<AtomicBool>,
    /// Lets the handler be dropped, with all that it holds.
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        (self.wake)();
    }
}

/// Cheap to clone.
pub(super) struct Dispatcher<K> {
    queue: Arc<Queue<K, Joining<K>>>,
}

impl<K> Clone for Dispatcher<K> {
    fn clone(&self) -> Self {
        let queue = self.queue.clone();
        Self { queue }
    }
}

impl<K: Object> Default for Dispatcher<K> {
    fn default() -> Self {
        let queue = Arc::new(Queue::new());
        Self { queue }
    }
}

impl<K: Object> Dispatcher<K> {
    pub(super) fn add(&self, handler: Handler<K>, stored: Vec<Arc<K>>) -> Subscription {
        let ended = Arc::new(AtomicBool::new(false));
        self.queue.mark(Joining {
            handler,
            ended: ended.clone(),
            stored,
        });
        let queue = Arc::downgrade(&self.queue);
        let wake = move || {
            if let Some(queue) = queue.upgrade() {
                queue.wake();
            }
        };
        Subscription {
            ended,
            wake: Box::new(wake),
        }
    }

    pub(super) fn push(&self, place: Place, event: InformerEvent<K>) {
        self.queue.push(place, event);
    }

    /// Ends [`Dispatcher::run`] once all is told.
    pub(super) fn close(&self) {
        self.queue.close();
    }

    /// Calls the handlers until the informer ends.
    pub(super) async fn run(self) {
        let mut handlers = Handlers::default();
        let mut batch = Vec::new();
        while self.queue.take(&mut batch, BATCH) {
            let told = batch.len();
            batch.drain(..).for_each(|item| handlers.tell(item));
            match told {
                0 => {
                    handlers.prune();
                    self.queue.woken().await;
                }
                BATCH => tokio::task::yield_now().await,
                _ => {}
            }
        }
    }
}

struct Handlers<K> {
    all: Vec<(Arc<AtomicBool>, Handler<K>)>,
}

impl<K> Default for Handlers<K> {
    fn default() -> Self {
        Self { all: Vec::new() }
    }
}

impl<K: Object> Handlers<K> {
    fn tell(&mut self, item: Item<K, Joining<K>>) {
        match item {
            Item::Event(_, event) => {
                for (ended, handler) in &mut self.all {
                    if !ended.load(Ordering::Acquire) {
                        handler(event.clone());
                    }
                }
            }
            Item::Mark(mut joining) => {
                for object in joining.stored {
                    if joining.ended.load(Ordering::Acquire) {
                        return;
                    }
                    (joining.handler)(InformerEvent::Added(object));
                }
                self.all.push((joining.ended, joining.handler));
            }
        }
    }

    /// Drops those whose subscription is gone.
    fn prune(&mut self) {
        self.all.retain(|(ended, _)| !ended.load(Ordering::Acquire));
    }
}
