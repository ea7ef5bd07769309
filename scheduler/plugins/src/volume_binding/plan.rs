//! [`Plan`]: what a pod's claims ask of a node, prepared once and asked about many nodes.

use std::collections::BTreeMap;
use std::sync::Arc;

use component_helpers::persistent_volume::{
    NO_PROVISIONER, SELECTED_NODE, annotation, claim_class, requested_storage, storage_of,
    volume_name,
};
use framework::volumes::Volume;
use framework::{Status, VolumeState};
use k8s_openapi::api::core::v1::TopologySelectorTerm;
use k8s_openapi::api::storage::v1::{CSINode, StorageClass};

use super::claims::{Claim, PodVolumeClaims};
use super::matching::Matching;

/// The volume of a bound claim is elsewhere.
pub const ERR_REASON_NODE_CONFLICT: &str = "node(s) didn't match PersistentVolume's node affinity";
/// No volume for a claim, and none can be made.
pub const ERR_REASON_BIND_CONFLICT: &str =
    "node(s) didn't find available persistent volumes to bind";
/// A volume could be made, were there room.
pub const ERR_REASON_NOT_ENOUGH_SPACE: &str = "node(s) did not have enough free storage";
/// The volume of a bound claim is gone.
pub const ERR_REASON_PV_NOT_EXIST: &str =
    "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";

/// Why a node will not do; several at once, or none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Reasons(u8);

impl Reasons {
    pub(super) const NONE: Reasons = Reasons(0);
    pub(super) const NODE_CONFLICT: Reasons = Reasons(1);
    pub(super) const BIND_CONFLICT: Reasons = Reasons(2);
    pub(super) const NOT_ENOUGH_SPACE: Reasons = Reasons(4);
    pub(super) const PV_NOT_EXIST: Reasons = Reasons(8);

    pub(super) fn add(&mut self, other: Reasons) {
        self.0 |= other.0;
    }

    /// The rejection, in upstream's order.
    pub(super) fn status(self) -> Status {
        let texts = [
            (Self::NODE_CONFLICT, ERR_REASON_NODE_CONFLICT),
            (Self::BIND_CONFLICT, ERR_REASON_BIND_CONFLICT),
            (Self::NOT_ENOUGH_SPACE, ERR_REASON_NOT_ENOUGH_SPACE),
            (Self::PV_NOT_EXIST, ERR_REASON_PV_NOT_EXIST),
        ];
        let given = texts.iter().filter(|(reason, _)| self.0 & reason.0 != 0);
        let given: Vec<String> = given.map(|(_, text)| (*text).to_owned()).collect();
        if given.is_empty() {
            return Status::success();
        }
        Status::with_reasons(framework::Code::UnschedulableAndUnresolvable, given)
    }
}

/// What of a node matters here.
#[derive(Clone, Copy)]
pub(super) struct NodeView<'a> {
    pub(super) name: &'a str,
    pub(super) labels: &'a BTreeMap<String, String>,
    pub(super) csi_node: Option<&'a CSINode>,
}

/// What is to be done on a node.
#[derive(Debug, Default)]
pub(super) struct PodVolumes {
    /// Claims and the volumes they get.
    pub(super) bindings: Vec<(Claim, Arc<Volume>)>,
    /// Claims that get new volumes.
    pub(super) provisions: Vec<Claim>,
}

/// A claim that waits for its node.
#[derive(Debug)]
struct Delayed {
    claim: Claim,
    /// The node was chosen before; a volume is being made for it.
    selected: Option<String>,
    matching: Matching,
    provision: Provision,
}

/// Can a volume be made for a claim?
#[derive(Debug)]
enum Provision {
    /// It cannot be told.
    Unknown(Status),
    /// Nobody makes volumes of the class.
    Never,
    /// On nodes with such labels, where there is room.
    Where {
        topologies: Vec<TopologySelectorTerm>,
        /// The class and size to find room for; `None` for a driver that does not tell.
        room: Option<(String, i64)>,
    },
}

/// Does the driver tell where it has room?
pub(super) fn tells_capacity(state: &VolumeState, provisioner: &str) -> bool {
    let driver = state.csi_driver(provisioner);
    driver.is_some_and(|driver| driver.spec.storage_capacity == Some(true))
}

impl Provision {
    fn new(state: &VolumeState, claim: &Claim) -> Self {
        let class = claim_class(&claim.object);
        if class.is_empty() {
            let reason = format!("no class for claim {:?}", claim.key);
            return Provision::Unknown(Status::error(reason));
        }
        let Some(found) = state.storage_class(class) else {
            let reason = format!("failed to find storage class {class:?}");
            return Provision::Unknown(Status::error(reason));
        };
        if found.provisioner.is_empty() || found.provisioner == NO_PROVISIONER {
            return Provision::Never;
        }
        let resources = claim
            .object
            .spec
            .as_ref()
            .and_then(|s| s.resources.as_ref());
        let asks = storage_of(resources.and_then(|r| r.requests.as_ref())).is_some();
        let bytes = requested_storage(&claim.object).value();
        Provision::Where {
            topologies: found.allowed_topologies.clone().unwrap_or_default(),
            room: (asks && tells_capacity(state, &found.provisioner))
                .then(|| (class.to_owned(), bytes)),
        }
    }

    /// # Errors
    /// When it cannot be told.
    fn on(&self, state: &VolumeState, node: &NodeView<'_>) -> Result<Reasons, Status> {
        match self {
            Provision::Unknown(status) => Err(status.clone()),
            Provision::Never => Ok(Reasons::BIND_CONFLICT),
            Provision::Where { topologies, room } => {
                if !matches_topologies(topologies, node.labels) {
                    return Ok(Reasons::BIND_CONFLICT);
                }
                let has_room = room.as_ref().is_none_or(|(class, bytes)| {
                    let mut capacities = state.capacities(class);
                    capacities.any(|c| c.has_room(*bytes) && c.reaches(node.labels))
                });
                Ok(if has_room {
                    Reasons::NONE
                } else {
                    Reasons::NOT_ENOUGH_SPACE
                })
            }
        }
    }
}

/// Does some term match? No terms match everywhere, an empty term nowhere.
fn matches_topologies(terms: &[TopologySelectorTerm], labels: &BTreeMap<String, String>) -> bool {
    let matches = |term: &TopologySelectorTerm| {
        let expressions = term.match_label_expressions.as_deref().unwrap_or_default();
        let has = |key: &str, values: &[String]| {
            labels.get(key).is_some_and(|value| values.contains(value))
        };
        !expressions.is_empty() && expressions.iter().all(|e| has(&e.key, &e.values))
    };
    terms.is_empty() || terms.iter().any(matches)
}

/// The class's part of a signature: where volumes of it can be made.
pub(super) fn class_key(class: &StorageClass, key: &mut Vec<u8>) {
    let topologies = serde_json::to_vec(&(&class.provisioner, &class.allowed_topologies));
    key.extend(topologies.expect("API types serialise into memory"));
}

/// See the module.
#[derive(Debug)]
pub(super) struct Plan {
    /// The volumes of bound claims; `None` for one that is gone, which ends the list.
    pub(super) bound: Vec<Option<Arc<Volume>>>,
    /// In upstream's order: by size.
    delayed: Vec<Delayed>,
}

impl Plan {
    /// # Errors
    /// For a claim whose selector is wrong.
    pub(super) fn new(state: &VolumeState, claims: &PodVolumeClaims) -> Result<Self, Status> {
        let volume = |claim: &Claim| state.volume(volume_name(&claim.object)).cloned();
        let mut delayed = Vec::with_capacity(claims.delayed.len());
        for claim in &claims.delayed {
            let selected = annotation(&claim.object.metadata, SELECTED_NODE).map(ToOwned::to_owned);
            delayed.push(Delayed {
                matching: match selected {
                    Some(_) => Matching::default(),
                    None => Matching::new(state, claim)?,
                },
                provision: Provision::new(state, claim),
                selected,
                claim: claim.clone(),
            });
        }
        delayed.sort_by_key(|d| match d.selected {
            Some(_) => None,
            None => Some(requested_storage(&d.claim.object)),
        });
        Ok(Plan {
            bound: claims.bound.iter().map(volume).collect(),
            delayed,
        })
    }

    /// Are all claims bound, so that only their volumes' places count?
    pub(super) fn is_bound(&self) -> bool {
        self.delayed.is_empty()
    }

    /// What the bound claims say of a node.
    pub(super) fn check_bound(&self, node: &NodeView<'_>) -> Reasons {
        for volume in &self.bound {
            match volume {
                None => return Reasons::PV_NOT_EXIST,
                Some(v) if !v.allows(node.labels, node.csi_node) => return Reasons::NODE_CONFLICT,
                Some(_) => {}
            }
        }
        Reasons::NONE
    }

    /// What the claims that wait say of a node, and what would be done there.
    ///
    /// # Errors
    /// When it cannot be told whether a volume can be made.
    pub(super) fn find_delayed(
        &self,
        state: &VolumeState,
        node: &NodeView<'_>,
    ) -> Result<(Reasons, PodVolumes), Status> {
        let mut found = PodVolumes::default();
        let elsewhere = |d: &Delayed| d.selected.as_ref().is_some_and(|n| n != node.name);
        if self.delayed.iter().any(elsewhere) {
            return Ok((Reasons::BIND_CONFLICT, found));
        }
        let (mut taken, mut provide) = (Vec::new(), Vec::new());
        // Those with a chosen node come first.
        for delayed in &self.delayed {
            match delayed.matching.on(node, &taken) {
                Some(volume) if delayed.selected.is_none() => {
                    taken.push(Arc::clone(volume));
                    found
                        .bindings
                        .push((delayed.claim.clone(), Arc::clone(volume)));
                }
                _ => provide.push(delayed),
            }
        }
        for delayed in provide {
            let reasons = delayed.provision.on(state, node)?;
            if reasons != Reasons::NONE {
                return Ok((reasons, found));
            }
            found.provisions.push(delayed.claim.clone());
        }
        Ok((Reasons::NONE, found))
    }

    /// Both.
    ///
    /// # Errors
    /// When it cannot be told whether a volume can be made.
    pub(super) fn find(
        &self,
        state: &VolumeState,
        node: &NodeView<'_>,
    ) -> Result<(Reasons, PodVolumes), Status> {
        let mut reasons = self.check_bound(node);
        let (delayed, found) = self.find_delayed(state, node)?;
        reasons.add(delayed);
        Ok((reasons, found))
    }
}
