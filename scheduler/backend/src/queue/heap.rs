//! A binary heap whose members can be found, replaced and removed by UID.

use std::collections::HashMap;
use std::sync::Arc;

use super::QueuedPodInfo;

pub(super) type Less = Box<dyn Fn(&QueuedPodInfo, &QueuedPodInfo) -> bool + Send>;

/// Pods, the least (by `less`) first. Boxed: they move a lot, within the heap and between the parts of the queue.
#[allow(clippy::vec_box, reason = "swaps move pointers, not pods")]
pub(super) struct Heap {
    items: Vec<Box<QueuedPodInfo>>,
    places: HashMap<Arc<str>, usize>,
    less: Less,
}

impl Heap {
    pub(super) fn new(less: Less) -> Self {
        Heap {
            items: Vec::new(),
            places: HashMap::new(),
            less,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn contains(&self, uid: &str) -> bool {
        self.places.contains_key(uid)
    }

    pub(super) fn get(&self, uid: &str) -> Option<&QueuedPodInfo> {
        let at = *self.places.get(uid)?;
        Some(&self.items[at])
    }

    pub(super) fn peek(&self) -> Option<&QueuedPodInfo> {
        self.items.first().map(|item| &**item)
    }

    pub(super) fn push(&mut self, item: Box<QueuedPodInfo>) {
        match self.places.get(&item.pod.uid) {
            Some(&at) => {
                self.items[at] = item;
                self.restore(at);
            }
            None => {
                self.places
                    .insert(Arc::clone(&item.pod.uid), self.items.len());
                self.items.push(item);
                self.up(self.items.len() - 1);
            }
        }
    }

    pub(super) fn pop(&mut self) -> Option<Box<QueuedPodInfo>> {
        let uid = Arc::clone(&self.items.first()?.pod.uid);
        self.remove(&uid)
    }

    pub(super) fn remove(&mut self, uid: &str) -> Option<Box<QueuedPodInfo>> {
        let at = self.places.remove(uid)?;
        let item = self.items.swap_remove(at);
        if at < self.items.len() {
            self.places.insert(Arc::clone(&self.items[at].pod.uid), at);
            self.restore(at);
        }
        Some(item)
    }

    /// Puts others in the order in which they would be popped.
    #[allow(clippy::vec_box, reason = "moves pointers, not pods")]
    pub(super) fn sort(&self, others: &mut Vec<Box<QueuedPodInfo>>) {
        others.sort_by(|a, b| match ((self.less)(a, b), (self.less)(b, a)) {
            (true, false) => std::cmp::Ordering::Less,
            (false, true) => std::cmp::Ordering::Greater,
            _ => std::cmp::Ordering::Equal,
        });
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &QueuedPodInfo> {
        self.items.iter().map(|item| &**item)
    }

    /// Sorts by another order, and takes out what is not to be kept.
    #[allow(clippy::vec_box, reason = "moves pointers, not pods")]
    pub(super) fn set_less(
        &mut self,
        less: Less,
        keep: impl Fn(&QueuedPodInfo) -> bool,
    ) -> Vec<Box<QueuedPodInfo>> {
        let items = std::mem::take(&mut self.items);
        self.places.clear();
        self.less = less;
        let (kept, out): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| keep(item));
        kept.into_iter().for_each(|item| self.push(item));
        out
    }

    fn restore(&mut self, at: usize) {
        if self.up(at) == at {
            self.down(at);
        }
    }

    fn up(&mut self, mut at: usize) -> usize {
        while at > 0 {
            let parent = (at - 1) / 2;
            if !(self.less)(&self.items[at], &self.items[parent]) {
                break;
            }
            self.swap(at, parent);
            at = parent;
        }
        at
    }

    fn down(&mut self, mut at: usize) {
        loop {
            let mut least = at;
            for child in [2 * at + 1, 2 * at + 2] {
                if child < self.items.len() && (self.less)(&self.items[child], &self.items[least]) {
                    least = child;
                }
            }
            if least == at {
                return;
            }
            self.swap(at, least);
            at = least;
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.items.swap(a, b);
        for at in [a, b] {
            if let Some(place) = self.places.get_mut(&self.items[at].pod.uid) {
                *place = at;
            }
        }
    }
}
