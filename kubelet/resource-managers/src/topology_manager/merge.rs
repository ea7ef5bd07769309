//! From the hints of all providers to one.
//!
//! Upstream: policy.go, v1.37.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::{Hints, TopologyHint, TopologyManager};
use crate::numa_mask::NumaMask;

/// A list of hints a resource; one hint for those that have no preference, or no way.
pub(super) fn filter_providers_hints(providers: &[Hints]) -> Vec<Vec<TopologyHint>> {
    let only = |preferred| {
        vec![TopologyHint {
            affinity: None,
            preferred,
        }]
    };
    let mut all = Vec::new();
    for hints in providers {
        if hints.is_empty() {
            all.push(only(true));
        }
        for of_resource in hints.values() {
            all.push(match of_resource {
                None => only(true),
                Some(list) if list.is_empty() => only(false),
                Some(list) => list.clone(),
            });
        }
    }
    all
}

/// Keeps what is preferred and of one node, or of any.
pub(super) fn keep_single_numa(all: &mut [Vec<TopologyHint>]) {
    for hints in all {
        hints.retain(|hint| hint.preferred && hint.affinity.is_none_or(|mask| mask.count() == 1));
    }
}

/// The best of every choice of one hint a resource.
///
/// What a choice comes to depends on little of it ([`Choice`]), so that they are walked through resource by resource, each outcome once;
/// upstream walks through all of them, which are 16 million for three resources on a machine of eight nodes.
pub(super) fn merge(manager: &TopologyManager, hints: &[Vec<TopologyHint>]) -> TopologyHint {
    let merger = Merger {
        manager,
        best_non_preferred_count: most_of_least_counts(hints),
    };
    let mut choices = BTreeSet::from([Choice::nothing(manager.all_nodes())]);
    for list in hints {
        let with = |choice: &Choice| {
            list.iter()
                .map(|hint| choice.with(*hint))
                .collect::<Vec<_>>()
        };
        choices = choices.iter().flat_map(with).collect();
    }
    let merged = choices.iter().map(|choice| Merged {
        mask: choice.mask,
        preferred: choice.preferred && choice.same,
    });
    let best = merged.fold(None, |best, candidate| merger.better(best, candidate));
    best.map_or(
        TopologyHint {
            affinity: Some(manager.all_nodes()),
            preferred: false,
        },
        |best| TopologyHint {
            affinity: Some(best.mask),
            preferred: best.preferred,
        },
    )
}

/// What hints of some resources come to together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Choice {
    /// The nodes that all agree on.
    mask: NumaMask,
    /// What the first hint with nodes said, as long as the others said the same.
    first: Option<NumaMask>,
    same: bool,
    preferred: bool,
}

impl Choice {
    fn nothing(all_nodes: NumaMask) -> Self {
        Self {
            mask: all_nodes,
            first: None,
            same: true,
            preferred: true,
        }
    }

    fn with(self, hint: TopologyHint) -> Self {
        let preferred = self.preferred && hint.preferred;
        let Some(mask) = hint.affinity else {
            return Self { preferred, ..self };
        };
        let same = self.same && self.first.is_none_or(|first| first == mask);
        Self {
            mask: self.mask.and(mask),
            first: same.then_some(mask),
            same,
            preferred,
        }
    }
}

/// Of the resource that takes the most nodes, how many those are. Upstream: `maxOfMinAffinityCounts`.
fn most_of_least_counts(hints: &[Vec<TopologyHint>]) -> usize {
    let least = |list: &Vec<TopologyHint>| {
        let masks = list.iter().filter_map(|hint| hint.affinity);
        masks.map(NumaMask::count).min()
    };
    hints.iter().filter_map(least).max().unwrap_or(0)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Merged {
    mask: NumaMask,
    preferred: bool,
}

struct Merger<'a> {
    manager: &'a TopologyManager,
    best_non_preferred_count: usize,
}

impl Merger<'_> {
    /// It does not matter in which order candidates come.
    fn better(&self, current: Option<Merged>, candidate: Merged) -> Option<Merged> {
        if candidate.mask.count() == 0 {
            return current;
        }
        let Some(current) = current else {
            return Some(candidate);
        };
        Some(match (current.preferred, candidate.preferred) {
            (false, true) => candidate,
            (true, false) => current,
            (true, true) => self.fitter(current, candidate),
            (false, false) => self.better_non_preferred(current, candidate),
        })
    }

    fn fitter(&self, current: Merged, candidate: Merged) -> Merged {
        if current.mask == candidate.mask {
            return current;
        }
        match self.manager.fitter(current.mask, candidate.mask) == current.mask {
            true => current,
            false => candidate,
        }
    }

    /// As many nodes as the resource that takes the most, or as near to that as can be from below.
    fn better_non_preferred(&self, current: Merged, candidate: Merged) -> Merged {
        let best = self.best_non_preferred_count;
        let (has, would) = (current.mask.count(), candidate.mask.count());
        match has.cmp(&best) {
            Ordering::Greater => self.fitter(current, candidate),
            Ordering::Equal if would != best => current,
            Ordering::Equal => self.fitter(current, candidate),
            Ordering::Less => match (would.cmp(&best), would.cmp(&has)) {
                (Ordering::Greater, _) => current,
                (Ordering::Equal, _) | (_, Ordering::Greater) => candidate,
                (_, Ordering::Less) => current,
                (_, Ordering::Equal) => self.fitter(current, candidate),
            },
        }
    }
}
