//! The metadata of a resource's objects, whatever they are: from the informer that the process has of the kind anyway, else from one of
//! metadata alone. So nothing is watched, read and held twice.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Informer, InformerEvent, Object, Receiver, Subscription};

/// An object of which only the metadata is looked at.
pub trait HasMetadata: Send + Sync {
    /// The metadata.
    fn metadata(&self) -> &ObjectMeta;
}

impl<K: Object> HasMetadata for K {
    fn metadata(&self) -> &ObjectMeta {
        self.meta()
    }
}

/// What happened to an object; see [`InformerEvent`].
#[derive(Clone)]
pub enum MetadataEvent {
    /// It is new to the subscriber.
    Added(Arc<dyn HasMetadata>),
    /// It changed.
    Updated {
        /// What the subscriber saw last.
        old: Arc<dyn HasMetadata>,
        /// What it is now.
        new: Arc<dyn HasMetadata>,
    },
    /// It is gone; this is its last known state.
    Deleted(Arc<dyn HasMetadata>),
}

impl<K: Object> From<InformerEvent<K>> for MetadataEvent {
    fn from(event: InformerEvent<K>) -> Self {
        match event {
            InformerEvent::Added(object) => Self::Added(object),
            InformerEvent::Updated { old, new } => Self::Updated { old, new },
            InformerEvent::Deleted(object) => Self::Deleted(object),
        }
    }
}

trait Source: Send + Sync {
    fn on(&self, handler: Box<dyn FnMut(MetadataEvent) + Send>) -> Subscription;
    fn subscribe(&self) -> MetadataReceiver;
    fn has_synced(&self) -> bool;
    fn count(&self, namespace: &str) -> usize;
    fn wait_for_sync(&self) -> BoxFuture<'_, bool>;
}

impl<K: Object> Source for Informer<K> {
    fn on(&self, mut handler: Box<dyn FnMut(MetadataEvent) + Send>) -> Subscription {
        Informer::on(self, move |event| handler(event.into()))
    }
    fn subscribe(&self) -> MetadataReceiver {
        MetadataReceiver(Box::new(Informer::subscribe(self)))
    }
    fn has_synced(&self) -> bool {
        Informer::has_synced(self)
    }
    fn count(&self, namespace: &str) -> usize {
        self.count_namespace(namespace)
    }
    fn wait_for_sync(&self) -> BoxFuture<'_, bool> {
        Informer::wait_for_sync(self).boxed()
    }
}

/// An informer of which only the metadata is looked at. Cheap to clone.
#[derive(Clone)]
pub struct MetadataInformer(Arc<dyn Source>);

impl MetadataInformer {
    /// The metadata of what `informer` holds.
    pub fn of<K: Object>(informer: Informer<K>) -> Self {
        Self(Arc::new(informer))
    }

    /// Calls `handler` for every event; see [`Informer::on`].
    pub fn on(&self, handler: impl FnMut(MetadataEvent) + Send + 'static) -> Subscription {
        self.0.on(Box::new(handler))
    }

    /// Events from now on, after an `Added` for everything stored.
    pub fn subscribe(&self) -> MetadataReceiver {
        self.0.subscribe()
    }

    /// Whether the first list has arrived in full.
    pub fn has_synced(&self) -> bool {
        self.0.has_synced()
    }

    /// How many objects a namespace has.
    pub fn count(&self, namespace: &str) -> usize {
        self.0.count(namespace)
    }

    /// Waits for the first list; `false` when the informer ended before.
    pub async fn wait_for_sync(&self) -> bool {
        self.0.wait_for_sync().await
    }
}

trait Events: Send {
    fn recv(&mut self) -> BoxFuture<'_, Option<MetadataEvent>>;
}

impl<K: Object> Events for Receiver<K> {
    fn recv(&mut self) -> BoxFuture<'_, Option<MetadataEvent>> {
        async { Receiver::recv(self).await.map(MetadataEvent::from) }.boxed()
    }
}

/// The reading end of a subscription. Dropping it ends the subscription.
pub struct MetadataReceiver(Box<dyn Events>);

impl MetadataReceiver {
    /// The next event; `None` when the informer ended. Cancel-safe.
    pub async fn recv(&mut self) -> Option<MetadataEvent> {
        self.0.recv().await
    }
}
