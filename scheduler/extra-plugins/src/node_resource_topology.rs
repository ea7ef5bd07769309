//! NodeResourceTopologyMatch: passes over nodes whose kubelet would refuse a pod since no NUMA node has all it asks for, and prefers the better of the others.
//!
//! Agents report what NUMA nodes have free (`topology.node.k8s.io` NodeResourceTopology, v1alpha2). [`topology`] reads a report, [`fit`] and [`score`] decide, [`cache`] holds
//! what counts between two reports. A report marks its node changed, so that kept answers about it are made anew. Upstream: pkg/noderesourcetopology.
//! Not built: `preemptionMode: Enabled` (refused).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use component_helpers::qos::QosClass;
use framework::args::decode;
use framework::{
    ActionType, ClusterEventWithHint, CycleState, EnqueueExtensions, EventObject, EventResource,
    FilterPlugin, Fragments, Handle, MAX_NODE_SCORE, MIN_NODE_SCORE, NodeInfo, Normalize,
    ObjectKind, Observer, Plugin, PluginError, PodInfo, PostBindPlugin, PreFilterPlugin,
    PreFilterResult, ReservePlugin, ScorePlugin, Sign, Snapshot, Status,
};

use crate::args::{NodeResourceTopologyMatchArgs, PreemptionMode};
use crate::kinds::NODE_RESOURCE_TOPOLOGY;
use crate::names;
use crate::observed::Observed;

pub mod cache;
pub mod fingerprint;
pub mod fit;
pub mod score;
#[cfg(test)]
mod tests;
pub mod topology;

use cache::{Cache, Known, Mode};
use fit::Shape;
use score::Rule;

struct NodeResourceTopologyMatch {
    cache: Mutex<Cache>,
    hears_pods: bool,
    rule: Rule,
    handle: Arc<dyn Handle>,
}

/// Makes the plugin.
///
/// # Errors
/// For arguments that do not decode, or ask for what is not built.
pub fn new(
    args: Option<&serde_json::Value>,
    handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    let plugin = names::NODE_RESOURCE_TOPOLOGY_MATCH;
    let args: NodeResourceTopologyMatchArgs = decode(plugin, args)?;
    if args.preemption_mode == PreemptionMode::Enabled {
        let problem =
            "preemptionMode: Unsupported value: \"Enabled\": supported values: \"Disabled\"";
        return Err(PluginError::Invalid {
            plugin,
            problems: vec![problem.to_owned()],
        });
    }
    let mode = if args.discard_reserved_nodes {
        Mode::DiscardReserved
    } else if args.cache_resync_period_seconds > 0 {
        Mode::OverReserve {
            settings: args.cache,
            scheduler_name: handle.profile_name().to_owned(),
        }
    } else {
        Mode::Passthrough
    };
    let weight = |resource: framework::args::ResourceSpec| (resource.name, resource.weight);
    let cache = Cache::new(mode);
    Ok(Arc::new(NodeResourceTopologyMatch {
        hears_pods: cache.hears_pods(),
        cache: Mutex::new(cache),
        rule: Rule {
            strategy: args.scoring_strategy.type_,
            weights: args
                .scoring_strategy
                .resources
                .into_iter()
                .map(weight)
                .collect(),
        },
        handle,
    }))
}

impl NodeResourceTopologyMatch {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pod's shape, computed once a cycle where PreFilter runs.
fn shape(state: &CycleState, pod: &PodInfo) -> Arc<Shape> {
    let kept = state.read::<Arc<Shape>>(names::NODE_RESOURCE_TOPOLOGY_MATCH);
    kept.cloned().unwrap_or_else(|| Shape::of(pod))
}

impl Plugin for NodeResourceTopologyMatch {
    fn name(&self) -> &'static str {
        names::NODE_RESOURCE_TOPOLOGY_MATCH
    }
    fn sign(&self, _pod: &PodInfo, _snapshot: &Snapshot) -> Option<Sign> {
        Some(Sign::node(Fragments::MORE))
    }
    fn sign_more(&self, pod: &PodInfo, _snapshot: &Snapshot, key: &mut Vec<u8>) {
        Shape::of(pod).encode(key);
    }
    fn as_pre_filter(&self) -> Option<&dyn PreFilterPlugin> {
        Some(self)
    }
    fn as_filter(&self) -> Option<&dyn FilterPlugin> {
        Some(self)
    }
    fn as_score(&self) -> Option<&dyn ScorePlugin> {
        Some(self)
    }
    fn as_reserve(&self) -> Option<&dyn ReservePlugin> {
        Some(self)
    }
    fn as_post_bind(&self) -> Option<&dyn PostBindPlugin> {
        Some(self)
    }
    fn as_enqueue_extensions(&self) -> Option<&dyn EnqueueExtensions> {
        Some(self)
    }
    fn as_observer(&self) -> Option<&dyn Observer> {
        Some(self)
    }
}

impl Observer for NodeResourceTopologyMatch {
    fn kinds(&self) -> Vec<ObjectKind> {
        vec![NODE_RESOURCE_TOPOLOGY]
    }

    fn hears_pods(&self) -> bool {
        self.hears_pods
    }

    fn observe(&self, old: Option<&EventObject>, new: Option<&EventObject>) {
        let touched = match Observed::new(old, new) {
            Some(Observed::Object(report)) => {
                let changed = self.cache().report(report);
                changed.then(|| report.name().to_owned())
            }
            Some(Observed::ObjectGone(report)) => {
                self.cache().forget(report.name());
                Some(report.name().to_owned())
            }
            Some(Observed::Pod { old, new }) => self.cache().pod(old, Some(new)),
            Some(Observed::PodGone(pod)) => self.cache().pod(Some(pod), None),
            None => None,
        };
        if let Some(node) = touched {
            self.handle.touch_node(&node);
        }
    }
}

impl EnqueueExtensions for NodeResourceTopologyMatch {
    fn events_to_register(&self) -> Vec<ClusterEventWithHint> {
        let always = ClusterEventWithHint::always;
        vec![
            always(EventResource::Pod, ActionType::DELETE),
            always(
                EventResource::Node,
                ActionType::ADD | ActionType::UPDATE_NODE_ALLOCATABLE,
            ),
            always(
                EventResource::Custom(NODE_RESOURCE_TOPOLOGY),
                ActionType::ADD | ActionType::UPDATE,
            ),
        ]
    }
}

impl PreFilterPlugin for NodeResourceTopologyMatch {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        _snapshot: &Snapshot,
    ) -> (PreFilterResult, Status) {
        let shape = Shape::of(pod);
        let status = match shape.free {
            true => Status::skip(),
            false => Status::success(),
        };
        state.write(names::NODE_RESOURCE_TOPOLOGY_MATCH, shape);
        (PreFilterResult::default(), status)
    }
}

impl FilterPlugin for NodeResourceTopologyMatch {
    fn filter(&self, state: &CycleState, pod: &Arc<PodInfo>, node: &NodeInfo) -> Status {
        let shape = shape(state, pod);
        if shape.free {
            return Status::success();
        }
        let known = self.cache().known(node.name());
        let topology = match known {
            Known::Nothing => return Status::success(),
            Known::Stale => return Status::unschedulable("invalid node topology data"),
            Known::Topology(topology) => topology,
        };
        match fit::fits(&shape, node, &topology) {
            Ok(()) => Status::success(),
            Err(reason) => {
                if self.cache().did_not_fit(node.name()) {
                    self.handle.touch_node(node.name());
                }
                Status::unschedulable(reason)
            }
        }
    }
}

impl ScorePlugin for NodeResourceTopologyMatch {
    fn score(
        &self,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Result<i64, Status> {
        let shape = shape(state, pod);
        if shape.qos != QosClass::Guaranteed {
            return Ok(MAX_NODE_SCORE);
        }
        let known = self.cache().known(node.name());
        Ok(match known {
            Known::Topology(topology) => score::score(&self.rule, &shape, &topology),
            Known::Nothing | Known::Stale => MIN_NODE_SCORE,
        })
    }

    fn normalize(&self) -> Normalize {
        Normalize::Already
    }
}

impl ReservePlugin for NodeResourceTopologyMatch {
    fn reserve(&self, _state: &mut CycleState, pod: &Arc<PodInfo>, node_name: &str) -> Status {
        self.cache().reserve(node_name, &pod.pod, &pod.uid);
        // The node changed after this by the pod itself.
        Status::success()
    }

    fn unreserve(&self, _state: &mut CycleState, pod: &Arc<PodInfo>, node_name: &str) {
        if self.cache().unreserve(node_name, &pod.uid) {
            self.handle.touch_node(node_name);
        }
    }
}

impl PostBindPlugin for NodeResourceTopologyMatch {
    fn post_bind(&self, _state: &CycleState, pod: &Arc<PodInfo>, node_name: &str) {
        if self.cache().bound(node_name, &pod.uid) {
            self.handle.touch_node(node_name);
        }
    }
}
