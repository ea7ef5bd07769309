//! Builders of pods and nodes, and checks every plugin's forms must pass, for the tests of plugins (in tree and out of tree).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use k8s_openapi::api::core::v1::{
    Affinity, Container, ContainerImage, ContainerPort, Node, NodeAffinity, NodeCondition,
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, NodeSpec, NodeStatus, Pod,
    PodAffinity, PodAffinityTerm, PodAntiAffinity, PodSchedulingGate, PodSpec, PodStatus,
    PreferredSchedulingTerm, ResourceRequirements, Taint, Toleration, TopologySpreadConstraint,
    WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};

use crate::cycle_state::CycleState;
use crate::node_info::NodeInfo;
use crate::node_set::NodeSet;
use crate::plugin::Plugin;
use crate::pod_info::PodInfo;
use crate::snapshot::Snapshot;
use crate::verdicts::Verdicts;

/// A map of labels or resources from pairs.
pub fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn quantities(pairs: &[(&str, &str)]) -> BTreeMap<String, Quantity> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), Quantity((*v).to_owned())))
        .collect()
}

/// A selector of equal labels.
pub fn selector(pairs: &[(&str, &str)]) -> LabelSelector {
    LabelSelector {
        match_labels: Some(labels(pairs)),
        ..LabelSelector::default()
    }
}

/// Builds a [`Pod`] with a UID of its own.
#[derive(Debug, Clone)]
#[must_use]
pub struct PodBuilder(Pod);

/// Starts a pod in namespace `default`.
pub fn make_pod(name: &str) -> PodBuilder {
    static UID: AtomicU64 = AtomicU64::new(1);
    PodBuilder(Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("default".to_owned()),
            uid: Some(format!("uid-{}", UID.fetch_add(1, Ordering::Relaxed))),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            scheduler_name: Some("default-scheduler".to_owned()),
            ..PodSpec::default()
        }),
        status: Some(PodStatus::default()),
    })
}

impl PodBuilder {
    fn spec(&mut self) -> &mut PodSpec {
        self.0.spec.get_or_insert_default()
    }
    fn affinity(&mut self) -> &mut Affinity {
        self.spec().affinity.get_or_insert_default()
    }
    fn change(mut self, f: impl FnOnce(&mut Self)) -> Self {
        f(&mut self);
        self
    }

    /// Any change.
    pub fn with(self, f: impl FnOnce(&mut Pod)) -> Self {
        self.change(|b| f(&mut b.0))
    }
    /// The namespace.
    pub fn namespace(self, namespace: &str) -> Self {
        self.with(|pod| pod.metadata.namespace = Some(namespace.to_owned()))
    }
    /// The UID.
    pub fn uid(self, uid: &str) -> Self {
        self.with(|pod| pod.metadata.uid = Some(uid.to_owned()))
    }
    /// Adds a label.
    pub fn label(self, key: &str, value: &str) -> Self {
        self.with(|pod| {
            pod.metadata
                .labels
                .get_or_insert_default()
                .insert(key.to_owned(), value.to_owned());
        })
    }
    /// Adds a container with these requests.
    pub fn req(self, requests: &[(&str, &str)]) -> Self {
        self.change(|b| {
            let name = format!("con{}", b.spec().containers.len());
            b.spec().containers.push(Container {
                name,
                resources: Some(ResourceRequirements {
                    requests: Some(quantities(requests)),
                    ..ResourceRequirements::default()
                }),
                ..Container::default()
            });
        })
    }
    /// Adds an init container with these requests; a sidecar when `always`.
    pub fn init_req(self, requests: &[(&str, &str)], always: bool) -> Self {
        self.change(|b| {
            let containers = b.spec().init_containers.get_or_insert_default();
            containers.push(Container {
                name: format!("init{}", containers.len()),
                resources: Some(ResourceRequirements {
                    requests: Some(quantities(requests)),
                    ..ResourceRequirements::default()
                }),
                restart_policy: always.then(|| "Always".to_owned()),
                ..Container::default()
            });
        })
    }
    /// Adds a container of this image.
    pub fn image(self, image: &str) -> Self {
        self.change(|b| {
            let name = format!("con{}", b.spec().containers.len());
            b.spec().containers.push(Container {
                name,
                image: Some(image.to_owned()),
                ..Container::default()
            });
        })
    }
    /// Adds a container with this host port; empty strings leave address and protocol out.
    pub fn host_port(self, ip: &str, protocol: &str, port: i32) -> Self {
        self.change(|b| {
            let given = |s: &str| (!s.is_empty()).then(|| s.to_owned());
            let name = format!("con{}", b.spec().containers.len());
            let port = ContainerPort {
                host_ip: given(ip),
                protocol: given(protocol),
                host_port: Some(port),
                container_port: port,
                ..ContainerPort::default()
            };
            b.spec().containers.push(Container {
                name,
                ports: Some(vec![port]),
                ..Container::default()
            });
        })
    }
    /// `spec.nodeName`.
    pub fn node(self, node: &str) -> Self {
        self.change(|b| b.spec().node_name = Some(node.to_owned()))
    }
    /// `spec.schedulerName`.
    pub fn scheduler_name(self, name: &str) -> Self {
        self.change(|b| b.spec().scheduler_name = Some(name.to_owned()))
    }
    /// `spec.priority`.
    pub fn priority(self, priority: i32) -> Self {
        self.change(|b| b.spec().priority = Some(priority))
    }
    /// `status.nominatedNodeName`.
    pub fn nominated_node_name(self, node: &str) -> Self {
        self.with(|pod| {
            pod.status.get_or_insert_default().nominated_node_name = Some(node.to_owned())
        })
    }
    /// `spec.nodeSelector`.
    pub fn node_selector(self, pairs: &[(&str, &str)]) -> Self {
        self.change(|b| b.spec().node_selector = Some(labels(pairs)))
    }
    /// Adds a toleration; empty strings leave a part out.
    pub fn toleration(self, key: &str, operator: &str, value: &str, effect: &str) -> Self {
        self.change(|b| {
            let given = |s: &str| (!s.is_empty()).then(|| s.to_owned());
            b.spec()
                .tolerations
                .get_or_insert_default()
                .push(Toleration {
                    key: given(key),
                    operator: given(operator),
                    value: given(value),
                    effect: given(effect),
                    toleration_seconds: None,
                });
        })
    }
    /// Adds a scheduling gate.
    pub fn scheduling_gate(self, name: &str) -> Self {
        self.change(|b| {
            b.spec()
                .scheduling_gates
                .get_or_insert_default()
                .push(PodSchedulingGate {
                    name: name.to_owned(),
                })
        })
    }
    /// Adds a required node affinity term of one `In` expression (terms are ORed).
    pub fn node_affinity_in(self, key: &str, values: &[&str]) -> Self {
        self.change(|b| {
            let term = NodeSelectorTerm {
                match_expressions: Some(vec![requirement(key, "In", values)]),
                match_fields: None,
            };
            node_affinity(b)
                .required_during_scheduling_ignored_during_execution
                .get_or_insert_with(NodeSelector::default)
                .node_selector_terms
                .push(term);
        })
    }
    /// Requires `metadata.name` to be one of these, as the daemon set controller does.
    pub fn node_name_affinity(self, names: &[&str]) -> Self {
        self.change(|b| {
            let term = NodeSelectorTerm {
                match_fields: Some(vec![requirement("metadata.name", "In", names)]),
                match_expressions: None,
            };
            node_affinity(b)
                .required_during_scheduling_ignored_during_execution
                .get_or_insert_with(NodeSelector::default)
                .node_selector_terms
                .push(term);
        })
    }
    /// Adds a preferred node affinity term of one `In` expression.
    pub fn preferred_node_affinity(self, weight: i32, key: &str, values: &[&str]) -> Self {
        self.change(|b| {
            let preference = NodeSelectorTerm {
                match_expressions: Some(vec![requirement(key, "In", values)]),
                match_fields: None,
            };
            let preferred =
                &mut node_affinity(b).preferred_during_scheduling_ignored_during_execution;
            preferred
                .get_or_insert_default()
                .push(PreferredSchedulingTerm { weight, preference });
        })
    }
    /// Adds a required pod affinity term.
    pub fn pod_affinity(self, topology_key: &str, selector: LabelSelector) -> Self {
        self.change(|b| {
            let affinity = b
                .affinity()
                .pod_affinity
                .get_or_insert_with(PodAffinity::default);
            affinity
                .required_during_scheduling_ignored_during_execution
                .get_or_insert_default()
                .push(term(topology_key, selector));
        })
    }
    /// Adds a required pod anti-affinity term.
    pub fn pod_anti_affinity(self, topology_key: &str, selector: LabelSelector) -> Self {
        self.change(|b| {
            let affinity = b
                .affinity()
                .pod_anti_affinity
                .get_or_insert_with(PodAntiAffinity::default);
            affinity
                .required_during_scheduling_ignored_during_execution
                .get_or_insert_default()
                .push(term(topology_key, selector));
        })
    }
    /// Adds a preferred pod affinity term.
    pub fn preferred_pod_affinity(
        self,
        weight: i32,
        topology_key: &str,
        selector: LabelSelector,
    ) -> Self {
        self.change(|b| {
            let affinity = b
                .affinity()
                .pod_affinity
                .get_or_insert_with(PodAffinity::default);
            let preferred = affinity
                .preferred_during_scheduling_ignored_during_execution
                .get_or_insert_default();
            preferred.push(WeightedPodAffinityTerm {
                weight,
                pod_affinity_term: term(topology_key, selector),
            });
        })
    }
    /// Adds a preferred pod anti-affinity term.
    pub fn preferred_pod_anti_affinity(
        self,
        weight: i32,
        topology_key: &str,
        selector: LabelSelector,
    ) -> Self {
        self.change(|b| {
            let affinity = b
                .affinity()
                .pod_anti_affinity
                .get_or_insert_with(PodAntiAffinity::default);
            let preferred = affinity
                .preferred_during_scheduling_ignored_during_execution
                .get_or_insert_default();
            preferred.push(WeightedPodAffinityTerm {
                weight,
                pod_affinity_term: term(topology_key, selector),
            });
        })
    }
    /// Adds a topology spread constraint; `when` is `DoNotSchedule` or `ScheduleAnyway`.
    pub fn spread(
        self,
        max_skew: i32,
        topology_key: &str,
        when: &str,
        selector: LabelSelector,
    ) -> Self {
        self.spread_constraint(TopologySpreadConstraint {
            max_skew,
            topology_key: topology_key.to_owned(),
            when_unsatisfiable: when.to_owned(),
            label_selector: Some(selector),
            ..TopologySpreadConstraint::default()
        })
    }
    /// Adds a topology spread constraint.
    pub fn spread_constraint(self, constraint: TopologySpreadConstraint) -> Self {
        self.change(|b| {
            b.spec()
                .topology_spread_constraints
                .get_or_insert_default()
                .push(constraint)
        })
    }
    /// Adds a volume; `source` is its JSON without the name.
    pub fn volume(self, mut source: serde_json::Value) -> Self {
        self.change(|b| {
            let volumes = b.spec().volumes.get_or_insert_default();
            source["name"] = format!("v{}", volumes.len()).into();
            volumes.push(serde_json::from_value(source).expect("volumes in tests are valid"));
        })
    }
    /// Adds a volume of a claim.
    pub fn claim(self, name: &str) -> Self {
        self.volume(serde_json::json!({"persistentVolumeClaim": {"claimName": name}}))
    }
    /// The controlling owner.
    pub fn owner(self, kind: &str, name: &str, uid: &str) -> Self {
        self.with(|pod| {
            pod.metadata.owner_references = Some(vec![OwnerReference {
                api_version: "apps/v1".to_owned(),
                kind: kind.to_owned(),
                name: name.to_owned(),
                uid: uid.to_owned(),
                controller: Some(true),
                ..OwnerReference::default()
            }]);
        })
    }
    /// The pod.
    pub fn build(self) -> Arc<Pod> {
        Arc::new(self.0)
    }
    /// The pod with what is computed of it.
    pub fn info(self) -> Arc<PodInfo> {
        Arc::new(PodInfo::new(self.build()).expect("selectors in tests are valid"))
    }
}

fn node_affinity(b: &mut PodBuilder) -> &mut NodeAffinity {
    b.affinity()
        .node_affinity
        .get_or_insert_with(NodeAffinity::default)
}

fn requirement(key: &str, operator: &str, values: &[&str]) -> NodeSelectorRequirement {
    NodeSelectorRequirement {
        key: key.to_owned(),
        operator: operator.to_owned(),
        values: Some(values.iter().map(|v| (*v).to_owned()).collect()),
    }
}

fn term(topology_key: &str, selector: LabelSelector) -> PodAffinityTerm {
    PodAffinityTerm {
        topology_key: topology_key.to_owned(),
        label_selector: Some(selector),
        ..PodAffinityTerm::default()
    }
}

/// Builds a [`Node`].
#[derive(Debug, Clone)]
#[must_use]
pub struct NodeBuilder(Node);

/// Starts a node with the label `kubernetes.io/hostname` and room for 110 pods.
pub fn make_node(name: &str) -> NodeBuilder {
    NodeBuilder(Node {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            uid: Some(format!("uid-{name}")),
            labels: Some(labels(&[("kubernetes.io/hostname", name)])),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec::default()),
        status: Some(NodeStatus {
            allocatable: Some(quantities(&[("pods", "110")])),
            ..NodeStatus::default()
        }),
    })
}

impl NodeBuilder {
    /// Any change.
    pub fn with(mut self, f: impl FnOnce(&mut Node)) -> Self {
        f(&mut self.0);
        self
    }
    /// Adds capacity and allocatable.
    pub fn capacity(self, resources: &[(&str, &str)]) -> Self {
        self.with(|node| {
            let status = node.status.get_or_insert_default();
            status
                .capacity
                .get_or_insert_default()
                .extend(quantities(resources));
            status
                .allocatable
                .get_or_insert_default()
                .extend(quantities(resources));
        })
    }
    /// Adds a label.
    pub fn label(self, key: &str, value: &str) -> Self {
        self.with(|node| {
            node.metadata
                .labels
                .get_or_insert_default()
                .insert(key.to_owned(), value.to_owned());
        })
    }
    /// The zone label.
    pub fn zone(self, zone: &str) -> Self {
        self.label("topology.kubernetes.io/zone", zone)
    }
    /// Adds a taint.
    pub fn taint(self, key: &str, value: &str, effect: &str) -> Self {
        self.with(|node| {
            let taint = Taint {
                key: key.to_owned(),
                value: (!value.is_empty()).then(|| value.to_owned()),
                effect: effect.to_owned(),
                time_added: None,
            };
            node.spec
                .get_or_insert_default()
                .taints
                .get_or_insert_default()
                .push(taint);
        })
    }
    /// `spec.unschedulable`.
    pub fn unschedulable(self, unschedulable: bool) -> Self {
        self.with(|node| node.spec.get_or_insert_default().unschedulable = Some(unschedulable))
    }
    /// Adds a condition.
    pub fn condition(self, type_: &str, status: &str) -> Self {
        self.with(|node| {
            let condition = NodeCondition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                ..NodeCondition::default()
            };
            node.status
                .get_or_insert_default()
                .conditions
                .get_or_insert_default()
                .push(condition);
        })
    }
    /// Adds an image.
    pub fn image(self, name: &str, size_bytes: i64) -> Self {
        self.with(|node| {
            let image = ContainerImage {
                names: Some(vec![name.to_owned()]),
                size_bytes: Some(size_bytes),
            };
            node.status
                .get_or_insert_default()
                .images
                .get_or_insert_default()
                .push(image);
        })
    }
    /// The node.
    pub fn build(self) -> Arc<Node> {
        Arc::new(self.0)
    }
    /// The node with these pods on it.
    pub fn info(self, pods: impl IntoIterator<Item = Arc<PodInfo>>) -> NodeInfo {
        let mut info = NodeInfo::new(self.build());
        pods.into_iter().for_each(|pod| info.add_pod(pod));
        info
    }
}

/// An object of storage from its JSON, told by its `kind`.
///
/// # Panics
/// For what is no such object.
pub fn storage_object(value: &serde_json::Value) -> crate::event::EventObject {
    use crate::event::EventObject;
    fn read<T: serde::de::DeserializeOwned>(value: &serde_json::Value) -> Arc<T> {
        let object = serde_json::from_value(value.clone());
        Arc::new(object.unwrap_or_else(|error| panic!("{error}: {value}")))
    }
    match value["kind"].as_str().unwrap_or_default() {
        "PersistentVolume" => EventObject::PersistentVolume(read(value)),
        "PersistentVolumeClaim" => EventObject::PersistentVolumeClaim(read(value)),
        "StorageClass" => EventObject::StorageClass(read(value)),
        "CSINode" => EventObject::CSINode(read(value)),
        "CSIDriver" => EventObject::CSIDriver(read(value)),
        "CSIStorageCapacity" => EventObject::CSIStorageCapacity(read(value)),
        "VolumeAttachment" => EventObject::VolumeAttachment(read(value)),
        "ResourceClaim" => EventObject::ResourceClaim(read(value)),
        "ResourceSlice" => EventObject::ResourceSlice(read(value)),
        "DeviceClass" => EventObject::DeviceClass(read(value)),
        "DeviceTaintRule" => EventObject::DeviceTaintRule(read(value)),
        kind => panic!("neither of storage nor of devices: {kind:?}"),
    }
}

/// A snapshot of these nodes, and of pods by their `spec.nodeName`.
pub fn snapshot(
    nodes: impl IntoIterator<Item = Arc<Node>>,
    pods: impl IntoIterator<Item = Arc<PodInfo>>,
) -> Snapshot {
    let mut infos: BTreeMap<String, NodeInfo> = BTreeMap::new();
    for node in nodes {
        infos.insert(
            node.metadata.name.clone().unwrap_or_default(),
            NodeInfo::new(node),
        );
    }
    for pod in pods {
        if let Some(info) = pod
            .spec()
            .node_name
            .as_ref()
            .and_then(|name| infos.get_mut(name))
        {
            info.add_pod(pod);
        }
    }
    let mut snapshot = Snapshot::new();
    for info in infos.into_values() {
        snapshot.set_node(Arc::new(info));
    }
    snapshot
}

/// Runs a plugin's PreFilter, Filter and its form over all nodes, and its PreScore, Score and form over all nodes, and its incremental view, and asserts
/// that they agree.
///
/// # Panics
/// When two forms disagree: that is the point.
pub fn assert_forms_agree(plugin: &dyn Plugin, pod: &Arc<PodInfo>, snapshot: &Snapshot) {
    let mut state = CycleState::new();
    let (all, len) = (snapshot.columns().live().clone(), snapshot.columns().len());
    let mut feasible = all.clone();
    let mut filter_on = plugin.as_filter().is_some();
    if let Some(pre_filter) = plugin.as_pre_filter() {
        let (_, status) = pre_filter.pre_filter(&mut state, pod, snapshot);
        if status.is_rejected() || status.is_error() {
            return;
        }
        filter_on &= !status.is_skip();
    }
    let mut statuses = BTreeMap::new();
    if let (true, Some(filter)) = (filter_on, plugin.as_filter()) {
        for (index, node) in snapshot.iter() {
            let status = filter.filter(&state, pod, node);
            if !status.is_success() {
                feasible.remove(index);
                statuses.insert(index, status.by(plugin.name()));
            }
        }
        let mut verdicts = Verdicts::new(all.clone(), len);
        verdicts.set_plugin(plugin.name());
        if filter.filter_all(&state, pod, snapshot, &mut verdicts) {
            for (index, node) in snapshot.iter() {
                assert_eq!(
                    verdicts.status(index),
                    statuses.get(&index),
                    "filter_all of {} on {}",
                    plugin.name(),
                    node.name()
                );
            }
        }
    }
    let score_on = plugin.as_pre_score().is_none_or(|p| {
        p.pre_score(&mut state, pod, snapshot, &feasible)
            .is_success()
    });
    let mut raw = vec![0; len];
    if let (true, Some(score)) = (score_on, plugin.as_score()) {
        for node in feasible.iter() {
            let info = snapshot
                .node(node)
                .expect("feasible nodes are in the snapshot");
            raw[node as usize] = score.score(&state, pod, info).expect("scores");
        }
        let mut column = vec![0; len];
        if score.score_all(&state, pod, snapshot, &feasible, &mut column) {
            for node in feasible.iter() {
                assert_eq!(
                    column[node as usize],
                    raw[node as usize],
                    "score_all of {} on node {node}",
                    plugin.name()
                );
            }
        }
    }
    if let Some(mut view) = plugin.incremental(pod, snapshot) {
        let (verdicts, scores) = run_view(view.as_mut(), snapshot, &all);
        for (index, node) in snapshot.iter() {
            assert_eq!(
                verdicts
                    .status(index)
                    .map(|s| s.clone().by(plugin.name()))
                    .as_ref(),
                statuses.get(&index),
                "view of {} on {}",
                plugin.name(),
                node.name()
            );
        }
        if let (Some(scores), true, Some(score)) = (scores, score_on, plugin.as_score()) {
            for crate::plugin::NodeScore { node, score } in
                normalized(score, &state, pod, snapshot, &feasible, &raw)
            {
                assert_eq!(
                    scores[node as usize],
                    score,
                    "score of the view of {} on node {node}",
                    plugin.name()
                );
            }
        }
    }
}

/// Filters and scores all of `nodes` by an incremental view; `None` scores: the plugin skips scoring.
pub fn run_view(
    view: &mut dyn crate::plugin::Incremental,
    snapshot: &Snapshot,
    nodes: &NodeSet,
) -> (Verdicts, Option<Vec<i64>>) {
    let len = snapshot.columns().len();
    let mut verdicts = Verdicts::new(nodes.clone(), len);
    view.filter_all(snapshot, &mut verdicts);
    let mut scores = vec![0; len];
    let scored = view.score_all(snapshot, verdicts.feasible(), &mut scores);
    (verdicts, scored.then_some(scores))
}

/// Raw scores made scores as the runtime does.
pub fn normalized(
    plugin: &dyn crate::plugin::ScorePlugin,
    state: &CycleState,
    pod: &Arc<PodInfo>,
    snapshot: &Snapshot,
    nodes: &NodeSet,
    raw: &[i64],
) -> Vec<crate::plugin::NodeScore> {
    use crate::plugin::{NodeScore, Normalize};
    let mut scores: Vec<_> = nodes
        .iter()
        .map(|node| NodeScore {
            node,
            score: raw[node as usize],
        })
        .collect();
    match plugin.normalize() {
        Normalize::Already => {}
        Normalize::ByMax { reverse } => {
            let max = scores.iter().map(|s| s.score).max().unwrap_or(0);
            scores
                .iter_mut()
                .for_each(|s| s.score = Normalize::by_max(s.score, max, reverse));
        }
        Normalize::Custom => assert!(
            plugin
                .normalize_score(state, pod, snapshot, &mut scores)
                .is_success()
        ),
    }
    scores
}
