//! The Node object: registration and status.
//!
//! Owns: [`generate`] (pure), registering the node, and writing its status when it changed. Upstream:
//! `pkg/kubelet/kubelet_node_status.go`, `pkg/kubelet/nodestatus`, v1.36.

pub mod from_node;
pub mod lease;
pub mod register;
pub mod report;

use std::collections::BTreeMap;
use std::net::IpAddr;

use component_helpers::resources::ResourceList;
use devices::Capacity;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use runtime::api::{ImageStatus, RuntimeHandler};

use crate::cm::machine::MachineInfo;
use crate::kubelet::RuntimeState;

/// Names an image keeps in the status; upstream: `MaxNamesPerImageInNodeStatus`.
const MAX_NAMES_PER_IMAGE: usize = 5;

/// Upstream: the shutdown manager's `ShutdownStatus`.
const SHUTTING_DOWN: &str = "node is shutting down";

/// Everything the status is made from.
pub struct StatusInput<'a> {
    pub machine: &'a MachineInfo,
    pub capacity: &'a ResourceList,
    pub allocatable: &'a ResourceList,
    pub addresses: &'a [IpAddr],
    /// What somebody else set and the kubelet leaves.
    pub set_addresses: Option<Vec<NodeAddress>>,
    /// As the API server has it: extended resources in it are taken over.
    pub old_capacity: Option<&'a ResourceList>,
    /// Of device plugins.
    pub devices: &'a Capacity,
    /// The Node was another machine's: extended resources that nobody here knows are none.
    pub reset_extended: bool,
    pub hostname: &'a str,
    pub kubelet_port: i32,
    pub runtime_name: &'a str,
    pub runtime_version: &'a str,
    pub kubelet_version: &'a str,
    pub runtime_state: &'a RuntimeState,
    /// Why no volume of a driver can be used; `None`: they can.
    pub storage_error: Option<&'a str>,
    /// The machine is about to go down.
    pub shutting_down: bool,
    pub handlers: &'a [RuntimeHandler],
    pub images: &'a [ImageStatus],
    /// `-1`: all.
    pub max_images: i32,
    /// Conditions of pressure that are on.
    pub pressure: &'a [&'static str],
    pub swap_capacity_bytes: u64,
    pub volumes_in_use: &'a [String],
    /// Sorted; empty: the node declares nothing.
    pub declared_features: &'a [String],
    /// The conditions the API server has: times of transition are kept.
    pub old_conditions: &'a [NodeCondition],
    pub now: jiff::Timestamp,
}

fn seconds(t: jiff::Timestamp) -> Time {
    Time(jiff::Timestamp::from_second(t.as_second()).unwrap_or(t))
}

/// The status, the kubelet's own conditions only.
pub fn generate(input: &StatusInput<'_>) -> NodeStatus {
    let own = || from_node::own_addresses(input.addresses, input.hostname);
    let addresses = input.set_addresses.clone().unwrap_or_else(own);
    let mut extended = from_node::extended_resources(input.old_capacity, input.capacity);
    if input.reset_extended {
        let zero = || Quantity("0".to_owned());
        extended.values_mut().for_each(|amount| *amount = zero());
    }
    let with_extended = |own: &ResourceList, devices: &BTreeMap<String, usize>| {
        let mut all = own.clone();
        all.extend(extended.clone());
        let removed = input.devices.removed.iter().map(|name| (name, 0));
        let devices = devices.iter().map(|(name, count)| (name, *count));
        let devices = removed.chain(devices);
        all.extend(devices.map(|(name, count)| (name.clone(), Quantity(count.to_string()))));
        all
    };
    let machine = input.machine;
    NodeStatus {
        addresses: Some(addresses),
        capacity: Some(with_extended(input.capacity, &input.devices.capacity)),
        allocatable: Some(with_extended(input.allocatable, &input.devices.allocatable)),
        conditions: Some(conditions(input)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: input.kubelet_port,
            }),
        }),
        features: Some(NodeFeatures {
            supplemental_groups_policy: Some(true),
        }),
        declared_features: (!input.declared_features.is_empty())
            .then(|| input.declared_features.to_vec()),
        images: Some(images(input)),
        node_info: Some(NodeSystemInfo {
            architecture: machine.architecture.clone(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: format!(
                "{}://{}",
                input.runtime_name, input.runtime_version
            ),
            kernel_version: machine.kernel_version.clone(),
            // Upstream stopped filling it in.
            kube_proxy_version: String::new(),
            kubelet_version: input.kubelet_version.to_owned(),
            machine_id: machine.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: machine.os_image.clone(),
            system_uuid: machine.system_uuid.clone(),
            running_in_user_namespace: Some(machine.in_user_namespace),
            swap: (input.swap_capacity_bytes > 0).then(|| {
                k8s_openapi::api::core::v1::NodeSwapStatus {
                    capacity: i64::try_from(input.swap_capacity_bytes).ok(),
                }
            }),
        }),
        runtime_handlers: Some(handlers(input.handlers)),
        volumes_in_use: (!input.volumes_in_use.is_empty()).then(|| input.volumes_in_use.to_vec()),
        ..NodeStatus::default()
    }
}

fn handlers(list: &[RuntimeHandler]) -> Vec<NodeRuntimeHandler> {
    list.iter()
        .map(|h| NodeRuntimeHandler {
            name: Some(h.name.clone()),
            features: Some(NodeRuntimeHandlerFeatures {
                recursive_read_only_mounts: Some(h.recursive_read_only_mounts),
                user_namespaces: Some(h.user_namespaces),
            }),
        })
        .collect()
}

fn images(input: &StatusInput<'_>) -> Vec<ContainerImage> {
    let mut list: Vec<&ImageStatus> = input.images.iter().collect();
    // Largest first: those are worth scheduling by.
    list.sort_by(|a, b| {
        b.size_bytes
            .cmp(&a.size_bytes)
            .then_with(|| a.id.cmp(&b.id))
    });
    let max = usize::try_from(input.max_images).unwrap_or(usize::MAX);
    list.into_iter()
        .take(max)
        .map(|image| ContainerImage {
            names: Some(
                image
                    .repo_digests
                    .iter()
                    .chain(&image.repo_tags)
                    .take(MAX_NAMES_PER_IMAGE)
                    .cloned()
                    .collect(),
            ),
            size_bytes: i64::try_from(image.size_bytes).ok(),
        })
        .collect()
}

fn conditions(input: &StatusInput<'_>) -> Vec<NodeCondition> {
    let now = seconds(input.now);
    let make = |type_: &str, status: bool, reason: &str, message: String| {
        let status = if status { "True" } else { "False" };
        let before = input.old_conditions.iter().find(|c| c.type_ == type_);
        let since = before
            .filter(|b| b.status == status)
            .and_then(|b| b.last_transition_time.clone());
        NodeCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_heartbeat_time: Some(now.clone()),
            last_transition_time: since.or_else(|| Some(now.clone())),
        }
    };
    let pressure = |type_: &str, on: (&str, &str), off: (&str, &str)| {
        let is_on = input.pressure.contains(&type_);
        let (reason, message) = if is_on { on } else { off };
        make(type_, is_on, reason, message.to_owned())
    };
    let mut list = vec![
        pressure(
            "MemoryPressure",
            (
                "KubeletHasInsufficientMemory",
                "kubelet has insufficient memory available",
            ),
            (
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available",
            ),
        ),
        pressure(
            "DiskPressure",
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        pressure(
            "PIDPressure",
            (
                "KubeletHasInsufficientPID",
                "kubelet has insufficient PID available",
            ),
            (
                "KubeletHasSufficientPID",
                "kubelet has sufficient PID available",
            ),
        ),
    ];
    // Ready comes last: older control planes read it so.
    let mut errors = not_ready(input.runtime_state);
    errors.extend(input.storage_error.map(str::to_owned));
    errors.extend(input.shutting_down.then(|| SHUTTING_DOWN.to_owned()));
    list.push(match errors.len() {
        0 => make(
            "Ready",
            true,
            "KubeletReady",
            "kubelet is posting ready status".to_owned(),
        ),
        1 => make(
            "Ready",
            false,
            "KubeletNotReady",
            errors.into_iter().next().unwrap_or_default(),
        ),
        _ => make(
            "Ready",
            false,
            "KubeletNotReady",
            format!("[{}]", errors.join(", ")),
        ),
    });
    list
}

/// Why the node cannot run pods; empty when it can.
pub fn not_ready(state: &RuntimeState) -> Vec<String> {
    let mut errors = vec![];
    match &state.runtime {
        None => errors.push("container runtime status check may not have completed yet".to_owned()),
        Some(Some((reason, message))) => {
            errors.push(format!(
                "container runtime not ready: RuntimeReady=false reason:{reason} message:{message}"
            ));
        }
        Some(None) => {}
    }
    if let Some(Some((reason, message))) = &state.network {
        errors.push(format!("container runtime network not ready: NetworkReady=false reason:{reason} message:{message}"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(state: RuntimeState, old: &[NodeCondition]) -> NodeCondition {
        let status = status(&state, old, None, None);
        status.conditions.unwrap().pop().unwrap()
    }

    fn status(
        state: &RuntimeState,
        old: &[NodeCondition],
        set_addresses: Option<Vec<NodeAddress>>,
        old_capacity: Option<&ResourceList>,
    ) -> NodeStatus {
        with_devices(
            state,
            old,
            set_addresses,
            old_capacity,
            &Capacity::default(),
            false,
        )
    }

    fn with_devices(
        state: &RuntimeState,
        old: &[NodeCondition],
        set_addresses: Option<Vec<NodeAddress>>,
        old_capacity: Option<&ResourceList>,
        devices: &Capacity,
        reset_extended: bool,
    ) -> NodeStatus {
        let (capacity, machine) = (ResourceList::new(), MachineInfo::default());
        generate(&StatusInput {
            machine: &machine,
            capacity: &capacity,
            allocatable: &capacity,
            addresses: &[[10, 0, 0, 1].into()],
            set_addresses,
            old_capacity,
            devices,
            reset_extended,
            hostname: "n",
            kubelet_port: 10250,
            runtime_name: "youki",
            runtime_version: "1",
            kubelet_version: "v1.37.2",
            runtime_state: state,
            storage_error: None,
            shutting_down: false,
            handlers: &[],
            images: &[],
            max_images: 50,
            pressure: &[],
            swap_capacity_bytes: 0,
            volumes_in_use: &[],
            declared_features: &[],
            old_conditions: old,
            now: jiff::Timestamp::from_second(1000).unwrap(),
        })
    }

    #[test]
    fn what_others_set_is_taken_over() {
        let state = RuntimeState::default();
        let addresses = |set: Option<Vec<NodeAddress>>| -> Vec<String> {
            let status = status(&state, &[], set, None);
            let list = status.addresses.unwrap().into_iter();
            list.map(|a| format!("{} {}", a.type_, a.address)).collect()
        };
        assert_eq!(addresses(None), ["InternalIP 10.0.0.1", "Hostname n"]);
        let of_cloud = NodeAddress {
            type_: "ExternalIP".into(),
            address: "198.51.100.1".into(),
        };
        assert_eq!(addresses(Some(vec![of_cloud])), ["ExternalIP 198.51.100.1"]);
        let capacity: ResourceList =
            serde_json::from_value(serde_json::json!({"example.com/dongle": "3"})).unwrap();
        let status = status(&state, &[], None, Some(&capacity));
        assert_eq!(status.capacity.as_ref(), Some(&capacity));
        assert_eq!(status.allocatable.as_ref(), Some(&capacity));
    }

    #[test]
    fn resources_of_plugins_are_what_they_say() {
        let old: ResourceList = serde_json::from_value(serde_json::json!({
            "example.com/gpu": "8", "example.com/gone": "1", "example.com/dongle": "3",
        }))
        .unwrap();
        let devices = Capacity {
            capacity: [("example.com/gpu".to_owned(), 2)].into(),
            allocatable: [("example.com/gpu".to_owned(), 1)].into(),
            removed: ["example.com/gone".to_owned()].into(),
        };
        let told = |reset: bool| {
            let state = RuntimeState::default();
            let status = with_devices(&state, &[], None, Some(&old), &devices, reset);
            let text = |list: Option<ResourceList>| -> String {
                let list = list.unwrap();
                let texts =
                    ["gpu", "gone", "dongle"].map(|n| list[&format!("example.com/{n}")].0.clone());
                texts.join(" ")
            };
            (text(status.capacity), text(status.allocatable))
        };
        assert_eq!(told(false), ("2 0 3".to_owned(), "1 0 3".to_owned()));
        assert_eq!(told(true), ("2 0 0".to_owned(), "1 0 0".to_owned()));
    }

    #[test]
    fn ready_says_why_not() {
        let broken = Some(("NetworkPluginNotReady".to_owned(), "no podCIDR".to_owned()));
        let got = ready(
            RuntimeState {
                runtime: Some(None),
                network: Some(broken),
            },
            &[],
        );
        assert_eq!(got.status, "False");
        assert_eq!(
            got.message.as_deref(),
            Some(
                "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:no podCIDR"
            )
        );
    }

    #[test]
    fn transitions_keep_their_time() {
        let fine = RuntimeState {
            runtime: Some(None),
            network: Some(None),
        };
        let old = NodeCondition {
            type_: "Ready".into(),
            status: "True".into(),
            last_transition_time: Some(Time(jiff::Timestamp::from_second(5).unwrap())),
            ..Default::default()
        };
        let got = ready(fine, &[old]);
        assert_eq!(got.last_transition_time.unwrap().0.as_second(), 5);
        assert_eq!(got.last_heartbeat_time.unwrap().0.as_second(), 1000);
    }
}
