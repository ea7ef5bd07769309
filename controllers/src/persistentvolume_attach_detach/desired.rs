//! What should be attached where: the volumes of pods on nodes. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use component_base::events::object_reference;
use component_base::informer::ObjectKey;
use component_helpers::persistent_volume::is_pod_terminated;
use component_helpers::pod;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};

use super::volume::{Lookup, Volume, resolve};

/// A volume at a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The volume's unique name.
    pub volume: String,
    /// The node's name.
    pub node: String,
}

/// A volume that is wanted at a place.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The volume.
    pub volume: Volume,
    /// The UIDs of those who want it.
    pub pods: BTreeSet<String>,
    /// Whether the pods were told that it is elsewhere.
    pub multi_attach_reported: bool,
}

/// A pod that wants volumes.
#[derive(Clone, Debug)]
struct Entry {
    reference: ObjectReference,
    node: String,
    /// By the names in the pod.
    volumes: BTreeMap<String, Volume>,
}

/// All wishes.
#[derive(Debug, Default)]
pub struct Desired {
    managed: BTreeSet<String>,
    pods: HashMap<String, Entry>,
    by_key: HashMap<ObjectKey, String>,
    wanted: BTreeMap<Place, Wanted>,
}

impl Desired {
    /// The node's volumes are attached here.
    pub fn manage(&mut self, node: &str) {
        self.managed.insert(node.to_owned());
    }

    /// Forgets the nodes that are gone, but for those where pods want volumes still.
    pub fn forget_absent(&mut self, exists: impl Fn(&str) -> bool) {
        let wanted: BTreeSet<&str> = self.wanted.keys().map(|p| p.node.as_str()).collect();
        self.managed
            .retain(|node| wanted.contains(node.as_str()) || exists(node));
    }

    /// Looks at a pod. What cannot be said of one of its volumes now stays as it was.
    pub fn pod_changed(&mut self, pod: &Pod, lookup: &dyn Lookup) {
        let Some(node) = pod::node_name(pod) else {
            return;
        };
        let key = ObjectKey::of(pod);
        if self
            .by_key
            .get(&key)
            .is_some_and(|uid| uid != pod::uid(pod))
        {
            // Another of the same name was deleted unseen.
            self.remove(&key);
        }
        if is_pod_terminated(pod) {
            return self.remove(&key);
        }
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
        let mut before = self
            .pods
            .get(pod::uid(pod))
            .map(|entry| entry.volumes.clone())
            .unwrap_or_default();
        let mut now = BTreeMap::new();
        for volume in volumes.into_iter().flatten() {
            let found = match resolve(pod, volume, lookup) {
                Ok(found) => found,
                Err(error) => {
                    tracing::debug!(pod = %key, volume = volume.name, %error, "Error processing volume for pod");
                    before.remove(&volume.name)
                }
            };
            if let Some(found) = found {
                now.insert(volume.name.clone(), found);
            }
        }
        self.set(key, pod, node, now);
    }

    fn set(&mut self, key: ObjectKey, pod: &Pod, node: &str, volumes: BTreeMap<String, Volume>) {
        let uid = pod::uid(pod).to_owned();
        let before = self.pods.remove(&uid);
        let kept: BTreeSet<String> = volumes.values().map(Volume::unique_name).collect();
        for volume in before.iter().flat_map(|entry| entry.volumes.values()) {
            let name = volume.unique_name();
            if !kept.contains(&name) {
                self.unwant(&uid, name, node);
            }
        }
        if volumes.is_empty() {
            self.by_key.remove(&key);
            return;
        }
        for volume in volumes.values() {
            let place = Place {
                volume: volume.unique_name(),
                node: node.to_owned(),
            };
            let wanted = self.wanted.entry(place).or_insert_with(|| Wanted {
                volume: volume.clone(),
                pods: BTreeSet::new(),
                multi_attach_reported: false,
            });
            wanted.pods.insert(uid.clone());
        }
        let entry = Entry {
            reference: object_reference(pod),
            node: node.to_owned(),
            volumes,
        };
        self.by_key.insert(key, uid.clone());
        self.pods.insert(uid, entry);
    }

    fn unwant(&mut self, uid: &str, volume: String, node: &str) {
        let place = Place {
            volume,
            node: node.to_owned(),
        };
        if let Some(wanted) = self.wanted.get_mut(&place) {
            wanted.pods.remove(uid);
            if wanted.pods.is_empty() {
                self.wanted.remove(&place);
            }
        }
    }

    /// The pod is gone, or needs its volumes no more.
    pub fn remove(&mut self, key: &ObjectKey) {
        let Some(uid) = self.by_key.remove(key) else {
            return;
        };
        let Some(entry) = self.pods.remove(&uid) else {
            return;
        };
        for volume in entry.volumes.values() {
            self.unwant(&uid, volume.unique_name(), &entry.node);
        }
    }

    /// Whether somebody wants it there, at a node whose volumes are attached here.
    pub fn wants(&self, place: &Place) -> bool {
        self.managed.contains(&place.node) && self.wanted.contains_key(place)
    }

    /// What is known of a wish.
    pub fn get(&self, place: &Place) -> Option<&Wanted> {
        self.wanted.get(place)
    }

    /// Every wish at nodes whose volumes are attached here.
    pub fn all(&self) -> impl Iterator<Item = (&Place, &Wanted)> {
        let managed = |(place, _): &(&Place, &Wanted)| self.managed.contains(&place.node);
        self.wanted.iter().filter(managed)
    }

    /// The pods have been told that the volume is elsewhere.
    pub fn set_multi_attach_reported(&mut self, place: &Place) {
        if let Some(wanted) = self.wanted.get_mut(place) {
            wanted.multi_attach_reported = true;
        }
    }

    /// Those who want a volume at a place, by namespace and name.
    pub fn pods_at(&self, place: &Place) -> Vec<&ObjectReference> {
        let uids = self.wanted.get(place).into_iter().flat_map(|w| &w.pods);
        let mut found: Vec<&ObjectReference> = uids
            .filter_map(|uid| self.pods.get(uid).map(|entry| &entry.reference))
            .collect();
        found.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        found
    }

    /// Pods that are known here, to be looked at again.
    pub fn keys(&self) -> Vec<ObjectKey> {
        self.by_key.keys().cloned().collect()
    }
}
