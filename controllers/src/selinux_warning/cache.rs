//! Which Pods use which volumes, under which labels, and what conflicts. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use controller_runtime::ObjectKey;

use super::label::conflicts;

/// How a Pod uses a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Use {
    /// The label of the mount; empty for none.
    pub(super) label: String,
    /// `MountOption` or `Recursive`.
    pub(super) change_policy: String,
}

/// What two uses of a volume differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Property {
    ChangePolicy,
    Label,
}

impl Property {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ChangePolicy => "SELinuxChangePolicy",
            Self::Label => "SELinuxLabel",
        }
    }

    /// The reason of the events.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::ChangePolicy => "SELinuxChangePolicyConflict",
            Self::Label => "SELinuxLabelConflict",
        }
    }
}

/// A conflict as one of the two Pods sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Conflict {
    pub(super) property: Property,
    pub(super) pod: ObjectKey,
    pub(super) value: String,
    pub(super) other: ObjectKey,
    pub(super) other_value: String,
}

impl Conflict {
    /// What the Pod is told. It learns nothing of Pods of other namespaces.
    pub(super) fn message(&self) -> String {
        let Self {
            value, other_value, ..
        } = self;
        let property = self.property.name();
        let end = "If both pods land on the same node, only one of them may access the volume.";
        if self.pod.namespace == self.other.namespace {
            let other = &self.other.name;
            return format!(
                "{property} \"{value}\" conflicts with pod {other} that uses the same volume as this pod with {property} \"{other_value}\". {end}"
            );
        }
        format!(
            "{property} \"{value}\" conflicts with another pod that uses the same volume as this pod with a different {property}. {end}"
        )
    }
}

#[derive(Default)]
struct UsedVolume {
    driver: Option<String>,
    pods: BTreeMap<ObjectKey, Use>,
    /// In both directions.
    conflicts: Vec<Conflict>,
}

/// All uses of all volumes.
#[derive(Default)]
pub(super) struct Volumes {
    volumes: HashMap<String, UsedVolume>,
    by_pod: HashMap<ObjectKey, BTreeSet<String>>,
}

impl Volumes {
    /// Takes a Pod's use of a volume in; the conflicts that are new with it, in both directions.
    ///
    /// DIFFERS: where the policies differ, the labels are not compared: the recursive one has none. Upstream tells of a conflict with
    /// an empty label, too.
    pub(super) fn add(
        &mut self,
        name: &str,
        driver: Option<&str>,
        pod: &ObjectKey,
        used: Use,
    ) -> Vec<Conflict> {
        let volume = self.volumes.entry(name.to_owned()).or_default();
        if volume.pods.get(pod) == Some(&used) {
            return Vec::new();
        }
        volume.driver = driver.map(ToOwned::to_owned);
        let mut new = Vec::new();
        for (other, other_use) in volume.pods.iter().filter(|(other, _)| *other != pod) {
            let mut push = |property, value: &str, other_value: &str| {
                let conflict =
                    |pod: &ObjectKey, value: &str, other: &ObjectKey, theirs: &str| Conflict {
                        property,
                        pod: pod.clone(),
                        value: value.to_owned(),
                        other: other.clone(),
                        other_value: theirs.to_owned(),
                    };
                new.push(conflict(pod, value, other, other_value));
                new.push(conflict(other, other_value, pod, value));
            };
            let (policy, others) = (&used.change_policy, &other_use.change_policy);
            if policy != others {
                push(Property::ChangePolicy, policy, others);
            } else if conflicts(&used.label, &other_use.label) {
                push(Property::Label, &used.label, &other_use.label);
            }
        }
        volume.forget_conflicts(pod);
        volume.conflicts.extend(new.iter().cloned());
        volume.pods.insert(pod.clone(), used);
        let volumes = self.by_pod.entry(pod.clone()).or_default();
        volumes.insert(name.to_owned());
        new
    }

    /// A Pod is gone, or its volumes are unmounted.
    pub(super) fn remove(&mut self, pod: &ObjectKey) {
        for name in self.by_pod.remove(pod).unwrap_or_default() {
            let Some(volume) = self.volumes.get_mut(&name) else {
                continue;
            };
            volume.forget_conflicts(pod);
            volume.pods.remove(pod);
            if volume.pods.is_empty() {
                self.volumes.remove(&name);
            }
        }
    }

    /// The Pods that use volumes of a CSI driver.
    pub(super) fn pods_of_driver(&self, driver: &str) -> BTreeSet<ObjectKey> {
        let volumes = self.volumes.values();
        let volumes = volumes.filter(|volume| volume.driver.as_deref() == Some(driver));
        volumes
            .flat_map(|volume| volume.pods.keys().cloned())
            .collect()
    }

    /// All conflicts there are, in both directions, each once.
    pub(super) fn conflicts(&self) -> BTreeSet<Conflict> {
        let volumes = self.volumes.values();
        volumes
            .flat_map(|volume| volume.conflicts.iter().cloned())
            .collect()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.volumes.is_empty() && self.by_pod.is_empty()
    }
}

impl UsedVolume {
    fn forget_conflicts(&mut self, pod: &ObjectKey) {
        self.conflicts.retain(|c| c.pod != *pod && c.other != *pod);
    }
}
