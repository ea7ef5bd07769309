//! What narrows the feasible nodes before the best is taken: a sample, where the configuration wants one, and extenders.

use framework::*;

use super::{NotChosen, Request};
use crate::extender;

impl Request<'_> {
    /// How many nodes there are for this pod.
    pub(super) fn num_nodes(&self) -> usize {
        self.within.map_or(self.snapshot.num_nodes(), NodeSet::len)
    }

    /// Is there anything that narrows?
    pub(super) fn narrows(&self) -> bool {
        self.sample.is_some() || !self.extenders.is_empty()
    }

    /// The node the pod itself is nominated to, when it is feasible and the extenders agree: it is taken without looking at others.
    pub(super) fn own_nomination(&self, feasible: &NodeSet) -> Option<NodeIndex> {
        let name = self.pod.nominated_node_name();
        if name.is_empty() {
            return None;
        }
        let node = self.snapshot.index(name)?;
        if !feasible.contains(node) {
            return None;
        }
        if self.extenders.is_empty() {
            return Some(node);
        }
        let mut one = NodeSet::from_iter([node]);
        match extender::filter(&self.extenders, self.pod, self.snapshot, &mut one) {
            Ok(_) => one.contains(node).then_some(node),
            Err(status) => {
                tracing::error!(pod = self.pod.name(), namespace = self.pod.namespace(), node = name, %status, "Evaluation failed on nominated node");
                None
            }
        }
    }

    /// Leaves what is looked at and what the extenders leave. `Some` when that is nothing: the reasons they gave.
    pub(super) fn narrow(
        &self,
        feasible: &mut NodeSet,
    ) -> Result<Option<Vec<(NodeIndex, Status)>>, NotChosen> {
        self.take_sample(feasible);
        let refused = extender::filter(&self.extenders, self.pod, self.snapshot, feasible)
            .map_err(NotChosen::Error)?;
        Ok(feasible.is_empty().then_some(refused))
    }

    /// The first feasible nodes in the snapshot's order, from where the last sample ended.
    fn take_sample(&self, feasible: &mut NodeSet) {
        let nodes = self.snapshot.num_nodes();
        let (Some(enough), false) = (self.sample, nodes == 0) else {
            return;
        };
        let start = self.start.get() % nodes;
        let (mut sample, mut looked_at) = (NodeSet::with_capacity(nodes), 0);
        let from_start = self.snapshot.list().skip(start);
        let round = from_start.chain(self.snapshot.list().take(start));
        for (index, _) in round {
            looked_at += 1;
            if feasible.contains(index) {
                sample.insert(index);
                if sample.len() == enough {
                    break;
                }
            }
        }
        self.start.set((start + looked_at) % nodes);
        *feasible = sample;
    }

    /// Adds what extenders think of the nodes.
    pub(super) fn add_extenders_scores(&self, nodes: &NodeSet, totals: &mut [i64]) {
        if !self.extenders.is_empty() {
            extender::add_scores(&self.extenders, self.pod, self.snapshot, nodes, totals);
        }
    }

    /// Nodes were feasible, and the extenders left none.
    pub(super) fn refused_by_extenders(
        &self,
        verdicts: Verdicts,
        mut excluded: Vec<(NodeIndex, Status)>,
        refused: Vec<(NodeIndex, Status)>,
    ) -> NotChosen {
        excluded.extend(refused);
        let mut error = self.no_fit(verdicts, excluded);
        if let NotChosen::NoFit(fit) = &mut error {
            fit.diagnosis.unschedulable_plugins.insert(EXTENDER_NAME);
        }
        error
    }
}
