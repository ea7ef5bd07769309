//! What the node has, and what of it pods may ask for.
//!
//! Owns: [`capacity`] and [`allocatable`], pure. Upstream: `pkg/kubelet/cm/node_container_manager_linux.go`,
//! `pkg/kubelet/nodestatus/setters.go`, v1.36.

use std::collections::BTreeMap;

use component_helpers::quantity::Amount;
use component_helpers::resources::{Amounts, ResourceList};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::machine::{FsStats, MachineInfo};
use crate::configuration::KubeletConfiguration;
use crate::eviction::threshold::{Signal, parse_signal, parse_value};

fn quantity(value: impl ToString) -> Quantity {
    Quantity(value.to_string())
}

/// `status.capacity`
pub fn capacity(
    machine: &MachineInfo,
    root_fs: FsStats,
    config: &KubeletConfiguration,
) -> ResourceList {
    let mut list = BTreeMap::new();
    list.insert("cpu".to_owned(), quantity(machine.cpus));
    list.insert(
        "memory".to_owned(),
        quantity(format!("{}Ki", machine.memory_capacity_bytes / 1024)),
    );
    if config.local_storage_capacity_isolation {
        list.insert(
            "ephemeral-storage".to_owned(),
            quantity(root_fs.capacity_bytes),
        );
    }
    for (size, count) in &machine.hugepages {
        let bytes =
            size.parse::<Amount>().map_or(0, |a| a.value()) * i64::try_from(*count).unwrap_or(0);
        let amount = if bytes == 0 {
            "0".to_owned()
        } else {
            format!("{}Mi", bytes >> 20)
        };
        list.insert(format!("hugepages-{size}"), quantity(amount));
    }
    let max_pods = i64::from(config.max_pods);
    let pods = match i64::from(config.pods_per_core) {
        0 => max_pods,
        per_core => max_pods.min(per_core * i64::try_from(machine.cpus).unwrap_or(1)),
    };
    list.insert("pods".to_owned(), quantity(pods));
    list
}

/// What of the node is kept back from pods, by name of the resource; what is nothing is left out. Upstream:
/// `GetNodeAllocatableReservation`.
pub fn reservation(capacity: &ResourceList, config: &KubeletConfiguration) -> Amounts {
    let kept = |(name, total): (&String, &Quantity)| {
        let reserved = [&config.system_reserved, &config.kube_reserved].into_iter();
        let reserved = reserved.filter_map(|list| list.get(name)?.parse::<Amount>().ok());
        let total = component_helpers::quantity::value(total);
        let threshold = match name.as_str() {
            "memory" => hard_threshold(config, Signal::MemoryAvailable, total),
            "ephemeral-storage" => hard_threshold(config, Signal::NodeFsAvailable, total),
            _ => 0,
        };
        let threshold = threshold.to_string().parse().unwrap_or(Amount::ZERO);
        let sum = reserved.chain([threshold]).sum::<Amount>();
        (!sum.is_zero()).then(|| (name.clone(), sum))
    };
    capacity.iter().filter_map(kept).collect()
}

/// What is to be left of a resource, in whole units.
fn hard_threshold(config: &KubeletConfiguration, wanted: Signal, capacity: i64) -> i64 {
    let hard = config.eviction_hard();
    let of_signal = hard
        .iter()
        .filter(|(name, _)| parse_signal(name) == Some(wanted));
    of_signal
        .filter_map(|(_, value)| parse_value(value).ok())
        .map(|v| i64::try_from(v.resolve(u64::try_from(capacity).unwrap_or(0))).unwrap_or(0))
        .max()
        .unwrap_or(0)
}

/// `status.allocatable`: capacity less what is reserved and less the hard eviction thresholds.
pub fn allocatable(capacity: &ResourceList, config: &KubeletConfiguration) -> ResourceList {
    let reserved = |name: &str| {
        [&config.system_reserved, &config.kube_reserved]
            .into_iter()
            .filter_map(|m| m.get(name).and_then(|v| v.parse::<Amount>().ok()))
            .sum::<Amount>()
    };
    let threshold = |wanted, capacity| hard_threshold(config, wanted, capacity);
    let hugepages: i64 = capacity
        .iter()
        .filter(|(n, _)| n.starts_with("hugepages-"))
        .map(|(_, q)| component_helpers::quantity::value(q))
        .sum();
    let mut out = BTreeMap::new();
    for (name, q) in capacity {
        let total = component_helpers::quantity::amount(q);
        let left = match name.as_str() {
            "cpu" => {
                let left = (total - reserved(name)).milli_value().max(0);
                if left % 1000 == 0 {
                    quantity(left / 1000)
                } else {
                    quantity(format!("{left}m"))
                }
            }
            "memory" => {
                let left = total.value()
                    - reserved(name).value()
                    - threshold(Signal::MemoryAvailable, total.value())
                    - hugepages;
                quantity(format!("{}Ki", left.max(0) / 1024))
            }
            "ephemeral-storage" => {
                let left = total.value()
                    - reserved(name).value()
                    - threshold(Signal::NodeFsAvailable, total.value());
                quantity(left.max(0))
            }
            _ => q.clone(),
        };
        out.insert(name.clone(), left);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_and_thresholds_go_off() {
        let machine = MachineInfo {
            cpus: 4,
            memory_capacity_bytes: 8 << 30,
            ..Default::default()
        };
        let config = KubeletConfiguration {
            system_reserved: [
                ("cpu".to_owned(), "500m".to_owned()),
                ("memory".to_owned(), "1Gi".to_owned()),
            ]
            .into(),
            ..Default::default()
        };
        let root = FsStats {
            capacity_bytes: 100 << 30,
            ..Default::default()
        };
        let capacity = capacity(&machine, root, &config);
        assert_eq!(capacity["pods"].0, "110");
        // Both in one format.
        assert_eq!(capacity["ephemeral-storage"].0, (100u64 << 30).to_string());
        let got = allocatable(&capacity, &config);
        assert_eq!(got["cpu"].0, "3500m");
        assert_eq!(
            got["memory"].0,
            format!("{}Ki", ((7u64 << 30) - (100 << 20)) / 1024)
        );
        assert_eq!(got["ephemeral-storage"].0, (90u64 << 30).to_string());
        let kept = reservation(&capacity, &config);
        assert_eq!(kept["cpu"].milli_value(), 500);
        assert_eq!(kept["memory"].value(), (1 << 30) + (100 << 20));
        assert!(!kept.contains_key("pods"));
    }
}
