//! [`Resource`]: compute resources as plain integers.
//!
//! Upstream: pkg/scheduler/framework/types.go, v1.36.

use std::collections::BTreeMap;

use component_helpers::resources::{Amounts, amounts, is_scalar_resource_name};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

pub use component_helpers::resources::{DEFAULT_MEMORY_REQUEST, DEFAULT_MILLI_CPU_REQUEST};

/// An amount of every resource a node has or a pod asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resource {
    /// Thousandths of a CPU.
    pub milli_cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral_storage: i64,
    /// How many pods a node takes; zero for a pod's request.
    pub allowed_pod_number: i64,
    /// Extended resources, hugepages and attachable volumes, by name, in whole units.
    pub scalar: BTreeMap<String, i64>,
}

impl Resource {
    /// From a resource list; resources that are not native (`cpu`, `memory`, `ephemeral-storage`, `pods`) become scalars when
    /// they are scalar resource names.
    pub fn from_list(list: &BTreeMap<String, Quantity>) -> Self {
        Self::from_amounts(&amounts(Some(list)))
    }

    /// The same from amounts.
    pub fn from_amounts(list: &Amounts) -> Self {
        let mut resource = Resource::default();
        resource.add_amounts(list);
        resource
    }

    /// Adds amounts. What is more than a number holds is as much as it holds: pods may ask for anything, nodes say they have anything.
    pub fn add_amounts(&mut self, list: &Amounts) {
        for (name, amount) in list {
            match name.as_str() {
                "cpu" => more(&mut self.milli_cpu, amount.milli_value()),
                "memory" => more(&mut self.memory, amount.value()),
                "ephemeral-storage" => more(&mut self.ephemeral_storage, amount.value()),
                "pods" => more(&mut self.allowed_pod_number, amount.value()),
                _ if is_scalar_resource_name(name) => {
                    more(self.scalar.entry(name.clone()).or_default(), amount.value());
                }
                _ => {}
            }
        }
    }

    /// Adds `other`, times `sign` (1 or -1). A sum that [is full](Self::is_full) stays so; what is taken from it again leaves
    /// it inexact.
    pub fn add(&mut self, other: &Resource, sign: i64) {
        more(&mut self.milli_cpu, sign * other.milli_cpu);
        more(&mut self.memory, sign * other.memory);
        more(&mut self.ephemeral_storage, sign * other.ephemeral_storage);
        for (name, amount) in &other.scalar {
            more(self.scalar.entry(name.clone()).or_default(), sign * amount);
        }
    }

    /// Is anything as much as a number holds, or more?
    pub fn is_full(&self) -> bool {
        let native = [self.milli_cpu, self.memory, self.ephemeral_storage];
        native.contains(&i64::MAX) || self.scalar.values().any(|amount| *amount == i64::MAX)
    }

    /// The amount of the resource `name`, in the units above; zero when unknown.
    pub fn get(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.milli_cpu,
            "memory" => self.memory,
            "ephemeral-storage" => self.ephemeral_storage,
            "pods" => self.allowed_pod_number,
            _ => self.scalar.get(name).copied().unwrap_or(0),
        }
    }
}

fn more(sum: &mut i64, amount: i64) {
    *sum = sum.saturating_add(amount);
}
