//! The CRI's services on a [`Runtime`]: what all of them share.
//!
//! Owns nothing of the runtime's: it looks, asks and translates. Stopped and removed things may be stopped and removed again.

mod events;
mod image;
mod looks;
mod runtime;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::runtime::Runtime;
use futures::Stream;
use images::ImageStore;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::error::status;
use crate::filter;
use crate::from_cri::NodeFacts;
use crate::streaming_server::StreamingServer;
use crate::to_cri::Rates;

/// What a streamed answer is.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Items in one message of a streamed list: far from the 4 MiB that clients take by default.
const ITEMS_PER_MESSAGE: usize = 64;

/// How a service answers for its node.
#[derive(Clone, Debug)]
pub struct ServiceOptions {
    pub node: NodeFacts,
    /// Where the runtime keeps what does not survive a reboot; told in `Status`.
    pub state_dir: PathBuf,
    /// As above, what does.
    pub root_dir: PathBuf,
    /// Nobody else tells the pod CIDRs: `UpdateRuntimeConfig` does.
    pub pod_cidrs_by_cri: bool,
}

/// The services. Cheap to clone; every clone is the same.
#[derive(Clone)]
pub struct CriService {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) images: ImageStore,
    pub(crate) options: ServiceOptions,
    pub(crate) streaming: StreamingServer,
    rates: Mutex<Rates>,
    /// Ends answers that have no end of their own.
    ending: CancellationToken,
}

impl CriService {
    /// Streams of exec and attach outlive `ending`, forwarded ports and endless answers do not.
    pub fn new(
        runtime: Arc<dyn Runtime>,
        images: ImageStore,
        options: ServiceOptions,
        ending: CancellationToken,
    ) -> Self {
        let streaming = StreamingServer::new(runtime.clone(), ending.clone());
        Self {
            inner: Arc::new(Inner {
                runtime,
                images,
                options,
                streaming,
                rates: Mutex::default(),
                ending,
            }),
        }
    }

    fn runtime(&self) -> &dyn Runtime {
        self.inner.runtime.as_ref()
    }

    fn rates(&self) -> MutexGuard<'_, Rates> {
        self.inner
            .rates
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The whole id of a sandbox that is named by it or by its beginning; `None`: there is none.
    async fn find_sandbox(&self, wanted: &str) -> Result<Option<String>, Status> {
        if wanted.is_empty() {
            return Err(Status::invalid_argument("pod_sandbox_id is required"));
        }
        let all = self.runtime().list_pod_sandboxes().await.map_err(status)?;
        let ids = all.iter().map(|sandbox| sandbox.id.as_str());
        Ok(filter::resolve(wanted, ids).map(str::to_owned))
    }

    async fn sandbox_id(&self, wanted: &str) -> Result<String, Status> {
        self.find_sandbox(wanted)
            .await?
            .ok_or_else(|| Status::not_found(format!("pod sandbox {wanted:?} not found")))
    }

    /// As [`Self::find_sandbox`].
    async fn find_container(&self, wanted: &str) -> Result<Option<String>, Status> {
        if wanted.is_empty() {
            return Err(Status::invalid_argument("container_id is required"));
        }
        let all = self.runtime().list_containers().await.map_err(status)?;
        let ids = all.iter().map(|container| container.id.as_str());
        Ok(filter::resolve(wanted, ids).map(str::to_owned))
    }

    async fn container_id(&self, wanted: &str) -> Result<String, Status> {
        self.find_container(wanted)
            .await?
            .ok_or_else(|| Status::not_found(format!("container {wanted:?} not found")))
    }
}

/// A list in several messages, none of them empty.
fn in_messages<T, M>(items: Vec<T>, message: impl Fn(Vec<T>) -> M + Send + 'static) -> Answers<M>
where
    T: Send + 'static,
    M: Send + 'static,
{
    let mut messages = Vec::new();
    let mut items = items.into_iter().peekable();
    while items.peek().is_some() {
        let some: Vec<T> = items.by_ref().take(ITEMS_PER_MESSAGE).collect();
        messages.push(Ok(message(some)));
    }
    Box::pin(futures::stream::iter(messages))
}
