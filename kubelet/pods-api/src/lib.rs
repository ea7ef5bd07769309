//! The kubelet's pods for agents of the node, by gRPC: list, get and watch; each pod is the protobuf of `v1.Pod`.
//!
//! Owns: the protocol and its bounds. What the pods are is a [`PodSource`]'s. Upstream: `pkg/kubelet/apis/pods/server.go`, v1.37.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt as _, stream};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::net::UnixListener;
use tokio::sync::broadcast;
use tonic::{Code, Request, Response, Status};

/// Generated from `proto/api.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1alpha1 {
    tonic::include_proto!("v1alpha1");
}

use v1alpha1::pods_server::{Pods, PodsServer};
use v1alpha1::{
    EventType, GetPodRequest, GetPodResponse, ListPodsRequest, ListPodsResponse, WatchPodsEvent,
    WatchPodsRequest,
};

/// The name of the API in labels of metrics.
pub const VERSION: &str = "v1alpha1";
/// Questions a second, and at once; watches cost none. Upstream: `DefaultQPS`, `DefaultBurstTokens`.
const QPS: f64 = 100.0;
const BURST: f64 = 10.0;
/// What a watch that reads slowly may lag behind.
const BACKLOG: usize = 256;

/// What there is to tell. Called from async tasks: it must not block.
pub trait PodSource: Send + Sync + 'static {
    /// Whether every source told of its pods once.
    fn is_ready(&self) -> bool;
    /// The node's pods as they came, without mirrors.
    fn pods(&self) -> Vec<Arc<Pod>>;
    fn pod(&self, uid: &str) -> Option<Arc<Pod>>;
    /// The status the kubelet knows; `None`: it has not looked yet.
    fn status(&self, uid: &str) -> Option<PodStatus>;
    /// A question was answered; `None`: with success.
    fn observe(&self, method: Method, failed: Option<Code>);
    /// Events a watch will never see.
    fn dropped(&self, events: u64);
}

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    List,
    Get,
    Watch,
}

/// What happened to a pod.
#[derive(Clone, Debug)]
struct Change {
    kind: EventType,
    pod: Arc<Pod>,
}

/// Tells watches what happened.
#[derive(Clone)]
pub struct Changes(broadcast::Sender<Change>);

impl Default for Changes {
    fn default() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }
}

impl Changes {
    /// The kubelet knows something new of the pod. `added`: it knew nothing before.
    pub fn updated(&self, pod: &Pod, status: &PodStatus, added: bool) {
        if self.0.receiver_count() == 0 {
            return;
        }
        let kind = if added {
            EventType::Added
        } else {
            EventType::Modified
        };
        let pod = Pod {
            metadata: pod.metadata.clone(),
            spec: pod.spec.clone(),
            status: Some(status.clone()),
        };
        // Nobody may listen any more.
        let _ = self.0.send(Change {
            kind,
            pod: Arc::new(pod),
        });
    }

    /// The pod is gone from the node. Its names alone are told.
    pub fn removed(&self, namespace: &str, name: &str, uid: &str) {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectMeta::default()
        };
        let pod = Arc::new(Pod {
            metadata,
            ..Pod::default()
        });
        let _ = self.0.send(Change {
            kind: EventType::Deleted,
            pod,
        });
    }
}

/// Answers on `listener` until `ending` resolves.
///
/// # Errors
/// The socket fails.
pub async fn serve(
    listener: UnixListener,
    source: Arc<dyn PodSource>,
    changes: Changes,
    ending: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let server = Server {
        source,
        changes,
        bucket: Mutex::new((BURST, Instant::now())),
    };
    tonic::transport::Server::builder()
        .add_service(PodsServer::new(server))
        .serve_with_incoming_shutdown(local_grpc::incoming(listener), ending)
        .await
}

struct Server {
    source: Arc<dyn PodSource>,
    changes: Changes,
    /// Tokens, and when they were counted.
    bucket: Mutex<(f64, Instant)>,
}

impl Server {
    fn admit(&self) -> Result<(), Status> {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (tokens, at) = *bucket;
        let refilled = tokens + QPS * now.duration_since(at).max(Duration::ZERO).as_secs_f64();
        let tokens = refilled.min(BURST);
        if tokens < 1.0 {
            *bucket = (tokens, now);
            return Err(Status::resource_exhausted("rejected by rate limit"));
        }
        *bucket = (tokens - 1.0, now);
        Ok(())
    }

    fn check_ready(&self) -> Result<(), Status> {
        match self.source.is_ready() {
            true => Ok(()),
            false => Err(Status::failed_precondition("Kubelet is initializing")),
        }
    }

    fn whole(&self, pod: &Pod) -> Pod {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let status = self.source.status(uid);
        Pod {
            metadata: pod.metadata.clone(),
            spec: pod.spec.clone(),
            status: Some(status.unwrap_or_else(|| unverified(pod))),
        }
    }

    fn all(&self) -> Result<Vec<Vec<u8>>, Status> {
        let mut pods = self.source.pods();
        pods.sort_by(|a, b| a.metadata.uid.cmp(&b.metadata.uid));
        pods.iter().map(|pod| encode(&self.whole(pod))).collect()
    }

    fn list(&self) -> Result<ListPodsResponse, Status> {
        self.admit()?;
        self.check_ready()?;
        Ok(ListPodsResponse { pods: self.all()? })
    }

    fn get(&self, uid: &str) -> Result<GetPodResponse, Status> {
        self.admit()?;
        self.check_ready()?;
        let Some(pod) = self.source.pod(uid) else {
            return Err(Status::not_found(format!("pod with UID {uid} not found")));
        };
        let pod = encode(&self.whole(&pod))?;
        Ok(GetPodResponse { pod })
    }

    fn watch(&self) -> Result<Events, Status> {
        self.check_ready()?;
        // Before the list: what changes meanwhile is told twice rather than never.
        let changes = self.changes.0.subscribe();
        let event = |kind: EventType, pod: Vec<u8>| {
            Ok(WatchPodsEvent {
                r#type: kind.into(),
                pod,
            })
        };
        let mut first: Vec<_> = self
            .all()?
            .into_iter()
            .map(|p| event(EventType::Added, p))
            .collect();
        first.push(event(EventType::InitialSyncComplete, Vec::new()));
        let source = self.source.clone();
        let then = stream::unfold(Some(changes), move |changes| {
            let source = source.clone();
            async move {
                let mut changes = changes?;
                let event = match changes.recv().await {
                    Ok(change) => encode(&change.pod).map(|pod| WatchPodsEvent {
                        r#type: change.kind.into(),
                        pod,
                    }),
                    Err(broadcast::error::RecvError::Lagged(events)) => {
                        source.dropped(events);
                        Err(Status::resource_exhausted("watch client channel closed"))
                    }
                    Err(broadcast::error::RecvError::Closed) => return None,
                };
                let next = event.is_ok().then_some(changes);
                Some((event, next))
            }
        });
        Ok(Box::pin(stream::iter(first).chain(then)))
    }

    fn observed<T>(
        &self,
        method: Method,
        result: Result<T, Status>,
    ) -> Result<Response<T>, Status> {
        self.source
            .observe(method, result.as_ref().err().map(Status::code));
        result.map(Response::new)
    }
}

type Events = Pin<Box<dyn Stream<Item = Result<WatchPodsEvent, Status>> + Send>>;

#[async_trait::async_trait]
impl Pods for Server {
    type WatchPodsStream = Events;

    async fn list_pods(
        &self,
        _: Request<ListPodsRequest>,
    ) -> Result<Response<ListPodsResponse>, Status> {
        self.observed(Method::List, self.list())
    }

    async fn get_pod(
        &self,
        request: Request<GetPodRequest>,
    ) -> Result<Response<GetPodResponse>, Status> {
        self.observed(Method::Get, self.get(&request.get_ref().pod_uid))
    }

    async fn watch_pods(&self, _: Request<WatchPodsRequest>) -> Result<Response<Events>, Status> {
        self.observed(Method::Watch, self.watch())
    }
}

fn encode(pod: &Pod) -> Result<Vec<u8>, Status> {
    let message = kube_protobuf::message("", "v1", "Pod").expect("a built-in kind");
    kube_protobuf::to_message(message, pod)
        .map_err(|error| Status::internal(format!("failed to marshal pod: {error}")))
}

/// What the API server has of a pod that this kubelet has not looked at yet: nobody is told that it is ready.
fn unverified(pod: &Pod) -> PodStatus {
    let mut status = pod.status.clone().unwrap_or_default();
    if status.phase.as_deref().unwrap_or_default().is_empty() {
        status.phase = Some("Pending".to_owned());
    }
    let ready = status
        .conditions
        .iter_mut()
        .flatten()
        .find(|c| c.type_ == "Ready" && c.status == "True");
    if let Some(ready) = ready {
        ready.status = "False".to_owned();
        ready.reason = Some("ContainersNotReady".to_owned());
        ready.message = Some("Kubelet is initializing pod containers".to_owned());
    }
    status
}

#[cfg(test)]
mod tests;
