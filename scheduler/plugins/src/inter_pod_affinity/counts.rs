//! Contributions summed by kind, topology key and label value.

use std::collections::{BTreeMap, HashMap};

use framework::NodeInfo;

use super::terms::Kind;

/// The sums. Those that come to zero are forgotten, but for scores, where even a zero shows that something was there.
#[derive(Clone, Default)]
pub(super) struct Counts {
    by_key: BTreeMap<(Kind, String), HashMap<String, i64>>,
}

impl Counts {
    /// Adds `delta` for the domain of `node`; nothing if it is in none.
    pub(super) fn add(&mut self, kind: Kind, key: &str, node: &NodeInfo, delta: i64) {
        let Some(value) = node.labels().get(key) else {
            return;
        };
        let values = self.by_key.entry((kind, key.to_owned())).or_default();
        let count = values.entry(value.clone()).or_default();
        *count += delta;
        if *count == 0 && kind != Kind::Score {
            values.remove(value);
            if values.is_empty() {
                self.by_key.remove(&(kind, key.to_owned()));
            }
        }
    }

    /// Adds to a score.
    pub(super) fn add_score(&mut self, key: &str, node: &NodeInfo, weight: i64) {
        self.add(Kind::Score, key, node, weight);
    }

    pub(super) fn get(&self, kind: Kind, key: &str, value: &str) -> i64 {
        self.by_key
            .get(&(kind, key.to_owned()))
            .and_then(|values| values.get(value))
            .copied()
            .unwrap_or(0)
    }

    /// Is nothing of this kind anywhere?
    pub(super) fn is_empty(&self, kind: Kind) -> bool {
        !self.by_key.keys().any(|(of, _)| *of == kind)
    }

    /// Was nothing ever added?
    pub(super) fn is_untouched(&self) -> bool {
        self.by_key.is_empty()
    }

    fn on<'a>(&'a self, kind: Kind, node: &'a NodeInfo) -> impl Iterator<Item = i64> + 'a {
        let of_kind = self.by_key.iter().filter(move |((of, _), _)| *of == kind);
        of_kind.filter_map(|((_, key), values)| values.get(node.labels().get(key)?).copied())
    }

    /// Is there something of this kind in one of the node's domains?
    pub(super) fn any_on(&self, kind: Kind, node: &NodeInfo) -> bool {
        self.on(kind, node).any(|count| count > 0)
    }

    /// The sum over the node's domains.
    pub(super) fn sum_on(&self, kind: Kind, node: &NodeInfo) -> i64 {
        self.on(kind, node).sum()
    }
}
