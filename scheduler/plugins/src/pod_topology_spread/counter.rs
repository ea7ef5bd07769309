//! Counting: for each constraint, how many matching pods each domain holds.
//!
//! A node contributes a row (its domain, its matching pods, whether it counts at all) to each constraint. Rows are kept, so that a node that changed is taken
//! out and put in again without looking at any other.

use std::collections::BTreeMap;
use std::sync::Arc;

use component_helpers::affinity::RequiredNodeAffinity;
use component_helpers::node::labels::HOSTNAME;
use component_helpers::taints::{do_not_schedule, find_matching_untolerated_taint};
use framework::{LabelColumn, NodeIndex, NodeInfo, PodInfo, Snapshot, Status, Verdicts};
use k8s_openapi::api::core::v1::Toleration;

use super::constraint::Constraint;
use super::{ERR_REASON_CONSTRAINTS_NOT_MATCH, ERR_REASON_NODE_LABEL_NOT_MATCH};
use crate::COMPARISON_OPERATORS;

/// Which nodes count for a pod.
pub(super) struct Eligibility {
    required: RequiredNodeAffinity,
    tolerations: Vec<Toleration>,
}

impl Eligibility {
    pub(super) fn new(pod: &PodInfo) -> Self {
        Eligibility {
            required: RequiredNodeAffinity::new(&pod.pod),
            tolerations: component_helpers::pod::tolerations(&pod.pod).to_vec(),
        }
    }

    pub(super) fn includes(&self, constraint: &Constraint, node: &NodeInfo) -> bool {
        let tolerated = || {
            find_matching_untolerated_taint(
                node.taints(),
                &self.tolerations,
                do_not_schedule,
                COMPARISON_OPERATORS,
            )
            .is_none()
        };
        let fits =
            || self.required.is_empty() || self.required.matches_labels(node.name(), node.labels());
        (!constraint.honor_affinity || fits())
            && (!constraint.honor_taints || node.taints().is_empty() || tolerated())
    }
}

/// The domains of one constraint. The ids are those of the label's column; 0 is "no such label".
#[derive(Clone)]
pub(super) struct Domains {
    column: Arc<LabelColumn>,
    /// Matching pods, by domain.
    pods: Vec<i64>,
    /// Nodes that count, by domain.
    nodes: Vec<u32>,
    /// How many domains have how many pods.
    by_pods: BTreeMap<i64, u32>,
    /// Domains with a node that counts.
    len: usize,
}

impl Domains {
    fn new(column: Arc<LabelColumn>) -> Self {
        Domains {
            column,
            pods: Vec::new(),
            nodes: Vec::new(),
            by_pods: BTreeMap::new(),
            len: 0,
        }
    }

    /// The domain of a label value, if any node was ever in it.
    pub(super) fn id(&self, value: &str) -> Option<u32> {
        self.column.id(value)
    }

    /// The domain of a node; 0 for none.
    #[inline]
    pub(super) fn of(&self, node: NodeIndex) -> u32 {
        self.column.ids.get(node as usize).copied().unwrap_or(0)
    }

    /// How many domains ids may stand for.
    pub(super) fn ids(&self) -> usize {
        self.column.values.len().max(1)
    }

    #[inline]
    pub(super) fn pods(&self, id: u32) -> i64 {
        self.pods.get(id as usize).copied().unwrap_or(0)
    }

    fn forget(&mut self, id: u32) {
        let pods = self.pods[id as usize];
        if let Some(count) = self.by_pods.get_mut(&pods) {
            *count -= 1;
            if *count == 0 {
                self.by_pods.remove(&pods);
            }
        }
    }

    fn change(&mut self, id: u32, nodes: i32, pods: i64) {
        let i = id as usize;
        if self.pods.len() <= i {
            self.pods.resize(i + 1, 0);
            self.nodes.resize(i + 1, 0);
        }
        if nodes == 0 && pods == 0 {
            return;
        }
        if self.nodes[i] > 0 {
            self.forget(id);
            self.len -= 1;
        }
        self.nodes[i] = self.nodes[i].saturating_add_signed(nodes);
        self.pods[i] += pods;
        if self.nodes[i] > 0 {
            *self.by_pods.entry(self.pods[i]).or_default() += 1;
            self.len += 1;
        }
    }

    /// As if pods came to the domain, or left it.
    pub(super) fn add_pods(&mut self, id: u32, pods: i64) {
        self.change(id, 0, pods);
    }

    /// How many pods a domain may hold for one more to be allowed there.
    pub(super) fn limit(&self, constraint: &Constraint) -> i64 {
        // Too few domains: the domains yet to come count as empty.
        let least = if self.len < constraint.min_domains {
            0
        } else {
            self.by_pods
                .keys()
                .next()
                .copied()
                .unwrap_or(i64::from(i32::MAX))
        };
        constraint.max_skew + least - constraint.self_match
    }

    /// Rejects the nodes that are in no domain, then those whose domain is too full.
    pub(super) fn filter_all(&self, constraint: &Constraint, verdicts: &mut Verdicts) {
        if self.column.nodes.first().is_none_or(|absent| *absent > 0) {
            verdicts.reject_where(
                || Status::unresolvable(ERR_REASON_NODE_LABEL_NOT_MATCH),
                |node| self.of(node) == 0,
            );
        }
        let limit = self.limit(constraint);
        if self
            .by_pods
            .keys()
            .next_back()
            .is_some_and(|most| *most > limit)
            || limit < 0
        {
            verdicts.reject_where(
                || Status::unschedulable(ERR_REASON_CONSTRAINTS_NOT_MATCH),
                |node| self.pods(self.of(node)) > limit,
            );
        }
    }
}

/// What a node contributes to one constraint.
#[derive(Clone, Copy, Default)]
struct Row {
    domain: u32,
    pods: u32,
    counts: bool,
}

/// Counts over all nodes.
pub(super) struct Counter {
    constraints: Arc<[Constraint]>,
    /// A node without one of the topology keys counts for none of the constraints.
    require_all: bool,
    namespace: String,
    eligibility: Eligibility,
    domains: Vec<Domains>,
    rows: Vec<Row>,
}

impl Counter {
    pub(super) fn new(
        pod: &PodInfo,
        constraints: Vec<Constraint>,
        require_all: bool,
        snapshot: &Snapshot,
    ) -> Self {
        let domains = constraints
            .iter()
            .map(|constraint| Domains::new(snapshot.label_column(&constraint.topology_key)))
            .collect();
        let mut counter = Counter {
            rows: Vec::with_capacity(constraints.len() * snapshot.columns().len()),
            constraints: constraints.into(),
            require_all,
            namespace: pod.namespace().to_owned(),
            eligibility: Eligibility::new(pod),
            domains,
        };
        for (index, node) in snapshot.iter() {
            counter.set_node(index, Some(node));
        }
        counter
    }

    /// Takes in the nodes that changed.
    pub(super) fn update(&mut self, snapshot: &Snapshot, changed: &[NodeIndex]) {
        for (constraint, domains) in self.constraints.iter().zip(&mut self.domains) {
            domains.column = snapshot.label_column(&constraint.topology_key);
        }
        for &index in changed {
            self.set_node(index, snapshot.node(index).map(|node| &**node));
        }
    }

    fn set_node(&mut self, index: NodeIndex, node: Option<&NodeInfo>) {
        let width = self.constraints.len();
        let first = index as usize * width;
        if self.rows.len() < first + width {
            self.rows.resize(first + width, Row::default());
        }
        let has_keys =
            !self.require_all || self.domains.iter().all(|domains| domains.of(index) != 0);
        for i in 0..width {
            let (constraint, domains) = (&self.constraints[i], &mut self.domains[i]);
            let row = node.map_or(Row::default(), |node| Row {
                domain: domains.of(index),
                pods: node
                    .pods()
                    .iter()
                    .filter(|pod| constraint.counts(pod, &self.namespace))
                    .count() as u32,
                counts: has_keys
                    && domains.of(index) != 0
                    && self.eligibility.includes(constraint, node),
            });
            let old = std::mem::replace(&mut self.rows[first + i], row);
            if old.counts && row.counts && old.domain == row.domain {
                domains.change(row.domain, 0, i64::from(row.pods) - i64::from(old.pods));
                continue;
            }
            if old.counts {
                domains.change(old.domain, -1, -i64::from(old.pods));
            }
            if row.counts {
                domains.change(row.domain, 1, row.pods.into());
            }
        }
    }

    pub(super) fn constraints(&self) -> Arc<[Constraint]> {
        Arc::clone(&self.constraints)
    }

    pub(super) fn into_domains(self) -> Vec<Domains> {
        self.domains
    }

    /// Each constraint with its domains.
    pub(super) fn each(&self) -> impl Iterator<Item = (&Constraint, &Domains)> {
        self.constraints.iter().zip(&self.domains)
    }

    /// Is the node left out of scoring, for want of a topology key?
    #[inline]
    pub(super) fn ignores(&self, node: NodeIndex) -> bool {
        self.require_all && self.domains.iter().any(|domains| domains.of(node) == 0)
    }

    /// May any node be left out?
    pub(super) fn may_ignore(&self) -> bool {
        self.require_all
            && self.domains.iter().any(|domains| {
                domains
                    .column
                    .nodes
                    .first()
                    .is_none_or(|absent| *absent > 0)
            })
    }

    /// The matching pods on a node itself, for the constraint at `i`.
    #[inline]
    pub(super) fn pods_on(&self, node: NodeIndex, i: usize) -> i64 {
        self.rows
            .get(node as usize * self.constraints.len() + i)
            .map_or(0, |row| row.pods.into())
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }
}

/// Is each node a domain of its own? Then pods are counted on the node itself.
pub(super) fn is_hostname(constraint: &Constraint) -> bool {
    constraint.topology_key == HOSTNAME
}
