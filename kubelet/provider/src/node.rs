//! What a node says of itself.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeAddress, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A condition of a node, without its times: those are kept by the loops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// As `Ready` or `DiskPressure`.
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// A CamelCase word.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// A node, before it is registered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeDescription {
    /// Its name; a provider cannot change it.
    pub name: String,
    /// Labels of a new node.
    pub labels: BTreeMap<String, String>,
    /// Annotations of a new node.
    pub annotations: BTreeMap<String, String>,
    /// Taints of a new node.
    pub taints: Vec<Taint>,
    /// All there is.
    pub capacity: BTreeMap<String, Quantity>,
    /// What pods may have of it; empty: all of it.
    pub allocatable: BTreeMap<String, Quantity>,
    /// One of a type; `Ready` must be among them for pods to be scheduled here.
    pub conditions: Vec<Condition>,
    /// Where the API server reaches this process for logs and exec.
    pub addresses: Vec<NodeAddress>,
    /// `spec.providerID`; empty: none.
    pub provider_id: String,
    /// As `linux`.
    pub operating_system: String,
    /// As Go names it: `amd64`.
    pub architecture: String,
    /// For people.
    pub os_image: String,
    /// For people.
    pub kernel_version: String,
}
