//! What the pod to place asks, made ready, and what a placed pod contributes for or against it.

use std::collections::BTreeMap;
use std::sync::Arc;

use component_helpers::labels::Selector;
use framework::args::InterPodAffinityArgs;
use framework::{AffinityTerm, Listers, NodeIndex, NodeInfo, NodeSet, PodInfo, Snapshot};

/// What a count is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Placed pods that match all of the pod's required affinity terms.
    Affinity,
    /// Placed pods that match one of its required anti-affinity terms.
    AntiAffinity,
    /// Placed pods one of whose required anti-affinity terms it matches.
    ExistingAntiAffinity,
    /// The sum of weights.
    Score,
}

/// A pod's terms. Namespace selectors are resolved into names, so that placed pods are matched without looking at their namespace's labels.
pub(super) struct Terms {
    pod: Arc<PodInfo>,
    pub affinity: Vec<AffinityTerm>,
    pub anti_affinity: Vec<AffinityTerm>,
    /// With negative weights for anti-affinity.
    preferred: Vec<(AffinityTerm, i64)>,
    /// Of the pod's own namespace, for placed pods' terms.
    namespace_labels: Arc<BTreeMap<String, String>>,
    /// The pod would fulfil its own required affinity.
    pub matches_itself: bool,
    hard_weight: i64,
    ignore_existing: bool,
}

fn resolve(term: &AffinityTerm, listers: &dyn Listers) -> AffinityTerm {
    let mut term = term.clone();
    let selector = &term.namespace_selector;
    // One that selects everything needs no list, and one that selects nothing has none.
    if selector.is_everything() || selector.is_nothing() {
        return term;
    }
    let names = listers
        .namespaces()
        .into_iter()
        .filter(|name| selector.matches(&*listers.namespace_labels(name)));
    term.namespaces.extend(names);
    term.namespace_selector = Selector::nothing();
    term
}

fn matches_all(terms: &[AffinityTerm], pod: &PodInfo) -> bool {
    !terms.is_empty()
        && terms
            .iter()
            .all(|term| term.matches(&pod.pod, &BTreeMap::new()))
}

impl Terms {
    pub(super) fn new(
        pod: &Arc<PodInfo>,
        listers: &dyn Listers,
        args: &InterPodAffinityArgs,
    ) -> Self {
        let resolved = |terms: &[AffinityTerm]| -> Vec<AffinityTerm> {
            terms.iter().map(|term| resolve(term, listers)).collect()
        };
        let attract = pod
            .preferred_affinity_terms
            .iter()
            .map(|t| (resolve(&t.term, listers), t.weight));
        let repel = pod
            .preferred_anti_affinity_terms
            .iter()
            .map(|t| (resolve(&t.term, listers), -t.weight));
        let affinity = resolved(&pod.required_affinity_terms);
        Terms {
            matches_itself: matches_all(&affinity, pod),
            affinity,
            anti_affinity: resolved(&pod.required_anti_affinity_terms),
            preferred: attract.chain(repel).collect(),
            namespace_labels: listers.namespace_labels(pod.namespace()),
            hard_weight: args.hard_pod_affinity_weight.into(),
            ignore_existing: args.ignore_preferred_terms_of_existing_pods,
            pod: Arc::clone(pod),
        }
    }

    /// Does the pod itself ask for company, or for distance?
    pub(super) fn has_required(&self) -> bool {
        !self.affinity.is_empty() || !self.anti_affinity.is_empty()
    }

    /// Does a placed pod with such terms want this one near, or far?
    fn existing_matches(&self, term: &AffinityTerm) -> bool {
        term.matches(&self.pod.pod, &self.namespace_labels)
    }

    /// What a placed pod contributes to filtering: for each, the kind and the topology key.
    pub(super) fn filter_contributions(&self, other: &PodInfo, add: &mut dyn FnMut(Kind, &str)) {
        for term in other
            .required_anti_affinity_terms
            .iter()
            .filter(|term| self.existing_matches(term))
        {
            add(Kind::ExistingAntiAffinity, &term.topology_key);
        }
        if matches_all(&self.affinity, other) {
            self.affinity
                .iter()
                .for_each(|term| add(Kind::Affinity, &term.topology_key));
        }
        for term in self
            .anti_affinity
            .iter()
            .filter(|term| term.matches(&other.pod, &BTreeMap::new()))
        {
            add(Kind::AntiAffinity, &term.topology_key);
        }
    }

    /// What a placed pod contributes to scoring: for each, the topology key and the weight.
    pub(super) fn score_contributions(&self, other: &PodInfo, add: &mut dyn FnMut(&str, i64)) {
        for (term, weight) in self
            .preferred
            .iter()
            .filter(|(term, _)| term.matches(&other.pod, &BTreeMap::new()))
        {
            add(&term.topology_key, *weight);
        }
        if self.hard_weight > 0 {
            for term in other
                .required_affinity_terms
                .iter()
                .filter(|term| self.existing_matches(term))
            {
                add(&term.topology_key, self.hard_weight);
            }
        }
        let attract = other
            .preferred_affinity_terms
            .iter()
            .map(|t| (&t.term, t.weight));
        let repel = other
            .preferred_anti_affinity_terms
            .iter()
            .map(|t| (&t.term, -t.weight));
        for (term, weight) in attract
            .chain(repel)
            .filter(|(term, _)| self.existing_matches(term))
        {
            add(&term.topology_key, weight);
        }
    }

    fn nodes<'a>(
        snapshot: &'a Snapshot,
        among: Option<&'a NodeSet>,
    ) -> Box<dyn Iterator<Item = (NodeIndex, &'a Arc<NodeInfo>)> + 'a> {
        match among {
            Some(nodes) => Box::new(
                nodes
                    .iter()
                    .filter_map(|index| Some((index, snapshot.node(index)?))),
            ),
            None => Box::new(snapshot.iter()),
        }
    }

    /// The nodes whose pods may contribute to filtering.
    pub(super) fn filter_nodes<'a>(
        &self,
        snapshot: &'a Snapshot,
    ) -> impl Iterator<Item = (NodeIndex, &'a Arc<NodeInfo>)> + use<'a> {
        Self::nodes(
            snapshot,
            (!self.has_required()).then(|| snapshot.nodes_with_required_anti_affinity()),
        )
    }

    /// The pods of a node that may contribute to filtering.
    pub(super) fn filter_pods<'a>(
        &self,
        node: &'a NodeInfo,
    ) -> Box<dyn Iterator<Item = &'a Arc<PodInfo>> + 'a> {
        if self.has_required() {
            Box::new(node.pods().iter())
        } else {
            Box::new(node.pods_with_required_anti_affinity())
        }
    }

    fn scores_nothing(&self) -> bool {
        self.ignore_existing && self.preferred.is_empty()
    }

    /// The nodes whose pods may contribute to scoring.
    pub(super) fn score_nodes<'a>(
        &self,
        snapshot: &'a Snapshot,
    ) -> impl Iterator<Item = (NodeIndex, &'a Arc<NodeInfo>)> + use<'a> {
        let nothing = self.scores_nothing();
        Self::nodes(
            snapshot,
            self.preferred
                .is_empty()
                .then(|| snapshot.nodes_with_affinity()),
        )
        .filter(move |_| !nothing)
    }

    /// The pods of a node that may contribute to scoring.
    pub(super) fn score_pods<'a>(
        &self,
        node: &'a NodeInfo,
    ) -> Box<dyn Iterator<Item = &'a Arc<PodInfo>> + 'a> {
        match (self.scores_nothing(), self.preferred.is_empty()) {
            (true, _) => Box::new(std::iter::empty()),
            (false, true) => Box::new(node.pods_with_affinity()),
            (false, false) => Box::new(node.pods().iter()),
        }
    }
}
