//! What is attached where, as far as is known. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::{AttachedVolume, Node};

use super::desired::Place;
use super::volume::Volume;

/// What is known about a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachState {
    /// The driver says that it is attached.
    Attached,
    /// It was tried, and may be.
    Uncertain,
    /// It is not.
    Detached,
}

/// A volume that is, or may be, at a node.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// `None` while only a node's status tells of it.
    pub volume: Option<Volume>,
    /// Whether the driver said that it is there.
    pub confirmed: bool,
    /// Since when nobody wants it there, in the clock's monotonic time.
    pub detach_requested: Option<Duration>,
    /// Whether the node's kubelet may use it.
    reported: bool,
    device_path: String,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Actual {
    attachments: BTreeMap<Place, Attachment>,
    in_use: HashMap<String, HashSet<String>>,
    /// Nodes whose status is to be written.
    stale: BTreeSet<String>,
    /// Nodes that were ever written to; others have nothing to be taken off.
    known: BTreeSet<String>,
}

impl Actual {
    /// What is known about a place.
    pub fn state(&self, place: &Place) -> AttachState {
        match self.attachments.get(place) {
            Some(attachment) if attachment.confirmed => AttachState::Attached,
            Some(_) => AttachState::Uncertain,
            None => AttachState::Detached,
        }
    }

    /// Whether it is attached and nobody wanted it detached.
    pub fn is_settled(&self, place: &Place) -> bool {
        let attachment = self.attachments.get(place);
        attachment.is_some_and(|a| a.confirmed && a.detach_requested.is_none())
    }

    /// All that is, or may be, attached.
    pub fn all(&self) -> impl Iterator<Item = (&Place, &Attachment)> {
        self.attachments.iter()
    }

    /// The volume was attached.
    pub fn mark_attached(&mut self, place: &Place, volume: Option<Volume>, device_path: &str) {
        let attachment = self.add(place, volume);
        attachment.confirmed = true;
        attachment.device_path = device_path.to_owned();
        self.report(place);
    }

    /// The volume may be attached.
    pub fn mark_uncertain(&mut self, place: &Place, volume: Option<Volume>) {
        self.add(place, volume).confirmed = false;
    }

    fn add(&mut self, place: &Place, volume: Option<Volume>) -> &mut Attachment {
        if !self.attachments.contains_key(place) {
            // Taken for in use until the node tells.
            let in_use = self.in_use.entry(place.node.clone()).or_default();
            in_use.insert(place.volume.clone());
        }
        let attachment = self
            .attachments
            .entry(place.clone())
            .or_insert_with(|| Attachment {
                volume: None,
                confirmed: false,
                detach_requested: None,
                reported: false,
                device_path: String::new(),
            });
        if volume.is_some() {
            attachment.volume = volume;
        }
        attachment
    }

    /// The volume is not attached any more.
    pub fn mark_detached(&mut self, place: &Place) {
        if self.attachments.remove(place).is_some_and(|a| a.reported) {
            self.stale.insert(place.node.clone());
        }
    }

    /// Somebody wants it there.
    pub fn touch(&mut self, place: &Place) {
        if let Some(attachment) = self.attachments.get_mut(place) {
            attachment.detach_requested = None;
        }
    }

    /// Nobody wants it there; how long this is so already.
    pub fn request_detach(&mut self, place: &Place, now: Duration) -> Duration {
        let Some(attachment) = self.attachments.get_mut(place) else {
            return Duration::ZERO;
        };
        now.saturating_sub(*attachment.detach_requested.get_or_insert(now))
    }

    /// The kubelet may use the volume.
    pub fn report(&mut self, place: &Place) {
        let Some(attachment) = self.attachments.get_mut(place) else {
            return;
        };
        if !std::mem::replace(&mut attachment.reported, true) {
            self.stale.insert(place.node.clone());
        }
        self.known.insert(place.node.clone());
    }

    /// The kubelet must not begin to use the volume any more.
    pub fn withdraw(&mut self, place: &Place) {
        let attachment = self.attachments.get_mut(place);
        if attachment.is_some_and(|a| std::mem::replace(&mut a.reported, false)) {
            self.stale.insert(place.node.clone());
        }
    }

    /// What the node says it uses.
    pub fn set_in_use(&mut self, node: &str, volumes: &[String]) {
        let volumes = volumes.iter().cloned().collect();
        self.in_use.insert(node.to_owned(), volumes);
    }

    /// Forgets the nodes that are gone, but for those where something is, or may be, attached still.
    pub fn forget_absent(&mut self, exists: impl Fn(&str) -> bool) {
        let places = self.attachments.keys();
        let attached: HashSet<&str> = places.map(|place| place.node.as_str()).collect();
        let stays = |node: &str| attached.contains(node) || exists(node);
        self.in_use.retain(|node, _| stays(node));
        self.stale.retain(|node| stays(node));
        self.known.retain(|node| stays(node));
    }

    /// Whether the node says that it uses the volume, or has not said anything since.
    pub fn is_in_use(&self, place: &Place) -> bool {
        let in_use = self.in_use.get(&place.node);
        in_use.is_some_and(|volumes| volumes.contains(&place.volume))
    }

    /// The node's status has to be written (again), if it ever was.
    pub fn set_stale(&mut self, node: &str) {
        if self.known.contains(node) {
            self.stale.insert(node.to_owned());
        }
    }

    /// Nodes whose status is to be written.
    pub fn stale(&self) -> Vec<String> {
        self.stale.iter().cloned().collect()
    }

    /// What the node's status shall say; it counts as written.
    pub fn take_report(&mut self, node: &str) -> Vec<AttachedVolume> {
        self.stale.remove(node);
        let at_node = self
            .attachments
            .iter()
            .filter(|(place, attachment)| place.node == node && attachment.reported);
        at_node
            .map(|(place, attachment)| AttachedVolume {
                name: place.volume.clone(),
                device_path: attachment.device_path.clone(),
            })
            .collect()
    }

    /// Takes over what a node says, at the start.
    pub fn read_node(&mut self, node: &Node) {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let status = node.status.as_ref();
        for attached in status
            .iter()
            .flat_map(|s| s.volumes_attached.iter().flatten())
        {
            let place = Place {
                volume: attached.name.clone(),
                node: name.to_owned(),
            };
            self.mark_attached(&place, None, &attached.device_path);
        }
        // That is what it says already.
        self.stale.remove(name);
        let in_use = status.and_then(|s| s.volumes_in_use.as_deref());
        self.set_in_use(name, in_use.unwrap_or_default());
    }

    /// Takes over what a VolumeAttachment says, at the start, after the nodes: one that no node tells of is uncertain.
    pub fn populate(&mut self, place: &Place, volume: Volume) {
        match self.attachments.get_mut(place) {
            Some(attachment) => attachment.volume = Some(volume),
            None => self.mark_uncertain(place, Some(volume)),
        }
    }

    /// Whether a node's status says what it shall say.
    pub fn says_the_same(&self, node: &str, says: &[AttachedVolume]) -> bool {
        let says: HashSet<&str> = says.iter().map(|attached| attached.name.as_str()).collect();
        let shall = self
            .attachments
            .iter()
            .filter(|(place, attachment)| place.node == node && attachment.reported)
            .map(|(place, _)| place.volume.as_str());
        says == shall.collect::<HashSet<&str>>()
    }

    /// Nodes that surely have the volume.
    pub fn nodes_with<'a>(&'a self, volume: &'a str) -> impl Iterator<Item = &'a str> {
        let first = Place {
            volume: volume.to_owned(),
            node: String::new(),
        };
        let of_volume = self.attachments.range(first..);
        of_volume
            .take_while(move |(place, _)| place.volume == volume)
            .filter(|(_, attachment)| attachment.confirmed)
            .map(|(place, _)| place.node.as_str())
    }
}
