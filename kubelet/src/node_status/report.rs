//! Tells the API server how the node is.
//!
//! Owns: when the status is written: at once when readiness changes, soon when anything else does, and now and then when
//! nothing did. Upstream: `syncNodeStatus`, `fastStatusUpdateOnce`, v1.36.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use component_helpers::resources::is_extended_resource_name;
use devices::Capacity;
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use kube::api::{Api, Patch, PatchParams};
use runtime::api::Runtime;
use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::from_node::{host_ips, is_of_another_machine, set_addresses};
use super::register::Registration;
use super::{StatusInput, generate, not_ready};
use crate::configuration::KubeletConfiguration;
use crate::events::{KubeletRecorder, Type, reason};
use crate::kubelet::Kubelet;

/// How often the runtime is asked how it is; upstream: `updateRuntimeUp`, every 5 s.
const RUNTIME_CHECK_PERIOD: Duration = Duration::from_secs(5);
/// While the runtime is not ready: soon.
const RUNTIME_CHECK_FAST: Duration = Duration::from_millis(500);

/// Between two rounds that device plugins cause: they may have other devices as often as they like. Upstream has no such rounds.
const DEVICES_PERIOD: Duration = Duration::from_secs(1);

/// Writes the node's status.
pub struct Reporter {
    pub kubelet: Arc<Kubelet>,
    pub runtime: Arc<dyn Runtime>,
    pub client: kube::Client,
    /// For the status, which must not wait for other requests.
    pub heartbeat: kube::Client,
    pub config: Arc<KubeletConfiguration>,
    pub registration: Registration,
    pub addresses: Vec<IpAddr>,
    pub recorder: KubeletRecorder,
    /// Something changed that should be seen at once.
    pub changed: Arc<Notify>,
}

impl Reporter {
    async fn status(
        &self,
        old: Option<&Node>,
        devices: &Capacity,
        reset_extended: bool,
    ) -> NodeStatus {
        let images = self.runtime.list_images().await.unwrap_or_default();
        let in_use = self.kubelet.volumes.volumes_in_use().await;
        self.status_with(old, &images, &in_use, devices, reset_extended)
    }

    fn status_with(
        &self,
        old: Option<&Node>,
        images: &[runtime::api::ImageStatus],
        volumes_in_use: &[String],
        devices: &Capacity,
        reset_extended: bool,
    ) -> NodeStatus {
        let storage_error = self.kubelet.storage_error.load();
        let (name, version) = self.runtime.version();
        let state = self.kubelet.runtime_state.load();
        let old_status = old.and_then(|n| n.status.as_ref());
        let old_conditions = old_status
            .and_then(|s| s.conditions.as_deref())
            .unwrap_or_default();
        let external = self.registration.external_cloud_provider;
        // Until the cloud's controller knows better, only what somebody said.
        let addresses = match external && !self.registration.has_node_ip {
            true => &[][..],
            false => &self.addresses,
        };
        generate(&StatusInput {
            machine: &self.kubelet.node.machine,
            capacity: &self.kubelet.node.capacity.load(),
            allocatable: &self.kubelet.node.allocatable.load(),
            addresses,
            set_addresses: set_addresses(old).filter(|_| external),
            old_capacity: old_status.and_then(|s| s.capacity.as_ref()),
            devices,
            reset_extended,
            hostname: &self.registration.hostname,
            kubelet_port: self.config.port,
            runtime_name: &name,
            runtime_version: &version,
            kubelet_version: component_base::version::GIT_VERSION,
            runtime_state: &state,
            storage_error: storage_error.as_deref(),
            shutting_down: self.kubelet.node.is_shutting_down(),
            handlers: &self.kubelet.runtime_handlers.load(),
            images,
            max_images: self.config.node_status_max_images,
            pressure: &self.kubelet.node.pressure.load(),
            swap_capacity_bytes: self.kubelet.node.machine.swap_capacity_bytes,
            volumes_in_use,
            declared_features: &self.kubelet.declared_features,
            old_conditions,
            now: self.kubelet.clock.now(),
        })
    }

    /// Registers, then reports until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        if self.config.register_node {
            let none = Capacity::default();
            let status = || self.status_with(None, &[], &[], &none, false);
            let registered = self
                .registration
                .register(&self.client, status, &shutdown)
                .await;
            let Some(node) = registered else { return };
            self.kubelet.recorder.node_is(&node);
            // What it began with: the API server had nothing of this start.
            self.pressure_events(&NodeStatus::default(), node.status.as_ref());
            self.check_reboot(&node);
            self.kubelet.node.set_node(Arc::new(node));
        }
        let frequency = self.config.node_status_update_frequency.0;
        let mut last: Option<(NodeStatus, Instant)> = None;
        let mut unschedulable = false;
        let mut devices_due = Duration::ZERO;
        loop {
            self.schedulable_event(&mut unschedulable);
            match self.update(&mut last).await {
                Ok(()) => {}
                Err(error) => tracing::error!(%error, "unable to update node status"),
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.changed.notified() => {}
                () = self.kubelet.volumes.in_use_changed() => {}
                () = self.devices_changed(devices_due) => {
                    devices_due = self.kubelet.clock.monotonic() + DEVICES_PERIOD;
                }
                () = tokio::time::sleep(frequency) => {}
            }
        }
    }

    /// Cancel-safe.
    async fn devices_changed(&self, not_before: Duration) {
        let clock = &self.kubelet.clock;
        let pause = not_before.saturating_sub(clock.monotonic());
        clock.sleep(pause).await;
        self.kubelet.devices.changed().await;
    }

    /// Pods are told the addresses that the cloud's controller gave the node.
    fn follow_addresses(&self, node: Option<&Node>) {
        let ips = node.map(host_ips).unwrap_or_default();
        let known = &self.kubelet.node.host_ips;
        if !ips.is_empty() && **known.load() != ips {
            known.store(Arc::new(ips));
        }
    }

    async fn update(&self, last: &mut Option<(NodeStatus, Instant)>) -> kube::Result<()> {
        let old = self.kubelet.node.node.load().as_ref().clone();
        if self.registration.external_cloud_provider {
            self.follow_addresses(old.as_deref());
        }
        let theirs = old.as_ref().and_then(|n| n.status.as_ref());
        let is_new = last.is_none() && is_of_another_machine(theirs, &self.kubelet.node.machine);
        let devices = self.kubelet.devices.capacity().await;
        let status = self.status(old.as_deref(), &devices, is_new).await;
        let due = match last {
            Some((before, at)) => {
                at.elapsed() >= self.config.node_status_report_frequency.0
                    || changed(before, &status)
            }
            None => true,
        };
        if !due {
            return Ok(());
        }
        let theirs = theirs.cloned().unwrap_or_default();
        self.event_on_transition(&theirs, &status);
        let body = patch(&theirs, &status);
        let api: Api<Node> = Api::all(self.heartbeat.clone());
        let node = api
            .patch_status(
                &self.kubelet.node.name,
                &PatchParams::default(),
                &Patch::Strategic(&body),
            )
            .await?;
        self.kubelet.recorder.node_is(&node);
        self.kubelet.node.set_node(Arc::new(node));
        let in_use = status.volumes_in_use.clone().unwrap_or_default();
        self.kubelet.volumes.reported_in_use(&in_use);
        self.kubelet.devices.removal_is_told(&devices.removed);
        *last = Some((status, Instant::now()));
        Ok(())
    }

    fn event_on_transition(&self, old: &NodeStatus, new: &NodeStatus) {
        self.pressure_events(old, Some(new));
        self.tell(&transitions(
            old,
            new,
            &[("Ready", reason::NODE_READY, reason::NODE_NOT_READY)],
        ));
    }

    fn pressure_events(&self, old: &NodeStatus, new: Option<&NodeStatus>) {
        if let Some(new) = new {
            self.tell(&transitions(old, new, PRESSURES));
        }
    }

    /// A node that is cordoned, or no longer. Upstream: `recordNodeSchedulableEvent`.
    fn schedulable_event(&self, before: &mut bool) {
        let now = self
            .kubelet
            .node
            .node
            .load()
            .as_ref()
            .as_ref()
            .is_some_and(|n| {
                let spec = n.spec.as_ref();
                spec.and_then(|s| s.unschedulable).unwrap_or(false)
            });
        if std::mem::replace(before, now) != now {
            let reason = if now {
                reason::NODE_NOT_SCHEDULABLE
            } else {
                reason::NODE_SCHEDULABLE
            };
            self.tell(&[reason]);
        }
    }

    fn tell(&self, reasons: &[&str]) {
        let name = &self.kubelet.node.name;
        for reason in reasons {
            let text = format!("Node {name} status is now: {reason}");
            self.recorder.node(Type::Normal, reason, text);
        }
    }

    fn check_reboot(&self, node: &Node) {
        let before = node
            .status
            .as_ref()
            .and_then(|s| s.node_info.as_ref())
            .map(|i| i.boot_id.as_str());
        let now = self.kubelet.node.machine.boot_id.as_str();
        if before.is_some_and(|b| !b.is_empty() && b != now) {
            let message = format!(
                "Node {} has been rebooted, boot id: {now}",
                self.kubelet.node.name
            );
            self.recorder.node(Type::Warning, reason::REBOOTED, message);
        }
    }
}

/// Conditions of pressure, the reason when one begins, and when it is over.
const PRESSURES: &[(&str, &str, &str)] = &[
    (
        "MemoryPressure",
        "NodeHasInsufficientMemory",
        "NodeHasSufficientMemory",
    ),
    (
        "DiskPressure",
        "NodeHasDiskPressure",
        "NodeHasNoDiskPressure",
    ),
    (
        "PIDPressure",
        "NodeHasInsufficientPID",
        "NodeHasSufficientPID",
    ),
];

/// The reasons of those conditions whose status is another than before.
fn transitions<'a>(
    old: &NodeStatus,
    new: &NodeStatus,
    conditions: &[(&str, &'a str, &'a str)],
) -> Vec<&'a str> {
    let find = |s: &NodeStatus, type_: &str| {
        let list = s.conditions.iter().flatten();
        list.into_iter()
            .find(|c| c.type_ == type_)
            .map(|c| c.status.clone())
    };
    conditions
        .iter()
        .filter(|(type_, _, _)| find(new, type_).is_some() && find(old, type_) != find(new, type_))
        .map(|(type_, on, off)| match find(new, type_).as_deref() {
            Some("True") => *on,
            _ => *off,
        })
        .collect()
}

/// Apart from heartbeats.
fn changed(old: &NodeStatus, new: &NodeStatus) -> bool {
    let still = |s: &NodeStatus| {
        let mut s = s.clone();
        for c in s.conditions.iter_mut().flatten() {
            c.last_heartbeat_time = None;
        }
        s
    };
    still(old) != still(new)
}

/// A strategic merge: conditions of others stay, addresses are replaced as a whole.
fn patch(old: &NodeStatus, new: &NodeStatus) -> Value {
    let (Ok(Value::Object(old)), Ok(Value::Object(new))) =
        (serde_json::to_value(old), serde_json::to_value(new))
    else {
        return json!({});
    };
    let mut status = Map::new();
    let gone: Vec<&str> = ["volumesInUse", "declaredFeatures"]
        .into_iter()
        .filter(|key| old.contains_key(*key) && !new.contains_key(*key))
        .collect();
    for (key, value) in new {
        if old.get(&key) == Some(&value) {
            continue;
        }
        let value = match (key.as_str(), value) {
            // What was taken over from the capacity and is no more there.
            ("allocatable", Value::Object(mut list)) => {
                let before = old.get("allocatable").and_then(Value::as_object);
                for name in before.into_iter().flat_map(Map::keys) {
                    if is_extended_resource_name(name) {
                        list.entry(name.as_str()).or_insert(Value::Null);
                    }
                }
                Value::Object(list)
            }
            ("addresses", Value::Array(mut list)) => {
                list.push(json!({ "$patch": "replace" }));
                Value::Array(list)
            }
            (_, value) => value,
        };
        status.insert(key, value);
    }
    for key in gone {
        status.insert(key.to_owned(), Value::Null);
    }
    json!({ "status": status })
}

/// Follows the health of runtime and network until `shutdown`.
pub async fn watch_runtime(
    kubelet: Arc<Kubelet>,
    runtime: Arc<dyn Runtime>,
    changed: Arc<Notify>,
    nudge: Arc<Notify>,
    shutdown: CancellationToken,
) {
    loop {
        let state = match runtime.status().await {
            Ok(status) => {
                if **kubelet.runtime_handlers.load() != status.handlers {
                    kubelet.runtime_handlers.store(Arc::new(status.handlers));
                    changed.notify_one();
                }
                crate::kubelet::RuntimeState {
                    runtime: Some(status.runtime_ready),
                    network: Some(status.network_ready),
                }
            }
            Err(error) => crate::kubelet::RuntimeState {
                runtime: Some(Some(("RuntimeStatus".to_owned(), error.to_string()))),
                network: None,
            },
        };
        let before = kubelet.runtime_state.load_full();
        if *before != state {
            let errors = not_ready(&state);
            if !errors.is_empty() {
                tracing::warn!(?errors, "container runtime is not ready");
            }
            kubelet.runtime_state.store(Arc::new(state.clone()));
            changed.notify_one();
            if errors.is_empty() {
                // Pods that waited for the network wait no longer.
                for pod in kubelet.pods.pods() {
                    kubelet.workers.wake(crate::pod::uid(&pod));
                }
            }
        }
        let wait = if not_ready(&state).is_empty() {
            RUNTIME_CHECK_PERIOD
        } else {
            RUNTIME_CHECK_FAST
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = nudge.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::NodeAddress;

    #[test]
    fn what_a_node_begins_with_is_told() {
        let status = |pressure: &str| NodeStatus {
            conditions: Some(
                [("MemoryPressure", pressure), ("DiskPressure", "False")]
                    .map(
                        |(type_, status)| k8s_openapi::api::core::v1::NodeCondition {
                            type_: type_.into(),
                            status: status.into(),
                            ..Default::default()
                        },
                    )
                    .into(),
            ),
            ..Default::default()
        };
        let check = |old: &NodeStatus, new: &NodeStatus, expect: &[&str]| {
            assert_eq!(transitions(old, new, PRESSURES), expect);
        };
        let nothing = NodeStatus::default();
        check(
            &nothing,
            &status("False"),
            &["NodeHasSufficientMemory", "NodeHasNoDiskPressure"],
        );
        check(&status("False"), &status("False"), &[]);
        check(
            &status("False"),
            &status("True"),
            &["NodeHasInsufficientMemory"],
        );
        check(
            &status("True"),
            &status("False"),
            &["NodeHasSufficientMemory"],
        );
    }

    #[test]
    fn only_what_changed_is_written() {
        let status = |ip: &str| NodeStatus {
            addresses: Some(vec![NodeAddress {
                type_: "InternalIP".into(),
                address: ip.into(),
            }]),
            phase: Some("x".into()),
            ..Default::default()
        };
        let got = patch(&status("1.1.1.1"), &status("2.2.2.2"));
        assert_eq!(
            got,
            json!({"status": {"addresses": [{"type": "InternalIP", "address": "2.2.2.2"}, {"$patch": "replace"}]}})
        );
        assert_eq!(patch(&status("a"), &status("a")), json!({"status": {}}));
        // What stays as it was is not taken for gone.
        let declares = |ip: &str, features: &[&str]| NodeStatus {
            declared_features: (!features.is_empty())
                .then(|| features.iter().map(|f| (*f).to_owned()).collect()),
            ..status(ip)
        };
        let patch_of = |old, new| patch(&old, &new)["status"]["declaredFeatures"].clone();
        assert_eq!(
            patch(&declares("a", &["F"]), &declares("a", &["F"])),
            json!({"status": {}})
        );
        let moved = patch(&declares("a", &["F"]), &declares("b", &["F"]));
        assert!(moved["status"].get("declaredFeatures").is_none());
        assert_eq!(
            patch_of(declares("a", &[]), declares("a", &["F"])),
            json!(["F"])
        );
        assert_eq!(
            patch_of(declares("a", &["F"]), declares("a", &[])),
            Value::Null
        );
        let gone = patch(&declares("a", &["F"]), &declares("a", &[]));
        assert!(gone["status"].get("declaredFeatures").is_some());
    }

    #[test]
    fn a_resource_that_was_taken_over_goes_with_its_capacity() {
        let status = |allocatable: Value| -> NodeStatus {
            serde_json::from_value(json!({ "allocatable": allocatable })).unwrap()
        };
        let with = status(json!({"cpu": "1", "example.com/dongle": "2", "hugepages-2Mi": "0"}));
        let without = status(json!({"cpu": "1"}));
        assert_eq!(
            patch(&with, &without),
            json!({"status": {"allocatable": {"cpu": "1", "example.com/dongle": null}}})
        );
        assert_eq!(
            patch(
                &without,
                &status(json!({"cpu": "1", "example.com/dongle": "2"}))
            ),
            json!({"status": {"allocatable": {"cpu": "1", "example.com/dongle": "2"}}})
        );
    }
}
