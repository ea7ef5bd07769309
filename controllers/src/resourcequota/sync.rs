//! The decision: the usage that a quota measures. Pure.

use std::sync::Arc;

use component_helpers::pod::is_terminal;
use component_helpers::qos::{QosClass, get_pod_qos};
use component_helpers::quantity::{Amount, Format};
use component_helpers::resources::{
    Amounts, PodResourcesOptions, add, amounts, is_extended_resource_name, pod_limits,
    pod_requests, quantities,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    Affinity, PersistentVolumeClaim, Pod, PodAffinityTerm, ResourceQuota, ResourceQuotaStatus,
    ScopedResourceSelectorRequirement, Service, WeightedPodAffinityTerm,
};

use super::devices::{Devices, IMPLICIT, OF_CLASS};
use crate::volume_protection::sync::classes_of_claim;

/// What the caches hold about one namespace.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub pods: Vec<Arc<Pod>>,
    pub services: Vec<Arc<Service>>,
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
    /// `None` where the API server has no such claims.
    pub devices: Option<Devices>,
    /// Of kinds that are only counted, by plural and group; all that are known.
    pub counts: Vec<(String, usize)>,
}

/// The status that is to be written; `None`: it is right.
pub fn sync(
    quota: &ResourceQuota,
    observed: &Observed,
    now: Timestamp,
) -> Option<ResourceQuotaStatus> {
    let hard = quota
        .spec
        .as_ref()
        .and_then(|s| s.hard.clone())
        .unwrap_or_default();
    let usage = usage(quota, observed, now);
    let old = quota.status.clone().unwrap_or_default();
    let before = amounts(old.used.as_ref());
    let mut used = Amounts::default();
    for name in hard.keys() {
        let amount = usage
            .get(name)
            .copied()
            .or_else(|| {
                let is_known =
                    is_known(name) || observed.devices.is_some() && name.ends_with(OF_CLASS);
                is_known.then_some(Amount::ZERO)
            })
            // What cannot be measured now keeps its last value.
            .or_else(|| before.get(name).copied());
        used.extend(amount.map(|a| (name.clone(), a)));
    }
    let same = amounts(old.hard.as_ref()) == amounts(Some(&hard)) && before == used;
    (!same || old.hard.is_none()).then(|| ResourceQuotaStatus {
        hard: Some(hard),
        used: Some(quantities(&used)),
    })
}

/// Whether more of anything is used than before.
pub fn is_charged(old: &ResourceQuota, new: &ResourceQuota) -> bool {
    let used = |quota: &ResourceQuota| {
        let status = quota.status.as_ref();
        amounts(status.and_then(|status| status.used.as_ref()))
    };
    let before = used(old);
    used(new)
        .iter()
        .any(|(name, amount)| before.get(name).is_none_or(|before| before < amount))
}

/// Whether a quota limits how many objects there are of what it calls `name`.
pub fn limits_count_of(quota: &ResourceQuota, name: &str) -> bool {
    let hard = quota.spec.as_ref().and_then(|s| s.hard.as_ref());
    hard.is_some_and(|h| h.contains_key(name) || h.contains_key(&format!("count/{name}")))
}

fn is_known(name: &str) -> bool {
    let plain = name.strip_prefix("count/").unwrap_or(name);
    let prefixed = ["requests.", "limits.", "hugepages-", "services."]
        .iter()
        .any(|p| name.starts_with(p));
    prefixed
        || name.contains(".storageclass.storage.k8s.io/")
        || [
            "pods",
            "services",
            "replicationcontrollers",
            "resourcequotas",
            "secrets",
            "configmaps",
            "persistentvolumeclaims",
            "cpu",
            "memory",
            "ephemeral-storage",
        ]
        .contains(&plain)
}

fn one(n: usize) -> Amount {
    Amount::new(i64::try_from(n).unwrap_or(i64::MAX), Format::DecimalSI)
}

fn usage(quota: &ResourceQuota, observed: &Observed, now: Timestamp) -> Amounts {
    let mut usage = Amounts::default();
    let scopes = scopes(quota);
    for pod in observed
        .pods
        .iter()
        .filter(|p| scopes.iter().all(|s| matches_scope(s, p)))
    {
        add(&mut usage, &of_pod(pod, now));
    }
    for claim in observed
        .claims
        .iter()
        .filter(|c| scopes.iter().all(|s| claim_matches_scope(s, c)))
    {
        add(&mut usage, &of_claim(claim));
    }
    if !scopes.is_empty() {
        return usage;
    }
    for service in &observed.services {
        add(&mut usage, &of_service(service));
    }
    if let Some(devices) = &observed.devices {
        let hard = quota
            .spec
            .iter()
            .flat_map(|spec| spec.hard.iter().flatten());
        let hard = hard.map(|(name, _)| name);
        devices.measure(&mut usage, hard, &observed.pods, |pod| of_pod(pod, now));
    }
    for (name, count) in &observed.counts {
        // Only kinds of the core group have a name of their own.
        if is_known(name) {
            usage.insert(name.clone(), one(*count));
        }
        usage.insert(format!("count/{name}"), one(*count));
    }
    usage
}

/// Whether a pod is still there long after it should have gone, as those of a lost node: it must not keep its successor out.
/// Upstream: `QuotaV1Pod`, which adds the grace period to a time that has it in.
fn is_overdue(pod: &Pod, now: Timestamp) -> bool {
    let meta = &pod.metadata;
    let (Some(deletion), Some(grace)) =
        (&meta.deletion_timestamp, meta.deletion_grace_period_seconds)
    else {
        return false;
    };
    now.duration_since(deletion.0) > SignedDuration::from_secs(grace)
}

fn of_pod(pod: &Pod, now: Timestamp) -> Amounts {
    let mut usage = Amounts::from([("count/pods".to_owned(), one(1))]);
    if is_terminal(pod) || is_overdue(pod, now) {
        return usage;
    }
    usage.insert("pods".to_owned(), one(1));
    let options = PodResourcesOptions {
        use_status_resources: true,
        ..PodResourcesOptions::default()
    };
    for (name, amount) in pod_requests(pod, &options) {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage")
            || name.starts_with("hugepages-")
        {
            usage.insert(name.clone(), amount);
            usage.insert(format!("requests.{name}"), amount);
        } else if is_extended_resource_name(&name) || name.starts_with(IMPLICIT) {
            usage.insert(format!("requests.{name}"), amount);
        }
    }
    for (name, amount) in pod_limits(pod, &options) {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            usage.insert(format!("limits.{name}"), amount);
        }
    }
    usage
}

fn of_service(service: &Service) -> Amounts {
    let mut usage = Amounts::from([
        ("services".to_owned(), one(1)),
        ("count/services".to_owned(), one(1)),
    ]);
    let Some(spec) = &service.spec else {
        return usage;
    };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let given = ports
        .iter()
        .filter(|p| p.node_port.unwrap_or(0) != 0)
        .count();
    let node_ports = match spec.type_.as_deref() {
        Some("NodePort") => ports.len(),
        Some("LoadBalancer") if spec.allocate_load_balancer_node_ports == Some(false) => given,
        Some("LoadBalancer") => ports.len(),
        _ => 0,
    };
    usage.insert("services.nodeports".to_owned(), one(node_ports));
    let balancer = usize::from(spec.type_.as_deref() == Some("LoadBalancer"));
    usage.insert("services.loadbalancers".to_owned(), one(balancer));
    usage
}

fn of_claim(claim: &PersistentVolumeClaim) -> Amounts {
    let spec = claim.spec.clone().unwrap_or_default();
    let requests = amounts(spec.resources.as_ref().and_then(|r| r.requests.as_ref()));
    // An expansion that failed may have given more than is asked for by now. Upstream: `getStorageUsage`.
    let status = claim.status.as_ref();
    let allocated = amounts(status.and_then(|s| s.allocated_resources.as_ref()));
    let storage = requests.get("storage").map(|asked| {
        let given = allocated.get("storage");
        given.map_or(*asked, |given| (*asked).max(*given))
    });
    let mut usage = Amounts::default();
    usage.insert("persistentvolumeclaims".to_owned(), one(1));
    usage.insert("count/persistentvolumeclaims".to_owned(), one(1));
    usage.extend(storage.map(|s| ("requests.storage".to_owned(), s)));
    if let Some(class) = spec.storage_class_name.filter(|c| !c.is_empty()) {
        let prefix = format!("{class}.storageclass.storage.k8s.io/");
        usage.insert(format!("{prefix}persistentvolumeclaims"), one(1));
        usage.extend(storage.map(|s| (format!("{prefix}requests.storage"), s)));
    }
    usage
}

fn scopes(quota: &ResourceQuota) -> Vec<ScopedResourceSelectorRequirement> {
    let Some(spec) = &quota.spec else {
        return Vec::new();
    };
    let plain = spec
        .scopes
        .iter()
        .flatten()
        .map(|name| ScopedResourceSelectorRequirement {
            operator: "Exists".to_owned(),
            scope_name: name.clone(),
            values: None,
        });
    let selected = spec
        .scope_selector
        .iter()
        .flat_map(|s| s.match_expressions.iter().flatten().cloned());
    plain.chain(selected).collect()
}

/// Claims have one scope, their VolumeAttributesClasses; with several of them one is enough.
fn claim_matches_scope(
    scope: &ScopedResourceSelectorRequirement,
    claim: &PersistentVolumeClaim,
) -> bool {
    if scope.scope_name != "VolumeAttributesClass" {
        return false;
    }
    let classes = classes_of_claim(claim);
    let is_listed = |name: &str| scope.values.iter().flatten().any(|v| v == name);
    match scope.operator.as_str() {
        "In" => classes.iter().any(|name| is_listed(name)),
        "NotIn" => classes.is_empty() || classes.iter().any(|name| !is_listed(name)),
        "Exists" => !classes.is_empty(),
        _ => classes.is_empty(),
    }
}

fn matches_scope(scope: &ScopedResourceSelectorRequirement, pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let terminating = spec.and_then(|s| s.active_deadline_seconds).is_some();
    let best_effort = get_pod_qos(pod) == QosClass::BestEffort;
    match scope.scope_name.as_str() {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => best_effort,
        "NotBestEffort" => !best_effort,
        "PriorityClass" => {
            let class = spec
                .and_then(|s| s.priority_class_name.clone())
                .filter(|c| !c.is_empty());
            let listed = class
                .as_ref()
                .is_some_and(|c| scope.values.iter().flatten().any(|v| v == c));
            match scope.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => class.is_some(),
                _ => class.is_none(),
            }
        }
        "CrossNamespacePodAffinity" => spec
            .and_then(|s| s.affinity.as_ref())
            .is_some_and(uses_cross_namespace_pod_affinity),
        _ => false,
    }
}

/// A term names namespaces of its own, for or against. Upstream: `usesCrossNamespacePodAffinity`.
fn uses_cross_namespace_pod_affinity(affinity: &Affinity) -> bool {
    let crosses = |term: &PodAffinityTerm| {
        let named = term.namespaces.as_ref().is_some_and(|n| !n.is_empty());
        named || term.namespace_selector.is_some()
    };
    let any = |required: &Option<Vec<PodAffinityTerm>>,
               preferred: &Option<Vec<WeightedPodAffinityTerm>>| {
        let preferred = preferred.iter().flatten().map(|w| &w.pod_affinity_term);
        required.iter().flatten().chain(preferred).any(crosses)
    };
    let wanted = affinity.pod_affinity.as_ref().is_some_and(|a| {
        any(
            &a.required_during_scheduling_ignored_during_execution,
            &a.preferred_during_scheduling_ignored_during_execution,
        )
    });
    let unwanted = affinity.pod_anti_affinity.as_ref().is_some_and(|a| {
        any(
            &a.required_during_scheduling_ignored_during_execution,
            &a.preferred_during_scheduling_ignored_during_execution,
        )
    });
    wanted || unwanted
}
