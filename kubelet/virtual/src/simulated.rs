//! The provider that runs nothing: pods live by a script, or by kwok's stages.
//!
//! Owns: the two ways to say how pods go. [`script`] is pure and tells what happens when; [`scripted`] is its shell. [`stage`] reads
//! `Stage` objects (`kwok.x-k8s.io/v1alpha1`), [`staged`] carries them out. Upstream: `sigs.k8s.io/kwok`, v0.7.

pub mod configuration;
pub mod path;
pub mod script;
pub mod scripted;
pub mod stage;
pub mod staged;
pub mod template;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Addresses for pods: each is given to one pod at a time, as long as the range lasts.
#[derive(Debug)]
pub struct Addresses {
    range: Ipv4Net,
    next: u32,
    free: Vec<u32>,
}

impl Addresses {
    pub fn new(range: Ipv4Net) -> Self {
        Self {
            range,
            next: 1,
            free: Vec::new(),
        }
    }

    fn size(&self) -> u32 {
        u32::try_from(self.range.hosts().size_hint().0).unwrap_or(u32::MAX)
    }

    /// The next one; begins anew when the range is at its end.
    pub fn take(&mut self) -> Ipv4Addr {
        let offset = self.free.pop().unwrap_or_else(|| {
            let offset = self.next;
            self.next = if offset >= self.size() { 1 } else { offset + 1 };
            offset
        });
        Ipv4Addr::from(u32::from(self.range.network()).wrapping_add(offset))
    }

    /// A pod of an earlier process has this one. Lower ones that nobody has are lost until the next start.
    pub fn keep(&mut self, address: Ipv4Addr) {
        if self.range.contains(&address) {
            let offset = u32::from(address).wrapping_sub(u32::from(self.range.network()));
            self.next = self.next.max(offset.saturating_add(1));
        }
    }

    /// Nobody has it any more.
    pub fn give_back(&mut self, address: Ipv4Addr) {
        if self.range.contains(&address) {
            let offset = u32::from(address).wrapping_sub(u32::from(self.range.network()));
            self.free.push(offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_once() {
        let mut addresses = Addresses::new("10.1.0.0/16".parse().unwrap());
        let first = addresses.take();
        assert_eq!(first, Ipv4Addr::new(10, 1, 0, 1));
        assert_eq!(addresses.take(), Ipv4Addr::new(10, 1, 0, 2));
        addresses.give_back(first);
        assert_eq!(addresses.take(), first);
        addresses.keep(Ipv4Addr::new(10, 1, 1, 0));
        assert_eq!(addresses.take(), Ipv4Addr::new(10, 1, 1, 1));
    }
}
