//! Filter and Score: what can be had on a node.

use std::cell::Cell;
use std::sync::Arc;

use ::dynamic_resources::{AllocateError, NodeView, Search};
use framework::{NodeInfo, PodInfo, Status};
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim};

use super::DynamicResources;
use super::claims::{allocation, requests, results};
use super::conditions::{is_ready, is_timed_out};
use super::extended::{self, OnNode};
use super::state::{NodeAllocation, State};

/// An allocation that is there cannot be used on the node.
pub(super) const NOT_AVAILABLE: &str = "resourceclaim not available on the node";
/// The searches for a pod over all nodes may take this many times as long as the one on a node.
// DIFFERS: upstream bounds each by itself; one thread looks at all nodes here, and a claim that is hard on each of them must not keep it for hours.
const TIMEOUTS: u32 = 3;
/// Alternatives of a request. Upstream: `FirstAvailableDeviceRequestMaxSize`.
const MAX_ALTERNATIVES: usize = 8;

/// A random UUID (version 4) from two random numbers.
fn uuid(random: [u64; 2]) -> String {
    let [high, low] = random;
    let high = high & !0xf000 | 0x4000;
    let low = low & !(0b11 << 62) | 0b10 << 62;
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}

/// A number nobody can foresee, by the keys of the standard library's hash maps.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0u8)
}

impl DynamicResources {
    /// Can the claim, which is allocated, be used on the node?
    pub(super) fn is_available(
        &self,
        state: &State,
        index: usize,
        claim: &ResourceClaim,
        node: &NodeInfo,
    ) -> bool {
        if allocation(claim).is_none() {
            return true;
        }
        let placed = state.usable_on[index]
            .as_ref()
            .is_none_or(|terms| terms.matches(node.name(), node.labels()));
        if !placed {
            return false;
        }
        if !self.features.device_binding_conditions {
            return true;
        }
        match is_ready(claim) {
            Err(error) => {
                tracing::debug!(node = &**node.name(), %error, "Claim failed binding conditions check");
                false
            }
            Ok(ready) => {
                ready || !is_timed_out(claim, self.binding_timeout, self.handle.wall_time())
            }
        }
    }

    pub(super) fn filter_node(&self, state: &State, pod: &Arc<PodInfo>, node: &NodeInfo) -> Status {
        let claims = state.claims();
        let mut chosen = NodeAllocation::default();
        let mut special_needed = false;
        if let Some(special) = claims.get(state.own) {
            match extended::on_node(&self.devices().read(), special, pod, node) {
                OnNode::Stale => {
                    return Status::unresolvable("cannot schedule extended resource claim");
                }
                OnNode::Unfit => return Status::unresolvable("cannot fit resource"),
                OnNode::NotNeeded if state.own == 0 => return Status::success(),
                OnNode::NotNeeded => {}
                OnNode::Needed(claim, mappings) => {
                    special_needed = true;
                    (chosen.special, chosen.mappings) = (Some(claim), mappings);
                }
            }
        }
        let unavailable = claims
            .iter()
            .enumerate()
            .any(|(index, claim)| !self.is_available(state, index, claim, node));
        if let Some(allocator) = state.allocator() {
            let wanted = state
                .unallocated
                .iter()
                .filter(|index| special_needed || !state.is_special(**index));
            let wanted: Vec<&ResourceClaim> = wanted
                .map(|index| match (state.is_special(*index), &chosen.special) {
                    (true, Some(special)) => &**special,
                    _ => &*claims[*index],
                })
                .collect();
            let started = self.handle.now();
            let searched = || self.handle.now().saturating_duration_since(started);
            let limit = self.filter_timeout;
            let timed_out = || !limit.is_zero() && searched() > limit;
            let seed = Cell::new(None);
            let new_share_id = || {
                // Told apart by a number; what is foreseen of it harms nobody.
                let [first, count] = seed.get().unwrap_or_else(|| [random(), random()]);
                seed.set(Some([first, count.wrapping_add(1)]));
                uuid([first, count])
            };
            if !limit.is_zero() && state.progress().searched > limit * TIMEOUTS {
                return Status::error(format!(
                    "node {}: timed out trying to allocate devices, after all nodes before it",
                    node.name()
                ));
            }
            let search = Search {
                interrupted: &timed_out,
                new_share_id: &new_share_id,
            };
            let view = NodeView {
                name: node.name(),
                labels: node.labels(),
            };
            let found = allocator.allocate(&view, &wanted, &search);
            state.progress().searched += searched();
            match found {
                Ok(Some(found)) => chosen.results = found,
                Ok(None) => return Status::unresolvable("cannot allocate all claims"),
                Err(error @ AllocateError::InvalidPools) => {
                    return Status::unresolvable(error.to_string());
                }
                Err(AllocateError::Interrupted) => {
                    return Status::error(format!(
                        "node {}: timed out trying to allocate devices",
                        node.name()
                    ));
                }
                Err(error) => return Status::error(error),
            }
        }
        if unavailable {
            return Status::unresolvable(NOT_AVAILABLE);
        }
        if !state.unallocated.is_empty() {
            state
                .progress()
                .nodes
                .insert(node.name().to_string(), chosen);
        }
        Status::success()
    }
}

/// The sooner an alternative stands in its list, the better.
fn score_of(claim: &ResourceClaim, allocation: &AllocationResult) -> i64 {
    let taken = |name: &str| {
        results(allocation)
            .iter()
            .any(|result| result.request == name)
    };
    let mut score = 0;
    for request in requests(claim)
        .iter()
        .filter(|request| request.exactly.is_none())
    {
        for (index, alternative) in request.first_available.iter().flatten().enumerate() {
            if taken(&format!("{}/{}", request.name, alternative.name)) {
                score += MAX_ALTERNATIVES as i64 - index as i64;
            }
        }
    }
    score
}

/// The raw score of a node.
pub(super) fn score(state: &State, node: &str) -> i64 {
    let progress = state.progress();
    let Some(chosen) = progress.nodes.get(node) else {
        return 0;
    };
    let mut results = chosen.results.iter();
    let mut score = 0;
    for claim in &progress.claims {
        let allocation = allocation(claim).or_else(|| results.next());
        score += allocation.map_or(0, |allocation| score_of(claim, allocation));
    }
    score
}
