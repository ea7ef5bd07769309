//! [`Slice`]: a ResourceSlice made ready for the search: names as keys, amounts as numbers, node selectors parsed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use component_helpers::affinity::NodeSelectorTerms;
use component_helpers::quantity::{Amount, amount};
use k8s_openapi::api::core::v1::NodeSelector;
use k8s_openapi::api::resource::v1::{
    CapacityRequestPolicy, CounterSet, Device as ApiDevice, DeviceCounterConsumption, DeviceTaint,
    ResourceSlice,
};

use crate::capacity::{Capacity, Policy};
use crate::selector::DeviceVariable;

/// A pool, by its driver and its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolId {
    /// The driver.
    pub driver: Arc<str>,
    /// The pool's name.
    pub pool: Arc<str>,
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.driver, self.pool)
    }
}

/// A device of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    /// Its pool.
    pub pool: PoolId,
    /// Its name within the pool.
    pub device: Arc<str>,
}

impl DeviceId {
    /// By names.
    pub fn new(driver: &str, pool: &str, device: &str) -> Self {
        DeviceId {
            pool: PoolId {
                driver: driver.into(),
                pool: pool.into(),
            },
            device: device.into(),
        }
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.device)
    }
}

/// What is looked at of a node.
#[derive(Debug, Clone, Copy)]
pub struct NodeView<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
}

/// On which nodes devices are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Placement {
    /// Nothing known is said.
    Unknown,
    /// On one.
    Node(String),
    /// On all.
    AllNodes,
    /// On those that match.
    Selector(NodeSelectorTerms),
    /// What is said cannot be read.
    Wrong(String),
}

impl Placement {
    fn new(
        node_name: Option<&String>,
        all_nodes: Option<bool>,
        selector: Option<&NodeSelector>,
    ) -> Self {
        if let Some(name) = node_name.filter(|name| !name.is_empty()) {
            return Placement::Node(name.clone());
        }
        if all_nodes == Some(true) {
            return Placement::AllNodes;
        }
        let Some(selector) = selector else {
            return Placement::Unknown;
        };
        let terms = NodeSelectorTerms::new(selector);
        if terms.errors().is_empty() {
            return Placement::Selector(terms);
        }
        let errors: Vec<String> = terms.errors().iter().map(ToString::to_string).collect();
        Placement::Wrong(errors.join(", "))
    }

    /// Is the node among them?
    ///
    /// # Errors
    /// What is wrong with the selector.
    pub(crate) fn matches(&self, node: &NodeView<'_>) -> Result<bool, String> {
        match self {
            Placement::Unknown => Ok(false),
            Placement::Node(name) => Ok(name == node.name),
            Placement::AllNodes => Ok(true),
            Placement::Selector(terms) => Ok(terms.matches(node.name, node.labels)),
            Placement::Wrong(error) => Err(format!("failed to parse node selector: {error}")),
        }
    }
}

/// Amounts by name.
pub(crate) type Counters = BTreeMap<String, Amount>;

/// A device made ready.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) id: DeviceId,
    /// As published, taints of rules included.
    pub(crate) api: ApiDevice,
    /// Several claims may have it at a time.
    pub(crate) shareable: bool,
    pub(crate) placement: Placement,
    pub(crate) consumes: Vec<(String, Counters)>,
    pub(crate) capacity: BTreeMap<String, Capacity>,
    variable: OnceLock<Result<DeviceVariable, String>>,
}

impl Device {
    fn new(pool: &PoolId, api: &ApiDevice) -> Self {
        let counters = |of: &DeviceCounterConsumption| {
            let amounts = of.counters.iter();
            let amounts = amounts.map(|(name, counter)| (name.clone(), amount(&counter.value)));
            (of.counter_set.clone(), amounts.collect())
        };
        let policy = |policy: &CapacityRequestPolicy| Policy::new(policy);
        let capacity = api.capacity.iter().flatten().map(|(name, capacity)| {
            let ready = Capacity {
                value: amount(&capacity.value),
                policy: capacity.request_policy.as_ref().map(policy),
            };
            (name.clone(), ready)
        });
        Device {
            id: DeviceId {
                pool: pool.clone(),
                device: api.name.as_str().into(),
            },
            shareable: api.allow_multiple_allocations == Some(true),
            placement: Placement::new(
                api.node_name.as_ref(),
                api.all_nodes,
                api.node_selector.as_ref(),
            ),
            consumes: api
                .consumes_counters
                .iter()
                .flatten()
                .map(counters)
                .collect(),
            capacity: capacity.collect(),
            variable: OnceLock::new(),
            api: api.clone(),
        }
    }

    /// The device as selectors see it, made at the first look.
    pub(crate) fn variable(&self) -> &Result<DeviceVariable, String> {
        self.variable
            .get_or_init(|| DeviceVariable::new(&self.id.pool.driver, &self.api))
    }

    pub(crate) fn has_binding_conditions(&self) -> bool {
        self.api
            .binding_conditions
            .as_ref()
            .is_some_and(|conditions| !conditions.is_empty())
    }

    pub(crate) fn taints(&self) -> impl Iterator<Item = &DeviceTaint> {
        self.api.taints.iter().flatten()
    }
}

/// A ResourceSlice made ready.
#[derive(Debug)]
pub struct Slice {
    pub(crate) name: String,
    pub(crate) pool: PoolId,
    pub(crate) generation: i64,
    pub(crate) slice_count: i64,
    pub(crate) placement: Placement,
    /// Each device says where it is.
    pub(crate) per_device: bool,
    /// `spec.perDeviceNodeSelection` is given, true or not.
    pub(crate) says_per_device: bool,
    pub(crate) devices: Vec<Device>,
    pub(crate) shared_counters: Vec<(String, Counters)>,
    /// A device names compatibility groups, which are not built here.
    pub(crate) has_compatibility_groups: bool,
    object: Arc<ResourceSlice>,
}

impl Slice {
    /// Reads all of it. What is wrong is said when a search comes to it.
    pub fn new(object: Arc<ResourceSlice>) -> Self {
        let spec = &object.spec;
        let pool = PoolId {
            driver: spec.driver.as_str().into(),
            pool: spec.pool.name.as_str().into(),
        };
        let counter_set = |set: &CounterSet| {
            let amounts = set.counters.iter();
            let amounts = amounts.map(|(name, counter)| (name.clone(), amount(&counter.value)));
            (set.name.clone(), amounts.collect())
        };
        let devices = spec.devices.iter().flatten();
        let grouped = |device: &ApiDevice| {
            let mut consumed = device.consumes_counters.iter().flatten();
            consumed.any(|c| {
                c.compatibility_groups
                    .as_ref()
                    .is_some_and(|g| !g.is_empty())
            })
        };
        Slice {
            name: object.metadata.name.clone().unwrap_or_default(),
            generation: spec.pool.generation,
            slice_count: spec.pool.resource_slice_count,
            placement: Placement::new(
                spec.node_name.as_ref(),
                spec.all_nodes,
                spec.node_selector.as_ref(),
            ),
            per_device: spec.per_device_node_selection == Some(true),
            says_per_device: spec.per_device_node_selection.is_some(),
            has_compatibility_groups: devices.clone().any(grouped),
            devices: devices.map(|device| Device::new(&pool, device)).collect(),
            shared_counters: spec
                .shared_counters
                .iter()
                .flatten()
                .map(counter_set)
                .collect(),
            pool,
            object,
        }
    }

    /// As it was published, taints of rules included.
    pub fn object(&self) -> &Arc<ResourceSlice> {
        &self.object
    }

    /// The one node it is about, if it is.
    pub(crate) fn node_name(&self) -> Option<&str> {
        match &self.placement {
            Placement::Node(name) => Some(name),
            _ => None,
        }
    }
}
