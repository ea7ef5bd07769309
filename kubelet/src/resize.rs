//! In-place resize: what a pod was granted, and whether it has it yet.
//!
//! Owns: the resources granted to each container (which may lag behind the spec while a resize does not fit), the
//! conditions that say so, and the comparison with what the runtime enforces. What was granted is not kept on disk: the
//! pod's own status in the API tells it again after a restart. Upstream: `pkg/kubelet/allocation`, v1.36.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use component_helpers::quantity::{Amount, amount};
use component_helpers::resources::{PodResourcesOptions, ResourceList, pod_requests};
use k8s_openapi::api::core::v1::{
    Container, ContainerStatus, Pod, PodCondition, ResourceRequirements,
};
use runtime::api as cri;

use crate::pod;

/// Resources by container name.
type Granted = HashMap<String, Option<ResourceRequirements>>;

#[derive(Clone, Default)]
struct Entry {
    granted: Granted,
    pending: Option<Pending>,
}

/// A resize that cannot be granted now (`Deferred`) or ever (`Infeasible`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    pub reason: &'static str,
    pub message: String,
}

/// Shared by the workers.
#[derive(Default)]
pub struct AllocationManager {
    entries: Mutex<HashMap<String, Entry>>,
}

fn all_containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod::containers(pod).iter().chain(pod::init_containers(pod))
}

fn spec_resources(pod: &Pod) -> Granted {
    all_containers(pod)
        .map(|c| (c.name.clone(), c.resources.clone()))
        .collect()
}

/// What the API's status says was granted, for a pod that ran before this kubelet.
fn from_status(pod: &Pod) -> Granted {
    let mut granted = spec_resources(pod);
    let statuses = pod.status.iter().flat_map(|s| {
        s.container_statuses
            .iter()
            .chain(s.init_container_statuses.iter())
            .flatten()
    });
    for status in statuses {
        if let (Some(resources), Some(slot)) =
            (&status.resources, granted.get_mut(status.name.as_str()))
        {
            let mut resources = resources.clone();
            if status.allocated_resources.is_some() {
                resources.requests = status.allocated_resources.clone();
            }
            *slot = Some(resources);
        }
    }
    granted
}

/// The pod as it would be with these resources.
fn apply(pod: &Arc<Pod>, granted: &Granted) -> Arc<Pod> {
    let same = all_containers(pod).all(|c| {
        granted
            .get(&c.name)
            .is_none_or(|g| equal(g.as_ref(), c.resources.as_ref()))
    });
    if same {
        return pod.clone();
    }
    let mut out = (**pod).clone();
    if let Some(spec) = out.spec.as_mut() {
        let containers = spec
            .containers
            .iter_mut()
            .chain(spec.init_containers.iter_mut().flatten());
        for container in containers {
            if let Some(resources) = granted.get(&container.name) {
                container.resources = resources.clone();
            }
        }
    }
    Arc::new(out)
}

fn equal(a: Option<&ResourceRequirements>, b: Option<&ResourceRequirements>) -> bool {
    let same = |a: Option<&ResourceList>, b: Option<&ResourceList>| {
        let value = |l: Option<&ResourceList>, n: &str| l.and_then(|l| l.get(n)).map(amount);
        a.into_iter()
            .chain(b)
            .flat_map(|l| l.keys())
            .all(|n| value(a, n) == value(b, n))
    };
    same(
        a.and_then(|r| r.requests.as_ref()),
        b.and_then(|r| r.requests.as_ref()),
    ) && same(
        a.and_then(|r| r.limits.as_ref()),
        b.and_then(|r| r.limits.as_ref()),
    )
}

/// Does the pod, as it asks now, fit beside the others?
fn fits(pod: &Pod, others: &[Arc<Pod>], allocatable: &ResourceList) -> Result<(), Pending> {
    let options = PodResourcesOptions::default();
    let wanted = pod_requests(pod, &options);
    for name in ["cpu", "memory"] {
        let number = |a: Amount| {
            if name == "cpu" {
                a.milli_value()
            } else {
                a.value()
            }
        };
        let of = |p: &Pod| {
            pod_requests(p, &options)
                .get(name)
                .map_or(0, |a| number(*a))
        };
        let wanted = wanted.get(name).map_or(0, |a| number(*a));
        let capacity = allocatable.get(name).map_or(0, |q| number(amount(q)));
        if wanted > capacity {
            return Err(Pending {
                reason: "Infeasible",
                message: format!(
                    "Node didn't have enough capacity: {name}, requested: {wanted}, capacity: {capacity}"
                ),
            });
        }
        let used: i64 = others.iter().map(|p| of(p)).sum();
        if wanted + used > capacity {
            return Err(Pending {
                reason: "Deferred",
                message: format!(
                    "Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {capacity}"
                ),
            });
        }
    }
    Ok(())
}

impl AllocationManager {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The pod with what it was granted so far; the pod itself when nothing is known of it.
    pub fn granted(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        match self.lock().get(pod::uid(pod)) {
            Some(entry) => apply(pod, &entry.granted),
            None => pod.clone(),
        }
    }

    /// Grants what the spec asks for, if it fits. `others`: the other pods, as they were granted.
    pub fn allocate(
        &self,
        pod: &Arc<Pod>,
        others: impl FnOnce() -> Vec<Arc<Pod>>,
        allocatable: &ResourceList,
    ) -> Arc<Pod> {
        let uid = pod::uid(pod).to_owned();
        let running = pod
            .status
            .as_ref()
            .is_some_and(|s| s.container_statuses.is_some());
        let known = self.lock().contains_key(&uid);
        if !known {
            let granted = if running {
                from_status(pod)
            } else {
                spec_resources(pod)
            };
            self.lock().insert(
                uid.clone(),
                Entry {
                    granted,
                    pending: None,
                },
            );
        }
        let before = self.granted(pod);
        if Arc::ptr_eq(&before, pod) {
            if let Some(entry) = self.lock().get_mut(&uid) {
                entry.pending = None;
            }
            return before;
        }
        match fits(pod, &others(), allocatable) {
            Ok(()) => {
                tracing::info!(pod = %pod::format(pod), "resize is granted");
                self.lock().insert(
                    uid,
                    Entry {
                        granted: spec_resources(pod),
                        pending: None,
                    },
                );
                pod.clone()
            }
            Err(pending) => {
                if let Some(entry) = self.lock().get_mut(&uid) {
                    entry.pending = Some(pending);
                }
                before
            }
        }
    }

    pub fn pending(&self, uid: &str) -> Option<Pending> {
        self.lock().get(uid).and_then(|e| e.pending.clone())
    }

    /// Pods whose resize waits for room.
    pub fn deferred(&self) -> Vec<String> {
        let is_deferred = |e: &Entry| e.pending.as_ref().is_some_and(|p| p.reason == "Deferred");
        self.lock()
            .iter()
            .filter(|(_, e)| is_deferred(e))
            .map(|(uid, _)| uid.clone())
            .collect()
    }

    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }
}

/// What of a container's resources differs from what the kernel was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    pub cpu: bool,
    pub memory: bool,
}

impl Difference {
    pub fn any(self) -> bool {
        self.cpu || self.memory
    }

    /// Does the container's policy want a restart for it?
    pub fn needs_restart(self, container: &Container) -> bool {
        container.resize_policy.iter().flatten().any(|p| {
            p.restart_policy == "RestartContainer"
                && ((p.resource_name == "cpu" && self.cpu)
                    || (p.resource_name == "memory" && self.memory))
        })
    }
}

/// Compares the two, nothing and zero being the same.
pub fn difference(wanted: &cri::Resources, actual: &cri::Resources) -> Difference {
    let quota = |r: &cri::Resources| r.cpu_quota_us.filter(|q| *q > 0).unwrap_or(0);
    let shares = |r: &cri::Resources| r.cpu_shares.unwrap_or(0).max(2);
    let memory = |r: &cri::Resources| r.memory_limit_bytes.filter(|b| *b > 0).unwrap_or(0);
    Difference {
        cpu: shares(wanted) != shares(actual) || quota(wanted) != quota(actual),
        memory: memory(wanted) != memory(actual),
    }
}

/// What the runtime must be told: a limit that went away is lifted.
pub fn update_for(wanted: &cri::Resources, actual: &cri::Resources) -> cri::Resources {
    let mut out = wanted.clone();
    if out.cpu_quota_us.is_none() && actual.cpu_quota_us.is_some_and(|q| q > 0) {
        out.cpu_quota_us = Some(-1);
    }
    if out.memory_limit_bytes.is_none() && actual.memory_limit_bytes.is_some_and(|b| b > 0) {
        out.memory_limit_bytes = Some(-1);
        out.memory_swap_limit_bytes = Some(-1);
    }
    out
}

/// `PodResizePending` and `PodResizeInProgress`, as far as they hold.
pub fn conditions(
    pod: &Pod,
    pending: Option<&Pending>,
    in_progress: bool,
    error: Option<&str>,
) -> Vec<PodCondition> {
    let make = |type_: &str, reason: Option<&str>, message: Option<&str>| PodCondition {
        type_: type_.to_owned(),
        status: "True".to_owned(),
        reason: reason.map(str::to_owned),
        message: message.map(str::to_owned),
        observed_generation: pod.metadata.generation,
        ..PodCondition::default()
    };
    let mut out = vec![];
    if let Some(p) = pending {
        out.push(make("PodResizePending", Some(p.reason), Some(&p.message)));
    }
    if in_progress {
        out.push(make("PodResizeInProgress", error.map(|_| "Error"), error));
    }
    out
}

/// The container's resources as they really are: the spec's once the kernel has them, until then those shown before.
pub fn shown_resources(
    spec: &Container,
    actuated: bool,
    old: Option<&ContainerStatus>,
) -> Option<ResourceRequirements> {
    if actuated {
        return spec.resources.clone();
    }
    old.and_then(|o| o.resources.clone())
        .or_else(|| spec.resources.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::PodSpec;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    fn pod(uid: &str, cpu: &str) -> Arc<Pod> {
        let requests = [("cpu".to_owned(), Quantity(cpu.into()))].into();
        let container = Container {
            name: "c".into(),
            resources: Some(ResourceRequirements {
                requests: Some(requests),
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut pod = Pod {
            spec: Some(PodSpec {
                containers: vec![container],
                ..Default::default()
            }),
            ..Default::default()
        };
        pod.metadata.uid = Some(uid.into());
        Arc::new(pod)
    }

    fn cpu_of(pod: &Pod) -> String {
        pod::containers(pod)[0]
            .resources
            .as_ref()
            .unwrap()
            .requests
            .as_ref()
            .unwrap()["cpu"]
            .0
            .clone()
    }

    #[test]
    fn a_resize_waits_for_room() {
        let manager = AllocationManager::default();
        let node = [("cpu", "1"), ("memory", "1Gi")]
            .map(|(k, v)| (k.to_owned(), Quantity(v.into())))
            .into();
        let allocate =
            |p: &Arc<Pod>, others: Vec<Arc<Pod>>| cpu_of(&manager.allocate(p, || others, &node));
        assert_eq!(allocate(&pod("a", "100m"), vec![]), "100m");
        assert_eq!(allocate(&pod("a", "600m"), vec![pod("b", "500m")]), "100m");
        assert_eq!(manager.pending("a").unwrap().reason, "Deferred");
        assert_eq!(manager.deferred(), ["a"]);
        assert_eq!(allocate(&pod("a", "600m"), vec![]), "600m");
        assert_eq!(manager.pending("a"), None);
        assert_eq!(allocate(&pod("a", "2"), vec![]), "600m");
        assert_eq!(manager.pending("a").unwrap().reason, "Infeasible");
        assert_eq!(allocate(&pod("a", "600m"), vec![]), "600m");
        assert_eq!(manager.pending("a"), None);
    }

    #[test]
    fn differences_name_the_resource() {
        let wanted = cri::Resources {
            cpu_shares: Some(102),
            memory_limit_bytes: Some(5),
            ..Default::default()
        };
        let actual = cri::Resources {
            cpu_shares: Some(102),
            memory_limit_bytes: Some(4),
            ..Default::default()
        };
        assert_eq!(
            difference(&wanted, &actual),
            Difference {
                cpu: false,
                memory: true
            }
        );
        assert!(!difference(&wanted, &wanted).any());
    }
}
