//! The loop every controller runs in: informers put keys into a queue, workers take them and reconcile.
//!
//! Upstream: the `Run`/`processNextWorkItem` pair of every controller in `pkg/controller`.

use std::any::Any;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::informer::{Informer, InformerEvent, Object, Subscription};
use component_base::shutdown::Shutdown;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::task::JoinSet;

use crate::transport::ApiError;
use crate::work_queue::{Key, WorkQueue};

/// A controller: a name and what to do about a key.
#[async_trait]
pub trait Controller: Send + Sync + 'static {
    /// What is reconciled; most often an [`crate::ObjectKey`].
    type Key: Key + Display;
    /// Why a reconcile failed.
    type Error: Display + Send + 'static;

    /// The canonical name, `deployment-controller`.
    fn name(&self) -> &'static str;

    /// Brings one object nearer to what is wanted. `Ok(Some(d))` asks to look again after `d`.
    ///
    /// # Errors
    /// Anything that a retry with backoff may cure.
    async fn reconcile(&self, key: &Self::Key) -> Result<Option<Duration>, Self::Error>;

    /// After how many failures in a row a key is dropped until the next event; `None` means never.
    fn max_retries(&self) -> Option<u32> {
        None
    }

    /// Whether an error only says that someone else wrote first, which is everyday life and no news. Controllers whose errors wrap
    /// an [`ApiError`] tell here.
    fn is_conflict(&self, error: &Self::Error) -> bool {
        (error as &dyn Any)
            .downcast_ref::<ApiError>()
            .is_some_and(ApiError::is_conflict)
    }
}

/// The watches of a controller: event handlers, which are called until this is dropped.
pub struct Watches {
    shutdown: Shutdown,
    subscriptions: Vec<Subscription>,
    tasks: JoinSet<()>,
    synced: Vec<BoxFuture<'static, bool>>,
}

impl Watches {
    /// No watches yet; they end with `shutdown`.
    pub fn new(shutdown: Shutdown) -> Self {
        Self {
            shutdown,
            subscriptions: Vec::new(),
            tasks: JoinSet::new(),
            synced: Vec::new(),
        }
    }

    /// Calls `handler` for every event of `informer`, in order; the controller starts after it has synced. One task calls the handlers of
    /// all controllers: they must not block.
    pub fn on<K: Object>(
        &mut self,
        informer: &Informer<K>,
        handler: impl FnMut(InformerEvent<K>) + Send + 'static,
    ) {
        self.wait_for(informer);
        self.subscriptions.push(informer.on(handler));
    }

    /// Calls `handler` whenever the value of `changes` changed, until its sender is gone. Handlers must not block.
    pub fn on_change<T: Send + Sync + 'static>(
        &mut self,
        mut changes: tokio::sync::watch::Receiver<T>,
        mut handler: impl FnMut() + Send + 'static,
    ) {
        let shutdown = self.shutdown.clone();
        self.tasks
            .spawn(self.shutdown.guarded("handler of changes", async move {
                while let Some(Ok(())) = shutdown.run_until(changes.changed()).await {
                    handler();
                }
            }));
    }

    /// Reads from `informer` without handling its events; the controller starts after it has synced.
    pub fn wait_for<K: Object>(&mut self, informer: &Informer<K>) {
        let informer = informer.clone();
        self.synced
            .push(async move { informer.wait_for_sync().await }.boxed());
    }

    /// Waits until every informer has its first list; `false` when told to end before.
    pub async fn wait_for_sync(&mut self) -> bool {
        let all = futures::future::join_all(std::mem::take(&mut self.synced));
        self.shutdown
            .run_until(all)
            .await
            .is_some_and(|synced| synced.into_iter().all(|s| s))
    }
}

/// Runs a controller with `workers` workers until shutdown, after its watches have synced. Returns when all workers have ended.
pub async fn run_controller<C: Controller>(
    controller: Arc<C>,
    queue: WorkQueue<C::Key>,
    mut watches: Watches,
    workers: usize,
    shutdown: Shutdown,
) {
    tracing::info!(controller = controller.name(), "Starting controller");
    if watches.wait_for_sync().await {
        tracing::debug!(controller = controller.name(), "Caches are synced");
        let mut set = JoinSet::new();
        for _ in 0..workers.max(1) {
            let name = format!("worker of {}", controller.name());
            set.spawn(shutdown.guarded(name, work(controller.clone(), queue.clone())));
        }
        shutdown.triggered().await;
        queue.shut_down();
        while set.join_next().await.is_some() {}
    }
    queue.shut_down();
    tracing::info!(controller = controller.name(), "Shutting down controller");
}

async fn work<C: Controller>(controller: Arc<C>, queue: WorkQueue<C::Key>) {
    while let Some(key) = queue.get().await {
        let result = std::panic::AssertUnwindSafe(controller.reconcile(&key))
            .catch_unwind()
            .await;
        match result {
            Ok(Ok(again)) => {
                queue.forget(&key);
                if let Some(delay) = again {
                    queue.add_after(key.clone(), delay);
                }
            }
            Ok(Err(error)) => {
                let conflict = controller.is_conflict(&error);
                retry(&*controller, &queue, &key, &error, conflict);
            }
            Err(_) => {
                let error = "the reconcile panicked";
                retry(&*controller, &queue, &key, &error, false);
            }
        }
        queue.done(&key);
    }
}

fn retry<C: Controller>(
    controller: &C,
    queue: &WorkQueue<C::Key>,
    key: &C::Key,
    error: &dyn Display,
    conflict: bool,
) {
    let failures = queue.num_requeues(key);
    if controller.max_retries().is_some_and(|max| failures >= max) {
        tracing::error!(controller = controller.name(), %key, %error, "Dropping out of the queue after too many retries");
        queue.forget(key);
        return;
    }
    if conflict {
        tracing::debug!(controller = controller.name(), %key, %error, failures, "Conflict while syncing, will retry");
    } else {
        tracing::warn!(controller = controller.name(), %key, %error, failures, "Error syncing, will retry");
    }
    queue.add_rate_limited(key.clone());
}
