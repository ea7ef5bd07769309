//! Which container has which devices; pure. Upstream: pod_devices.go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::v1beta1::ContainerAllocateResponse;

/// In place of a NUMA node for devices that have none. Upstream: `nodeWithoutTopology`.
pub const NO_NODE: i64 = -1;

/// What a container has of one resource, and what the plugin wants done for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Allocation {
    /// By NUMA node; one that belongs to several is in each of them.
    pub devices: BTreeMap<i64, Vec<String>>,
    pub response: ContainerAllocateResponse,
}

impl Allocation {
    pub fn ids(&self) -> BTreeSet<String> {
        self.devices.values().flatten().cloned().collect()
    }
}

/// By name of the resource.
pub type OfContainer = BTreeMap<String, Allocation>;
/// By name of the container.
pub type OfPod = BTreeMap<String, OfContainer>;

/// By UID of the pod. As many as there are pods of the node that have devices. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodDevices(BTreeMap<String, Arc<OfPod>>);

impl PodDevices {
    pub fn insert(&mut self, pod: &str, container: &str, resource: &str, allocation: Allocation) {
        let of_pod = self.0.entry(pod.to_owned()).or_default();
        let of_container = Arc::make_mut(of_pod)
            .entry(container.to_owned())
            .or_default();
        of_container.insert(resource.to_owned(), allocation);
    }

    pub fn remove(&mut self, pod: &str, container: &str, resource: &str) {
        let Some(of_pod) = self.0.get_mut(pod).map(Arc::make_mut) else {
            return;
        };
        if let Some(of_container) = of_pod.get_mut(container) {
            of_container.remove(resource);
        }
        of_pod.retain(|_, of_container| !of_container.is_empty());
        if of_pod.is_empty() {
            self.0.remove(pod);
        }
    }

    /// Keeps the pods that `live` says; returns whether one went.
    pub fn retain(&mut self, live: impl Fn(&str) -> bool) -> bool {
        let before = self.0.len();
        self.0.retain(|uid, _| live(uid));
        self.0.len() != before
    }

    pub fn pods(&self) -> impl Iterator<Item = (&String, &OfPod)> {
        self.0.iter().map(|(uid, of_pod)| (uid, of_pod.as_ref()))
    }

    /// `None`: the container has nothing.
    pub fn container(&self, pod: &str, container: &str) -> Option<&OfContainer> {
        self.0.get(pod)?.get(container)
    }

    /// What the container has of the resource; `None`: nobody gave it any.
    pub fn devices(&self, pod: &str, container: &str, resource: &str) -> Option<BTreeSet<String>> {
        Some(self.container(pod, container)?.get(resource)?.ids())
    }

    /// All that is given out of the resource.
    pub fn in_use(&self, resource: &str) -> BTreeSet<String> {
        let containers = self.0.values().flat_map(|of_pod| of_pod.values());
        containers
            .filter_map(|of_container| of_container.get(resource))
            .flat_map(Allocation::ids)
            .collect()
    }

    pub fn has_resource(&self, resource: &str) -> bool {
        let mut containers = self.0.values().flat_map(|of_pod| of_pod.values());
        containers.any(|of_container| of_container.contains_key(resource))
    }

    /// Who has the device. IDs are unique within a resource only.
    pub fn holders<'a>(
        &'a self,
        resource: &'a str,
        device: &'a str,
    ) -> impl Iterator<Item = &'a String> {
        self.0.iter().filter_map(move |(uid, of_pod)| {
            let has = |of_container: &OfContainer| {
                let allocation = of_container.get(resource);
                allocation.is_some_and(|a| a.devices.values().flatten().any(|id| id == device))
            };
            of_pod.values().any(has).then_some(uid)
        })
    }
}
