//! Eviction thresholds: signals, values, and whether they are met.
//!
//! Owns: the parser and the comparison; pure. Upstream: `pkg/kubelet/eviction/helpers.go`, v1.36.

use std::collections::BTreeMap;
use std::time::Duration;

use component_helpers::quantity::Amount;

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    MemoryAvailable,
    /// What pods together have left of the limit they are held to.
    AllocatableMemoryAvailable,
    NodeFsAvailable,
    NodeFsInodesFree,
    ImageFsAvailable,
    ImageFsInodesFree,
    ContainerFsAvailable,
    ContainerFsInodesFree,
    PidAvailable,
}

/// Every signal's name, as the configuration writes it.
pub const SIGNALS: &[&str] = &[
    "memory.available",
    "allocatableMemory.available",
    "nodefs.available",
    "nodefs.inodesFree",
    "imagefs.available",
    "imagefs.inodesFree",
    "containerfs.available",
    "containerfs.inodesFree",
    "pid.available",
];

impl Signal {
    pub fn as_str(self) -> &'static str {
        match self {
            Signal::MemoryAvailable => "memory.available",
            Signal::AllocatableMemoryAvailable => "allocatableMemory.available",
            Signal::NodeFsAvailable => "nodefs.available",
            Signal::NodeFsInodesFree => "nodefs.inodesFree",
            Signal::ImageFsAvailable => "imagefs.available",
            Signal::ImageFsInodesFree => "imagefs.inodesFree",
            Signal::ContainerFsAvailable => "containerfs.available",
            Signal::ContainerFsInodesFree => "containerfs.inodesFree",
            Signal::PidAvailable => "pid.available",
        }
    }

    /// The node condition a met threshold raises.
    pub fn node_condition(self) -> &'static str {
        match self {
            Signal::MemoryAvailable | Signal::AllocatableMemoryAvailable => "MemoryPressure",
            Signal::PidAvailable => "PIDPressure",
            _ => "DiskPressure",
        }
    }

    /// The resource that is short, as events and messages name it.
    pub fn resource(self) -> &'static str {
        match self {
            Signal::MemoryAvailable | Signal::AllocatableMemoryAvailable => "memory",
            Signal::NodeFsAvailable | Signal::ImageFsAvailable | Signal::ContainerFsAvailable => {
                "ephemeral-storage"
            }
            Signal::NodeFsInodesFree
            | Signal::ImageFsInodesFree
            | Signal::ContainerFsInodesFree => "inodes",
            Signal::PidAvailable => "pids",
        }
    }
}

pub fn parse_signal(text: &str) -> Option<Signal> {
    Some(match text {
        "memory.available" => Signal::MemoryAvailable,
        "allocatableMemory.available" => Signal::AllocatableMemoryAvailable,
        "nodefs.available" => Signal::NodeFsAvailable,
        "nodefs.inodesFree" => Signal::NodeFsInodesFree,
        "imagefs.available" => Signal::ImageFsAvailable,
        "imagefs.inodesFree" => Signal::ImageFsInodesFree,
        "containerfs.available" => Signal::ContainerFsAvailable,
        "containerfs.inodesFree" => Signal::ContainerFsInodesFree,
        "pid.available" => Signal::PidAvailable,
        _ => return None,
    })
}

/// An amount, or a share of the whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ThresholdValue {
    Quantity(i64),
    /// 0 to 1.
    Percentage(f64),
}

impl ThresholdValue {
    /// In units of `capacity`.
    pub fn resolve(self, capacity: u64) -> u64 {
        match self {
            ThresholdValue::Quantity(n) => u64::try_from(n).unwrap_or(0),
            // Lossy on purpose: a share of a capacity needs no better precision.
            ThresholdValue::Percentage(p) => (capacity as f64 * p) as u64,
        }
    }
}

/// # Errors
/// What is wrong with the text.
pub fn parse_value(text: &str) -> Result<ThresholdValue, String> {
    if let Some(percent) = text.strip_suffix('%') {
        let p: f64 = percent
            .parse()
            .map_err(|_| "must be a quantity or a percentage".to_owned())?;
        if !(0.0..=100.0).contains(&p) {
            return Err("must be between 0% and 100%".to_owned());
        }
        return Ok(ThresholdValue::Percentage(p / 100.0));
    }
    let amount: Amount = text
        .parse()
        .map_err(|_| "must be a quantity or a percentage".to_owned())?;
    if amount.is_negative() {
        return Err("must not be negative".to_owned());
    }
    Ok(ThresholdValue::Quantity(amount.value()))
}

/// One line of the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    pub signal: Signal,
    pub value: ThresholdValue,
    /// Zero: hard.
    pub grace_period: Duration,
    pub min_reclaim: Option<ThresholdValue>,
}

impl Threshold {
    pub fn is_hard(&self) -> bool {
        self.grace_period.is_zero()
    }
}

/// The thresholds of a validated configuration. A threshold of zero or 0 % is switched off.
///
/// `pods_are_held`: node allocatable is enforced on pods (`enforceNodeAllocatable`); then what holds for the node's memory holds
/// for theirs, too, so that one of them is evicted before the kernel kills.
pub fn parse_threshold_config(
    pods_are_held: bool,
    hard: &BTreeMap<String, String>,
    soft: &BTreeMap<String, String>,
    soft_grace: &BTreeMap<String, String>,
    min_reclaim: &BTreeMap<String, String>,
) -> Vec<Threshold> {
    let reclaim = |signal: &str| min_reclaim.get(signal).and_then(|v| parse_value(v).ok());
    let make = |name: &str, value: &str, grace_period| {
        let value = parse_value(value).ok()?;
        if matches!(value, ThresholdValue::Quantity(0)) || value == ThresholdValue::Percentage(0.0)
        {
            return None;
        }
        Some(Threshold {
            signal: parse_signal(name)?,
            value,
            grace_period,
            min_reclaim: reclaim(name),
        })
    };
    let hard = hard.iter().filter_map(|(n, v)| make(n, v, Duration::ZERO));
    let soft = soft.iter().filter_map(|(n, v)| {
        let grace = soft_grace
            .get(n)
            .and_then(|g| component_base::duration::parse(g).ok())?;
        make(n, v, grace)
    });
    let mut thresholds: Vec<Threshold> = hard.chain(soft).collect();
    let of_memory = |t: &&Threshold| t.signal == Signal::MemoryAvailable && t.is_hard();
    if pods_are_held && let Some(of_node) = thresholds.iter().find(of_memory) {
        thresholds.push(Threshold {
            signal: Signal::AllocatableMemoryAvailable,
            ..of_node.clone()
        });
    }
    thresholds
}

/// What a signal stands at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    pub available: u64,
    pub capacity: u64,
}

/// The thresholds that are met. `enforce_min_reclaim`: once met, a threshold stays met until so much more is free.
pub fn thresholds_met(
    thresholds: &[Threshold],
    observations: &BTreeMap<Signal, Observation>,
    enforce_min_reclaim: bool,
) -> Vec<Threshold> {
    thresholds
        .iter()
        .filter(|t| {
            let Some(seen) = observations.get(&t.signal) else {
                return false;
            };
            let mut limit = t.value.resolve(seen.capacity);
            if enforce_min_reclaim && let Some(reclaim) = t.min_reclaim {
                limit += reclaim.resolve(seen.capacity);
            }
            seen.available < limit
        })
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn met_or_not() {
        let hard = [
            ("memory.available".to_owned(), "100Mi".to_owned()),
            ("nodefs.available".to_owned(), "10%".to_owned()),
        ];
        let list = parse_threshold_config(
            false,
            &hard.into(),
            &BTreeMap::new(),
            &BTreeMap::new(),
            &BTreeMap::new(),
        );
        let seen = |memory, disk| {
            BTreeMap::from([
                (
                    Signal::MemoryAvailable,
                    Observation {
                        available: memory,
                        capacity: 1 << 30,
                    },
                ),
                (
                    Signal::NodeFsAvailable,
                    Observation {
                        available: disk,
                        capacity: 1000,
                    },
                ),
            ])
        };
        assert!(thresholds_met(&list, &seen(200 << 20, 500), false).is_empty());
        assert_eq!(
            thresholds_met(&list, &seen(99 << 20, 500), false)[0].signal,
            Signal::MemoryAvailable
        );
        assert_eq!(
            thresholds_met(&list, &seen(200 << 20, 99), false)[0].signal,
            Signal::NodeFsAvailable
        );
    }

    #[test]
    fn zero_switches_off() {
        let hard = [("imagefs.available".to_owned(), "0%".to_owned())];
        assert!(
            parse_threshold_config(
                true,
                &hard.into(),
                &BTreeMap::new(),
                &BTreeMap::new(),
                &BTreeMap::new()
            )
            .is_empty()
        );
    }

    #[test]
    fn pods_that_are_held_together_are_evicted_before_the_kernel_kills() {
        let hard = [("memory.available".to_owned(), "100Mi".to_owned())].into();
        let soft = [("memory.available".to_owned(), "1Gi".to_owned())].into();
        let grace = [("memory.available".to_owned(), "1m".to_owned())].into();
        let signals = |held| -> Vec<_> {
            let list = parse_threshold_config(held, &hard, &soft, &grace, &BTreeMap::new());
            list.iter().map(|t| (t.signal, t.is_hard())).collect()
        };
        let of_node = [
            (Signal::MemoryAvailable, true),
            (Signal::MemoryAvailable, false),
        ];
        assert_eq!(signals(false), of_node);
        assert_eq!(signals(true)[..2], of_node);
        assert_eq!(
            signals(true)[2..],
            [(Signal::AllocatableMemoryAvailable, true)]
        );
        for name in SIGNALS {
            assert_eq!(parse_signal(name).unwrap().as_str(), *name);
        }
    }
}
