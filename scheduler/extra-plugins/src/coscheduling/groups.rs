//! [`Groups`]: the groups of pods, who belongs to them, who has a node. No clock, no scheduler.
//!
//! DIFFERS: pods count by UID, not by name: one that is made anew under the same name is another.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use component_helpers::resources::{Amounts, amounts};
use framework::{NodeInfo, Object, Snapshot};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::group_key;
use crate::kinds::{PodGroup, PodGroupSpec};

/// What Permit makes of a pod of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Permitted {
    /// There is no such group.
    NoGroup,
    /// Enough pods have a node.
    Enough,
    /// More pods have to find one.
    Wait {
        /// It is the first of its group.
        first: bool,
        /// As long as the group says.
        timeout: Option<Duration>,
    },
}

#[derive(Default)]
struct Group {
    /// `None`: the label names a group that is not there.
    spec: Option<PodGroupSpec>,
    created: Option<Timestamp>,
    /// All that are labelled so and have not ended, by UID.
    pods: BTreeMap<String, Arc<Pod>>,
    /// Those that have a node, or the promise of one.
    assigned: BTreeSet<String>,
    backed_off_until: Option<Instant>,
    /// Until then the room for `minResources` that was found counts as there.
    room_until: Option<Instant>,
    /// When it was last given up; it goes to the end of the queue then.
    failed: Option<Timestamp>,
    /// No pod has come to wait since.
    given_up: bool,
}

impl Group {
    fn is_empty(&self) -> bool {
        self.spec.is_none() && self.pods.is_empty() && self.assigned.is_empty()
    }
}

/// See the module.
#[derive(Default)]
pub struct Groups(HashMap<String, Group>);

impl Groups {
    /// A group was made, or changed.
    pub fn set_group(&mut self, object: &Object) {
        let decoded: Result<PodGroup, _> = object.decode();
        match decoded {
            Ok(decoded) => {
                let group = self.0.entry(object.key()).or_default();
                // Another one of the same name has not failed yet.
                let created = object.metadata.creation_timestamp.as_ref().map(|t| t.0);
                if group.created != created {
                    group.failed = None;
                }
                group.created = created;
                group.spec = Some(decoded.spec);
            }
            Err(error) => {
                tracing::error!(podGroup = object.key(), %error, "a PodGroup cannot be read");
            }
        }
    }

    /// A group is gone.
    pub fn delete_group(&mut self, key: &str) {
        self.change(key, |group| {
            *group = Group {
                pods: std::mem::take(&mut group.pods),
                assigned: std::mem::take(&mut group.assigned),
                ..Group::default()
            };
        });
    }

    /// A pod of the group was made, or changed.
    pub fn set_pod(&mut self, key: &str, pod: Arc<Pod>) {
        let uid = component_helpers::pod::uid(&pod).to_owned();
        let group = self.0.entry(key.to_owned()).or_default();
        if component_helpers::pod::node_name(&pod).is_some() {
            group.assigned.insert(uid.clone());
        }
        group.pods.insert(uid, pod);
    }

    /// A pod of the group is gone, has ended, or belongs to another.
    pub fn delete_pod(&mut self, key: &str, uid: &str) {
        self.change(key, |group| {
            group.pods.remove(uid);
            group.assigned.remove(uid);
        });
    }

    fn change(&mut self, key: &str, change: impl FnOnce(&mut Group)) {
        if let Some(group) = self.0.get_mut(key) {
            change(group);
            if group.is_empty() {
                self.0.remove(key);
            }
        }
    }

    /// The pods of the group.
    pub fn pods(&self, key: &str) -> Vec<Arc<Pod>> {
        let group = self.0.get(key);
        group.map_or_else(Vec::new, |group| group.pods.values().cloned().collect())
    }

    /// How many more pods of the group need a node (less than none: there are more than enough), and `minMember`. `None`: there is no such group.
    pub fn missing(&self, key: &str) -> Option<(i64, i64)> {
        let group = self.0.get(key)?;
        let min_member = i64::from(group.spec.as_ref()?.min_member);
        Some((min_member - group.assigned.len() as i64, min_member))
    }

    /// Has the group as many pods as it needs?
    pub fn is_complete(&self, key: &str) -> bool {
        let group = self.0.get(key);
        let complete = |group: &Group| {
            let min_member = group.spec.as_ref().map(|spec| spec.min_member);
            min_member.is_some_and(|min| group.pods.len() as i64 >= i64::from(min))
        };
        group.is_some_and(complete)
    }

    /// Does the group ask for room in the cluster?
    pub fn wants_resources(&self, key: &str) -> bool {
        let spec = self.0.get(key).and_then(|group| group.spec.as_ref());
        spec.is_some_and(|spec| spec.min_resources.is_some())
    }

    /// May room in the cluster help it? It asks for some, or was given up for want of it.
    pub fn wants_room(&self, key: &str) -> bool {
        self.wants_resources(key) || self.0.get(key).is_some_and(|group| group.failed.is_some())
    }

    /// May pods of the group be tried? A group that is not there does not say no (Permit does).
    ///
    /// # Errors
    /// Why not, in upstream's words.
    pub fn check(
        &self,
        key: &str,
        pod: &str,
        snapshot: &Snapshot,
        now: Instant,
    ) -> Result<(), String> {
        let Some((group, spec)) = self.0.get(key).and_then(|g| Some((g, g.spec.as_ref()?))) else {
            return Ok(());
        };
        if group.backed_off_until.is_some_and(|until| now < until) {
            return Err(format!("podGroup {key} failed recently"));
        }
        let (all, min_member) = (group.pods.len() as i64, i64::from(spec.min_member));
        if all < min_member {
            return Err(format!(
                "pre-filter pod {pod} cannot find enough sibling pods, current pods number: {all}, minMember of group: {min_member}"
            ));
        }
        let gated = |pod: &&Arc<Pod>| {
            let gates = pod.spec.as_ref().and_then(|s| s.scheduling_gates.as_ref());
            gates.is_some_and(|gates| !gates.is_empty())
        };
        let gated = group.pods.values().filter(gated).count() as i64;
        if all - gated < min_member {
            return Err(format!(
                "pre-filter pod {pod} cannot proceed due to gated pods in the same PodGroup"
            ));
        }
        let Some(wanted) = &spec.min_resources else {
            return Ok(());
        };
        if group.room_until.is_some_and(|until| now < until) {
            return Ok(());
        }
        let mut wanted = amounts(Some(wanted));
        let pods = k8s_openapi::apimachinery::pkg::api::resource::Quantity(min_member.to_string());
        wanted.insert(
            "pods".to_owned(),
            component_helpers::quantity::amount(&pods),
        );
        check_cluster_resource(snapshot, wanted, key)
    }

    /// Until then the room for the group is not looked for again.
    pub fn room_was_found(&mut self, key: &str, until: Instant) {
        let wants = self.wants_resources(key);
        if let Some(group) = self.0.get_mut(key).filter(|_| wants)
            && group.room_until.is_none_or(|old| old < until)
        {
            group.room_until = Some(until);
        }
    }

    /// A pod has a node in sight; `waiting` are the pods of its group that wait already.
    pub fn permit(
        &mut self,
        key: &str,
        uid: &str,
        waiting: impl Iterator<Item = Arc<str>>,
    ) -> Permitted {
        let Some(group) = self.0.get_mut(key) else {
            return Permitted::NoGroup;
        };
        let Some(spec) = &group.spec else {
            return Permitted::NoGroup;
        };
        group.assigned.insert(uid.to_owned());
        group.given_up = false;
        let elsewhere = waiting
            .filter(|uid| !group.assigned.contains(&**uid))
            .count();
        let assigned = group.assigned.len() + elsewhere;
        if assigned as i64 >= i64::from(spec.min_member) {
            group.failed = None;
            return Permitted::Enough;
        }
        Permitted::Wait {
            first: assigned == 1,
            timeout: spec
                .schedule_timeout_seconds
                .map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0))),
        }
    }

    /// A pod has no node after all. True when pods of its group may still wait: they are to be sent back.
    pub fn unreserve(&mut self, key: &str, uid: &str) -> bool {
        let mut others = false;
        self.change(key, |group| {
            group.assigned.remove(uid);
            others = group.spec.is_some() && !group.given_up;
        });
        others
    }

    /// The group was given up at that time.
    pub fn failed(&mut self, key: &str, at: Timestamp) {
        if let Some(group) = self.0.get_mut(key) {
            group.failed = Some(at);
            group.given_up = true;
            group.room_until = None;
        }
    }

    /// No pod of the group is tried before; false when it backs off already.
    pub fn back_off(&mut self, key: &str, until: Instant) -> bool {
        match self.0.get_mut(key) {
            Some(group) if group.backed_off_until.is_none() => {
                group.backed_off_until = Some(until);
                true
            }
            _ => false,
        }
    }

    /// The time is over.
    pub fn end_back_off(&mut self, key: &str) {
        if let Some(group) = self.0.get_mut(key) {
            group.backed_off_until = None;
        }
    }

    /// What the order of the queue goes by: when the group was last given up, or made. `None`: there is no such group.
    pub fn time(&self, key: &str) -> Option<Timestamp> {
        let group = self.0.get(key)?;
        group.failed.or(group.spec.as_ref().and(group.created))
    }
}

/// Is so much free in the cluster, were the group's own pods not there?
///
/// # Errors
/// What is missing.
fn check_cluster_resource(
    snapshot: &Snapshot,
    mut wanted: Amounts,
    group: &str,
) -> Result<(), String> {
    for (_, node) in snapshot.iter() {
        let left = left_resource(node, group);
        wanted.retain(|name, wanted| {
            let unit = if name == "cpu" {
                1_000_000
            } else {
                1_000_000_000
            };
            let has = component_helpers::quantity::Amount::from_nano(i128::from(left(name)) * unit);
            *wanted -= has;
            wanted.is_positive()
        });
        if wanted.is_empty() {
            return Ok(());
        }
    }
    let missing: Vec<String> = wanted
        .iter()
        .map(|(name, amount)| format!("{name}: {}", amount.canonical()))
        .collect();
    Err(format!("resource gap: {{{}}}", missing.join(", ")))
}

/// What is free on the node of a resource (cpu in thousandths), the group's own pods not counted.
fn left_resource<'a>(node: &'a NodeInfo, group: &str) -> impl Fn(&str) -> i64 + 'a {
    let own = |pod: &&Arc<framework::PodInfo>| group_key(&pod.pod).as_deref() == Some(group);
    let mut requested = node.requested().clone();
    let mut pods = node.pods().len() as i64;
    for pod in node.pods().iter().filter(own) {
        requested.add(&pod.requests.resource, -1);
        pods -= 1;
    }
    move |name| {
        let used = if name == "pods" {
            pods
        } else {
            requested.get(name)
        };
        node.allocatable().get(name) - used
    }
}
