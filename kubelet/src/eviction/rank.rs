//! Which pod goes first when a resource is short.
//!
//! Owns: [`rank`], pure: over its request before under it, low priority before high, most over its request first.
//! Upstream: `rankMemoryPressure`, `rankDiskPressureFunc` in `pkg/kubelet/eviction/helpers.go`, v1.36.

use std::cmp::Reverse;
use std::sync::Arc;

use component_helpers::resources::{PodResourcesOptions, pod_requests};
use k8s_openapi::api::core::v1::Pod;

use super::threshold::Signal;
use crate::pod;

/// A pod and what it uses of the short resource.
#[derive(Clone, Debug)]
pub struct Usage {
    pub pod: Arc<Pod>,
    pub used: u64,
}

fn requested(pod: &Pod, signal: Signal) -> u64 {
    let name = match signal {
        Signal::MemoryAvailable | Signal::AllocatableMemoryAvailable => "memory",
        Signal::NodeFsAvailable | Signal::ImageFsAvailable | Signal::ContainerFsAvailable => {
            "ephemeral-storage"
        }
        _ => return 0,
    };
    let value = pod_requests(pod, &PodResourcesOptions::default())
        .get(name)
        .map_or(0, |a| a.value());
    u64::try_from(value).unwrap_or(0)
}

/// The first is evicted first. Critical pods are not in the list.
pub fn rank(pods: Vec<Usage>, signal: Signal) -> Vec<Usage> {
    let mut list: Vec<Usage> = pods
        .into_iter()
        .filter(|u| !pod::is_critical(&u.pod))
        .collect();
    list.sort_by_key(|u| {
        let request = requested(&u.pod, signal);
        let over = u.used.saturating_sub(request);
        let priority = u.pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
        (u.used <= request, priority, Reverse(over))
    });
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    fn usage(name: &str, priority: i32, request: u64, used: u64) -> Usage {
        let mut pod = Pod {
            spec: Some(PodSpec {
                priority: Some(priority),
                containers: vec![Container {
                    resources: Some(ResourceRequirements {
                        requests: Some(
                            [("memory".to_owned(), Quantity(request.to_string()))].into(),
                        ),
                        ..Default::default()
                    }),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..Default::default()
        };
        pod.metadata.name = Some(name.into());
        Usage {
            pod: Arc::new(pod),
            used,
        }
    }

    #[test]
    fn greed_then_priority_then_amount() {
        let list = vec![
            usage("modest", 0, 100, 50),
            usage("important", 10, 0, 500),
            usage("greedy", 0, 0, 300),
            usage("small", 0, 0, 10),
            usage("critical", 2_000_000_000, 0, 900),
        ];
        let names: Vec<String> = rank(list, Signal::MemoryAvailable)
            .iter()
            .map(|u| pod::name(&u.pod).to_owned())
            .collect();
        assert_eq!(names, ["greedy", "small", "important", "modest"]);
    }
}
