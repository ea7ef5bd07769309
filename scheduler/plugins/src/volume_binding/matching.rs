//! [`Matching`]: the volumes a claim could be bound to, smallest first, found by node.

use std::collections::HashMap;
use std::sync::Arc;

use component_helpers::labels::{Operator, Selector};
use component_helpers::persistent_volume::{
    check_access_modes, claim_attributes_class, claim_class, claim_ref, is_volume_bound_to_claim,
    requested_storage, volume_attributes_class, volume_capacity, volume_modes_differ, volume_phase,
};
use framework::volumes::Volume;
use framework::{Status, VolumeState};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use super::claims::Claim;
use super::plan::NodeView;

/// How a volume suits a claim, wherever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// Not at all.
    No,
    /// Its maker, or an earlier attempt, meant it for this claim: it is what the claim gets.
    Prebound,
    /// It is free and will do.
    Free,
}

fn fit(claim: &PersistentVolumeClaim, selector: Option<&Selector>, volume: &Volume) -> Fit {
    let object = &*volume.object;
    let prebound = is_volume_bound_to_claim(object, claim);
    if (claim_ref(object).is_some() && !prebound)
        || volume_capacity(object) < requested_storage(claim)
        || volume_modes_differ(claim, object)
        || claim_attributes_class(claim) != volume_attributes_class(object)
        || object.metadata.deletion_timestamp.is_some()
    {
        Fit::No
    } else if prebound {
        Fit::Prebound
    } else if volume_phase(object) == "Available"
        && selector.is_none_or(|s| s.matches(&object.metadata.labels))
        && check_access_modes(claim, object)
    {
        Fit::Free
    } else {
        Fit::No
    }
}

/// The volume that is meant for a claim, of its class and good enough.
///
/// # Errors
/// For a claim whose selector is wrong.
pub(super) fn prebound(state: &VolumeState, claim: &Claim) -> Result<Option<Arc<Volume>>, Status> {
    let class = claim_class(&claim.object);
    let selector = selector(claim)?;
    let mut meant = state.meant_for(&claim.key).filter(|v| v.class() == class);
    let suits = |v: &&Arc<Volume>| fit(&claim.object, selector.as_ref(), v) == Fit::Prebound;
    Ok(meant.find(suits).cloned())
}

fn selector(claim: &Claim) -> Result<Option<Selector>, Status> {
    let spec = claim.object.spec.as_ref();
    let selector = spec.and_then(|spec| spec.selector.as_ref());
    selector.map(Selector::new).transpose().map_err(|error| {
        Status::error(format!(
            "error creating internal label selector for claim: {}: {error}",
            claim.key
        ))
    })
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Matching {
    prebound: Option<Arc<Volume>>,
    /// By size, then by name.
    candidates: Vec<Arc<Volume>>,
    /// Candidates that ask for one of some values of a label, by label and value, ascending.
    by_label: HashMap<String, HashMap<String, Vec<u32>>>,
    /// The other candidates, ascending.
    anywhere: Vec<u32>,
}

impl Matching {
    /// # Errors
    /// For a claim whose selector is wrong.
    pub(super) fn new(state: &VolumeState, claim: &Claim) -> Result<Self, Status> {
        let prebound = prebound(state, claim)?;
        if prebound.is_some() {
            return Ok(Matching {
                prebound,
                ..Matching::default()
            });
        }
        let selector = selector(claim)?;
        let class = claim_class(&claim.object);
        let suits = |v: &&Arc<Volume>| fit(&claim.object, selector.as_ref(), v) == Fit::Free;
        let suitable = state.unclaimed(class).filter(suits).cloned();
        let mut candidates: Vec<Arc<Volume>> = suitable.collect();
        candidates.sort_by_cached_key(|v| (volume_capacity(&v.object), v.name().to_owned()));
        let mut matching = Matching {
            candidates,
            ..Matching::default()
        };
        for (i, volume) in (0..).zip(&matching.candidates) {
            match place(volume) {
                None => matching.anywhere.push(i),
                Some((label, values)) => {
                    let by_value = matching.by_label.entry(label.to_owned()).or_default();
                    for value in values {
                        by_value.entry(value.clone()).or_default().push(i);
                    }
                }
            }
        }
        Ok(matching)
    }

    /// The volume the claim would get on the node. `taken` went to other claims of the pod.
    pub(super) fn on(&self, node: &NodeView<'_>, taken: &[Arc<Volume>]) -> Option<&Arc<Volume>> {
        if let Some(volume) = &self.prebound {
            return Some(volume).filter(|v| v.allows(node.labels, node.csi_node));
        }
        let usable = |i: &&u32| {
            let volume = &self.candidates[**i as usize];
            !taken.iter().any(|taken| taken.name() == volume.name())
                && volume.allows(node.labels, node.csi_node)
        };
        let placed = self.by_label.iter().filter_map(|(label, by_value)| {
            let here = by_value.get(node.labels.get(label)?)?;
            here.iter().find(usable)
        });
        let best = placed.chain(self.anywhere.iter().find(usable)).min()?;
        self.candidates.get(*best as usize)
    }
}

/// A label and values, one of which a node must have for the volume; `None` where it is not so simple.
fn place(volume: &Volume) -> Option<(&str, &[String])> {
    if volume.depends_on_csi_node() {
        return None;
    }
    let [term] = volume.affinity_on(None)?.terms() else {
        return None;
    };
    term.label_requirements()
        .iter()
        .find_map(|requirement| match &requirement.operator {
            Operator::In(values) => Some((&*requirement.key, &**values)),
            _ => None,
        })
}
