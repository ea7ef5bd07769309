//! The CPU, memory and topology managers and the kubelet: what the configuration asks of them, and what is told of them.
//!
//! Owns: the way between the configuration, metrics and rejections, and the crate `resource-managers`, which decides. Upstream:
//! `getReservedCPUs` in cmd/kubelet/app, `NewContainerManager`, pkg/kubelet/cm/admission, v1.37.

use ::resource_managers::memory_manager::reserved::Reservation;
use ::resource_managers::options::Gates;
use ::resource_managers::{
    AdmissionError, CpuSet, Observation, Observer, Resource, Settings, Topology,
};
use component_base::features::FeatureGates;
use component_helpers::resources::{ResourceList, amounts};

use crate::admission::Rejection;
use crate::cm::allocatable;
use crate::configuration::KubeletConfiguration;
use crate::features::{CPU_MANAGER_ALPHA_OPTIONS, CPU_MANAGER_BETA_OPTIONS};
use crate::{metrics, preemption};

/// `reservedSystemCPUs` does not fit the machine. Another start says the same.
#[derive(Debug, thiserror::Error)]
pub enum ReservedCpusError {
    #[error("unable to parse reserved-cpus list: {0}")]
    Parse(#[from] ::resource_managers::cpu_set::ParseCpuSetError),
    #[error("reserved-cpus: {given} is not a subset of online-cpus: {online}")]
    NotOnline { given: String, online: CpuSet },
}

/// CPUs that are reserved by number stand for those of `systemReserved` and `kubeReserved`.
///
/// # Errors
/// They are none of the machine's.
pub fn reserve_cpus(
    config: &mut KubeletConfiguration,
    topology: &Topology,
) -> Result<(), ReservedCpusError> {
    let given = &config.reserved_system_cpus;
    let reserved: CpuSet = given.parse()?;
    let online = topology.cpus.details.cpus();
    if !reserved.is_subset(&online) {
        let given = given.clone();
        return Err(ReservedCpusError::NotOnline { given, online });
    }
    if !reserved.is_empty() {
        tracing::info!(%reserved, "Option --reserved-cpus is specified, it will overwrite the cpu setting in KubeReserved and SystemReserved");
        config.kube_reserved.remove("cpu");
        let count = reserved.len().to_string();
        config.system_reserved.insert("cpu".to_owned(), count);
    }
    Ok(())
}

/// `capacity`: the node's.
pub fn settings(
    config: &KubeletConfiguration,
    gates: &FeatureGates,
    capacity: &ResourceList,
) -> Settings {
    let quantity =
        |text: &String| k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.clone());
    let reservations = config.reserved_memory.iter();
    let reservations = reservations.map(|reservation| {
        let limits = reservation.limits.iter();
        let limits: ResourceList = limits
            .map(|(name, q)| (name.clone(), quantity(q)))
            .collect();
        Reservation {
            numa_node: reservation.numa_node,
            limits: amounts(Some(&limits)),
        }
    });
    Settings {
        cpu_policy: config.cpu_manager_policy.clone(),
        cpu_options: config.cpu_manager_policy_options.clone(),
        cpu_gates: Gates {
            alpha: gates.enabled(CPU_MANAGER_ALPHA_OPTIONS),
            beta: gates.enabled(CPU_MANAGER_BETA_OPTIONS),
        },
        // Validated with the configuration.
        reserved_cpus: config.reserved_system_cpus.parse().unwrap_or_default(),
        memory_policy: config.memory_manager_policy.clone(),
        reserved_memory: reservations.collect(),
        topology_policy: config.topology_manager_policy.clone(),
        topology_scope: config.topology_manager_scope.clone(),
        topology_options: config.topology_manager_policy_options.clone(),
        node_reservation: allocatable::reservation(capacity, config),
    }
}

/// Upstream: `GetPodAdmitResult`.
pub fn rejection(error: &AdmissionError) -> Rejection {
    match error.reason() {
        Some(reason) => Rejection {
            reason: reason.to_owned(),
            message: error.to_string(),
        },
        None => Rejection {
            reason: preemption::UNEXPECTED.to_owned(),
            message: format!("Allocate failed due to {error}, which is unexpected"),
        },
    }
}

/// Counts.
pub struct Counter;

impl Observer for Counter {
    fn observe(&self, observation: Observation) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        match observation {
            Observation::CouldAlign(to) => {
                for metric in [&metrics::ALIGNED, &metrics::NOT_ALIGNED] {
                    metric.with_label_values(&[to.scope, to.boundary]).inc_by(0);
                }
            }
            Observation::Aligned(to) => metrics::ALIGNED
                .with_label_values(&[to.scope, to.boundary])
                .inc(),
            Observation::NotAligned(to) => metrics::NOT_ALIGNED
                .with_label_values(&[to.scope, to.boundary])
                .inc(),
            Observation::PinningRequested(Resource::Cpu) => metrics::CPU_PINNING_REQUESTS.inc(),
            Observation::PinningRequested(Resource::Memory) => {
                metrics::MEMORY_PINNING_REQUESTS.inc();
            }
            Observation::PinningFailed(resource) => {
                match resource {
                    Resource::Cpu => metrics::CPU_PINNING_ERRORS.inc(),
                    Resource::Memory => metrics::MEMORY_PINNING_ERRORS.inc(),
                }
                metrics::RESOURCE_MANAGER_ALLOCATION_ERRORS
                    .with_label_values(&[name(resource), "node"])
                    .inc();
            }
            Observation::Allocated(resource) => metrics::RESOURCE_MANAGER_ALLOCATIONS
                .with_label_values(&[name(resource), "node"])
                .inc(),
            Observation::Assigned(resource) => metrics::RESOURCE_MANAGER_ASSIGNMENTS
                .with_label_values(&[name(resource), "node_exclusive"])
                .inc(),
            Observation::Pool {
                shared_cpus,
                exclusive_cpus,
                exclusive_by_numa_node,
            } => {
                metrics::CPU_SHARED_POOL.set(number(shared_cpus).saturating_mul(1000));
                metrics::CPU_EXCLUSIVE.set(number(exclusive_cpus));
                metrics::CPU_ALLOCATION_PER_NUMA.reset();
                for (node, count) in exclusive_by_numa_node {
                    metrics::CPU_ALLOCATION_PER_NUMA
                        .with_label_values(&[&node.to_string()])
                        .set(number(count));
                }
            }
        }
    }
}

/// Upstream's label.
fn name(resource: Resource) -> &'static str {
    match resource {
        Resource::Cpu => "cpu",
        Resource::Memory => "memory",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_reserved_by_number_stand_for_the_others() {
        let topology = Topology::regular([1, 1, 4, 1], 0);
        let config = |reserved: &str| KubeletConfiguration {
            reserved_system_cpus: reserved.to_owned(),
            system_reserved: [("memory".to_owned(), "1Gi".to_owned())].into(),
            kube_reserved: [("cpu".to_owned(), "500m".to_owned())].into(),
            ..KubeletConfiguration::default()
        };
        let mut named = config("0,2");
        reserve_cpus(&mut named, &topology).unwrap();
        assert_eq!(named.system_reserved["cpu"], "2");
        assert!(named.kube_reserved.is_empty());
        let mut nothing = config("");
        reserve_cpus(&mut nothing, &topology).unwrap();
        assert_eq!(nothing.kube_reserved["cpu"], "500m");
        let told = reserve_cpus(&mut config("0,4"), &topology).unwrap_err();
        assert_eq!(
            told.to_string(),
            "reserved-cpus: 0,4 is not a subset of online-cpus: 0-3"
        );
    }
}
