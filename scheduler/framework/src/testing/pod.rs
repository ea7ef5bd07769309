//! A builder of pods.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use k8s_openapi::api::core::v1::{
    Affinity, Container, ContainerPort, NodeAffinity, NodeSelector, NodeSelectorRequirement,
    NodeSelectorTerm, Pod, PodAffinity, PodAffinityTerm, PodAntiAffinity, PodSchedulingGate,
    PodSpec, PodStatus, PreferredSchedulingTerm, ResourceRequirements, Toleration,
    TopologySpreadConstraint, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};

use super::{labels, quantities};
use crate::pod_info::PodInfo;

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
