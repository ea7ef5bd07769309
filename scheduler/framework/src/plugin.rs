//! The extension points a plugin may implement.
//!
//! A plugin is one `Arc<dyn Plugin>`; it tells which points it implements through the `as_*` methods. Points that write to
//! the API return a boxed future, all others are synchronous and must not block.
//! Upstream: kube-scheduler framework/interface.go, v1.36. Beyond upstream: forms over all nodes ([`FilterPlugin::filter_all`],
//! [`ScorePlugin::score_all`]), [`Plugin::sign`] and [`Incremental`].

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::scheduling::v1beta1::PodGroup;

use crate::cycle_state::CycleState;
use crate::diagnosis::NodeToStatus;
use crate::event::{ClusterEventWithHint, EventObject};
use crate::node_info::NodeInfo;
use crate::node_set::{NodeIndex, NodeSet};
use crate::objects::ObjectKind;
use crate::placement::{Placement, PodGroupAssignments};
use crate::pod_info::PodInfo;
use crate::signature::Sign;
use crate::snapshot::Snapshot;
use crate::status::Status;
use crate::verdicts::Verdicts;

/// A boxed future that may borrow for `'a`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The best score.
pub const MAX_NODE_SCORE: i64 = 100;
/// The worst score.
pub const MIN_NODE_SCORE: i64 = 0;

macro_rules! points {
    ($($method:ident -> $point:ident, $doc:literal;)*) => {
        /// A scheduling plugin.
        pub trait Plugin: Send + Sync {
            /// The name in configuration, metrics and statuses.
            fn name(&self) -> &'static str;

            /// What the plugin's PreFilter, Filter, PreScore and Score depend on for `pod`. `None`: unknown, nothing is kept for such a pod (correct, and
            /// slow). A plugin with none of those points need not implement it; it is not asked.
            fn sign(&self, pod: &PodInfo, snapshot: &Snapshot) -> Option<Sign> {
                let _ = (pod, snapshot);
                None
            }

            /// For a pod signed with [`crate::signature::Fragments::MORE`]: exact bytes of what the plugin reads elsewhere for it, say of its claims.
            fn sign_more(&self, pod: &PodInfo, snapshot: &Snapshot, key: &mut Vec<u8>) {
                let _ = (pod, snapshot, key);
            }

            /// For a pod signed [`crate::signature::Scope::Cluster`]: a view of the cluster for this signature that is kept and updated. `None`: the plugin
            /// has no such form.
            fn incremental(&self, pod: &Arc<PodInfo>, snapshot: &Snapshot) -> Option<Box<dyn Incremental>> {
                let _ = (pod, snapshot);
                None
            }

            $(
                #[doc = $doc]
                fn $method(&self) -> Option<&dyn $point> {
                    None
                }
            )*
        }
    };
}

points! {
    as_pre_enqueue -> PreEnqueuePlugin, "Implements PreEnqueue?";
    as_queue_sort -> QueueSortPlugin, "Implements QueueSort?";
    as_enqueue_extensions -> EnqueueExtensions, "Names the events that may help pods it rejected? (Else: every event.)";
    as_pre_filter -> PreFilterPlugin, "Implements PreFilter?";
    as_filter -> FilterPlugin, "Implements Filter?";
    as_post_filter -> PostFilterPlugin, "Implements PostFilter?";
    as_pre_score -> PreScorePlugin, "Implements PreScore?";
    as_score -> ScorePlugin, "Implements Score?";
    as_reserve -> ReservePlugin, "Implements Reserve?";
    as_permit -> PermitPlugin, "Implements Permit?";
    as_pre_bind -> PreBindPlugin, "Implements PreBind?";
    as_bind -> BindPlugin, "Implements Bind?";
    as_post_bind -> PostBindPlugin, "Implements PostBind?";
    as_placement_feasible -> PlacementFeasiblePlugin, "Implements PlacementFeasible?";
    as_placement_generate -> PlacementGeneratePlugin, "Implements PlacementGenerate?";
    as_placement_score -> PlacementScorePlugin, "Implements PlacementScore?";
    as_observer -> Observer, "Wants to hear of what changes in the cluster?";
}

/// Hears of changes as the scheduler does, before the queue: state that is kept up to date so is there when a rejected pod is tried again.
///
/// Upstream has no such point: a plugin brings informers of its own there.
pub trait Observer: Plugin {
    /// Kinds beside those the scheduler watches anyway. Asked once; they are watched for as long as the process lives.
    fn kinds(&self) -> Vec<ObjectKind> {
        Vec::new()
    }

    /// Does it want to hear of pods? Asked once.
    fn hears_pods(&self) -> bool {
        true
    }

    /// The plugin works from now on: the place to start what it does of itself. Not called for one that is made to answer a question.
    fn begin(&self) {}

    /// An object before and after (`None`: it was added, deleted): any pod that has not ended, whoever schedules it, unless [`Observer::hears_pods`] says no, and objects of [`Observer::kinds`]. All
    /// that is there is told of as added when the plugin begins, and may be told of again: the same twice must count once. Light: runs in event handlers.
    fn observe(&self, old: Option<&EventObject>, new: Option<&EventObject>) {
        let _ = (old, new);
    }
}

/// Decides whether a pod may enter the active queue. Light: runs in event handlers, under the queue's lock.
pub trait PreEnqueuePlugin: Plugin {
    /// Anything but success keeps the pod out ("gated").
    fn pre_enqueue(&self, pod: &Arc<Pod>) -> Status;
}

/// What the queue knows of a pod.
#[derive(Debug, Clone)]
pub struct QueuedPod<'a> {
    /// The pod.
    pub pod: &'a PodInfo,
    /// When it entered the queue, this time.
    pub timestamp: Instant,
    /// When it first entered the active queue; `None` before.
    pub initial_attempt_timestamp: Option<Instant>,
}

/// Orders the active queue. Exactly one per profile, the same in all profiles.
pub trait QueueSortPlugin: Plugin {
    /// Does `a` go before `b`?
    fn less(&self, a: &QueuedPod<'_>, b: &QueuedPod<'_>) -> bool;
}

/// Names the events that may make a pod schedulable that the plugin rejected.
pub trait EnqueueExtensions: Plugin {
    /// Asked once at start.
    fn events_to_register(&self) -> Vec<ClusterEventWithHint>;
}

/// Nodes PreFilter narrows the search to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PreFilterResult {
    /// `None`: all nodes.
    pub node_names: Option<BTreeSet<String>>,
}

impl PreFilterResult {
    /// All nodes?
    pub fn all_nodes(&self) -> bool {
        self.node_names.is_none()
    }

    /// Both narrowings together.
    pub fn merge(self, other: PreFilterResult) -> PreFilterResult {
        let node_names = match (self.node_names, other.node_names) {
            (Some(a), Some(b)) => Some(a.intersection(&b).cloned().collect()),
            (a, b) => a.or(b),
        };
        PreFilterResult { node_names }
    }
}

/// Prepares filtering once per pod (or per signature, see [`Plugin::sign`]).
pub trait PreFilterPlugin: Plugin {
    /// `Skip` turns the plugin's Filter off for this pod. A rejection ends the cycle.
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
    ) -> (PreFilterResult, Status);

    /// The incremental corrections for preemption, if the state depends on other pods.
    fn extensions(&self) -> Option<&dyn PreFilterExtensions> {
        None
    }
}

/// Corrects a PreFilter state for pods that are tried out on a node, or away from it.
pub trait PreFilterExtensions {
    /// As if `to_add` were on `node`.
    fn add_pod(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        to_add: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Status;
    /// As if `to_remove` were not on `node`.
    fn remove_pod(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        to_remove: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Status;
}

/// Says whether a pod fits a node.
pub trait FilterPlugin: Plugin {
    /// `Success`, `Unschedulable`, `UnschedulableAndUnresolvable` or `Error`.
    fn filter(&self, state: &CycleState, pod: &Arc<PodInfo>, node: &NodeInfo) -> Status;

    /// The same over all of `verdicts.feasible()`: rejects the unfit. Must agree with [`FilterPlugin::filter`]. False: the plugin has no such form, and each node is asked by itself.
    fn filter_all(
        &self,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        verdicts: &mut Verdicts,
    ) -> bool {
        let _ = (state, pod, snapshot, verdicts);
        false
    }
}

/// What to do with `status.nominatedNodeName`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NominatingInfo {
    /// Leave it.
    #[default]
    Noop,
    /// Set it; empty clears it.
    Override(String),
}

/// What a PostFilter plugin would do.
#[derive(Debug, Clone)]
pub struct PostFilterPlan {
    /// `Success`, or why it would do nothing.
    pub status: Status,
    /// Where there would be room.
    pub node: Option<Arc<str>>,
    /// The pods that would be ended.
    pub victims: Vec<Arc<PodInfo>>,
}

/// Acts when no node fits: preemption.
pub trait PostFilterPlugin: Plugin {
    /// What [`PostFilterPlugin::post_filter`] would do, without doing any of it. `None`: the plugin cannot tell.
    fn dry_run(
        &self,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        statuses: &NodeToStatus,
    ) -> Option<PostFilterPlan> {
        let _ = (state, pod, snapshot, statuses);
        None
    }

    /// Will [`PostFilterPlugin::post_filter`] read the state for this pod? PreFilter is run again for it, over the whole cluster, unless nobody
    /// does. Must be fast.
    fn reads_state(&self, pod: &Arc<PodInfo>, snapshot: &Snapshot) -> bool {
        let _ = (pod, snapshot);
        true
    }

    /// `Success` with a nomination when the pod will fit after what was done; a rejection otherwise.
    fn post_filter(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        statuses: &NodeToStatus,
    ) -> (Option<NominatingInfo>, Status);
}

/// Prepares scoring.
pub trait PreScorePlugin: Plugin {
    /// `nodes` are the feasible ones, except when the result is kept for a signature (scope Node): then it must not depend on them.
    /// `Skip` turns the plugin's Score off for this pod.
    fn pre_score(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        nodes: &NodeSet,
    ) -> Status;
}

/// How raw scores become scores within 0–100.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normalize {
    /// They are already.
    Already,
    /// Proportionally, the largest becoming 100; with `reverse`, the result is subtracted from 100. All zero: all 0 (reversed: all 100).
    /// Upstream's `DefaultNormalizeScore`.
    ByMax {
        /// Small raw scores are good.
        reverse: bool,
    },
    /// By [`ScorePlugin::normalize_score`].
    Custom,
}

impl Normalize {
    /// Applies [`Normalize::ByMax`] to one score.
    #[inline]
    pub const fn by_max(raw: i64, max: i64, reverse: bool) -> i64 {
        if max == 0 {
            return if reverse { MAX_NODE_SCORE } else { raw };
        }
        let score = MAX_NODE_SCORE * raw / max;
        if reverse {
            MAX_NODE_SCORE - score
        } else {
            score
        }
    }
}

/// A node and its score.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeScore {
    /// The node's index.
    pub node: NodeIndex,
    /// The score.
    pub score: i64,
}

/// Ranks nodes a pod fits.
pub trait ScorePlugin: Plugin {
    /// The raw score of a node.
    fn score(&self, state: &CycleState, pod: &Arc<PodInfo>, node: &NodeInfo)
    -> Result<i64, Status>;

    /// The same over `nodes`, into `scores[index]`; must agree with [`ScorePlugin::score`]. False: the plugin has no such form, and each node is asked by itself.
    fn score_all(
        &self,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        nodes: &NodeSet,
        scores: &mut [i64],
    ) -> bool {
        let _ = (state, pod, snapshot, nodes, scores);
        false
    }

    /// How raw scores become scores.
    fn normalize(&self) -> Normalize {
        Normalize::Already
    }

    /// For [`Normalize::Custom`]: makes scores of raw scores, over all feasible nodes.
    fn normalize_score(
        &self,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        scores: &mut [NodeScore],
    ) -> Status {
        let _ = (state, pod, snapshot, scores);
        Status::success()
    }
}

/// A cluster-wide view for the pods of one signature, kept between pods and updated with what changed.
///
/// The runtime calls `update`, then `filter_all`, then `score_all`, for each pod. What it answers must agree with PreFilter, Filter, PreScore, Score and
/// NormalizeScore run from scratch.
pub trait Incremental: Send {
    /// Takes in the nodes that changed since the view was made or last updated; those that are gone have no node in `snapshot`.
    fn update(&mut self, snapshot: &Snapshot, changed: &[NodeIndex]);

    /// Rejects the nodes of `verdicts.feasible()` that do not fit.
    fn filter_all(&mut self, snapshot: &Snapshot, verdicts: &mut Verdicts);

    /// Normalized scores (0–100) of `nodes`, the feasible ones, into `scores[index]`. False: the plugin does not score this pod (`Skip`).
    fn score_all(&mut self, snapshot: &Snapshot, nodes: &NodeSet, scores: &mut [i64]) -> bool;
}

/// Keeps plugin state in step with the assumption that a pod is on a node.
pub trait ReservePlugin: Plugin {
    /// Is there something to reserve for such a pod? If not, neither method is called for it. Must be fast.
    fn concerns(&self, pod: &PodInfo) -> bool {
        let _ = pod;
        true
    }
    /// After a node is chosen. On failure every plugin's `unreserve` runs.
    fn reserve(&self, state: &mut CycleState, pod: &Arc<PodInfo>, node_name: &str) -> Status;
    /// Undoes; idempotent; may come without a `reserve`.
    fn unreserve(&self, state: &mut CycleState, pod: &Arc<PodInfo>, node_name: &str);
}

/// Allows, delays or denies binding.
pub trait PermitPlugin: Plugin {
    /// `Success`, a rejection, or `Wait` with the longest time to wait.
    fn permit(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        node_name: &str,
    ) -> (Status, Duration);
}

/// What PreBindPreFlight found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PreBindPreFlightResult {
    /// May run beside its neighbours that allow it too.
    pub allow_parallel: bool,
}

/// Prepares for binding: volumes, claims.
pub trait PreBindPlugin: Plugin {
    /// `Success`: `pre_bind` will do something. `Skip`: it will not and is not called. Light.
    fn pre_bind_pre_flight(
        &self,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        node_name: &str,
    ) -> (PreBindPreFlightResult, Status);
    /// Anything but success rejects the pod.
    fn pre_bind<'a>(
        &'a self,
        state: &'a CycleState,
        pod: &'a Arc<PodInfo>,
        node_name: &'a str,
    ) -> BoxFuture<'a, Status>;
}

/// Binds.
pub trait BindPlugin: Plugin {
    /// `Skip`: not handled, the next plugin is asked.
    fn bind<'a>(
        &'a self,
        state: &'a CycleState,
        pod: &'a Arc<PodInfo>,
        node_name: &'a str,
    ) -> BoxFuture<'a, Status>;
}

/// How far a group of pods has come in its cycle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupProgress {
    /// Pods with a node, those that found one in this cycle included.
    pub scheduled: usize,
    /// Pods that have not been tried yet.
    pub remaining: usize,
}

/// Says whether a group of pods may still come together. Asked before the first pod of its cycle, and after each.
pub trait PlacementFeasiblePlugin: Plugin {
    /// `Success`: it has. `Wait`: it may. `Unschedulable`: it cannot, however many more are tried.
    fn placement_feasible(&self, group: &PodGroup, progress: GroupProgress) -> Status;
}

/// Makes the placements of a group of pods. A profile has one such plugin at most.
pub trait PlacementGeneratePlugin: Plugin {
    /// Parts of `parent` that the whole group may go to, in the order in which they are tried. None at all: the group is unschedulable.
    ///
    /// # Errors
    /// The status that becomes the group's.
    fn generate_placements(
        &self,
        group: &PodGroup,
        snapshot: &Snapshot,
        parent: Placement,
    ) -> Result<Vec<Placement>, Status>;
}

/// Scores placements in which a group of pods can come together.
pub trait PlacementScorePlugin: Plugin {
    /// The score of one placement; between [`crate::MIN_NODE_SCORE`] and [`crate::MAX_NODE_SCORE`] after [`PlacementScorePlugin::normalize_placement_scores`].
    ///
    /// # Errors
    /// A failure, which becomes the group's.
    fn score_placement(
        &self,
        group: &PodGroup,
        snapshot: &Snapshot,
        assignments: PodGroupAssignments<'_>,
    ) -> Result<i64, Status>;

    /// Brings the scores of all placements into the range of scores; by default they are in it.
    fn normalize_placement_scores(&self, _group: &PodGroup, _scores: &mut [i64]) -> Status {
        Status::success()
    }
}

/// Hears of pods that were bound.
pub trait PostBindPlugin: Plugin {
    /// Informational.
    fn post_bind(&self, state: &CycleState, pod: &Arc<PodInfo>, node_name: &str);
}
