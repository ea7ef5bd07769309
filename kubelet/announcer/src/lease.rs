//! Leases of addresses and nodes: their names, what is known of them, and writing them.
//!
//! All are in one namespace and have the label [`LABEL`]; a Lease without it is none of these.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use component_base::client::{is_already_exists, is_conflict, is_not_found};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use crate::election::{AddressLease, LEASE_DURATION, Leases, NodeLease};

/// On every Lease of the announcers: `address` or `node`.
pub const LABEL: &str = "loadbalancer.gantry/lease";
const OF_ADDRESS: &str = "address";
const OF_NODE: &str = "node";
const ADDRESS_PREFIX: &str = "gantry-address-";
const NODE_PREFIX: &str = "gantry-announcer-";

/// What a Lease is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Of {
    /// An address.
    Address(IpAddr),
    /// A node.
    Node(String),
}

impl Of {
    /// The Lease's name. That of IPv6 addresses has all its digits: a name has no colons and ends with a letter or digit.
    pub fn name(&self) -> String {
        match self {
            Self::Address(IpAddr::V4(v4)) => format!("{ADDRESS_PREFIX}{v4}"),
            Self::Address(IpAddr::V6(v6)) => {
                let groups = v6.segments().map(|group| format!("{group:04x}"));
                format!("{ADDRESS_PREFIX}{}", groups.join("-"))
            }
            Self::Node(node) => format!("{NODE_PREFIX}{node}"),
        }
    }

    /// What a Lease is of; `None` for others'.
    pub fn read(lease: &Lease) -> Option<Self> {
        let label = lease.metadata.labels.as_ref()?.get(LABEL)?;
        let name = lease.metadata.name.as_deref()?;
        let of = match label.as_str() {
            OF_ADDRESS => {
                let text = name.strip_prefix(ADDRESS_PREFIX)?;
                let v6 = || {
                    text.replace('-', ":")
                        .parse::<Ipv6Addr>()
                        .ok()
                        .map(IpAddr::V6)
                };
                Self::Address(text.parse().ok().or_else(v6)?)
            }
            OF_NODE => Self::Node(name.strip_prefix(NODE_PREFIX)?.to_owned()),
            _ => return None,
        };
        // One spelling each: two Leases of one thing would be two truths.
        (of.name() == name).then_some(of)
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Address(_) => OF_ADDRESS,
            Self::Node(_) => OF_NODE,
        }
    }
}

/// Leases as they are known: by the watch and by the answers to own writes, whichever is newer.
#[derive(Debug, Default)]
pub struct Cache {
    objects: BTreeMap<Of, Lease>,
    leases: Leases,
}

/// Upstream: resource versions are numbers that can be compared (KEP-5504).
fn version(lease: &Lease) -> u64 {
    let text = lease.metadata.resource_version.as_deref();
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn node_lease(lease: &Lease) -> NodeLease {
    let spec = lease.spec.as_ref();
    let seconds = spec.and_then(|s| s.lease_duration_seconds);
    let seconds = seconds.and_then(|s| u64::try_from(s).ok());
    NodeLease {
        renewed: spec.and_then(|s| s.renew_time.as_ref()).map(|time| time.0),
        duration: seconds.map_or(LEASE_DURATION, Duration::from_secs),
    }
}

impl Cache {
    /// A Lease as it is now, or was. Whether it is news.
    pub fn apply(&mut self, lease: Lease) -> bool {
        let Some(of) = Of::read(&lease) else {
            return false;
        };
        let known = self.objects.get(&of);
        if known.is_some_and(|known| version(known) >= version(&lease)) {
            return false;
        }
        match &of {
            Of::Address(address) => {
                let holder = lease.spec.as_ref().and_then(|s| s.holder_identity.clone());
                let holder = holder.filter(|holder| !holder.is_empty());
                self.leases
                    .addresses
                    .insert(*address, AddressLease { holder });
            }
            Of::Node(node) => drop(self.leases.nodes.insert(node.clone(), node_lease(&lease))),
        }
        self.objects.insert(of, lease);
        true
    }

    /// A Lease that is gone, as it last was: another of its name that was made since stays.
    pub fn remove(&mut self, lease: &Lease) {
        let Some(of) = Of::read(lease) else {
            return;
        };
        let known = self.objects.get(&of);
        let is_newer = |known: &Lease| {
            version(known) > version(lease) && known.metadata.uid != lease.metadata.uid
        };
        if known.is_none_or(is_newer) {
            return;
        }
        match &of {
            Of::Address(address) => drop(self.leases.addresses.remove(address)),
            Of::Node(node) => drop(self.leases.nodes.remove(node)),
        }
        self.objects.remove(&of);
    }

    /// All there are, listed anew.
    pub fn replace(&mut self, all: Vec<Lease>) {
        let there: Vec<Of> = all.iter().filter_map(Of::read).collect();
        let gone: Vec<Lease> = self
            .objects
            .iter()
            .filter(|(of, _)| !there.contains(of))
            .map(|(_, lease)| lease.clone())
            .collect();
        for lease in gone {
            self.remove(&lease);
        }
        for lease in all {
            self.apply(lease);
        }
    }

    /// What they say.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// The object.
    pub fn get(&self, of: &Of) -> Option<&Lease> {
        self.objects.get(of)
    }
}

/// Writes leases.
#[derive(Clone)]
pub struct Writer {
    api: Api<Lease>,
    node: String,
}

/// What a write came to.
#[derive(Debug)]
pub enum Outcome {
    /// The Lease is this now: as it was to be, or as another made it.
    Is(Box<Lease>),
    /// It is not there.
    Gone,
}

impl Writer {
    /// In the name of a node.
    pub fn new(api: Api<Lease>, node: &str) -> Self {
        Self {
            api,
            node: node.to_owned(),
        }
    }

    fn new_lease(&self, of: &Of, spec: LeaseSpec) -> Lease {
        let labels = BTreeMap::from([(LABEL.to_owned(), of.label().to_owned())]);
        Lease {
            metadata: ObjectMeta {
                name: Some(of.name()),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            spec: Some(spec),
        }
    }

    /// Renews this node's Lease, which goes with `owner`, its Node.
    ///
    /// # Errors
    /// The API server does not answer, or says no; the next renewal may succeed.
    pub async fn renew(&self, owner: Option<&OwnerReference>) -> Result<Lease, kube::Error> {
        let of = Of::Node(self.node.clone());
        let spec = LeaseSpec {
            holder_identity: Some(self.node.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        };
        // Nobody else writes it: no version is needed, and so no conflict costs a renewal.
        let owners: Vec<_> = owner.into_iter().cloned().collect();
        let metadata = json!({ "labels": { LABEL: of.label() }, "ownerReferences": owners });
        let patch = json!({ "metadata": metadata, "spec": spec });
        let params = PatchParams::default();
        match self
            .api
            .patch(&of.name(), &params, &Patch::Merge(&patch))
            .await
        {
            Err(error) if is_not_found(&error) => {
                let mut lease = self.new_lease(&of, spec);
                lease.metadata.owner_references = Some(owners);
                self.api.create(&PostParams::default(), &lease).await
            }
            result => result,
        }
    }

    /// Writes who holds an address, over what is known of its Lease.
    ///
    /// # Errors
    /// The API server does not answer, or says no. That another was first is none: [`Outcome`] tells.
    pub async fn set_holder(
        &self,
        address: IpAddr,
        known: Option<Lease>,
        hold: bool,
    ) -> Result<Outcome, kube::Error> {
        let of = Of::Address(address);
        let now = MicroTime(Timestamp::now());
        let before = known.as_ref().and_then(|lease| lease.spec.clone());
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        let spec = LeaseSpec {
            // Given back: empty, as client-go's `release`.
            holder_identity: Some(if hold {
                self.node.clone()
            } else {
                String::new()
            }),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions.saturating_add(i32::from(hold))),
            ..LeaseSpec::default()
        };
        let params = PostParams::default();
        let result = match known {
            None => {
                let lease = self.new_lease(&of, spec);
                self.api.create(&params, &lease).await
            }
            Some(mut lease) => {
                lease.spec = Some(spec);
                // With the version that was read: of several that write, one succeeds.
                self.api.replace(&of.name(), &params, &lease).await
            }
        };
        match result {
            Ok(lease) => Ok(Outcome::Is(Box::new(lease))),
            Err(error)
                if is_conflict(&error) || is_already_exists(&error) || is_not_found(&error) =>
            {
                self.get(&of).await
            }
            Err(error) => Err(error),
        }
    }

    /// Deletes the Lease of an address, as it is known.
    ///
    /// # Errors
    /// As [`Writer::set_holder`].
    pub async fn delete(&self, address: IpAddr, known: &Lease) -> Result<Outcome, kube::Error> {
        let of = Of::Address(address);
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: known.metadata.uid.clone(),
                resource_version: known.metadata.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        match self.api.delete(&of.name(), &params).await {
            Ok(_) => Ok(Outcome::Gone),
            Err(error) if is_not_found(&error) => Ok(Outcome::Gone),
            Err(error) if is_conflict(&error) => self.get(&of).await,
            Err(error) => Err(error),
        }
    }

    /// A Lease as the API server has it now.
    ///
    /// # Errors
    /// The API server does not answer, or says no.
    pub async fn get(&self, of: &Of) -> Result<Outcome, kube::Error> {
        let found = self.api.get_opt(&of.name()).await?;
        Ok(found.map_or(Outcome::Gone, |lease| Outcome::Is(Box::new(lease))))
    }

    /// All leases as the API server has them now.
    ///
    /// # Errors
    /// The API server does not answer, or says no.
    pub async fn list(&self) -> Result<Vec<Lease>, kube::Error> {
        let all = self.api.list(&ListParams::default().labels(LABEL)).await?;
        Ok(all.items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_value;

    fn lease(name: &str, label: &str, version: u64, holder: &str) -> Lease {
        from_value(json!({ "metadata": { "name": name, "uid": "u", "labels": { LABEL: label }, "resourceVersion": version.to_string() },
            "spec": { "holderIdentity": holder, "leaseDurationSeconds": 3 } }))
        .unwrap()
    }

    #[test]
    fn names_and_back() {
        for (of, name) in [
            (
                Of::Address("192.0.2.7".parse().unwrap()),
                "gantry-address-192.0.2.7",
            ),
            (
                Of::Address("fd00::".parse().unwrap()),
                "gantry-address-fd00-0000-0000-0000-0000-0000-0000-0000",
            ),
            (
                Of::Node("node-1.example".into()),
                "gantry-announcer-node-1.example",
            ),
        ] {
            assert_eq!(of.name(), name);
            assert_eq!(Of::read(&lease(name, of.label(), 1, "")), Some(of));
        }
        for (name, label) in [
            ("gantry-address-fd00--1", OF_ADDRESS),
            ("gantry-address-192.0.2.007", OF_ADDRESS),
            ("gantry-address-192.0.2.7", OF_NODE),
            ("gantry-announcer-a", OF_ADDRESS),
            ("gantry-announcer-a", "x"),
            ("kube-scheduler", OF_ADDRESS),
        ] {
            assert_eq!(Of::read(&lease(name, label, 1, "")), None, "{name}");
        }
    }

    #[test]
    fn the_newer_counts() {
        let address: IpAddr = "192.0.2.7".parse().unwrap();
        let name = Of::Address(address).name();
        let mut cache = Cache::default();
        let holder = |cache: &Cache| {
            cache
                .leases()
                .addresses
                .get(&address)
                .map(|l| l.holder.clone())
        };
        assert!(cache.apply(lease(&name, OF_ADDRESS, 9, "a")));
        // The watch is behind the answer to a write; numbers are compared, not texts.
        assert!(!cache.apply(lease(&name, OF_ADDRESS, 8, "b")));
        assert!(cache.apply(lease(&name, OF_ADDRESS, 10, "")));
        assert_eq!(holder(&cache), Some(None));
        let mut old = lease(&name, OF_ADDRESS, 3, "b");
        old.metadata.uid = Some("before".into());
        cache.remove(&old);
        assert_eq!(holder(&cache), Some(None));
        cache.remove(&lease(&name, OF_ADDRESS, 10, ""));
        assert_eq!(holder(&cache), None);
        cache.apply(lease("gantry-announcer-a", OF_NODE, 1, "a"));
        assert_eq!(cache.leases().nodes["a"].duration, Duration::from_secs(3));
        cache.replace(vec![lease(&name, OF_ADDRESS, 11, "c")]);
        assert!(cache.leases().nodes.is_empty());
        assert_eq!(holder(&cache), Some(Some("c".into())));
    }
}
