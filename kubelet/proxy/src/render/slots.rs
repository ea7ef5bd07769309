//! Which endpoint is at which place of its list.
//!
//! The maps are keyed by place. An endpoint that comes or goes must not move all others, so a list keeps its order:
//! what is new goes to the end, and the last takes the place of what is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Policy;
use crate::service::{NamespacedName, PortName};

type Id = (NamespacedName, PortName, Policy);

/// The places from one rendering to the next.
#[derive(Debug, Default)]
pub struct Slots {
    lists: BTreeMap<Id, (u64, Vec<(IpAddr, u16)>)>,
    round: u64,
}

impl Slots {
    pub(super) fn assign(
        &mut self,
        (service, port): (&NamespacedName, &PortName),
        policy: Policy,
        mut wanted: BTreeSet<(IpAddr, u16)>,
    ) -> Vec<(IpAddr, u16)> {
        let (round, list) = self
            .lists
            .entry((service.clone(), port.clone(), policy))
            .or_default();
        *round = self.round;
        let mut place = 0;
        while place < list.len() {
            if wanted.remove(&list[place]) {
                place += 1;
            } else {
                list.swap_remove(place);
            }
        }
        list.extend(wanted);
        list.clone()
    }

    /// Forgets the lists that the last round had no use for.
    pub(super) fn end_of_round(&mut self) {
        let current = self.round;
        self.lists.retain(|_, (round, _)| *round == current);
        self.round += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_moves_at_most_one_other() {
        let mut slots = Slots::default();
        let name = NamespacedName::default();
        let port = PortName {
            port: String::new(),
            protocol: nftables::Protocol::Tcp,
        };
        let mut check = |wanted: &[u8], expect: &[u8]| {
            let list = |numbers: &[u8]| -> Vec<(IpAddr, u16)> {
                numbers
                    .iter()
                    .map(|n| ([10, 0, 0, *n].into(), 80))
                    .collect()
            };
            let got = slots.assign(
                (&name, &port),
                Policy::Cluster,
                list(wanted).into_iter().collect(),
            );
            slots.end_of_round();
            assert_eq!(got, list(expect));
        };
        check(&[1, 2, 3, 4], &[1, 2, 3, 4]);
        check(&[1, 3, 4], &[1, 4, 3]);
        check(&[0, 1, 3, 4], &[1, 4, 3, 0]);
        check(&[], &[]);
        check(&[3, 2], &[2, 3]);
    }
}
