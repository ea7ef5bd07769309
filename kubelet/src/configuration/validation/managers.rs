//! Fields of the CPU, memory and topology managers. Whether they fit the machine is found out at the start.
//!
//! Upstream: validation.go, validation_reserved_memory.go, v1.37.

use std::collections::BTreeSet;

use component_base::config::FieldError;
use component_helpers::quantity::Amount;
use resource_managers::CpuSet;

use super::KubeletConfiguration;

pub(super) fn managers(kc: &KubeletConfiguration, errors: &mut Vec<FieldError>) {
    reserved_cpus(kc, errors);
    reserved_memory(kc, errors);
    if kc.memory_manager_policy == "BestEffort" {
        errors.push(FieldError::forbidden(
            "memoryManagerPolicy",
            "policy \"BestEffort\" is not available for platform \"linux\"",
        ));
    }
}

fn reserved_cpus(kc: &KubeletConfiguration, errors: &mut Vec<FieldError>) {
    const PATH: &str = "reservedSystemCPUs";
    let text = &kc.reserved_system_cpus;
    if text.is_empty() {
        return;
    }
    if !kc.system_reserved_cgroup.is_empty() || !kc.kube_reserved_cgroup.is_empty() {
        errors.push(FieldError::forbidden(
            PATH,
            "can't be used with systemReservedCgroup (--system-reserved-cgroup) or kubeReservedCgroup (--kube-reserved-cgroup)",
        ));
    }
    if let Err(error) = text.parse::<CpuSet>() {
        errors.push(FieldError::invalid(PATH, text, error.to_string()));
    }
}

fn reserved_memory(kc: &KubeletConfiguration, errors: &mut Vec<FieldError>) {
    let mut seen = BTreeSet::new();
    for (at, reservation) in kc.reserved_memory.iter().enumerate() {
        for (name, value) in &reservation.limits {
            let path = format!("reservedMemory[{at}].limits[{name}]");
            if name != "memory" && !name.starts_with("hugepages-") {
                let known = &["memory", "hugepages-<HugePageSize>"];
                errors.push(FieldError::not_supported(path, name, known));
                continue;
            }
            match value.parse::<Amount>() {
                Err(error) => {
                    errors.push(FieldError::invalid(path.clone(), value, error.to_string()))
                }
                Ok(amount) if !amount.is_positive() => {
                    errors.push(FieldError::invalid(path.clone(), value, "may not be zero"));
                }
                Ok(_) => {}
            }
            if !seen.insert((reservation.numa_node, name)) {
                let detail = "is given twice for one NUMA node";
                errors.push(FieldError::invalid(path, value, detail));
            }
        }
    }
}
