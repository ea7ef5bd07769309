//! A recorder, and what it hears of that only plugins' cached reads need otherwise.

use component_base::informer::{Informer, InformerEvent, Object, Receiver};
use framework::EventObject;
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::ReplicationController;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use std::sync::Arc;

use crate::listers::Informers;
use crate::trace::Change;
use crate::trace::object::TraceObject;
use crate::trace::recorder::TraceRecorder;

/// See the module.
pub(super) struct Recording {
    pub(super) recorder: TraceRecorder,
    replication_controllers: Receiver<ReplicationController>,
    replica_sets: Receiver<ReplicaSet>,
    stateful_sets: Receiver<StatefulSet>,
    budgets: Receiver<PodDisruptionBudget>,
}

impl Recording {
    pub(super) fn new(recorder: TraceRecorder, informers: &Informers) -> Self {
        fn all<K: Object>(informer: &Informer<K>) -> Receiver<K> {
            informer.subscribe()
        }
        Recording {
            recorder,
            replication_controllers: all(&informers.replication_controllers),
            replica_sets: all(&informers.replica_sets),
            stateful_sets: all(&informers.stateful_sets),
            budgets: all(&informers.pod_disruption_budgets),
        }
    }

    /// Writes down the next change of a kind that nobody handles; `None` when the informers have ended. May be dropped and asked again.
    pub(super) async fn next(recording: &mut Option<Self>) -> Option<()> {
        let Some(recording) = recording else {
            return None;
        };
        tokio::select! {
            Some(e) = recording.replication_controllers.recv() => recording.recorder.informed(&e),
            Some(e) = recording.replica_sets.recv() => recording.recorder.informed(&e),
            Some(e) = recording.stateful_sets.recv() => recording.recorder.informed(&e),
            Some(e) = recording.budgets.recv() => recording.recorder.informed(&e),
            else => return None,
        }
        Some(())
    }

    /// Writes down what there is of kinds that nobody handles.
    pub(super) fn drain(&mut self) {
        while let Some(e) = self.replication_controllers.try_recv() {
            initial(&self.recorder, &e);
        }
        while let Some(e) = self.replica_sets.try_recv() {
            initial(&self.recorder, &e);
        }
        while let Some(e) = self.stateful_sets.try_recv() {
            initial(&self.recorder, &e);
        }
        while let Some(e) = self.budgets.try_recv() {
            initial(&self.recorder, &e);
        }
    }

    /// Writes down a change.
    pub(super) fn change(&self, (old, new): (Option<&EventObject>, Option<&EventObject>)) {
        let told = |change, object| self.recorder.told(change, TraceObject::of_event(object));
        match (old, new) {
            (None, Some(new)) => told(Change::Added, new),
            (Some(_), Some(new)) => told(Change::Modified, new),
            (Some(old), None) => told(Change::Deleted, old),
            (None, None) => {}
        }
    }
}

/// Writes down what is there when the trace begins.
pub(super) fn initial<K: Object>(recorder: &TraceRecorder, event: &InformerEvent<K>)
where
    TraceObject: From<Arc<K>>,
{
    match event {
        InformerEvent::Deleted(_) => {}
        event => recorder.initial(Arc::clone(event.object()).into()),
    }
}
