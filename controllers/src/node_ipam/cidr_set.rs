//! Which of a range's equal parts are taken. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A range of IPv6 is divided into 2^16 parts at most.
const MAX_DIFFERENCE_IPV6: u8 = 16;
/// One of IPv4 into as many as 10.0.0.0/8 has addresses.
// DIFFERS: upstream takes any, and takes the memory for it.
const MAX_DIFFERENCE_IPV4: u8 = 24;

/// Why nothing could be taken or freed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrSetError {
    #[error(
        "CIDR allocation failed; there are no remaining CIDRs left to allocate in the accepted range"
    )]
    NoCidrsRemaining,
    #[error("New CIDR set failed; the node CIDR size is too big")]
    SubnetTooBig,
    #[error("cidr {cidr} is out the range of cluster cidr {cluster}")]
    OutOfRange { cidr: IpNet, cluster: IpNet },
}

#[derive(Debug)]
pub(super) struct CidrSet {
    cluster: IpNet,
    mask_size: u8,
    used: Vec<bool>,
    allocated: usize,
    next: usize,
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

impl CidrSet {
    pub(super) fn new(cluster: IpNet, mask_size: u8) -> Result<Self, CidrSetError> {
        let difference = mask_size
            .checked_sub(cluster.prefix_len())
            .ok_or(CidrSetError::SubnetTooBig)?;
        let most = match cluster {
            IpNet::V4(_) => MAX_DIFFERENCE_IPV4,
            IpNet::V6(_) => MAX_DIFFERENCE_IPV6,
        };
        if difference > most || mask_size > cluster.max_prefix_len() {
            return Err(CidrSetError::SubnetTooBig);
        }
        Ok(Self {
            cluster: cluster.trunc(),
            mask_size,
            used: vec![false; 1 << difference],
            allocated: 0,
            next: 0,
        })
    }

    fn part(&self, index: usize) -> IpNet {
        let shift = u32::from(self.cluster.max_prefix_len() - self.mask_size);
        let offset = (index as u128).checked_shl(shift).unwrap_or(0);
        let value = bits(self.cluster.network()) | offset;
        let address = match self.cluster {
            // The value was made of an IPv4 address and an offset inside its net.
            IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(value as u32)),
            IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(value)),
        };
        IpNet::new(address, self.mask_size)
            .expect("the mask size was checked when the set was made")
    }

    /// The parts a net covers or lies in.
    fn range(&self, cidr: IpNet) -> Result<std::ops::RangeInclusive<usize>, CidrSetError> {
        let out_of_range = CidrSetError::OutOfRange {
            cidr,
            cluster: self.cluster,
        };
        if cidr.addr().is_ipv4() != self.cluster.addr().is_ipv4() {
            return Err(out_of_range);
        }
        if cidr.contains(&self.cluster) {
            return Ok(0..=self.used.len() - 1);
        }
        if !self.cluster.contains(&cidr) {
            return Err(out_of_range);
        }
        let shift = u32::from(self.cluster.max_prefix_len() - self.mask_size);
        let index = |address| {
            let offset = bits(address) - bits(self.cluster.network());
            usize::try_from(offset.checked_shr(shift).unwrap_or(0))
                .expect("inside a net of at most 2^24 parts")
        };
        Ok(index(cidr.network())..=index(cidr.broadcast()))
    }

    /// Takes the next free part, going round.
    pub(super) fn allocate_next(&mut self) -> Result<IpNet, CidrSetError> {
        let count = self.used.len();
        let free = (0..count)
            .map(|i| (self.next + i) % count)
            .find(|i| !self.used[*i]);
        let index = free.ok_or(CidrSetError::NoCidrsRemaining)?;
        self.used[index] = true;
        self.allocated += 1;
        self.next = (index + 1) % count;
        Ok(self.part(index))
    }

    /// Takes what a net covers; taking it twice is no error.
    pub(super) fn occupy(&mut self, cidr: IpNet) -> Result<(), CidrSetError> {
        self.set(cidr, true)
    }

    /// Frees what a net covers; freeing it twice is no error.
    pub(super) fn release(&mut self, cidr: IpNet) -> Result<(), CidrSetError> {
        self.set(cidr, false)
    }

    fn set(&mut self, cidr: IpNet, used: bool) -> Result<(), CidrSetError> {
        for index in self.range(cidr)? {
            if self.used[index] != used {
                self.used[index] = used;
                if used {
                    self.allocated += 1
                } else {
                    self.allocated -= 1
                }
            }
        }
        Ok(())
    }

    /// The part of the range that is taken, 0 to 1.
    pub(super) fn usage(&self) -> f64 {
        self.allocated as f64 / self.used.len() as f64
    }

    /// The range.
    pub(super) fn cluster(&self) -> IpNet {
        self.cluster
    }

    /// How many parts there are.
    pub(super) fn max_cidrs(&self) -> usize {
        self.used.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn takes_and_frees() {
        let mut set = CidrSet::new(net("10.244.0.0/22"), 24).unwrap();
        assert_eq!(set.max_cidrs(), 4);
        assert_eq!(set.allocate_next().unwrap(), net("10.244.0.0/24"));
        set.occupy(net("10.244.1.0/24")).unwrap();
        assert_eq!(set.allocate_next().unwrap(), net("10.244.2.0/24"));
        assert_eq!(set.allocate_next().unwrap(), net("10.244.3.0/24"));
        assert_eq!(set.allocate_next(), Err(CidrSetError::NoCidrsRemaining));
        set.release(net("10.244.1.0/24")).unwrap();
        set.release(net("10.244.1.0/24")).unwrap();
        assert_eq!(set.allocate_next().unwrap(), net("10.244.1.0/24"));
        assert!(set.occupy(net("10.245.0.0/24")).is_err());
    }

    #[test]
    fn nets_larger_and_smaller_than_a_part() {
        let mut set = CidrSet::new(net("10.0.0.0/16"), 24).unwrap();
        set.occupy(net("10.0.0.0/18")).unwrap();
        assert_eq!(set.allocate_next().unwrap(), net("10.0.64.0/24"));
        set.occupy(net("10.0.65.128/25")).unwrap();
        assert_eq!(set.allocate_next().unwrap(), net("10.0.66.0/24"));
        set.occupy(net("10.0.0.0/8")).unwrap();
        assert_eq!(set.usage(), 1.0);
    }

    #[test]
    fn small_parts_of_a_large_range() {
        let mut set = CidrSet::new(net("10.0.0.0/8"), 26).unwrap();
        assert_eq!(set.max_cidrs(), 1 << 18);
        set.occupy(net("10.128.0.0/9")).unwrap();
        assert_eq!(set.usage(), 0.5);
        assert_eq!(set.allocate_next().unwrap(), net("10.0.0.0/26"));
        assert!(CidrSet::new(net("0.0.0.0/0"), 30).is_err());
    }

    #[test]
    fn ipv6() {
        let mut set = CidrSet::new(net("fd00:1::/48"), 64).unwrap();
        assert_eq!(set.allocate_next().unwrap(), net("fd00:1::/64"));
        assert_eq!(set.allocate_next().unwrap(), net("fd00:1:0:1::/64"));
        assert!(CidrSet::new(net("fd00::/32"), 64).is_err());
        assert!(set.occupy(net("10.0.0.0/24")).is_err());
    }
}
