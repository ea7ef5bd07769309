//! PoolAccess: nodes of a pool are for the namespaces that the pool names.
//!
//! A pool is an object of a kind of its own (`crd.yaml`); a node is of the pool that its label `example.com/pool` names, others are for everybody. The plugin
//! never asks the API server: the scheduler watches the kind for it and tells it of each change, before the pods that wait for one.

use std::sync::Arc;

use framework::k8s_openapi::api::core::v1::Pod;
use framework::{
    ActionType, ClusterEventWithHint, CycleState, EnqueueExtensions, EventObject, EventResource,
    FilterPlugin, Fragments, NodeInfo, ObjectKind, ObjectStore, Observer, Plugin, PodInfo,
    QueueingHint, Registry, Sign, Snapshot, Status, pod_info,
};
use serde::Deserialize;

/// What a configuration calls it.
pub const NAME: &str = "PoolAccess";
/// The kind of its objects.
pub const POOL: ObjectKind = framework::object_kind!("example.com", "v1alpha1", "Pool", "pools");
/// The label of a node that is of a pool.
pub const POOL_LABEL: &str = "example.com/pool";

/// What the plugin reads of a pool.
#[derive(Deserialize)]
struct Pool {
    spec: PoolSpec,
}

#[derive(Deserialize)]
struct PoolSpec {
    /// Whose pods may be there.
    #[serde(default)]
    namespaces: Vec<String>,
}

struct PoolAccess {
    pools: Arc<ObjectStore<Pool>>,
}

/// For `kube_scheduler::run`.
pub fn registry() -> Registry {
    let registry = Registry::new().with_kinds(&[POOL]);
    registry.with_plugin(NAME, |args, _| {
        let NoArgs {} = framework::args::decode(NAME, args)?;
        let pools = Arc::new(ObjectStore::new(POOL));
        Ok(Arc::new(PoolAccess { pools }))
    })
}

/// There are none, and a configuration that thinks otherwise is told so.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoArgs {}

/// Why pods of a namespace may not be on a node; `None` when they may.
fn refused(pools: &ObjectStore<Pool>, namespace: &str, node: &NodeInfo) -> Option<&'static str> {
    let pool = pools.get(node.labels().get(POOL_LABEL)?);
    match pool {
        // One that cannot be read is none, either: rather nobody than everybody.
        None => Some("node(s) were of a pool that does not exist"),
        Some(pool) if pool.spec.namespaces.iter().any(|n| n == namespace) => None,
        Some(_) => Some("node(s) were of a pool for other namespaces"),
    }
}

impl Plugin for PoolAccess {
    fn name(&self) -> &'static str {
        NAME
    }
    // Pods of one namespace get one answer about a node, until any pool changes.
    fn sign(&self, _: &PodInfo, _: &Snapshot) -> Option<Sign> {
        Some(Sign {
            inputs: self.pools.revision(),
            ..Sign::node(Fragments::NAMESPACE)
        })
    }
    fn as_filter(&self) -> Option<&dyn FilterPlugin> {
        Some(self)
    }
    fn as_enqueue_extensions(&self) -> Option<&dyn EnqueueExtensions> {
        Some(self)
    }
    fn as_observer(&self) -> Option<&dyn Observer> {
        Some(self)
    }
}

impl FilterPlugin for PoolAccess {
    fn filter(&self, _: &CycleState, pod: &Arc<PodInfo>, node: &NodeInfo) -> Status {
        match refused(&self.pools, pod.namespace(), node) {
            None => Status::success(),
            // Nobody's end would help.
            Some(why) => Status::unresolvable(why),
        }
    }
}

impl Observer for PoolAccess {
    fn kinds(&self) -> Vec<ObjectKind> {
        vec![POOL]
    }
    fn hears_pods(&self) -> bool {
        false
    }
    fn observe(&self, old: Option<&EventObject>, new: Option<&EventObject>) {
        if let Err(error) = self.pools.observe(old, new) {
            tracing::warn!(%error, "A pool cannot be read; its nodes are for nobody");
        }
    }
}

impl EnqueueExtensions for PoolAccess {
    fn events_to_register(&self) -> Vec<ClusterEventWithHint> {
        let pools = Arc::clone(&self.pools);
        let lets_in = move |pod: &Arc<Pod>, _: Option<&EventObject>, new: Option<&EventObject>| {
            let pool = new.and_then(EventObject::custom);
            let pool = pool.and_then(|object| pools.get(&object.key()));
            let namespace = pod_info::namespace(pod);
            match pool.is_some_and(|pool| pool.spec.namespaces.iter().any(|n| n == namespace)) {
                true => QueueingHint::Queue,
                false => QueueingHint::QueueSkip,
            }
        };
        let pool = EventResource::Custom(POOL);
        vec![
            ClusterEventWithHint::with_hint(pool, ActionType::ADD | ActionType::UPDATE, lets_in),
            ClusterEventWithHint::always(
                EventResource::Node,
                ActionType::ADD | ActionType::UPDATE_NODE_LABEL,
            ),
        ]
    }
}
