//! Informers fed by hand, for tests of controllers' shells.

use component_base::informer::{Informer, Object};
use component_base::shutdown::Shutdown;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use kube::runtime::watcher::Event;

/// The sending end of an informer's watch.
pub struct Feed<K> {
    sender: UnboundedSender<Result<Event<K>, kube::runtime::watcher::Error>>,
}

impl<K: Object> Feed<K> {
    /// An informer that has listed nothing yet, and its feed.
    pub fn new() -> (Self, Informer<K>) {
        let (sender, receiver) = unbounded();
        let informer = Informer::from_stream(receiver, "test".to_owned(), &Shutdown::new());
        let feed = Self { sender };
        feed.send(Event::Init);
        feed.send(Event::InitDone);
        (feed, informer)
    }

    /// An object was added or changed.
    pub fn apply(&self, object: K) {
        self.send(Event::Apply(object));
    }

    /// An object is gone.
    pub fn delete(&self, object: K) {
        self.send(Event::Delete(object));
    }

    fn send(&self, event: Event<K>) {
        self.sender
            .unbounded_send(Ok(event))
            .expect("the informer lives as long as the test");
    }
}

/// Lets informers and handlers take in what was fed.
pub async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}
