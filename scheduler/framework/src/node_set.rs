//! [`NodeSet`]: a set of dense node indexes as a bitmap.

/// The dense index of a node in a snapshot. Stable while the node exists; reused after it is gone.
pub type NodeIndex = u32;

/// A bitmap over dense node indexes; grows on insert.
#[derive(Clone, Debug, Default)]
pub struct NodeSet {
    words: Vec<u64>,
    len: usize,
}

impl NodeSet {
    /// An empty set with room for indexes below `capacity`.
    pub fn with_capacity(capacity: usize) -> Self {
        NodeSet {
            words: vec![0; capacity.div_ceil(64)],
            len: 0,
        }
    }

    /// Becomes equal to `other`, keeping the memory at hand.
    pub fn copy_from(&mut self, other: &NodeSet) {
        self.words.clone_from(&other.words);
        self.len = other.len;
    }

    /// How many nodes are in the set.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// True without members.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Is `node` a member?
    #[inline]
    pub fn contains(&self, node: NodeIndex) -> bool {
        self.words
            .get(node as usize / 64)
            .is_some_and(|w| w >> (node % 64) & 1 == 1)
    }

    /// Adds; false when it was there.
    #[inline]
    pub fn insert(&mut self, node: NodeIndex) -> bool {
        let (word, bit) = (node as usize / 64, 1u64 << (node % 64));
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.len += usize::from(new);
        new
    }

    /// Removes; false when it was not there.
    #[inline]
    pub fn remove(&mut self, node: NodeIndex) -> bool {
        let (word, bit) = (node as usize / 64, 1u64 << (node % 64));
        let Some(w) = self.words.get_mut(word) else {
            return false;
        };
        let there = *w & bit != 0;
        *w &= !bit;
        self.len -= usize::from(there);
        there
    }

    /// Sets membership to `member`.
    #[inline]
    pub fn set(&mut self, node: NodeIndex, member: bool) {
        if member {
            self.insert(node)
        } else {
            self.remove(node)
        };
    }

    /// Empties the set, keeping its room.
    pub fn clear(&mut self) {
        self.words.fill(0);
        self.len = 0;
    }

    /// Keeps only what is in `other` too.
    pub fn intersect_with(&mut self, other: &NodeSet) {
        self.combine(other, |a, b| a & b);
    }

    /// Removes what is in `other`.
    pub fn subtract(&mut self, other: &NodeSet) {
        self.combine(other, |a, b| a & !b);
    }

    /// Adds what is in `other`.
    pub fn union_with(&mut self, other: &NodeSet) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        self.combine(other, |a, b| a | b);
    }

    fn combine(&mut self, other: &NodeSet, op: impl Fn(u64, u64) -> u64) {
        let mut len = 0;
        for (i, word) in self.words.iter_mut().enumerate() {
            *word = op(*word, other.words.get(i).copied().unwrap_or(0));
            len += word.count_ones() as usize;
        }
        self.len = len;
    }

    /// The members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = NodeIndex> + '_ {
        self.words.iter().enumerate().flat_map(|(i, &word)| Bits {
            word,
            base: i as u32 * 64,
        })
    }

    /// The raw words, 64 nodes each, lowest bit first.
    pub fn words(&self) -> &[u64] {
        &self.words
    }
}

impl PartialEq for NodeSet {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl Eq for NodeSet {}

impl FromIterator<NodeIndex> for NodeSet {
    fn from_iter<I: IntoIterator<Item = NodeIndex>>(iter: I) -> Self {
        let mut set = NodeSet::default();
        for node in iter {
            set.insert(node);
        }
        set
    }
}

struct Bits {
    word: u64,
    base: u32,
}

impl Iterator for Bits {
    type Item = NodeIndex;
    #[inline]
    fn next(&mut self) -> Option<NodeIndex> {
        if self.word == 0 {
            return None;
        }
        let bit = self.word.trailing_zeros();
        self.word &= self.word - 1;
        Some(self.base + bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaves_as_a_set() {
        let mut a: NodeSet = [1, 63, 64, 200].into_iter().collect();
        assert_eq!(a.len(), 4);
        assert!(!a.insert(64) && a.remove(63) && !a.remove(63) && !a.remove(10_000));
        let b: NodeSet = [1, 2, 200].into_iter().collect();
        let mut c = a.clone();
        c.intersect_with(&b);
        assert_eq!(c.iter().collect::<Vec<_>>(), [1, 200]);
        a.subtract(&b);
        assert_eq!(a.iter().collect::<Vec<_>>(), [64]);
        a.union_with(&b);
        assert_eq!((a.len(), a.contains(2), a.contains(3)), (4, true, false));
    }
}
