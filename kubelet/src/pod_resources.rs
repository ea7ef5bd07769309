//! Which devices, CPUs and memory the pods of the node have, for its agents: see the crate `devices`.

use std::sync::Arc;

use ::devices::pod_resources::{Memory, Pinned, PodEntry, PodList, Question};
use ::resource_managers::CpuSet;
use ::resource_managers::memory_manager::Block;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::dynamic_resources::DynamicResources;
use crate::kubelet::Kubelet;
use crate::{metrics, pod};

/// The kubelet as such an API sees it.
pub struct Source(pub Arc<Kubelet>);

#[async_trait]
impl PodList for Source {
    async fn pods(&self) -> Vec<PodEntry> {
        let kubelet = &self.0;
        kubelet.free_devices().await;
        let active = kubelet.active_pods();
        let all = kubelet.pods.pods().into_iter();
        let is_active = |p: &Pod| active.iter().any(|a| pod::uid(a) == pod::uid(p));
        let all = all.map(|p| entry(&p, is_active(&p), &kubelet.claims));
        all.collect()
    }

    fn pinned(&self, pod_uid: &str, container: &str) -> Pinned {
        let managers = &self.0.managers;
        Pinned {
            cpus: ids(&managers.exclusive_cpus(pod_uid, container)),
            memory: memory(managers.memory(pod_uid, container)),
        }
    }

    fn allocatable(&self) -> Pinned {
        let managers = &self.0.managers;
        Pinned {
            cpus: ids(&managers.allocatable_cpus()),
            memory: memory(managers.allocatable_memory()),
        }
    }

    fn observe(&self, version: &'static str, question: Question, failed: bool) {
        let (asked, errors) = match question {
            Question::List => (
                &metrics::POD_RESOURCES_REQUESTS_LIST,
                &metrics::POD_RESOURCES_ERRORS_LIST,
            ),
            Question::Get => (
                &metrics::POD_RESOURCES_REQUESTS_GET,
                &metrics::POD_RESOURCES_ERRORS_GET,
            ),
            Question::Allocatable => (
                &metrics::POD_RESOURCES_REQUESTS_ALLOCATABLE,
                &metrics::POD_RESOURCES_ERRORS_ALLOCATABLE,
            ),
        };
        metrics::POD_RESOURCES_REQUESTS
            .with_label_values(&[version])
            .inc();
        // Upstream counts no questions of its old version one by one.
        if version == "v1" {
            asked.with_label_values(&[version]).inc();
            let errors = errors.with_label_values(&[version]);
            errors.inc_by(u64::from(failed));
        }
    }
}

fn id(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn ids(cpus: &CpuSet) -> Vec<i64> {
    cpus.iter().map(id).collect()
}

fn memory(blocks: Vec<Block>) -> Vec<Memory> {
    let blocks = blocks.into_iter();
    blocks
        .map(|block| Memory {
            kind: block.resource,
            bytes: block.size,
            numa_nodes: block.numa_affinity.into_iter().map(id).collect(),
        })
        .collect()
}

fn entry(pod: &Pod, active: bool, claims: &DynamicResources) -> PodEntry {
    let names = |list: Vec<&Container>| -> Vec<String> {
        list.into_iter().map(|c| c.name.clone()).collect()
    };
    let sidecars = pod::init_containers(pod).iter();
    let all = sidecars.clone().chain(pod::containers(pod));
    let of_container = |c: &Container| (c.name.clone(), claims.of_container(pod, c));
    PodEntry {
        dynamic_resources: all.map(of_container).collect(),
        name: pod::name(pod).to_owned(),
        namespace: pod::namespace(pod).to_owned(),
        uid: pod::uid(pod).to_owned(),
        active,
        sidecars: names(sidecars.filter(|c| pod::is_restartable_init(c)).collect()),
        containers: names(pod::containers(pod).iter().collect()),
    }
}
