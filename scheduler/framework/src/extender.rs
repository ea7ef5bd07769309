//! [`Extender`]: a program outside of the scheduler that has a say in preemption, as a plugin sees it.
//!
//! What else extenders are asked (which nodes fit, which are better, to bind) is the runtime's. Upstream: kube-scheduler framework/extender.go, v1.37.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::pod_info::PodInfo;
use crate::snapshot::Snapshot;

/// What stands for any extender among the plugins that rejected a pod. No events help such a pod in particular: every event does.
pub const EXTENDER_NAME: &str = "Extender";

/// The pods that would have to go from a node.
#[derive(Debug, Clone, Default)]
pub struct Victims {
    /// The most important first.
    pub pods: Vec<Arc<PodInfo>>,
    /// How many of them are under a disruption budget that does not allow it.
    pub num_pdb_violations: usize,
}

/// By the node's name.
pub type NodeToVictims = BTreeMap<Arc<str>, Victims>;

/// See the module.
pub trait Extender: Send + Sync {
    /// Its URL.
    fn name(&self) -> &str;
    /// Its failure is no failure of scheduling.
    fn is_ignorable(&self) -> bool;
    /// Is it to be asked about such a pod?
    fn is_interested(&self, pod: &Pod) -> bool;
    /// Has it a say in preemption?
    fn supports_preemption(&self) -> bool;
    /// Which of the nodes remain, with which victims. Waits for the answer, as the scheduling cycle does.
    ///
    /// # Errors
    /// The text says what went wrong; a later cycle asks again.
    fn process_preemption(
        &self,
        pod: &PodInfo,
        candidates: &NodeToVictims,
        snapshot: &Snapshot,
    ) -> Result<NodeToVictims, String>;
}
