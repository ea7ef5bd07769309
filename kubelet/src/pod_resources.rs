//! Which devices the pods of the node have, for its agents: see the crate `devices`.

use std::sync::Arc;

use ::devices::pod_resources::{PodEntry, PodList, Question};
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
