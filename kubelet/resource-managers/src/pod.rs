//! What the managers look at in a pod.

use component_helpers::qos::{QosClass, get_pod_qos};
use component_helpers::resources::{is_pod_level_resources_set, is_restartable_init_container};
use k8s_openapi::api::core::v1::{Container, Pod};

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub fn init_containers(pod: &Pod) -> &[Container] {
    let spec = pod.spec.as_ref();
    let list = spec.and_then(|spec| spec.init_containers.as_deref());
    list.unwrap_or_default()
}

/// The regular ones.
pub fn containers(pod: &Pod) -> &[Container] {
    let spec = pod.spec.as_ref();
    spec.map(|spec| spec.containers.as_slice())
        .unwrap_or_default()
}

/// Init containers first.
pub fn all_containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    init_containers(pod).iter().chain(containers(pod))
}

/// Whether it ends before the others start. Regular ones and sidecars do not.
pub fn is_regular_init(pod: &Pod, name: &str) -> bool {
    let init = init_containers(pod).iter().find(|c| c.name == name);
    init.is_some_and(|container| !is_restartable_init_container(container))
}

/// Whether its containers may have CPUs and memory of their own.
///
/// A pod with resources as a whole has none but with the gate `PodLevelResourceManagers`, which is off by default and not built.
pub fn may_have_its_own(pod: &Pod) -> bool {
    get_pod_qos(pod) == QosClass::Guaranteed && !is_pod_level_resources_set(pod)
}

/// The most that is asked for at a time: sidecars together with the largest init container after them, or with the regular ones.
pub fn most_at_a_time(pod: &Pod, of: impl Fn(&Container) -> u64) -> u64 {
    let (mut sidecars, mut most) = (0u64, 0u64);
    for container in init_containers(pod) {
        match is_restartable_init_container(container) {
            true => sidecars = sidecars.saturating_add(of(container)),
            false => most = most.max(sidecars.saturating_add(of(container))),
        }
    }
    let regular = containers(pod).iter().map(of);
    regular.fold(sidecars, u64::saturating_add).max(most)
}
