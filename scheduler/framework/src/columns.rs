//! [`NodeColumns`]: every node of a snapshot, one array per property, for plugins that judge all nodes at once.
//!
//! Indexes are the snapshot's dense [`NodeIndex`]es; an index that is not in [`NodeColumns::live`] holds stale values. Taints, labels and images are
//! interned. A label's column is made when first asked for and kept up to date from then on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Taint;

use crate::node_info::NodeInfo;
use crate::node_set::{NodeIndex, NodeSet};

/// One resource over all nodes.
#[derive(Clone, Debug, Default)]
pub struct ResourceColumn {
    /// What each node offers.
    pub allocatable: Vec<i64>,
    /// What the pods of each node request.
    pub requested: Vec<i64>,
}

impl ResourceColumn {
    fn grow(&mut self, len: usize) {
        self.allocatable.resize(len, 0);
        self.requested.resize(len, 0);
    }
}

/// One label key over all nodes.
#[derive(Clone, Debug, Default)]
pub struct LabelColumn {
    /// The id of each node's value; 0 where the node has no such label. Empty when no node has it.
    pub ids: Vec<u32>,
    /// The value of each id; `values[0]` is empty and means absent.
    pub values: Vec<Arc<str>>,
    /// How many live nodes have each id.
    pub nodes: Vec<u32>,
    lookup: HashMap<Arc<str>, u32>,
    /// Ids whose value no node has any more, to be given to the next new value.
    free: Vec<u32>,
}

impl LabelColumn {
    /// The id of `value`; `None` when no node has it.
    pub fn id(&self, value: &str) -> Option<u32> {
        self.lookup.get(value).copied()
    }

    fn set(&mut self, node: NodeIndex, value: Option<&str>) {
        if self.values.is_empty() {
            self.values.push("".into());
            self.nodes.push(0);
        }
        if self.ids.len() <= node as usize {
            self.nodes[0] += (node as usize + 1 - self.ids.len()) as u32;
            self.ids.resize(node as usize + 1, 0);
        }
        let id = value.map_or(0, |value| self.intern(value));
        let old = std::mem::replace(&mut self.ids[node as usize], id);
        self.nodes[id as usize] += 1;
        self.nodes[old as usize] -= 1;
        if old != 0 && self.nodes[old as usize] == 0 {
            self.lookup.remove(&self.values[old as usize]);
            self.free.push(old);
        }
    }

    fn intern(&mut self, value: &str) -> u32 {
        if let Some(&id) = self.lookup.get(value) {
            return id;
        }
        let value: Arc<str> = value.into();
        let id = match self.free.pop() {
            Some(id) => {
                self.values[id as usize] = Arc::clone(&value);
                id
            }
            None => {
                self.values.push(Arc::clone(&value));
                self.nodes.push(0);
                (self.values.len() - 1) as u32
            }
        };
        self.lookup.insert(value, id);
        id
    }

    /// Is the row of `node` what it would be made for `value`?
    fn has(&self, node: NodeIndex, value: Option<&str>) -> bool {
        let row = self.ids.get(node as usize);
        row.is_some_and(|&id| (id != 0).then(|| &*self.values[id as usize]) == value)
    }
}

/// One image name over all nodes.
#[derive(Clone, Debug, Default)]
pub struct ImageColumn {
    /// Bytes, as the node last seen with the image said.
    pub size: i64,
    /// The nodes that have it.
    pub nodes: NodeSet,
}

/// All nodes as columns.
#[derive(Debug, Default)]
pub struct NodeColumns {
    live: NodeSet,
    /// Thousandths of a CPU.
    pub cpu: ResourceColumn,
    /// Bytes.
    pub memory: ResourceColumn,
    /// Bytes.
    pub ephemeral_storage: ResourceColumn,
    /// Allowed and present pods.
    pub pods: ResourceColumn,
    /// CPU requests with the 100m floor.
    pub non_zero_milli_cpu: Vec<i64>,
    /// Memory requests with the 200Mi floor.
    pub non_zero_memory: Vec<i64>,
    /// The lowest priority of each node's pods; the largest number there is without pods, and where there is no node.
    pub lowest_priority: Vec<i32>,
    /// `spec.unschedulable`.
    pub unschedulable: NodeSet,
    /// The id of each node's taints in [`NodeColumns::taints`]; 0 for none.
    pub taint_set: Vec<u32>,
    /// Nodes with a host port in use.
    pub with_host_ports: NodeSet,
    /// Nodes with a pod that has inter-pod affinity of any kind.
    pub with_affinity: NodeSet,
    /// Nodes with a pod that has required anti-affinity.
    pub with_required_anti_affinity: NodeSet,
    scalars: HashMap<String, ResourceColumn>,
    taint_sets: Vec<Arc<[Taint]>>,
    taint_lookup: HashMap<String, u32>,
    /// For each set: its key in the lookup, and how many nodes have it.
    taint_users: Vec<(String, u32)>,
    /// Ids whose set no node has any more, to be given to the next new set.
    free_taint_sets: Vec<u32>,
    images: HashMap<String, ImageColumn>,
    /// Only of labels that some node has: pods may ask for any key, and what they ask for must not fill the memory.
    labels: Mutex<HashMap<String, Arc<LabelColumn>>>,
    /// How many nodes have each label.
    label_keys: HashMap<String, u32>,
}

impl NodeColumns {
    /// The nodes there are.
    pub fn live(&self) -> &NodeSet {
        &self.live
    }

    /// One more than the largest index in use so far: the length of every column.
    pub fn len(&self) -> usize {
        self.taint_set.len()
    }

    /// No node was ever there.
    pub fn is_empty(&self) -> bool {
        self.taint_set.is_empty()
    }

    /// The column of a scalar resource; `None` when no node has or had it.
    pub fn scalar(&self, name: &str) -> Option<&ResourceColumn> {
        self.scalars.get(name)
    }

    /// The column of any resource by name.
    pub fn resource(&self, name: &str) -> Option<&ResourceColumn> {
        match name {
            "cpu" => Some(&self.cpu),
            "memory" => Some(&self.memory),
            "ephemeral-storage" => Some(&self.ephemeral_storage),
            "pods" => Some(&self.pods),
            _ => self.scalar(name),
        }
    }

    /// The taints behind an id of [`NodeColumns::taint_set`].
    pub fn taints(&self, id: u32) -> &[Taint] {
        if id == 0 {
            &[]
        } else {
            &self.taint_sets[id as usize - 1]
        }
    }

    /// How many distinct taint sets there are, the empty one included; ids are below this.
    pub fn num_taint_sets(&self) -> usize {
        self.taint_sets.len() + 1
    }

    /// Where an image is; `None` when it is on no node.
    pub fn image(&self, name: &str) -> Option<&ImageColumn> {
        self.images.get(name)
    }

    /// The column of a node label. The first call for a key looks at every node in `nodes` (the snapshot's own).
    pub(crate) fn label(&self, key: &str, nodes: &[Option<Arc<NodeInfo>>]) -> Arc<LabelColumn> {
        let mut labels = self.labels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(column) = labels.get(key) {
            return Arc::clone(column);
        }
        let mut column = LabelColumn::default();
        if !self.label_keys.contains_key(key) {
            return Arc::new(column);
        }
        for (index, node) in nodes.iter().enumerate() {
            let value = node.as_ref().and_then(|n| n.labels().get(key));
            column.set(index as NodeIndex, value.map(String::as_str));
        }
        let column = Arc::new(column);
        labels.insert(key.to_owned(), Arc::clone(&column));
        column
    }

    /// Brings the row of `index` in line with `new`; `old` is what the row was made from.
    pub(crate) fn set(&mut self, index: NodeIndex, old: Option<&NodeInfo>, new: Option<&NodeInfo>) {
        let i = index as usize;
        if i >= self.len() {
            self.grow(i + 1);
        }
        self.live.set(index, new.is_some());
        self.lowest_priority[i] = new.map_or(i32::MAX, NodeInfo::lowest_priority);
        if let Some(node) = new {
            self.set_resources(i, node);
        }
        self.with_host_ports
            .set(index, new.is_some_and(|n| !n.used_ports().is_empty()));
        self.with_affinity
            .set(index, new.is_some_and(|n| n.num_pods_with_affinity() > 0));
        self.with_required_anti_affinity.set(
            index,
            new.is_some_and(|n| n.num_pods_with_required_anti_affinity() > 0),
        );
        if let (Some(old), Some(new)) = (old, new)
            && Arc::ptr_eq(old.node(), new.node())
        {
            return;
        }
        self.unschedulable
            .set(index, new.is_some_and(NodeInfo::unschedulable));
        let taints = new.map_or(0, |n| self.intern_taints(n.taints()));
        let old_taints = std::mem::replace(&mut self.taint_set[i], taints);
        self.release_taints(old_taints);
        self.set_images(index, old, new);
        let labels = self
            .labels
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        for (key, column) in labels.iter_mut() {
            let value = new.and_then(|n| n.labels().get(key)).map(String::as_str);
            // A column that a view holds is copied when it changes: so only when it does.
            if !column.has(index, value) {
                Arc::make_mut(column).set(index, value);
            }
        }
        for key in new.into_iter().flat_map(|n| n.labels().keys()) {
            match self.label_keys.get_mut(key) {
                Some(nodes) => *nodes += 1,
                None => _ = self.label_keys.insert(key.clone(), 1),
            }
        }
        for key in old.into_iter().flat_map(|n| n.labels().keys()) {
            if let Some(nodes) = self.label_keys.get_mut(key) {
                *nodes -= 1;
                if *nodes == 0 {
                    self.label_keys.remove(key);
                    labels.remove(key);
                }
            }
        }
    }

    fn grow(&mut self, len: usize) {
        for column in [
            &mut self.cpu,
            &mut self.memory,
            &mut self.ephemeral_storage,
            &mut self.pods,
        ] {
            column.grow(len);
        }
        for column in self.scalars.values_mut() {
            column.grow(len);
        }
        self.non_zero_milli_cpu.resize(len, 0);
        self.non_zero_memory.resize(len, 0);
        self.taint_set.resize(len, 0);
        self.lowest_priority.resize(len, i32::MAX);
    }

    fn set_resources(&mut self, i: usize, node: &NodeInfo) {
        let (has, used) = (node.allocatable(), node.requested());
        let put = |column: &mut ResourceColumn, allocatable: i64, requested: i64| {
            column.allocatable[i] = allocatable;
            column.requested[i] = requested;
        };
        put(&mut self.cpu, has.milli_cpu, used.milli_cpu);
        put(&mut self.memory, has.memory, used.memory);
        put(
            &mut self.ephemeral_storage,
            has.ephemeral_storage,
            used.ephemeral_storage,
        );
        put(
            &mut self.pods,
            has.allowed_pod_number,
            node.pods().len() as i64,
        );
        self.non_zero_milli_cpu[i] = node.non_zero_milli_cpu();
        self.non_zero_memory[i] = node.non_zero_memory();
        let len = self.taint_set.len();
        for name in has.scalar.keys().chain(used.scalar.keys()) {
            if !self.scalars.contains_key(name) {
                let mut column = ResourceColumn::default();
                column.grow(len);
                self.scalars.insert(name.clone(), column);
            }
        }
        for (name, column) in &mut self.scalars {
            put(column, has.get(name), used.get(name));
        }
    }

    /// The id of a set of taints, with one more node counted.
    fn intern_taints(&mut self, taints: &[Taint]) -> u32 {
        if taints.is_empty() {
            return 0;
        }
        let mut key = String::new();
        for taint in taints {
            let value = taint.value.as_deref().unwrap_or_default();
            key.push_str(&format!("{}={value}:{}\n", taint.key, taint.effect));
        }
        if let Some(&id) = self.taint_lookup.get(&key) {
            self.taint_users[id as usize - 1].1 += 1;
            return id;
        }
        let (set, users) = (Arc::from(taints), (key.clone(), 1));
        let id = match self.free_taint_sets.pop() {
            Some(id) => {
                self.taint_sets[id as usize - 1] = set;
                self.taint_users[id as usize - 1] = users;
                id
            }
            None => {
                self.taint_sets.push(set);
                self.taint_users.push(users);
                self.taint_sets.len() as u32
            }
        };
        self.taint_lookup.insert(key, id);
        id
    }

    fn release_taints(&mut self, id: u32) {
        if id == 0 {
            return;
        }
        let (key, nodes) = &mut self.taint_users[id as usize - 1];
        *nodes -= 1;
        if *nodes == 0 {
            self.taint_lookup.remove(key);
            self.free_taint_sets.push(id);
        }
    }

    fn set_images(&mut self, index: NodeIndex, old: Option<&NodeInfo>, new: Option<&NodeInfo>) {
        if let (Some(old), Some(new)) = (old, new)
            && Arc::ptr_eq(old.images(), new.images())
        {
            return;
        }
        for name in old.into_iter().flat_map(|n| n.images().keys()) {
            if let Some(image) = self.images.get_mut(name) {
                image.nodes.remove(index);
                if image.nodes.is_empty() {
                    self.images.remove(name);
                }
            }
        }
        for (name, &size) in new.into_iter().flat_map(|n| n.images().iter()) {
            let image = self.images.entry(name.clone()).or_default();
            image.size = size;
            image.nodes.insert(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{make_node, snapshot};

    #[test]
    fn label_columns_follow_the_nodes() {
        let mut snapshot = snapshot(
            ["a", "b"].map(|name| make_node(name).zone(name).build()),
            [],
        );
        let zone = "topology.kubernetes.io/zone";
        let column = snapshot.label_column(zone);
        let (a, b) = (
            column.id("a").expect("has a"),
            column.id("b").expect("has b"),
        );
        assert_eq!(column.nodes[a as usize] + column.nodes[b as usize], 2);

        // A value that is gone gives its id to the next one.
        let before = std::sync::Arc::clone(&column);
        snapshot.set_node(std::sync::Arc::new(make_node("a").zone("c").info([])));
        let column = snapshot.label_column(zone);
        assert_eq!(
            (column.id("a"), column.id("b"), column.values.len()),
            (None, Some(b), 4)
        );
        snapshot.set_node(std::sync::Arc::new(make_node("b").zone("d").info([])));
        assert_eq!(snapshot.label_column(zone).values.len(), 4);
        assert_eq!(
            before.id("a"),
            Some(a),
            "who holds a column keeps it as it was"
        );

        // What is not on any node costs nothing.
        assert!(snapshot.label_column("nobody/has-it").ids.is_empty());
        snapshot.remove_node("a");
        snapshot.remove_node("b");
        assert!(snapshot.label_column(zone).ids.is_empty());
        snapshot.set_node(std::sync::Arc::new(make_node("e").zone("e").info([])));
        assert!(snapshot.label_column(zone).id("e").is_some());
    }
}
