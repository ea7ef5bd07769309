//! [`PodGroupCache`]: groups of pods (`scheduling.k8s.io/v1beta1` PodGroup), their pods, and which of them have a node or are assumed to.
//!
//! Told of every change by the scheduler's event handlers, before the queue is, and of assumptions by the scheduling loop. A group is known by its object or by any of its
//! pods. Never here: whether a group may run. Upstream: pkg/scheduler/backend/cache/podgroupstate.go, v1.37.
//!
//! ```text
//!   unscheduled <-- forget -- assumed        a pod is in one of these;
//!        |   -- assume -->       |           a pod of a group with the gate off is in none
//!        +------> assigned <-----+
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::scheduling::v1beta1::PodGroup;

/// Namespace and name of the group a pod belongs to; `None` for a pod of its own.
pub fn group_of(pod: &Pod) -> Option<(&str, &str)> {
    let group = pod.spec.as_ref()?.scheduling_group.as_ref()?;
    let name = group.pod_group_name.as_deref()?;
    Some((pod.metadata.namespace.as_deref().unwrap_or_default(), name))
}

/// The label whose value all pods of the group have in common on their nodes; `None` for a group without such a constraint. The API allows one.
pub fn topology_key(group: &PodGroup) -> Option<&str> {
    let constraints = group.spec.scheduling_constraints.as_ref()?;
    let first = constraints.topology.as_ref()?.first()?;
    Some(&first.key)
}

/// So many pods of a gang have to get a node together; `None` for a group that is no gang.
pub fn min_count(group: &PodGroup) -> Option<usize> {
    let gang = group.spec.scheduling_policy.gang.as_ref()?;
    Some(usize::try_from(gang.min_count).unwrap_or(0))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Unscheduled,
    Assumed,
    Assigned,
}

#[derive(Debug)]
struct Member {
    pod: Arc<Pod>,
    place: Place,
    /// While it is assumed to have one: the node.
    assumed_node: Option<Arc<str>>,
}

#[derive(Debug, Default)]
struct Group {
    object: Option<Arc<PodGroup>>,
    /// By UID.
    pods: BTreeMap<String, Member>,
}

/// How many pods a group has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PodGroupCounts {
    /// Known to the scheduler, whether they have a node or not.
    pub all: usize,
    /// With a node, or assumed to have one.
    pub scheduled: usize,
}

type Key = (String, String);

fn key((namespace, name): (&str, &str)) -> Key {
    (namespace.to_owned(), name.to_owned())
}

/// See the module.
#[derive(Debug, Default)]
pub struct PodGroupCache {
    enabled: bool,
    topology_aware: bool,
    groups: RwLock<BTreeMap<Key, Group>>,
}

impl PodGroupCache {
    /// An empty cache. Not `enabled`: the gate `GenericWorkload` is off, and nothing is ever in it.
    pub fn new(enabled: bool) -> Self {
        PodGroupCache {
            enabled,
            topology_aware: false,
            groups: RwLock::default(),
        }
    }

    /// The same, with the gate `TopologyAwareWorkloadScheduling` like this; it is off without `GenericWorkload`.
    pub fn with_topology_aware(self, on: bool) -> Self {
        PodGroupCache {
            topology_aware: on && self.enabled,
            ..self
        }
    }

    /// Is the gate `TopologyAwareWorkloadScheduling` on?
    pub fn topology_aware(&self) -> bool {
        self.topology_aware
    }

    /// Is the gate `GenericWorkload` on?
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Key, Group>> {
        self.groups.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Key, Group>> {
        self.groups.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, of: (&str, &str), change: impl FnOnce(&mut Group)) {
        let key = key(of);
        let mut groups = self.write();
        let group = groups.entry(key.clone()).or_default();
        change(group);
        if group.object.is_none() && group.pods.is_empty() {
            groups.remove(&key);
        }
    }

    /// The group a pod is scheduled with; `None` for a pod of its own, and with the gate off.
    pub fn group_of<'a>(&self, pod: &'a Pod) -> Option<(&'a str, &'a str)> {
        if !self.enabled {
            return None;
        }
        group_of(pod)
    }

    /// A group is this now.
    pub fn set_group(&self, group: &Arc<PodGroup>) {
        let meta = &group.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let name = meta.name.as_deref().unwrap_or_default();
        self.change((namespace, name), |known| {
            known.object = Some(Arc::clone(group));
        });
    }

    /// A group is gone; its pods may be there still.
    pub fn delete_group(&self, group: &PodGroup) {
        let meta = &group.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let name = meta.name.as_deref().unwrap_or_default();
        self.change((namespace, name), |known| known.object = None);
    }

    /// A pod is this now. One with a node is assigned, whatever was assumed.
    pub fn set_pod(&self, pod: &Arc<Pod>) {
        let Some(of) = self.group_of(pod) else { return };
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let spec = pod.spec.as_ref();
        let node = spec.and_then(|spec| spec.node_name.as_deref());
        let assigned = node.is_some_and(|node| !node.is_empty());
        self.change(of, |group| {
            let known = group.pods.get(&uid).map(|member| member.place);
            let place = match known {
                _ if assigned => Place::Assigned,
                Some(place) => place,
                None => Place::Unscheduled,
            };
            let assumed_node = group.pods.remove(&uid).and_then(|known| known.assumed_node);
            let member = Member {
                pod: Arc::clone(pod),
                place,
                assumed_node: assumed_node.filter(|_| place == Place::Assumed),
            };
            group.pods.insert(uid, member);
        });
    }

    /// A pod is gone.
    pub fn delete_pod(&self, pod: &Pod) {
        let Some(of) = self.group_of(pod) else { return };
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        self.change(of, |group| {
            group.pods.remove(uid);
        });
    }

    /// A pod is assumed to have this node.
    pub fn assume(&self, pod: &Pod, node: &str) {
        self.place(pod, Place::Unscheduled, Place::Assumed, Some(node));
    }

    /// It is no longer.
    pub fn forget(&self, pod: &Pod) {
        self.place(pod, Place::Assumed, Place::Unscheduled, None);
    }

    /// A pod that is gone meanwhile, or has its node, stays as it is.
    fn place(&self, pod: &Pod, from: Place, to: Place, node: Option<&str>) {
        let Some(of) = self.group_of(pod) else { return };
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        self.change(of, |group| {
            if let Some(member) = group.pods.get_mut(uid).filter(|m| m.place == from) {
                member.place = to;
                member.assumed_node = node.map(Arc::from);
            }
        });
    }

    /// The group's object; `None` while nobody has made it.
    pub fn group(&self, of: (&str, &str)) -> Option<Arc<PodGroup>> {
        self.read().get(&key(of))?.object.clone()
    }

    /// How many pods the group has.
    pub fn counts(&self, of: (&str, &str)) -> PodGroupCounts {
        let groups = self.read();
        let Some(group) = groups.get(&key(of)) else {
            return PodGroupCounts::default();
        };
        let scheduled = |member: &&Member| member.place != Place::Unscheduled;
        PodGroupCounts {
            all: group.pods.len(),
            scheduled: group.pods.values().filter(scheduled).count(),
        }
    }

    fn pods(&self, of: (&str, &str), is: impl Fn(Place) -> bool) -> Vec<Arc<Pod>> {
        let groups = self.read();
        let members = groups
            .get(&key(of))
            .into_iter()
            .flat_map(|g| g.pods.values());
        let there = members.filter(|member| is(member.place));
        there.map(|member| Arc::clone(&member.pod)).collect()
    }

    /// Its pods without a node.
    pub fn unscheduled(&self, of: (&str, &str)) -> Vec<Arc<Pod>> {
        self.pods(of, |place| place == Place::Unscheduled)
    }

    /// Its pods that are assumed to have one.
    pub fn assumed(&self, of: (&str, &str)) -> Vec<Arc<Pod>> {
        self.pods(of, |place| place == Place::Assumed)
    }

    /// Its pods that have one, or are assumed to.
    pub fn scheduled(&self, of: (&str, &str)) -> Vec<Arc<Pod>> {
        self.pods(of, |place| place != Place::Unscheduled)
    }

    /// The same, with the node of each.
    pub fn scheduled_on(&self, of: (&str, &str)) -> Vec<(Arc<Pod>, Arc<str>)> {
        let groups = self.read();
        let Some(group) = groups.get(&key(of)) else {
            return Vec::new();
        };
        let on = |member: &Member| {
            let node = match member.place {
                Place::Unscheduled => return None,
                Place::Assumed => member.assumed_node.clone()?,
                Place::Assigned => {
                    let spec = member.pod.spec.as_ref();
                    spec.and_then(|spec| spec.node_name.as_deref())?.into()
                }
            };
            Some((Arc::clone(&member.pod), node))
        };
        group.pods.values().filter_map(on).collect()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodSchedulingGroup;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;
    use crate::testing::{PodBuilder, make_pod};

    const OF: (&str, &str) = ("default", "g");

    fn member(name: &str) -> PodBuilder {
        make_pod(name).uid(name).with(|pod| {
            pod.spec.get_or_insert_default().scheduling_group = Some(PodSchedulingGroup {
                pod_group_name: Some("g".into()),
            });
        })
    }

    #[test]
    fn pods_go_from_place_to_place() {
        let cache = PodGroupCache::new(true);
        let counts = |all, scheduled| {
            assert_eq!(cache.counts(OF), PodGroupCounts { all, scheduled });
        };
        let (a, b) = (member("a").build(), member("b").build());
        cache.set_pod(&a);
        cache.set_pod(&b);
        cache.set_pod(&make_pod("alone").uid("alone").build());
        counts(2, 0);
        cache.assume(&a, "m");
        counts(2, 1);
        cache.set_pod(&a);
        assert_eq!(cache.assumed(OF).len(), 1, "a change leaves it assumed");
        let on = |expect: &[&str]| {
            let scheduled = cache.scheduled_on(OF);
            let nodes: Vec<_> = scheduled.iter().map(|(_, node)| &**node).collect();
            assert_eq!(nodes, expect);
        };
        on(&["m"]);
        cache.forget(&a);
        counts(2, 0);
        on(&[]);
        cache.assume(&a, "m");
        cache.set_pod(&member("a").node("n").build());
        on(&["n"]);
        cache.forget(&a);
        counts(2, 1);
        assert!(cache.assumed(OF).is_empty());
        assert_eq!(cache.unscheduled(OF).len(), 1);
        cache.delete_pod(&a);
        cache.assume(&a, "m");
        counts(1, 0);
        cache.delete_pod(&b);
        assert!(cache.read().is_empty(), "nothing is left");
    }

    #[test]
    fn a_group_is_known_by_its_object_or_its_pods() {
        let group = Arc::new(PodGroup {
            metadata: ObjectMeta {
                namespace: Some("default".into()),
                name: Some("g".into()),
                ..ObjectMeta::default()
            },
            ..PodGroup::default()
        });
        let cache = PodGroupCache::new(true);
        let a = member("a").build();
        cache.set_pod(&a);
        assert!(cache.group(OF).is_none());
        cache.set_group(&group);
        assert!(cache.group(OF).is_some());
        cache.delete_group(&group);
        assert!(cache.group(OF).is_none());
        assert_eq!(cache.counts(OF).all, 1);

        let off = PodGroupCache::new(false);
        off.set_pod(&a);
        assert!(off.group_of(&a).is_none() && off.counts(OF).all == 0);
    }
}
