//! All that a scheduling plugin's author needs, and nothing else: extension points, statuses, cycle state, node and pod infos, the snapshot with
//! its columns, cluster events, arguments, test builders.
//!
//! Never here: a Kubernetes client, an async runtime, the queue, the cache. Plugins in tree and out of tree see the same.
//! Upstream: k8s.io/kube-scheduler/framework and pkg/scheduler/framework, v1.36.
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
pub use placement::{
    Placement, PlacementGeneratePlugin, PlacementScorePlugin, PodGroupAssignments,
};
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
