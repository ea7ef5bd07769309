//! The whole status of a pod, from what is asked, what the runtime shows and what was said before.
//!
//! Owns: [`generate_api_pod_status`], pure. The status is whole as it comes out of here, start time and deadline
//! included: whoever decides by it sees what the API server will be told, but for the times at which conditions changed.
//! Upstream: `generateAPIPodStatus`, `convertStatusToAPIStatus` and
//! the prober's `UpdatePodStatus`, v1.36.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus as ApiPodStatus,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::conditions::{self, KUBELET_CONDITIONS};
use super::containers::{
    ContainerStatusInput, StartFailure, by_name, convert_to_api_container_statuses,
};
use super::phase::get_phase;
use crate::active_deadline;
use crate::cm::resources::ResourceConfig;
use crate::pod::{self, ContainerKind};
use crate::pod_actions::ProbeResult;
use crate::pod_status::PodStatus;
use crate::restart_all;

/// What the prober knows of a container, by container id without scheme.
pub trait ReadinessResults {
    fn readiness(&self, container_id: &str) -> Option<ProbeResult>;
    fn startup(&self, container_id: &str) -> Option<ProbeResult>;
}

/// A phase that some part of the kubelet decided over the containers' heads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForcedFailure {
    pub reason: String,
    pub message: String,
    /// The message of the condition `DisruptionTarget`, whose reason is `TerminationByKubelet`; `None`: no such condition.
    pub disruption: Option<String>,
    /// A pod whose containers all ended well is `Succeeded` all the same.
    pub spares_success: bool,
}

/// Everything the status is made from.
pub struct GenerateInput<'a> {
    pub pod: &'a Pod,
    /// Termination messages are filled in already.
    pub status: &'a PodStatus,
    /// What the status manager wrote last; the API server's at first.
    pub old: &'a ApiPodStatus,
    /// Nothing of the pod will be started again.
    pub pod_is_terminal: bool,
    pub start_failures: &'a HashMap<String, StartFailure>,
    pub probes: &'a dyn ReadinessResults,
    /// The node's addresses, primary first.
    pub host_ips: &'a [String],
    pub qos_class: &'a str,
    pub supports_rro: bool,
    /// Gate `ContainerStopSignals`.
    pub stop_signals: bool,
    pub forced_failure: Option<&'a ForcedFailure>,
    /// Does the runtime enforce what the pod was granted?
    pub actuated: &'a (dyn Fn(&Container, &runtime::api::ContainerStatus) -> bool + Sync),
    /// `PodResizePending` and `PodResizeInProgress`, as far as they hold.
    pub resize_conditions: Vec<PodCondition>,
    /// What the pod's cgroup is to be set to, and whether it is.
    pub pod_config: &'a ResourceConfig,
    pub pod_actuated: bool,
    pub now: Timestamp,
}

/// When the kubelet first said anything of the pod: once set, it stays.
pub fn start_time(old: &ApiPodStatus, now: Timestamp) -> Time {
    old.start_time.clone().unwrap_or_else(|| {
        // metav1.Time has a resolution of one second.
        Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
    })
}

pub fn generate_api_pod_status(input: &GenerateInput<'_>) -> ApiPodStatus {
    let pod = input.pod;
    let mut status = ApiPodStatus {
        qos_class: Some(input.qos_class.to_owned()),
        observed_generation: pod.metadata.generation,
        start_time: Some(start_time(input.old, input.now)),
        ..ApiPodStatus::default()
    };
    addresses(input, &mut status);

    let of = ContainerStatusInput {
        pod,
        status: input.status,
        start_failures: input.start_failures,
        restarting: restart_all::should_restart(pod, Some(input.status), input.old),
        supports_rro: input.supports_rro,
        stop_signals: input.stop_signals,
        actuated: input.actuated,
    };
    let ephemeral: Vec<Container> = pod::ephemeral_containers(pod)
        .iter()
        .map(pod::ephemeral_as_container)
        .collect();
    let convert = |specs: &[Container], old: &Option<Vec<ContainerStatus>>, kind| {
        convert_to_api_container_statuses(&of, specs, old.as_deref().unwrap_or_default(), kind)
    };
    let mut regular = convert(
        pod::containers(pod),
        &input.old.container_statuses,
        ContainerKind::Regular,
    );
    let mut init = convert(
        pod::init_containers(pod),
        &input.old.init_container_statuses,
        ContainerKind::Init,
    );
    let ephemeral = convert(
        &ephemeral,
        &input.old.ephemeral_container_statuses,
        ContainerKind::Ephemeral,
    );
    apply_probes(input, &mut regular, &mut init);

    let all: Vec<ContainerStatus> = regular.iter().chain(&init).cloned().collect();
    let initialized = input.status.has_any_active_regular_container_started(pod);
    let phase = decide_phase(
        input,
        get_phase(pod, &all, input.pod_is_terminal, initialized),
        &mut status,
    );

    status.conditions = Some(all_conditions(input, &all, &phase));
    (status.resources, status.allocated_resources) = crate::resize::pod_level_status(
        pod,
        input.pod_config,
        input.pod_actuated,
        &phase,
        input.old,
    );
    status.phase = Some(phase);
    status.container_statuses = Some(regular);
    status.init_container_statuses = (!init.is_empty()).then_some(init);
    status.ephemeral_container_statuses = (!ephemeral.is_empty()).then_some(ephemeral);
    keep_what_others_wrote(pod, &mut status);
    status
}

/// Fields of the status that the scheduler, admission or a claim controller wrote.
fn keep_what_others_wrote(pod: &Pod, status: &mut ApiPodStatus) {
    if let Some(api) = &pod.status {
        status.nominated_node_name = api.nominated_node_name.clone();
        status.resource_claim_statuses = api.resource_claim_statuses.clone();
        status.extended_resource_claim_status = api.extended_resource_claim_status.clone();
        status.node_allocatable_resource_claim_statuses =
            api.node_allocatable_resource_claim_statuses.clone();
    }
}

fn addresses(input: &GenerateInput<'_>, status: &mut ApiPodStatus) {
    let mut ips: Vec<String> = input.status.ips().to_vec();
    if let Some(host_ip) = input.host_ips.first() {
        status.host_ip = Some(host_ip.clone());
        status.host_ips = Some(
            input
                .host_ips
                .iter()
                .map(|ip| HostIP { ip: ip.clone() })
                .collect(),
        );
        if pod::is_host_network(input.pod) {
            ips = input.host_ips.to_vec();
        }
        // The primary family is the node's.
        let v6 = host_ip.contains(':');
        ips.sort_by_key(|ip| ip.contains(':') != v6);
    }
    if ips.is_empty() {
        // An ended pod keeps the addresses it had.
        let old = input.old.pod_ips.iter().flatten().map(|p| p.ip.clone());
        if input.pod_is_terminal
            || pod::is_terminal_phase(input.old.phase.as_deref().unwrap_or_default())
        {
            ips = old.collect();
        }
    }
    if let Some(first) = ips.first() {
        status.pod_ip = Some(first.clone());
        status.pod_ips = Some(ips.into_iter().map(|ip| PodIP { ip }).collect());
    }
}

fn apply_probes(
    input: &GenerateInput<'_>,
    regular: &mut [ContainerStatus],
    init: &mut [ContainerStatus],
) {
    let specs = by_name(pod::containers(input.pod));
    for status in regular.iter_mut() {
        let spec = specs.get(status.name.as_str()).copied();
        let old = pod::container_status(
            input.old.container_statuses.as_deref().unwrap_or_default(),
            &status.name,
        );
        let started = is_started(input, spec, status, old);
        status.started = Some(started);
        status.ready = started && is_ready(input, spec, status, old);
    }
    let specs = by_name(pod::init_containers(input.pod));
    for status in init.iter_mut() {
        let spec = specs.get(status.name.as_str()).copied();
        let old = pod::container_status(
            input
                .old
                .init_container_statuses
                .as_deref()
                .unwrap_or_default(),
            &status.name,
        );
        let started = is_started(input, spec, status, old);
        status.started = Some(started);
        if spec.is_some_and(pod::is_restartable_init) {
            status.ready = started && is_ready(input, spec, status, old);
        } else {
            status.ready = status
                .state
                .as_ref()
                .and_then(|s| s.terminated.as_ref())
                .is_some_and(|t| t.exit_code == 0);
        }
    }
}

fn is_running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.running.is_some())
}

fn bare_id(status: &ContainerStatus) -> &str {
    let id = status.container_id.as_deref().unwrap_or_default();
    id.split_once("://").map_or(id, |(_, id)| id)
}

fn same_container(status: &ContainerStatus, old: Option<&ContainerStatus>) -> bool {
    old.is_some_and(|o| o.container_id.is_some() && o.container_id == status.container_id)
}

fn is_started(
    input: &GenerateInput<'_>,
    spec: Option<&Container>,
    status: &ContainerStatus,
    old: Option<&ContainerStatus>,
) -> bool {
    if !is_running(status) {
        return false;
    }
    if spec.is_none_or(|c| c.startup_probe.is_none()) {
        return true;
    }
    match input.probes.startup(bare_id(status)) {
        Some(result) => result == ProbeResult::Success,
        // A restarted kubelet has not probed yet: what was said holds on.
        None => same_container(status, old) && old.is_some_and(|o| o.started == Some(true)),
    }
}

fn is_ready(
    input: &GenerateInput<'_>,
    spec: Option<&Container>,
    status: &ContainerStatus,
    old: Option<&ContainerStatus>,
) -> bool {
    if !is_running(status) {
        return false;
    }
    if spec.is_none_or(|c| c.readiness_probe.is_none()) {
        return true;
    }
    match input.probes.readiness(bare_id(status)) {
        Some(result) => result == ProbeResult::Success,
        None => same_container(status, old) && old.is_some_and(|o| o.ready),
    }
}

fn decide_phase(input: &GenerateInput<'_>, computed: &str, status: &mut ApiPodStatus) -> String {
    let mut phase = computed.to_owned();
    let old_phase = input.old.phase.as_deref().unwrap_or_default();
    let api = input.pod.status.as_ref();
    let api_phase = pod::phase(input.pod);
    if !pod::is_terminal_phase(&phase) {
        if pod::is_terminal_phase(old_phase) {
            phase = old_phase.to_owned();
        } else if pod::is_terminal_phase(api_phase) {
            phase = api_phase.to_owned();
        }
    }
    if phase == old_phase {
        status.reason = input
            .old
            .reason
            .clone()
            .or_else(|| api.and_then(|s| s.reason.clone()));
        status.message = input
            .old
            .message
            .clone()
            .or_else(|| api.and_then(|s| s.message.clone()));
    }
    let start = status.start_time.as_ref().map(|t| t.0);
    let deadline = active_deadline::exceeded(input.pod, input.old, start, input.now);
    let deadline = deadline.then(|| ForcedFailure {
        reason: active_deadline::REASON.to_owned(),
        message: active_deadline::MESSAGE.to_owned(),
        disruption: None,
        spares_success: false,
    });
    if let Some(forced) = input.forced_failure.or(deadline.as_ref()) {
        if !forced.spares_success || phase != "Succeeded" {
            phase = "Failed".to_owned();
        }
        status.reason = Some(forced.reason.clone());
        status.message = Some(forced.message.clone());
    }
    // What the API server calls ended stays ended.
    if pod::is_terminal_phase(api_phase) && phase != api_phase {
        phase = api_phase.to_owned();
    }
    phase
}

fn all_conditions(
    input: &GenerateInput<'_>,
    all: &[ContainerStatus],
    phase: &str,
) -> Vec<PodCondition> {
    let pod = input.pod;
    let mut list: Vec<PodCondition> = pod
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .filter(|c| !KUBELET_CONDITIONS.contains(&c.type_.as_str()))
        .cloned()
        .collect();
    let disruption = input
        .forced_failure
        .and_then(|f| f.disruption.clone())
        .map(|message| {
            conditions::condition(
                pod,
                "DisruptionTarget",
                true,
                Some("TerminationByKubelet"),
                Some(message),
            )
        })
        .or_else(|| {
            input
                .old
                .conditions
                .iter()
                .flatten()
                .find(|c| c.type_ == "DisruptionTarget")
                .cloned()
        });
    if let Some(disruption) = disruption {
        list.retain(|c| c.type_ != "DisruptionTarget");
        list.push(disruption);
    }
    list.extend(input.resize_conditions.iter().cloned());
    let sandbox = input.status.pod_sandbox_changed(pod);
    list.push(conditions::ready_to_start_containers(pod, sandbox.why));
    list.push(conditions::initialized(pod, all, phase, input.old));
    let ready = conditions::ready(pod, &list, all, phase);
    list.push(ready);
    list.push(conditions::containers_ready(pod, all, phase));
    list.push(conditions::condition(pod, "PodScheduled", true, None, None));
    list.extend(restart_all::condition(pod, input.status, input.old, phase));
    list
}
