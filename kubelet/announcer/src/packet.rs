//! Frames that say whose an address is: ARP for IPv4, neighbour discovery for IPv6. Pure: bytes in, bytes out.
//!
//! Whatever is not exactly such a frame is `None`: these come from anybody on the link.

use std::fmt;
use std::net::IpAddr;

pub mod arp;
pub mod ndp;

/// The header of Ethernet.
pub(crate) const ETHERNET: usize = 14;
/// EtherTypes. Upstream: IEEE 802, `linux/if_ether.h`.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// An address of a link.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Everybody on the link.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// Nobody.
    pub const ZERO: Self = Self([0; 6]);

    /// Whether one host can have it.
    pub fn is_host(self) -> bool {
        self.0[0] & 1 == 0 && self != Self::ZERO
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What somebody said on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Whose is `target`?
    Asks {
        /// The address that is asked for.
        target: IpAddr,
        /// Who asks; unspecified where it has no address yet.
        from: IpAddr,
        /// Where the answer goes.
        mac: Mac,
    },
    /// `address` is mine.
    Claims {
        /// The address.
        address: IpAddr,
        /// Whose it is.
        mac: Mac,
    },
}

/// What a frame says; `None` for one that says nothing of whose an address is.
pub fn parse(frame: &[u8]) -> Option<Heard> {
    let kind = u16::from_be_bytes(bytes(frame, 12)?);
    match kind {
        ETHERTYPE_ARP => arp::parse(frame),
        ETHERTYPE_IPV6 => ndp::parse(frame),
        _ => None,
    }
}

/// Tells everybody that an address is at `mac`. IPv4 wants two frames: some hosts learn from requests alone, others from replies.
pub fn announcement(address: IpAddr, mac: Mac, source: Option<std::net::Ipv6Addr>) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(v4) => vec![
            arp::gratuitous_request(v4, mac),
            arp::gratuitous_reply(v4, mac),
        ],
        IpAddr::V6(v6) => vec![ndp::announcement(v6, mac, source)],
    }
}

/// The answer to [`Heard::Asks`]; `None` where the families differ.
pub fn answer(
    target: IpAddr,
    mac: Mac,
    to: (IpAddr, Mac),
    source: Option<std::net::Ipv6Addr>,
) -> Option<Vec<u8>> {
    match (target, to.0) {
        (IpAddr::V4(target), IpAddr::V4(from)) => Some(arp::reply(target, mac, from, to.1)),
        (IpAddr::V6(target), IpAddr::V6(from)) => {
            Some(ndp::answer(target, mac, from, to.1, source))
        }
        _ => None,
    }
}

/// Asks whether another has an address, claiming nothing.
pub fn probe(address: IpAddr, mac: Mac, source: Option<std::net::Ipv6Addr>) -> Option<Vec<u8>> {
    match address {
        IpAddr::V4(v4) => Some(arp::probe(v4, mac)),
        // Without an address of its own the question would be one of duplicate address detection.
        IpAddr::V6(v6) => source.map(|source| ndp::probe(v6, mac, source)),
    }
}

/// So many bytes from an offset on.
pub(crate) fn bytes<const N: usize>(frame: &[u8], offset: usize) -> Option<[u8; N]> {
    frame.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

pub(crate) fn ethernet(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETHERNET + 72);
    frame.extend(to.0);
    frame.extend(from.0);
    frame.extend(kind.to_be_bytes());
    frame
}
