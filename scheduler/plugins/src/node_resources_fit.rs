//! NodeResourcesFit: a node must have enough of everything a pod requests; scores by how full it would be.
//!
//! Upstream: plugins/noderesources/fit.go, least_allocated.go, most_allocated.go, requested_to_capacity_ratio.go, v1.36.
//!
//! Resources that a DeviceClass stands for are left to DynamicResources on nodes that have none of them.
//!
//! DIFFERS: a pod's own pod-level requests count when it is scored, too; upstream's scorer is made without that feature and adds up its containers. Devices do not
//! count for scores of extended resources.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use ::dynamic_resources::IMPLICIT_RESOURCE_PREFIX;
use component_helpers::pod::{node_name, nominated_node_name};
use component_helpers::resources::is_extended_resource_name;
use framework::args::{NodeResourcesFitArgs, decode};
use framework::{
    ActionType, ClusterEventWithHint, Code, CycleState, EnqueueExtensions, EventObject,
    EventResource, FilterPlugin, Fragments, Handle, NodeInfo, NodeSet, PlacementScorePlugin,
    Plugin, PluginError, PodInfo, QueueingHint, RejectionId, Resource, ScorePlugin, Sign, Snapshot,
    Status, Verdicts,
};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::resource::v1::DeviceClass;

use crate::names;
use crate::resource_allocation::{Columns, Share, shares, wanted};

mod placement;
mod scorer;
#[cfg(test)]
mod tests;
mod validation;

use scorer::Scorer;

struct NodeResourcesFit {
    args: NodeResourcesFitArgs,
    ignored: Ignored,
    scorer: Scorer,
    handle: Arc<dyn Handle>,
}

/// Extended resources not to look at.
#[derive(Clone, Default)]
struct Ignored {
    resources: BTreeSet<String>,
    groups: BTreeSet<String>,
}

impl Ignored {
    fn contains(&self, name: &str) -> bool {
        is_extended_resource_name(name)
            && (self.resources.contains(name)
                || name
                    .split_once('/')
                    .is_some_and(|(group, _)| self.groups.contains(group)))
    }
}

/// Makes the plugin.
///
/// # Errors
/// For arguments that do not decode or make no sense.
pub fn new(
    args: Option<&serde_json::Value>,
    handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    let args: NodeResourcesFitArgs = decode(names::NODE_RESOURCES_FIT, args)?;
    let problems = validation::validate(&args);
    if !problems.is_empty() {
        return Err(PluginError::Invalid {
            plugin: names::NODE_RESOURCES_FIT,
            problems,
        });
    }
    let ignored = Ignored {
        resources: args.ignored_resources.iter().cloned().collect(),
        groups: args.ignored_resource_groups.iter().cloned().collect(),
    };
    Ok(Arc::new(NodeResourcesFit {
        scorer: Scorer::new(&args.scoring_strategy),
        args,
        ignored,
        handle,
    }))
}

/// A resource of which a node has too little.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InsufficientResource {
    /// `Too many pods`, or `Insufficient` and the resource.
    pub reason: String,
    /// The node could never hold it, not even empty.
    pub unresolvable: bool,
}

/// Each request with its name, in the order of upstream's reasons; those that are zero or ignored left out.
fn checks<'a>(request: &'a Resource, ignored: &'a Ignored) -> impl Iterator<Item = (&'a str, i64)> {
    let native = [
        ("cpu", request.milli_cpu),
        ("memory", request.memory),
        ("ephemeral-storage", request.ephemeral_storage),
    ];
    let scalars = request
        .scalar
        .iter()
        .filter(|(name, _)| !ignored.contains(name))
        .map(|(name, amount)| (name.as_str(), *amount));
    native
        .into_iter()
        .chain(scalars)
        .filter(|(_, amount)| *amount > 0)
}

/// Of what is asked for: the resources that devices stand for, where a node has none of them. They are for DynamicResources to find.
fn of_devices(handle: &dyn Handle, request: &Resource) -> BTreeSet<String> {
    if request.scalar.is_empty() {
        return BTreeSet::new();
    }
    let devices = handle.listers().devices().read();
    let names = request.scalar.keys();
    names
        .filter(|name| devices.is_extended_resource(name))
        .cloned()
        .collect()
}

fn insufficient(
    request: &Resource,
    node: &NodeInfo,
    ignored: &Ignored,
    of_devices: &BTreeSet<String>,
) -> Vec<InsufficientResource> {
    let (has, used) = (node.allocatable(), node.requested());
    let mut found = Vec::new();
    if node.pods().len() as i64 + 1 > has.allowed_pod_number {
        found.push(InsufficientResource {
            reason: "Too many pods".into(),
            unresolvable: false,
        });
    }
    for (name, amount) in checks(request, ignored) {
        if has.get(name) == 0 && of_devices.contains(name) {
            continue;
        }
        if amount > has.get(name) - used.get(name) {
            found.push(InsufficientResource {
                reason: format!("Insufficient {name}"),
                unresolvable: amount > has.get(name),
            });
        }
    }
    found
}

/// What `node` has too little of for `pod`; empty when it fits. For the kubelet-like question "would it fit", without ignored resources.
pub fn fits(pod: &PodInfo, node: &NodeInfo) -> Vec<InsufficientResource> {
    insufficient(
        &pod.requests.resource,
        node,
        &Ignored::default(),
        &BTreeSet::new(),
    )
}

fn status(found: Vec<InsufficientResource>) -> Status {
    if found.is_empty() {
        return Status::success();
    }
    let code = if found.iter().any(|i| i.unresolvable) {
        Code::UnschedulableAndUnresolvable
    } else {
        Code::Unschedulable
    };
    Status::with_reasons(code, found.into_iter().map(|i| i.reason).collect())
}

/// A resource that is asked for: name, amount, what each node has and has given; do devices stand for it?
type InColumns<'a> = (&'a str, i64, &'a [i64], &'a [i64], bool);

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        names::NODE_RESOURCES_FIT
    }
    fn sign(&self, pod: &PodInfo, _snapshot: &Snapshot) -> Option<Sign> {
        let scalar = !pod.requests.resource.scalar.is_empty();
        let classes = || self.handle.listers().devices().read().classes_revision();
        Some(Sign {
            inputs: if scalar { classes() } else { 0 },
            ..Sign::node(Fragments::REQUESTS)
        })
    }
    fn as_filter(&self) -> Option<&dyn FilterPlugin> {
        Some(self)
    }
    fn as_placement_score(&self) -> Option<&dyn PlacementScorePlugin> {
        Some(self)
    }
    fn as_score(&self) -> Option<&dyn ScorePlugin> {
        Some(self)
    }
    fn as_enqueue_extensions(&self) -> Option<&dyn EnqueueExtensions> {
        Some(self)
    }
}

impl FilterPlugin for NodeResourcesFit {
    fn filter(&self, _state: &CycleState, pod: &Arc<PodInfo>, node: &NodeInfo) -> Status {
        let request = &pod.requests.resource;
        let of_devices = of_devices(&*self.handle, request);
        status(insufficient(request, node, &self.ignored, &of_devices))
    }

    fn filter_all(
        &self,
        _state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        verdicts: &mut Verdicts,
    ) -> bool {
        let columns = snapshot.columns();
        let empty = (Vec::new(), Vec::new());
        let of_devices = of_devices(&*self.handle, &pod.requests.resource);
        let mut wanted: Vec<InColumns<'_>> = Vec::new();
        for (name, amount) in checks(&pod.requests.resource, &self.ignored) {
            let column = columns.resource(name);
            let (has, used) = column.map_or((&empty.0, &empty.1), |column| {
                (&column.allocatable, &column.requested)
            });
            wanted.push((name, amount, has, used, of_devices.contains(name)));
        }
        // A node is unfit for a set of reasons, a bit each, two a resource: too little left, too little ever.
        if wanted.len() > 31 {
            return false;
        }
        let at = |column: &[i64], node: usize| column.get(node).copied().unwrap_or(0);
        let mut unfit = Vec::new();
        for node in verdicts.feasible().iter() {
            let i = node as usize;
            let mut mask = u64::from(columns.pods.requested[i] + 1 > columns.pods.allocatable[i]);
            for (bit, (_, amount, has, used, of_devices)) in wanted.iter().enumerate() {
                let has = at(has, i);
                if *of_devices && has == 0 {
                    continue;
                }
                mask |= u64::from(*amount > has - at(used, i)) << (2 * bit + 1);
                mask |= u64::from(*amount > has) << (2 * bit + 2);
            }
            // Overcommitted nodes aside, too little ever implies too little left; the reason is given for the latter only.
            if mask & 0xaaaa_aaaa_aaaa_aaab != 0 {
                unfit.push((node, mask));
            }
        }
        let mut known: HashMap<u64, RejectionId> = HashMap::new();
        for (node, mask) in unfit {
            let id = *known.entry(mask).or_insert_with(|| {
                let mut found = Vec::new();
                if mask & 1 != 0 {
                    found.push(InsufficientResource {
                        reason: "Too many pods".into(),
                        unresolvable: false,
                    });
                }
                for (bit, (name, ..)) in wanted.iter().enumerate() {
                    if mask >> (2 * bit + 1) & 1 != 0 {
                        let unresolvable = mask >> (2 * bit + 2) & 1 != 0;
                        found.push(InsufficientResource {
                            reason: format!("Insufficient {name}"),
                            unresolvable,
                        });
                    }
                }
                verdicts.rejection(status(found))
            });
            verdicts.reject(node, id);
        }
        true
    }
}

impl ScorePlugin for NodeResourcesFit {
    fn score(
        &self,
        _state: &CycleState,
        pod: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Result<i64, Status> {
        let wanted = wanted(pod, &self.args.scoring_strategy.resources, true);
        let mut out = Vec::with_capacity(wanted.len());
        shares(node, &wanted, true, &mut out);
        Ok(self.scorer.score(&wanted, &out))
    }

    fn score_all(
        &self,
        _state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        nodes: &NodeSet,
        scores: &mut [i64],
    ) -> bool {
        let wanted = wanted(pod, &self.args.scoring_strategy.resources, true);
        let columns = Columns::new(snapshot.columns(), &wanted, true);
        let mut out: Vec<Share> = Vec::with_capacity(wanted.len());
        for node in nodes.iter() {
            columns.shares(node, &mut out);
            scores[node as usize] = self.scorer.score(&wanted, &out);
        }
        true
    }
}

impl EnqueueExtensions for NodeResourcesFit {
    fn events_to_register(&self) -> Vec<ClusterEventWithHint> {
        let (ignored, handle) = (self.ignored.clone(), Arc::clone(&self.handle));
        let after_node_change =
            move |pod: &Arc<Pod>, old: Option<&EventObject>, new: Option<&EventObject>| {
                let Some(new) = new.and_then(EventObject::node) else {
                    return QueueingHint::QueueSkip;
                };
                if may_fit(
                    &*handle,
                    pod,
                    old.and_then(EventObject::node),
                    new,
                    &ignored,
                ) {
                    QueueingHint::Queue
                } else {
                    QueueingHint::QueueSkip
                }
            };
        vec![
            ClusterEventWithHint::with_hint(
                EventResource::Pod,
                ActionType::DELETE | ActionType::UPDATE_POD_SCALE_DOWN,
                after_pod_event,
            ),
            ClusterEventWithHint::with_hint(
                EventResource::Node,
                ActionType::ADD | ActionType::UPDATE_NODE_ALLOCATABLE,
                after_node_change,
            ),
            ClusterEventWithHint::with_hint(
                EventResource::DeviceClass,
                ActionType::ADD | ActionType::UPDATE,
                after_class_change,
            ),
        ]
    }
}

fn requests(pod: &Arc<Pod>) -> Option<Resource> {
    PodInfo::new(Arc::clone(pod))
        .ok()
        .map(|info| info.requests.resource)
}

fn after_pod_event(
    pod: &Arc<Pod>,
    old: Option<&EventObject>,
    new: Option<&EventObject>,
) -> QueueingHint {
    let hint = |helps| {
        if helps {
            QueueingHint::Queue
        } else {
            QueueingHint::QueueSkip
        }
    };
    match (
        old.and_then(EventObject::pod),
        new.and_then(EventObject::pod),
    ) {
        (Some(deleted), None) => {
            hint(node_name(deleted).is_some() || nominated_node_name(deleted).is_some())
        }
        (_, Some(changed)) if changed.metadata.uid == pod.metadata.uid => QueueingHint::Queue,
        (_, Some(changed)) if node_name(changed).is_none() => QueueingHint::QueueSkip,
        (Some(before), Some(after)) => match (requests(pod), requests(before), requests(after)) {
            (Some(wanted), Some(before), Some(after)) => {
                let freed = |(name, _): (&str, i64)| before.get(name) > after.get(name);
                hint(checks(&wanted, &Ignored::default()).any(freed))
            }
            _ => QueueingHint::Queue,
        },
        _ => QueueingHint::Queue,
    }
}

/// Does a class stand for a resource of the pod from now on?
fn after_class_change(
    pod: &Arc<Pod>,
    old: Option<&EventObject>,
    new: Option<&EventObject>,
) -> QueueingHint {
    let Some(new) = new.and_then(EventObject::device_class) else {
        return QueueingHint::Queue;
    };
    let named = |class: &DeviceClass| {
        class
            .spec
            .as_ref()
            .and_then(|s| s.extended_resource_name.clone())
    };
    let old = old.and_then(EventObject::device_class);
    let name = new.metadata.name.as_deref().unwrap_or_default();
    // The name of a class never changes.
    let implicit = old
        .is_none()
        .then(|| format!("{IMPLICIT_RESOURCE_PREFIX}{name}"));
    let explicit = named(new).filter(|now| old.and_then(|old| named(old)).as_ref() != Some(now));
    let asked = requests(pod).unwrap_or_default().scalar;
    let mut changed = [implicit, explicit].into_iter().flatten();
    match changed.any(|resource| asked.contains_key(&resource)) {
        true => QueueingHint::Queue,
        false => QueueingHint::QueueSkip,
    }
}

/// Could the pod fit the new node when empty, and is there more of something it needs than before?
fn may_fit(
    handle: &dyn Handle,
    pod: &Arc<Pod>,
    old: Option<&Arc<Node>>,
    new: &Arc<Node>,
    ignored: &Ignored,
) -> bool {
    let Some(wanted) = requests(pod) else {
        return true;
    };
    let new = NodeInfo::new(Arc::clone(new));
    let of_devices = of_devices(handle, &wanted);
    if !insufficient(&wanted, &new, ignored, &of_devices).is_empty() {
        return false;
    }
    let Some(old) = old else { return true };
    let old = NodeInfo::new(Arc::clone(old));
    let (before, after) = (old.allocatable(), new.allocatable());
    after.allowed_pod_number > before.allowed_pod_number
        || checks(&wanted, &Ignored::default()).any(|(name, _)| {
            after.get(name) > before.get(name) || after.get(name) == 0 && of_devices.contains(name)
        })
}
