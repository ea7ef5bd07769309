//! `reservedMemory`: what of each NUMA node is nobody's.
//!
//! Upstream: `validateReservedMemory`, `convertReserved` in memory_manager.go, v1.37.

use std::collections::{BTreeMap, BTreeSet};

use component_helpers::quantity::Amount;
use component_helpers::resources::{Amounts, HUGEPAGES_PREFIX, MEMORY};

use crate::topology::NumaNode;

/// Bytes by id of the node and name of the resource.
pub type SystemReserved = BTreeMap<usize, BTreeMap<String, u64>>;

/// An entry of `reservedMemory`.
#[derive(Clone, Debug, PartialEq)]
pub struct Reservation {
    /// What is less than zero is no node's number.
    pub numa_node: i32,
    pub limits: Amounts,
}

/// The reservation does not fit the machine or the rest of the configuration. Another start says the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReservedMemoryError {
    #[error(
        "the reserved memory configuration references a NUMA node {0} that does not exist on this machine"
    )]
    NoSuchNode(i32),
    #[error(
        "the total amount {reserved:?} of type {resource:?} is not equal to the value {allocatable:?} determined by Node Allocatable feature"
    )]
    Sum {
        resource: String,
        reserved: String,
        allocatable: String,
    },
    #[error("could not covert a variable of type Quantity to int64")]
    NotWhole,
}

fn is_memory(resource: &str) -> bool {
    resource == MEMORY || resource.starts_with(HUGEPAGES_PREFIX)
}

/// In bytes. `node_reservation`: what is kept back of the node as a whole; the entries are to add up to it.
///
/// # Errors
/// They do not, or name a node that is not there.
pub fn system_reserved(
    nodes: &[NumaNode],
    node_reservation: &Amounts,
    entries: &[Reservation],
) -> Result<SystemReserved, ReservedMemoryError> {
    let mut sums = Amounts::new();
    for entry in entries {
        node_of(nodes, entry)?;
        component_helpers::resources::add(&mut sums, &entry.limits);
    }
    let of_node = node_reservation.keys().filter(|name| is_memory(name));
    let names: BTreeSet<&String> = sums.keys().chain(of_node).collect();
    for name in names {
        let of = |list: &Amounts| list.get(name).copied().unwrap_or(Amount::ZERO);
        let (reserved, allocatable) = (of(&sums), of(node_reservation));
        if reserved != allocatable {
            return Err(ReservedMemoryError::Sum {
                resource: name.clone(),
                reserved: reserved.canonical(),
                allocatable: allocatable.canonical(),
            });
        }
    }
    let mut converted: SystemReserved = nodes
        .iter()
        .map(|node| (node.id, BTreeMap::new()))
        .collect();
    for entry in entries {
        let node = node_of(nodes, entry)?;
        for (name, limit) in &entry.limits {
            let bytes = whole(limit).ok_or(ReservedMemoryError::NotWhole)?;
            let of_node = converted.entry(node).or_default();
            of_node.insert(name.clone(), bytes);
        }
    }
    Ok(converted)
}

fn node_of(nodes: &[NumaNode], entry: &Reservation) -> Result<usize, ReservedMemoryError> {
    let id = usize::try_from(entry.numa_node).ok();
    let known = id.filter(|id| nodes.iter().any(|node| node.id == *id));
    known.ok_or(ReservedMemoryError::NoSuchNode(entry.numa_node))
}

/// `None`: it is a fraction, or less than nothing.
pub(super) fn whole(amount: &Amount) -> Option<u64> {
    const NANO: i128 = 1_000_000_000;
    let nano = amount.nano_value();
    (nano % NANO == 0).then(|| u64::try_from(nano / NANO).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amounts(pairs: &[(&str, &str)]) -> Amounts {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| ((*name).to_owned(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn entries_add_up_to_what_the_node_keeps_back() {
        let nodes = [0, 1].map(|id| NumaNode {
            id,
            ..NumaNode::default()
        });
        let check = |node: &[(&str, &str)], entries: &[(i32, &[(&str, &str)])], expect: &str| {
            let entries: Vec<_> = entries
                .iter()
                .map(|(numa_node, limits)| Reservation {
                    numa_node: *numa_node,
                    limits: amounts(limits),
                })
                .collect();
            let got = match system_reserved(&nodes, &amounts(node), &entries) {
                Ok(reserved) => format!("{reserved:?}"),
                Err(error) => error.to_string(),
            };
            assert_eq!(got, expect);
        };
        check(
            &[("memory", "1Gi"), ("cpu", "1")],
            &[(0, &[("memory", "512Mi")]), (1, &[("memory", "536870912")])],
            "{0: {\"memory\": 536870912}, 1: {\"memory\": 536870912}}",
        );
        check(
            &[("memory", "1Gi")],
            &[(0, &[("memory", "1000Mi")])],
            "the total amount \"1000Mi\" of type \"memory\" is not equal to the value \"1Gi\" determined by Node Allocatable feature",
        );
        check(
            &[("memory", "1Gi")],
            &[(0, &[("memory", "1Gi"), ("hugepages-2Mi", "2Mi")])],
            "the total amount \"2Mi\" of type \"hugepages-2Mi\" is not equal to the value \"0\" determined by Node Allocatable feature",
        );
        check(
            &[],
            &[(2, &[("memory", "1Gi")])],
            "the reserved memory configuration references a NUMA node 2 that does not exist on this machine",
        );
        check(
            &[],
            &[(-1, &[("memory", "1Gi")])],
            "the reserved memory configuration references a NUMA node -1 that does not exist on this machine",
        );
        check(
            &[("memory", "1500m")],
            &[(0, &[("memory", "1500m")])],
            "could not covert a variable of type Quantity to int64",
        );
    }
}
