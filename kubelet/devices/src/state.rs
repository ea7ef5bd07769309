//! The devices of the node and who has them; pure: no plugin, no clock.
//!
//! Owns: which devices a container gets ([`State::plan`]), what the node has ([`State::capacity`]), which init container's devices
//! later containers use again, and where devices are (`topology`). Upstream: manager.go.

mod topology;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::pod_devices::{Allocation, NO_NODE, PodDevices};
use crate::v1beta1::{self as pb, ContainerAllocateResponse};

/// How long a resource stays at zero once its last plugin went. Upstream: `endpointStopGracePeriod`.
pub const STOP_GRACE_PERIOD: Duration = Duration::from_secs(300);

/// Why a container gets no devices. None of it goes away for this pod: upstream rejects it for good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocationError {
    #[error(
        "pod {pod:?} container {container:?} changed request for resource {resource:?} from {had} to {required}"
    )]
    Changed {
        pod: String,
        container: String,
        resource: String,
        had: usize,
        required: usize,
    },
    #[error("cannot allocate unregistered device {0}")]
    Unregistered(String),
    #[error("no healthy devices present; cannot allocate unhealthy devices {0}")]
    NoHealthy(String),
    #[error(
        "previously allocated devices are no longer healthy; cannot allocate unhealthy devices {0}"
    )]
    NoLongerHealthy(String),
    #[error(
        "requested number of devices unavailable for {resource}. Requested: {requested}, Available: {available}"
    )]
    Unavailable {
        resource: String,
        requested: usize,
        available: usize,
    },
}

/// What a container is to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It ends before the others start: its devices are theirs then.
    Init,
    /// An init container that runs on.
    Sidecar,
    Regular,
}

/// A container and its limits, in whole units; those of no plugin, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRequest {
    pub name: String,
    pub kind: Kind,
    pub limits: BTreeMap<String, i64>,
}

/// Init containers first, in the pod's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRequest {
    pub uid: String,
    pub containers: Vec<ContainerRequest>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Device {
    /// As its plugin said.
    healthy: bool,
    numa_nodes: Vec<i64>,
}

#[derive(Clone, Debug, Default)]
struct Resource {
    /// As the last list had them.
    devices: BTreeMap<String, Device>,
    /// A list came since a plugin was there.
    listed: bool,
    /// When its last plugin went; `None`: there is one.
    stopped: Option<Duration>,
}

impl Resource {
    fn healthy(&self) -> BTreeSet<String> {
        let healthy = self
            .devices
            .iter()
            .filter(|(_, d)| self.listed && d.healthy);
        healthy.map(|(id, _)| id.clone()).collect()
    }
}

/// A device and where it is, as agents are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub resource: String,
    pub id: String,
    /// `None`: it belongs to none. One of several is told of once for each.
    pub numa_node: Option<i64>,
}

/// What the Node is to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    pub capacity: BTreeMap<String, usize>,
    /// The healthy ones.
    pub allocatable: BTreeMap<String, usize>,
    /// Were there, and are no more: the Node says zero once, so that they are not taken for resources of the cluster.
    pub removed: BTreeSet<String>,
}

/// What a list of devices changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Pods whose devices are in another state than before.
    pub pods: BTreeSet<String>,
    /// The Node has other numbers to say.
    pub counts_changed: bool,
}

/// What is to be done for one container and one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// It has them already.
    Held,
    Choose(Choice),
}

/// Between what is sure and what may be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// From containers that ended before.
    pub taken: BTreeSet<String>,
    /// Healthy and nobody's.
    pub available: BTreeSet<String>,
    /// How many of those are wanted.
    pub missing: usize,
    /// Those of them that come after the others.
    pub last: BTreeSet<String>,
}

impl Choice {
    /// The plugin's preference first, then in order.
    pub fn complete(self, preferred: &[String]) -> BTreeSet<String> {
        let preferred = preferred.iter().filter(|id| self.available.contains(*id));
        let mut chosen = self.taken;
        let wanted = chosen.len() + self.missing;
        let rest = self.available.difference(&self.last).chain(&self.last);
        for id in preferred.chain(rest) {
            if chosen.len() == wanted {
                break;
            }
            chosen.insert(id.clone());
        }
        chosen
    }
}

#[derive(Clone, Debug, Default)]
pub struct State {
    resources: BTreeMap<String, Resource>,
    removed: BTreeSet<String>,
    pub pods: PodDevices,
}

impl State {
    /// As a kubelet before this one left it: its resources have no devices until their plugins come again.
    pub fn restored(pods: PodDevices, registered: Vec<String>, now: Duration) -> Self {
        let stopped = Resource {
            stopped: Some(now),
            ..Resource::default()
        };
        let resources = registered.into_iter().map(|name| (name, stopped.clone()));
        Self {
            resources: resources.collect(),
            removed: BTreeSet::new(),
            pods,
        }
    }

    /// A plugin of the resource is there; its devices are not known yet.
    pub fn plugin_came(&mut self, resource: &str) {
        self.removed.remove(resource);
        let known = self.resources.entry(resource.to_owned()).or_default();
        known.stopped = None;
    }

    /// The last plugin of the resource went: none of its devices is to be had.
    pub fn plugins_gone(&mut self, resource: &str, now: Duration) {
        if let Some(known) = self.resources.get_mut(resource) {
            known.stopped = Some(now);
            known.listed = false;
        }
    }

    /// A list of all devices.
    pub fn list(&mut self, resource: &str, devices: Vec<pb::Device>) -> Listed {
        let known = self.resources.entry(resource.to_owned()).or_default();
        let counts = |of: &Resource| (of.devices.len(), of.healthy().len());
        let counted = counts(known);
        let now: BTreeMap<String, Device> = devices
            .into_iter()
            .map(|device| {
                let nodes = device.topology.unwrap_or_default().nodes;
                let is = Device {
                    healthy: device.health == pb::HEALTHY,
                    numa_nodes: nodes.iter().map(|node| node.id).collect(),
                };
                (device.id, is)
            })
            .collect();
        let was_listed = std::mem::replace(&mut known.listed, true);
        let before = std::mem::replace(&mut known.devices, now);
        let counts_changed = counts(known) != counted;
        let changed: Vec<&String> = known
            .devices
            .iter()
            .filter(|(id, d)| {
                let before = before.get(*id).filter(|_| was_listed);
                before.is_none_or(|before| before.healthy != d.healthy)
            })
            .map(|(id, _)| id)
            .collect();
        let holders = changed
            .into_iter()
            .flat_map(|id| self.pods.holders(resource, id));
        Listed {
            pods: holders.cloned().collect(),
            counts_changed,
        }
    }

    /// What the Node says now. Resources whose plugins are gone for long enough are forgotten; returns whether one was.
    pub fn capacity(&mut self, now: Duration) -> (Capacity, bool) {
        let expired = |r: &Resource| r.stopped.is_some_and(|at| now > at + STOP_GRACE_PERIOD);
        let gone: Vec<String> = self
            .resources
            .iter()
            .filter(|(_, r)| expired(r))
            .map(|(name, _)| name.clone())
            .collect();
        for name in &gone {
            self.resources.remove(name);
            self.removed.insert(name.clone());
        }
        let count = |of: fn(&Resource) -> usize| {
            let resources = self.resources.iter();
            resources.map(|(name, r)| (name.clone(), of(r))).collect()
        };
        let capacity = Capacity {
            capacity: count(|r| r.devices.len()),
            allocatable: count(|r| r.healthy().len()),
            removed: self.removed.clone(),
        };
        (capacity, !gone.is_empty())
    }

    /// The Node says of these that they are removed; from now on they are whoever's that adds them.
    pub fn removal_is_told(&mut self, names: &BTreeSet<String>) {
        self.removed.retain(|name| !names.contains(name));
    }

    /// The healthy devices of each resource, as the checkpoint has them.
    pub fn registered(&self) -> BTreeMap<String, Vec<String>> {
        let resources = self.resources.iter();
        resources
            .map(|(name, r)| (name.clone(), r.healthy().into_iter().collect()))
            .collect()
    }

    /// A plugin has it, or had it and something of it is given out.
    pub fn is_of_plugin(&self, resource: &str) -> bool {
        self.resources.contains_key(resource) || self.pods.has_resource(resource)
    }

    /// Which devices the container is to get. `reusable`: of containers that ended before it.
    ///
    /// # Errors
    /// It cannot have them.
    pub fn plan(
        &self,
        pod: &str,
        container: &str,
        resource: &str,
        required: usize,
        reusable: &BTreeSet<String>,
    ) -> Result<Plan, AllocationError> {
        let held = self.pods.devices(pod, container, resource);
        if let Some(held) = &held
            && held.len() != required
        {
            return Err(AllocationError::Changed {
                pod: pod.to_owned(),
                container: container.to_owned(),
                resource: resource.to_owned(),
                had: held.len(),
                required,
            });
        }
        let registered = self.resources.get(resource);
        let registered =
            registered.ok_or_else(|| AllocationError::Unregistered(resource.to_owned()))?;
        let healthy = registered.healthy();
        if healthy.is_empty() {
            return Err(AllocationError::NoHealthy(resource.to_owned()));
        }
        if let Some(held) = held {
            return match healthy.is_superset(&held) {
                true => Ok(Plan::Held),
                false => Err(AllocationError::NoLongerHealthy(resource.to_owned())),
            };
        }
        let taken: BTreeSet<String> = reusable.iter().take(required).cloned().collect();
        let missing = required - taken.len();
        let in_use = self.pods.in_use(resource);
        let available: BTreeSet<String> = healthy.difference(&in_use).cloned().collect();
        if available.len() < missing {
            return Err(AllocationError::Unavailable {
                resource: resource.to_owned(),
                requested: missing,
                available: available.len(),
            });
        }
        Ok(Plan::Choose(Choice {
            taken,
            available,
            missing,
            last: BTreeSet::new(),
        }))
    }

    /// The plugin agreed.
    pub fn commit(
        &mut self,
        (pod, container, resource): (&str, &str, &str),
        chosen: &BTreeSet<String>,
        response: ContainerAllocateResponse,
    ) {
        let known = self.resources.get(resource);
        let mut devices: BTreeMap<i64, Vec<String>> = BTreeMap::new();
        for id in chosen {
            let device = known.and_then(|r| r.devices.get(id));
            let nodes = device.map(|d| d.numa_nodes.as_slice()).unwrap_or_default();
            let nodes = if nodes.is_empty() { &[NO_NODE] } else { nodes };
            for node in nodes {
                devices.entry(*node).or_default().push(id.clone());
            }
        }
        let allocation = Allocation { devices, response };
        self.pods.insert(pod, container, resource, allocation);
    }

    /// What earlier containers of the pod leave to `container`, by resource. Upstream: `devicesToReuse`.
    pub fn reusable(
        &self,
        pod: &PodRequest,
        container: &str,
    ) -> BTreeMap<String, BTreeSet<String>> {
        let mut reusable: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for earlier in pod.containers.iter().take_while(|c| c.name != container) {
            let Some(held) = self.pods.container(&pod.uid, &earlier.name) else {
                continue;
            };
            for (resource, allocation) in held {
                let ids = allocation.ids();
                let left = reusable.entry(resource.clone()).or_default();
                match earlier.kind {
                    Kind::Init => left.extend(ids),
                    // It keeps them.
                    Kind::Sidecar | Kind::Regular => left.retain(|id| !ids.contains(id)),
                }
            }
        }
        reusable
    }

    /// What the container has.
    pub fn held(&self, pod: &str, container: &str) -> Vec<Held> {
        let held = self.pods.container(pod, container);
        let held = held.into_iter().flatten();
        let all = held.flat_map(|(resource, allocation)| {
            let devices = allocation.devices.iter();
            let devices = devices.flat_map(|(node, ids)| ids.iter().map(move |id| (node, id)));
            devices.map(move |(node, id)| Held {
                resource: resource.clone(),
                id: id.clone(),
                numa_node: (*node != NO_NODE).then_some(*node),
            })
        });
        all.collect()
    }

    /// Every healthy device, given out or not.
    pub fn allocatable(&self) -> Vec<Held> {
        let mut all = Vec::new();
        for (resource, r) in self.resources.iter().filter(|(_, r)| r.listed) {
            for (id, device) in r.devices.iter().filter(|(_, d)| d.healthy) {
                let held = |numa_node| Held {
                    resource: resource.clone(),
                    id: id.clone(),
                    numa_node,
                };
                all.extend(device.numa_nodes.iter().map(|node| held(Some(*node))));
                all.extend(device.numa_nodes.is_empty().then(|| held(None)));
            }
        }
        all
    }

    /// The health of what the container has, by resource and device. A device nobody tells of is healthy, as upstream.
    pub fn health(&self, pod: &str, container: &str) -> BTreeMap<String, BTreeMap<String, bool>> {
        let Some(held) = self.pods.container(pod, container) else {
            return BTreeMap::new();
        };
        let of = |(resource, allocation): (&String, &Allocation)| {
            let known = self.resources.get(resource);
            let healthy = |id: String| {
                let device = known.and_then(|r| r.devices.get(&id));
                let healthy = device.is_none_or(|d| d.healthy);
                (id, healthy)
            };
            let devices = allocation.ids().into_iter().map(healthy).collect();
            (resource.clone(), devices)
        };
        held.iter().map(of).collect()
    }
}

#[cfg(test)]
mod tests;
