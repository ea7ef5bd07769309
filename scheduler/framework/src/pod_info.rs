//! [`PodInfo`]: a pod with everything about it that scheduling reads often, computed once.
//!
//! Upstream: pkg/scheduler/framework/types.go (PodInfo, AffinityTerm), v1.36.
//!
//! DIFFERS: an assumed pod shares its `PodInfo` with the queued one; `spec.nodeName` is not written into a copy. The node of an assumed pod is what the cache
//! says, until the API server confirms it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use component_helpers::csi_migration::InTreePlugin;
use component_helpers::ephemeral;
use component_helpers::labels::{Selector, SelectorError};
use component_helpers::resources::{self, PodResourcesOptions};
use k8s_openapi::api::core::v1::{
    Affinity, Pod, PodAffinityTerm, PodSpec, Volume, WeightedPodAffinityTerm,
};

use crate::resource::Resource;

/// What a pod asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodResource {
    /// The requests, with init containers, sidecars, overhead and pod-level resources accounted.
    pub resource: Resource,
    /// CPU with the default of 100m for containers that ask for none.
    pub non_zero_milli_cpu: i64,
    /// Memory with the default of 200Mi for containers that ask for none.
    pub non_zero_memory: i64,
}

/// One inter-pod affinity term, parsed.
#[derive(Debug, Clone)]
pub struct AffinityTerm {
    /// The namespaces it names; the pod's own when it names none and has no namespace selector.
    pub namespaces: BTreeSet<String>,
    /// Which pods.
    pub selector: Selector,
    /// The node label whose equal values mean "the same place".
    pub topology_key: String,
    /// Further namespaces, by label; selects nothing when absent.
    pub namespace_selector: Selector,
}

impl AffinityTerm {
    /// Does `pod`, in a namespace with `namespace_labels`, match?
    pub fn matches(&self, pod: &Pod, namespace_labels: &BTreeMap<String, String>) -> bool {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        (self.namespaces.contains(namespace) || self.namespace_selector.matches(namespace_labels))
            && self.selector.matches(labels(pod))
    }
}

/// A preferred term and its weight (1–100).
#[derive(Debug, Clone)]
pub struct WeightedAffinityTerm {
    /// The term.
    pub term: AffinityTerm,
    /// Added for each match; 1–100.
    pub weight: i64,
}

/// A host port a pod occupies. Ordered so that sets of them compare.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// `0.0.0.0` stands for all addresses and for none given.
    pub ip: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The port, never zero.
    pub port: i32,
}

/// A claim that a pod's volume uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodClaim {
    /// The claim's name; it is in the pod's namespace.
    pub name: String,
    /// `namespace/name`.
    pub key: String,
    /// Made for this pod alone, by its name: it must be the pod's.
    pub ephemeral: bool,
}

/// A pod as the scheduler sees it. Immutable: a changed pod gets a new one.
#[derive(Debug, Clone)]
pub struct PodInfo {
    /// The pod as the API server gave it.
    pub pod: Arc<Pod>,
    /// Namespace, name and UID, for keys.
    pub uid: Arc<str>,
    /// What it asks for.
    pub requests: PodResource,
    /// `spec.priority`, zero when absent.
    pub priority: i32,
    /// Host ports of containers and sidecars.
    pub host_ports: Vec<HostPort>,
    /// The claims its volumes use, in the order of the volumes.
    pub claims: Vec<PodClaim>,
    /// Has a volume that is attached to its node and counts against the node's limits: a claim, or a disk given inline that has a CSI driver.
    pub attaches: bool,
    /// `requiredDuringScheduling` pod affinity.
    pub required_affinity_terms: Vec<AffinityTerm>,
    /// `requiredDuringScheduling` pod anti-affinity.
    pub required_anti_affinity_terms: Vec<AffinityTerm>,
    /// `preferredDuringScheduling` pod affinity.
    pub preferred_affinity_terms: Vec<WeightedAffinityTerm>,
    /// `preferredDuringScheduling` pod anti-affinity.
    pub preferred_anti_affinity_terms: Vec<WeightedAffinityTerm>,
}

/// A pod whose affinity terms cannot be parsed.
#[derive(Debug, thiserror::Error)]
#[error("parsing {field} of pod {namespace}/{name}: {source}")]
pub struct PodInfoError {
    /// Which of the four kinds of terms.
    pub field: &'static str,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// What is wrong with the selector.
    #[source]
    pub source: Box<SelectorError>,
}

impl PodInfo {
    /// Computes all of it.
    ///
    /// # Errors
    /// When a label selector of an affinity term does not parse; a retry does not help.
    pub fn new(pod: Arc<Pod>) -> Result<Self, PodInfoError> {
        let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
        let (attract, repel) = (
            affinity.and_then(|a| a.pod_affinity.as_ref()),
            affinity.and_then(|a| a.pod_anti_affinity.as_ref()),
        );
        let failed = |field: &'static str| {
            let (namespace, name) = (namespace(&pod).to_owned(), name(&pod).to_owned());
            move |source| PodInfoError {
                field,
                namespace,
                name,
                source: Box::new(source),
            }
        };
        let required_affinity_terms = terms(
            &pod,
            attract.and_then(|a| {
                a.required_during_scheduling_ignored_during_execution
                    .as_deref()
            }),
        )
        .map_err(failed("requiredAffinityTerms"))?;
        let required_anti_affinity_terms = terms(
            &pod,
            repel.and_then(|a| {
                a.required_during_scheduling_ignored_during_execution
                    .as_deref()
            }),
        )
        .map_err(failed("requiredAntiAffinityTerms"))?;
        let preferred_affinity_terms = weighted_terms(
            &pod,
            attract.and_then(|a| {
                a.preferred_during_scheduling_ignored_during_execution
                    .as_deref()
            }),
        )
        .map_err(failed("preferredAffinityTerms"))?;
        let preferred_anti_affinity_terms = weighted_terms(
            &pod,
            repel.and_then(|a| {
                a.preferred_during_scheduling_ignored_during_execution
                    .as_deref()
            }),
        )
        .map_err(failed("preferredAntiAffinityTerms"))?;
        let claims = claims(&pod);
        let mut volumes = spec(&pod).volumes.iter().flatten();
        Ok(PodInfo {
            uid: pod.metadata.uid.as_deref().unwrap_or_default().into(),
            attaches: !claims.is_empty() || volumes.any(|v| InTreePlugin::of_inline(v).is_some()),
            claims,
            requests: calculate_resource(&pod),
            priority: pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0),
            host_ports: host_ports(&pod),
            required_affinity_terms,
            required_anti_affinity_terms,
            preferred_affinity_terms,
            preferred_anti_affinity_terms,
            pod,
        })
    }

    /// The same pod (same UID) at a newer version, where parsing may be skipped: what is parsed is immutable; requests may have been resized.
    pub fn with_updated_pod(&self, pod: Arc<Pod>) -> Result<Self, PodInfoError> {
        if pod.metadata.uid.as_deref() != Some(&*self.uid) {
            return PodInfo::new(pod);
        }
        Ok(PodInfo {
            requests: calculate_resource(&pod),
            pod,
            ..self.clone()
        })
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        name(&self.pod)
    }

    /// The pod's namespace.
    pub fn namespace(&self) -> &str {
        namespace(&self.pod)
    }

    /// The pod's labels.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        labels(&self.pod)
    }

    /// The pod's spec; an empty one when the object has none.
    pub fn spec(&self) -> &PodSpec {
        spec(&self.pod)
    }

    /// `spec.affinity`, when given.
    pub fn affinity(&self) -> Option<&Affinity> {
        self.pod.spec.as_ref()?.affinity.as_ref()
    }

    /// Does the pod have any inter-pod affinity or anti-affinity (required or preferred)?
    pub fn has_affinity(&self) -> bool {
        self.affinity()
            .is_some_and(|a| a.pod_affinity.is_some() || a.pod_anti_affinity.is_some())
    }

    /// `status.nominatedNodeName`, empty when absent.
    pub fn nominated_node_name(&self) -> &str {
        self.pod
            .status
            .as_ref()
            .and_then(|s| s.nominated_node_name.as_deref())
            .unwrap_or_default()
    }

    /// Is deletion asked for?
    pub fn is_terminating(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }
}

/// The name of a pod.
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// The namespace of a pod.
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

/// The labels of a pod; empty when absent.
pub fn labels(pod: &Pod) -> &BTreeMap<String, String> {
    static EMPTY: BTreeMap<String, String> = BTreeMap::new();
    pod.metadata.labels.as_ref().unwrap_or(&EMPTY)
}

/// The spec of a pod; empty when absent.
pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
    pod.spec.as_ref().unwrap_or(&EMPTY)
}

/// The host ports of the regular containers and the restartable init containers; an empty address is `0.0.0.0`, an empty protocol `TCP`.
pub fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let spec = spec(pod);
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.filter(|&n| n > 0)?;
            let or = |value: Option<&str>, default: &str| {
                value
                    .filter(|v| !v.is_empty())
                    .unwrap_or(default)
                    .to_owned()
            };
            Some(HostPort {
                ip: or(port.host_ip.as_deref(), "0.0.0.0"),
                protocol: or(port.protocol.as_deref(), "TCP"),
                port: number,
            })
        })
        .collect()
}

fn claims(pod: &Pod) -> Vec<PodClaim> {
    let claim = |volume: &Volume| {
        let (name, ephemeral) = match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(claim), _) => (claim.claim_name.clone(), false),
            (None, Some(_)) => (ephemeral::claim_name(pod, volume), true),
            (None, None) => return None,
        };
        Some(PodClaim {
            key: crate::volumes::key(namespace(pod), &name),
            name,
            ephemeral,
        })
    };
    spec(pod)
        .volumes
        .iter()
        .flatten()
        .filter_map(claim)
        .collect()
}

fn calculate_resource(pod: &Pod) -> PodResource {
    let options = PodResourcesOptions {
        use_status_resources: true,
        ..PodResourcesOptions::default()
    };
    let (non_zero_milli_cpu, non_zero_memory) = resources::non_zero_requests(pod, true);
    PodResource {
        resource: Resource::from_amounts(&resources::pod_requests(pod, &options)),
        non_zero_milli_cpu,
        non_zero_memory,
    }
}

fn terms(pod: &Pod, terms: Option<&[PodAffinityTerm]>) -> Result<Vec<AffinityTerm>, SelectorError> {
    terms
        .unwrap_or_default()
        .iter()
        .map(|term| affinity_term(pod, term))
        .collect()
}

fn weighted_terms(
    pod: &Pod,
    terms: Option<&[WeightedPodAffinityTerm]>,
) -> Result<Vec<WeightedAffinityTerm>, SelectorError> {
    let parse = |t: &WeightedPodAffinityTerm| {
        Ok(WeightedAffinityTerm {
            term: affinity_term(pod, &t.pod_affinity_term)?,
            weight: t.weight.into(),
        })
    };
    terms.unwrap_or_default().iter().map(parse).collect()
}

// matchLabelKeys and mismatchLabelKeys were merged into the selector by the API server at creation.
fn affinity_term(pod: &Pod, term: &PodAffinityTerm) -> Result<AffinityTerm, SelectorError> {
    let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
    if namespaces.is_empty() && term.namespace_selector.is_none() {
        namespaces.insert(namespace(pod).to_owned());
    }
    Ok(AffinityTerm {
        namespaces,
        selector: Selector::from_optional(term.label_selector.as_ref())?,
        topology_key: term.topology_key.clone(),
        namespace_selector: Selector::from_optional(term.namespace_selector.as_ref())?,
    })
}
