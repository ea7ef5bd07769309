//! The kinds of objects these plugins watch, and what of them is read.

use std::collections::BTreeMap;

use framework::ObjectKind;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Deserialize;

/// A group of pods (`scheduling.x-k8s.io`).
pub const POD_GROUP: ObjectKind = ObjectKind {
    group: "scheduling.x-k8s.io",
    version: "v1alpha1",
    kind: "PodGroup",
    plural: "podgroups",
    event: "podgroups.v1alpha1.scheduling.x-k8s.io",
};

/// The label of a pod that names its group, in its namespace.
pub const POD_GROUP_LABEL: &str = "scheduling.x-k8s.io/pod-group";

/// What a namespace is promised, and may use.
pub const ELASTIC_QUOTA: ObjectKind = ObjectKind {
    group: "scheduling.x-k8s.io",
    version: "v1alpha1",
    kind: "ElasticQuota",
    plural: "elasticquotas",
    event: "elasticquotas.v1alpha1.scheduling.x-k8s.io",
};

/// What the NUMA nodes of a node have; named as the node.
pub const NODE_RESOURCE_TOPOLOGY: ObjectKind = ObjectKind {
    group: "topology.node.k8s.io",
    version: "v1alpha2",
    kind: "NodeResourceTopology",
    plural: "noderesourcetopologies",
    event: "noderesourcetopologies.v1alpha2.topology.node.k8s.io",
};

/// Classes of priority, for their annotations.
pub const PRIORITY_CLASS: ObjectKind = ObjectKind {
    group: "scheduling.k8s.io",
    version: "v1",
    kind: "PriorityClass",
    plural: "priorityclasses",
    event: "priorityclasses.v1.scheduling.k8s.io",
};

/// All of them.
pub const ALL: [ObjectKind; 4] = [
    POD_GROUP,
    ELASTIC_QUOTA,
    NODE_RESOURCE_TOPOLOGY,
    PRIORITY_CLASS,
];

/// A list of resources, as API objects have it.
pub type ResourceList = BTreeMap<String, Quantity>;

/// A [`POD_GROUP`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodGroup {
    /// Its spec.
    pub spec: PodGroupSpec,
}

/// What a group asks for.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodGroupSpec {
    /// So many pods run, or none.
    pub min_member: i32,
    /// The cluster has to have so much free before any is tried; `None`: not looked at.
    pub min_resources: Option<ResourceList>,
    /// How long a pod waits for the others; `None`: as the arguments say.
    pub schedule_timeout_seconds: Option<i32>,
}

/// An [`ELASTIC_QUOTA`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ElasticQuota {
    /// Its spec.
    pub spec: ElasticQuotaSpec,
}

/// The bounds of a quota.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ElasticQuotaSpec {
    /// What the namespace can have back whenever it wants; `None`: nothing.
    pub min: Option<ResourceList>,
    /// What it never exceeds; `None`: no bound.
    pub max: Option<ResourceList>,
}

/// A [`NODE_RESOURCE_TOPOLOGY`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeResourceTopology {
    /// The kubelet's policy, as older agents write it; the first counts.
    pub topology_policies: Vec<String>,
    /// The kubelet's settings, and what else agents tell.
    pub attributes: Vec<Attribute>,
    /// Parts of the node.
    pub zones: Vec<Zone>,
}

/// A name and a value.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Attribute {
    /// The name.
    pub name: String,
    /// The value.
    pub value: String,
}

/// A part of a node.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Zone {
    /// `node-0` for the first NUMA node.
    pub name: String,
    /// `Node` for a NUMA node.
    #[serde(rename = "type")]
    pub type_: String,
    /// The distance to others.
    pub costs: Vec<Cost>,
    /// What it has.
    pub resources: Vec<ZoneResource>,
}

/// A distance (ACPI SLIT).
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Cost {
    /// To the zone of this name.
    pub name: String,
    /// 10 for itself; 255 for unknown.
    pub value: i64,
}

/// A resource of a zone.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ZoneResource {
    /// The resource.
    pub name: String,
    /// What no pod has now.
    pub available: Quantity,
}

/// A [`PRIORITY_CLASS`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PriorityClass {
    /// The priority.
    pub value: i32,
}
