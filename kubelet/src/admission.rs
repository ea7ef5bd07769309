//! May the pod run here? Asked once, before anything of it is started.
//!
//! Owns: [`decide`], pure: operating system, resources, ports, affinity, taints, sysctls. Upstream:
//! `pkg/kubelet/lifecycle/predicate.go`, `pkg/kubelet/sysctl`, v1.36.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use component_helpers::affinity::RequiredNodeAffinity;
use component_helpers::quantity::{Amount, amount};
use component_helpers::resources::{
    PodResourcesOptions, ResourceList, is_extended_resource_name, is_native_resource, pod_requests,
};
use component_helpers::taints::{NO_EXECUTE, NO_SCHEDULE, find_matching_untolerated_taint, keys};
use k8s_openapi::api::core::v1::{ContainerPort, Node, Pod, Taint};

use crate::pod;

/// Why not: `status.reason`, and what follows "Pod was rejected: ".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub reason: String,
    pub message: String,
}

impl Rejection {
    /// The node takes no more of a driver's volumes; upstream: `VolumeAttachmentLimitExceededReason`.
    pub fn attachment_limit(message: String) -> Self {
        reject("VolumeAttachmentLimitExceeded", message)
    }
}

fn reject(reason: impl Into<String>, message: impl Into<String>) -> Rejection {
    Rejection {
        reason: reason.into(),
        message: message.into(),
    }
}

fn predicate(name: &str, why: &str) -> Rejection {
    reject(name, format!("Predicate {name} failed: {why}"))
}

/// A resource of which the node has not enough left. CPU in thousandths, everything else in whole units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    pub resource: String,
    pub requested: i64,
    pub used: i64,
    pub capacity: i64,
}

impl Shortage {
    /// How much would have to be freed.
    pub fn missing(&self) -> i64 {
        self.requested
            .saturating_sub(self.capacity.saturating_sub(self.used))
    }

    fn rejection(&self) -> Rejection {
        reject(
            format!("OutOf{}", self.resource),
            format!(
                "Node didn't have enough resource: {}, requested: {}, used: {}, capacity: {}",
                self.resource, self.requested, self.used, self.capacity
            ),
        )
    }
}

/// What the decision looks at, besides the pod.
pub struct AdmissionInput<'a> {
    pub node: &'a Node,
    pub allocatable: &'a ResourceList,
    /// Every other pod that counts: admitted and not ended.
    pub active: &'a [Arc<Pod>],
    pub allowed_unsafe_sysctls: &'a [String],
    /// The kernel enforces AppArmor profiles.
    pub apparmor: bool,
    /// The node has little memory left.
    pub memory_pressure: bool,
    pub disk_pressure: bool,
    /// What the node says it can do.
    pub declared_features: &'a [String],
    pub pid_pressure: bool,
    /// What device plugins give out: who gives them to the pod counts them himself.
    pub is_of_plugin: &'a (dyn Fn(&str) -> bool + Sync),
}

/// What becomes of a pod that is new to this kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Admit,
    Reject(Rejection),
    /// A critical pod, for which others have to go.
    Preempt(Vec<Shortage>),
    /// Nothing can be said before the Node was read.
    Wait,
}

/// Nothing is held against a pod that a Node which was not read does not have.
///
/// A static pod that the node as it registers would take runs at once, with or without an API server. Pods of the API server
/// wait (as upstream's, whose source begins once the Node's cache is filled).
///
/// DIFFERS: upstream rejects a static pod that wants a label the API server's Node has and the registration has not.
pub fn decide(pod: &Pod, input: &AdmissionInput<'_>, node_is_read: bool) -> Verdict {
    if !node_is_read && !crate::pod::is_static(pod) {
        return Verdict::Wait;
    }
    match check(pod, input) {
        Ok(shortages) if shortages.is_empty() => Verdict::Admit,
        Ok(shortages) => Verdict::Preempt(shortages),
        Err(_) if !node_is_read => Verdict::Wait,
        Err(rejection) => Verdict::Reject(rejection),
    }
}

/// The first rule the pod breaks, or what a critical pod lacks: want of room is no reason to reject that.
fn check(pod: &Pod, input: &AdmissionInput<'_>) -> Result<Vec<Shortage>, Rejection> {
    under_pressure(pod, input)?;
    sysctls(pod, input.allowed_unsafe_sysctls)?;
    operating_system(pod)?;
    declared_features(pod, input.declared_features)?;
    let shortages = shortages(pod, input);
    if let Some(first) = shortages.first().filter(|_| !pod::is_critical(pod)) {
        return Err(first.rejection());
    }
    general_predicates(pod, input)?;
    apparmor(pod, input.apparmor)?;
    Ok(shortages)
}

/// Upstream: `NewAppArmorAdmitHandler`. A pod that runs already is not asked again.
fn apparmor(pod: &Pod, enabled: bool) -> Result<(), Rejection> {
    if !matches!(pod::phase(pod), "" | "Pending") {
        return Ok(());
    }
    crate::security_context::apparmor::validate(pod, enabled)
        .map_err(|why| reject("AppArmor", format!("Cannot enforce AppArmor: {why}")))
}

/// Upstream: the eviction manager's `Admit`.
fn under_pressure(pod: &Pod, input: &AdmissionInput<'_>) -> Result<(), Rejection> {
    let conditions: Vec<&str> = [
        (input.memory_pressure, "MemoryPressure"),
        (input.disk_pressure, "DiskPressure"),
        (input.pid_pressure, "PIDPressure"),
    ]
    .into_iter()
    .filter_map(|(on, name)| on.then_some(name))
    .collect();
    if conditions.is_empty() || pod::is_critical(pod) {
        return Ok(());
    }
    if conditions == ["MemoryPressure"] {
        use component_helpers::qos::{QosClass, get_pod_qos};
        let taint = Taint {
            key: keys::MEMORY_PRESSURE.to_owned(),
            effect: NO_SCHEDULE.to_owned(),
            ..Taint::default()
        };
        let tolerations = pod
            .spec
            .as_ref()
            .and_then(|s| s.tolerations.as_deref())
            .unwrap_or_default();
        let tolerates =
            find_matching_untolerated_taint(&[taint], tolerations, |_| true, true).is_none();
        if get_pod_qos(pod) != QosClass::BestEffort || tolerates {
            return Ok(());
        }
    }
    let list = format!("[{}]", conditions.join(" "));
    Err(reject(
        "Evicted",
        format!("The node had condition: {list}. "),
    ))
}

fn operating_system(pod: &Pod) -> Result<(), Rejection> {
    if pod
        .metadata
        .labels
        .as_ref()
        .and_then(|l| l.get("kubernetes.io/os"))
        .is_some_and(|os| os != "linux")
    {
        return Err(reject(
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        ));
    }
    if pod
        .spec
        .as_ref()
        .and_then(|s| s.os.as_ref())
        .is_some_and(|os| os.name != "linux")
    {
        return Err(reject(
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        ));
    }
    Ok(())
}

/// Upstream: `declaredFeaturesAdmitHandler`.
fn declared_features(pod: &Pod, declared: &[String]) -> Result<(), Rejection> {
    let missing = crate::features::missing(pod, declared);
    if missing.is_empty() {
        return Ok(());
    }
    Err(reject(
        "PodFeatureUnsupported",
        format!(
            "Pod requires node features that are not available: {}",
            missing.join(", ")
        ),
    ))
}

/// Sysctls that belong to a namespace and cannot hurt another pod. Upstream: `safeSysctls`; a kernel that has `openat2` has all of
/// them in namespaces.
const SAFE_SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_notsent_lowat",
];

/// The namespace a sysctl belongs to; `None`: the whole machine.
fn sysctl_namespace(name: &str) -> Option<&'static str> {
    if name == "kernel.sem"
        || ["kernel.shm", "kernel.msg", "fs.mqueue."]
            .iter()
            .any(|p| name.starts_with(p))
    {
        Some("ipc")
    } else if name.starts_with("net.") {
        Some("net")
    } else {
        None
    }
}

fn sysctls(pod: &Pod, allowed: &[String]) -> Result<(), Rejection> {
    let spec = pod.spec.as_ref();
    let list = spec
        .and_then(|s| s.security_context.as_ref())
        .and_then(|c| c.sysctls.as_deref())
        .unwrap_or_default();
    for sysctl in list {
        let name = sysctl.name.replace('/', ".");
        let forbidden = |why: &str| {
            Err(reject(
                "SysctlForbidden",
                format!("forbidden sysctl: {name:?} {why}"),
            ))
        };
        let allowlisted = SAFE_SYSCTLS.contains(&name.as_str())
            || allowed
                .iter()
                .map(|p| p.replace('/', "."))
                .any(|p| match p.strip_suffix('*') {
                    Some(prefix) => name.starts_with(prefix),
                    None => p == name,
                });
        if !allowlisted {
            return forbidden("not allowlisted");
        }
        match sysctl_namespace(&name) {
            Some("ipc") if spec.and_then(|s| s.host_ipc).unwrap_or(false) => {
                return forbidden("not allowed with host ipc enabled");
            }
            Some("net") if pod::is_host_network(pod) => {
                return forbidden("not allowed with host net enabled");
            }
            _ => {}
        }
    }
    Ok(())
}

/// In the units of a [`Shortage`].
pub fn number(resource: &str, amount: Amount) -> i64 {
    match resource {
        "cpu" => amount.milli_value(),
        _ => amount.value(),
    }
}

/// Of what the pod asks for beyond what is left.
fn shortages(pod: &Pod, input: &AdmissionInput<'_>) -> Vec<Shortage> {
    let options = PodResourcesOptions::default();
    let of_node = input.node.status.as_ref();
    let of_node = of_node.and_then(|status| status.allocatable.as_ref());
    // Extended resources are what the Node says.
    let offered = |name: &str| {
        let extended = || of_node.filter(|_| is_extended_resource_name(name));
        let own = input.allocatable.get(name);
        own.or_else(|| extended().and_then(|list| list.get(name)))
    };
    let capacity = |name: &str| offered(name).map_or(Amount::ZERO, amount);
    let mut all = Vec::new();
    let mut look = |resource: &str, requested: i64, used: i64| {
        let capacity = number(resource, capacity(resource));
        // A pod may ask for all that a number holds: their sum is not taken.
        if requested > capacity.saturating_sub(used) {
            all.push(Shortage {
                resource: resource.to_owned(),
                requested,
                used,
                capacity,
            });
        }
    };
    look(
        "pods",
        1,
        i64::try_from(input.active.len()).unwrap_or(i64::MAX - 1),
    );
    let wanted = pod_requests(pod, &options);
    let mut used: BTreeMap<String, Amount> = BTreeMap::new();
    if wanted.values().any(|a| !a.is_zero()) {
        for other in input.active {
            component_helpers::resources::add(&mut used, &pod_requests(other, &options));
        }
    }
    for (name, request) in wanted.iter().filter(|(_, a)| !a.is_zero()) {
        if !is_native_resource(name) && !name.starts_with("hugepages-") && offered(name).is_none() {
            // A resource of the cluster, not of the node.
            continue;
        }
        if is_extended_resource_name(name) && (input.is_of_plugin)(name) {
            continue;
        }
        let used = used.get(name).copied().unwrap_or(Amount::ZERO);
        look(name, number(name, *request), number(name, used));
    }
    all
}

fn host_ports(pod: &Pod) -> impl Iterator<Item = &ContainerPort> {
    let sidecars = pod::init_containers(pod)
        .iter()
        .filter(|c| pod::is_restartable_init(c));
    sidecars
        .chain(pod::containers(pod))
        .flat_map(|c| c.ports.iter().flatten())
        .filter(|p| p.host_port.unwrap_or(0) > 0)
}

/// Ports of the node that pods have: by number and protocol, the addresses. `""` stands for all of them.
///
/// A pod may have ten thousands: the loop that decides looks each up and compares none with all others.
#[derive(Default)]
struct HostPorts<'a>(HashMap<(i32, &'a str), HashSet<&'a str>>);

impl<'a> HostPorts<'a> {
    fn key(port: &'a ContainerPort) -> ((i32, &'a str), &'a str) {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let address = match port.host_ip.as_deref().unwrap_or_default() {
            "0.0.0.0" | "::" => "",
            address => address,
        };
        ((port.host_port.unwrap_or(0), protocol), address)
    }

    fn add(&mut self, port: &'a ContainerPort) {
        let (key, address) = Self::key(port);
        self.0.entry(key).or_default().insert(address);
    }

    fn conflicts(&self, port: &'a ContainerPort) -> bool {
        let (key, address) = Self::key(port);
        let taken = self.0.get(&key);
        taken.is_some_and(|all| address.is_empty() || all.contains("") || all.contains(address))
    }
}

fn general_predicates(pod: &Pod, input: &AdmissionInput<'_>) -> Result<(), Rejection> {
    if !RequiredNodeAffinity::new(pod).matches(input.node) {
        return Err(predicate(
            "NodeAffinity",
            "node(s) didn't match Pod's node affinity/selector",
        ));
    }
    let wanted_node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
    if wanted_node.is_some_and(|n| !n.is_empty() && Some(n) != input.node.metadata.name.as_deref())
    {
        return Err(predicate(
            "NodeName",
            "node(s) didn't match the requested node name",
        ));
    }
    let mut taken = HostPorts::default();
    for port in input.active.iter().flat_map(|pod| host_ports(pod)) {
        taken.add(port);
    }
    if host_ports(pod).any(|port| taken.conflicts(port)) {
        return Err(predicate(
            "NodePorts",
            "node(s) didn't have free ports for the requested pod ports",
        ));
    }
    if !pod::is_static(pod) {
        let taints = input
            .node
            .spec
            .as_ref()
            .and_then(|s| s.taints.as_deref())
            .unwrap_or_default();
        let tolerations = pod
            .spec
            .as_ref()
            .and_then(|s| s.tolerations.as_deref())
            .unwrap_or_default();
        if find_matching_untolerated_taint(taints, tolerations, |t| t.effect == NO_EXECUTE, true)
            .is_some()
        {
            return Err(predicate(
                "TaintToleration",
                "node(s) had taints that the pod didn't tolerate",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
