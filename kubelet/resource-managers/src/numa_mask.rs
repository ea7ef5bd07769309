//! Sets of NUMA nodes, as hints have them.
//!
//! Upstream: pkg/kubelet/cm/topologymanager/bitmask, v1.37.

use std::fmt;

/// NUMA nodes 0 to 63, a bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct NumaMask(u64);

impl NumaMask {
    /// Nodes beyond the 63rd are in no mask, as upstream.
    pub fn of(nodes: impl IntoIterator<Item = usize>) -> Self {
        let bits = nodes.into_iter().filter(|node| *node < 64);
        Self(bits.fold(0, |mask, node| mask | 1 << node))
    }

    pub fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    pub fn contains(self, node: usize) -> bool {
        node < 64 && self.0 & (1 << node) != 0
    }

    pub fn any_of(self, nodes: impl IntoIterator<Item = usize>) -> bool {
        nodes.into_iter().any(|node| self.contains(node))
    }

    pub fn nodes(self) -> impl Iterator<Item = usize> {
        (0..64).filter(move |node| self.contains(*node))
    }

    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub fn is_subset(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// Fewer nodes, or as many and lower ones.
    pub fn is_narrower_than(self, other: Self) -> bool {
        match self.count() == other.count() {
            true => self < other,
            false => self.count() < other.count(),
        }
    }
}

impl fmt::Display for NumaMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = (64 - self.0.leading_zeros() as usize)
            .max(1)
            .next_multiple_of(2);
        write!(f, "{:0digits$b}", self.0)
    }
}

/// Every mask over `nodes` that is not empty, those of one node first, each size in the order of the nodes. There are two to the power
/// of their number: [`crate::topology_manager`] bounds it.
pub fn iterate_masks(nodes: &[usize], mut each: impl FnMut(NumaMask)) {
    for size in 1..=nodes.len() {
        combinations(nodes, size, &mut |chosen| {
            each(NumaMask::of(chosen.iter().copied()));
            true
        });
    }
}

/// Every choice of `size` of the items, in their order, until `each` says `false`.
pub fn combinations(items: &[usize], size: usize, each: &mut dyn FnMut(&[usize]) -> bool) -> bool {
    fn choose(
        items: &[usize],
        size: usize,
        chosen: &mut Vec<usize>,
        each: &mut dyn FnMut(&[usize]) -> bool,
    ) -> bool {
        if chosen.len() == size {
            return each(chosen);
        }
        for at in 0..items.len() {
            if items.len() - at < size - chosen.len() {
                return true;
            }
            chosen.push(items[at]);
            let go_on = choose(&items[at + 1..], size, chosen, each);
            chosen.pop();
            if !go_on {
                return false;
            }
        }
        true
    }
    if size == 0 {
        return true;
    }
    choose(items, size, &mut Vec::with_capacity(size), each)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_come_by_size_and_are_compared_by_it() {
        let mut all = Vec::new();
        iterate_masks(&[0, 1, 3], |mask| all.push(mask.to_string()));
        assert_eq!(all, ["01", "10", "1000", "11", "1001", "1010", "1011"]);
        let mask = |nodes: &[usize]| NumaMask::of(nodes.iter().copied());
        assert!(mask(&[5]).is_narrower_than(mask(&[0, 1])));
        assert!(mask(&[0, 2]).is_narrower_than(mask(&[1, 2])));
        assert!(!mask(&[1]).is_narrower_than(mask(&[1])));
        assert_eq!(mask(&[0, 64, 63]).nodes().collect::<Vec<_>>(), [0, 63]);
    }
}
