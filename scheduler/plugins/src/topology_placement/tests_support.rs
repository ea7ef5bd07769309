//! A group of pods, its pods, and a scheduler that knows of placements.

use framework::testing::{PodBuilder, make_pod};
use k8s_openapi::api::core::v1::PodSchedulingGroup;
use k8s_openapi::api::scheduling::v1beta1::{
    PodGroupSchedulingConstraints, PodGroupSpec, TopologyConstraint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::*;
use crate::testing::FakeHandle;

pub(crate) fn group(key: Option<&str>) -> PodGroup {
    let topology = |key: &str| PodGroupSchedulingConstraints {
        topology: Some(vec![TopologyConstraint { key: key.into() }]),
    };
    PodGroup {
        metadata: ObjectMeta {
            namespace: Some("default".into()),
            name: Some("g".into()),
            ..ObjectMeta::default()
        },
        spec: PodGroupSpec {
            scheduling_constraints: key.map(topology),
            ..PodGroupSpec::default()
        },
        ..PodGroup::default()
    }
}

pub(crate) fn member(name: &str) -> PodBuilder {
    make_pod(name).uid(name).with(|pod| {
        pod.spec.get_or_insert_default().scheduling_group = Some(PodSchedulingGroup {
            pod_group_name: Some("g".into()),
        });
    })
}

pub(crate) fn handle() -> Arc<FakeHandle> {
    Arc::new(FakeHandle {
        pod_groups: PodGroupCache::new(true).with_topology_aware(true),
        ..FakeHandle::default()
    })
}
