//! In-place resize: what differs, what may be done about it, and what is told of it.
//!
//! Owns: the comparison of what a pod was granted with what the kernel enforces, the check before a memory limit is
//! lowered, the texts of the events, the resources a status shows; pure. What was granted is [`allocation`]'s. Upstream:
//! `pkg/kubelet/allocation`, `doPodResizeAction` in `pkg/kubelet/kuberuntime`, `pkg/kubelet/events/resize.go`, v1.36.
//!
//! ```text
//! spec changes -> Pending (Deferred | Infeasible) -> granted: ResizeStarted -> InProgress -> the kernel has it: ResizeCompleted
//! ```

pub mod allocation;
mod checkpoint;
#[cfg(test)]
mod tests;

use component_helpers::quantity::{Amount, amount};
use component_helpers::resources::{PodResourcesOptions, pod_limits, pod_requests, quantities};
use k8s_openapi::api::core::v1::{
    Container, ContainerStatus, Pod, PodCondition, PodStatus, ResourceRequirements,
};
use runtime::api as cri;
use serde::Serialize;

pub use allocation::{AllocationManager, Change, Counts, Pending, Pinned, Progress};

use crate::cm::resources::{MIN_SHARES, ResourceConfig};
use crate::pod;

/// What of a container's resources differs from what the kernel was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    pub cpu: bool,
    pub memory: bool,
}

impl Difference {
    pub fn any(self) -> bool {
        self.cpu || self.memory
    }

    /// Does the container's policy want a restart for it?
    pub fn needs_restart(self, container: &Container) -> bool {
        container.resize_policy.iter().flatten().any(|p| {
            p.restart_policy == "RestartContainer"
                && ((p.resource_name == "cpu" && self.cpu)
                    || (p.resource_name == "memory" && self.memory))
        })
    }
}

/// The requests and limits whose change restarts the container; `None`: none does.
///
/// A container carries them from its start: requests of memory are nowhere in the kernel, and small shares of CPU are all one.
pub fn restarting_resources(container: &Container) -> Option<String> {
    let mut out = String::new();
    for policy in container.resize_policy.iter().flatten() {
        let name = policy.resource_name.as_str();
        if policy.restart_policy != "RestartContainer" {
            continue;
        }
        let resources = container.resources.as_ref();
        for (kind, list) in [
            ("requests", resources.and_then(|r| r.requests.as_ref())),
            ("limits", resources.and_then(|r| r.limits.as_ref())),
        ] {
            let amount = list
                .and_then(|list| list.get(name))
                .map_or(Amount::ZERO, amount);
            out.push_str(&format!("{kind}.{name}={}n ", amount.nano_value()));
        }
    }
    (!out.is_empty()).then(|| out.trim_end().to_owned())
}

/// Did the container begin with others than it has now of the resources whose change restarts it?
pub fn began_with_others(container: &Container, annotations: &cri::Annotations) -> bool {
    let began = annotations.get(pod::label::CONTAINER_RESTARTING_RESOURCES);
    began.is_some_and(|began| restarting_resources(container).is_some_and(|now| now != *began))
}

/// Compares the two, nothing and zero being the same.
pub fn difference(wanted: &cri::Resources, actual: &cri::Resources) -> Difference {
    let quota = |r: &cri::Resources| r.cpu_quota_us.filter(|q| *q > 0).unwrap_or(0);
    let shares = |r: &cri::Resources| r.cpu_shares.unwrap_or(0).max(2);
    let memory = |r: &cri::Resources| r.memory_limit_bytes.filter(|b| *b > 0).unwrap_or(0);
    Difference {
        cpu: shares(wanted) != shares(actual) || quota(wanted) != quota(actual),
        memory: memory(wanted) != memory(actual),
    }
}

/// What the runtime must be told: a limit that went away is lifted.
pub fn update_for(wanted: &cri::Resources, actual: &cri::Resources) -> cri::Resources {
    let mut out = wanted.clone();
    if out.cpu_quota_us.is_none() && actual.cpu_quota_us.is_some_and(|q| q > 0) {
        out.cpu_quota_us = Some(-1);
    }
    if out.memory_limit_bytes.is_none() && actual.memory_limit_bytes.is_some_and(|b| b > 0) {
        out.memory_limit_bytes = Some(-1);
        out.memory_swap_limit_bytes = Some(-1);
    }
    out
}

/// `PodResizePending` and `PodResizeInProgress`, as far as they hold.
pub fn conditions(pending: Option<&Pending>, progress: Option<&Progress>) -> Vec<PodCondition> {
    let make =
        |type_: &str, reason: Option<&str>, message: Option<&str>, generation| PodCondition {
            type_: type_.to_owned(),
            status: "True".to_owned(),
            reason: reason.map(str::to_owned),
            message: message.map(str::to_owned),
            observed_generation: generation,
            ..PodCondition::default()
        };
    let mut out = vec![];
    if let Some(p) = pending {
        let (reason, message) = (Some(p.reason.as_str()), Some(p.message.as_str()));
        out.push(make("PodResizePending", reason, message, p.generation));
    }
    if let Some(p) = progress {
        let error = p.error.as_deref();
        let reason = error.map(|_| "Error");
        out.push(make("PodResizeInProgress", reason, error, p.generation));
    }
    out
}

#[derive(Serialize)]
struct ContainerAllocation<'a> {
    name: &'a str,
    resources: Resources<'a>,
}

/// In the order in which upstream writes it.
#[derive(Serialize)]
struct Resources<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<&'a component_helpers::resources::ResourceList>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requests: Option<&'a component_helpers::resources::ResourceList>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    init_containers: Vec<ContainerAllocation<'a>>,
    containers: Vec<ContainerAllocation<'a>>,
    generation: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
}

/// The text of an event about a resize: `what` ("Pod resize started"), then what the pod asks for, as JSON.
pub fn event_message(what: &str, pod: &Pod, generation: Option<i64>, error: &str) -> String {
    fn all(list: &[Container]) -> Vec<ContainerAllocation<'_>> {
        list.iter()
            .map(|c| {
                let resources = c.resources.as_ref();
                ContainerAllocation {
                    name: &c.name,
                    resources: Resources {
                        limits: resources.and_then(|r| r.limits.as_ref()),
                        requests: resources.and_then(|r| r.requests.as_ref()),
                    },
                }
            })
            .collect()
    }
    let summary = Summary {
        init_containers: all(pod::init_containers(pod)),
        containers: all(pod::containers(pod)),
        generation: generation.unwrap_or(0),
        error,
    };
    match serde_json::to_string(&summary) {
        Ok(text) => format!("{what}: {text}"),
        Err(_) => what.to_owned(),
    }
}

/// A memory limit that is to change, and what is used now; all in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    pub desired: i64,
    /// `None`: there is no limit now.
    pub current: Option<i64>,
    /// `None`: nobody knows.
    pub usage: Option<u64>,
}

impl MemoryLimit {
    /// Does the limit go down, or is there one where there was none?
    pub fn decreases(self) -> bool {
        self.desired > 0 && self.current.is_none_or(|c| c <= 0 || self.desired < c)
    }
}

/// No limit is set below what is in use: the kernel would kill for it.
///
/// # Errors
/// Which limits cannot be lowered now, in upstream's words; a retry helps when less is used.
pub fn check_memory_decrease(
    pod: Option<MemoryLimit>,
    containers: &[(String, MemoryLimit)],
) -> Result<(), String> {
    let mut errors = vec![];
    if let Some(limit) = pod.filter(|l| l.decreases()) {
        match limit.usage {
            None => errors.push("missing pod memory usage".to_owned()),
            Some(usage) if i64::try_from(usage).unwrap_or(i64::MAX) >= limit.desired => {
                errors.push(format!(
                    "attempting to set pod memory limit ({}) below current usage ({usage})",
                    limit.desired
                ));
            }
            Some(_) => {}
        }
    }
    for (name, limit) in containers.iter().filter(|(_, l)| l.decreases()) {
        match limit.usage {
            None => errors.push(format!("missing container {name:?} memory usage")),
            Some(usage) if i64::try_from(usage).unwrap_or(i64::MAX) >= limit.desired => {
                errors.push(format!(
                    "attempting to set container {name:?} memory limit ({}) below current usage ({usage})",
                    limit.desired
                ));
            }
            Some(_) => {}
        }
    }
    match errors.len() {
        0 => Ok(()),
        1 => Err(format!("cannot decrease memory limits: {}", errors[0])),
        _ => Err(format!(
            "cannot decrease memory limits: [{}]",
            errors.join(", ")
        )),
    }
}

/// The container's resources as they really are: the spec's once the kernel has them, until then those shown before.
pub fn shown_resources(
    spec: &Container,
    actuated: bool,
    old: Option<&ContainerStatus>,
) -> Option<ResourceRequirements> {
    if actuated {
        return spec.resources.clone();
    }
    old.and_then(|o| o.resources.clone())
        .or_else(|| spec.resources.clone())
}

/// The pod's resources as a whole, as they really are: `(resources, allocatedResources)` of its status.
///
/// `granted`: the pod with what it was granted; `config`: what its cgroup is to be set to, and whether it is;
/// `phase`: the one now told. Upstream: `convertToAPIPodLevelResourcesStatus`.
pub fn pod_level_status(
    granted: &Pod,
    config: &ResourceConfig,
    actuated: bool,
    phase: &str,
    old: &PodStatus,
) -> (
    Option<ResourceRequirements>,
    Option<component_helpers::resources::ResourceList>,
) {
    let options = PodResourcesOptions::default();
    let requests = pod_requests(granted, &options);
    let some =
        |list: component_helpers::resources::ResourceList| (!list.is_empty()).then_some(list);
    let allocated = some(quantities(&requests));
    if phase == "Running" && !actuated && old.resources.is_some() {
        return (old.resources.clone(), allocated);
    }
    let spec = granted.spec.as_ref().and_then(|s| s.resources.as_ref());
    let mut shown = spec.cloned().unwrap_or_default();
    if phase == "Running" {
        // What the pod's cgroup holds; memory requests are in no cgroup.
        let own = shown.requests.get_or_insert_default();
        let cpu = requests.get("cpu").copied().unwrap_or(Amount::ZERO);
        if config.cpu_shares.is_some_and(|s| s > MIN_SHARES) {
            own.insert("cpu".to_owned(), cpu.into());
        }
        if let Some(memory) = requests.get("memory") {
            own.entry("memory".to_owned()).or_insert((*memory).into());
        }
        let limits = pod_limits(granted, &options);
        let own = shown.limits.get_or_insert_default();
        if config.cpu_quota.is_some_and(|q| q > 0)
            && let Some(cpu) = limits.get("cpu")
        {
            own.insert("cpu".to_owned(), (*cpu).into());
        }
        if config.memory_bytes.is_some_and(|b| b > 0)
            && let Some(memory) = limits.get("memory")
        {
            own.insert("memory".to_owned(), (*memory).into());
        }
    } else {
        shown.requests = Some(quantities(&requests));
        shown.limits = Some(quantities(&pod_limits(granted, &options)));
    }
    shown.requests = shown.requests.and_then(some);
    shown.limits = shown.limits.and_then(some);
    let empty = shown == ResourceRequirements::default();
    ((!empty).then_some(shown), allocated)
}
