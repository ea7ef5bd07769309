//! What a pod requests and may use at most: the sum over its containers by the rules for init containers, sidecars,
//! pod-level resources, overhead and resizes in flight.
//!
//! The formula is part of the API. Upstream: k8s.io/component-helpers/resource, v1.36.

use crate::quantity::{Amount, amount};
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

#[cfg(test)]
mod tests;

/// A resource list as the API writes it.
pub type ResourceList = BTreeMap<String, Quantity>;
/// A resource list made ready for arithmetic.
pub type Amounts = BTreeMap<String, Amount>;

/// Cores.
pub const CPU: &str = "cpu";
/// Bytes of memory.
pub const MEMORY: &str = "memory";
/// Bytes of node-local scratch space.
pub const EPHEMERAL_STORAGE: &str = "ephemeral-storage";
/// Number of pods.
pub const PODS: &str = "pods";
/// Prefix of huge page resources, followed by the page size.
pub const HUGEPAGES_PREFIX: &str = "hugepages-";
/// Prefix of resources that limit volumes attached to a node.
pub const ATTACHABLE_VOLUMES_PREFIX: &str = "attachable-volumes-";

/// Assumed for scoring where a container requests no CPU: 0.1 core (upstream: pkg/scheduler/util/pod_resources.go).
pub const DEFAULT_MILLI_CPU_REQUEST: i64 = 100;
/// Assumed for scoring where a container requests no memory: 200 MiB.
pub const DEFAULT_MEMORY_REQUEST: i64 = 200 * 1024 * 1024;

/// What to count.
#[derive(Clone, Copy, Debug, Default)]
pub struct PodResourcesOptions<'a> {
    /// Take what the kubelet allocated and actuated (`status`) into account, as for a resize in flight.
    pub use_status_resources: bool,
    /// Leave `spec.overhead` out.
    pub exclude_overhead: bool,
    /// Leave `spec.resources` out.
    pub skip_pod_level_resources: bool,
    /// Counted for each container that does not name the resource at all (an explicit zero stays zero).
    pub non_missing_container_requests: Option<&'a Amounts>,
}

/// The amounts of an API resource list.
pub fn amounts(list: Option<&ResourceList>) -> Amounts {
    list.into_iter()
        .flatten()
        .map(|(name, quantity)| (name.clone(), amount(quantity)))
        .collect()
}

/// The API resource list of some amounts, in canonical form.
pub fn quantities(amounts: &Amounts) -> ResourceList {
    amounts
        .iter()
        .map(|(name, amount)| (name.clone(), (*amount).into()))
        .collect()
}

/// `list += more`, resource by resource.
pub fn add(list: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        *list.entry(name.clone()).or_default() += *amount;
    }
}

/// `list = max(list, other)`, resource by resource.
pub fn max(list: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        list.entry(name.clone())
            .and_modify(|have| *have = (*have).max(*amount))
            .or_insert(*amount);
    }
}

/// `list -= less`, resource by resource, never below zero; what is missing counts as zero.
pub fn saturating_sub(list: &mut Amounts, less: &Amounts) {
    for (name, amount) in less {
        if let Some(have) = list.get_mut(name) {
            *have = (*have - *amount).max(Amount::ZERO);
        }
    }
}

/// Whether this resource may be given for the pod as a whole: CPU, memory, huge pages.
pub fn is_supported_pod_level_resource(name: &str) -> bool {
    name == CPU || name == MEMORY || name.starts_with(HUGEPAGES_PREFIX)
}

/// Whether the pod as a whole has requests or limits.
pub fn is_pod_level_resources_set(pod: &Pod) -> bool {
    pod_level(pod).is_some_and(|r| names_supported(&r.requests) || names_supported(&r.limits))
}

/// Whether the pod as a whole has requests.
pub fn is_pod_level_requests_set(pod: &Pod) -> bool {
    pod_level(pod).is_some_and(|r| names_supported(&r.requests))
}

/// Whether the pod as a whole has limits.
pub fn is_pod_level_limits_set(pod: &Pod) -> bool {
    pod_level(pod).is_some_and(|r| names_supported(&r.limits))
}

fn pod_level(pod: &Pod) -> Option<&ResourceRequirements> {
    pod.spec.as_ref().and_then(|spec| spec.resources.as_ref())
}

fn names_supported(list: &Option<ResourceList>) -> bool {
    list.iter()
        .flat_map(|list| list.keys())
        .any(|name| is_supported_pod_level_resource(name))
}

/// Whether an init container is a sidecar: it starts with the init containers and runs on beside the regular ones.
pub fn is_restartable_init_container(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Whether the kubelet said that the resize asked for can never be done here.
pub fn is_pod_resize_infeasible(pod: &Pod) -> bool {
    pod.status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .find(|condition| condition.type_ == "PodResizePending")
        .is_some_and(|condition| condition.reason.as_deref() == Some("Infeasible"))
}

/// What the pod requests in total.
pub fn pod_requests(pod: &Pod, options: &PodResourcesOptions<'_>) -> Amounts {
    let mut total = aggregate_container_requests(pod, options);
    if !options.skip_pod_level_resources && is_pod_level_requests_set(pod) {
        let spec = amounts(pod_level(pod).and_then(|r| r.requests.as_ref()));
        let status = pod
            .status
            .as_ref()
            .filter(|status| options.use_status_resources && status.resources.is_some());
        let effective = status.map(|status| {
            let actuated = amounts(status.resources.as_ref().and_then(|r| r.requests.as_ref()));
            effective_requests(
                pod,
                &spec,
                &actuated,
                &amounts(status.allocated_resources.as_ref()),
            )
        });
        for (name, amount) in &spec {
            if is_supported_pod_level_resource(name) {
                let amount = effective
                    .as_ref()
                    .map_or(*amount, |list| list.get(name).copied().unwrap_or_default());
                total.insert(name.clone(), amount);
            }
        }
    }
    if !options.exclude_overhead {
        add(
            &mut total,
            &amounts(pod.spec.as_ref().and_then(|spec| spec.overhead.as_ref())),
        );
    }
    total
}

/// What the pod may use at most, in total. A resource that some container leaves unlimited is still in the sum of the
/// others: look at the containers to know whether the pod as a whole is limited.
pub fn pod_limits(pod: &Pod, options: &PodResourcesOptions<'_>) -> Amounts {
    let mut total = aggregate_container_limits(pod, options);
    if !options.skip_pod_level_resources && is_pod_level_resources_set(pod) {
        let spec = amounts(pod_level(pod).and_then(|r| r.limits.as_ref()));
        let status = pod
            .status
            .as_ref()
            .filter(|status| options.use_status_resources && status.resources.is_some());
        let effective = status.map(|status| {
            let actuated = amounts(status.resources.as_ref().and_then(|r| r.limits.as_ref()));
            effective_limits(pod, &spec, &actuated)
        });
        for (name, amount) in &spec {
            if is_supported_pod_level_resource(name) {
                let amount = effective
                    .as_ref()
                    .map_or(*amount, |list| list.get(name).copied().unwrap_or_default());
                total.insert(name.clone(), amount);
            }
        }
    }
    if !options.exclude_overhead {
        for (name, overhead) in amounts(pod.spec.as_ref().and_then(|spec| spec.overhead.as_ref())) {
            if let Some(limit) = total.get_mut(&name).filter(|limit| !limit.is_zero()) {
                *limit += overhead;
            }
        }
    }
    total
}

/// What the containers request together, without overhead and pod-level resources.
pub fn aggregate_container_requests(pod: &Pod, options: &PodResourcesOptions<'_>) -> Amounts {
    aggregate(pod, |container, restartable| {
        let mut requests = amounts(
            container
                .resources
                .as_ref()
                .and_then(|r| r.requests.as_ref()),
        );
        if let Some((status, resources)) = in_flight(pod, container, restartable, options) {
            let actuated = amounts(resources.requests.as_ref());
            requests = effective_requests(
                pod,
                &requests,
                &actuated,
                &amounts(status.allocated_resources.as_ref()),
            );
        }
        for (name, amount) in options.non_missing_container_requests.into_iter().flatten() {
            requests.entry(name.clone()).or_insert(*amount);
        }
        requests
    })
}

/// The limits of the containers together, without overhead and pod-level resources.
pub fn aggregate_container_limits(pod: &Pod, options: &PodResourcesOptions<'_>) -> Amounts {
    aggregate(pod, |container, restartable| {
        let limits = amounts(container.resources.as_ref().and_then(|r| r.limits.as_ref()));
        match in_flight(pod, container, restartable, options) {
            Some((_, resources)) => {
                effective_limits(pod, &limits, &amounts(resources.limits.as_ref()))
            }
            None => limits,
        }
    })
}

/// The status of a container that a resize may concern: regular ones and sidecars.
fn in_flight<'a>(
    pod: &'a Pod,
    container: &Container,
    resizable: bool,
    options: &PodResourcesOptions<'_>,
) -> Option<(&'a ContainerStatus, &'a ResourceRequirements)> {
    if !options.use_status_resources || !resizable {
        return None;
    }
    let status = pod.status.as_ref()?;
    let all = status
        .container_statuses
        .iter()
        .flatten()
        .chain(status.init_container_statuses.iter().flatten());
    let found = all
        .into_iter()
        .find(|status| status.name == container.name)?;
    Some((found, found.resources.as_ref()?))
}

/// Sums the regular containers and sidecars; an init container needs its own share beside the sidecars started before it,
/// and the pod needs the most of all these moments.
fn aggregate(pod: &Pod, of: impl Fn(&Container, bool) -> Amounts) -> Amounts {
    let mut total = Amounts::new();
    let Some(spec) = &pod.spec else { return total };
    for container in &spec.containers {
        add(&mut total, &of(container, true));
    }
    let mut sidecars = Amounts::new();
    let mut init = Amounts::new();
    for container in spec.init_containers.iter().flatten() {
        let restartable = is_restartable_init_container(container);
        let mut own = of(container, restartable);
        if restartable {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            max(&mut init, &sidecars);
        } else {
            add(&mut own, &sidecars);
            max(&mut init, &own);
        }
    }
    max(&mut total, &init);
    total
}

fn effective_requests(
    pod: &Pod,
    spec: &Amounts,
    actuated: &Amounts,
    allocated: &Amounts,
) -> Amounts {
    let mut list = actuated.clone();
    max(&mut list, allocated);
    if !is_pod_resize_infeasible(pod) {
        max(&mut list, spec);
    }
    list
}

fn effective_limits(pod: &Pod, spec: &Amounts, actuated: &Amounts) -> Amounts {
    let mut list = actuated.clone();
    if !is_pod_resize_infeasible(pod) {
        max(&mut list, spec);
    }
    list
}

/// The requests used for scoring, CPU in thousandths and memory in bytes: like [`pod_requests`], but a container that names
/// no CPU or memory counts as [`DEFAULT_MILLI_CPU_REQUEST`] and [`DEFAULT_MEMORY_REQUEST`]; in a pod with pod-level requests,
/// only where nobody names the resource.
pub fn non_zero_requests(pod: &Pod, use_status_resources: bool) -> (i64, i64) {
    let options = PodResourcesOptions {
        use_status_resources,
        ..Default::default()
    };
    let mut defaults = Amounts::from([
        (
            CPU.to_owned(),
            Amount::from_milli(DEFAULT_MILLI_CPU_REQUEST),
        ),
        (
            MEMORY.to_owned(),
            Amount::from_bytes(DEFAULT_MEMORY_REQUEST),
        ),
    ]);
    if is_pod_level_requests_set(pod) {
        let named = pod_requests(pod, &options);
        defaults.retain(|name, _| !named.contains_key(name));
    }
    let options = PodResourcesOptions {
        non_missing_container_requests: Some(&defaults),
        ..options
    };
    let requests = pod_requests(pod, &options);
    (
        requests.get(CPU).map_or(0, Amount::milli_value),
        requests.get(MEMORY).map_or(0, Amount::value),
    )
}

/// Whether a resource is one of Kubernetes' own: without a domain, or under `kubernetes.io/`.
pub fn is_native_resource(name: &str) -> bool {
    !name.contains('/') || is_prefixed_native_resource(name)
}

/// Whether a resource is written under `kubernetes.io/`.
pub fn is_prefixed_native_resource(name: &str) -> bool {
    name.contains("kubernetes.io/")
}

/// Whether a resource is one that a vendor or operator added to nodes, e.g. `example.com/gpu`.
pub fn is_extended_resource_name(name: &str) -> bool {
    !is_native_resource(name)
        && !name.starts_with("requests.")
        && crate::labels::validate_label_key(&format!("requests.{name}")).is_ok()
}

/// Whether the scheduler counts a resource beside CPU, memory, ephemeral storage and pods.
pub fn is_scalar_resource_name(name: &str) -> bool {
    is_extended_resource_name(name)
        || name.starts_with(HUGEPAGES_PREFIX)
        || is_prefixed_native_resource(name)
        || name.starts_with(ATTACHABLE_VOLUMES_PREFIX)
}
