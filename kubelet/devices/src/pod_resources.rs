//! The PodResources API: which devices the pods of the node have, for its agents (exporters of metrics, daemons of NUMA topology).
//!
//! Owns: the two versions of the protocol and their bounds. Which pods there are, and which CPUs and memory are theirs, is a [`PodList`]'s. What a
//! container has by claims its caller says, too. Upstream: pkg/kubelet/apis/podresources, v1.37.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use component_base::client::TokenBucket;
use tokio::net::UnixListener;
use tonic::{Request, Response, Status};

use crate::manager::Manager;
use crate::state::Held;

/// As published.
#[allow(clippy::all, missing_docs, rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("v1");
}

/// As published.
#[allow(clippy::all, missing_docs, rustdoc::all)]
pub mod v1alpha1 {
    tonic::include_proto!("v1alpha1");
}

use v1::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use v1alpha1::pod_resources_lister_server as alpha;

/// Questions a second, and at once. Upstream: `DefaultQPS`, `DefaultBurstTokens`.
const QPS: f64 = 100.0;
const BURST: u32 = 10;
const MESSAGE_BYTES: usize = 64 << 10;

/// A pod of the node.
#[derive(Clone, Debug, PartialEq)]
pub struct PodEntry {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    /// It runs or is about to.
    pub active: bool,
    pub sidecars: Vec<String>,
    /// The regular ones.
    pub containers: Vec<String>,
    /// What containers have by claims, by container; the others have none.
    pub dynamic_resources: BTreeMap<String, Vec<v1::DynamicResource>>,
}

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    List,
    Get,
    Allocatable,
}

/// Memory of one kind, of some NUMA nodes together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// `memory` or `hugepages-2Mi`
    pub kind: String,
    pub bytes: u64,
    pub numa_nodes: Vec<i64>,
}

/// CPUs and memory that are somebody's own, or could be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pinned {
    pub cpus: Vec<i64>,
    pub memory: Vec<Memory>,
}

/// What there is to tell.
#[async_trait]
pub trait PodList: Send + Sync + 'static {
    /// What the container has for itself.
    fn pinned(&self, pod_uid: &str, container: &str) -> Pinned;
    /// What containers could have, whoever has it now.
    fn allocatable(&self) -> Pinned;
    /// The node's pods, once what ended ones had is free.
    async fn pods(&self) -> Vec<PodEntry>;
    /// A question was answered.
    fn observe(&self, version: &'static str, question: Question, failed: bool);
}

/// Answers on `listener` until `ending` resolves.
///
/// # Errors
/// The socket fails.
pub async fn serve_pod_resources(
    listener: UnixListener,
    manager: Arc<Manager>,
    list: Arc<dyn PodList>,
    ending: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let server = Arc::new(Server {
        manager,
        list,
        bucket: TokenBucket::new(QPS, BURST),
    });
    let v1 = PodResourcesListerServer::from_arc(server.clone());
    let v1alpha1 = alpha::PodResourcesListerServer::from_arc(server);
    tonic::transport::Server::builder()
        .add_service(v1.max_decoding_message_size(MESSAGE_BYTES))
        .add_service(v1alpha1.max_decoding_message_size(MESSAGE_BYTES))
        .serve_with_incoming_shutdown(local_grpc::incoming(listener), ending)
        .await
}

struct Server {
    manager: Arc<Manager>,
    list: Arc<dyn PodList>,
    bucket: TokenBucket,
}

impl Server {
    async fn admit(&self) -> Result<(), Status> {
        match self.bucket.try_acquire().await {
            true => Ok(()),
            false => Err(Status::resource_exhausted("rejected by rate limit")),
        }
    }

    fn resources(&self, pod: &PodEntry) -> v1::PodResources {
        let names = pod.sidecars.iter().chain(&pod.containers);
        let containers = names.map(|name| {
            let pinned = self.list.pinned(&pod.uid, name);
            v1::ContainerResources {
                name: name.clone(),
                devices: devices(self.manager.held(&pod.uid, name)),
                cpu_ids: pinned.cpus,
                memory: memory(pinned.memory),
                dynamic_resources: pod.dynamic_resources.get(name).cloned().unwrap_or_default(),
                ..v1::ContainerResources::default()
            }
        });
        v1::PodResources {
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            containers: containers.collect(),
            ..v1::PodResources::default()
        }
    }

    async fn find(&self, namespace: &str, name: &str) -> Result<v1::PodResources, Status> {
        let pods = self.list.pods().await;
        let named = pods
            .iter()
            .find(|p| p.namespace == namespace && p.name == name);
        let missing = || Status::unknown(format!("pod {name} in namespace {namespace} not found"));
        named.map(|pod| self.resources(pod)).ok_or_else(missing)
    }

    fn answer<T>(
        &self,
        version: &'static str,
        question: Question,
        answer: Result<T, Status>,
    ) -> Result<Response<T>, Status> {
        self.list.observe(version, question, answer.is_err());
        answer.map(Response::new)
    }
}

/// One entry a device and NUMA node, as upstream.
fn devices(held: Vec<Held>) -> Vec<v1::ContainerDevices> {
    let one = |held: Held| v1::ContainerDevices {
        resource_name: held.resource,
        device_ids: vec![held.id],
        topology: held.numa_node.map(|id| v1::TopologyInfo {
            nodes: vec![v1::NumaNode { id }],
        }),
    };
    held.into_iter().map(one).collect()
}

fn memory(blocks: Vec<Memory>) -> Vec<v1::ContainerMemory> {
    let one = |block: Memory| {
        let nodes = block.numa_nodes.into_iter();
        v1::ContainerMemory {
            memory_type: block.kind,
            size: block.bytes,
            topology: Some(v1::TopologyInfo {
                nodes: nodes.map(|id| v1::NumaNode { id }).collect(),
            }),
        }
    };
    blocks.into_iter().map(one).collect()
}

#[async_trait]
impl PodResourcesLister for Server {
    async fn list(
        &self,
        _: Request<v1::ListPodResourcesRequest>,
    ) -> Result<Response<v1::ListPodResourcesResponse>, Status> {
        self.admit().await?;
        let pods = self.list.pods().await;
        let active = pods.iter().filter(|pod| pod.active);
        let pod_resources = active.map(|pod| self.resources(pod)).collect();
        let answer = v1::ListPodResourcesResponse { pod_resources };
        self.answer("v1", Question::List, Ok(answer))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<v1::AllocatableResourcesRequest>,
    ) -> Result<Response<v1::AllocatableResourcesResponse>, Status> {
        self.admit().await?;
        let pinned = self.list.allocatable();
        let answer = v1::AllocatableResourcesResponse {
            devices: devices(self.manager.allocatable()),
            cpu_ids: pinned.cpus,
            memory: memory(pinned.memory),
        };
        self.answer("v1", Question::Allocatable, Ok(answer))
    }

    async fn get(
        &self,
        request: Request<v1::GetPodResourcesRequest>,
    ) -> Result<Response<v1::GetPodResourcesResponse>, Status> {
        self.admit().await?;
        let asked = request.into_inner();
        let found = self.find(&asked.pod_namespace, &asked.pod_name).await;
        let answer = found.map(|found| v1::GetPodResourcesResponse {
            pod_resources: Some(found),
        });
        self.answer("v1", Question::Get, answer)
    }
}

#[async_trait]
impl alpha::PodResourcesLister for Server {
    async fn list(
        &self,
        _: Request<v1alpha1::ListPodResourcesRequest>,
    ) -> Result<Response<v1alpha1::ListPodResourcesResponse>, Status> {
        self.admit().await?;
        let of_container = |uid: &str, name: &String| {
            let held = self.manager.held(uid, name).into_iter();
            v1alpha1::ContainerResources {
                name: name.clone(),
                devices: held
                    .map(|held| v1alpha1::ContainerDevices {
                        resource_name: held.resource,
                        device_ids: vec![held.id],
                    })
                    .collect(),
            }
        };
        let of_pod = |pod: PodEntry| v1alpha1::PodResources {
            containers: pod
                .containers
                .iter()
                .map(|name| of_container(&pod.uid, name))
                .collect(),
            name: pod.name,
            namespace: pod.namespace,
        };
        let pods = self.list.pods().await;
        let answer = v1alpha1::ListPodResourcesResponse {
            pod_resources: pods.into_iter().map(of_pod).collect(),
        };
        self.answer("v1alpha1", Question::List, Ok(answer))
    }
}

#[cfg(test)]
mod tests;
