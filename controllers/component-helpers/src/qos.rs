//! Quality of service: how a pod's requests and limits rank it when a node runs short.
//!
//! Upstream: pkg/apis/core/v1/helper/qos, v1.37.

use crate::quantity::Amount;
use crate::resources::{
    Amounts, CPU, MEMORY, ResourceList, add, amounts, is_pod_level_resources_set,
};
use k8s_openapi::api::core::v1::Pod;
use std::fmt;

#[cfg(test)]
mod tests;

/// The three classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum QosClass {
    /// Every container has CPU and memory limits, and requests equal to them.
    Guaranteed,
    /// Some container has a request or a limit.
    Burstable,
    /// Nobody asks for anything.
    BestEffort,
}

impl QosClass {
    /// The API's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

impl fmt::Display for QosClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The class written in the status, or else computed.
pub fn get_pod_qos(pod: &Pod) -> QosClass {
    match pod
        .status
        .as_ref()
        .and_then(|status| status.qos_class.as_deref())
    {
        Some("Guaranteed") => QosClass::Guaranteed,
        Some("Burstable") => QosClass::Burstable,
        Some("BestEffort") => QosClass::BestEffort,
        _ => compute_pod_qos(pod),
    }
}

/// CPU and memory of a list, without zeros.
fn compute_resources(list: Option<&ResourceList>) -> Amounts {
    let mut list = amounts(list);
    list.retain(|name, amount| (name == CPU || name == MEMORY) && amount.is_positive());
    list
}

/// The class that follows from the spec. Pod-level resources, where any is given that counts there, decide alone.
pub fn compute_pod_qos(pod: &Pod) -> QosClass {
    let Some(spec) = &pod.spec else {
        return QosClass::BestEffort;
    };
    let (mut requests, mut limits) = (Amounts::new(), Amounts::new());
    let mut guaranteed = true;
    let pod_level = spec
        .resources
        .as_ref()
        .filter(|_| is_pod_level_resources_set(pod));
    match pod_level {
        Some(resources) => {
            requests = compute_resources(resources.requests.as_ref());
            limits = compute_resources(resources.limits.as_ref());
            guaranteed =
                resources.limits.as_ref().is_none_or(|list| list.is_empty()) || limits.len() == 2;
        }
        None => {
            for container in spec
                .containers
                .iter()
                .chain(spec.init_containers.iter().flatten())
            {
                let resources = container.resources.as_ref();
                add(
                    &mut requests,
                    &compute_resources(resources.and_then(|r| r.requests.as_ref())),
                );
                let own = compute_resources(resources.and_then(|r| r.limits.as_ref()));
                guaranteed &= own.len() == 2;
                add(&mut limits, &own);
            }
        }
    }
    if requests.is_empty() && limits.is_empty() {
        return QosClass::BestEffort;
    }
    let covered = |(name, request): (&String, &Amount)| limits.get(name) == Some(request);
    if guaranteed && requests.len() == limits.len() && requests.iter().all(covered) {
        QosClass::Guaranteed
    } else {
        QosClass::Burstable
    }
}
