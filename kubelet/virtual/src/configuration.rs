//! `--provider-config`: what the nodes say of themselves, and what the provider needs. Strict.
//!
//! Owns: the file's kind, defaults and validation. Every error names its field and value.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use component_base::config::{ConfigError, FieldError, aggregate, load_strict};
use component_base::duration::GoDuration;
use k8s_openapi::api::core::v1::{NodeAddress, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kubelet_provider::{Condition, NodeDescription};
use serde::Deserialize;

use crate::simulated::configuration::SimulatedConfiguration;

/// `apiVersion` of the file.
pub const API_VERSION: &str = "virtualkubelet.gantry/v1alpha1";
/// `kind` of the file.
pub const KIND: &str = "VirtualKubeletConfiguration";
/// The label that every virtual node of the field has.
pub const TYPE_LABEL: (&str, &str) = ("type", "virtual-kubelet");
/// The taint that keeps pods away which did not ask for such a node.
pub const TAINT: &str = "virtual-kubelet.io/provider";

/// The file.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VirtualKubeletConfiguration {
    /// How long a node's Lease holds; it is renewed four times in that time. Upstream's default: 40.
    pub node_lease_duration_seconds: i32,
    /// How often a node's status is written although nothing changed. Upstream's default: 5 min.
    pub node_status_report_frequency: GoDuration,
    /// What each node says of itself.
    pub node: NodeConfiguration,
    /// Of `--provider simulated`.
    pub simulated: SimulatedConfiguration,
    /// Of `--provider process`.
    pub process: ProcessConfiguration,
    /// Of `--provider remote`.
    pub remote: RemoteConfiguration,
}

impl Default for VirtualKubeletConfiguration {
    fn default() -> Self {
        Self {
            node_lease_duration_seconds: 40,
            node_status_report_frequency: GoDuration(Duration::from_secs(300)),
            node: NodeConfiguration::default(),
            simulated: SimulatedConfiguration::default(),
            process: ProcessConfiguration::default(),
            remote: RemoteConfiguration::default(),
        }
    }
}

/// Of `--provider process`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProcessConfiguration {
    /// Where records and logs of pods are kept: a directory of this program's alone.
    pub root: PathBuf,
}

impl Default for ProcessConfiguration {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/var/lib/virtual-kubelet/pods"),
        }
    }
}

/// Of `--provider remote`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RemoteConfiguration {
    /// The provider's socket: `unix:///run/my-provider.sock`.
    pub endpoint: String,
}

/// A condition without its times.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConditionConfiguration {
    #[serde(rename = "type")]
    pub type_: String,
    pub status: String,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub message: String,
}

/// What each node says of itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeConfiguration {
    /// Added to the labels every such node has, or put in their place; an empty value of one of those is a value.
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// In place of the taint `virtual-kubelet.io/provider`; an empty list: no taint.
    pub taints: Option<Vec<Taint>>,
    pub capacity: BTreeMap<String, Quantity>,
    /// Empty: all of the capacity.
    pub allocatable: BTreeMap<String, Quantity>,
    /// In place of the usual condition of the same type, or besides.
    pub conditions: Vec<ConditionConfiguration>,
    /// In place of `--node-ip`.
    pub addresses: Vec<NodeAddress>,
    /// `$NAME` in it is the node's name.
    #[serde(rename = "providerID")]
    pub provider_id: String,
    pub operating_system: String,
    pub architecture: String,
    pub os_image: String,
    pub kernel_version: String,
}

impl Default for NodeConfiguration {
    fn default() -> Self {
        // kwok's nodes are as large.
        let capacity = [("cpu", "32"), ("memory", "256Gi"), ("pods", "110")];
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            taints: None,
            capacity: capacity
                .map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())))
                .into(),
            allocatable: BTreeMap::new(),
            conditions: Vec::new(),
            addresses: Vec::new(),
            provider_id: String::new(),
            operating_system: "linux".to_owned(),
            architecture: architecture.to_owned(),
            os_image: String::new(),
            kernel_version: String::new(),
        }
    }
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    #[error(transparent)]
    File(#[from] ConfigError),
    #[error("{}: {}", .path.display(), aggregate(.errors))]
    Invalid {
        path: PathBuf,
        errors: Vec<FieldError>,
    },
}

/// Reads the file; without one, the defaults.
///
/// # Errors
/// It cannot be read, has fields nobody knows, or values that cannot be.
pub fn load(path: Option<&Path>) -> Result<VirtualKubeletConfiguration, ConfigurationError> {
    let Some(path) = path else {
        return Ok(VirtualKubeletConfiguration::default());
    };
    let config: VirtualKubeletConfiguration = load_strict(path, API_VERSION, KIND)?;
    let errors = validate(&config);
    match errors.is_empty() {
        true => Ok(config),
        false => Err(ConfigurationError::Invalid {
            path: path.to_owned(),
            errors,
        }),
    }
}

fn validate(config: &VirtualKubeletConfiguration) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let seconds = config.node_lease_duration_seconds;
    if !(1..=86_400).contains(&seconds) {
        errors.push(FieldError::invalid(
            "nodeLeaseDurationSeconds",
            seconds.to_string(),
            "must be between 1 and 86400, inclusive",
        ));
    }
    if config.node_status_report_frequency.0 < Duration::from_secs(1) {
        errors.push(FieldError::invalid(
            "nodeStatusReportFrequency",
            component_base::duration::format(config.node_status_report_frequency.0),
            "must be at least 1s",
        ));
    }
    let node = &config.node;
    for (field, list) in [
        ("capacity", &node.capacity),
        ("allocatable", &node.allocatable),
    ] {
        for (name, quantity) in list {
            if let Err(error) = quantity.0.parse::<component_helpers::quantity::Amount>() {
                errors.push(FieldError::invalid(
                    format!("node.{field}[{name}]"),
                    quantity.0.clone(),
                    error.to_string(),
                ));
            }
        }
    }
    for (index, condition) in node.conditions.iter().enumerate() {
        const STATUSES: [&str; 3] = ["True", "False", "Unknown"];
        if !STATUSES.contains(&condition.status.as_str()) {
            let path = format!("node.conditions[{index}].status");
            errors.push(FieldError::not_supported(
                path,
                &condition.status,
                &STATUSES,
            ));
        }
    }
    for (index, taint) in node.taints.iter().flatten().enumerate() {
        const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        if !EFFECTS.contains(&taint.effect.as_str()) {
            let path = format!("node.taints[{index}].effect");
            errors.push(FieldError::not_supported(path, &taint.effect, &EFFECTS));
        }
    }
    errors.extend(config.simulated.validate());
    let root = &config.process.root;
    if !root.is_absolute() {
        errors.push(FieldError::invalid(
            "process.root",
            root.display().to_string(),
            "must be an absolute path",
        ));
    }
    errors
}

impl NodeConfiguration {
    /// The node of this name. `address`: where the process is reached, if it serves.
    pub fn describe(
        &self,
        name: &str,
        provider: &str,
        address: Option<std::net::IpAddr>,
    ) -> NodeDescription {
        let mut labels: BTreeMap<String, String> = [
            (TYPE_LABEL.0, TYPE_LABEL.1),
            ("kubernetes.io/role", "agent"),
            ("kubernetes.io/hostname", name),
            ("kubernetes.io/os", &self.operating_system),
            ("kubernetes.io/arch", &self.architecture),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        labels.extend(self.labels.clone());
        let taint = || Taint {
            key: TAINT.to_owned(),
            value: Some(provider.to_owned()),
            effect: "NoSchedule".to_owned(),
            time_added: None,
        };
        let own = address.map(|ip| NodeAddress {
            type_: "InternalIP".to_owned(),
            address: ip.to_string(),
        });
        NodeDescription {
            name: name.to_owned(),
            labels,
            annotations: self.annotations.clone(),
            taints: self.taints.clone().unwrap_or_else(|| vec![taint()]),
            capacity: self.capacity.clone(),
            allocatable: self.allocatable.clone(),
            conditions: self.conditions(),
            addresses: match self.addresses.is_empty() {
                true => own.into_iter().collect(),
                false => self.addresses.clone(),
            },
            provider_id: self.provider_id.replace("$NAME", name),
            operating_system: self.operating_system.clone(),
            architecture: self.architecture.clone(),
            os_image: self.os_image.clone(),
            kernel_version: self.kernel_version.clone(),
        }
    }

    /// Upstream's conditions of a node that is well, with those of the file.
    fn conditions(&self) -> Vec<Condition> {
        let usual = [
            (
                "MemoryPressure",
                "False",
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available",
            ),
            (
                "DiskPressure",
                "False",
                "KubeletHasNoDiskPressure",
                "kubelet has no disk pressure",
            ),
            (
                "PIDPressure",
                "False",
                "KubeletHasSufficientPID",
                "kubelet has sufficient PID available",
            ),
            (
                "NetworkUnavailable",
                "False",
                "VirtualNetwork",
                "the provider has the network",
            ),
            (
                "Ready",
                "True",
                "KubeletReady",
                "kubelet is posting ready status",
            ),
        ];
        let mut conditions: Vec<Condition> = usual
            .map(|(type_, status, reason, message)| Condition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: reason.to_owned(),
                message: message.to_owned(),
            })
            .into();
        for wanted in &self.conditions {
            let condition = Condition {
                type_: wanted.type_.clone(),
                status: wanted.status.clone(),
                reason: wanted.reason.clone(),
                message: wanted.message.clone(),
            };
            match conditions.iter_mut().find(|c| c.type_ == wanted.type_) {
                Some(found) => *found = condition,
                None => conditions.push(condition),
            }
        }
        conditions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<VirtualKubeletConfiguration, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let head = format!("apiVersion: {API_VERSION}\nkind: {KIND}\n");
        std::fs::write(file.path(), head + text).unwrap();
        load(Some(file.path())).map_err(|error| error.to_string())
    }

    #[test]
    fn a_node_has_what_the_field_expects_and_what_the_file_says() {
        let config = read(
            "node:\n  labels: {type: mine, zone: a}\n  capacity: {cpu: '4', pods: '500'}\n  providerID: x://$NAME\n  conditions: [{type: Ready, status: 'False', reason: R}]\n",
        )
        .unwrap();
        let node = config
            .node
            .describe("v-1", "mock", Some([10, 0, 0, 1].into()));
        assert_eq!(node.labels["type"], "mine");
        assert_eq!(node.labels["kubernetes.io/hostname"], "v-1");
        assert_eq!(node.taints[0].key, TAINT);
        assert_eq!(node.taints[0].value.as_deref(), Some("mock"));
        assert_eq!(node.provider_id, "x://v-1");
        assert_eq!(node.addresses[0].address, "10.0.0.1");
        let ready = node.conditions.iter().find(|c| c.type_ == "Ready").unwrap();
        assert_eq!(ready.status, "False");
        assert!(!node.capacity.contains_key("memory"));
        let config = read("node: {taints: []}\n").unwrap();
        assert!(config.node.describe("v", "mock", None).taints.is_empty());
    }

    #[test]
    fn what_cannot_be_is_named() {
        let check = |text: &str, expect: &str| {
            let error = read(text).unwrap_err();
            assert!(error.contains(expect), "{error}");
        };
        check("node: {label: {}}\n", "node.label");
        check(
            "node: {taints: [{key: a, effekt: NoSchedule, effect: NoSchedule}]}\n",
            "node.taints[0].effekt",
        );
        check(
            "node: {taints: [{key: a, effect: Never}]}\n",
            "node.taints[0].effect",
        );
        check("node: {capacity: {cpu: many}}\n", "node.capacity[cpu]");
        check(
            "node: {conditions: [{type: Ready, status: maybe}]}\n",
            "node.conditions[0].status",
        );
        check("nodeLeaseDurationSeconds: 0\n", "nodeLeaseDurationSeconds");
        check("simulated: {startDely: 1s}\n", "simulated.startDely");
        check("process: {root: here}\n", "process.root");
    }
}
