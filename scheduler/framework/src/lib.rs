//! All that a scheduling plugin's author needs, and nothing else: extension points, statuses, cycle state, node and pod infos, the snapshot with
//! its columns, cluster events, arguments, test builders.
//!
//! Never here: a Kubernetes client, an async runtime, the queue, the cache. Plugins in tree and out of tree see the same.
//! Upstream: k8s.io/kube-scheduler/framework and pkg/scheduler/framework, v1.36.
//!
//! # Write a plugin
//!
//! A plugin is a type that implements [`Plugin`] and the extension points it wants, which its `as_…` methods tell. This one lets pods of a team on nodes of
//! the team alone:
//!
//! ```
//! use std::sync::Arc;
//!
//! use framework::serde_json::Value;
//! use framework::*;
//!
//! const NAME: &str = "Teams";
//!
//! #[derive(Default, serde::Deserialize)]
//! #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
//! struct Args {
//!     label: String,
//! }
//!
//! struct Teams(Args);
//!
//! // Arguments are the JSON of `pluginConfig`. An error names the plugin and the field, and keeps the scheduler from starting.
//! fn new(args: Option<&Value>, _: Arc<dyn Handle>) -> Result<Arc<dyn Plugin>, PluginError> {
//!     let args: Args = args::decode(NAME, args)?;
//!     match args.label.as_str() {
//!         "" => Err(PluginError::invalid(NAME, "label: Required value")),
//!         _ => Ok(Arc::new(Teams(args))),
//!     }
//! }
//!
//! impl Plugin for Teams {
//!     fn name(&self) -> &'static str {
//!         NAME
//!     }
//!     // What the verdict depends on: labels of the pod, and the node. For the next pod with these labels only nodes that changed are judged.
//!     fn sign(&self, _: &PodInfo, _: &Snapshot) -> Option<Sign> {
//!         Some(Sign::node(Fragments::LABELS))
//!     }
//!     fn as_filter(&self) -> Option<&dyn FilterPlugin> {
//!         Some(self)
//!     }
//!     fn as_enqueue_extensions(&self) -> Option<&dyn EnqueueExtensions> {
//!         Some(self)
//!     }
//! }
//!
//! impl FilterPlugin for Teams {
//!     fn filter(&self, _: &CycleState, pod: &Arc<PodInfo>, node: &NodeInfo) -> Status {
//!         match node.labels().get(&self.0.label) == pod.labels().get(&self.0.label) {
//!             true => Status::success(),
//!             false => Status::unresolvable("node(s) were of another team"),
//!         }
//!     }
//! }
//!
//! // A pod that the plugin rejected is tried again after these events alone.
//! impl EnqueueExtensions for Teams {
//!     fn events_to_register(&self) -> Vec<ClusterEventWithHint> {
//!         let node = ActionType::ADD | ActionType::UPDATE_NODE_LABEL;
//!         let pod = ActionType::UPDATE_POD_LABEL;
//!         vec![
//!             ClusterEventWithHint::always(EventResource::Node, node),
//!             ClusterEventWithHint::always(EventResource::Pod, pod),
//!         ]
//!     }
//! }
//!
//! // For `main`: kube_scheduler::run(registry())
//! pub fn registry() -> Registry {
//!     Registry::new().with_plugin(NAME, new)
//! }
//!
//! # use framework::testing::{assert_forms_agree, make_node, make_pod, snapshot};
//! let teams = Teams(Args { label: "team".to_owned() });
//! let node = |name: &str, team: &str| make_node(name).label("team", team).build();
//! let snapshot = snapshot([node("a", "red"), node("b", "blue")], []);
//! let pod = make_pod("p").label("team", "red").info();
//! let fits = |name: &str| {
//!     let node = snapshot.get(name).expect("is there");
//!     teams.filter(&CycleState::new(), &pod, node).is_success()
//! };
//! assert!(fits("a") && !fits("b"));
//! assert_forms_agree(&teams, &pod, &snapshot);
//! ```
//!
//! | to | there is |
//! |---|---|
//! | judge a node | [`NodeInfo`] and [`PodInfo`], which count resources, ports, labels, taints, volumes and pods already |
//! | look at the cluster | [`Snapshot`], handed to PreFilter, PreScore and all forms over all nodes; [`Handle::listers`] for what is not in it |
//! | be fast on many nodes | [`Plugin::sign`]; [`FilterPlugin::filter_all`] and [`ScorePlugin::score_all`] over [`NodeColumns`]; [`Incremental`] where the whole cluster counts |
//! | have a kind of objects of one's own | [`object_kind!`], [`Observer`] and [`ObjectStore`]: the scheduler watches the kind, the plugin reads its store |
//! | bring a rejected pod back | [`EnqueueExtensions`]: events, each with a hint that looks at the pod and the object |
//! | read what nobody can watch | [`Handle::fetch`]: JSON of the API server or any URL, beside the cycle |
//! | change something | Reserve, Permit, PreBind, Bind, PostBind; [`Handle::api`], [`Handle::record`] for events, [`Handle::activate`] for pods |
//! | test | [`testing`]: builders, and [`testing::assert_forms_agree`]; in `kube-scheduler`, `app::testing::TestCluster` is a whole scheduler in memory |
//!
//! A plugin must not block: everything but the futures of PreBind and Bind runs on the one thread that decides. A panic ends the scheduler. `scheduler/examples/` has
//! whole crates, and a template for `cargo generate`.
//!
//! # Versions
//!
//! The crate's version is `0.MINOR.PATCH`, with the minor and patch of the Kubernetes that it stands in for, as upstream's `k8s.io/kube-scheduler` has it. By Cargo's
//! rules `0.MINOR` is what stays compatible:
//!
//! - A patch adds at most: items, methods of extension points with a body, variants of enums that are `non_exhaustive`, events, fragments, columns.
//! - A minor may change or remove; CHANGELOG.md names it. [`k8s_openapi`] and [`serde_json`], which are part of the interface, change their versions with a minor alone.
//! - [`Handle`], [`Listers`], [`ApiWriter`], [`ClaimWriter`], [`Extender`] and [`WaitingPod`] are the scheduler's to implement: a patch may add methods to them.
//! - What plugins mean to users (names, arguments, reasons) is upstream's and goes by Kubernetes' own rules.
//! - A program is built of one version of `framework` and of `kube-scheduler`, the same: none of these plugins is loaded from a file (WASM components are: `scheduler/wasm`).
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod args;
pub mod columns;
pub mod cycle_state;
pub mod devices;
pub mod diagnosis;
pub mod event;
pub mod extender;
pub mod handle;
pub mod node_info;
pub mod node_set;
pub mod objects;
pub mod placement;
pub mod plugin;
pub mod pod_groups;
pub mod pod_info;
pub mod registry;
pub mod resource;
pub mod signature;
pub mod snapshot;
pub mod status;
pub mod store;
pub mod testing;
pub mod verdicts;
pub mod volumes;
pub mod watch;

/// Kubernetes' types, of the version that all of this is made of.
pub use k8s_openapi;
/// JSON: arguments and objects of a plugin's own kinds come as it.
pub use serde_json;

pub use columns::{ImageColumn, LabelColumn, NodeColumns, ResourceColumn};
pub use cycle_state::CycleState;
pub use devices::DeviceCache;
pub use diagnosis::{Diagnosis, FitError, NodeToStatus};
pub use event::{
    ActionType, ClusterEvent, ClusterEventWithHint, EventObject, EventResource, QueueingHint,
};
pub use extender::{EXTENDER_NAME, Extender, NodeToVictims, Victims};
pub use handle::{
    ApiWriteError, ApiWriter, ClaimWriter, EventRecord, Fetch, FetchError, FetchFrom, Handle,
    Listers, PluginError, PluginFactory, Registration, WaitingPod,
};
pub use node_info::{HostPortInfo, NodeInfo};
pub use node_set::{NodeIndex, NodeSet};
pub use objects::{Object, ObjectKind};
pub use placement::{Placement, PodGroupAssignments};
pub use plugin::*;
pub use pod_groups::PodGroupCache;
pub use pod_info::{AffinityTerm, HostPort, PodClaim, PodInfo, PodResource, WeightedAffinityTerm};
pub use registry::{Registry, RegistryError};
pub use resource::Resource;
pub use signature::{Fragments, Scope, Sign};
pub use snapshot::Snapshot;
pub use status::{Code, Status};
pub use store::{ObjectError, ObjectStore};
pub use verdicts::{RejectionId, Verdicts};
pub use volumes::{VolumeCache, VolumeState};

#[cfg(test)]
mod tests {
    #[test]
    fn the_version_is_that_of_kubernetes_behind_a_zero() {
        let root = include_str!("../../../Cargo.toml");
        let version = root
            .lines()
            .find_map(|line| line.strip_prefix("version = "));
        let version = version.expect("the workspace has one").trim_matches('"');
        let (major, minor_and_patch) = version.split_once('.').expect("three numbers");
        assert_eq!(major, "1");
        let own = format!("0.{minor_and_patch}");
        assert_eq!(env!("CARGO_PKG_VERSION"), own);
    }
}
