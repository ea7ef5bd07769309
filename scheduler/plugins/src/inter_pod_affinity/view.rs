//! The view kept for the pods of one signature: contributions summed by domain.
//!
//! A node's contributions are kept, so that a node that changed is taken out and put in again without looking at any other.

use std::collections::HashMap;
use std::sync::Arc;

use framework::{
    Incremental, LabelColumn, MAX_NODE_SCORE, NodeIndex, NodeInfo, NodeSet, Snapshot, Status,
    Verdicts,
};

use super::terms::{Kind, Terms};
use super::{
    ERR_REASON_AFFINITY_RULES_NOT_MATCH, ERR_REASON_ANTI_AFFINITY_RULES_NOT_MATCH,
    ERR_REASON_EXISTING_ANTI_AFFINITY_RULES_NOT_MATCH,
};

/// The sums of one kind for one topology key.
struct Table {
    kind: Kind,
    key: String,
    column: Arc<LabelColumn>,
    /// By domain, an id of the label's column; 0 stands for no domain and is never counted.
    sums: Vec<i64>,
    /// Domains where the sum is above zero.
    positive: usize,
}

impl Table {
    #[inline]
    fn on(&self, node: NodeIndex) -> i64 {
        let domain = self.column.ids.get(node as usize).copied().unwrap_or(0);
        self.sums.get(domain as usize).copied().unwrap_or(0)
    }

    fn add(&mut self, domain: u32, delta: i64) {
        let domain = domain as usize;
        if self.sums.len() <= domain {
            self.sums.resize(domain + 1, 0);
        }
        let sum = &mut self.sums[domain];
        let was = *sum > 0;
        *sum += delta;
        self.positive = self.positive + usize::from(*sum > 0) - usize::from(was);
    }
}

/// One thing a node's pods contribute: to which table, in which domain, how much.
#[derive(Clone, Copy)]
struct Contribution {
    table: u32,
    domain: u32,
    delta: i64,
}

pub(super) struct View {
    terms: Terms,
    tables: Vec<Table>,
    lookup: HashMap<(Kind, String), u32>,
    rows: HashMap<NodeIndex, Box<[Contribution]>>,
    /// Contributions to scores, those that cancel each other out included.
    score_contributions: usize,
}

impl View {
    pub(super) fn new(terms: Terms, snapshot: &Snapshot) -> Self {
        let mut view = View {
            terms,
            tables: Vec::new(),
            lookup: HashMap::new(),
            rows: HashMap::new(),
            score_contributions: 0,
        };
        let mut nodes: NodeSet = view
            .terms
            .filter_nodes(snapshot)
            .map(|(index, _)| index)
            .collect();
        nodes.union_with(
            &view
                .terms
                .score_nodes(snapshot)
                .map(|(index, _)| index)
                .collect(),
        );
        for index in nodes.iter() {
            view.set_node(snapshot, index);
        }
        view
    }

    fn table(&mut self, kind: Kind, key: &str, snapshot: &Snapshot) -> u32 {
        if let Some(&table) = self.lookup.get(&(kind, key.to_owned())) {
            return table;
        }
        let table = self.tables.len() as u32;
        let column = snapshot.label_column(key);
        self.tables.push(Table {
            kind,
            key: key.to_owned(),
            column,
            sums: Vec::new(),
            positive: 0,
        });
        self.lookup.insert((kind, key.to_owned()), table);
        table
    }

    fn set_node(&mut self, snapshot: &Snapshot, index: NodeIndex) {
        let row = snapshot
            .node(index)
            .map_or(Vec::new(), |node| self.contributions(snapshot, index, node));
        let old = if row.is_empty() {
            self.rows.remove(&index)
        } else {
            self.rows.insert(index, row.clone().into())
        };
        for (contributions, sign) in [(old.as_deref().unwrap_or_default(), -1), (&row[..], 1)] {
            for c in contributions {
                let table = &mut self.tables[c.table as usize];
                table.add(c.domain, sign * c.delta);
                if table.kind == Kind::Score {
                    self.score_contributions =
                        self.score_contributions.wrapping_add_signed(sign as isize);
                }
            }
        }
    }

    fn contributions(
        &mut self,
        snapshot: &Snapshot,
        index: NodeIndex,
        node: &NodeInfo,
    ) -> Vec<Contribution> {
        let mut found: Vec<(Kind, String, i64)> = Vec::new();
        for other in self.terms.filter_pods(node) {
            self.terms.filter_contributions(other, &mut |kind, key| {
                found.push((kind, key.to_owned(), 1))
            });
        }
        for other in self.terms.score_pods(node) {
            self.terms.score_contributions(other, &mut |key, weight| {
                found.push((Kind::Score, key.to_owned(), weight))
            });
        }
        let mut row = Vec::with_capacity(found.len());
        for (kind, key, delta) in found {
            let table = self.table(kind, &key, snapshot);
            let domain = self.tables[table as usize]
                .column
                .ids
                .get(index as usize)
                .copied()
                .unwrap_or(0);
            if domain != 0 {
                row.push(Contribution {
                    table,
                    domain,
                    delta,
                });
            }
        }
        row
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Table> {
        self.tables.iter().filter(move |table| table.kind == kind)
    }

    fn reject_near(&self, kind: Kind, reason: &str, verdicts: &mut Verdicts) {
        for table in self.of_kind(kind).filter(|table| table.positive > 0) {
            verdicts.reject_where(|| Status::unschedulable(reason), |node| table.on(node) > 0);
        }
    }
}

impl Incremental for View {
    fn update(&mut self, snapshot: &Snapshot, changed: &[NodeIndex]) {
        for table in &mut self.tables {
            table.column = snapshot.label_column(&table.key);
        }
        for &index in changed {
            self.set_node(snapshot, index);
        }
    }

    fn filter_all(&mut self, snapshot: &Snapshot, verdicts: &mut Verdicts) {
        let nobody = self
            .of_kind(Kind::Affinity)
            .all(|table| table.positive == 0);
        let alone = self.terms.matches_itself && nobody;
        for i in 0..self.terms.affinity.len() {
            let key = self.terms.affinity[i].topology_key.clone();
            let table = self.table(Kind::Affinity, &key, snapshot);
            let table = &self.tables[table as usize];
            let missing =
                |node: NodeIndex| table.column.ids.get(node as usize).copied().unwrap_or(0) == 0;
            verdicts.reject_where(
                || Status::unresolvable(ERR_REASON_AFFINITY_RULES_NOT_MATCH),
                |node| {
                    if alone {
                        missing(node)
                    } else {
                        table.on(node) <= 0
                    }
                },
            );
        }
        self.reject_near(
            Kind::AntiAffinity,
            ERR_REASON_ANTI_AFFINITY_RULES_NOT_MATCH,
            verdicts,
        );
        self.reject_near(
            Kind::ExistingAntiAffinity,
            ERR_REASON_EXISTING_ANTI_AFFINITY_RULES_NOT_MATCH,
            verdicts,
        );
    }

    fn score_all(&mut self, _snapshot: &Snapshot, nodes: &NodeSet, scores: &mut [i64]) -> bool {
        if self.score_contributions == 0 {
            return false;
        }
        let tables: Vec<&Table> = self.of_kind(Kind::Score).collect();
        for node in nodes.iter() {
            scores[node as usize] = tables.iter().map(|table| table.on(node)).sum();
        }
        let range = Range::of(nodes.iter().map(|node| scores[node as usize]));
        for node in nodes.iter() {
            scores[node as usize] = range.normalize(scores[node as usize]);
        }
        true
    }
}

/// The smallest and the largest raw score.
#[derive(Clone, Copy)]
pub(super) struct Range {
    min: i64,
    max: i64,
}

impl Range {
    pub(super) fn of(scores: impl Iterator<Item = i64>) -> Self {
        scores.fold(
            Range {
                min: i64::MAX,
                max: i64::MIN,
            },
            |range, score| Range {
                min: range.min.min(score),
                max: range.max.max(score),
            },
        )
    }

    /// The smallest becomes 0, the largest 100; all equal: all 0.
    #[inline]
    pub(super) fn normalize(self, score: i64) -> i64 {
        if self.max <= self.min {
            return 0;
        }
        (MAX_NODE_SCORE as f64 * ((score - self.min) as f64 / (self.max - self.min) as f64)) as i64
    }
}
